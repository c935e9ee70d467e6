"""Convert the authors' released DG-SCT checkpoints into ours: same function, our names, no dead weights."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning import LightningModule
from safetensors.torch import save
from torch import Tensor

from avprompt import checkpoints
from avprompt.backbone import AVPromptBackbone
from avprompt.convert import heads
from avprompt.encoders import CLIP, HTSAT, CLAPAudio, CLAPText, CLIPText, SwinV2
from avprompt.encoders.base import Undrawn
from avprompt.encoders.text import CLAP_TEMPLATE
from avprompt.errors import ArgumentError, CheckpointError
from avprompt.files import write_whole
from avprompt.heads.contrastive import Fusion
from avprompt.methods import DGSCT, CoOp, DGSCTFewShot, FixedEmbeddings, PromptMethod
from avprompt.tasks import AVE, AVQA, AVS, AVVP, Contrastive

#: weights of the frozen encoders under the libraries' names, by `visual` and `audio`
Towers = dict[str, dict[str, Tensor]]
#: prefix of the encoders' weights in a released file -> prefix in the library
SWIN_HTSAT = {"visual": {"swin.": ""}, "audio": {"htsat.": ""}}
CLIP_CLAP = {
    "visual": {
        "ViT.": "visual.",
        "text_encoder.": "",
        "token_embedding.": "token_embedding.",
        "logit_scale": "logit_scale",
    },
    "audio": {"htsat.": "audio_branch.", "audio_projection.": "audio_projection.", "clap_text_encoder.": ""},
}

#: names inside a released adapter -> ours
ADAPTER = {
    "gate": "gate",
    "gate_av": "token_gate",
    "my_tokens": "tokens",
    "conv_adapter": "map",
    "fc": "map.project",
    "fc_affine_audio_1": "channel_guide",
    "fc_affine_video_1": "channel_own",
    "fc_affine_bottleneck": "squeeze",
    "fc_affine_v_c_att": "excite",
    "fc_affine_audio_2": "spatial_guide",
    "fc_affine_video_2": "spatial_own",
    "fc_affine_v_s_att": "score",
    "temporal_gated.0": "temporal_score",
    "down_sampler": "down",
    "up_sampler": "up",
    "bn1": "bn_down",
    "bn2": "bn_up",
    "ln_before": "norm_before",
    "ln_post": "norm_after",
}
#: parameters of a released adapter that never influence its output
DEAD_IN_ADAPTER = ("gate_tk", "fc_caption")
LISTS = {"audio_adapter_blocks": "audio", "vis_adapter_blocks": "visual"}


@dataclass(frozen=True)
class Released:
    """How a released network's state dict maps to ours.

    Args:
        build: builds the network, with random prompts and head, from the weights of the frozen encoders and from
            options, which override settings of `method` (such as `gamma`).
        head: names in the head, and of dead weights elsewhere.
        dead_in_adapter: names inside an adapter that never influence an output.
        towers: prefixes of the frozen encoders' weights.
        dead_in_towers: patterns of the encoders' names that no task reads.
        experiment: experiment that a converted checkpoint fits; `None` is that of the task.
        flags: flags that the experiment needs for it.
        places: arguments of the model whose `pretrained` takes the files of the frozen encoders.
        method: the prompt method.
    """

    build: Callable[..., LightningModule]
    head: heads.HeadKeys
    dead_in_adapter: tuple[str, ...] = ()
    towers: dict[str, dict[str, str]] = field(default_factory=lambda: SWIN_HTSAT)
    dead_in_towers: tuple[str, ...] = (r"swin\.head\.", r"htsat\.(norm|tscam_conv|head)\.")
    experiment: str | None = None
    flags: tuple[str, ...] = ()
    places: tuple[str, ...] = ("backbone.{side}",)
    method: type[PromptMethod] = DGSCT


def network(
    task: Callable[..., LightningModule],
    settings: dict[str, Any] = {},  # noqa: B006
    **arguments: Any,
) -> Callable[..., LightningModule]:
    """Builder of a released network: the task over Swin-V2-L and HTS-AT with these settings of DG-SCT."""

    def build(towers: Towers, **options: Any) -> LightningModule:
        visual, audio = SwinV2(), HTSAT()
        visual.load_timm_weights(towers["visual"], "released checkpoint, swin.*")
        audio.load_htsat_weights(towers["audio"], "released checkpoint, htsat.*")
        return task(AVPromptBackbone(visual, audio, DGSCT(**{**settings, **options})), **arguments)

    return build


def contrastive(fusion: Fusion, **settings: Any) -> Callable[..., LightningModule]:
    """Builder of a released few-shot network, CLIP and CLAP with their text towers, see `from_released`."""

    def build(
        towers: Towers,
        class_names: Sequence[str] = (),
        background: bool = False,
        level: Literal["segment", "video"] = "segment",
        fusion: Fusion = fusion,
        audio_scale: float | None = None,
        tokenizer: Path | None = None,
        cache: Path | None = None,
        **options: Any,
    ) -> LightningModule:
        visual, audio = CLIP("ViT-B-32", projection=True), CLAPAudio(front_end="released")
        if audio_scale is None:
            audio_scale = float(audio.logit_scale.exp())
            warnings.warn(
                f"The released file lacks CLAP's scale of cosines: {audio_scale:.2f}, which CLAP's training "
                "starts from, stands in. Give audio_scale, the exponential of the CLAP file's logit_scale_a.",
                stacklevel=4,
            )
        towers["audio"]["logit_scale_a"] = torch.tensor(math.log(audio_scale))
        source, names = "released checkpoint", CLIPText("ViT-B-32")
        visual.load_clip_weights(towers["visual"], f"{source}, ViT.*")
        names.load_library_weights(towers["visual"], f"{source}, text_encoder.*, token_embedding.*, logit_scale")
        audio.load_htsat_weights(towers["audio"], f"{source}, htsat.*, audio_projection.*")

        def heard_names() -> CLAPText:
            tower = CLAPText(tokenizer=tokenizer)
            tower.load_library_weights(towers["audio"], f"{source}, clap_text_encoder.*")
            return tower

        return Contrastive(
            AVPromptBackbone(visual, audio, DGSCTFewShot(**{**settings, **options})),
            CoOp(names, context=4),
            FixedEmbeddings(heard_names, CLAP_TEMPLATE, spaces=False, cache=cache),
            class_names,
            background,
            level,
            adapters=["visual", "visual_texts"],
            fusion=fusion,
            objective="released",
            exp_audio_scale=False,
        )

    return build


FEWSHOT: dict[str, Any] = {
    "head": heads.CONTRASTIVE,
    "towers": CLIP_CLAP,
    "dead_in_towers": (r"htsat\.(tscam_conv|head)\.", r"clap_text_encoder\.text_transform\."),
    "places": ("backbone.{side}", "{side}_texts.tower"),
    # the encoder's file holds the statistics as training moved them; they must not move again
    "flags": ("--model.backbone.audio.released_mode", "false"),
    "method": DGSCTFewShot,
}
#: settings that the released networks share, except those of AVE and AVVP
UNGATED = {"audio_gate": False, "batch_norm": False, "token_init": "zeros"}
SEGMENTATION = {**UNGATED, "gate": "inside_norm", "norm_before": False, "gamma": 0.05}
TASKS = {
    "ave": Released(network(AVE, num_classes=28), heads.CMBS),
    "avvp": Released(network(AVVP, {"gamma": 0.05}), heads.MGN, ("temporal_gated",)),
    "avs_s4": Released(
        network(AVS, {**SEGMENTATION, "prompt_map": "bicubic"}),
        heads.AVS_DECODER,
        ("conv_adapter", "ln_before", "temporal_gated"),
    ),
    "avs_ms3": Released(
        network(AVS, {**SEGMENTATION, "alpha": 0.2, "beta": 0.1, "gamma": 0.1, "reduction": 2}, matching=0.5),
        heads.AVS_DECODER,
        ("ln_before", "temporal_gated"),
    ),
    "avqa": Released(network(AVQA, {**UNGATED, "num_tokens": 2, "groups": 4, "temporal": False}), heads.ST_AVQA),
    "fewshot": Released(
        contrastive("sum", num_tokens=2, alpha=0.2, beta=0.05, gamma=0.01),
        **FEWSHOT,
        experiment="fewshot_ave_dgsct_released",
    ),
    "pretrain": Released(
        contrastive("weighted", num_tokens=2, alpha=0.3, beta=0.01, gamma=0.05),
        **FEWSHOT,
        experiment="zeroshot_ave_released",
    ),
}


def adapter_key(key: str, dead: tuple[str, ...] = ()) -> str | None:
    """Our name of a released adapter key; `None` if the key is dead, the key itself if it is unknown."""
    match = re.fullmatch(r"(\w+_adapter_blocks)_(p[12])\.(\d+)\.(\w+(?:\.0)?)(\.\w+)?", key)
    if match is None or match[1] not in LISTS:
        return key
    name, rest = match[4], match[5] or ""
    if name.removesuffix(".0") in (*DEAD_IN_ADAPTER, *dead):
        return None
    if name not in ADAPTER:
        return key
    return f"backbone.prompts.{LISTS[match[1]]}_{match[2]}.{match[3]}.{ADAPTER[name]}{rest}"


def from_released(task: str, state_dict: dict[str, Tensor], **options: Any) -> LightningModule:
    """Build our network of a task with the weights of a checkpoint released by the DG-SCT authors.

    Every key is used, known to be dead (it has no influence on the authors' outputs), or reported by an error. A
    `module.` prefix is taken off. Constants (STFT kernels, mel filters, masks, position indices) may be absent.

    Checkpoints of the few-shot scripts (`fewshot`) and of pretraining (`pretrain`) say neither their classes nor CLAP's
    scale of cosines. They take the options `class_names` (without them the module holds all weights, but cannot
    classify), `background`, `level` and `fusion` (see `Contrastive`), `tokenizer` or `cache` (for CLAP's texts, see
    `CLAPText` and `FixedEmbeddings`), and `audio_scale`, the exponential of the CLAP file's `module.logit_scale_a`.
    Class names may differ from training's (zero-shot); the learned context is kept, where the authors' zero-shot script
    draws a random one.

    Args:
        task: `ave`, `avvp`, `avs_s4`, `avs_ms3`, `avqa`, `fewshot` or `pretrain`.
        state_dict: the released file's content, name -> tensor.
        options: settings of the prompt method that the checkpoint does not hold, such as `gamma` (`fewshot`: 0.01, as
            for AVE's segments; the classification scripts have 0.05), and the above.

    Returns:
        The task's LightningModule in eval mode.

    Raises:
        ArgumentError: unknown task or option.
        CheckpointError: unknown, missing or misshapen keys.
        WeightsError: the same inside an encoder; class names without a tokenizer or cached embeddings of their texts.
    """
    return _build(task, state_dict, **options)[0]


def _build(task: str, state_dict: dict[str, Tensor], **options: Any) -> tuple[LightningModule, Towers]:
    if task not in TASKS:
        raise ArgumentError(
            "task", task, f"one of {sorted(TASKS)}", "Name the task that the checkpoint was trained on."
        )
    released = TASKS[task]
    known = {*signature(released.build).parameters, *signature(released.method).parameters} - {"towers", "options"}
    if options.keys() - known:
        raise ArgumentError("options", sorted(options.keys() - known), f"some of {sorted(known)}", "Correct the name.")
    state = {key.removeprefix("module."): value for key, value in state_dict.items()}
    state = {key: value for key, value in state.items() if not re.match("|".join(released.dead_in_towers), key)}
    towers = {
        side: {
            ours + key.removeprefix(theirs): state.pop(key)
            for theirs, ours in names.items()
            for key in list(state)
            if key.startswith(theirs)
        }
        for side, names in released.towers.items()
    }
    with Undrawn():  # every tensor is loaded, or an error says which is missing
        module = released.build(towers, **options)
    ours = module.state_dict()  # the trainable state: prompts and head
    weights, unknown = {}, []
    for key, value in state.items():
        name = adapter_key(key, released.dead_in_adapter) if "_adapter_blocks_" in key else released.head.rename(key)
        if name is None:
            continue
        # convolutions carry trailing 1 x 1 axes, grouped ones a merged group axis: same numbers in the same order
        if name not in ours or ours[name].numel() != value.numel():
            unknown.append(f"{key} {tuple(value.shape)}")
        else:
            weights[name] = value.reshape(ours[name].shape)
    missing = sorted(ours.keys() - weights.keys())
    if unknown or missing:
        raise CheckpointError(
            f"released {task} checkpoint",
            f"unknown {unknown[:5]}, missing {missing[:5]}",
            f"the {len(ours)} tensors of the {task} network",
            "Check the task name and that the file is whole.",
        )
    module.load_state_dict(weights)
    return module.eval(), towers


def convert(task: str, source: Path, target: Path, **options: Any) -> dict[str, Path]:
    """Convert a released checkpoint into files for `--ckpt_path` and for `pretrained` of the encoders.

    The released files also hold the frozen encoders, which differ from the published ones: the authors' training moved
    batch norm statistics. Therefore three files are written: `target` with the weights of prompts and head, and beside
    it one file for each modality, with its encoder and its text tower, if there is one. The command that uses the files
    is printed.

    Args:
        task: `ave`, `avvp`, `avs_s4`, `avs_ms3`, `avqa`, `fewshot` or `pretrain`.
        source: the authors' .pt file.
        target: checkpoint to write, ending in .ckpt.
        options: see `from_released`; of these only `audio_scale` changes the files.

    Returns:
        `checkpoint`, `visual`, `audio`: the files.

    Raises:
        ArgumentError: unknown task or option.
        CheckpointError: the source is missing, broken, or not of this task; a target exists.
        WeightsError: an encoder inside the source is not the released one.
    """
    source, target = Path(source), Path(target)
    files = {"checkpoint": target, **{side: target.with_suffix(f".{side}.safetensors") for side in ("visual", "audio")}}
    for path in files.values():
        if path.exists():
            raise CheckpointError(path, "an existing file", "a new path", "Remove it or choose another name.")
    module, towers = _build(task, checkpoints.read_checkpoint(source), **options)
    for side, weights in towers.items():
        whole = {name: value.clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
        write_whole(files[side], save(whole))
    checkpoints.write_checkpoint(
        target,
        {
            "epoch": 0,
            "global_step": 0,
            "pytorch-lightning_version": lightning.__version__,
            "state_dict": module.state_dict(),
            checkpoints.RECORD: checkpoints.record(module),
        },
    )
    released = TASKS[task]
    flags = [
        f"--model.{place.format(side=side)}.pretrained {files[side]}" for place in released.places for side in towers
    ]
    experiment = released.experiment or f"{task}_dgsct"
    print(" ".join((f"avprompt test --config {experiment} --ckpt_path {target}", *flags, *released.flags)))
    return files
