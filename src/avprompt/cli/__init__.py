"""The command line: `avprompt fit --config ave_dgsct`, and the commands around it."""

from __future__ import annotations

from typing import Any

from avprompt.cli.main import main, run

__all__ = ["AVPromptCLI", "lightning_cli", "main", "model_of", "parts_of", "run"]


def __getattr__(name: str) -> Any:
    """Import Lightning only when it is asked for: `avprompt --help` stays quick."""
    if name in ("AVPromptCLI", "lightning_cli", "model_of", "parts_of"):
        from avprompt.cli import lightning

        return getattr(lightning, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
