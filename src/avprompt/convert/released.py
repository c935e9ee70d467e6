"""The authors' released DG-SCT checkpoints -> ours: same function, our names, no dead weights."""

from __future__ import annotations

import re
from collections.abc import Callable
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
from avprompt.heads import cmbs
from avprompt.prompts import DGSCT
from avprompt.tasks.ave import AVE

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


def build_ave(**options: object) -> AVE:
    """The released AVE network, with random weights. Options go to `DGSCT` (e.g. `gamma`)."""
    return AVE(AVPromptBackbone(SwinV2(), HTSAT(), DGSCT(**options)), num_classes=28)


#: task -> (network, released head keys -> ours, patterns of head keys that are dead)
TASKS: dict[str, tuple[Callable[..., LightningModule], dict[str, str], tuple[str, ...]]] = {
    "ave": (build_ave, cmbs.RELEASED_KEYS, (*cmbs.RELEASED_DEAD, r"adapter_token_downsampler\.")),
}


def guide_key(key: str) -> str | None:
    """Our name of a released adapter key, `None` where it is dead, the key itself where it is unknown."""
    match = re.fullmatch(r"(\w+_adapter_blocks)_(p[12])\.(\d+)\.(\w+)(\..+)?", key)
    if match is None or match[1] not in LISTS:
        return key
    name, rest = match[4], match[5] or ""
    if name in DEAD_IN_GUIDE:
        return None
    if name not in GUIDE:
        return key
    return f"backbone.prompts.{LISTS[match[1]]}_{match[2]}.{match[3]}.{GUIDE[name]}{rest}"


def head_key(key: str, renamed: dict[str, str], dead: tuple[str, ...]) -> str | None:
    """Our name of a released head key, `None` where it is dead, the key itself where it is unknown."""
    if any(re.match(pattern, key) for pattern in dead):
        return None
    for theirs in sorted(renamed, key=len, reverse=True):
        if key.startswith(theirs):
            return f"head.{renamed[theirs]}{key[len(theirs):]}"
    return key


def from_released(task: str, state_dict: dict[str, Tensor], **options: object) -> LightningModule:
    """Build our network of a task with the weights of a checkpoint released by the DG-SCT authors.

    Every key is used, known to be dead (it has no influence on the authors' outputs), or reported by an error. A
    `module.` prefix is taken off. Constants (STFT kernels, mel filters, masks, position indices) may be absent.

    Args:
        task: `ave`.
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
    build, renamed, dead = TASKS[task]
    state = {key.removeprefix("module."): value for key, value in state_dict.items()}
    module = build(**options)
    for prefix, load in (("swin.", module.backbone.visual.load_timm_weights),
                         ("htsat.", module.backbone.audio.load_htsat_weights)):
        inside = {key: state.pop(key) for key in [key for key in state if key.startswith(prefix)]}
        load({key.removeprefix(prefix): value for key, value in inside.items()}, f"{task} checkpoint, {prefix}*")
    ours = module.state_dict()  # what the task owns: prompts and head
    weights, unknown = {}, []
    for key, value in state.items():
        name = guide_key(key) if "_adapter_blocks_" in key else head_key(key, renamed, dead)
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
        task: `ave`.
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
