"""`avprompt params`: how many parameters an experiment trains, freezes and saves."""

from __future__ import annotations

import json
import sys
from typing import Any

USAGE = "usage: avprompt params --config X [--json] [overrides as for fit]"
COLUMNS = ("trainable", "frozen", "total", "checkpoint")


def params(args: list[str]) -> None:
    """Print the parameters of an experiment by module, counted on the meta device: no memory, no weights, no data.

    Args:
        args: `--config X`, overrides, and `--json` for one JSON object with integers `trainable`, `frozen`, `total`,
            `checkpoint` (elements that a checkpoint holds) and `modules` (the same by module).

    Raises:
        ConfigError: see `avprompt.cli.lightning.parts_of`.
    """
    rest = [arg for arg in args if arg != "--json"]
    if "--help" in rest or "-h" in rest:
        print(USAGE)
        return
    if not rest:
        print(USAGE, file=sys.stderr)
        sys.exit(2)
    import torch

    from avprompt.checkpoints import count_parameters
    from avprompt.cli.lightning import model_of

    model = model_of(rest, meta=True)
    parts = {
        **{name: getattr(model.backbone, name, None) for name in ("visual", "audio", "prompts")},
        "head": model.head,
    }
    counted: set[int] = set()
    modules: dict[str, Any] = {
        name: count_parameters(part, counted) for name, part in parts.items() if isinstance(part, torch.nn.Module)
    }
    table = {**count_parameters(model), "modules": modules}
    if "--json" in args:
        print(json.dumps(table))
        return
    print(f"{'module':<10}" + "".join(f"{name:>15}" for name in COLUMNS))
    for name, counts in [*modules.items(), ("all", table)]:
        print(f"{name:<10}" + "".join(f"{counts[key]:>15,}" for key in COLUMNS))
