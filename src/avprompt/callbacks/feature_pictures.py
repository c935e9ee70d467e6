"""What prompts do to features: t-SNE with and without them, frequency maps over spectrograms, temporal gates over time.

`avprompt visualize --features` runs a trained network over the test split and draws

- `features/tsne.png`: every event of every clip as a point, its features averaged over its seconds, as figure 5 of the
  DG-SCT paper: frozen encoders above, prompted ones below, vision left, sound right, with silhouette scores;
- `features/classes.png`: each category's mean spectrogram, where the network listens in it, and the gates inside and
  outside of its events;
- `features/clips/<id>.png`: frames with spatial maps, spectrogram with frequency map, gates and annotation of single
  clips.

The same pictures go to TensorBoard; `features/events.csv` and `features/silhouette.json` hold the numbers.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.encoders.base import FrozenEncoder
from avprompt.encoders.plain_vit import ViTSpectrogram
from avprompt.encoders.htsat import HTSAT
from avprompt.errors import ArgumentError, ConfigError
from avprompt.heads.temporal import TemporalGate
from avprompt.methods import NoPrompts
from avprompt.methods.dgsct import PaperTemporalGate
from avprompt.plots.timeline import bare, category_colour, draw_frames, heat, runs

MODALITIES = ("visual", "audio")
COLUMNS = 32  # of a frequency map, a second
#: name of a gate's module -> modality that it is read from; the paper's are named after the modality that they open on
GATES = ({"audio": "from sound", "audio_gate": "from sound", "visual": "from vision", "visual_gate": "from vision"},
         {"visual_gate": "from sound", "audio_gate_rnn": "from vision"})
GATE_COLOURS = ("#3b6ea5", "#c65d21", "#2f8f5b", "#8a4fa3", "#7a6a2f", "#666666")


def events(batch: dict[str, Any]) -> dict[str, Tensor] | None:
    """Which category is seen and heard when: (B, T, C) bool for both modalities, `None` where the batch does not say.

    From `event` (AVE), `audio_target` and `visual_target` (LLP), or `label` (a category a clip).
    """
    if "event" in batch:
        both = batch["event"][..., :-1] > 0.5
        return dict.fromkeys(MODALITIES, both)
    if "audio_target" in batch:
        return {name: batch[f"{name}_target"] > 0.5 for name in MODALITIES}
    if "label" in batch:
        label = F.one_hot(batch["label"].long()).bool()
        return dict.fromkeys(MODALITIES, label[:, None].expand(-1, batch["valid"].shape[1], -1))
    return None


def spectrogram(encoder: FrozenEncoder, waveform: Tensor) -> Tensor | None:
    """What an audio encoder sees of segments (B, T, S): (B, T, bands, frames), low bands first; `None` if unknown."""
    segments = waveform.flatten(0, 1)
    if isinstance(encoder, HTSAT):
        bands = encoder.log_mel(segments, 1)[:, 0].transpose(1, 2)
    elif isinstance(encoder, ViTSpectrogram):
        bands = encoder.fbank(segments)[:, 0]
    else:
        return None
    return bands.unflatten(0, waveform.shape[:2])


def frequency_map(encoder: FrozenEncoder, attention: Tensor) -> Tensor:
    """An audio map (B, T, rows, columns) over an encoder's tokens -> over bands and time of one segment, (B, T, bands,
    32).

    HTS-AT repeats a segment and folds its spectrogram into a square (`HTSAT.fold`): unfolded here, repetitions
    averaged. Maps of other encoders lie over bands and time already.
    """
    shape, maps = attention.shape, attention.flatten(0, 1)[:, None].float()
    if not isinstance(encoder, HTSAT):
        return F.interpolate(maps, (shape[2], COLUMNS), mode="bilinear")[:, 0].unflatten(0, shape[:2])
    size, chunks, repeats = encoder.spec_size, encoder.freq_ratio, encoder.repeat or shape[1]
    square = F.interpolate(maps, (size, size), mode="nearest-exact")[:, 0]
    unfolded = square.unflatten(1, (chunks, size // chunks)).transpose(1, 2).flatten(2)  # bands, all repetitions
    once = F.interpolate(unfolded[:, None], (size // chunks, repeats * COLUMNS), mode="area")[:, 0]
    return once.unflatten(2, (repeats, COLUMNS)).mean(2).unflatten(0, shape[:2])


def silhouette(features: np.ndarray, labels: Sequence[int]) -> float | None:
    """Mean silhouette coefficient by cosine distance in [-1, 1]; `None` with one category or each point its own."""
    from sklearn.metrics import silhouette_score

    if not 1 < len(set(labels)) < len(labels):
        return None
    return float(silhouette_score(features, labels, metric="cosine"))


def embed(features: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE by cosine distance, (N, C) -> (N, 2)."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, max(1.0, (len(features) - 1) / 3))
    return TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=seed).fit_transform(features)


def tsne_figure(panels: dict[str, tuple[np.ndarray, Sequence[int], float | None]],
                class_names: Sequence[str]) -> Figure:
    """Points in panels, two a row, one colour a category.

    Args:
        panels: title -> points (N, 2), categories (N,), silhouette score of the features themselves.
        class_names: of the categories.
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
                handles[label] = axis.scatter(chosen[:, 0], chosen[:, 1], s=22, color=category_colour(label),
                                              edgecolor="white", linewidth=0.4)
        axis.set_title(f"{title}: silhouette {'undefined' if score is None else f'{score:.3f}'}", fontsize=11)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.legend([handles[label] for label in present], [class_names[label] for label in present],
                  loc="outside lower center", ncols=min(6, len(present)), frameon=False, fontsize=9)
    return figure


