"""How prompts change features: t-SNE with and without them, frequency maps over spectrograms, temporal gates over time.

`avprompt visualize --features` runs a trained network over the test split and draws

- `features/tsne.png`: every event of every clip as a point, its features averaged over its segments, as in figure 5 of
  the DG-SCT paper: frozen encoders above, prompted ones below, vision left, sound right, with silhouette scores;
- `features/umap.png`, where `umap` is asked for: the same points placed by UMAP;
- `features/classes.png`: the mean spectrogram of each category, the frequencies that the network attends to, and the
  gates inside and outside of its events;
- `features/clips/<id>.png`: frames with spatial maps, spectrogram with frequency map, gates and annotation of one clip;
- `features/<family>.png` for each family of the method's tables, such as the weights of AVMoE's routers: block pairs
  over clips.

The same pictures go to the loggers that take pictures; `features/events.csv`, `features/silhouette.json` and
`features/<family>.csv` hold the numbers.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.callbacks.logged_pictures import drawing, log_picture
from avprompt.callbacks.run_folder import run_folder
from avprompt.encoders.base import FrozenEncoder
from avprompt.encoders.htsat import HTSAT
from avprompt.encoders.plain_vit import ViTSpectrogram
from avprompt.errors import ArgumentError, ConfigError
from avprompt.heads.temporal import TemporalGate
from avprompt.media.readers import one_a_segment
from avprompt.methods import NoPrompts
from avprompt.methods.dgsct import PaperTemporalGate
from avprompt.plots.features import (
    Kind,
    classes_figure,
    clip_features_figure,
    embed,
    plane_figure,
    silhouette,
    tables_figure,
)
from avprompt.plots.saving import check_formats, save_figure
from avprompt.processes import gathered_objects
from avprompt.ranges import Natural

MODALITIES = ("visual", "audio")
#: columns of a frequency map in each segment
COLUMNS = 32
#: name of a gate's module -> modality that it reads; the gates of the paper are named after the modality that they gate
GATES = (
    {"audio": "from sound", "audio_gate": "from sound", "visual": "from vision", "visual_gate": "from vision"},
    {"visual_gate": "from sound", "audio_gate_rnn": "from vision"},
)


def events(batch: dict[str, Any]) -> dict[str, Tensor] | None:
    """Which category is seen and heard in which segment, (B, T, C) bool for both modalities; `None` without labels.

    From `event` (AVE), `audio_target` and `visual_target` (LLP), or `label` (one category for each clip).
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
    """The spectrogram that an audio encoder reads from segments (B, T, S), (B, T, bands, frames) with low bands first;
    `None` for an encoder without one."""
    segments = waveform.flatten(0, 1)
    if isinstance(encoder, HTSAT):
        bands = encoder.log_mel(segments, 1)[:, 0].transpose(1, 2)
    elif isinstance(encoder, ViTSpectrogram):
        bands = encoder.fbank(segments)[:, 0]
    else:
        return None
    return bands.unflatten(0, waveform.shape[:2])


