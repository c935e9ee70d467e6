"""Features of the frozen backbone, computed once: equal to those of every step, resumable, refused where they are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from avprompt.backbone import PrecomputedFeatures
from avprompt.cli import main, parts_of, run
from avprompt.errors import ArgumentError, CheckpointError, ConfigError, DatasetError
from avprompt.feature_cache import CacheRecord, FeatureCache

PLAIN = ["--model.backbone.prompts", "avprompt.methods.NoPrompts"]


def experiment(root: Path, *more: str) -> list[str]:
    return ["--config", str(ROOT / "experiments" / "quickstart.yaml"), "--data.root", str(root), *more]


def on_features(root: Path, cache: Path, *more: str) -> list[str]:
    return experiment(
        root,
        "--model.backbone",
        "avprompt.backbone.PrecomputedFeatures",
        "--model.backbone.cache",
        str(cache),
        "--data.feature_cache",
        str(cache),
        *more,
    )


@pytest.fixture(scope="module")
def caches(ave_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One cache with a vector a segment, one with all tokens in bfloat16."""
    found = {}
    for pool, precision in (("mean", "float16"), ("grid", "bfloat16")):
        found[pool] = tmp_path_factory.mktemp(pool) / "cache"
        run(
            [
                "data",
                "features",
                *experiment(ave_root, *PLAIN),
                "--pool",
                pool,
                "--precision",
                precision,
                "--out",
                str(found[pool]),
            ]
        )
    return found


@pytest.mark.parametrize(("pool", "bound"), [("mean", 2e-3), ("grid", 2e-2)])
def test_cached_features_are_those_of_every_step(pool: str, bound: float, ave_root: Path, caches: dict) -> None:
    task, data = parts_of(experiment(ave_root, *PLAIN))
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    source = PrecomputedFeatures(caches[pool])
    kept = [source.cache.read(clip_id) for clip_id in batch["id"]]
    with torch.no_grad():
        online = task.backbone(batch, prompted=False)
        cached = source({name: torch.stack([clip[name] for clip in kept]) for name in source.batch_keys})
    for name in ("visual", "audio", *(("visual_tokens", "audio_tokens") if pool == "grid" else ())):
        ours, theirs = getattr(cached, name), getattr(online, name)
        assert ours.shape == theirs.shape and ours.dtype == torch.float32
        assert (ours - theirs).abs().max() < bound * theirs.abs().max(), name
    assert torch.equal(torch.stack([clip["valid"] for clip in kept]), batch["valid"])
    assert (source.visual_dim, source.audio_dim) == (task.backbone.visual_dim, task.backbone.audio_dim)


def test_a_head_trains_and_is_tested_on_features_alone(ave_root: Path, caches: dict, tmp_path: Path) -> None:
    quiet = [
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.max_epochs",
        "1",
        "--trainer.logger.save_dir",
        str(tmp_path),
    ]
    run(["fit", *on_features(ave_root, caches["mean"], *quiet)])
    best = tmp_path / "quickstart" / "version_0" / "checkpoints" / "best.ckpt"
    run(["test", *on_features(ave_root, caches["mean"], *quiet, "--ckpt_path", str(best))])
    assert "test_accuracy" in json.loads((tmp_path / "quickstart" / "version_1" / "result.json").read_text())["metrics"]
    run(["predict", *on_features(ave_root, caches["mean"], *quiet, "--ckpt_path", str(best))])
    assert len(list((tmp_path / "quickstart" / "version_2" / "pictures").glob("*.png"))) > 0  # media are read for them
    with pytest.raises(CheckpointError, match="trained on PrecomputedFeatures"):
        run(["test", *on_features(ave_root, caches["grid"], *quiet, "--ckpt_path", str(best))])


