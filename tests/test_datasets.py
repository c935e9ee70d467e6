"""Each dataset is described once, and the examples in the docstrings of the data side run."""

from __future__ import annotations

import inspect

import pytest

from avprompt import data_modules
from avprompt.data_modules import AVDataModule
from avprompt.datasets import avsbench
from avprompt.datasets.base import DatasetInfo
from avprompt.datasets.registry import DATASETS

MODULES = [
    data_modules.AVEDataModule,
    data_modules.LLPDataModule,
    data_modules.VGGSoundDataModule,
    data_modules.KineticsSoundsDataModule,
    data_modules.MUSICAVQADataModule,
]


@pytest.mark.parametrize(
    "kind",
    [kind for name in data_modules.__all__ if not inspect.isabstract(kind := getattr(data_modules, name))],
    ids=lambda kind: kind.__name__,
)
def test_every_data_module_shows_an_example(kind: type[AVDataModule]) -> None:
    assert ">>> " in kind.__doc__


def test_every_dataset_of_a_data_module_is_registered() -> None:
    assert {id(info) for info in DATASETS.values()} == {
        *(id(kind.info) for kind in MODULES),
        *(id(info) for info in avsbench.INFO.values()),
    }
    assert len({info.name for info in DATASETS.values()}) == len(DATASETS)
    assert data_modules.LLPClassificationDataModule.info.published is DATASETS["llp"].published
    assert {key for key, info in DATASETS.items() if info.unit != "clips"} == {"music_avqa"}


@pytest.mark.parametrize(
    ("key", "fixture"),
    [
        ("ave", "ave_root"),
        ("llp", "llp_root"),
        ("vggsound", "vggsound_root"),
        ("kinetics_sounds", "ks_root"),
        ("music_avqa", "avqa_root"),
    ],
)
def test_class_names_are_those_of_the_data_module(key: str, fixture: str, request: pytest.FixtureRequest) -> None:
    info, root = DATASETS[key], request.getfixturevalue(fixture)
    (module,) = (kind for kind in MODULES if kind.info is info)
    assert isinstance(info, DatasetInfo)
    assert tuple(info.class_names(root)) == module(root, image_size=64, sample_rate=16000).class_names
