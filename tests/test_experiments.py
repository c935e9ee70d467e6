"""Every shipped YAML goes through the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from laptop import tiny

from avprompt.cli import parts_of, run
from avprompt.configs import read_yaml
from avprompt.errors import ConfigError
from avprompt.sweeps.plan import read_sweep
from avprompt.tasks import AVPromptTask

EXPERIMENTS = sorted(p for p in (ROOT / "experiments").rglob("*.yaml") if p.parent.name != "sweeps")
SWEEPS = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))
CATEGORIES = "categories: [disc, square, triangle, plus, ring, star, bar, hourglass]"
#: data module -> fixture of a small dataset, and what else the experiment needs to run on it
SYNTHETIC_DATASETS = {
    "AVEDataModule": ("ave_root", [CATEGORIES]),
    "LLPDataModule": ("llp_root", [CATEGORIES, "features: null"]),
    "LLPClassificationDataModule": ("llp_root", [CATEGORIES]),
    "VGGSoundDataModule": ("vggsound_root", []),
    "AVSBenchDataModule": ("avs_roots", []),
    "MUSICAVQADataModule": ("avqa_root", ["stride: null"]),
    "KineticsSoundsDataModule": ("ks_root", []),
}
#: data module -> fixture of published features of its dataset
FEATURES = {"AVEDataModule": "ave_features", "LLPDataModule": "llp_features", "MUSICAVQADataModule": "avqa_features"}
#: trained parameters of the classics: those of the published networks that have an effect
CLASSICS = {
    "ave_avel_vgg19": 1_335_246,
    "ave_avel_noatt_vgg19": 956_317,
    "ave_dmrn_vgg19": 1_571_150,
    "ave_avsdn_vgg19": 2_162_510,
    "ave_cmran_vgg19": 9_509_150,
    "ave_cmran_vgg19_weak": 9_509_407,
    "ave_psp_vgg19": 1_548_657,
    "ave_psp_vgg19_weak": 1_253_902,
    "ave_cmbs_vgg19": 9_200_473,
    "ave_cmbs_vgg19_weak": 9_395_518,
    "ave_rfjc_vgg19": 22_776_510,
    "avvp_mgn_feats": 4_366_065,
    "avvp_han_feats": 4_569_675,
    "avvp_valor_feats": 5_094_475,
    "avvp_valor_plus_feats": 5_051_211,
    "avvp_valor_plus_plus_feats": 4_887_371,
    "avvp_jomold_estimator_feats": 3_519_051,
    "avvp_jomold_feats": 4_569_675,
    "avvp_mm_pyramid_feats": 40_827_469,
    "avqa_st_avqa_res18": 7_916_716,
    "avqa_st_avqa_networks": 7_916_716,
    "avvp_han_networks": 4_044_875,
    "avvp_han_r2plus1d": 3_258_443,
    "ave_late_fusion_networks": 1_335_246,
    **dict.fromkeys(("avs_s4_pvt", "avs_ms3_pvt"), 100_140_417),
    **dict.fromkeys(("avs_s4_resnet50", "avs_ms3_resnet50"), 68_157_697),
}
#: experiments with nothing to train
ZERO_SHOT = ("fewshot_ave_clip", "fewshot_ave_clap", "fewshot_ave_clip_clap")
#: experiments that differ in method, encoders and their learning rate alone from one that runs below; methods run in the
#: conformance suite
ALIKE = {
    **dict.fromkeys(
        ("ave_linear_probe", "ave_bitfit", "ave_adapter", "ave_vpt", "ave_finetune_last4", "ave_copl_like", "ave_mbt"),
        "ave_finetune",
    ),
    "ave_moma_like": "ave_stgcma_b16",
    "avar_moma_like": "avar_stgcma_b16",
    "ave_linear_probe_quickstart": "ave_avstfp_quickstart",
    "ave_lora": "ave_cola",
    **dict.fromkeys(("ave_lavish_b16", "ave_lavish_l16"), "ave_lavish_swinv2_l"),
    **dict.fromkeys(
        (
            f"fewshot_ave_{method}"
            for method in (
                "none",
                "bitfit",
                "adapter",
                "vpt",
                "lora",
                "cola",
                "lavish",
                "lavish_star",
                "stgcma",
                "avmoe",
                "mettle_like",
                "molt_like",
                "copl_like",
            )
        ),
        "fewshot_ave_dgsct",
    ),
    "avs_s4_resnet50": "avs_s4_pvt",
    "avs_ms3_resnet50": "avs_ms3_pvt",
    "ave_late_fusion_networks": "ave_late_fusion",
    "avvp_han_r2plus1d": "avvp_han_networks",
    **{f"{task}_lavish_star": f"{task}_dgsct" for task in ("ave", "avvp", "avs_s4", "avs_ms3", "avqa")},
}
RUN = [path for path in EXPERIMENTS if path.stem not in ALIKE]
#: parameters of the method and all that are trained, by the authors' classes or by hand
COUNTS = {
    "ave_linear_probe": (0, 801_821),
    "ave_bitfit": (0, 102_912 + 801_821),
    "ave_finetune": (0, 86_835_485),
    "ave_lora": (5_308_416, 6_110_237),
    "ave_cola": (17_826_192, 18_628_013),
    "ave_lavish_swinv2_l": (8_447_808, 10_036_061),
    "ave_lavish_b16": (3_843_168, 4_644_989),
    "ave_lavish_l16": (13_394_112, 14_458_077),
    "ave_copl_like": (144_384, 1_732_637),
    "ave_moma_like": (16_018_560, 16_837_277),
    "avar_moma_like": (16_018_560, 16_838_816),
    "ave_molt_like": (13_193_008, 21_074_695),
    "ave_mbt": (3_072, 171_910_685),
    "avar_mbt": (3_072, 171_912_224),
    "avs_s4_lavish": (17_003_664, 36_992_465),
    "avs_ms3_lavish": (17_003_664, 36_992_465),
    "avvp_lavish": (8_447_808, 12_928_561),
    "fewshot_ave_clip_clap_trained": (0, 1),
    "avqa_lavish": (8_835_264, 8_835_264 + 81_024 + 8_900_396),  # norms of Swin, ST-AVQA
    "ave_lavish_star": (102_144_528, 114_766_311 - 4_740_096),  # what the authors build and nothing uses
}


def test_there_are_experiments() -> None:
    assert len(EXPERIMENTS) >= 2 and len(SWEEPS) >= 1


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_says_how_to_run_it(path: Path) -> None:
    header = re.match(r"(#.*\n)+", path.read_text())[0]
    assert re.search(r"^#   avprompt (fit|test|quickstart)", header, re.MULTILINE)


def estimated(request: pytest.FixtureRequest, folder: Path) -> list[str]:
    """A flag that names a checkpoint of JoMoLD's first stage, as a run of it would have left."""
    (folder / "first").mkdir()
    flags = on_a_laptop(ROOT / "experiments" / "avvp_jomold_estimator_feats.yaml", request, folder / "first")
    task, _ = parts_of(flags)
    content = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(content)
    torch.save(content, folder / "estimator.ckpt")
    return ["--model.denoising.estimator", str(folder / "estimator.ckpt")]


