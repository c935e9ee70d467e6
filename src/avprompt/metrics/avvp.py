"""F-scores of audio-visual video parsing (Tian et al., ECCV 2020), computed as in the released evaluation."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from avprompt.errors import ArgumentError, ShapeError
from avprompt.metrics.states import joined

TYPES = ("audio", "visual", "audio_visual", "type", "event")
Counts = tuple[Tensor, Tensor, Tensor]


def segment_counts(predicted: Tensor, annotated: Tensor) -> Counts:
    """True positives, false positives and false negatives among the segments, (..., T) bool -> (...) long each."""
    return tuple(pair.sum(-1) for pair in (predicted & annotated, predicted & ~annotated, ~predicted & annotated))


def _events(active: Tensor) -> tuple[Tensor, Tensor]:
    """Where an event begins, (..., T) bool, and the segment after its last one, (..., T) long, defined inside
    events."""
    count = active.shape[-1]
    begins = active.clone()
    begins[..., 1:] &= ~active[..., :-1]
    index = torch.arange(count, device=active.device).expand_as(active)
    ends = torch.where(active, count, index).flip(-1).cummin(-1).values.flip(-1)  # the next segment that is off
    return begins, ends


def event_counts(predicted: Tensor, annotated: Tensor) -> Counts:
    """True positives, false positives and false negatives among the events, (..., T) bool -> (...) long each.

    An event is a maximal run of segments. A predicted event is right if its intersection over union with any annotated
    event reaches 0.5; an annotated event is missed if no predicted event reaches that.
    """
    (begins, ends), (true_begins, true_ends) = _events(predicted), _events(annotated)
    first = torch.arange(predicted.shape[-1], device=predicted.device)
    # every predicted event by every annotated one, each at the segment at which it begins
    overlap = (torch.minimum(ends[..., :, None], true_ends[..., None, :]) - torch.maximum(first[:, None], first)).clamp(
        min=0
    )
    union = (ends - first)[..., :, None] + (true_ends - first)[..., None, :] - overlap
    match = begins[..., :, None] & true_begins[..., None, :] & (2 * overlap >= union)
    right = match.sum((-2, -1))  # no event has two partners: with an overlap of one half each, these would touch
    return right, begins.sum(-1) - right, true_begins.sum(-1) - right


def mean_f_score(counts: Counts) -> Tensor:
    """F-score of each video, the mean over categories that are predicted or annotated; 1 where there is none.

    Args:
        counts: true positives, false positives and false negatives, (B, C) each.

    Returns:
        (B,) float64.
    """
    right, wrong, missed = (count.double() for count in counts)
    weight = 2 * right + wrong + missed
    present = weight > 0
    scores = torch.where(present, 2 * right / weight.clamp(min=1), 0.0).sum(-1)
    return torch.where(present.any(-1), scores / present.sum(-1).clamp(min=1), 1.0)


class AVVPFScore(Metric):
    """F-scores in percent of audio, visual and audio-visual events; higher is better.

    A category is predicted in a segment if its probability reaches 0.5 there and in the whole video; `audio_visual`
    means both heard and seen. F-scores are computed for each category over the segments (`segment_...`) or the events
    (`event_...`, see `event_counts`) of one video, averaged over the categories that are predicted or annotated in it,
    and then over videos. `..._type` is the mean of audio, visual and audio_visual; `..._event` counts audio and visual
    events together. Published models are selected by `segment_type`.

    As published, every segment counts, whether or not its media could be decoded. The scores of every video are kept
    until `compute`, so that the result depends neither on the batch size nor on the number of processes.

    Example:
        >>> metric, heard = AVVPFScore(), torch.tensor([[[1.0], [0.0]]])
        >>> metric.update(heard, heard, torch.ones(1, 1), heard, torch.zeros(1, 2, 1))
        >>> scores = metric.compute()
        >>> scores["segment_audio"], scores["segment_visual"]
        (100.0, 0.0)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.add_state("scores", [], dist_reduce_fx="cat")

    def update(
        self, audio_prob: Tensor, visual_prob: Tensor, video_prob: Tensor, audio_target: Tensor, visual_target: Tensor
    ) -> None:
        """Count a batch.

        Args:
            audio_prob: (B, T, C), probability that a category is heard in a segment.
            visual_prob: (B, T, C), probability that it is seen in the segment.
            video_prob: (B, C), probability that it occurs in the video.
            audio_target: (B, T, C), 1 or true where it is heard, else 0.
            visual_target: (B, T, C), 1 or true where it is seen, else 0.

        Raises:
            ShapeError: the five shapes do not match.
            ArgumentError: a probability is NaN, which would count as absence, or a target is neither 0 nor 1.
        """
        shapes = [tuple(x.shape) for x in (audio_prob, visual_prob, video_prob, audio_target, visual_target)]
        if len(shapes[0]) != 3 or shapes != [shapes[0], shapes[0], shapes[0][::2], shapes[0], shapes[0]]:
            raise ShapeError(
                "audio_prob, visual_prob, video_prob, audio_target, visual_target",
                shapes,
                "(B, T, C), (B, T, C), (B, C), (B, T, C), (B, T, C)",
                "Check the task's num_classes.",
            )
        if any(x.isnan().any() for x in (audio_prob, visual_prob, video_prob)):
            raise ArgumentError(
                "audio_prob, visual_prob, video_prob",
                "NaN",
                "probabilities",
                "Look at the loss: has training diverged?",
            )
        if any(((x != 0) & (x != 1)).any() for x in (audio_target, visual_target)):
            raise ArgumentError("audio_target, visual_target", "other values", "0 and 1", "Give targets, not scores.")
        occurs = (video_prob >= 0.5)[..., None]
        pairs = [
            ((prob.transpose(1, 2) >= 0.5) & occurs, target.transpose(1, 2) == 1)
            for prob, target in ((audio_prob, audio_target), (visual_prob, visual_target))
        ]
        pairs.append(tuple(audio & visual for audio, visual in zip(*pairs)))
        rows = []
        for count in (segment_counts, event_counts):
            counts = [count(*pair) for pair in pairs]
            scores = [mean_f_score(c) for c in counts]
            together = tuple(audio + visual for audio, visual in zip(*counts[:2]))
            scores += [torch.stack(scores).mean(0), mean_f_score(together)]
            rows.append(torch.stack(scores, -1))
        self.scores.append(torch.stack(rows, 1))

    def compute(self) -> dict[str, float]:
        """Percent by name, `segment_` and `event_` with each of `TYPES`; NaN without videos."""
        scores = joined(self.scores)
        values = (100 * (scores.mean(0) if len(scores) else scores.new_full((2, len(TYPES)), torch.nan))).tolist()
        return {
            f"{level}_{name}": value
            for level, row in zip(("segment", "event"), values)
            for name, value in zip(TYPES, row)
        }
