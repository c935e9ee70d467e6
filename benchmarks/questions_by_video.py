"""Time training steps on MUSIC-AVQA with mixed questions and with questions grouped by video, and print the ratio.

    python benchmarks/questions_by_video.py [--config avqa_quickstart] [--steps 10]

Experiment, batch size and questions are the same; only the order differs (`data.group_by_video`). The time is in
seconds for each question and includes loading.
"""

from __future__ import annotations

import argparse
import itertools
import time

import torch

from avprompt.cli import parts_of


def seconds(config: str, steps: int, group_by_video: bool) -> tuple[float, float]:
    """Seconds for each question over `steps` training steps after a first one, and videos in a batch."""
    task, data = parts_of(["--config", config, "--data.group_by_video", str(group_by_video).lower()])
    data.setup("fit")
    task.train()
    questions, videos, begun = 0, 0, 0.0
    for step, batch in enumerate(itertools.islice(data.train_dataloader(), steps + 1)):
        if step == 1:
            questions, videos, begun = 0, 0, time.perf_counter()
        task.zero_grad()
        sum(task.losses(task(batch), batch).values()).backward()
        questions, videos = questions + len(batch["id"]), videos + len(set(batch["id"]))
    return (time.perf_counter() - begun) / questions, videos / steps


def main() -> None:
    """Print both times and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="avqa_quickstart")
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(2)
    (mixed, many), (together, few) = (seconds(given.config, given.steps, order) for order in (False, True))
    print(f"mixed     {1000 * mixed:8.1f} ms a question, {many:.1f} videos a batch")
    print(f"together  {1000 * together:8.1f} ms a question, {few:.1f} videos a batch")
    print(f"ratio     {together / mixed:8.3f}")


if __name__ == "__main__":
    main()
