"""Checkpoints hold the trainable state of a run: trained weights and their buffers, never the frozen encoders.

They also hold a fingerprint of the frozen encoders, which is checked on loading, so that prompts trained with one set
of weights do not silently run with another.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avprompt.backbone import StoredFeatures
from avprompt.encoders.base import FrozenEncoder
from avprompt.errors import CheckpointError
from avprompt.files import write_whole

#: key of our own record inside a Lightning checkpoint
RECORD = "avprompt"


def trainable_state_names(module: nn.Module) -> set[str]:
    """Names of the tensors that training changes.

    These are the parameters that require a gradient, the persistent buffers of the modules that hold them (batch norm),
    and the buffers of frozen encoders that move in a released procedure.
    """
    names: set[str] = set()
    for prefix, part in module.named_modules():
        own = [name for name, parameter in part.named_parameters(recurse=False) if parameter.requires_grad]
        if own:
            buffers = [
                name for name, _ in part.named_buffers(recurse=False) if name not in part._non_persistent_buffers_set
            ]
            names |= {f"{prefix}.{name}".lstrip(".") for name in own + buffers}
        if isinstance(part, FrozenEncoder):
            names |= {f"{prefix}.{name}".lstrip(".") for name in part.mutable_buffers()}
    return names


def count_parameters(module: nn.Module, counted: set[int] | None = None) -> dict[str, int]:
    """Elements that are `trainable` (require a gradient), `frozen`, `total`, and `checkpoint` (held by a checkpoint).

    Args:
        module: the module whose elements are counted.
        counted: ids of tensors to leave out; the ids found are added to it, because encoders may share blocks.
    """
    counted = set() if counted is None else counted
    names, counts = trainable_state_names(module), {"trainable": 0, "frozen": 0, "total": 0, "checkpoint": 0}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if id(tensor) in counted:
            continue
        counted.add(id(tensor))
        counts["checkpoint"] += tensor.numel() * (name in names)
        if isinstance(tensor, nn.Parameter):
            counts["total"] += tensor.numel()
            counts["trainable" if tensor.requires_grad else "frozen"] += tensor.numel()
    return counts


def encoders(module: nn.Module) -> Iterator[tuple[str, FrozenEncoder | StoredFeatures]]:
    """Name and module of every frozen encoder, or of stored features in its place, inside `module`."""
    for name, part in module.named_modules():
        if isinstance(part, (FrozenEncoder, StoredFeatures)) and part.frozen:
            yield name, part


def record(module: nn.Module) -> dict[str, Any]:
    """Record of the frozen part for a checkpoint: name -> class and fingerprint of each encoder."""
    found = {name: {"class": type(part).__name__, "fingerprint": part.fingerprint()} for name, part in encoders(module)}
    return {"encoders": found}


def check_record(module: nn.Module, saved: dict[str, Any] | None, source: str | Path = "checkpoint") -> None:
    """Compare a checkpoint's record with the encoders in use.

    Raises:
        CheckpointError: no record (not a checkpoint of avprompt), or other frozen weights.
    """
    if not isinstance(saved, dict) or "encoders" not in saved:
        raise CheckpointError(
            source,
            "no record of frozen encoders",
            "a checkpoint written by avprompt",
            "Released checkpoints of others go through `avprompt convert` first.",
        )
    for name, part in encoders(module):
        theirs, ours = saved["encoders"].get(name), {"class": type(part).__name__, "fingerprint": part.fingerprint()}
        if theirs != ours:
            raise CheckpointError(
                source,
                f"{name} trained on {theirs and theirs['class']} {theirs and theirs['fingerprint'][:12]}",
                f"the encoder in use, {ours['class']} {ours['fingerprint'][:12]}",
                "Give both encoders the same `pretrained` files (and arguments) as in training.",
            )


def check_names(module: nn.Module, state: dict[str, Tensor], source: str | Path = "checkpoint") -> None:
    """Check that a state dict holds exactly the trainable state of `module`.

    Raises:
        CheckpointError: missing, unexpected or misshapen tensors; the message lists them.
    """
    full = nn.Module.state_dict(module)
    names = trainable_state_names(module)
    missing, unexpected = sorted(names - state.keys()), sorted(state.keys() - names)
    misshapen = sorted(name for name in names & state.keys() if state[name].shape != full[name].shape)
    if missing or unexpected or misshapen:
        raise CheckpointError(
            source,
            f"missing {missing[:5]}, unexpected {unexpected[:5]}, other shapes {misshapen[:5]}",
            f"the {len(names)} tensors that this experiment trains",
            "Use the configuration that the checkpoint was trained with (config.yaml beside it).",
        )


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint file without unpickling code.

    Raises:
        CheckpointError: no such file, truncated, or holding more than plain data and tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(path, "no such file", "a checkpoint", "Check the path given to --ckpt_path.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError ... for broken or unsafe files
        raise CheckpointError(
            path,
            f"{path.stat().st_size} bytes that do not load ({type(error).__name__}: {error})",
            "a whole checkpoint",
            "It may be truncated: use another one, such as last.ckpt.",
        ) from error


def write_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint file in one step, see `avprompt.files.write_whole`.

    Raises:
        WriteError: there is no room; the file that was there is kept.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(Path(path), buffer.getbuffer())


def epoch_is_whole(trainer: Any) -> bool:
    """Whether all batches of the current epoch have been trained on.

    This is not so if `max_steps`, a timer or an early stop ended the epoch.

    Args:
        trainer: Lightning's.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.current.ready >= trainer.num_training_batches or progress.is_last_batch


def load_part(module: nn.Module, part: nn.Module, path: str | Path, prefix: str) -> None:
    """Load one module's weights out of another task's checkpoint.

    Args:
        module: the task that `part` belongs to.
        part: the module inside it to load.
        path: the checkpoint.
        prefix: prefix of its names in the checkpoint.

    Raises:
        CheckpointError: the file is missing or broken, was trained on other frozen weights, or does not hold exactly
            this part under that prefix.
    """
    content = read_checkpoint(path)
    check_record(module, content.get(RECORD), path)
    state = content.get("state_dict", {})
    found = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    ours = part.state_dict()
    wrong = sorted(
        name
        for name in ours.keys() | found.keys()
        if name not in ours or name not in found or ours[name].shape != found[name].shape
    )
    if wrong:
        raise CheckpointError(
            path,
            f"missing, unexpected or misshapen {wrong[:5]}",
            f"{prefix}* of the same network",
            "Use a checkpoint trained with the same encoders.",
        )
    part.load_state_dict(found)
