"""The authors' released DG-SCT checkpoints -> ours: same function, our names, no dead weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import lightning
import torch
from lightning import LightningModule
from safetensors.torch import save_file
from torch import Tensor

from avprompt import checkpoints
from avprompt.backbone import AVPromptBackbone
from avprompt.encoders import HTSAT, SwinV2
from avprompt.errors import ArgumentError, CheckpointError
from avprompt.heads import avs_decoder, cmbs, mgn, st_avqa
from avprompt.prompts import DGSCT
from avprompt.tasks import AVE, AVQA, AVS, AVVP

#: one released adapter: its name -> ours
GUIDE = {
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
    "down_sampler": "down",
    "up_sampler": "up",
    "bn1": "bn_down",
    "bn2": "bn_up",
    "ln_before": "norm_before",
    "ln_post": "norm_after",
}
#: parameters of a released adapter that never influence its output
DEAD_IN_GUIDE = ("gate_tk", "fc_caption", "temporal_gated")
LISTS = {"audio_adapter_blocks": "audio", "vis_adapter_blocks": "visual"}


@dataclass(frozen=True)
class Released:
    """How a released network's state dict maps to ours.

    Args:
        build: the network with random weights; options go to `DGSCT` (e.g. `gamma`) over its own settings.
        keys: beginnings of the head's names -> ours.
        dead: patterns of names that never influence an output.
        parts: parts of the head's names -> ours, behind the beginnings.
        dead_in_guide: names inside an adapter that never influence an output.
    """

    build: Callable[..., LightningModule]
    keys: dict[str, str]
    dead: tuple[str, ...] = ()
    parts: dict[str, str] = field(default_factory=dict)
    dead_in_guide: tuple[str, ...] = ()


def network(task: Callable[..., LightningModule], settings: dict[str, object] = {},  # noqa: B006
            **arguments: object) -> Callable[..., LightningModule]:
    """Builder of a released network: the task over Swin-V2-L and HTS-AT with these settings of DG-SCT."""
    return lambda **options: task(AVPromptBackbone(SwinV2(), HTSAT(), DGSCT(**{**settings, **options})), **arguments)


#: what the released networks have in common besides AVE's and AVVP's
UNGATED = {"audio_gate": False, "batch_norm": False, "token_init": "zeros"}
SEGMENTATION = {**UNGATED, "gate": "inside_norm", "norm_before": False, "gamma": 0.05}
TASKS = {
    "ave": Released(network(AVE, num_classes=28), cmbs.RELEASED_KEYS,
                    (*cmbs.RELEASED_DEAD, r"adapter_token_downsampler\.")),
    "avvp": Released(network(AVVP, {"gamma": 0.05}), mgn.RELEASED_KEYS, mgn.RELEASED_DEAD, mgn.RELEASED_PARTS),
    "avs_s4": Released(network(AVS, {**SEGMENTATION, "prompt_map": "bicubic"}), avs_decoder.RELEASED_KEYS,
                       avs_decoder.RELEASED_DEAD, avs_decoder.RELEASED_PARTS, ("conv_adapter", "ln_before")),
    "avs_ms3": Released(network(AVS, {**SEGMENTATION, "alpha": 0.2, "beta": 0.1, "gamma": 0.1, "reduction": 2}, matching=0.5),
                        avs_decoder.RELEASED_KEYS, avs_decoder.RELEASED_DEAD, avs_decoder.RELEASED_PARTS, ("ln_before",)),
    "avqa": Released(network(AVQA, {**UNGATED, "num_tokens": 2, "groups": 4, "temporal": False}), st_avqa.RELEASED_KEYS,
                     st_avqa.RELEASED_DEAD),
}


def guide_key(key: str, dead: tuple[str, ...] = ()) -> str | None:
    """Our name of a released adapter key, `None` where it is dead, the key itself where it is unknown."""
    match = re.fullmatch(r"(\w+_adapter_blocks)_(p[12])\.(\d+)\.(\w+)(\..+)?", key)
    if match is None or match[1] not in LISTS:
        return key
    name, rest = match[4], match[5] or ""
    if name in (*DEAD_IN_GUIDE, *dead):
        return None
    if name not in GUIDE:
        return key
    return f"backbone.prompts.{LISTS[match[1]]}_{match[2]}.{match[3]}.{GUIDE[name]}{rest}"


def head_key(key: str, released: Released) -> str | None:
    """Our name of a released head key, `None` where it is dead, the key itself where it is unknown."""
    if any(re.match(pattern, key) for pattern in released.dead):
        return None
    for theirs in sorted(released.keys, key=len, reverse=True):
        if key.startswith(theirs):
            name = f"head.{released.keys[theirs]}{key[len(theirs):]}"
            for part, ours in released.parts.items():
                name = name.replace(part, ours)
            return name
    return key


def from_released(task: str, state_dict: dict[str, Tensor], **options: object) -> LightningModule:
    """Build our network of a task with the weights of a checkpoint released by the DG-SCT authors.

    Every key is used, known to be dead (it has no influence on the authors' outputs), or reported by an error. A
    `module.` prefix is taken off. Constants (STFT kernels, mel filters, masks, position indices) may be absent.

    Args:
        task: `ave`, `avvp`, `avs_s4`, `avs_ms3` or `avqa`.
        state_dict: the released file's content, name -> tensor.
        options: settings of the prompt method that the checkpoint does not hold, such as `gamma`.

    Returns:
        The task's LightningModule in eval mode.

    Raises:
        ArgumentError: unknown task.
        CheckpointError: unknown, missing or misshapen keys.
        WeightsError: the same inside an encoder.
    """
    if task not in TASKS:
        raise ArgumentError("task", task, f"one of {sorted(TASKS)}", "Name the task that the checkpoint was trained on.")
    released = TASKS[task]
    state = {key.removeprefix("module."): value for key, value in state_dict.items()}
    module = released.build(**options)
    for prefix, load in (("swin.", module.backbone.visual.load_timm_weights),
                         ("htsat.", module.backbone.audio.load_htsat_weights)):
        inside = {key: state.pop(key) for key in [key for key in state if key.startswith(prefix)]}
        load({key.removeprefix(prefix): value for key, value in inside.items()}, f"{task} checkpoint, {prefix}*")
    ours = module.state_dict()  # what the task owns: prompts and head
    weights, unknown = {}, []
    for key, value in state.items():
        name = guide_key(key, released.dead_in_guide) if "_adapter_blocks_" in key else head_key(key, released)
        if name is None:
            continue
        # convolutions carry trailing 1 x 1 axes, grouped ones a merged group axis: same numbers in the same order
        if name not in ours or ours[name].numel() != value.numel():
            unknown.append(f"{key} {tuple(value.shape)}")
        else:
            weights[name] = value.reshape(ours[name].shape)
    missing = sorted(ours.keys() - weights.keys())
    if unknown or missing:
        raise CheckpointError(f"released {task} checkpoint", f"unknown {unknown[:5]}, missing {missing[:5]}",
                              f"the {len(ours)} tensors of the {task} network",
                              "Check the task name and that the file is whole.")
    module.load_state_dict(weights)
    return module.eval()


def convert(task: str, source: Path, target: Path) -> dict[str, Path]:
    """Convert a released checkpoint file into what `--ckpt_path` and the encoders' `pretrained` take.

    The released files hold the frozen encoders too, and not as they were published: the authors' training moved batch norm
    statistics. So three files are written: `target` with the prompts' and the head's weights, and one for each encoder
    beside it. The command that uses them is printed.

    Args:
        task: `ave`, `avvp`, `avs_s4`, `avs_ms3` or `avqa`.
        source: the authors' .pt file.
        target: checkpoint to write, ending in .ckpt.

    Returns:
        `checkpoint`, `visual`, `audio`: the files.

    Raises:
        ArgumentError: unknown task.
        CheckpointError: the source is missing, broken, or not of this task; a target exists.
        WeightsError: an encoder inside the source is not the released one.
    """
    source, target = Path(source), Path(target)
    files = {"checkpoint": target, **{side: target.with_suffix(f".{side}.safetensors") for side in ("visual", "audio")}}
    for path in files.values():
        if path.exists():
            raise CheckpointError(path, "an existing file", "a new path", "Remove it or choose another name.")
    module = from_released(task, checkpoints.read_checkpoint(source))
    target.parent.mkdir(parents=True, exist_ok=True)
    for side in ("visual", "audio"):
        encoder = getattr(module.backbone, side)
        save_file({encoder.library_key(name): value.contiguous() for name, value in encoder.state_dict().items()},
                  files[side])
    torch.save({"epoch": 0, "global_step": 0, "pytorch-lightning_version": lightning.__version__,
                "state_dict": module.state_dict(), checkpoints.RECORD: checkpoints.record(module)}, target)
    encoders = " ".join(f"--model.init_args.backbone.init_args.{side}.init_args.pretrained {files[side]}"
                        for side in ("visual", "audio"))
    print(f"avprompt test --config experiments/{task}_dgsct.yaml --ckpt_path {target} {encoders}")
    return files
