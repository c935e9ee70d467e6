"""A full-size experiment at toy size: tiny encoders, on the synthetic dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avprompt.configs import read_yaml


def contrastive_lines(arguments: dict[str, object]) -> list[str]:
    """Tiny text towers, computed anew, and no pretraining."""
    lines = ["    pretrained: null"]
    for side, kind, more in (("visual", "CLIP", ""), ("audio", "CLAP", ", cache: null")):
        if f"{side}_texts" in arguments:
            lines.append(
                f"    {side}_texts: {{init_args: {{tower: {{class_path: avprompt.encoders.Tiny{kind}Text, "
                f"init_args: {{pretrained: none}}}}{more}}}}}"
            )
    return lines


def tiny(path: Path, overlay: Path, data: list[str]) -> list[str]:
    """Flags that run an experiment's own task, prompts, losses and optimizer on tiny encoders.

    Args:
        path: the experiment.
        overlay: file to write, which the flags name.
        data: arguments of the data module besides, lines of YAML.
    """
    content: dict[str, Any] = read_yaml(path)
    lines, arguments = ["model:", "  init_args:"], content["model"]["init_args"]
    if content["data"]["class_path"].endswith("AVSBenchDataModule"):
        lines.append("    decoder_width: 32")
    contrastive = content["model"]["class_path"].endswith("Contrastive")
    if contrastive:
        lines += contrastive_lines(arguments)
        data = [*data, "shots: 2"] if "shots" in content["data"]["init_args"] else data
    published = arguments["backbone"]["class_path"].endswith("PublishedFeatures")
    mapped = arguments["backbone"]["class_path"].endswith("MapBackbone")
    lines += [] if published else ["    backbone:", "      init_args:"]
    encoder = {} if published else arguments["backbone"]["init_args"]["visual"]
    axes = encoder.get("init_args", {}).get("audio_axes")  # what the tiny class has too must be repeated
    more = f"audio_axes: {axes}, " if axes else ""
    if published:
        lines = [] if lines == ["model:", "  init_args:"] else lines
    elif mapped:
        small = {"PVT": "model: pvt_v2_b0", "ResNet": "model: resnet18"}.get(encoder["class_path"].rpartition(".")[2])
        lines += [
            "        visual:",
            f"          class_path: {encoder['class_path']}",
            f"          init_args: {{pretrained: none, img_size: 64{', ' + small if small else ''}}}",
            "        audio: {class_path: avprompt.encoders.VGGish, init_args: {pretrained: none}}",
        ]
    elif contrastive:
        lines += [
            f"        {side}: {{class_path: avprompt.encoders.{kind}, init_args: {{pretrained: none, {more}}}}}"
            for side, kind, more in (
                ("visual", "TinyCLIP", "projection: true"),
                ("audio", "TinyCLAP", "released_mode: false"),
            )
        ]
    elif arguments["backbone"]["init_args"]["audio"] in ("shared", "separate"):
        kind, own = (
            ("TinySwinV2", "") if "Swin" in encoder["class_path"] else ("TinyCLIP", "segments: 10, train_norm: true, ")
        )
        lines += [
            "        visual:",
            f"          class_path: avprompt.encoders.{kind}",
            f"          init_args: {{pretrained: synthetic, {own}{more}",
            "            fbank: {mel_bins: 64, frames: 64, shift_ms: 15, mean: -4.0, std: 3.0}}",
        ]
    else:
        lines += [
            f"        {side}: {{class_path: avprompt.encoders.{kind}, init_args: {{pretrained: synthetic, {own}"
            "frozen: true, released_mode: false}}"
            for side, kind, own in (("visual", "TinySwinV2", more), ("audio", "TinyHTSAT", ""))
        ]
    lines += [
        "data:",
        "  init_args:",
        *(
            f"    {line}"
            for line in (
                "image_size: 64",
                "sample_rate: 16000",
                "antialias: true",
                "num_workers: 0",
                f"batch_size: {1 if mapped else 4}",
                *data,
            )
        ),
    ]
    overlay.write_text("\n".join(lines) + "\n", encoding="utf-8")
    flags = ["--config", str(overlay)]
    if published or mapped:
        return flags
    prompts = "--model.init_args.backbone.init_args.prompts.init_args"
    name = arguments["backbone"]["init_args"]["prompts"]["class_path"].rpartition(".")[2]
    if name.startswith(("DGSCT", "LAVISH")):
        flags += [f"{prompts}.reduction", "4" if "TinyCLIP" in "".join(lines) else "5"]  # divides the tiny widths
    elif name == "AVMoE":
        flags += [f"{prompts}.reduction", "5", f"{prompts}.stages", "[0]"]  # the tiny encoders have two stages
    elif name == "STGCMA":
        flags += [f"{prompts}.ratio", "0.1"]  # one number, for encoders of two stages
    elif name == "MaPLe":
        flags += [f"{prompts}.depth", "2", f"{prompts}.text_width", "64"]
    return flags