def _sound(axis: Any, pixels: Tensor, seconds: float, attention: Tensor | None = None) -> None:
    """A spectrogram (bands, frames) over seconds, low bands below, and a map (bands, columns) in [0, 1] over it."""
    bands = len(pixels)
    place = {"origin": "lower", "aspect": "auto", "extent": (0, seconds, 0, bands)}
    axis.imshow(pixels.numpy(), cmap="gray" if attention is not None else "magma", **place)
    if attention is not None:
        axis.imshow(attention.numpy(), cmap="inferno", vmin=0, vmax=1, alpha=0.6, interpolation="bilinear", **place)
    axis.set_yticks([])


def clip_features_figure(frames: Tensor, gates: dict[str, Tensor], class_names: Sequence[str],
                         truth: dict[str, Tensor] | None = None, sound: Tensor | None = None,
                         spatial: Tensor | None = None, frequencies: Tensor | None = None,
                         valid: Tensor | None = None, title: str = "") -> Figure:
    """A clip, second by second: frames with spatial maps, spectrogram, frequency map over it, gates, annotation.

    Args:
        frames: (T, 3, H, W) in [0, 1].
        gates: name -> (T,) in [0, 1].
        class_names: of the categories.
        truth: what is seen and heard, (T, C) bool each; drawn below the gates.
        sound: (T, bands, frames), spectrogram, drawn less each band's median; `None` leaves it and the frequency map
            out.
        spatial: (T, rows, columns), over the frames.
        frequencies: (T, bands, columns), over the spectrogram, on one scale for the whole clip.
        valid: (T,) bool; padding is drawn pale.
        title: of the picture.
    """
    count = len(frames)
    sounds = 0 if sound is None else 1 if frequencies is None else 2
    heights = [1.15, *[0.8] * sounds, *[0.9] * bool(gates), *[0.36] * len(truth or ())]
    figure = Figure(figsize=(1.25 * count + 1.5, 0.7 + 1.35 * sum(heights)), layout="constrained")
    figure.get_layout_engine().set(hspace=0.02, wspace=0.02)
    grid = figure.add_gridspec(len(heights), count, height_ratios=heights)
    draw_frames(figure, grid, frames, [True] * count if valid is None else valid.tolist(), spatial)
    row = 1
    if sound is not None:
        whole = sound.permute(1, 0, 2).flatten(1)
        whole = whole - whole.median(1, keepdim=True).values  # a band's steady level hides what happens in it
        for name, attention in (("spectrogram", None), ("listens here", frequencies)):
            if name == "spectrogram" or attention is not None:
                axis = figure.add_subplot(grid[row, :])
                over = None if attention is None else torch.from_numpy(
                    heat(attention, tuple(attention.shape[1:]))).permute(1, 0, 2).flatten(1)
                _sound(axis, whole, count, over)
                axis.set_xticks(range(count + 1), [""] * (count + 1))
                axis.set_ylabel(name, fontsize=9)
                row += 1
    if gates:
        axis = figure.add_subplot(grid[row, :])
        for (name, gate), colour in zip(gates.items(), GATE_COLOURS * len(gates)):
            axis.stairs(gate.numpy(), range(count + 1), color=colour, lw=2, label=name, baseline=None)
        axis.set_xlim(0, count)
        axis.set_ylim(-0.03, 1.03)
        axis.set_ylabel("gates", fontsize=9)
        axis.set_xticks(range(count + 1), [f"{second} s" for second in range(count + 1)], fontsize=8)
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
                    axis.axvspan(begin + 0.015, end - 0.015, low + 0.03, high - 0.03, lw=0,
                                 color=category_colour(category))
                    axis.text((begin + end) / 2, (low + high) / 2, class_names[category], ha="center", va="center",
                              fontsize=8, parse_math=False)
        axis.set_xticks([])
        bare(axis, count, name)
        row += 1
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


