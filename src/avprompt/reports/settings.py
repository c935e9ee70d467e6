"""Under which conditions a figure was measured: data, encoders, and how checkpoint and metric were chosen."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avprompt.configs import get_nested
from avprompt.reports.published import Figure
from avprompt.reports.runs import Run, untrained

#: names of encoders in published tables
ENCODERS = {
    "SwinV2 swinv2_large_window12_192 (ms_in22k)": "Swin-V2-L",
    "HTSAT": "HTS-AT",
    "TimmViT vit_base_patch16_224 (augreg_in21k)": "ViT-B/16",
    "ASTransformer": "AST",
    "TimmViT vit_large_patch16_224 (augreg_in21k)": "ViT-L/16",
    "SwinV1 swin_large_patch4_window7_224 (ms_in22k)": "Swin-L",
    "SwinV1 swin_base_patch4_window7_224 (ms_in22k)": "Swin-B",
    "CLIP ViT-B-32 (openai)": "CLIP ViT-B/32",
    "CLIP ViT-B-16 (openai)": "CLIP ViT-B/16",
    "PVT pvt_v2_b5 (in1k)": "PVT-v2",
    "ResNet resnet50 (IMAGENET1K_V1)": "ResNet-50",
    "ResNet resnet18 (IMAGENET1K_V1)": "ResNet-18",
    "ResNet resnet152 (IMAGENET1K_V1)": "ResNet-152",
    "VGG (IMAGENET1K_V1)": "VGG-19",
    "R2Plus1D (KINETICS400_V1)": "R(2+1)D-18",
    "VGGish (vggish-10086976)": "VGGish",
    "CLIP ViT-L-14 (openai)": "CLIP ViT-L/14",
    "CLAPAudio tiny (630k-audioset-fusion-best)": "CLAP HTS-AT",
}
#: names of methods in published tables, where they are not those of their classes
METHODS = {
    "NoPrompts": "no prompts",
    "DGSCT": "DG-SCT",
    "DGSCTFewShot": "DG-SCT",
    "DGSCTPaper": "DG-SCT (paper's)",
    "AVSTFP": "AV-STFP",
    "STGCMA": "STG-CMA",
    "FineTuning": "fine-tuning",
    "Adapters": "adapters",
    "MettleLike": "Mettle-like",
    "MoLTLike": "MoLT-like",
    "CoPLLike": "CoPL-like",
    "MoMALike": "MoMA-like",
    "CMBSAlone": "CMBS",
    "MMPyramid": "MM-Pyramid",
    "MMPyramidParsing": "MM-Pyramid",
    "FixedEmbeddings": "fixed texts",
    "CLIPAdapter": "CLIP-Adapter",
}
TRAIN_MODE = ", in train mode as released"
#: ids of clips of synthetic datasets that were written before manifests said so
GENERATED = re.compile(r"(\w+_)?world\d{9}|llp\d{8}")


@dataclass(frozen=True)
class Setting:
    """The conditions of a figure; only figures with equal ones can be compared.

    Args:
        data: dataset and number of clips.
        encoders: both, with their weights.
        protocol: how the checkpoint was selected and the metric computed.
        part: the setting that made it an evaluation of a part of the split, empty for a whole one.

    Example:
        >>> str(Setting("AVE, 402 test clips", "Swin-V2-L + HTS-AT", "selected on val"))
        'AVE, 402 test clips; Swin-V2-L + HTS-AT; selected on val'
    """

    data: str
    encoders: str
    protocol: str
    part: str = ""

    def __str__(self) -> str:
        partial = f"a part of the split only ({self.part}): no result" if self.part else ""
        return "; ".join(part for part in (self.data, self.encoders, self.protocol, partial) if part)


def encoder_name(encoder: Any) -> str:
    """An encoder's configuration -> its name in published tables, or else its class, model and weights."""
    if isinstance(encoder, str):
        return encoder
    arguments = encoder.get("init_args") or {}
    weights, model = str(arguments.get("pretrained", "none")), arguments.get("model")
    weights = "random weights" if weights == "none" else Path(weights).stem if "/" in weights else weights
    kind = " ".join(filter(None, (encoder["class_path"].rpartition(".")[2], model)))
    name = ENCODERS.get(f"{kind} ({weights})") or (ENCODERS.get(kind) if weights != "random weights" else None)
    name = name or f"{kind} ({weights})"
    return (
        name
        + (", trained" if arguments.get("frozen") is False else "")
        + (TRAIN_MODE if arguments.get("released_mode") else "")
    )


