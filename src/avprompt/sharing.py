"""From Python: a trained task out of its checkpoint, predictions on a video, and a folder to share.

A shared folder holds `model.safetensors`, the trainable state with the fingerprints of the frozen encoders in its
header; `config.yaml`, what task and data module are built from; and `README.md`, a model card.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from avprompt import __version__, checkpoints
from avprompt.configs import get_nested, parameters, read_yaml
from avprompt.data_modules import AVDataModule
from avprompt.errors import ArgumentError, CheckpointError, ConfigError, DatasetError, WriteError
from avprompt.files import write_whole
from avprompt.tasks import AVPromptTask

STATE, CONFIG, CARD = "model.safetensors", "config.yaml", "README.md"
#: what of a configuration makes the task and its data module; the trainer's part is of the machine that trained
PARTS = ("seed_everything", "model", "data")


@dataclass(frozen=True)
class Prediction:
    """What a task says of videos.

    Args:
        table: the rows of `predictions.csv`, see `AVPromptTask.prediction_rows`; videos that cannot be used come last,
            with `id`, `decoded`, `path` and `reason`.
        arrays: the task's outputs by name, maps included, with the windows of all videos along the first axis; `times`
            (N, T, 2), begin and end of each segment in seconds; and `valid` (N, T), whether it was decoded.

    Example:
        >>> found = Prediction([{"id": "dog", "predicted": "bark"}], {"event": np.zeros((1, 28), np.float32)})
        >>> found.table[0]["predicted"], found.arrays["event"].shape
        ('bark', (1, 28))
    """

    table: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]


def load(path: str | Path, flags: Sequence[str] = (), config: str | Path | None = None) -> AVPromptTask:
    """A trained task with its encoders, in eval mode on the CPU, out of a checkpoint or of a shared folder.

    The encoders' own weights come from where the configuration says, as in training, and must be the same. Outputs are
    computed in float32, whatever the precision of training. The random state of the process is left alone.

    Args:
        path: a checkpoint, whose run has its `config.yaml` in the folder above, or a folder that `push` wrote.
        flags: changes, as on the command line, such as `["--data.root", "/data/AVE"]` on another machine.
        config: name or path of the configuration; `None` takes the one that belongs to `path`.

    Raises:
        CheckpointError: there is no such file or folder, it is broken, none of avprompt's, or was trained on other
            frozen weights or with another network than the configuration's.
        ConfigError: there is no configuration, or it does not fit the classes that it names.

    Example:
        >>> try:
        ...     load("runs/ave_dgsct/version_0/checkpoints/best.ckpt")
        ... except CheckpointError as error:
        ...     print(error.got)
        no such file
    """
    from avprompt.cli.lightning import parts_of
    from avprompt.cli.screen import FILTERS

    path = Path(path).expanduser()
    content = _read_folder(path) if path.is_dir() else checkpoints.read_checkpoint(path)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(
            path,
            "no state of a network",
            "a checkpoint written by avprompt",
            "Released checkpoints of others go through `avprompt convert` first.",
        )
    checkpoints.check_record(torch.nn.Module(), content.get(checkpoints.RECORD), path)  # foreign: no encoder is read
    where = _find_config(path) if config is None else config
    settings = {name: value for name, value in (read_yaml(where) or {}).items() if name in PARTS}
    if missing := sorted({"model", "data"} - settings.keys()):
        raise ConfigError(
            where,
            f"nothing of {', '.join(missing)}",
            "the configuration of a run",
            "Give the one that the checkpoint was trained with as `config`.",
        )
    network = settings["model"].get("init_args") or {}
    for name in network.keys() & {"pretrained", "head_from"}:  # files of a start that the state replaces
        network[name] = None
    words = [word for name, value in settings.items() for word in (f"--{name}", json.dumps(value))]
    with isolate_rng(), warnings.catch_warnings():
        for pattern in FILTERS:
            warnings.filterwarnings("ignore", message=pattern)
        task, data = parts_of([*words, *flags])
    checkpoints.check_record(task, content[checkpoints.RECORD], path)
    checkpoints.check_names(task, content["state_dict"], path)
    task.load_state_dict(content["state_dict"])
    task.source = Source(path, settings, data, _digest(task))
    return task.eval()


def _read_folder(folder: Path) -> dict[str, Any]:
    """A shared folder's state and record, as a checkpoint holds them."""
    from safetensors import SafetensorError, safe_open

    file = folder / STATE
    if not file.is_file():
        raise CheckpointError(
            folder,
            f"a folder without {STATE}",
            "a checkpoint, or a folder that `push` wrote",
            "A run has its checkpoints in checkpoints/best.ckpt and checkpoints/last.ckpt.",
        )
    try:
        with safe_open(file, "pt") as opened:
            record = json.loads((opened.metadata() or {}).get(checkpoints.RECORD, "null"))
            return {
                "state_dict": {name: opened.get_tensor(name) for name in opened.keys()},  # noqa: SIM118
                checkpoints.RECORD: record,
            }
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise CheckpointError(
            file, f"{file.stat().st_size} bytes that do not load ({error})", "a whole file", "Fetch or write it again."
        ) from error


