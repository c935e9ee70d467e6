"""The weights that ship are those of the record beside them, and the recipes make the same bits again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from avprompt.encoders import TinyHTSAT
from avprompt.encoders.tiny import WEIGHTS
from avprompt.synthetic import pretrain
from avprompt.synthetic.pretrain import RECIPES, RECORD, Hearings, digest, knowledge, offsets

ENTRIES = json.loads((WEIGHTS / RECORD).read_text(encoding="utf-8"))
MAKERS = {file: modality for modality, recipe in RECIPES.items() for file in (recipe.file, recipe.text_file) if file}


def test_every_file_has_an_entry() -> None:
    assert set(ENTRIES) == set(MAKERS) == {path.name for path in WEIGHTS.glob("*.safetensors")}
    assert sum((WEIGHTS / file).stat().st_size for file in ENTRIES) < 4e6
    assert all((WEIGHTS / file).stat().st_size < 2**20 for file in ENTRIES)


@pytest.mark.parametrize("file", MAKERS)
def test_an_entry_is_true_of_its_file(file: str) -> None:
    entry, recipe = ENTRIES[file], RECIPES[MAKERS[file]]
    assert entry["sha256"] == digest(WEIGHTS / file)
    assert entry["command"] == f"python -m avprompt.synthetic.pretrain --modality {MAKERS[file]}"
    assert entry["recipe"] == {
        "steps": recipe.steps,
        "batch_size": recipe.batch_size,
        "lr": recipe.lr,
        "betas": list(recipe.betas),
        "weight_decay": recipe.weight_decay,
    }
    assert set(entry["scores"]) == set(recipe.examples)


@torch.no_grad()
def test_the_shipped_htsat_hears_timbres_and_pitches() -> None:
    """On fewer examples than the record's."""
    found = knowledge(TinyHTSAT(), Hearings(320, 2, True))
    assert found["timbre"] > 0.9 and found["pitch"] > 0.9
    assert all(ENTRIES["tiny_htsat.safetensors"]["scores"]["alone"][name] > 0.95 for name in ("timbre", "pitch"))


@pytest.mark.parametrize("modality", ["visual", "audio"])
def test_a_seed_makes_the_same_bits_again(modality: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES[modality]
    few = {"alone": type(recipe.examples["alone"])(8, 2)}
    monkeypatch.setitem(RECIPES, modality, replace(recipe, batch_size=4, examples=few))
    threads = torch.get_num_threads()
    for folder, seed, before in (("one", 0, 1), ("again", 0, 2), ("other", 1, 1)):
        torch.set_num_threads(before)
        torch.rand(before)  # what happened before has no effect
        pretrain.main(["--modality", modality, "--steps", "2", "--out", str(tmp_path / folder), "--seed", str(seed)])
        assert torch.get_num_threads() == before and not torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    one, again, other = (digest(tmp_path / folder / recipe.file) for folder in ("one", "again", "other"))
    assert one == again != other
    entry = json.loads((tmp_path / "one" / RECORD).read_text())[recipe.file]
    assert entry["sha256"] == one and entry["recipe"]["steps"] == 2 and entry["seed"] == 0
    shipped = load_file(WEIGHTS / recipe.file)
    assert {name: value.shape for name, value in load_file(tmp_path / "one" / recipe.file).items()} == {
        name: value.shape for name, value in shipped.items()
    }


def test_all_makes_every_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = []
    monkeypatch.setattr(pretrain, "pretrain", lambda modality, steps, out, seed: made.append((modality, out)))
    pretrain.main(["--all", "--out", str(tmp_path)])
    assert made == [(modality, tmp_path) for modality in RECIPES]
    with pytest.raises(SystemExit):
        pretrain.main([])


def test_a_stream_says_what_it_draws() -> None:
    lone, crowd = Hearings(6, 3, alone=True), Hearings(40, 3)
    for index in range(6):
        example, labels = lone[index]
        assert example.dtype == torch.float32 and example.abs().max() <= 1 and torch.equal(example, lone[index][0])
        sound, *known = torch.split(labels, list(Hearings.groups.values()))
        assert not sound.any() and all(part.sum() == 1 for part in known)
    labels = torch.stack([crowd[index][1] for index in range(40)])
    assert labels.shape == (40, Hearings.labels) and set(labels.unique().tolist()) == {0.0, 1.0}
    assert labels[::2, :8].sum() == 0 and labels[1::2, 8:].sum() == 0 and offsets(Hearings.groups, None, 1) == [9]