def classes_figure(class_names: Sequence[str], sounds: dict[int, Tensor], frequencies: dict[int, Tensor],
                   gates: dict[int, dict[str, tuple[list[float], list[float]]]]) -> Figure:
    """A line a category: mean spectrogram of its seconds, mean frequency map over it, and gates inside and outside.

    Args:
        class_names: of the categories.
        sounds: category -> (bands, frames); drawn less each band's mean over all categories.
        frequencies: category -> (bands, columns), drawn on one scale.
        gates: category -> gate -> its values in seconds with the category and in other seconds of the same clips.
    """
    shown = sorted({*sounds, *gates})
    columns = [name for name, found in (("mean spectrogram", sounds), ("listens here", frequencies),
                                        ("gates: in its events, pale: elsewhere", gates)) if found]
    figure = Figure(figsize=(1.5 + 3.2 * len(columns), 0.8 + 0.95 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), len(columns), squeeze=False)
    limits = [torch.stack(list(frequencies.values())).aminmax()] if frequencies else []
    if sounds:  # what a category's sound has and the others' have not
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
                            axis.barh(-place + offset, np.mean(values), 0.36, xerr=np.std(values), color=colour,
                                      alpha=alpha, error_kw={"lw": 0.8})
                axis.set_xlim(0, 1)
                axis.set_yticks([-place for place in range(len(found))], list(found), fontsize=8)
                if line + 1 == len(shown):
                    axis.set_xticks([0, 0.5, 1])
            elif category in sounds:
                over = None
                if name == "listens here" and category in frequencies:
                    (low, high), = limits
                    over = (frequencies[category] - low) / (high - low).clamp(min=1e-12)
                _sound(axis, sounds[category], 1.0, over)
    return figure