def _find_config(path: Path) -> Path:
    places = [path] if path.is_dir() else [path.parent.parent, path.parent]
    for place in places:
        if (place / CONFIG).is_file():
            return place / CONFIG
    raise ConfigError(
        path,
        f"no {CONFIG} in {' or '.join(map(str, places))}",
        "the configuration of its training",
        "Give it: `avprompt.load(path, config=...)` takes a file or the name of an experiment.",
    )


def _state(task: AVPromptTask) -> dict[str, Tensor]:
    # copies: tied tensors have two names, and the format refuses memory that is shared
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in task.state_dict().items()
    }


def _digest(task: AVPromptTask) -> str:
    from safetensors.torch import save

    return hashlib.sha256(save(_state(task))).hexdigest()  # the order of what a header holds besides may differ


@dataclass
class Source:
    """Where a task comes from, and what reads videos for it: `AVPromptTask.predict` and `push` ask this.

    Args:
        path: checkpoint or shared folder that it was loaded from.
        config: its configuration, with `model` and `data`.
        data: the data module of its training.
        digest: of its state when it was loaded.

    Example:
        >>> from avprompt.data_modules import AVEDataModule
        >>> Source(Path("best.ckpt"), {}, AVEDataModule(Path("data/ave")), "").data.num_classes
        28
    """

    path: Path
    config: dict[str, Any]
    data: AVDataModule
    digest: str

    def reading(self) -> AVDataModule:
        """The data module, if it reads videos.

        Raises:
            ArgumentError: it reads features, which were computed once for each clip of the dataset.
        """
        for name in ("feature_cache", "published_features", "features"):
            if getattr(self.data, name, None) is not None:
                raise ArgumentError(
                    f"data.{name}",
                    getattr(self.data, name),
                    "none: your own videos have no such features",
                    "Predict with a task that was trained on frames and sound.",
                )
        return self.data

    def predict(self, task: AVPromptTask, videos: str | Path) -> Prediction:
        """See `AVPromptTask.predict`."""
        data = self.reading()
        data.predict_root = Path(videos).expanduser()
        data.setup("predict")
        rows, parts, modes = [], [], {module: module.training for module in task.modules()}
        task.eval()
        try:
            with torch.no_grad():
                for number, batch in enumerate(data.predict_dataloader()):
                    batch = task.transfer_batch_to_device(batch, task.device, 0)
                    outputs = task.predict_step(batch, number)
                    rows += task.prediction_rows(outputs, batch, data.class_names)
                    parts.append(
                        {
                            name: value.float().cpu() if value.dtype == torch.bfloat16 else value.cpu()
                            for name, value in {**outputs, "times": batch["times"], "valid": batch["valid"]}.items()
                            if isinstance(value, Tensor)
                        }
                    )
        finally:
            for module, training in modes.items():
                module.training = training
        arrays = {
            name: value.numpy()
            if name in task.common_outputs or value.ndim == 0
            else torch.cat([part[name] for part in parts]).numpy()
            for name, value in parts[-1].items()
        }
        blank = dict.fromkeys(rows[0], "")
        return Prediction(rows + [{**blank, "decoded": False, **row} for row in data.unusable()], arrays)

    def push(self, task: AVPromptTask, folder: str | Path, repo_id: str | None, private: bool) -> Path:
        """See `AVPromptTask.push`."""
        from safetensors.torch import save

        folder = Path(folder).expanduser()
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / STATE).is_file())):
            raise ArgumentError(
                "folder",
                f"{folder}, which holds something else",
                "a new or empty folder, or one that `push` wrote before",
                "Choose another folder.",
            )
        config = json.loads(json.dumps(self.config))
        given = config["data"].setdefault("init_args", {})
        given["predict_root"] = None
        if "categories" in parameters(config["data"]["class_path"]):  # where the dataset is not, neither are its names
            given["categories"] = list(self.data.class_names)
        card, state = self._card(task), _state(task)
        header = {
            "format": "pt",
            "avprompt_version": __version__,
            checkpoints.RECORD: json.dumps(checkpoints.record(task)),
        }
        write_whole(folder / STATE, save(state, header))
        write_whole(folder / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
        write_whole(folder / CARD, card.encode())
        if repo_id is not None:
            _upload(folder, repo_id, private)
        return folder

    def _card(self, task: AVPromptTask) -> str:
        """The model card: what it is, what it was trained on, how well it did, how to load it."""
        unchanged = _digest(task) == self.digest
        if unchanged and self.path.is_dir() and (self.path / CARD).is_file():
            return (self.path / CARD).read_text(encoding="utf-8")
        run = self.path if self.path.is_dir() else _find_folder(self.path)
        result, manifest = (_read_json(run / f"{name}.json") for name in ("result", "manifest"))
        kind, counts = type(task).__name__, checkpoints.count_parameters(task)
        backbone = get_nested(self.config, "model.init_args.backbone.init_args") or {}
        method = _named(backbone.get("prompts")) if backbone.get("prompts") else "none"
        name = result.get("experiment", kind)
        dataset = manifest.get("dataset") or type(self.data).__name__
        made = " (a generated, synthetic dataset)" if manifest.get("generated") else ""
        used = ", ".join(f"{split} {clips['used']}" for split, clips in (manifest.get("clips") or {}).items())
        facts = {
            "Task": kind,
            "Prompt method": method,
            **{
                f"{side.capitalize()} encoder, frozen": _named(backbone[side])
                for side in ("visual", "audio")
                if backbone.get(side)
            },
            "Data": f"{dataset}{made}" + (f"; {manifest.get('unit', 'clips')} used: {used}" if used else ""),
            "Checkpoints selected on": f"the split `{self.data.validation_split}`",
            "Parameters": f"{counts['trainable']:,} trained of {counts['total']:,}; {counts['checkpoint']:,} elements "
            "in this file",
            **{
                label: result[key]
                for label, key in (("Seed", "seed"), ("Epochs", "epochs"), ("Source tree", "git"))
                if result.get(key) is not None
            },
        }
        encoders = [
            f"- `{place}`, {entry['class']}: `{entry['fingerprint']}`"
            for place, entry in checkpoints.record(task)["encoders"].items()
        ]
        head = yaml.safe_dump(
            {
                "library_name": "avprompt",
                "tags": [
                    "avprompt",
                    "audio-visual",
                    "prompting",
                    *([method.partition(" ")[0]] if method != "none" else []),
                ],
            }
        )
        lines = [
            "---",
            head.rstrip(),
            "---",
            "",
            f"# {name}",
            "",
            f"The trained part of an audio-visual network (avprompt {__version__}), without its frozen encoders.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {label} | {value} |" for label, value in facts.items()),
            "",
            "## Metrics",
            "",
            *self._metrics(result, unchanged),
            "",
            "## Frozen encoders",
            "",
            "Loading compares the encoders in use with these fingerprints (SHA-256):",
            "",
            *(encoders or ["- none"]),
            "",
            "## Use",
            "",
            "```python",
            "import avprompt",
            "",
            'task = avprompt.load("THIS_FOLDER")  # huggingface_hub.snapshot_download(...) returns such a folder',
            'found = task.predict("video.mp4")',
            "print(found.table[0])",
            "```",
            "",
            (
                "Paths in `config.yaml` are those of the machine that trained. Others are given as flags, such as "
                '`avprompt.load(folder, ["--data.root", "data"])`.'
            ),
        ]
        return "\n".join(lines) + "\n"

    def _metrics(self, result: dict[str, Any], unchanged: bool) -> list[str]:
        if not unchanged:
            return [f"Not measured: the weights were changed after they were loaded from {self.path.name}."]
        if not result.get("metrics"):
            return ["The run has no results beside its checkpoint (`result.json`)."]
        settings = get_nested(result, "config.trainer") or {}
        limits = {
            name: settings[name]
            for name in ("limit_train_batches", "limit_val_batches", "overfit_batches")
            if settings.get(name) not in (None, 0) and repr(settings[name]) != "1.0"
        }
        note = [f"On parts of the data only: {limits}.", ""] if limits else []
        return [
            *note,
            (
                f"Of one run, as its `result.json` has them; these weights are its `{self.path.name}`. `best_` "
                "is of `best.ckpt`, the others are of the last epoch."
            ),
            "",
            "| metric | value |",
            "|---|---|",
            *(
                f"| {name} | {'not finite' if value is None else f'{value:.4f}'} |"
                for name, value in result["metrics"].items()
            ),
        ]


