"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import avprompt
from avprompt import data_modules

FLAGS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
#: the data modules lie in a folder of their own, which is part of the package
PACKAGES = {"avprompt.": avprompt.__path__, "avprompt.data_modules.": data_modules.__path__}
MODULES = sorted(
    {
        "avprompt",
        *(
            module.name
            for prefix, path in PACKAGES.items()
            for module in pkgutil.walk_packages(path, prefix)
            if not module.name.endswith("__main__")
        ),
    }
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert outcome.failed == 0


def test_there_are_examples() -> None:
    counted = sum(
        bool(case.examples)
        for name in MODULES
        for case in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    )
    assert counted > 80
