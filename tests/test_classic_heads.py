"""Heads of earlier publications: the authors' functions and counts, and what every head must do."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avprompt import losses
from avprompt.backbone import PublishedFeatures
from avprompt.datasets.llp import seconds_of_clap
from avprompt.encoders.base import BlockSpec
from avprompt.errors import ArgumentError, ShapeError
from avprompt.features import AVFeatures, FeatureSource
from avprompt.heads import (
    AVEL,
    AVSDN,
    CMAN,
    CMRAN,
    DAM,
    HAN,
    PSP,
    RFJC,
    CMBSAlone,
    EventHead,
    JoMoLD,
    MMPyramid,
    MMPyramidParsing,
)
from avprompt.heads.avs_decoder import AVSDecoder
from avprompt.heads.mgn import MGNHead
from avprompt.heads.psp import positive_links
from avprompt.heads.spatial import AudioGuidedAttention, SpatialChannelAttention
from avprompt.tasks import AVQA, AVVP, AVEClassic, AVELinear, LabelDenoising
from avprompt.tasks.denoising import cross_entropies

AUDIO, VISUAL, CLASSES = 12, 20, 3
SMALL_RFJC = partial(RFJC, segments=4, steps=1)
#: name -> (head, whether it has a form for weak labels)
HEADS: dict[str, tuple[Callable[..., EventHead], bool]] = {
    "AVEL": (AVEL, True),
    "AVEL, mean": (partial(AVEL, attention=False), True),
    "DMRN": (partial(AVEL, fusion="residual"), True),
    "AVSDN": (AVSDN, True),
    "DAM": (DAM, False),
    "CMAN": (CMAN, True),
    "CMRAN": (CMRAN, True),
    "PSP": (PSP, True),
    "CMBS": (CMBSAlone, True),
    "RFJC": (SMALL_RFJC, False),
    "MM-Pyramid": (MMPyramid, True),
}
FORMS = [(name, weak) for name, (_, weakly) in HEADS.items() for weak in (False, True)[: 1 + weakly]]


def build(name: str, weak: bool = False, **options: Any) -> EventHead:
    torch.manual_seed(0)
    return HEADS[name][0](AUDIO, VISUAL, CLASSES, weak, **options).eval()


def features(clips: int = 3, segments: int = 4, positions: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(clips, segments, AUDIO, generator=generator).relu(),
        torch.randn(clips, segments, positions, VISUAL, generator=generator).relu(),
    )


# --- the published networks

#: live parameters at the published sizes: audio 128, visual, 28 categories
COUNTS: list[tuple[Callable[..., EventHead], int, bool, int]] = [
    (AVEL, 2048, False, 3_694_542),
    (AVEL, 512, False, 1_335_246),
    (partial(AVEL, attention=False), 2048, False, 2_529_181),
    (partial(AVEL, attention=False), 512, False, 956_317),
    (partial(AVEL, fusion="residual"), 512, False, 1_571_150),
    (AVSDN, 2048, False, 6_094_670),
    (AVSDN, 512, False, 2_162_510),
    (CMRAN, 512, False, 9_509_150),
    (CMRAN, 512, True, 9_509_407),
    (PSP, 512, False, 1_548_657),
    (PSP, 512, True, 1_253_902),
    (CMBSAlone, 512, False, 9_200_473),
    (CMBSAlone, 512, True, 9_395_518),
    (RFJC, 512, False, 22_776_510),
    *((partial(RFJC, steps=k), 512, False, 14_902_314 + (k - 1) * 2_624_732) for k in (1, 6)),
]


@pytest.mark.parametrize(("head", "visual", "weak", "count"), COUNTS)
def test_live_parameters_are_the_published_networks(
    head: Callable[..., EventHead], visual: int, weak: bool, count: int
) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in head(128, visual, 28, weak).parameters()) == count


def draw(name: str, shape: torch.Size) -> Tensor:
    """Weights seeded by their names, no path dead."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    if numbers.ndim > 1:
        return numbers / shape[1:].numel() ** 0.5
    return 1 + 0.1 * numbers if "norm" in name and name.endswith("weight") else 0.1 * numbers


