"""Watches losses and gradients for NaN and infinity without waiting for the device.

On a GPU a program runs ahead of the device, and reading a number makes it wait. So a step's answer is copied to the
host while the device works, and looked at a step later; until then the optimizer itself leaves out, on the device,
every update from the first bad step on. On a CPU, and with optimizers that cannot leave out an update, the answer is
looked at at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

#: optimizers of PyTorch whose fused form leaves out an update where their attribute `found_inf` is 1
FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)


def fuse(optimizer: torch.optim.Optimizer) -> bool:
    """Let an optimizer of PyTorch use its fused form, one kernel for all parameters, unless the caller has chosen one.

    Returns:
        Whether it does now.

    >>> adam = torch.optim.Adam(nn.Linear(2, 2).parameters())
    >>> fuse(adam), adam.param_groups[0]["fused"]
    (True, True)
    """
    devices = {p.device.type for group in optimizer.param_groups for p in group["params"]}
    for group in optimizer.param_groups if type(optimizer) in FUSED and devices <= {"cpu", "cuda"} else ():
        able = not any(group.get(name) for name in ("foreach", "capturable", "differentiable"))
        if group.get("fused") is None and able and all(p.is_floating_point() for p in group["params"]):
            group["fused"] = True
    fused = type(optimizer) in FUSED and all(group.get("fused") for group in optimizer.param_groups)
    if fused:
        optimizer.register_load_state_dict_pre_hook(_stay_fused)
    return fused


def _stay_fused(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's state in which the groups are fused, whatever they were when it was written."""
    return {**state, "param_groups": [{**group, "fused": True, "foreach": None} for group in state["param_groups"]]}


def read(value: Tensor) -> Any:
    """A number as plain Python; waits for the device."""
    return value.detach().cpu().numpy().item()


@dataclass
class Step:
    """What is kept of a step until it has been looked at.

    Args:
        number: of the optimizer step.
        batch: of the step.
        loss: its loss.
        terms: terms of the loss, by name.
        names: of the parameters with a gradient.
        largest: for each of them the largest magnitude, NaN or infinite where the gradient is.
    """

    number: int
    batch: dict[str, Any]
    loss: Tensor
    terms: dict[str, Tensor]
    names: list[str] = field(default_factory=list)
    largest: Tensor | None = None
    copied: tuple[Tensor, Any] | None = None

    def send(self) -> None:
        """Begin to copy to the host: whether all is finite, and the loss."""
        finite = torch.isfinite(self.loss)
        if self.largest is not None:
            finite = finite & torch.isfinite(self.largest).all()
        answer = torch.stack((finite.to(self.loss.dtype), self.loss))
        if answer.is_cuda:
            host = torch.empty(answer.shape, dtype=answer.dtype, pin_memory=True)
            host.copy_(answer, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self.copied = host, event
        else:
            self.copied = answer, None

    def answer(self) -> tuple[bool, float]:
        """Whether all is finite, and the loss, as soon as the device has come so far."""
        if self.copied is None:
            self.send()
        host, event = self.copied
        if event is not None:
            event.synchronize()
        finite, loss = host.numpy().tolist()
        return bool(finite), loss

    def bad_gradients(self) -> list[str]:
        """Names of parameters whose gradient is not finite."""
        if self.largest is None:
            return []
        return [name for name, value in zip(self.names, self.largest.cpu().numpy()) if not abs(value) < float("inf")]


class Guard:
    """The steps that have not been looked at, and the switch that holds updates back.

    Args:
        lag: how many steps may be ahead of what has been looked at; `None` is 1 on a GPU and 0 on a CPU.
    """

    def __init__(self, lag: int | None = None) -> None:
        self.lag, self.able = lag, False
        self.steps: list[Step] = []
        self.held: Tensor | None = None

    def ahead(self, device: torch.device) -> int:
        """How many steps may be ahead on this device."""
        if not self.able:
            return 0
        return int(device.type == "cuda") if self.lag is None else self.lag

    def begin(self, step: Step) -> None:
        """Note a step after its forward pass."""
        self.steps.append(step)

    def gradients(self, optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Note the gradients of the newest step, and hold its update back, on the device, where anything is wrong."""
        found = [(name, parameter.grad) for name, parameter in named if parameter.grad is not None]
        step = self.steps[-1]
        step.names = [name for name, _ in found]
        if found:
            step.largest = torch.stack(
                [norm.to(step.loss.dtype) for norm in torch._foreach_norm([grad for _, grad in found], float("inf"))]
            )
        wrong = ~torch.isfinite(
            torch.stack([pending.loss for pending in self.steps])
        ).all()  # of accumulated batches too
        if step.largest is not None:
            wrong = wrong | ~torch.isfinite(step.largest).all()
        wrong = wrong.float()
        self.held = wrong if self.held is None else torch.maximum(self.held, wrong)
        optimizer.found_inf = self.held
        step.send()

    def look(self, ahead: int) -> tuple[Step | None, float | None]:
        """Look at all steps but the `ahead` newest -> the first that is not finite, and the loss of the last looked at."""
        loss = None
        while len(self.steps) > ahead:
            step = self.steps.pop(0)
            finite, loss = step.answer()
            if not finite:
                self.steps.clear()
                self.held = None
                return step, loss
        return None, loss
