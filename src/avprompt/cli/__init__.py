"""`avprompt fit|validate|test|predict --config experiments/X.yaml`, and the commands around it."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

from avprompt import __version__, configs
from avprompt.errors import AVPromptError, ConfigError

HELP = f"""avprompt {__version__}: prompting of frozen image and audio encoders

usage: avprompt COMMAND [options]

  fit | validate | test | predict   run an experiment: avprompt fit --config experiments/ave_dgsct.yaml
  params                            trainable, frozen, total and owned parameters of an experiment
  data prepare                      folders of videos -> the store that training reads
  data verify                       what a dataset needs, and what of it is there
  data synth ave|llp|...            write a generated audio-visual world in a dataset's own format
  data stats                        mean and deviation of an experiment's training spectrograms
  convert                           the authors' released checkpoints -> ours
  sweep                             rows of a table, times shots, times seeds: resumable, here or on a cluster
  compare                           finished runs in tables beside the published figures, and in TensorBoard
  efficiency                        parameters, GFLOPs, seconds and memory of a training step of every experiment
  visualize                         as predict on the test split: pictures of truth, prediction and maps; with --features
                                    also t-SNE with and without prompts, frequency maps and temporal gates
  quickstart                        generate, prepare, fit, test and compare on this machine, in minutes