def frequency_map(encoder: FrozenEncoder, attention: Tensor) -> Tensor:
    """An attention map (B, T, rows, columns) over an audio encoder's tokens -> one over bands and time, (B, T, bands,
    32).

    HTS-AT repeats a segment and folds its spectrogram into a square (`HTSAT.fold`); here the map is unfolded and the
    repetitions are averaged. Maps of other encoders lie over bands and time already.
    """
    shape, maps = attention.shape, attention.flatten(0, 1)[:, None].float()
    if not isinstance(encoder, HTSAT):
        return F.interpolate(maps, (shape[2], COLUMNS), mode="bilinear")[:, 0].unflatten(0, shape[:2])
    size, chunks, repeats = encoder.spec_size, encoder.freq_ratio, encoder.repeat or shape[1]
    square = F.interpolate(maps, (size, size), mode="nearest-exact")[:, 0]
    unfolded = square.unflatten(1, (chunks, size // chunks)).transpose(1, 2).flatten(2)  # bands, all repetitions
    once = F.interpolate(unfolded[:, None], (size // chunks, repeats * COLUMNS), mode="area")[:, 0]
    return once.unflatten(2, (repeats, COLUMNS)).mean(2).unflatten(0, shape[:2])


def concatenated(parts: Sequence[Any]) -> Any:
    """Lists that lie alike in dicts and tuples, one after the other.

    Example:
        >>> concatenated([{"a": ([1], [2])}, {"a": ([3], []), "b": ([], [4])}])
        {'a': ([1, 3], [2]), 'b': ([], [4])}
    """
    if isinstance(parts[0], dict):
        return {
            key: concatenated([part[key] for part in parts if key in part])
            for key in dict.fromkeys(key for part in parts for key in part)
        }
    if isinstance(parts[0], tuple):
        return tuple(concatenated(entries) for entries in zip(*parts))
    return [entry for part in parts for entry in part]


def place_of(name: str) -> tuple[str, int | str]:
    """What of a block pair the table `name` is of, and the number of the pair, for sorting.

    Example:
        >>> place_of("router@3_visual_p1"), place_of("router")
        (('visual p1', 3), ('', ''))
    """
    number, _, rest = name.partition("@")[2].partition("_")
    return rest.replace("_", " "), int(number) if number.isdigit() else number


class FeaturePictures(Callback):
    """Draws features, frequency maps and gates for `avprompt visualize --features`; the module says which pictures.

    Args:
        max_clips: largest number of clips drawn, the first ones; t-SNE and categories use all.
        seed: of t-SNE and UMAP.
        formats: of the pictures: `png`, `pdf`, `svg`.
        umap: also place the points by UMAP, which keeps more of how groups lie to each other; it needs the package
            umap-learn, whose import compiles code for seconds, so that it is asked for.

    Raises:
        ArgumentError: a negative number of clips, or an unknown format.
        ConfigError: `umap` without the package umap-learn; during the run, where the network has no prompts or a method
            that trains the encoders themselves, the data have no categories, or `fast_dev_run` writes nothing.

    Example:
        >>> FeaturePictures(max_clips=2).max_clips
        2
    """

    def __init__(
        self, max_clips: Natural = 8, seed: Natural = 0, formats: Sequence[str] = ("png",), umap: bool = False
    ) -> None:
        if max_clips < 0:
            raise ArgumentError("max_clips", max_clips, "0 or more", "0 draws none.")
        if umap and find_spec("umap") is None:  # said before the test split is gone through
            raise ConfigError(
                "FeaturePictures.umap",
                "true, and no package umap-learn",
                "the package umap-learn",
                "Run `pip install 'avprompt[umap]'`.",
            )
        self.max_clips, self.seed, self.formats, self.umap = max_clips, seed, check_formats(formats), umap

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Determine the run's folder, in every process."""
        run_folder(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the inputs of the backbone and the output of every temporal gate."""
        backbone = pl_module.backbone
        prompts = backbone.prompts
        if prompts is None:
            raise ConfigError(
                "model.backbone",
                type(backbone).__name__,
                "a backbone with a prompt method",
                "There is nothing to compare its features with.",
            )
        if isinstance(prompts, NoPrompts):
            raise ConfigError(
                "model.backbone.prompts",
                "NoPrompts",
                "a prompt method",
                "There is nothing to compare the frozen features with.",
            )
        if any(getattr(backbone, name).unfrozen for name in MODALITIES):
            raise ConfigError(
                "model.backbone.prompts",
                f"{type(prompts).__name__}, which trains the encoders",
                "a prompt method that leaves the encoders frozen",
                "There are no frozen features to compare with.",
            )
        if run_folder(trainer) is None:
            raise ConfigError(
                "trainer.fast_dev_run", True, "false: the run's folder takes the pictures", "Leave it out."
            )
        self.folder = run_folder(trainer) / "features"
        (self.folder / "clips").mkdir(parents=True, exist_ok=True)
        self.points: dict[tuple[str, str], list[tuple[str, int, Tensor]]] = {}
        self.sounds: dict[int, list[Tensor]] = {}
        self.listened: dict[int, list[Tensor]] = {}
        self.gated: dict[int, dict[str, tuple[list[float], list[float]]]] = {}
        self.tables: dict[str, list[tuple[str, int, list[float]]]] = {}
        self.columns = prompts.table_columns
        self.drawn = trainer.datamodule.predict_share.start if trainer.world_size > 1 else 0
        self.inputs: list[tuple] = []
        self.gates: dict[str, Tensor] = {}
        self.handles = [backbone.register_forward_pre_hook(lambda module, args: self.inputs.append(args))]
        for name, module in pl_module.named_modules():
            if isinstance(module, (TemporalGate, PaperTemporalGate)):
                title = GATES[type(module) is PaperTemporalGate].get(name.rpartition(".")[2], name)
                self.handles.append(module.register_forward_hook(self._listen(title)))

    def _listen(self, title: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            gate = output[2] if isinstance(module, TemporalGate) else output
            self.gates[title] = gate.detach().float().cpu().flatten()

        return hook

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Forget the previous batch."""
        self.inputs, self.gates = [], {}

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Run the backbone twice more, with maps and without prompts, and collect what it gives."""
        truth = events(batch)
        if truth is None:
            raise ConfigError(
                "data.class_path",
                type(trainer.datamodule).__name__,
                "data with the categories that are seen and heard, such as AVE or LLP",
                "Without --features, pictures of the clips are drawn.",
            )
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
            heard, valid = truth["audio"][clip], batch["valid"][clip]
            categories = (truth["visual"][clip] | heard).any(0).nonzero().flatten().tolist()
            for name, table in prompted.tables.items():
                mean = table[clip][valid].float().mean(0).tolist()
                self.tables.setdefault(name, []).append((batch["id"][clip], categories[0] if categories else -1, mean))
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
                    (clip_id, category, features[clip][truth[clip][:, category]].mean(0))
                )

    def _draw(
        self,
        trainer: Trainer,
        batch: dict[str, Any],
        clip: int,
        truth: dict[str, Tensor],
        gates: dict[str, Tensor],
        sound: Tensor | None,
        maps: dict[str, Tensor],
    ) -> None:
        data, seen, heard = trainer.datamodule, truth["visual"][clip], truth["audio"][clip]
        rows = {"event": heard} if torch.equal(truth["visual"], truth["audio"]) else {"seen": seen, "heard": heard}
        figure = clip_features_figure(
            one_a_segment(batch["frames"][clip].cpu()),
            {name: gate[clip] for name, gate in gates.items()},
            data.class_names,
            rows,
            None if sound is None else sound[clip],
            maps["visual"][clip] if "visual" in maps else None,
            maps["audio"][clip] if "audio" in maps else None,
            batch["valid"][clip].cpu(),
            batch["id"][clip],
            batch["times"][clip].cpu() if "times" in batch else None,
        )
        self._save(trainer, f"clips/{batch['id'][clip][:200]}", figure)

    def _draw_tables(self, trainer: Trainer, family: str, class_names: Sequence[str]) -> None:
        found = sorted((name for name in self.tables if name.partition("@")[0] == family), key=place_of)
        count = len(self.tables[found[0]][0][2])
        columns = self.columns.get(family, tuple(f"column {place + 1}" for place in range(count)))
        clips = sorted(range(len(self.tables[found[0]])), key=lambda clip: self.tables[found[0]][clip][1])
        values = np.array([[self.tables[name][clip][2] for clip in clips] for name in found])
        categories = [self.tables[found[0]][clip][1] for clip in clips]
        self._save(
            trainer,
            family,
            tables_figure(
                values,
                [place_of(name) for name in found],
                [class_names[c] if c >= 0 else "none" for c in categories],
                columns,
                family,
            ),
        )
        with (self.folder / f"{family}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "table", *columns])
            writer.writerows(
                [clip_id, name, *(round(value, 4) for value in row)]
                for name in found
                for clip_id, _, row in self.tables[name]
            )

    def _save(self, trainer: Trainer, name: str, figure: Figure) -> None:
        save_figure(figure, self.folder / name, self.formats)
        for logger in drawing(trainer.loggers):
            if not isinstance(logger, CSVLogger):  # whose folder has the file already
                log_picture(logger, f"features/{name}", figure, 0)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what needs all clips, write the numbers, and print where they are; of several processes the first."""
        for handle in self.handles:
            handle.remove()
        found = gathered_objects((self.points, self.sounds, self.listened, self.gated, self.tables))
        if not trainer.is_global_zero:
            return
        self.points, self.sounds, self.listened, self.gated, self.tables = concatenated(found)
        names, scores, rows = trainer.datamodule.class_names, {}, []
        titles = {"visual": "vision", "audio": "sound", "frozen": "frozen encoder", "prompted": "prompted"}
        ways: dict[str, Kind] = {"tsne": "t-SNE", **({"umap": "UMAP"} if self.umap else {})}
        panels: dict[str, dict[str, Any]] = {way: {} for way in ways}
        for kind in ("frozen", "prompted"):
            for name in MODALITIES:
                found = self.points[kind, name]
                features = torch.stack([point for _, _, point in found]).numpy()
                labels = [label for _, label, _ in found]
                score = scores[f"{kind}_{name}"] = silhouette(features, labels)
                planes = {way: embed(features, self.seed, called) for way, called in ways.items()}
                for way, points in planes.items():
                    panels[way][f"{titles[name]}, {titles[kind]}"] = points, labels, score
                rows += [
                    {
                        "id": clip_id,
                        "modality": name,
                        "features": kind,
                        "category": names[label],
                        **{
                            f"{axis}{'' if way == 'tsne' else f'_{way}'}": round(float(points[place, number]), 4)
                            for way, points in planes.items()
                            for number, axis in enumerate("xy")
                        },
                    }
                    for place, (clip_id, label, _) in enumerate(found)
                ]
        for way, called in ways.items():
            self._save(trainer, way, plane_figure(panels[way], names, called))
        sounds, frequencies = (
            {category: torch.stack(values).mean(0) for category, values in found.items()}
            for found in (self.sounds, self.listened)
        )
        if sounds or self.gated:
            self._save(trainer, "classes", classes_figure(names, sounds, frequencies, self.gated))
        for family in dict.fromkeys(name.partition("@")[0] for name in self.tables):
            self._draw_tables(trainer, family, names)
        with (self.folder / "events.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        (self.folder / "silhouette.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        count = len(self.points["prompted", "audio"])
        print(
            f"features of {count} events in {self.folder}; silhouette by cosine distance: "
            + ", ".join(
                f"{name.replace('_', ' ')} {'undefined' if score is None else f'{score:.3f}'}"
                for name, score in scores.items()
            )
        )
