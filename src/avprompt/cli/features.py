"""`avprompt data features`: the frozen backbone's features of every clip, once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from avprompt.cli.parsing import PlainParser
from avprompt.errors import ArgumentError, ConfigError, DatasetError

if TYPE_CHECKING:
    import torch

    from avprompt.backbone import AVPromptBackbone, MapBackbone
    from avprompt.data_modules import AVDataModule
    from avprompt.encoders import AudioInput, VisualInput
    from avprompt.feature_cache import CacheRecord, Pool, Precision

#: digits of a probe that encoders reproduce on the same machine
DIGITS = 4


def check_plain(backbone: Any, data: AVDataModule) -> None:
    """Whether features computed once are what this experiment would compute in every step.

    Raises:
        ConfigError: a method that changes what happens inside the encoders, encoders that train or run in train mode,
            or data that are augmented.
    """
    from avprompt.backbone import AVPromptBackbone, MapBackbone

    if not isinstance(backbone, (AVPromptBackbone, MapBackbone)):
        raise ConfigError(
            "--model.backbone",
            type(backbone).__name__,
            "AVPromptBackbone or MapBackbone, which compute features",
            "Choose an experiment with encoders.",
        )
    if backbone.prompts is not None and backbone.prompts.gradient == "encoder":
        raise ConfigError(
            "--model.backbone.prompts",
            type(backbone.prompts).__name__,
            "a method that leaves what happens inside the encoders as it is",
            "Add `--model.backbone.prompts avprompt.methods.NoPrompts`.",
        )
    for side in ("visual", "audio"):
        encoder = getattr(backbone, side)
        for name, wrong in (
            ("frozen", not encoder.frozen),
            ("released_mode", encoder.released_mode),
            (", ".join(encoder.trained), bool(encoder.trained)),
        ):
            if wrong:
                raise ConfigError(
                    f"--model.backbone.{side}",
                    f"an encoder that trains or changes: {name}",
                    "an encoder that stays as it is",
                    "Switch that off: features are computed once.",
                )
    for name, off in (("augment", "none"), ("mix_audio", 0.0), ("feature_cache", None), ("published_features", None)):
        if getattr(data, name) != off:
            raise ConfigError(
                f"--data.{name}", getattr(data, name), str(off), "Features are computed once for each clip."
            )


def probe(backbone: AVPromptBackbone | MapBackbone) -> dict[str, list[float]]:
    """Statistics of both encoders' tokens for random inputs; other weights or arguments give other statistics."""
    import torch

    generator, answers = torch.Generator().manual_seed(0), {}
    visual, audio = cast("VisualInput", backbone.visual.input), cast("AudioInput", backbone.audio.input)
    frames = torch.randint(256, (1, 1, *visual.segment), generator=generator, dtype=torch.uint8)
    wave = 0.1 * torch.randn(1, 1, audio.samples, generator=generator)
    device = next(backbone.parameters()).device
    with torch.no_grad():
        for name, encoder, x in (("visual", backbone.visual, frames), ("audio", backbone.audio, wave)):
            tokens = encoder(x.to(device)).float().cpu()
            answers[name] = [
                float(f"{value:.{DIGITS}g}") for value in (tokens.mean(), tokens.std(), tokens.abs().max())
            ]
    return answers


def record_of(
    backbone: AVPromptBackbone | MapBackbone,
    data: AVDataModule,
    clips: dict[str, str],
    pool: Pool,
    precision: Precision,
) -> CacheRecord:
    """What a cache of these features says about itself."""
    import json

    from avprompt.feature_cache import MODALITIES, CacheRecord

    answers = probe(backbone)
    encoders = {
        name: {
            "class": type(encoder).__name__,
            "fingerprint": encoder.fingerprint(),
            "input": asdict(encoder.input),
            "probe": answers[name],
        }
        for name in MODALITIES
        for encoder in (getattr(backbone, name),)
    }
    # heads and windows belong to the block, not to the features
    specs = {name: asdict(getattr(backbone, name).last_spec) for name in MODALITIES}
    specs = {
        name: {key: value for key, value in spec.items() if key not in ("heads", "window")}
        for name, spec in specs.items()
    }
    record = CacheRecord(encoders, specs, data.sampling.settings, pool, precision, clips)
    return CacheRecord(**json.loads(json.dumps(asdict(record))))  # as it will be read: lists instead of tuples


