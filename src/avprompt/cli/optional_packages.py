"""What a command line does not need is not imported: extras of libraries count as absent while these are imported.

`import lightning` imports torchmetrics, which imports scipy, matplotlib, transformers and requests wherever they are
installed, for metrics that the suite has no use for; timm imports wandb for its own training script. That was more
than 4 of the 11 seconds of processor time that each command took to start. The packages themselves stay importable:
pictures import matplotlib, and the W&B logger wandb, when they are made.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

#: library -> packages that it imports for extras
EXTRAS = {
    "torchmetrics": frozenset({"scipy", "matplotlib", "transformers", "requests", "librosa"}),
    "timm": frozenset({"wandb"}),
}
#: set to 1 to import everything as usual: for a class of your own that computes torchmetrics' text or image metrics
SWITCH = "AVPROMPT_FULL_IMPORTS"


def being_imported(library: str) -> bool:
    """Whether the import of a package has begun and not ended.

    >>> being_imported("avprompt"), being_imported("no_such_package")
    (False, False)
    """
    spec = getattr(sys.modules.get(library), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def is_absent(package: str) -> bool:
    """Whether an import of this package is to fail now.

    >>> is_absent("scipy")
    False
    """
    return any(package in extras and being_imported(library) for library, extras in EXTRAS.items())


class WithoutExtras(MetaPathFinder):
    """Finds nothing; says that a package is absent while a library is imported that only offers extras with it.

    >>> WithoutExtras().find_spec("scipy")
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name == "torchmetrics":
            _ask_requirements()
        package = name.partition(".")[0]
        if package not in sys.modules and is_absent(package):
            raise ModuleNotFoundError(
                f"avprompt imports no {package} for a library's extras: {SWITCH}=1 does", name=name
            )
        return None


def _ask_requirements() -> None:
    """Let torchmetrics' own question, which reads installed packages and imports nothing, have the same answer."""
    from lightning_utilities.core.imports import RequirementCache

    if hasattr(RequirementCache.__bool__, "without_extras"):
        return
    installed = RequirementCache.__bool__

    def answer(cache: RequirementCache) -> bool:
        package = (cache.requirement or cache.module or "").split(">")[0].split("=")[0].strip()
        return not (package not in sys.modules and is_absent(package)) and installed(cache)

    answer.without_extras = True  # type: ignore[attr-defined]  # a mark on a function
    RequirementCache.__bool__ = answer


def leave_out_extras() -> None:
    """Install `WithoutExtras` in this process, once.

    >>> leave_out_extras()  # a program calls it before it imports lightning; afterwards it changes nothing
    """
    if not os.environ.get(SWITCH) and not any(isinstance(finder, WithoutExtras) for finder in sys.meta_path):
        sys.meta_path.insert(0, WithoutExtras())