def on_a_laptop(path: Path, request: pytest.FixtureRequest, folder: Path) -> list[str]:
    """Flags that run one batch of an experiment on tiny encoders and a synthetic dataset."""
    content = read_yaml(path)
    data = content["data"]["class_path"].rpartition(".")[2]
    fixture, extra = SYNTHETIC_DATASETS[data]
    root = request.getfixturevalue(fixture)
    if "published_features" in content["data"]["init_args"]:
        folder_of_features = request.getfixturevalue(FEATURES[data])
        extra = [line for line in extra if line != "features: null"] + [f"published_features: {folder_of_features}"]
        if content["data"]["init_args"].get("published_by") == "VALOR":
            extra[-1] = f"published_features: {request.getfixturevalue('valor_features')}"
    if "taught" in content["data"]["init_args"]:
        extra = [*extra, f"taught: {request.getfixturevalue('llp_taught')}"]
    if data == "AVSBenchDataModule":
        root = root[content["data"]["init_args"]["setting"]]
    first = estimated(request, folder) if "denoising" in content["model"]["init_args"] else []
    return [
        "--config",
        str(path),
        *tiny(path, folder / "tiny.yaml", [f"root: {root}", *extra]),
        *first,
        "--trainer",
        str(ROOT / "lightning_configs" / "trainer" / "debug.yaml"),
    ]