#: what the authors' classes gave in eval mode, float64, on these features and weights: eight values, evenly spaced.
#: "softmax" is the softmax of our `segments`, "clip" of our `clip`, "gate" the sigmoid of `is_event`.
AUTHORS: dict[str, tuple[Callable[..., EventHead], bool, dict[str, list[float]]]] = {
    "AVEL": (
        partial(AVEL, variant="released"),
        False,
        {"softmax": [0.031087, 0.036196, 0.032935, 0.041518, 0.037214, 0.02962, 0.034825, 0.032514]},
    ),
    "AVEL, weak": (
        partial(AVEL, variant="released"),
        True,
        {
            "clip": [0.029788, 0.039893, 0.037231, 0.032384, 0.031442, 0.023889, 0.045244, 0.034053],
            "segments": [-0.112413, 0.050768, -0.027405, 0.197177, 0.094005, -0.135337, 0.021249, -0.035987],
        },
    ),
    "DMRN": (
        partial(AVEL, variant="released", fusion="residual"),
        False,
        {"softmax": [0.023523, 0.034765, 0.026302, 0.025199, 0.032575, 0.027949, 0.034854, 0.03991]},
    ),
    "PSP": (
        partial(PSP, variant="released"),
        False,
        {"segments": [-0.143612, 0.495747, -0.805135, -0.061915, -0.313057, 0.392752, 1.040262, -1.160079]},
    ),
    "PSP, weak": (
        partial(PSP, variant="released"),
        True,
        {
            "clip": [0.030215, 0.03839, 0.047582, 0.040255, 0.024807, 0.038606, 0.03787, 0.03313],
            "segments": [-0.066152, 0.303968, -0.192304, 0.022362, -0.070882, -0.506151, 0.237219, -0.194097],
        },
    ),
    "CMRAN": (
        CMRAN,
        False,
        {
            "is_event": [-1.020322, -0.656782, -1.187117, -0.798336, -1.429935, -1.402896, -1.627662, -1.768983],
            "event": [-0.509145, 0.503508, -2.096663, -1.427513, -1.105272, 0.40183, -2.64088, -1.160283],
        },
    ),
    "CMRAN, weak": (
        CMRAN,
        True,
        {
            "is_event": [-1.220048, -0.774033, -1.516902, -0.813452, -1.556355, -1.419941, -1.674355, -1.776748],
            "event": [-0.332703, 0.493056, -2.181677, -1.104309, -0.223868, 1.08722, 1.129202, 0.285946],
            "clip": [0.027333, 0.035324, 0.019808, 0.023896, 0.027856, 0.041004, 0.041489, 0.032768],
        },
    ),
    "CMBS": (
        CMBSAlone,
        False,
        {
            "is_event": [-1.238203, -1.283355, -1.26465, -1.378124, -1.445415, -1.199218, -1.275616, -1.338817],
            "event": [1.169634, -0.028791, -0.249648, 0.5614, 1.383588, -0.109623, 0.158603, 0.386695],
            "gate": [0.323798, 0.350118, 0.36911, 0.479957, 0.471257, 0.303989, 0.307957, 0.383155],
            "video_scores": [-0.478895, 0.383222, 1.214812, -0.578666, -0.605154, 0.253822, 1.541676, -0.221426],
        },
    ),
    "CMBS, weak": (
        CMBSAlone,
        True,
        {
            "relevance": [0.531116, 0.507738, 0.527537, 0.63997, 0.526821, 0.594341, 0.60375, 0.557871],
            "event": [-0.328943, 0.245752, 0.141352, 0.003699, 0.236051, 0.198878, -0.070372, 0.660526],
            "clip": [0.028028, 0.038597, 0.036102, 0.033058, 0.038358, 0.035052, 0.029698, 0.04714],
        },
    ),
    "AVSDN": (
        partial(AVSDN, variant="released"),
        False,
        {
            "is_event": [0.111735, -0.045776, -0.023716, -0.077823, -0.026534, 0.088626, 0.0008, 0.024038],
            "event": [0.086187, 0.138828, -0.056803, -0.002596, 0.118981, 0.135992, -0.07563, -0.036105],
        },
    ),
    "AVSDN, weak": (
        partial(AVSDN, variant="released"),
        True,
        {"clip": [0.035347, 0.036343, 0.032865, 0.033732, 0.030798, 0.032998, 0.038285, 0.034577]},
    ),
    "RFJC": (
        partial(RFJC, variant="released"),
        False,
        {"softmax": [0.035222, 0.034212, 0.035874, 0.041763, 0.040147, 0.036796, 0.032254, 0.030733]},
    ),
}