`avprompt COMMAND --help` explains each. Flags come after --config and override it.
"""
#: functions whose first argument is a list
SEVERAL = ("compare", "efficiency")
TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
#: commands that are one function, whose signature and docstring are options and help
FUNCTIONS = {"sweep": "avprompt.sweeps.sweep", "compare": "avprompt.reports.compare",
             "efficiency": "avprompt.cli.efficiency", "quickstart": "avprompt.cli.quickstart"}


def lightning_cli() -> type:
    """Build the LightningCLI of avprompt; in a function because its imports take seconds."""
    import warnings

    import torch
    import yaml
    from jsonargparse import Namespace, get_loader, set_loader
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

    from avprompt import callbacks, checkpoints, compatibility
    from avprompt.data_modules import AVDataModule
    from avprompt.tasks import AVPromptTask

    # both are intended: arguments come from `main`, frozen encoders stay in eval mode
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")

    # the parser hands a class's `null` to the classes within it as Python prints it
    set_loader("flags", lambda text: None if text == "None" else get_loader("yaml")(text), (yaml.YAMLError,))
    parsing = {"allow_abbrev": False, "parser_mode": "flags"}

    class SaveConfig(SaveConfigCallback):
        """config.yaml beside the run's events; nowhere where there is no logger."""

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            if trainer.loggers and not (Path(trainer.log_dir or "") / self.config_filename).is_file():
                super().setup(trainer, pl_module, stage)

    class AVPromptCLI(LightningCLI):
        """LightningCLI with the checks of `avprompt.configs` and without hidden sources of configuration."""

        def __init__(self, args: list[str], run: bool = True) -> None:
            self.given = configs.sources(args)
            super().__init__(
                AVPromptTask,
                AVDataModule,
                save_config_callback=SaveConfig,
                trainer_defaults={"use_distributed_sampler": False},  # our loaders shard themselves
                seed_everything_default=0,
                subclass_mode_model=True,
                subclass_mode_data=True,
                args=args,
                run=run,
                parser_kwargs={**parsing, **({command: parsing for command in TRAINER_COMMANDS} if run else {})},
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            # each applies where both the data module and the task know it
            for size in configs.SIZES:
                parser.link_arguments(f"data.{size}", f"model.init_args.{size}", apply_on="instantiate")

        def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
            known = {action.dest.split(".")[0] for sub in getattr(self, "_subcommand_parsers", {}).values() or [parser]
                     for action in sub._actions}
            configs.check_top_level(self.given, known | {"ckpt_path", "trainer", "model", "data", "seed_everything"})
            configs.check_linked(self.given)
            configs.check_stale(self.given)
            super().parse_arguments(parser, args)

        def _parse_ckpt_path(self) -> None:
            """Read the checkpoint early, so that a broken one is named before any work; take no settings from it."""
            path = self.settings.get("ckpt_path")
            if path and path not in ("best", "last", "hpc", "registry"):
                checkpoints.read_checkpoint(path)

        @property
        def settings(self) -> Namespace:
            command = self.config.get("subcommand")
            return self.config[command] if command else self.config

        @property
        def experiment(self) -> str:
            """File name of the first --config without ending."""
            named = [Path(origin).stem for origin, _ in self.given if not origin.startswith("-")]
            return named[0] if named else "unnamed"

        def before_instantiate_classes(self) -> None:
            trainer, command = self.settings.trainer, self.config.get("subcommand")
            if trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available() and command:
                raise ConfigError(
                    "trainer.accelerator", f"{trainer.accelerator}, and no GPU that PyTorch can use", "an NVIDIA GPU",
                    "On this machine add `--trainer lightning_configs/trainer/cpu.yaml` after --config "
                    "(full-size networks take minutes a step on a CPU).")
            if trainer.logger is True:
                trainer.logger = Namespace(class_path="lightning.pytorch.loggers.TensorBoardLogger",
                                           init_args=Namespace(save_dir="runs", name="lightning_logs", version=None,
                                                               log_graph=False, default_hp_metric=False, prefix="",
                                                               sub_dir=None))
            logger = trainer.logger
            if isinstance(logger, Namespace) and logger.init_args.get("name") == "lightning_logs":
                logger.init_args.name = self.experiment
            self._check_writable(logger)

        def _check_writable(self, logger: Any) -> None:
            folder = Path(logger.init_args.save_dir) if isinstance(logger, Namespace) else None
            while folder is not None and not folder.exists():
                folder = folder.parent
            if folder is not None and not (folder.is_dir() and os.access(folder, os.W_OK)):
                raise ConfigError("trainer.logger.init_args.save_dir", f"{folder}, which cannot be written to",
                                  "a writable folder", "Choose another folder or free some space.")

        def instantiate_classes(self) -> None:
            super().instantiate_classes()
            compatibility.check_run(self.model, self.datamodule)

        def instantiate_trainer(self, **options: Any) -> Any:
            self._dump_config()
            name = self.settings.trainer.logger.init_args.name if isinstance(
                self.settings.trainer.logger, Namespace) else self.experiment
            forced = [callbacks.ExactResume(), callbacks.RunReport(name, self.config_dump)]
            if self.settings.trainer.get("enable_checkpointing") is not False:
                forced += [callbacks.TaskCheckpoint(), callbacks.LastCheckpoint(), callbacks.InterruptCheckpoint()]
            if self.config.get("subcommand") == "predict":
                forced.append(callbacks.PredictionWriter())
            present = self.config_init[self.config.subcommand].trainer.callbacks if self.config.get(
                "subcommand") else self.config_init.trainer.callbacks
            kinds = {type(callback) for callback in present or []}
            return super().instantiate_trainer(
                callbacks=[*(present or []), *(c for c in forced if type(c) not in kinds)], **options)

    return AVPromptCLI


def parts_of(args: list[str], meta: bool = False) -> tuple[Any, Any]:
    """The task and the data module that an experiment describes.

    Args:
        args: `--config X` and overrides.
        meta: build it on the meta device: exact sizes, no memory, no weights.
    """
    import torch

    class ModelOnly(lightning_cli()):
        """Builds data module and model, no trainer."""

        def instantiate_trainer(self, **options: Any) -> None:
            """Nothing."""

    with torch.device("meta") if meta else torch.device("cpu"):
        built = ModelOnly(args, run=False)
        return built.model, built.datamodule


def model_of(args: list[str], meta: bool = False) -> Any:
    """The task that an experiment describes, see `parts_of`."""
    return parts_of(args, meta)[0]


def params(args: list[str]) -> None:
    """`avprompt params --config X [--json] [overrides]`: parameters by module, on the meta device."""
    from avprompt.checkpoints import count_parameters

    as_json = "--json" in args
    rest = [arg for arg in args if arg != "--json"]
    if not rest or "--help" in rest or "-h" in rest:
        print("usage: avprompt params --config experiments/X.yaml [--json] [overrides as for fit]")
        return
    model = model_of(rest, meta=True)
    parts = {"visual": model.backbone.visual, "audio": model.backbone.audio, "prompts": model.backbone.prompts,
             "head": model.head}
    counted: set[int] = set()
    modules = {name: count_parameters(part, counted) for name, part in parts.items()}
    table = {**count_parameters(model), "modules": modules}
    if as_json:
        print(json.dumps(table))
        return
    print(f"{'module':<10}" + "".join(f"{name:>15}" for name in ("trainable", "frozen", "total", "checkpoint")))
    for name, counts in [*modules.items(), ("all", table)]:
        print(f"{name:<10}" + "".join(f"{counts[key]:>15,}" for key in ("trainable", "frozen", "total", "checkpoint")))


def stats(args: list[str]) -> None:
    """`avprompt data stats --config X [overrides]`: statistics of the training split's fbank features."""
    from dataclasses import asdict

    from avprompt.datasets.fbank_statistics import fbank_statistics
    from avprompt.encoders import Fbank
    from avprompt.media.files import write_whole

    if not args or "--help" in args or "-h" in args:
        print("usage: avprompt data stats --config experiments/X.yaml [overrides as for fit]\n\nMean and standard "
              "deviation of the un-normalised fbank features of the training split, with the settings of\nthe "
              "experiment's audio encoder; written to the data's root/fbank_statistics.json and printed as flags.")
        return
    model, datamodule = parts_of(args, meta=True)
    audio = model.backbone.audio
    fbank, rate = getattr(audio, "fbank", None), datamodule.sampling.sample_rate
    if not isinstance(fbank, Fbank):
        raise ConfigError("model.init_args.backbone.init_args.audio", type(audio).__name__,
                          "an encoder with an fbank front end, such as ViTSpectrogram", "Choose another experiment.")
    if fbank.sample_rate != rate:
        raise ConfigError("data.init_args.sample_rate", rate, f"{fbank.sample_rate}, the fbank's", "Make them equal.")
    datamodule.setup("fit")
    train = datamodule.datasets["train"]
    found = fbank_statistics(train.ids, train.reader, fbank, train.substitute, datamodule.num_workers)
    settings = {key: value for key, value in asdict(fbank).items() if key not in ("mean", "std")}
    path = datamodule.root / "fbank_statistics.json"
    seconds = found.segments * datamodule.sampling.seconds
    record = {"split": "train", **asdict(found), "seconds": seconds, "fbank": settings}
    try:
        write_whole(path, (json.dumps(record, indent=2) + "\n").encode())
    except OSError as error:
        print(f"{path} cannot be written ({error.strerror}); what it would hold:\n{json.dumps(record, indent=2)}")
    print(f"{path}: {found.clips} clips, {found.segments} segments, {found.corrupt} clips left out")
    given = [configs.get_nested(content, "model.init_args.backbone.init_args.audio") for _, content in configs.sources(args)]
    # `audio: shared` or `separate` is set up by the visual encoder's arguments
    side = "visual" if [value for value in given if value is not None][-1] in ("shared", "separate") else "audio"
    for name in ("mean", "std"):
        print(f"--model.init_args.backbone.init_args.{side}.init_args.fbank.{name} {getattr(found, name):.4f}")


def functions(args: list[str], prog: str, table: dict[str, Any], **options: Any) -> Any:
    """Run one of several functions, whose signatures and docstrings are the command's options and help."""
    from jsonargparse import auto_cli

    return auto_cli(table, args=args, prog=prog, as_positional=False, **options)


def data(args: list[str]) -> None:
    """`avprompt data prepare|verify|synth|stats`."""
    from avprompt.datasets.verify import verify
    from avprompt.media.prepare import prepare
    from avprompt.synthetic import SYNTHETIC_DATASETS

    if args[:1] == ["stats"]:
        stats(args[1:])
        return
    if args[:1] == ["features"]:
        from avprompt.cli.features import features

        features(args[1:])
        return
    complete = functions(args, "avprompt data", {"prepare": prepare, "verify": verify, "synth": SYNTHETIC_DATASETS},
                         epilog="And `avprompt data stats --config experiments/X.yaml`, see its own --help.")
    if args[:1] == ["verify"] and complete is False:
        sys.exit(1)


def convert(args: list[str]) -> None:
    """`avprompt convert --task ave IN.pt OUT.ckpt`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="avprompt convert", description="The authors' released checkpoints -> ours.")
    parser.add_argument("source", type=Path, help="the authors' .pt file")
    parser.add_argument("target", type=Path, help="checkpoint to write, .ckpt; the encoders go beside it")
    parser.add_argument("--task", type=str, required=True, help="task that it was trained on: ave, avvp, avs_s4, avs_ms3, "
                        "avqa, fewshot, or pretrain (VGG-Sound, for zero-shot transfer)")
    parser.add_argument("--audio_scale", type=float, help="fewshot, pretrain: CLAP's scale of cosines, the exponential of "
                        "logit_scale_a in its own file, which theirs lacks")
    given = parser.parse_args(args)
    from avprompt.convert import convert as run

    options = {} if given.audio_scale is None else {"audio_scale": given.audio_scale}
    run(given.task, given.source, given.target, **options)


def simple(args: list[str], command: str) -> None:
    """Run a command of `FUNCTIONS`."""
    import importlib

    from jsonargparse import auto_cli

    if command in SEVERAL:  # folders or files stand side by side: `avprompt compare runs/a runs/b --out tables`
        count = next((place for place, arg in enumerate(args) if arg.startswith("-")), len(args))
        args = args if args[:1] and args[0].startswith("[") else [json.dumps(args[:count]), *args[count:]]
    options = {}
    if command == "sweep":  # the parser's own --config would be a file of these arguments
        options = {"config_help": "the sweep file, instead of as first argument"}
        args = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
        if "--config" in args[:-1]:
            place = args.index("--config")
            args = [args[place + 1], *args[:place], *args[place + 2:]]
    function = getattr(importlib.import_module(FUNCTIONS[command]), command)
    auto_cli(function, args=args, prog=f"avprompt {command}", as_positional=command != "quickstart", **options)


def cause(error: BaseException) -> AVPromptError | None:
    """The typed error behind one that the parser raised while it built an object."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, AVPromptError):
        seen = seen.__cause__ or seen.__context__
    return seen


def run(args: list[str]) -> None:
    """Run a command line.

    Raises:
        AVPromptError: bad input; `main` turns it into a message.
    """
    try:
        dispatch(args)
    except (ValueError, TypeError) as error:  # jsonargparse wraps what a class's constructor raises
        if (typed := cause(error)) is None or typed is error:
            raise
        raise typed from None


@functools.cache
def expand_files() -> None:
    """Have `~` stand for the home folder in every YAML file and value that a parser loads."""
    import yaml
    from jsonargparse import get_loader, set_loader

    load = get_loader("yaml")
    set_loader("yaml", lambda text: configs.expand(load(text)), (yaml.YAMLError,))


def dispatch(args: list[str]) -> None:
    """Find the command and run it."""
    args = [configs.expand_flag(arg) for arg in args]
    expand_files()
    command, rest = (args[0], args[1:]) if args else ("--help", [])
    if command in ("--help", "-h"):
        print(HELP)
    elif command == "--version":
        print(__version__)
    elif command in TRAINER_COMMANDS:
        lightning_cli()(args)
    elif command == "visualize":
        features = ["--trainer.callbacks+=avprompt.callbacks.feature_pictures.FeaturePictures"] * ("--features" in rest)
        rest = [arg for arg in rest if arg != "--features"]
        lightning_cli()(["predict", *rest, *features, "--data.init_args.predict_root", "null"])
    elif command in ("params", "data", "convert"):
        {"params": params, "data": data, "convert": convert}[command](rest)
    elif command in FUNCTIONS:
        simple(rest, command)
    else:
        raise ConfigError("COMMAND", command, "a command of `avprompt --help`", "Correct the spelling.")


def main(args: list[str] | None = None) -> None:
    """Entry point: bad input becomes one message and exit code 2, `AVPROMPT_DEBUG=1` shows where it came from."""
    try:
        run(sys.argv[1:] if args is None else args)
    except AVPromptError as error:
        if os.environ.get("AVPROMPT_DEBUG"):
            raise
        print(f"avprompt: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as stop:
        # Lightning ends a run that got SIGTERM like one that is done, with exit code 0
        sys.exit(143 if type(stop).__name__ == "SIGTERMException" else stop.code)
