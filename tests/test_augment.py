"""Augmentation of training clips: one draw a clip, by seed, epoch and place alone."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from avprompt.data_modules import AVEDataModule, AVSBenchDataModule
from avprompt.data_modules.base import ClipDataset
from avprompt.errors import ArgumentError, ClipDecodeError, ShapeError
from avprompt.media.augment import RandAugment, drawing
from avprompt.media.readers import ClipReader, Segments

SIZE = 48


def ramps() -> Tensor:
    """Three frames, uint8 (3, 3, SIZE, SIZE): red grows to the right, green downwards, blue differs between frames."""
    ramp = torch.arange(SIZE) / (SIZE - 1)
    frames = torch.stack(
        [
            torch.stack([ramp.expand(SIZE, SIZE), ramp[:, None].expand(SIZE, SIZE), torch.full((SIZE, SIZE), blue)])
            for blue in (0.2, 0.5, 0.8)
        ]
    )
    return (255 * frames).round().byte()


@pytest.fixture
def plain() -> RandAugment:
    """Crop, flip and erasing without RandAugment's own operations."""
    augment = RandAugment(SIZE)
    augment.policy = lambda picture: picture
    return augment


def states() -> tuple[object, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_policy_is_timms() -> None:
    """Shape and colour operations of the published string, drawn as timm draws them."""
    policy = RandAugment(SIZE).policy
    assert policy.num_layers == 4 and {op.magnitude for op in policy.ops} == {7}
    assert {op.magnitude_std for op in policy.ops} == {0.5} and {op.prob for op in policy.ops} == {0.5}
    assert {op.kwargs["resample"] for op in policy.ops} == {Image.Resampling.BICUBIC}
    assert {"PosterizeIncreasing", "SolarizeIncreasing", "ColorIncreasing"} <= {op.name for op in policy.ops}
    bare = RandAugment(SIZE)
    bare.geometry = bare.erasing = lambda frames: frames
    picture = ramps()[0].permute(1, 2, 0).numpy()
    timms = rand_augment_transform(
        "rand-m7-n4-mstd0.5-inc1", {"translate_const": int(0.45 * SIZE), "interpolation": Image.Resampling.BICUBIC}
    )
    changed = 0
    for seed in range(20):
        with drawing(seed):
            expected = np.array(timms(Image.fromarray(picture)))
        ours = bare(torch.from_numpy(picture).permute(2, 0, 1)[None], seed)[0].permute(1, 2, 0)
        assert torch.equal(ours, torch.from_numpy(expected))
        changed += not np.array_equal(expected, picture)
    assert changed >= 15


def test_all_frames_of_a_clip_share_one_draw() -> None:
    augment, still = RandAugment(SIZE), ramps()[:1].expand(5, -1, -1, -1)
    results = [augment(still, seed) for seed in range(30)]
    for result in results:
        assert result.shape == still.shape and result.dtype == torch.uint8
        assert torch.equal(result, result[:1].expand_as(result))
    assert len({result[0].sum().item() for result in results}) == 30


def test_floating_frames_are_refused() -> None:
    with pytest.raises(ShapeError, match="frames: got torch.float32; expected torch.uint8"):
        RandAugment(SIZE)(ramps() / 255, 0)


def test_geometry(plain: RandAugment) -> None:
    """Area 8 to 100 %, aspect 3/4 to 4/3, half flipped, a quarter erased by normal noise of ImageNet's colours."""
    flipped = erased = 0
    areas, aspects, noise = [], [], []
    for seed in range(300):
        result = plain(ramps(), seed)
        red, green, _ = (result / 255).unbind(1)
        # blue is constant in a frame: resizing changes it by a rounding at most
        held = (result[:, 2].int() - ramps()[:, 2, :1, :1].int()).abs().amax(0) <= 1
        erased += not held.all()
        if not held.all():
            assert torch.equal(result[0, :, ~held], result[1, :, ~held]) and 0.01 < (~held).float().mean() < 0.36
            noise.append(result[0, :, ~held].float())
            continue
        width, height = red[0, 0, -1] - red[0, 0, 0], green[0, -1, 0] - green[0, 0, 0]
        flipped += bool(width < 0)
        areas.append(float(abs(width) * height))
        aspects.append(float(abs(width) / height))
    kept = 300 - erased
    assert 45 <= erased <= 110 and 0.38 < flipped / kept < 0.62
    assert 0.05 < min(areas) < 0.2 and 0.85 < max(areas) <= 1.001
    assert 0.65 < min(aspects) < 0.85 and 1.18 < max(aspects) < 1.5
    drawn, mean, std = torch.cat(noise, 1), torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
    wanted = 255 * (mean + std * torch.randn(100_000, 3)).clamp(0, 1)
    assert (drawn.mean(1) - wanted.mean(0)).abs().max() < 2 and (drawn.std(1) - wanted.std(0)).abs().max() < 2
    normalised = (drawn / 255 - mean[:, None]) / std[:, None]
    assert normalised.mean(1).abs().max() < 0.05 and 0.9 < normalised.std(1).min() < normalised.std(1).max() < 1


def test_other_random_streams_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither disturbed nor read; on a GPU machine the GPU's neither."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPU's stream was set"))
    augment, before = RandAugment(SIZE), states()
    first = augment(ramps(), 5)
    assert states() == before
    random.random(), np.random.random(), torch.rand(1)
    assert torch.equal(augment(ramps(), 5), first) and not torch.equal(augment(ramps(), 6), first)
    before = states()
    with pytest.raises(ZeroDivisionError), drawing(3):
        assert all(inside != outside for inside, outside in zip(states(), before))
        raise ZeroDivisionError
    assert states() == before


class Reader(ClipReader):
    """Clips of random pictures and sound; those named in `gone` do not decode."""

    def __init__(self, gone: set[str] = frozenset()) -> None:
        self.gone = gone

    def problem(self, clip_id: str) -> None:
        return None

    def inspect(self, clip_id: str) -> None:
        return None

    def identity(self, clip_id: str) -> str:
        return clip_id

    def read(self, clip_id: str) -> Segments:
        if clip_id in self.gone:
            raise ClipDecodeError(clip_id, "nothing", "a clip", "Leave it out.")
        rng = torch.Generator().manual_seed(int(clip_id))
        frames = torch.randint(256, (4, 3, SIZE, SIZE), generator=rng, dtype=torch.uint8)
        return frames, torch.rand(4, 100, generator=rng) * 2 - 1, torch.ones(4, dtype=torch.bool)


def dataset(count: int = 12, gone: set[str] = frozenset(), training: bool = True, **options: object) -> ClipDataset:
    items = [SimpleNamespace(id=str(number)) for number in range(count)]
    return ClipDataset(
        items, Reader(gone), lambda item, rng: {"chance": rng.random()}, seed=3, training=training, **options
    )


def shares(mixed: Tensor, own: Tensor, other: Tensor) -> Tensor | None:
    """Share of `own` in each segment if `mixed` is made of the two, else `None`."""
    share = ((mixed - other) * (own - other)).sum(1) / (own - other).square().sum(1)
    made = share[:, None] * own + (1 - share[:, None]) * other
    return share if torch.allclose(made, mixed, atol=1e-5) else None


def test_mixed_sound() -> None:
    """Of two training clips, in shares of its own for each segment, around one half; nothing else changes."""
    plain, mixing, found = dataset(), dataset(mix_audio=1.0), []
    for place in range(12):
        one, two = plain[place], mixing[place]
        assert torch.equal(one["frames"], two["frames"]) and one["chance"] == two["chance"] and one["id"] == two["id"]
        others = {
            other: share
            for other in range(12)
            if other != place
            if (share := shares(two["audio"], one["audio"], plain[other]["audio"])) is not None
        }
        assert len(others) == 1
        found += [(place, *others.keys(), share) for share in next(iter(others.values())).tolist()]
    drawn = np.array([share for _, _, share in found])
    assert len(set(drawn.round(5))) == len(drawn) and abs(drawn.mean() - 0.5) < 0.06
    assert abs(drawn.std() - (1 / 84) ** 0.5) < 0.04  # of Beta(10, 10)
    assert len({other for _, other, _ in found}) > 5
    alone = dataset(1)[0]["audio"]
    assert torch.allclose(dataset(1, mix_audio=1.0)[0]["audio"], alone, atol=1e-6)


def test_sound_is_mixed_as_often_as_asked() -> None:
    plain, half = dataset(), dataset(mix_audio=0.5)
    changed = []
    for epoch in range(25):
        half.set_epoch(epoch)
        changed += [not torch.equal(half[place]["audio"], plain[place]["audio"]) for place in range(12)]
    assert 0.4 < np.mean(changed) < 0.6


def test_mixing_does_not_change_what_frames_draw() -> None:
    augment = RandAugment(SIZE)
    for place in range(3):
        one, two = dataset(augment=augment)[place], dataset(augment=augment, mix_audio=1.0)[place]
        assert torch.equal(one["frames"], two["frames"]) and not torch.equal(one["audio"], two["audio"])


def test_evaluation_is_never_augmented() -> None:
    options = {"augment": RandAugment(SIZE), "mix_audio": 1.0}
    plain, other, training = dataset(training=False), dataset(training=False, **options), dataset(**options)
    assert all(torch.equal(plain[3][key], other[3][key]) for key in ("frames", "audio", "valid"))
    assert not torch.equal(plain[3]["frames"], training[3]["frames"])


def test_a_sample_depends_on_seed_epoch_and_place_alone() -> None:
    options = {"augment": RandAugment(SIZE), "mix_audio": 0.5}
    data = dataset(**options)
    forwards = [data[place] for place in range(6)]
    torch.rand(7), random.random(), np.random.random()
    backwards = [dataset(**options)[place] for place in reversed(range(6))][::-1]
    for one, two in zip(forwards, backwards):
        assert torch.equal(one["frames"], two["frames"]) and torch.equal(one["audio"], two["audio"])
    data.set_epoch(1)
    assert not any(torch.equal(one["frames"], data[place]["frames"]) for place, one in enumerate(forwards))


def test_other_frames_of_a_sample_are_augmented_alike() -> None:
    """What tells negative frames from the clip's own must not be the augmentation."""
    data = dataset(augment=RandAugment(SIZE))
    data.annotate = lambda item, rng: {"negative_frames": data.reader.read(item.id)[0]}
    for place in range(4):
        sample = data[place]
        assert torch.equal(sample["frames"], sample["negative_frames"])
        assert not torch.equal(sample["frames"], dataset()[place]["frames"])


def test_damaged_clips_are_not_mixed_in() -> None:
    with pytest.raises(ClipDecodeError):
        for sample in dataset(3, {"1"}, mix_audio=1.0):
            assert sample["id"] == "0"
    data = dataset(3, {"1"}, mix_audio=1.0, substitute=True)
    with pytest.warns(UserWarning, match="takes the place of 1"):
        samples = [data[0], data[2]]
    clean = dataset(3)
    for sample, own, other in zip(samples, (0, 2), (2, 0)):
        share = shares(sample["audio"], clean[own]["audio"], clean[other]["audio"])
        assert share is not None and sample["valid"].all()
    assert data.corrupt.sum() == 1


def module(root: Path, **options: object) -> AVEDataModule:
    return AVEDataModule(root, image_size=64, sample_rate=16000, batch_size=4, **options)


def test_as_an_argument_of_a_data_module(ave_root: Path) -> None:
    """The same batches whatever the number of workers; validation as without."""
    loaders = {}
    for workers in (0, 2):
        data = module(ave_root, augment="randaugment", mix_audio=0.5, num_workers=workers)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.order.set_epoch(2)
        loaders[workers] = [batch for batch, _ in zip(loader, range(3))]
    for one, two in zip(loaders[0], loaders[2], strict=True):
        assert one["id"] == two["id"]
        assert all(torch.equal(one[key], two[key]) for key in ("frames", "audio", "event", "valid"))
    plain = module(ave_root, augment="none", mix_audio=0.0)
    plain.setup("fit")
    batch = loaders[0][0]
    place = plain.datasets["train"].ids.index(batch["id"][0])
    own = plain.datasets["train"][place]
    assert not torch.equal(batch["frames"][0], own["frames"]) and torch.equal(batch["event"][0], own["event"])
    assert torch.equal(next(iter(data.val_dataloader()))["frames"], next(iter(plain.val_dataloader()))["frames"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "autoaugment"}, "none or randaugment"),
        ({"mix_audio": -0.1}, "0 to 1"),
        ({"mix_audio": 2.0}, "0 to 1"),
    ],
)
def test_impossible_arguments(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        module(tmp_path, **options)


def test_frames_with_masks_are_not_augmented(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="augment: got randaugment; expected none: masks belong"):
        AVSBenchDataModule(tmp_path, "s4", augment="randaugment").setup("fit")