def test_computation_goes_on_where_it_stopped(
    ave_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "data",
        "features",
        *experiment(ave_root, *PLAIN, "--data.eval_batch_size", "8"),
        "--out",
        str(tmp_path / "c"),
    ]
    write, calls = FeatureCache.write, []

    def stop_after_two(self: FeatureCache, *given: object) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(given[0])
        write(self, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FeatureCache, "write", stop_after_two)
        run(command)
    before = FeatureCache(tmp_path / "c")
    assert len(before.record.clips) - len(before.missing) == 16
    run(command)
    assert "24 clips computed" in capsys.readouterr().out
    assert not FeatureCache(tmp_path / "c").missing
    run(command)
    assert "0 clips computed" in capsys.readouterr().out
    with pytest.raises(DatasetError, match="other pool"):
        run([*command, "--pool", "grid"])
    with pytest.raises(DatasetError, match="other encoders.audio"):
        run([*command, "--model.backbone.audio.pretrained", "none"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "prompts: got DGSCT.*NoPrompts"),
        ((*PLAIN, "--data.augment", "randaugment"), "augment: got randaugment"),
        ((*PLAIN, "--data.mix_audio", "0.5"), "mix_audio: got 0.5"),
        ((*PLAIN, "--model.backbone.audio.released_mode", "true"), "released_mode"),
        ((*PLAIN, "--model.backbone.visual.frozen", "false"), "frozen"),
    ],
)
def test_what_changes_from_step_to_step_is_refused_before_work(
    flags: tuple, message: str, ave_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(["data", "features", *experiment(ave_root, *flags), "--out", str(tmp_path / "c")])
    assert not (tmp_path / "c").exists()


def test_stale_and_foreign_caches_are_refused(ave_root: Path, caches: dict, tmp_path: Path) -> None:
    from avprompt.media.decode import Sampling

    cache = FeatureCache(caches["mean"])
    clips, sampling = dict(cache.record.clips), Sampling(**cache.record.sampling)
    cache.check(sampling, clips)
    first = next(iter(clips))
    with pytest.raises(DatasetError, match=f"other media than now for 1 of {len(clips)} clips, such as {first}"):
        cache.check(sampling, {**clips, first: "another digest"})
    with pytest.raises(DatasetError, match="no features of 1 of"):
        cache.check(sampling, {**clips, "unknown": "digest"})
    with pytest.raises(DatasetError, match="sample_rate"):
        cache.check(Sampling(**{**cache.record.sampling, "sample_rate": 8000}), clips)
    with pytest.raises(DatasetError, match="no features of unknown"):
        cache.read("unknown")


@pytest.mark.parametrize("damage", ["record", "shape", "pickle", "none"])
def test_a_damaged_cache_is_named(damage: str, caches: dict, tmp_path: Path) -> None:
    folder = shutil.copytree(caches["mean"], tmp_path / "cache")
    if damage == "record":
        (folder / "cache.json").write_text("{}")
    elif damage == "shape":
        np.save(folder / "audio.npy", np.zeros((2, 3), np.float16))
    elif damage == "pickle":
        np.save(folder / "audio.npy", np.array([{}], dtype=object), allow_pickle=True)
    else:
        shutil.rmtree(folder)
    with pytest.raises(DatasetError, match="cache.json" if damage in ("record", "none") else "audio.npy"):
        FeatureCache(folder)


def test_data_and_backbone_read_the_same_features(ave_root: Path, caches: dict, tmp_path: Path) -> None:
    log = ["--trainer.logger", "false"]
    with pytest.raises(ConfigError, match="feature_cache"):
        run(["fit", *on_features(ave_root, caches["mean"], *log, "--data.feature_cache", "null")])
    with pytest.raises(ConfigError, match="PrecomputedFeatures"):
        run(["fit", *experiment(ave_root, *PLAIN, *log, "--data.feature_cache", str(caches["mean"]))])
    with pytest.raises(ConfigError, match="the same folder"):
        run(["fit", *on_features(ave_root, caches["mean"], *log, "--data.feature_cache", str(caches["grid"]))])
    for flag, value in (("augment", "randaugment"), ("mix_audio", "0.5"), ("predict_root", str(tmp_path))):
        with pytest.raises(ArgumentError, match=f"{flag}: .*feature"):
            run(["fit", *on_features(ave_root, caches["mean"], *log, f"--data.{flag}", value)])


def test_a_head_that_needs_tokens_says_so(caches: dict) -> None:
    with pytest.raises(ArgumentError, match="--pool grid"):
        _ = PrecomputedFeatures(caches["mean"]).visual_spec
    assert PrecomputedFeatures(caches["grid"]).visual_spec.grid == (4, 4)
    with pytest.raises(ArgumentError, match="feature_cache"):
        PrecomputedFeatures(caches["mean"])({"frames": torch.zeros(1)})
    with pytest.raises(ArgumentError, match="pyramid"):
        _ = PrecomputedFeatures(caches["grid"]).pyramid_specs


def test_values_that_half_precision_cannot_hold(tmp_path: Path, caches: dict) -> None:
    known = FeatureCache(caches["mean"]).record
    cache = FeatureCache.create(tmp_path / "c", CacheRecord(**{**vars(known), "clips": {"a": "1", "b": "2"}}))
    features = {name: torch.zeros(2, *known.shape(name)) for name in ("visual", "audio")}
    features["audio"][1, 0, 0] = 1e6
    with pytest.raises(DatasetError, match="b: got audio features that float16 cannot hold.*bfloat16"):
        cache.write(["a", "b"], features, torch.ones(2, 10, dtype=torch.bool))
    assert cache.missing == ["a", "b"]


@pytest.mark.filterwarnings("ignore:parsing runs without")
@pytest.mark.usefixtures("narrow_vggish")
def test_a_network_of_video_makes_the_third_kind_of_features(llp_root: Path, tmp_path: Path) -> None:
    """R(2+1)D-18 on several frames a second fills a cache, which parsing reads in the place of published files."""
    from avprompt.data_modules import LLPDataModule
    from avprompt.datasets import llp
    from avprompt.media.prepare import prepare

    categories = ["disc", "square", "triangle", "plus", "ring", "star", "bar", "hourglass"]
    chosen = [videos[0] for videos in llp.read_splits(llp_root, categories).values()]
    (tmp_path / "videos").mkdir()
    for video in chosen:
        (tmp_path / "videos" / f"{video.id}.mp4").symlink_to(llp_root / "videos" / f"{video.id}.mp4")
    for path in llp_root.glob("*.csv"):
        shutil.copy(path, tmp_path)
    prepare(tmp_path / "videos", tmp_path / "store", size=32, sample_rate=16000, workers=1, frames_per_segment=2)
    given = {
        "data.root": tmp_path,
        "data.categories": f"[{', '.join(categories)}]",
        "data.image_size": 32,
        "data.frames_per_segment": 2,
        "data.missing": "skip",
        "data.num_workers": 0,
        "model.backbone.visual.img_size": 32,
        "model.backbone.visual.frames": 2,
        "model.backbone.visual.pretrained": "none",
        "model.backbone.audio.pretrained": "none",
    }
    flags = ["--config", str(ROOT / "experiments" / "avvp_han_r2plus1d.yaml")]
    flags += [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    with pytest.warns(UserWarning, match="left out"):
        run(["data", "features", *flags, "--out", str(tmp_path / "cache")])
        task, module = parts_of(flags)
        options = {"categories": categories, "image_size": 64, "sample_rate": 16000, "missing": "skip"}
        data = LLPDataModule(llp_root, features=tmp_path / "cache", **options)
        for one in (module, data):
            one.setup("fit")
    assert data.datasets["train"].ids == [chosen[0].id] and data.video_dim == 512
    sample, raw = data.datasets["train"][0], module.datasets["train"][0]
    assert raw["frames"].shape == (10, 2, 3, 32, 32) == module.example_batch(1)["frames"].shape[1:]
    module.plot(raw)
    online = task.eval().backbone({"frames": raw["frames"][None], "audio": raw["audio"][None]}, prompted=False)
    assert sample["frames"].shape == (10, 3, 64, 64) and sample["video_features"].shape == (10, 512)
    assert torch.allclose(sample["video_features"], online.visual[0], atol=2e-3, rtol=2e-3)
    with pytest.raises(DatasetError, match=r"segments of 1 s every 1 s; expected \(10, 512\), of 1 s every 2 s"):
        assert LLPDataModule(llp_root, features=tmp_path / "cache", stride=2.0, **options).video_files


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "features"])
    assert "an experiment" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "fixture", "data"),
    [
        (
            "avvp_han_networks",
            "llp_root",
            ["--data.categories", "[disc, square, triangle, plus, ring, star, bar, hourglass]"],
        ),
        ("avqa_st_avqa_networks", "avqa_root", ["--data.stride", "null"]),
    ],
)
@pytest.mark.filterwarnings("ignore:parsing runs without")
@pytest.mark.usefixtures("narrow_vggish")
def test_heads_of_parsing_and_questions_train_on_features_of_such_networks(
    name: str, fixture: str, data: list[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """ResNet and VGGish fill a cache; negatives of question answering come from the cache too."""
    flags = [
        "--config",
        str(ROOT / "experiments" / f"{name}.yaml"),
        "--data.root",
        str(request.getfixturevalue(fixture)),
        "--data.image_size",
        "64",
        "--data.num_workers",
        "0",
        "--data.batch_size",
        "2",
        *data,
    ]
    visual = {"model": "resnet18", "pretrained": "none", "img_size": "64"}
    networks = [text for key, value in visual.items() for text in (f"--model.backbone.visual.{key}", value)]
    run(
        [
            "data",
            "features",
            *flags,
            *networks,
            "--model.backbone.audio.pretrained",
            "none",
            "--pool",
            "grid",
            "--out",
            str(tmp_path / "cache"),
        ]
    )
    on_cache = [
        *flags,
        "--model.backbone",
        "avprompt.backbone.PrecomputedFeatures",
        "--model.backbone.cache",
        str(tmp_path / "cache"),
        "--data.feature_cache",
        str(tmp_path / "cache"),
    ]
    run(["fit", *on_cache, "--trainer", str(ROOT / "lightning_configs" / "trainer" / "debug.yaml")])
    if "avqa" in name:
        _, module = parts_of(on_cache)
        module.setup("fit")
        sample = module.datasets["train"][0]
        kept = {
            tuple(map(float, row))
            for clip_id in set(module.datasets["train"].ids) - {sample["id"]}
            for row in module.datasets["train"].features.read(clip_id)["visual_features"][:, 0, :4]
        }
        assert all(tuple(map(float, row)) in kept for row in sample["negative_features"][:, 0, :4])
