"""Score the best constant prediction on the test split of a quickstart, which every network has to beat.

    python benchmarks/constant_answer.py avvp|avs_s4|avs_ms3|avqa [--root DIR]

The prediction ignores image and sound, and is the best of its kind on the validation split: the k most frequent events
in every second (AVVP); the mean training mask above a threshold, or an empty mask (AVS); the most frequent answer of
all, of each type of question, and of each question (AVQA).
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch

from avprompt.cli import parts_of
from avprompt.cli.quickstart import PLANS
from avprompt.data_modules import AVDataModule
from avprompt.metrics import AVQAAccuracy, AVSJaccard, AVVPFScore

RNG = np.random.default_rng(0)


def annotations(data: AVDataModule) -> dict[str, list[dict]]:
    """Annotations of every item by split; no media are read."""
    splits = data.read_annotations()
    return {split: [data.annotate(item, RNG) for item in items] for split, items in splits.items()}


def avvp(data: AVDataModule) -> dict[str, float]:
    """Segment-level Type@AV of predicting the k most frequent events as heard and seen in every second."""
    found = annotations(data)
    order = torch.stack([sample["labels"] for sample in found["train"]]).mean(0).argsort(descending=True)

    def score(split: str, count: int) -> float:
        audio, visual = (torch.stack([s[key] for s in found[split]]) for key in ("audio_target", "visual_target"))
        constant = torch.zeros(data.num_classes)
        constant[order[:count]] = 1
        frames, metric = constant.expand_as(audio), AVVPFScore()
        metric.update(frames, frames, constant.expand(len(audio), -1), audio, visual)
        return float(metric.compute()["segment_type"])

    best = max(range(data.num_classes + 1), key=lambda count: score("val", count))
    return {f"the {best} most frequent events everywhere": score("test", best)}


def avs(data: AVDataModule) -> dict[str, float]:
    """mIoU of the mean training mask above a threshold, or of an empty mask."""
    found = annotations(data)
    mean = torch.cat([sample["masks"][sample["annotated"]] for sample in found["train"]]).mean(0)

    def score(split: str, threshold: float) -> float:
        masks, metric = torch.cat([sample["masks"] for sample in found[split]]), AVSJaccard()
        metric.update(torch.where(mean > threshold, 9.0, -9.0).expand_as(masks), masks)
        return 100 * float(metric.compute())

    best = max((*(float(q) for q in torch.linspace(0, float(mean.max()), 12)[:-1]), 2.0), key=lambda t: score("val", t))
    what = "nothing sounds" if best == 2.0 else f"the mean mask above {best:.3f}"
    return {what: score("test", best)}


def avqa(data: AVDataModule) -> dict[str, float]:
    """Accuracy of the most frequent training answer, of all, of each type of question and of each question."""
    found = annotations(data)
    test, scores = found["test"], {}
    for name, keys in (
        ("the most frequent answer", ()),
        ("that of the question's type", ("question_type",)),
        ("that of the question", ("question_type", "question_text")),
    ):
        # what was never asked in training gets the answer of its type, or of all
        answers: dict[tuple[str, ...], Counter[int]] = defaultdict(Counter)
        for sample in found["train"]:
            for known in range(len(keys) + 1):
                answers[tuple(sample[key] for key in keys[:known])][int(sample["answer"])] += 1
        chosen = [
            next(
                answers[key].most_common(1)[0][0]
                for known in range(len(keys), -1, -1)
                if (key := tuple(sample[k] for k in keys[:known])) in answers
            )
            for sample in test
        ]
        metric = AVQAAccuracy()
        metric.update(
            torch.eye(data.num_classes)[chosen],
            torch.stack([s["answer"] for s in test]),
            [s["question_type"] for s in test],
        )
        scores[name] = float(metric.compute()["average"])
    return scores


TASKS = {"avvp": avvp, "avs_s4": avs, "avs_ms3": avs, "avqa": avqa}


def main() -> None:
    """Print the scores in percent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--root", type=Path, help="folder of the dataset; by default that of the experiment")
    given = parser.parse_args()
    flags = ["--config", PLANS[given.task].experiment]
    flags += ["--data.root", str(given.root)] if given.root else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of annotations that change no label, which training repeats
        _, data = parts_of(flags, meta=True)
        for name, score in TASKS[given.task](data).items():
            print(f"{given.task}: {name}: {score:.1f} %")


if __name__ == "__main__":
    main()