class FeaturePictures(Callback):
    """Draw features, frequency maps and gates at `avprompt visualize --features` (see the module).

    Args:
        max_clips: clips drawn at most, the first ones; t-SNE and categories take all.
        seed: of t-SNE.

    Raises:
        ArgumentError: a negative number of clips.
        ConfigError: from the run: the network has no prompts, the data say nothing of categories, or there is no
            logger.
    """

    def __init__(self, max_clips: int = 8, seed: int = 0) -> None:
        if max_clips < 0:
            raise ArgumentError("max_clips", max_clips, "0 or more", "0 draws none.")
        self.max_clips, self.seed = max_clips, seed

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to the backbone and to every temporal gate."""
        if isinstance(pl_module.backbone.prompts, NoPrompts):
            raise ConfigError("model.init_args.backbone.init_args.prompts", "NoPrompts", "a prompt method",
                              "There is nothing to compare the frozen features with.")
        if trainer.log_dir is None:
            raise ConfigError("trainer.logger", "none", "a logger, whose folder takes the pictures",
                              "Use lightning_configs/logger/tensorboard.yaml.")
        self.folder = Path(trainer.log_dir) / "features"
        (self.folder / "clips").mkdir(parents=True, exist_ok=True)
        self.points: dict[tuple[str, str], list[tuple[str, int, Tensor]]] = {}
        self.sounds: dict[int, list[Tensor]] = {}
        self.listened: dict[int, list[Tensor]] = {}
        self.gated: dict[int, dict[str, tuple[list[float], list[float]]]] = {}
        self.drawn = 0
        self.inputs: list[tuple] = []
        self.gates: dict[str, Tensor] = {}
        self.handles = [pl_module.backbone.register_forward_pre_hook(lambda module, args: self.inputs.append(args))]
        for name, module in pl_module.named_modules():
            if isinstance(module, (TemporalGate, PaperTemporalGate)):
                title = GATES[type(module) is PaperTemporalGate].get(name.rpartition(".")[2], name)
                self.handles.append(module.register_forward_hook(self._listen(title)))

    def _listen(self, title: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            gate = output[2] if isinstance(module, TemporalGate) else output
            self.gates[title] = gate.detach().float().cpu().flatten()

        return hook

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int,
                               dataloader_idx: int = 0) -> None:
        """Forget the batch before."""
        self.inputs, self.gates = [], {}

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any],
                             batch_idx: int, dataloader_idx: int = 0) -> None:
        """Walk the encoders twice more, with maps and without prompts, and collect."""
        truth = events(batch)
        if truth is None:
            raise ConfigError("data.class_path", type(trainer.datamodule).__name__,
                              "data that say which category is seen and heard, such as AVE or LLP",
                              "Without --features pictures of the clips are drawn.")
        backbone, shape = pl_module.backbone, batch["valid"].shape
        clips = self.inputs[0][0]
        gates = {name: gate.view(shape) for name, gate in self.gates.items()}
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            prompted, plain = backbone(clips, maps=True), backbone(clips, prompted=False)
            sound = spectrogram(backbone.audio, clips["audio"])
        maps = {name: value.float().cpu() for name, value in prompted.maps.items()}
        if "audio" in maps:
            maps["audio"] = frequency_map(backbone.audio, maps["audio"])
        sound = None if sound is None else sound.float().cpu()
        truth = {name: active.cpu() for name, active in truth.items()}
        for name in MODALITIES:
            for kind, found in (("frozen", plain), ("prompted", prompted)):
                self._collect(kind, name, batch["id"], getattr(found, name).float().cpu(), truth[name])
        for clip in range(shape[0]):
            heard = truth["audio"][clip]
            for category in heard.any(0).nonzero().flatten().tolist():
                inside = heard[:, category]
                if sound is not None:
                    self.sounds.setdefault(category, []).append(sound[clip][inside].mean(0))
                if "audio" in maps:
                    self.listened.setdefault(category, []).append(maps["audio"][clip][inside].mean(0))
                for name, gate in gates.items():
                    within, without = self.gated.setdefault(category, {}).setdefault(name, ([], []))
                    within += gate[clip][inside].tolist()
                    without += gate[clip][~inside].tolist()
            if self.drawn < self.max_clips:
                self._draw(trainer, batch, clip, truth, gates, sound, maps)
                self.drawn += 1

    def _collect(self, kind: str, name: str, ids: list[str], features: Tensor, truth: Tensor) -> None:
        for clip, clip_id in enumerate(ids):
            for category in truth[clip].any(0).nonzero().flatten().tolist():
                self.points.setdefault((kind, name), []).append(
                    (clip_id, category, features[clip][truth[clip][:, category]].mean(0)))

    def _draw(self, trainer: Trainer, batch: dict[str, Any], clip: int, truth: dict[str, Tensor],
              gates: dict[str, Tensor], sound: Tensor | None, maps: dict[str, Tensor]) -> None:
        data, seen, heard = trainer.datamodule, truth["visual"][clip], truth["audio"][clip]
        rows = {"event": heard} if torch.equal(truth["visual"], truth["audio"]) else {"seen": seen, "heard": heard}
        figure = clip_features_figure(
            data.normalise.undo(batch["frames"][clip].cpu().float()),
            {name: gate[clip] for name, gate in gates.items()}, data.class_names, rows,
            None if sound is None else sound[clip],
            maps["visual"][clip] if "visual" in maps else None, maps["audio"][clip] if "audio" in maps else None,
            batch["valid"][clip].cpu(), batch["id"][clip])
        self._save(trainer, f"clips/{batch['id'][clip][:200]}", figure)

    def _save(self, trainer: Trainer, name: str, figure: Figure) -> None:
        path = self.folder / f"{name}.png"
        figure.savefig(path, dpi=110)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                with Image.open(path) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                logger.experiment.add_image(f"features/{name}", pixels, 0, dataformats="HWC")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what needs all clips, write the numbers, and say what is where."""
        for handle in self.handles:
            handle.remove()
        names, panels, scores, rows = trainer.datamodule.class_names, {}, {}, []
        titles = {"visual": "vision", "audio": "sound", "frozen": "frozen encoder", "prompted": "prompted"}
        for kind in ("frozen", "prompted"):
            for name in MODALITIES:
                found = self.points[kind, name]
                features = torch.stack([point for _, _, point in found]).numpy()
                labels = [label for _, label, _ in found]
                points, score = embed(features, self.seed), silhouette(features, labels)
                panels[f"{titles[name]}, {titles[kind]}"] = points, labels, score
                scores[f"{kind}_{name}"] = score
                rows += [{"id": clip_id, "modality": name, "features": kind, "category": names[label],
                          "x": round(float(x), 4), "y": round(float(y), 4)}
                         for (clip_id, label, _), (x, y) in zip(found, points)]
        self._save(trainer, "tsne", tsne_figure(panels, names))
        means = [{category: torch.stack(values).mean(0) for category, values in found.items()}
                 for found in (self.sounds, self.listened)]
        if means[0] or self.gated:
            self._save(trainer, "classes", classes_figure(names, *means, self.gated))
        with (self.folder / "events.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        (self.folder / "silhouette.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        count = len(self.points["prompted", "audio"])
        print(f"features of {count} events in {self.folder}; silhouette by cosine distance: "
              + ", ".join(f"{name.replace('_', ' ')} {'undefined' if score is None else f'{score:.3f}'}"
                          for name, score in scores.items()))