def compute(
    backbone: AVPromptBackbone | MapBackbone,
    data: AVDataModule,
    out: Path,
    splits: list[str],
    pool: Pool,
    precision: Precision,
    overwrite: bool,
    device: torch.device,
) -> int:
    """Fill a cache, or go on with one that was begun; see `features`.

    Returns:
        Number of clips whose features were computed now.
    """
    import torch
    from torch.utils.data import DataLoader, Subset
    from tqdm import tqdm

    from avprompt.data_modules.base import collate
    from avprompt.feature_cache import MODALITIES, RECORD, FeatureCache
    from avprompt.media.samplers import ClipLoader, ErrorsAsValues

    clips = data.every_clip(splits)
    backbone = backbone.eval().to(device)
    identities = {clip_id: data.reader.identity(clip_id) for clip_id in clips.ids}
    record = record_of(backbone, data, identities, pool, precision)
    if (out / RECORD).is_file() and not overwrite:
        cache = FeatureCache(out)
        differences = cache.record.differences(record) + ["clips"] * (cache.record.clips != record.clips)
        if differences:
            raise DatasetError(
                out,
                f"a feature cache with other {', '.join(differences)}",
                "the same, to go on with it",
                "Give another --out, or --overwrite to compute everything again.",
            )
    else:
        cache = FeatureCache.create(out, record)
    left = set(cache.missing)
    places = [place for place, clip_id in enumerate(clips.ids) if clip_id in left]
    print(f"{out}: {len(places)} of {len(clips)} clips to compute, {record.bytes() / 1e6:,.1f} MB in all", flush=True)
    loader: DataLoader = ClipLoader(
        ErrorsAsValues(Subset(clips, places)),
        batch_size=data.eval_batch_size,
        num_workers=data.num_workers,
        collate_fn=collate,
    )
    with tqdm(total=len(places), unit="clip", disable=None) as bar, torch.inference_mode():
        for batch in loader if places else ():
            found = backbone({name: batch[name].to(device) for name in ("frames", "audio")}, prompted=False)
            wanted = {name: getattr(found, name if pool == "mean" else f"{name}_tokens") for name in MODALITIES}
            cache.write(batch["id"], wanted, batch["valid"])
            bar.update(len(batch["id"]))
    return len(places)


def features(args: list[str]) -> None:
    """`avprompt data features --config X [options] [overrides]`."""
    parser = PlainParser(
        prog="avprompt data features",
        allow_abbrev=False,
        description=(
            "Compute the frozen backbone's features of every clip once, as memory maps. After an interruption, the same "
            "command continues. Train a head on them with `--model.backbone avprompt.backbone.PrecomputedFeatures "
            "--model.backbone.cache OUT --data.feature_cache OUT`. Everything else is as for fit: --config X and "
            "overrides."
        ),
    )
    parser.add_argument("--split", choices=("all", "train", "val", "test"), default="all")
    parser.add_argument(
        "--pool",
        choices=("mean", "grid"),
        default="mean",
        help="one vector a segment (class token or mean), or all tokens",
    )
    parser.add_argument("--precision", choices=("float16", "bfloat16"), default="float16")
    parser.add_argument(
        "--out", type=Path, help="folder of the cache; by default features/<experiment>_<pool> in the data's root"
    )
    parser.add_argument("--overwrite", action="store_true", help="compute everything again")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    given, rest = parser.parse_known_args(args)
    if not rest:
        raise ArgumentError("--config", "nothing", "an experiment", "Try `avprompt data features --config X`.")
    import torch

    from avprompt.cli.lightning import parts_of
    from avprompt.compatibility import check_run

    task, data = parts_of(rest)
    check_plain(task.backbone, data)
    check_run(task, data)
    named = next((Path(rest[place + 1]).stem for place, arg in enumerate(rest[:-1]) if arg == "--config"), "features")
    out = given.out or data.root / "features" / f"{named}_{given.pool}"
    device = torch.device(
        "cuda"
        if given.device == "auto" and torch.cuda.is_available()
        else "cpu"
        if given.device == "auto"
        else given.device
    )
    splits = ["train", "val", "test"] if given.split == "all" else [given.split]
    done = compute(task.backbone, data, out, splits, given.pool, given.precision, given.overwrite, device)
    print(
        f"{out}: {done} clips computed. Train on them with\n  --model.backbone avprompt.backbone.PrecomputedFeatures "
        f"--model.backbone.cache {out} --data.feature_cache {out}"
    )
