"""Pictures of features: planes of t-SNE and UMAP, a clip with its maps and gates, and the mean of each category."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from avprompt.errors import ConfigError
from avprompt.plots.timeline import bare, category_colour, category_marker, draw_frames, heat, is_flat, runs, scale

GATE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#666666")
GATE_DASHES = ("-", "--", "-.", ":")
#: points below which a plane tells little
FEW = 100
Kind = Literal["t-SNE", "UMAP"]


def silhouette(features: np.ndarray, labels: Sequence[int]) -> float | None:
    """Mean silhouette coefficient by cosine distance in [-1, 1]; `None` where it is not defined.

    Example:
        >>> silhouette(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]), [0, 0, 1, 1]) > 0.9
        True
    """
    from sklearn.metrics import silhouette_score

    if not 1 < len(set(labels)) < len(labels):
        return None
    return float(silhouette_score(features, labels, metric="cosine"))


def perplexity_of(count: int) -> float:
    """Perplexity of t-SNE for a number of points: 30, or a third of the points where these are few.

    Example:
        >>> perplexity_of(400), perplexity_of(10)
        (30.0, 3.0)
    """
    return min(30.0, max(1.0, (count - 1) / 3))


def neighbours_of(count: int) -> int:
    """Neighbours of UMAP for a number of points: 15, or fewer where there are not as many.

    Example:
        >>> neighbours_of(400), neighbours_of(10)
        (15, 9)
    """
    return max(2, min(15, count - 1))


def embed(features: np.ndarray, seed: int, kind: Kind = "t-SNE") -> np.ndarray:
    """Places in a plane by cosine distance, (N, C) -> (N, 2).

    Args:
        features: (N, C).
        seed: the same one gives the same places.
        kind: `UMAP` needs the package umap-learn.

    Raises:
        ConfigError: it is not installed.
    """
    if kind == "UMAP":
        try:
            from umap import UMAP
        except ImportError as error:
            raise ConfigError(
                "umap", f"no package umap-learn ({error})", "umap-learn", "Run `pip install 'avprompt[umap]'`."
            ) from error
        # a seed makes it run on one thread, which it says in a warning unless it is asked for
        placed = UMAP(n_neighbors=neighbours_of(len(features)), metric="cosine", random_state=seed, n_jobs=1)
        return placed.fit_transform(features)
    from sklearn.manifold import TSNE

    return TSNE(metric="cosine", init="pca", perplexity=perplexity_of(len(features)), random_state=seed).fit_transform(
        features
    )


def plane_figure(
    panels: Mapping[str, tuple[np.ndarray, Sequence[int], float | None]],
    class_names: Sequence[str],
    kind: Kind = "t-SNE",
) -> Figure:
    """Points in panels, two in each row; every category has its own colour and marker.

    Each title says how many points there are and with which perplexity or number of neighbours they were placed; below
    stands what such a plane does not show, and a caution where a panel has fewer than `FEW` points.

    Args:
        panels: title -> points (N, 2), categories (N,), silhouette score of the features themselves.
        class_names: of the categories.
        kind: what placed the points, see `embed`.
    """
    present = sorted({label for _, labels, _ in panels.values() for label in labels})
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(10, 4.4 * rows + 0.25 * (len(present) // 6 + 1)), layout="constrained")
    handles: dict[int, Any] = {}
    for place, (title, (points, labels, score)) in enumerate(panels.items()):
        axis = figure.add_subplot(rows, 2, place + 1)
        for label in present:
            chosen = points[np.asarray(labels) == label]
            if len(chosen):
                handles[label] = axis.scatter(
                    chosen[:, 0],
                    chosen[:, 1],
                    s=26,
                    color=category_colour(label),
                    marker=category_marker(label),
                    edgecolor="#333333",
                    linewidth=0.3,
                )
        axis.set_title(
            f"{title}: silhouette {'undefined' if score is None else f'{score:.3f}'}\n"
            f"n = {len(points)}, "
            + (
                f"perplexity {perplexity_of(len(points)):.3g}"
                if kind == "t-SNE"
                else f"{neighbours_of(len(points))} neighbours"
            ),
            fontsize=10,
        )
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_aspect("equal", "datalim")  # a distance is as long across as up
    few = min((len(points) for points, _, _ in panels.values()), default=0) < FEW
    figure.supxlabel(
        f"{kind} has no units: sizes of groups and distances between them mean nothing."
        + (
            f" Fewer than {FEW} points:\nthe picture depends on the seed more than on the features; judge by the "
            "silhouette "
            "of the features themselves."
            if few
            else ""
        ),
        fontsize=8.5,
        color="#B24A00" if few else "#555555",
    )
    legend = figure.legend(
        [handles[label] for label in present],
        [class_names[label] for label in present],
        loc="outside upper center",  # below stands the caution
        ncols=min(6, len(present)),
        frameon=False,
        fontsize=9,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _sound(axis: Any, pixels: Tensor, seconds: float, attention: Tensor | None = None) -> None:
    """Draw a spectrogram (bands, frames), low bands below, and a map (bands, columns) in [0, 1] over it."""
    bands = len(pixels)
    place = {"origin": "lower", "aspect": "auto", "extent": (0, seconds, 0, bands)}
    drawn, name = axis.imshow(pixels.numpy(), cmap="gray" if attention is not None else "magma", **place), "over median"
    if attention is not None:
        drawn, name = (
            axis.imshow(
                attention.numpy(),
                cmap="viridis",
                vmin=0,
                vmax=1,
                alpha=0.8 * attention.numpy(),
                interpolation="nearest",
                **place,
            ),
            "map",
        )
        drawn = ScalarMappable(Normalize(0, 1), "viridis")
    scale(axis, drawn, name)
    axis.set_yticks([0, bands], ["0", str(bands)], fontsize=7)


def clip_features_figure(
    frames: Tensor,
    gates: dict[str, Tensor],
    class_names: Sequence[str],
    truth: dict[str, Tensor] | None = None,
    sound: Tensor | None = None,
    spatial: Tensor | None = None,
    frequencies: Tensor | None = None,
    valid: Tensor | None = None,
    title: str = "",
    times: Tensor | None = None,
) -> Figure:
    """A clip, segment by segment: frames with spatial maps, spectrogram, frequency map over it, gates, annotation.

    Args:
        frames: (T, 3, H, W), uint8 or in [0, 1].
        gates: name -> (T,) in [0, 1].
        class_names: of the categories.
        truth: what is seen and heard, (T, C) bool each; drawn below the gates.
        sound: (T, bands, frames), spectrogram, drawn after subtracting each band's median; `None` leaves it and the
            frequency map out.
        spatial: (T, rows, columns), over the frames.
        frequencies: (T, bands, columns), over the spectrogram, on one scale for the whole clip.
        valid: (T,) bool; padding is drawn pale.
        title: of the picture.
        times: begin and end of each segment, (T, 2) in seconds; `None` counts segments from 0.
    """
    count = len(frames)
    marks = range(count + 1) if times is None else [*times[:, 0].tolist(), float(times[-1, 1])]
    sounds = 0 if sound is None else 1 if frequencies is None else 2
    pictures = 1 if spatial is None else 2
    heights = [*[1.15] * pictures, *[0.8] * sounds, *[0.9] * bool(gates), *[0.36] * len(truth or ())]
    figure = Figure(figsize=(1.25 * count + 1.5, 0.7 + 1.35 * sum(heights)), layout="constrained")
    figure.get_layout_engine().set(hspace=0.02, wspace=0.02)
    grid = figure.add_gridspec(len(heights), count, height_ratios=heights)
    decoded = [True] * count if valid is None else valid.tolist()
    draw_frames(figure, grid, frames, decoded)
    if spatial is not None:
        draw_frames(figure, grid, frames, decoded, spatial, row=1)
    row = pictures
    if sound is not None:
        whole = sound.permute(1, 0, 2).flatten(1)
        whole = whole - whole.median(1, keepdim=True).values  # the steady level of a band hides its events
        for name, attention in (("spectrogram", None), ("listens here", frequencies)):
            if name == "spectrogram" or attention is not None:
                axis = figure.add_subplot(grid[row, :])
                over = (
                    None
                    if attention is None
                    else torch.from_numpy(heat(attention, tuple(attention.shape[1:]))).permute(1, 0, 2).flatten(1)
                )
                _sound(axis, whole, count, over)
                axis.set_xticks(range(count + 1), [""] * (count + 1))
                flat = attention is not None and is_flat(attention)
                axis.set_ylabel(f"{name}{', the same everywhere' if flat else ''}\nmel band", fontsize=8)
                row += 1
    if sound is not None and not gates:
        axis.set_xticks(range(count + 1), [f"{mark:g} s" for mark in marks], fontsize=8)
    if gates:
        axis = figure.add_subplot(grid[row, :])
        for place, (name, gate) in enumerate(gates.items()):
            axis.stairs(
                gate.numpy(),
                range(count + 1),
                color=GATE_COLOURS[place % len(GATE_COLOURS)],
                lw=2,
                label=name,
                ls=GATE_DASHES[place % len(GATE_DASHES)],
                baseline=None,
            )
        axis.set_xlim(0, count)
        axis.set_ylim(-0.03, 1.03)
        axis.set_ylabel("gates", fontsize=9)
        axis.set_xticks(range(count + 1), [f"{mark:g} s" for mark in marks], fontsize=8)
        axis.grid(color="#dddddd", lw=0.6)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
        row += 1
    for name, active in (truth or {}).items():
        axis = figure.add_subplot(grid[row, :])
        axis.set_ylim(0, 1)
        present = active.any(0).nonzero().flatten().tolist()
        for place, category in enumerate(present):
            low, high = place / len(present), (place + 1) / len(present)
            for begin, end, on in runs(active[:, category].tolist()):
                if on:
                    axis.axvspan(
                        begin + 0.015, end - 0.015, low + 0.03, high - 0.03, lw=0, color=category_colour(category)
                    )
                    axis.text(
                        (begin + end) / 2,
                        (low + high) / 2,
                        class_names[category],
                        ha="center",
                        va="center",
                        fontsize=8,
                        parse_math=False,
                    )
        axis.set_xticks([])
        bare(axis, count, name)
        row += 1
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


def classes_figure(
    class_names: Sequence[str],
    sounds: dict[int, Tensor],
    frequencies: dict[int, Tensor],
    gates: dict[int, dict[str, tuple[list[float], list[float]]]],
) -> Figure:
    """A line for each category: mean spectrogram of its segments, mean frequency map over it, gates inside and outside.

    Args:
        class_names: of the categories.
        sounds: category -> (bands, frames); drawn after subtracting each band's mean over all categories.
        frequencies: category -> (bands, columns), drawn on one scale.
        gates: category -> gate -> its values in segments with the category and in other segments of the same clips.
    """
    shown = sorted({*sounds, *gates})
    columns = [
        name
        for name, found in (
            ("mean spectrogram", sounds),
            ("listens here", frequencies),
            ("gates: in its events, pale: elsewhere", gates),
        )
        if found
    ]
    figure = Figure(figsize=(1.5 + 3.2 * len(columns), 0.8 + 0.95 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), len(columns), squeeze=False)
    limits = [torch.stack(list(frequencies.values())).aminmax()] if frequencies else []
    if sounds:  # show what tells the sound of a category from the others
        usual = torch.stack(list(sounds.values())).mean((0, 2), keepdim=True)[0]
        sounds = {category: sound - usual for category, sound in sounds.items()}
    for line, category in enumerate(shown):
        for column, name in enumerate(columns):
            axis = axes[line][column]
            if column == 0:
                axis.set_ylabel(class_names[category], rotation=0, ha="right", va="center", parse_math=False)
            if line == 0:
                axis.set_title(name, fontsize=10)
            axis.set_xticks([])
            axis.set_yticks([])
            if name.startswith("gates"):
                found = gates.get(category, {})
                for place, (inside, outside) in enumerate(found.values()):
                    colour = GATE_COLOURS[place % len(GATE_COLOURS)]
                    for values, offset, alpha in ((inside, 0.2, 1.0), (outside, -0.2, 0.35)):
                        if values:
                            axis.barh(
                                -place + offset,
                                np.mean(values),
                                0.36,
                                xerr=np.std(values),
                                color=colour,
                                alpha=alpha,
                                error_kw={"lw": 0.8},
                            )
                axis.set_xlim(0, 1)
                axis.set_yticks([-place for place in range(len(found))], list(found), fontsize=8)
                if line + 1 == len(shown):
                    axis.set_xticks([0, 0.5, 1])
            elif category in sounds:
                over = None
                if name == "listens here" and category in frequencies:
                    ((low, high),) = limits
                    over = (frequencies[category] - low) / (high - low).clamp(min=1e-12)
                _sound(axis, sounds[category], 1.0, over)
    return figure


def tables_figure(
    values: np.ndarray,
    places: Sequence[tuple[str, int | str]],
    categories: Sequence[str],
    columns: Sequence[str],
    title: str,
) -> Figure:
    """Heat maps of numbers that a method gives for each block pair and clip, such as the weights of a router.

    Args:
        values: (rows, clips, K) in [0, 1]; where two columns sum to one, the first alone is drawn.
        places: of each row, what of the block pair it is of (equal ones follow each other) and the pair's number.
        categories: of each clip; equal ones follow each other.
        columns: names of the K columns.
        title: of the picture.
    """
    shown = range(1 if values.shape[-1] == 2 and np.allclose(values.sum(-1), 1, atol=1e-3) else values.shape[-1])
    figure = Figure(figsize=(2.8 + 4.2 * len(shown), max(3.2, 1.8 + 0.17 * len(places))), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    bounds = [place for place in range(1, len(categories)) if categories[place] != categories[place - 1]]
    starts = [0, *bounds, len(categories)]
    groups = [place for place in range(1, len(places)) if places[place][0] != places[place - 1][0]]
    for axis, column in zip(axes, shown):
        picture = axis.imshow(
            values[..., column], cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
        )
        axis.set_title(columns[column], fontsize=10, parse_math=False)
        for place in bounds:
            axis.axvline(place - 0.5, color="white", lw=0.8)
        for place in groups:
            axis.axhline(place - 0.5, color="white", lw=2.5)
        axis.set_xticks(
            [(low + high - 1) / 2 for low, high in itertools.pairwise(starts)],
            [categories[low] for low in starts[:-1]],
            rotation=90,
            fontsize=8,
            parse_math=False,
        )
        axis.set_xlabel("clips")
    edges = [0, *groups, len(places)]
    axes[0].set_yticks(range(len(places)), [str(number) for _, number in places], fontsize=7)
    for low, high in itertools.pairwise(edges):
        axes[0].annotate(
            places[low][0],
            (0, (low + high - 1) / 2),
            xytext=(-26, 0),
            textcoords="offset points",
            xycoords=("axes fraction", "data"),
            ha="right",
            va="center",
            fontsize=9,
        )
    figure.colorbar(picture, ax=list(axes), shrink=0.8, label="mean over segments")
    figure.suptitle(f"{title}: block pairs over clips", fontsize=11, parse_math=False)
    return figure