def _find_folder(checkpoint: Path) -> Path:
    """The run's folder: its checkpoints lie in a folder of their own, or beside its files."""
    above = checkpoint.parent.parent
    return above if (above / CONFIG).is_file() else checkpoint.parent


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(path, f"no JSON ({error})", "a file that `avprompt fit` wrote", "Remove it.") from error


def _named(spec: Any) -> str:
    """A class of a configuration with the arguments that tell it from others of its class."""
    if not isinstance(spec, dict) or "class_path" not in spec:
        return str(spec)
    given = {
        name: value
        for name, value in (spec.get("init_args") or {}).items()
        if isinstance(value, (str, int, float, bool))
    }
    return spec["class_path"].rpartition(".")[2] + (
        f" ({', '.join(f'{name} {value}' for name, value in given.items())})" if given else ""
    )


def _upload(folder: Path, repo_id: str, private: bool) -> None:
    """Upload the three files of a shared folder to the Hugging Face hub.

    Raises:
        ArgumentError: `repo_id` is no name of a repository.
        WriteError: the hub refuses it, or cannot be reached.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        api = HfApi(library_name="avprompt", library_version=__version__)
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[STATE, CONFIG, CARD],
            commit_message=f"Trained with avprompt {__version__}",
        )
    except HFValidationError as error:
        raise ArgumentError("repo_id", repo_id, "owner/name on the hub", f"Correct it ({error}).") from error
    except (HTTPError, OSError) as error:
        raise WriteError(
            repo_id,
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            "a repository on the hub that you may write to",
            f"The folder {folder} is whole. Check the network and HF_HUB_OFFLINE, log in with "
            "`hf auth login`, and call it again.",
        ) from error