@pytest.mark.parametrize("name", AUTHORS)
def test_outputs_equal_the_authors(name: str) -> None:
    make, weak, wanted = AUTHORS[name]
    generator = torch.Generator().manual_seed(0)
    audio = torch.randn(2, 10, 128, generator=generator, dtype=torch.float64).relu()
    visual = torch.randn(2, 10, 49, 512, generator=generator, dtype=torch.float64).relu()
    head = make(128, 512, 28, weak).double().eval()
    head.load_state_dict({key: draw(key, value.shape) for key, value in head.state_dict().items()})
    with torch.no_grad():
        outputs = head(audio, visual)
    if "segments" in outputs:
        outputs["softmax"] = outputs["segments"].softmax(-1)
    if weak:
        outputs["clip"] = outputs["clip"].softmax(-1)
    outputs["relevance"] = outputs.get("is_event", audio).sigmoid()
    for output, values in wanted.items():
        found = outputs[output].flatten()[:: max(1, outputs[output].numel() // 8)][:8]
        assert (found - torch.tensor(values, dtype=torch.float64)).abs().max() < 2e-6, output


VALOR = partial(HAN, heads=8, hidden=1024, in_turn=True)
VALOR_PLUS = partial(VALOR, width=256, layers=4)
#: the same for heads of video parsing, on features of VGGish, ResNet-152 (80 frames, averaged) and R(2+1)D-18
PARSING: dict[str, tuple[Callable[..., nn.Module], int, dict[str, list[float]]]] = {
    "HAN": (
        HAN,
        4_569_675,
        {
            "video_prob": [0.475844, 0.639633, 0.231177, 0.409472, 0.44768, 0.579869, 0.460682, 0.414492],
            "audio_video_prob": [0.520788, 0.831686, 0.18477, 0.194932, 0.351305, 0.556075, 0.416739, 0.25175],
            "visual_prob": [0.229913, 0.435904, 0.505637, 0.692099, 0.600741, 0.655803, 0.625137, 0.760226],
        },
    ),
    "VALOR": (
        VALOR,
        5_094_475,
        {
            "video_prob": [0.573648, 0.760575, 0.296966, 0.767844, 0.431434, 0.52939, 0.448506, 0.631271],
            "audio_video_prob": [0.549949, 0.786503, 0.158511, 0.336231, 0.398466, 0.498859, 0.304227, 0.322524],
            "audio_prob": [0.658982, 0.218786, 0.411167, 0.446515, 0.585638, 0.52473, 0.382665, 0.522043],
            "visual_prob": [0.583188, 0.475853, 0.41615, 0.585891, 0.636518, 0.614116, 0.440831, 0.859941],
        },
    ),
    "VALOR+": (
        VALOR_PLUS,
        5_051_211,
        {
            "video_prob": [0.388018, 0.764414, 0.740458, 0.574723, 0.361017, 0.584848, 0.743583, 0.605498],
            "visual_video_prob": [0.345273, 0.555247, 0.714627, 0.650676, 0.25738, 0.429671, 0.653062, 0.322404],
            "audio_prob": [0.426052, 0.772598, 0.678326, 0.798265, 0.849802, 0.874356, 0.548967, 0.557367],
            "visual_prob": [0.344151, 0.715614, 0.265778, 0.710542, 0.691342, 0.589607, 0.261418, 0.46456],
        },
    ),
    "JoMoLD": (
        JoMoLD,
        4_569_675,
        {
            "video_prob": [0.475844, 0.639633, 0.231177, 0.409472, 0.44768, 0.579869, 0.460682, 0.414492],
            "visual_video_prob": [0.394709, 0.457699, 0.397591, 0.540742, 0.481159, 0.786325, 0.472673, 0.552409],
            "similarity": [0.243389, 0.186067, 0.237958, 0.204609, 0.204984, 0.20224, 0.182839, 0.16243],
        },
    ),
    "JoMoLD, estimator": (
        partial(JoMoLD, across=False),
        3_519_051,
        {
            "video_prob": [0.421354, 0.705592, 0.298967, 0.444729, 0.276621, 0.522991, 0.51036, 0.360864],
            "audio_video_prob": [0.440768, 0.770641, 0.337309, 0.347538, 0.194765, 0.490696, 0.362938, 0.229215],
            "visual_prob": [0.352356, 0.270341, 0.299512, 0.826457, 0.532089, 0.589856, 0.606003, 0.755263],
        },
    ),
    "MM-Pyramid": (
        partial(MMPyramidParsing, exchanged=True),
        40_827_469,
        {
            "video_prob": [0.425427, 0.230257, 0.0971, 0.983503, 0.022248, 0.15735, 0.083689, 0.0249],
            "audio_video_prob": [0.833581, 0.001809, 0.001159, 0.99553, 0.002877, 0.955409, 0.082383, 0.011055],
            "visual_prob": [0.282835, 0.035143, 0.61563, 0.467857, 0.387719, 0.757663, 0.54986, 0.649497],
        },
    ),
    "MGN": (
        partial(MGNHead, gates=(0.0, 0.0)),
        4_366_065,
        {
            "video_prob": [0.407168, 0.687232, 0.383613, 0.295269, 0.412415, 0.348528, 0.620718, 0.522646],
            "audio_prob": [0.056642, 0.621399, 0.039032, 0.110514, 0.30691, 0.51175, 0.808214, 0.520949],
            "visual_prob": [0.851661, 0.47983, 0.775223, 0.721329, 0.676626, 0.971806, 0.64951, 1.052352],
            "audio_token_logits": [-0.068114, 0.16773, 0.026135, -0.086704, 0.079902, 0.108486, 0.030486, -0.239796],
        },
    ),
}


@pytest.mark.parametrize("name", PARSING)
def test_parsing_networks_equal_the_authors(name: str) -> None:
    make, count, wanted = PARSING[name]
    generator = torch.Generator().manual_seed(0)
    audio, frames, video = (
        torch.randn(2, rows, dim, generator=generator, dtype=torch.float64).relu()
        for rows, dim in ((10, 128), (80, 2048), (10, 512))
    )
    head = make(128, 2048, 25, 10, 512).double().eval()
    assert sum(parameter.numel() for parameter in head.parameters()) == count
    head.load_state_dict({key: draw(key, value.shape) for key, value in head.state_dict().items()})
    with torch.no_grad():
        outputs = head(audio, frames.unflatten(1, (10, 8)).mean(2), video)
    for output, values in wanted.items():
        found = outputs[output].flatten()[:: max(1, outputs[output].numel() // 8)][:8]
        assert (found - torch.tensor(values, dtype=torch.float64)).abs().max() < 2e-6, output


def test_valor_on_clap_and_clip_equals_the_authors() -> None:
    """Ours reads seconds of CLAP, which the reader of the published files makes; theirs reads its 64 tokens."""
    generator = torch.Generator().manual_seed(0)
    clap, clip, video = (
        torch.randn(2, rows, dim, generator=generator, dtype=torch.float64)
        for rows, dim in ((64, 768), (10, 768), (10, 512))
    )
    seconds = torch.stack([torch.from_numpy(seconds_of_clap(own.numpy())) for own in clap]).double()
    head = VALOR_PLUS(768, 768, 25, 10, 512).double().eval()
    assert sum(parameter.numel() for parameter in head.parameters()) == 4_887_371
    head.load_state_dict({key: draw(key, value.shape) for key, value in head.state_dict().items()})
    with torch.no_grad():
        outputs = head(seconds, clip, video)
    for output, values in {
        "video_prob": [0.692472, 0.685751, 0.634638, 0.60352, 0.395172, 0.451315, 0.767093, 0.638718],
        "audio_prob": [0.589614, 0.750009, 0.551532, 0.822786, 0.724242, 0.658223, 0.566186, 0.398973],
        "visual_prob": [0.749434, 0.52297, 0.371597, 0.585612, 0.719279, 0.580849, 0.280313, 0.372852],
    }.items():
        found = outputs[output].flatten()[:: max(1, outputs[output].numel() // 8)][:8]
        assert (found - torch.tensor(values, dtype=torch.float64)).abs().max() < 2e-6, output


def test_jomold_without_attention_across_is_its_estimator() -> None:
    torch.manual_seed(0)
    head, audio, visual = JoMoLD(AUDIO, VISUAL, CLASSES, 4, 0), torch.randn(2, 4, AUDIO), torch.randn(2, 4, VISUAL)
    assert not torch.equal(head(audio, visual)["visual_prob"], head(audio, visual)["visual_prob"])  # class dropout
    head.eval()
    estimator = head.estimator()
    assert (
        head.across
        and head.attention[0].across is not None
        and estimator.state_dict().keys() < head.state_dict().keys()
    )
    one, other = estimator(audio, visual), head(audio, visual, across=False)
    assert all(torch.equal(one[name], other[name]) for name in one)
    moved = estimator(audio, visual.flip(0))
    assert torch.equal(one["audio_prob"], moved["audio_prob"])
    assert not torch.equal(one["visual_prob"], moved["visual_prob"])


def test_contrast_of_segments_equals_a_loop() -> None:
    similarity = torch.rand(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    terms = []
    for video in similarity:
        for place, row in enumerate(video):
            shares = (row / 0.2).exp() / (row / 0.2).exp().sum()
            terms.append(-sum((0.9 if other == place else 0.1 / 3) * share for other, share in enumerate(shares)).log())
    assert torch.isclose(losses.segment_contrast(similarity), torch.stack(terms).mean())
    assert float(losses.segment_contrast(torch.ones(1, 1, 1))) == pytest.approx(-math.log(0.9))  # one segment


def test_labels_are_removed_as_by_a_loop() -> None:
    """As the authors' function removed them on these draws: 36 of sound and 266 of sight with the shares found."""
    generator = torch.Generator().manual_seed(5)
    labels = (torch.rand(24, 25, generator=generator) > 0.5).double()
    probabilities = dict(zip(("audio", "visual"), torch.rand(2, 24, 25, generator=generator)))
    targets = {"audio": labels, "visual": 0.9 * labels + 0.05}
    denoising = LabelDenoising(Path("none"), ramp="released")
    with pytest.raises(ArgumentError, match="^denoising:"):
        denoising.remove({}, labels, 1.0)
    denoising.find_shares(probabilities, labels, {"audio": 1.0, "visual": 0.95})
    for kind, threshold in (("audio", 0.6), ("visual", 1.8)):
        for category in range(25):
            given, scores = labels[:, category] == 1, probabilities[kind][:, category].double()
            low = [s * {"audio": 1.0, "visual": 0.95}[kind] / scores.mean() < threshold for s in scores[given]]
            assert float(getattr(denoising, f"{kind}_share")[category]) == pytest.approx(sum(low) / int(given.sum()))
    entropies = {kind: cross_entropies(probabilities[kind], targets[kind].float()) for kind in targets}
    removed = denoising.remove(entropies, labels, 1.0)
    assert {kind: int(found.sum()) for kind, found in removed.items()} == {"audio": 36, "visual": 266}
    for kind, other in (("audio", "visual"), ("visual", "audio")):
        for category in range(25):
            given = [k for k in range(24) if labels[k, category]]
            most = int(float(getattr(denoising, f"{kind}_share")[category]) * len(given))
            worst = sorted(given, key=lambda k: -entropies[kind][k, category])[:most]
            best = sorted(given, key=lambda k: entropies[other][k, category])[:most]
            assert removed[kind][:, category].nonzero().flatten().tolist() == sorted(set(worst) & set(best))
    assert not any(found.any() for found in denoising.remove(entropies, labels, 0.0).values())


def test_shares_of_noise_rise() -> None:
    """Linearly, or as the released script has it, which multiplies a share again and again within an epoch."""
    for warmup in (0.9, 2.5):
        linear, released = (LabelDenoising(Path("none"), warmup=warmup, ramp=ramp) for ramp in ("linear", "released"))
        for epoch in range(3):
            share = 1.0
            for step in range(7):
                factor = (7 * epoch + step) / (7 * warmup)
                share = min(share, share * factor)
                assert linear.rise(epoch, step, 7) == pytest.approx(min(1.0, factor))
                assert released.rise(epoch, step, 7) == pytest.approx(share)
    with pytest.raises(ArgumentError, match="^ramp:"):
        LabelDenoising(Path("none"), ramp="quadratic")


def test_denoising_takes_labels_from_one_modality_alone() -> None:
    torch.manual_seed(0)
    denoising = LabelDenoising(Path("none"))
    task = AVVP(Given(), CLASSES, 4, 0, JoMoLD, term_weights={"audio": 2.0}, denoising=denoising, presence="own")
    task._trainer = SimpleNamespace(
        fit_loop=SimpleNamespace(batch_idx=0), num_training_batches=1, current_epoch=5, world_size=1
    )
    batch = {
        "audio": torch.randn(6, 4, AUDIO),
        "tokens": torch.randn(6, 4, 1, VISUAL),
        "labels": torch.ones(6, CLASSES),
    }
    outputs, whole = task.train()(batch), torch.ones(CLASSES, dtype=torch.float64)
    denoising.audio_share, denoising.visual_share = 0 * whole, 0 * whole
    before = task.losses(outputs, batch)
    assert before.keys() == {"contrast", "video", "audio", "visual"}
    single = losses.multi_label(outputs["audio_video_prob"], batch["labels"])
    assert torch.isclose(before["audio"], 2 * single)
    denoising.visual_share = whole  # every label is both: among the worst of sight, and the best of sound
    after = task.losses(outputs, batch)
    expected = losses.cross_entropy_of_probability(outputs["visual_video_prob"], torch.zeros(6, CLASSES))
    assert torch.isclose(after["visual"], expected) and not torch.isclose(after["visual"], before["visual"])
    assert all(torch.equal(after[name], before[name]) for name in ("audio", "video", "contrast"))
    assert task.eval()(batch).keys() == outputs.keys() - {"audio_alone_prob", "visual_alone_prob"}
    for wrong, name in (
        ({"head": HAN, "denoising": denoising}, "denoising"),
        ({"head": partial(JoMoLD, across=False), "denoising": denoising}, "denoising"),
        ({"presence": "joint"}, "presence"),
    ):
        with pytest.raises(ArgumentError, match=f"^{name}:"):
            AVVP(Given(), CLASSES, 4, 0, **wrong)
    with pytest.raises(ArgumentError, match=r"^term_weights: got \['sound'\]"):
        AVVP(Given(), CLASSES, 4, 0, HAN, term_weights={"sound": 1.0}).losses(outputs, batch)


def test_presence_by_the_own_modality() -> None:
    """JoMoLD's evaluation: what is heard needs the video's probability by sound alone."""
    outputs = {f"{kind}_prob": torch.ones(1, 2, 1) for kind in ("audio", "visual")}
    outputs |= {
        "video_prob": torch.ones(1, 1),
        "audio_video_prob": torch.ones(1, 1),
        "visual_video_prob": torch.zeros(1, 1),
    }
    batch = {"audio_target": torch.ones(1, 2, 1), "visual_target": torch.ones(1, 2, 1)}
    for presence, score in (("both", 1.0), ("own", 0.0)):
        task = AVVP(Given(), 1, 2, 0, HAN, presence=presence)
        task.update_metrics(outputs, batch)
        found = task.compute_metrics()
        assert float(found["segment_audio"]) == 1 and float(found["segment_visual"]) == score
        assert bool(task.decisions(outputs)["prediction_visual"].all()) is (presence == "both")


#: the same for ST-AVQA, on features of VGGish and 196 positions of ResNet-18
ST_AVQA = {
    "answer": [0.069224, -0.036474, 0.064018, 0.06205, 0.000457, 0.15622, -0.119915, -0.029651],
    "match_positive": [-0.153716, -0.044319, -0.146341, -0.039632, -0.121005, -0.212814, -0.236766, -0.108721],
    "match_negative": [-0.147457, -0.066775, -0.148206, -0.034248, -0.131943, -0.192982, -0.240613, -0.114693],
}


def test_question_answering_equals_the_authors() -> None:
    generator = torch.Generator().manual_seed(0)
    audio = torch.randn(2, 10, 128, generator=generator, dtype=torch.float64).relu()
    positive, negative = (
        torch.randn(2, 10, 196, 512, generator=generator, dtype=torch.float64).relu() for _ in range(2)
    )
    question = torch.randint(93, (2, 14), generator=generator)
    task = AVQA(PublishedFeatures("ResNet-18"), 42, 93).double().eval()
    assert sum(parameter.numel() for parameter in task.head.parameters()) == 7_916_716
    task.head.load_state_dict({key: draw(key, value.shape) for key, value in task.head.state_dict().items()})
    with torch.no_grad():
        outputs = task.head(audio, positive, question, negative)
    for output, values in ST_AVQA.items():
        found = outputs[output].flatten()[:: max(1, outputs[output].numel() // 8)][:8]
        assert (found - torch.tensor(values, dtype=torch.float64)).abs().max() < 2e-6, output
    batch = {
        "id": ["a", "b"],
        "audio_features": audio,
        "visual_features": positive,
        "question": question,
        "negative_features": negative.float(),
    }
    with torch.no_grad():
        whole = task.float()(batch)
    assert torch.allclose(whole["match_negative"].double(), outputs["match_negative"], atol=1e-4)


def test_the_question_alone_is_a_baseline() -> None:
    batch = {
        "audio_features": torch.rand(2, 3, 128),
        "visual_features": torch.rand(2, 3, 4, 512),
        "question": torch.tensor([[1, 2, 0], [3, 4, 5]]),
        "answer": torch.tensor([1, 0]),
    }
    task = AVQA(PublishedFeatures("ResNet-18"), 5, 9, inputs="question").eval()
    before = task(batch)
    assert torch.equal(before["answer"], task({**batch, "visual_features": batch["visual_features"] + 1})["answer"])
    loss, terms = task.total_loss(before, batch)
    loss.backward()
    assert set(terms) == {"answer"} and all(own.grad is not None for own in task.parameters())
    with pytest.raises(ArgumentError, match="grounding: .*inputs: question"):
        AVQA(PublishedFeatures("ResNet-18"), 5, 9, inputs="question", grounding=Path("best.ckpt"))


#: name -> head, whose loss terms besides those on the video's labels
PARSERS: dict[str, tuple[Callable[..., nn.Module] | None, set[str]]] = {
    "HAN": (HAN, set()),
    "VALOR+": (partial(HAN, heads=4, hidden=64, in_turn=True, width=32, layers=4), set()),
    "JoMoLD": (JoMoLD, {"contrast"}),
    "JoMoLD, estimator": (partial(JoMoLD, across=False), {"contrast"}),
    "MM-Pyramid": (MMPyramidParsing, set()),
    "MGN": (None, {"audio_tokens", "visual_tokens"}),
}


#: the same for AVSBench's own decoder
AVSBENCH = {
    "masks": [-0.359436, -1.026056, -1.500869, -1.073501, -1.095498, 0.386395, -0.269219, -1.042629],
    "matched_visual": [0.077366, 0.048325, 0.048976, 0.077288, 0.003766, 0.045271, 0.154361, 0.212035],
    "matched_audio": [-0.149173, 0.600293, 1.032612, -0.725864, -0.899605, 0.50569, -0.895862, -0.251652],
}


@pytest.mark.parametrize("name", PARSERS)
def test_parsing_heads_learn_from_labels_of_the_video(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head learns eight videos; a video's outputs depend on no other; any number of segments; finite in bfloat16."""
    for path, value in (("mm_pyramid.WIDTH", 32), ("mgn.WIDTH", 32), ("mgn.DROP_PATH", 0.0)):
        monkeypatch.setattr(f"avprompt.heads.{path}", value)
    head, more = PARSERS[name]
    generator = torch.Generator().manual_seed(0)
    batch = {
        "audio": torch.randn(8, 4, AUDIO, generator=generator),
        "tokens": torch.randn(8, 4, 1, VISUAL, generator=generator),
        "video_features": torch.randn(8, 4, 6, generator=generator),
        "labels": (torch.rand(8, CLASSES, generator=generator) > 0.5).float(),
    }
    torch.manual_seed(0)
    task = AVVP(Given(), CLASSES, 4, 6, head, smoothing=1.0)
    for part in task.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    rate = 3e-4 if head in (HAN, JoMoLD) or "estimator" in name else 3e-3
    optimizer = torch.optim.Adam(task.parameters(), rate, fused=True)
    for _ in range(100):
        outputs = task.train()(batch)
        loss, terms = task.total_loss(outputs, batch)
        if all(((outputs[kind] > 0.5) == (batch["labels"] > 0.5)).all() for kind in ("video_prob", "audio_video_prob")):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    outputs = task.eval()(batch)
    assert set(terms) == {"video", "audio", "visual", *more}
    assert ((outputs["video_prob"] > 0.5) == (batch["labels"] > 0.5)).all()
    alone = task({kind: value[2:3] for kind, value in batch.items()})
    apart = [kind for kind in outputs if not kind.endswith("token_logits")]
    assert all(torch.allclose(outputs[kind][2:3], alone[kind], atol=1e-5) for kind in apart)
    longer = {
        kind: value.repeat(1, 3, *[1] * (value.ndim - 2))[:, :10] for kind, value in batch.items() if value.ndim > 2
    }
    assert name == "MGN" or task(longer)["visual_prob"].shape == (8, 10, CLASSES)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.isfinite(value).all() for value in task(batch).values())
    with pytest.raises(ShapeError, match="video_features.*video_dim 0"):
        task({kind: value for kind, value in batch.items() if kind != "video_features"})


def test_segmentation_equals_avsbench() -> None:
    """Their decoder on maps of smaller frames, with the in-place ReLU that changes what the loss of MS3 compares."""
    grids = (16, 8, 4, 2)
    specs = [BlockSpec(dim, (size, size), place) for place, (dim, size) in enumerate(zip((64, 128, 320, 512), grids))]
    head = AVSDecoder(128, specs, 64, (0.0, 0.0), matching=True, dilated=True, project=False).double().eval()
    state = {key: draw(key.replace(".bn.", ".norm."), value.shape) for key, value in head.state_dict().items()}
    state = {key: value.abs() + 0.5 if key.endswith("running_var") else value for key, value in state.items()}
    head.load_state_dict({key: value for key, value in state.items() if value.ndim}, strict=False)
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, 5, spec.tokens, spec.dim, generator=generator, dtype=torch.float64) for spec in specs]
    with torch.no_grad():
        outputs = head(torch.randn(1, 5, 128, generator=generator, dtype=torch.float64), maps)
    for output, values in AVSBENCH.items():
        found = outputs[output].flatten()[:: outputs[output].numel() // 8][:8]
        assert (found - torch.tensor(values, dtype=torch.float64)).abs().max() < 2e-6, output


def test_question_answering_learns_eight_questions() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = {
        "id": [str(place) for place in range(8)],
        "audio_features": torch.randn(8, 2, 128, generator=generator),
        "visual_features": torch.randn(8, 2, 4, 512, generator=generator),
        "question": torch.randint(9, (8, 3), generator=generator),
        "answer": torch.arange(8) % 5,
    }
    torch.manual_seed(0)
    task = AVQA(PublishedFeatures("ResNet-18"), 5, 9)
    optimizer = torch.optim.Adam(task.parameters(), 3e-4, fused=True)
    for _ in range(40):
        outputs = task.train()(batch)
        if (outputs["answer"].argmax(-1) == batch["answer"]).all():
            break
        optimizer.zero_grad()
        task.total_loss(outputs, batch)[0].backward()
        optimizer.step()
    outputs = task.eval()(batch)
    assert (outputs["answer"].argmax(-1) == batch["answer"]).all()
    alone = task({kind: value[2:3] for kind, value in batch.items()})
    assert torch.allclose(outputs["answer"][2:3], alone["answer"], atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(task(batch)["answer"]).all()


def test_the_released_pyramid_exchanges_the_modalities() -> None:
    audio, visual = torch.randn(2, 4, AUDIO), torch.randn(2, 4, VISUAL)
    one, other = (MMPyramidParsing(AUDIO, VISUAL, CLASSES, 4, 0, exchanged=flag).eval() for flag in (False, True))
    other.load_state_dict(one.state_dict())
    one, other = one(audio, visual), other(audio, visual)
    assert torch.equal(one["audio_prob"], other["visual_prob"]) and torch.equal(one["visual_prob"], other["audio_prob"])
    assert torch.allclose(one["video_prob"], other["video_prob"], atol=1e-6)


# --- every head


@pytest.mark.parametrize(
    ("name", "weak"), [(name, weak) for name, weak in FORMS if not weak or name not in ("MM-Pyramid", "CMAN", "DMRN")]
)
def test_shapes_batches_and_paths(name: str, weak: bool) -> None:
    """Any number of segments and positions; a clip's outputs do not depend on others; no parameter is dead."""
    for segments, positions in ((4, 1), (10, 36), (4, 49)):
        head = build(name, weak) if name != "RFJC" else build(name, segments=segments)
        audio, visual = features(3, segments, positions)
        outputs = head(audio, visual)
        kinds = {
            "segments": (3, segments, CLASSES + 1),
            "clip": (3, CLASSES + 1),
            "is_event": (3, segments),
            "event": (3, CLASSES + weak),
            "similarity": (3, segments),
            "gate": (3, segments),
            "video_scores": (3, CLASSES),
        }
        assert {key: tuple(value.shape) for key, value in outputs.items()} == {key: kinds[key] for key in outputs}
        assert ("segments" in outputs) is not ("event" in outputs) and ("clip" in outputs) is weak
        alone = head(audio[1:2], visual[1:2])
        for key, value in outputs.items():
            assert (value[1:2] - alone[key]).abs().max() < 1e-5, key
    generator = torch.Generator().manual_seed(3)
    sum((value * torch.randn(value.shape, generator=generator)).sum() for value in outputs.values()).backward()
    assert not [key for key, own in head.named_parameters() if own.grad is None]


@pytest.mark.parametrize("name", HEADS)
def test_half_precision_is_finite(name: str) -> None:
    audio, visual = features()
    head = build(name, HEADS[name][1])
    with torch.autocast("cpu", torch.bfloat16):
        outputs = head(10 * audio, 10 * visual)
    sum(value.float().sum() for value in outputs.values()).backward()
    assert all(torch.isfinite(value).all() for value in outputs.values())
    assert all(torch.isfinite(own.grad).all() for own in head.parameters())


class Given(FeatureSource):
    """Features as they stand in the batch."""

    visual_dim, audio_dim, batch_keys = VISUAL, AUDIO, ("audio", "tokens")

    def forward(self, batch: dict[str, Any], prompted: bool = True, maps: bool = False) -> AVFeatures:
        tokens = batch["tokens"]
        return AVFeatures(tokens.mean(2), batch["audio"], tokens, batch["audio"].unsqueeze(2), [])

    @property
    def visual_spec(self) -> Any:
        return PublishedFeatures().visual_spec


def clips(count: int = 8, seed: int = 1) -> dict[str, Any]:
    """Clips with an event in some of their four segments; the features say which."""
    audio, tokens = features(count, 4, 2, seed)
    generator = torch.Generator().manual_seed(seed)
    category = torch.arange(count) % CLASSES
    active = torch.rand(count, 4, generator=generator) > 0.4
    active[:, 0] = True
    event = torch.zeros(count, 4, CLASSES + 1)
    event[torch.arange(count)[:, None], torch.arange(4), torch.where(active, category[:, None], CLASSES)] = 1
    return {
        "id": [str(k) for k in range(count)],
        "audio": audio,
        "tokens": tokens,
        "event": event,
        "category": category,
    }


def accuracy(task: AVEClassic, batch: dict[str, Any]) -> float:
    task.eval()
    with torch.no_grad():
        found = task.decisions(task(batch))["prediction"]
    return float((found == batch["event"].argmax(-1)).float().mean())


@pytest.mark.parametrize("name", HEADS)
def test_a_head_overfits_eight_clips(name: str) -> None:
    torch.manual_seed(0)
    task, batch = AVEClassic(Given(), HEADS[name][0], CLASSES), clips()
    for part in task.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    rate = {"MM-Pyramid": 3e-4, "CMBS": 3e-4, "CMRAN": 3e-4, "RFJC": 1e-3}.get(name, 3e-3)
    optimizer = torch.optim.Adam(task.parameters(), rate, fused=True)
    for step in range(120):
        if step % 5 == 0 and accuracy(task, batch) == 1:
            break
        loss, _ = task.train().total_loss(task(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
    assert accuracy(task, batch) == 1


@pytest.mark.parametrize(
    ("name", "loss"), [("AVEL", "released"), *((name, "cross_entropy") for name, weak in FORMS if weak)]
)
def test_weak_labels_say_nothing_of_times(name: str, loss: str) -> None:
    """The loss reads no label of a segment: others, or none, change neither it nor what is predicted."""
    task, batch = AVEClassic(Given(), HEADS[name][0], CLASSES, supervision="weak", loss=loss).eval(), clips()
    outputs = task(batch)
    before, terms = task.total_loss(outputs, batch)
    moved = {**batch, "event": batch["event"].flip(1).roll(1, -1)}
    without = {key: value for key, value in batch.items() if key != "event"}
    for other in (moved, without):
        assert torch.equal(task.total_loss(task(other), other)[0], before)
        assert torch.equal(task.decisions(task(other))["prediction"], task.decisions(outputs)["prediction"])
    assert set(terms) == {"clip"}
    changed = {**batch, "category": batch["category"].roll(1)}
    assert task.total_loss(outputs, changed)[0] != before
    full = AVEClassic(Given(), HEADS[name][0], CLASSES).eval()
    assert full.total_loss(full(moved), moved)[0] != full.total_loss(full(batch), batch)[0]


def test_weak_labels_are_refused_where_no_form_is_known() -> None:
    for head in (DAM, RFJC):
        with pytest.raises(ArgumentError, match=f"supervision: got weak, with {head.__name__}"):
            AVEClassic(Given(), head, CLASSES, supervision="weak")


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: AVEClassic(Given(), AVEL, CLASSES, supervision="weakly"), "supervision"),
        (lambda: AVEClassic(Given(), AVEL, CLASSES, loss="as released"), "loss"),
        (lambda: AVELinear(Given(), CLASSES, loss="bce"), "loss"),
        (lambda: AVQA(Given(), 5, 9, inputs="questions"), "inputs"),
        (lambda: AVEL(AUDIO, VISUAL, CLASSES, fusion="sum"), "fusion"),
        (lambda: AudioGuidedAttention(AUDIO, VISUAL, "authors"), "variant"),
        (lambda: AVVP(Given(), CLASSES, 4, 0, HAN, gate_audio=True), "gate_audio"),
    ],
)
def test_what_would_act_as_another_value_is_refused(build: Callable[[], object], name: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{name}: got "):
        build()


# --- parts and switches


def test_released_attention_equals_a_loop_over_positions() -> None:
    audio, visual = features(1, 2, 49)
    attention = AudioGuidedAttention(AUDIO, VISUAL, "released")
    found = attention(audio, visual)
    for segment in range(2):
        seen = attention.from_visual(torch.relu(attention.visual(visual[0, segment])))  # (position, unit)
        heard = attention.from_audio(torch.relu(attention.audio(audio[0, segment])))
        scores = [attention.score(torch.tanh(seen[n] + heard[n])) for n in range(49)]  # one number for all its units
        expected = torch.cat(scores).softmax(0) @ visual[0, segment]
        assert torch.allclose(found[0, segment], expected, atol=1e-6)
    for positions in (1, 36):
        with pytest.raises(ShapeError, match=f"{positions} positions; expected 49.*variant: paper"):
            attention(*features(1, 2, positions))


def test_attention_of_the_paper_has_no_favourite_positions() -> None:
    audio, visual = features(2, 3, 49)
    order = torch.randperm(49, generator=torch.Generator().manual_seed(2))
    for attention, moves in (
        (AudioGuidedAttention(AUDIO, VISUAL), False),
        (AudioGuidedAttention(AUDIO, VISUAL, "released"), True),
    ):
        one, other = attention(audio, visual), attention(audio, visual[:, :, order])
        assert torch.allclose(one, other, atol=1e-6) is not moves
    guided = SpatialChannelAttention(AUDIO)
    wide = torch.rand(2, 3, 49, 512)
    assert torch.allclose(guided(audio, wide), guided(audio, wide[:, :, order]), atol=1e-5)


def test_rows_of_links_sum_to_one_or_are_empty() -> None:
    similarity = torch.rand(4, 10, 10, generator=torch.Generator().manual_seed(0))
    similarity[0, 3] = 0
    rows = positive_links(similarity, 0.099).sum(-1)
    assert torch.allclose(rows[rows > 0], torch.ones(int((rows > 0).sum())), atol=1e-5) and rows[0, 3] == 0
    assert (positive_links(similarity, 0.099) > 0).sum() < (similarity > 0).sum()
    assert (positive_links(similarity, 0.099, renormalise=False).sum(-1) < 1).all()


def test_another_number_of_segments_is_refused_where_layers_are_sized_to_it() -> None:
    with pytest.raises(ShapeError, match="segments: got 5; expected 4, which RFJC was built for"):
        build("RFJC")(*features(1, 5, 2))


def test_a_second_sigmoid_makes_every_segment_an_event() -> None:
    audio, visual = features(8)
    honest, released = (CMBSAlone(AUDIO, VISUAL, CLASSES, True, double_sigmoid=twice).eval() for twice in (False, True))
    with torch.no_grad():
        for gate in (honest.audio_gate, honest.visual_gate):
            gate.weight.mul_(20)
    released.load_state_dict(honest.state_dict())
    assert (released(audio, visual)["is_event"] > 0).all()
    one, other = honest(audio, visual), released(audio, visual)
    assert torch.allclose(one["is_event"].sigmoid(), other["is_event"], atol=1e-5)
    assert torch.equal(one["clip"], other["clip"]) and (one["is_event"] < 0).any()


def test_terms_and_their_weights() -> None:
    batch = clips()
    for head, weights, terms in (
        (PSP, {"similarity_weight": 7.0}, {"segment", "similarity"}),
        (DAM, {"relevance_weight": 0.5}, {"segment", "event"}),
        (CMBSAlone, {}, {"segment", "event", "gate", "video"}),
    ):
        plain, task = (
            AVEClassic(Given(), head, CLASSES, similarity_weight=1.0).eval(),
            AVEClassic(Given(), head, CLASSES, **weights).eval(),
        )
        task.load_state_dict(plain.state_dict())
        found, expected = task.losses(task(batch), batch), plain.losses(plain(batch), batch)
        assert set(found) == terms
        changed = {name for name in terms if not torch.isclose(found[name], expected[name])}
        assert changed == {"similarity_weight": {"similarity"}, "relevance_weight": {"segment"}}.get(
            next(iter(weights), ""), set()
        )


def test_released_loss_is_that_of_probabilities() -> None:
    batch = clips()
    task = AVEClassic(Given(), AVEL, CLASSES, loss="released")
    outputs = task(batch)
    expected = nn.MultiLabelSoftMarginLoss()(outputs["segments"].softmax(-1), batch["event"])
    assert torch.isclose(task.losses(outputs, batch)["segment"], expected)
    assert torch.isclose(losses.softmax_margin(outputs["segments"], batch["event"]), expected)


def test_taught_segments_take_the_place_of_two_terms_on_the_video() -> None:
    """VALOR: the video's labels on what both say, and labels of segments on what each says of a segment."""
    task = AVVP(Given(), CLASSES, 4, 0, HAN, supervision="taught").train()
    probs = {name: torch.rand(2, 4, CLASSES) for name in ("audio_prob", "visual_prob")}
    outputs = {**probs, **{f"{name}video_prob": torch.rand(2, CLASSES) for name in ("", "audio_", "visual_")}}
    labels = {f"taught_{kind}": torch.randint(2, (2, 4, CLASSES)).float() for kind in ("audio", "visual")}
    batch = {"labels": torch.eye(CLASSES)[:2], **labels}
    found = task.losses(outputs, batch)
    assert found.keys() == {"video", "audio_segments", "visual_segments"}
    for kind in ("audio", "visual"):
        expected = torch.nn.functional.binary_cross_entropy(probs[f"{kind}_prob"], labels[f"taught_{kind}"])
        assert torch.isclose(found[f"{kind}_segments"], expected)
    with pytest.raises(ArgumentError, match="^supervision:"):
        task.losses(outputs, {"labels": batch["labels"]})
    assert task.eval().losses(outputs, {"labels": batch["labels"]}).keys() == {"video"}  # evaluation has none
    for build, name in (
        (lambda: AVVP(Given(), CLASSES, 4, 0, HAN, supervision="segments"), "supervision"),
        (lambda: HAN(4, 8, 3, heads=3), "heads, hidden, layers"),
        (lambda: HAN(4, 8, 3, hidden=0), "heads, hidden, layers"),
        (lambda: HAN(4, 8, 3, layers=0), "heads, hidden, layers"),
    ):
        with pytest.raises(ArgumentError, match=f"^{name}:"):
            build()
