"""Tasks through the command line: pictures, tables and masks for people, the grounding stage, released augmentation."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from PIL import Image
from small import SmallHTSAT, small_batch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_experiments import on_a_laptop
from torch import nn

from avprompt import checkpoints
from avprompt.callbacks import ValidationPictures
from avprompt.cli import model_of, run
from avprompt.errors import ArgumentError, CheckpointError

EXPERIMENTS = ROOT / "experiments"
#: experiment -> fixture of its dataset, columns of its table, rows a clip
QUICKSTARTS = {
    "quickstart": ("ave_root", {"predicted", "annotated"}, 10),
    "avvp_quickstart": ("llp_root", {"predicted_audio", "predicted_visual", "annotated_audio"}, 10),
    "avs_s4_quickstart": ("avs_roots", {"sounding_share", "iou"}, 5),
    "avs_ms3_quickstart": ("avs_roots", {"sounding_share", "iou"}, 5),
    "avqa_quickstart": ("avqa_root", {"question", "predicted", "annotated", "type"}, 1),
}


def flags(name: str, request: pytest.FixtureRequest, folder: Path) -> list[str]:
    root = request.getfixturevalue(QUICKSTARTS[name][0])
    root = root["s4" if "s4" in name else "ms3"] if isinstance(root, dict) else root
    return [
        "--config",
        str(EXPERIMENTS / f"{name}.yaml"),
        "--data.root",
        str(root),
        "--trainer.logger.save_dir",
        str(folder),
        "--trainer.enable_progress_bar",
        "false",
    ]


@pytest.mark.parametrize("name", QUICKSTARTS)
@pytest.mark.filterwarnings("ignore:parsing runs without")
def test_visualize_draws_the_test_split(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run(
        [
            "visualize",
            *flags(name, request, tmp_path),
            "--trainer.limit_predict_batches",
            "1",
            "--data.eval_batch_size",
            "3",
            "--ckpt_path",
            "none",
        ]
    )
    folder = tmp_path / name / "version_0"
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    _, columns, per_clip = QUICKSTARTS[name]
    assert len(rows) == 3 * per_clip and columns <= rows[0].keys()
    pictures = list((folder / "pictures").glob("*.png"))
    assert len(pictures) == 3 and all(Image.open(path).size[0] > 400 for path in pictures)
    masks = sorted((folder / "masks").glob("*.png"))
    assert len(masks) == (15 if "avs" in name else 0)
    for path in masks:
        assert Image.open(path).size == (64, 64) and set(Image.open(path).getdata()) <= {0, 255}


@pytest.mark.parametrize("name", ["quickstart", "avvp_quickstart", "avs_s4_quickstart", "avqa_quickstart"])
@pytest.mark.filterwarnings("ignore:parsing runs without")
def test_validation_shows_its_first_clips_in_tensorboard(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run(
        [
            "fit",
            *flags(name, request, tmp_path),
            "--trainer.limit_train_batches",
            "1",
            "--trainer.limit_val_batches",
            "1",
            "--trainer.max_epochs",
            "1",
        ]
    )
    events = EventAccumulator(str(tmp_path / name / "version_0"))
    events.Reload()
    tags = [tag for tag in events.Tags()["images"] if tag.startswith("validation/")]
    assert len(tags) == 2 and all(events.Images(tag)[0].width > 300 for tag in tags)
    assert any(tag.startswith("val/") for tag in events.Tags()["scalars"])


def test_how_many_clips_are_shown() -> None:
    with pytest.raises(ArgumentError, match="count"):
        ValidationPictures(count=0)


def test_grounding_stage_is_where_question_answering_starts(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    stage = on_a_laptop(EXPERIMENTS / "avqa_grounding_dgsct.yaml", request, tmp_path)
    save = [
        "--trainer.fast_dev_run",
        "false",
        "--trainer.enable_checkpointing",
        "true",
        "--trainer.max_epochs",
        "1",
        "--trainer.limit_train_batches",
        "2",
        "--trainer.limit_val_batches",
        "1",
        "--trainer.logger",
        str(ROOT / "lightning_configs" / "logger" / "tensorboard.yaml"),
        "--trainer.logger.save_dir",
        str(tmp_path),
    ]
    run(["fit", *stage, *save])
    path = tmp_path / "avqa_grounding_dgsct" / "version_0" / "checkpoints" / "best.ckpt"
    trained = checkpoints.read_checkpoint(path)["state_dict"]
    flags = on_a_laptop(EXPERIMENTS / "avqa_dgsct.yaml", request, tmp_path)
    main = model_of([*flags[:-2], "--model.grounding", str(path)])
    name = "head.grounding.merge.weight"
    assert not torch.equal(main.state_dict()[name], trained[name])
    main.setup("test")
    assert not torch.equal(main.state_dict()[name], trained[name])  # a test reads its own checkpoint alone
    main.setup("fit")
    ours = {key: value for key, value in main.state_dict().items() if key.startswith("head.grounding.")}
    assert ours.keys() == trained.keys() and all(torch.equal(ours[key], trained[key]) for key in ours)
    with pytest.raises(CheckpointError, match=r"missing, unexpected or misshapen .*head\.grounding"):
        checkpoints.load_part(main, nn.Linear(2, 2), path, "head.grounding.")
    with torch.no_grad():
        next(main.backbone.visual.parameters()).add_(1)  # other frozen weights
    with pytest.raises(CheckpointError, match="backbone.visual trained on"):
        main.setup("fit")


def test_negatives_of_the_plain_or_of_the_prompted_network() -> None:
    """With the positives' own frames as negatives both matches agree only where both went through the same network."""
    frames, audio = torch.randn(2, 3, 3, 64, 64), 0.1 * torch.randn(2, 3, 16000)
    batch = {
        "id": ["one", "other"],
        "frames": frames,
        "audio": audio,
        "negative_frames": frames,
        "question": torch.ones(2, 14, dtype=torch.long),
    }
    for prompted in (False, True):
        task = model_of(
            ["--config", str(EXPERIMENTS / "avqa_quickstart.yaml"), "--model.prompted_negatives", str(prompted).lower()]
        ).eval()
        with torch.no_grad():
            for name, parameter in task.backbone.prompts.named_parameters():
                if name.endswith("gate"):
                    parameter.fill_(0.5)
            outputs = task(batch)
        assert torch.allclose(outputs["match_positive"], outputs["match_negative"], atol=1e-6) is prompted