def test_what_is_not_run_is_like_what_is() -> None:
    def rest(name: str) -> dict:
        content = read_yaml(ROOT / "experiments" / f"{name}.yaml")
        content["model"]["init_args"] = {
            key: value for key, value in content["model"]["init_args"].items() if key not in ("backbone", "prompt_lr")
        }
        for key in ("image_size", "sample_rate", "frames_per_segment", "root"):  # the encoders', and their own store
            content["data"]["init_args"].pop(key, None)
        return content

    for name, other in ALIKE.items():
        assert rest(name) == rest(other), name


@pytest.mark.parametrize("path", RUN, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore:parsing runs without")
@pytest.mark.usefixtures("narrow_vggish")
def test_experiment_trains_validates_and_tests(
    path: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gives every trained parameter a gradient at the first step: DDP waits for each of them."""

    def check(task: AVPromptTask, optimizer: object) -> None:
        idle = [name for name, own in task.named_parameters() if own.requires_grad and own.grad is None]
        assert not idle, f"trained, but without influence on the loss: {idle}"

    monkeypatch.setattr(AVPromptTask, "on_before_optimizer_step", check, raising=False)
    flags = on_a_laptop(path, request, tmp_path)
    if path.stem in ZERO_SHOT:
        with pytest.raises(ConfigError, match="nothing to train.*avprompt test"):
            run(["fit", *flags])
    else:
        run(["fit", *flags])
    if path.stem in ZERO_SHOT or "quickstart" in path.stem:  # of each task; a test evaluates as a validation does
        run(["test", *flags, *([] if path.stem in ZERO_SHOT else ["--ckpt_path", "none"])])


@pytest.mark.parametrize(
    "path", [path for path in EXPERIMENTS if path in RUN or path.stem in {*COUNTS, *CLASSICS}], ids=lambda p: p.stem
)
def test_experiment_has_parameters(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["params", "--config", str(path), "--json"])
    table = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (table["trainable"] > 0) is (path.stem not in ZERO_SHOT)
    assert table["total"] == table["trainable"] + table["frozen"]
    counts = table["modules"].get("prompts", {}).get("trainable"), table["trainable"]
    assert counts == COUNTS.get(path.stem, counts) and counts[1] == CLASSICS.get(path.stem, counts[1])
    if path.stem == "ave_lavish_star":  # 374.9 M parameters are published, 30.6 % of them trained
        unused_heads = 260_097_692 - 223_819_340  # of both encoders
        assert table["total"] + unused_heads + 4_740_096 + 48 == 374_864_051  # 48 scalars that no forward pass reads


def test_equations_laid_over_few_shot_learning(capsys: pytest.CaptureFixture[str]) -> None:
    """Four adapters, four context vectors and two temperatures instead of the released head's."""
    run(
        [
            "params",
            "--config",
            str(ROOT / "experiments" / "fewshot_ave_dgsct.yaml"),
            "--config",
            str(ROOT / "lightning_configs" / "fewshot" / "equations.yaml"),
            "--json",
        ]
    )
    table = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert table["trainable"] == 92_571_792 + 4 * 131_072 + 4 * 512 + 2


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_every_variant_of_a_sweep_is_a_network(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, _ = read_sweep(path, [0], tmp_path, quickstart="tasks" in read_yaml(path))
    runs, sizes = list({one.variant: one for one in runs}.values()), {}
    if any(one.varied for one in runs):  # values of an argument: the first and the last
        runs = list({one.variant: one for one in (*runs[:3], *runs[-2:])}.values())
    for one in runs:
        run(["params", "--config", str(one.config), *one.overrides, "--json"])
        sizes[one.variant] = json.loads(capsys.readouterr().out.splitlines()[-1])["trainable"]
    assert len(sizes) == len(runs)
    for everything in sizes.keys() & {"all", "DG-SCT"}:
        least = sizes["no prompts" if "no prompts" in sizes else "CLIP"]
        assert least < sizes.get("a2v only", sizes[everything]) <= sizes[everything]