def encoders_of(config: dict[str, Any]) -> str:
    """Both encoders of a run's configuration, with their weights."""
    backbone = get_nested(config, "model.init_args.backbone.init_args") or {}
    if "cache" in backbone:
        return f"features in {backbone['cache']}"
    visual, audio = (encoder_name(backbone.get(side, "?")) for side in ("visual", "audio"))
    return f"{visual} for both" if audio == "shared" else f"{visual} + {visual if audio == 'separate' else audio}"


def method_of(config: dict[str, Any]) -> str:
    """The method of a run's configuration as published tables name it: the prompts, or else the head or the texts.

    Example:
        >>> method_of({"model": {"init_args": {"backbone": {"init_args": {"prompts": {
        ...     "class_path": "avprompt.methods.DGSCT"}}}, "modality": "both"}}})
        'DG-SCT'
    """
    task = get_nested(config, "model.init_args") or {}

    def named(path: str) -> str:
        found = get_nested(task, path)
        name = str((found.get("class_path") or "") if isinstance(found, dict) else found or "").rpartition(".")[2]
        return METHODS.get(name, name)

    plain, prompts = METHODS["NoPrompts"], named("backbone.init_args.prompts")
    other = (
        [METHODS["CLIPAdapter"]]
        if task.get("adapters")
        else [name for path in ("head", "visual_texts", "audio_texts") if (name := named(path))]
    )
    method = prompts if prompts not in ("", plain) else other[0] if other else plain
    modality = task.get("modality", "both")
    return method + {"both": "", "late": ", late fusion"}.get(modality, f", {modality} alone")


def is_generated(run: Run, ids: list[str]) -> bool:
    """Whether a run's data are synthetic: scenes.jsonl lies in their root, or the ids of the clips are synthetic."""
    root = Path(run.manifest.get("root") or get_nested(run.result["config"], "data.init_args.root") or ".")
    # a relative root is below the folder that the run was started in, one of the parents of its own
    return (bool(ids) and all(GENERATED.fullmatch(clip) for clip in ids)) or any(
        (start / root / "scenes.jsonl").is_file() for start in (Path.cwd(), *run.folder.resolve().parents)
    )


def setting_of(run: Run) -> Setting:
    """The conditions of a run's metrics."""
    config, measured = run.config, run.result["config"]
    arguments = measured["data"].get("init_args") or {}
    split = "test" if run.tested else arguments.get("validation_split", "val")
    ids = (run.manifest.get("ids") or {}).get(split) or []
    generated = run.manifest.get("generated", is_generated(run, ids))
    counts = run.result["clips"].get(split) or {"used": len(ids), "missing": 0}
    number = f"{counts['used']}" + (f" of {counts['used'] + counts['missing']}" if counts["missing"] else "")
    unit = run.manifest.get("unit", "clips")
    data = f"synthetic dataset in the layout of {run.dataset}" if generated else run.dataset
    encoders = encoders_of(config)
    released = get_nested(measured, "model.init_args.protocol") == "released"
    selection = get_nested(config, "data.init_args.validation_split") or "val"
    protocol = "not trained on these data" if untrained(run) else f"selected on {selection}"
    protocol += ", metric as released" if released else ""
    task = get_nested(measured, "model.init_args") or {}
    if task.get("level") == "segment" and not task.get("background"):
        protocol += ", background counts as wrong"
    if "label_policy" in arguments:
        protocol += f", answer among several categories: {arguments['label_policy']}"
    if not run.tested:
        protocol += f", measured on {selection}"
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:6]
    return Setting(f"{data}, {number} {split} {unit}|{digest}", encoders, protocol, run.part)


def sizes_of(figures: list[Figure]) -> dict[str, int]:
    """Dataset -> number of clips of its test split."""
    return {figure.dataset: int(figure.value) for figure in figures if figure.metric == "test_clips"}


def published_setting(figure: Figure, sizes: dict[str, int]) -> Setting:
    """The conditions of a published figure."""
    unit = "questions" if figure.task == "avqa" else "clips"
    known = figure.split == "test" and figure.dataset in sizes
    size = f", {sizes[figure.dataset]} test {unit}" if known else f", {figure.split} split"
    encoders = (
        figure.visual
        if not figure.audio
        else figure.audio.replace(" (shared)", " for both")
        if (figure.shared)
        else f"{figure.visual} + {figure.audio}"
    )
    protocol = f"selected on {figure.selection}" if figure.selection else "selection not stated"
    if figure.selection and figure.task.startswith(("ave", "avs")) and figure.method in ("DG-SCT", "LAVisH*"):
        protocol += ", metric as released"
    return Setting(f"{figure.dataset}{size}", encoders, f"published, {protocol}")