def test_a_video_with_several_questions_is_encoded_once() -> None:
    """With the same answers, gradients included; examples that share a name alone are encoded one by one.

    Where encoders are in train mode, as released, each example is: chance treats them differently.
    """
    frames, audio = torch.randn(2, 3, 3, 64, 64), 0.1 * torch.randn(2, 3, 16000)
    frames, audio = frames[[0, 1, 0, 0]], audio[[0, 1, 0, 0]]
    audio[3] += 0.01
    batch = {"frames": frames, "audio": audio, "question": torch.arange(1, 57).view(4, 14), "answer": torch.arange(4)}
    seen, gradients, answers = [], [], []
    for names in (["a", "b", "a", "a"], ["a", "b", "c", "d"]):
        task = model_of(["--config", str(EXPERIMENTS / "avqa_quickstart.yaml")]).eval()
        for name, parameter in task.backbone.prompts.named_parameters():
            if name.endswith("gate"):
                parameter.data.fill_(0.5)
        task.backbone.register_forward_pre_hook(lambda _, args: seen.append(len(args[0]["frames"])))
        outputs = task({"id": names, **batch})
        torch.nn.functional.cross_entropy(outputs["answer"], batch["answer"]).backward()
        answers.append(outputs["answer"].detach())
        gradients.append(torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None]))
    assert seen == [3, 4] and not torch.allclose(answers[0][0], answers[0][2])
    assert torch.allclose(*answers, atol=1e-5) and torch.allclose(*gradients, atol=1e-5) and gradients[0].any()
    task({**batch, "id": ["a"] * 4})
    task.backbone.audio.released_mode = True
    task.train()({**batch, "id": ["a"] * 4})
    task.eval()({key: value for key, value in batch.items() if key != "id"})
    assert seen == [3, 4, 3, 4, 4]


def test_mixup_of_the_released_procedures() -> None:
    """Spectrograms of mirrored places are mixed, in train mode alone."""
    with pytest.raises(ArgumentError, match="mixup.*released_mode"):
        SmallHTSAT(mixup=True)
    audio = small_batch(2)[1]
    encoder = SmallHTSAT(released_mode=True, mixup=True)
    encoder.spec_augmenter = nn.Identity()
    plain = SmallHTSAT(released_mode=True)
    plain.spec_augmenter = nn.Identity()
    plain.load_state_dict(encoder.state_dict())
    assert torch.equal(encoder.eval().embed(audio), plain.eval().embed(audio))
    torch.manual_seed(3)
    mixed, alone = encoder.train().embed(audio), plain.train().embed(audio)
    assert not torch.allclose(mixed, alone, atol=1e-3)
    same = audio[:1, :1].expand(2, 3, -1)  # mixing equal spectrograms changes nothing
    assert torch.allclose(encoder.embed(same), plain.embed(same), atol=1e-4)
