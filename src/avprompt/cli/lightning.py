"""The LightningCLI behind `avprompt fit|validate|test|predict`, and tasks built from a configuration.

Importing this takes seconds: the other modules of the command line import it inside functions.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng

from avprompt import callbacks, checkpoints, compatibility
from avprompt.callbacks.run_folder import (
    check_config,
    keep_csv,
    logged_folder,
    newest_checkpoint,
    own_checkpoint,
    remove_empty_run,
    write_config,
)
from avprompt.cli import checks
from avprompt.cli.parsing import OneError
from avprompt.cli.screen import is_quiet
from avprompt.configs import CHECKPOINTS, UNTRAINED, get_nested, read_arguments
from avprompt.data_modules import AVDataModule
from avprompt.encoders.base import sizes_alone
from avprompt.errors import ConfigError
from avprompt.processes import check_strategy, together
from avprompt.ranges import check_ranges
from avprompt.signals import slurm_job
from avprompt.tasks import AVPromptTask

#: classes of loggers that need a package which avprompt itself does not
LOGGERS = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow-skinny", "CometLogger": "comet-ml"}
# the parser hands a class's `null` to the classes within it as Python prints it
set_loader("flags", lambda text: None if text == "None" else get_loader("yaml")(text), (yaml.YAMLError,))
checks.restrict_parser()
PARSING = {"allow_abbrev": False, "parser_mode": "flags"}


def slurm_version() -> str | None:
    """Name of a run's folder in a job step that `srun` started on a SLURM cluster, the same after the job was queued
    again; `None` elsewhere."""
    step = os.environ.get("SLURM_STEP_ID")
    return f"slurm_{slurm_job()}.{step}" if slurm_job() and step and SLURMEnvironment.detect() else None


class OneErrorParser(OneError, LightningArgumentParser):
    """Says what is wrong with a flag in one line."""


class SaveConfig(SaveConfigCallback):
    """config.yaml in the run's folder."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        folder = callbacks.run_folder(trainer)
        if folder is not None and trainer.is_global_zero:
            write_config(
                folder,
                self.parser.dump(self.config, skip_unset=False, skip_validation=True),
                resuming=stage == "fit" and self.config.get("ckpt_path") not in (None, UNTRAINED),
            )


class AVPromptCLI(LightningCLI):
    """LightningCLI over configurations that inherit, with the checks of `avprompt.cli.checks`.

    The parser gets every `--config` file as `avprompt.configs` resolves it. Checkpoints and environment variables
    change no setting.

    Args:
        args: words of the command line, with the subcommand first where `run` is true.
        run: whether to run the subcommand after building everything.

    Raises:
        ConfigError: see `avprompt.configs.read_arguments` and `avprompt.cli.checks`.

    >>> cli = AVPromptCLI(["--config", "quickstart", "--data.batch_size", "4"], run=False)
    >>> cli.experiment, type(cli.model).__name__, cli.datamodule.batch_size
    ('quickstart', 'AVE', 4)
    """

    #: content of `--ckpt_path`, until the network is there that it must fit
    checkpoint: dict[str, Any] | None = None
    #: folders that the run's logger will make
    missing: tuple[Path, ...] = ()

    def __init__(self, args: list[str], run: bool = True) -> None:
        self.line = read_arguments(args)
        super().__init__(
            AVPromptTask,
            AVDataModule,
            save_config_callback=SaveConfig,
            trainer_defaults={"use_distributed_sampler": False},  # our loaders shard themselves
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=self.line.arguments,
            trainer_class=Trainer,
            parser_class=OneErrorParser,
            run=run,
            parser_kwargs={
                "prog": "avprompt",
                **PARSING,
                **(dict.fromkeys(self.subcommands(), PARSING) if run else {}),
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:
        """The command that is asked for: to build the parsers of the other three takes longer than to parse."""
        found = LightningCLI.subcommands()
        asked = next(iter(self.line.arguments), None)
        return {asked: found[asked]} if asked in found else found

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # each applies where both the data module and the task know it
        for size in checks.SIZES:
            parser.link_arguments(f"data.{size}", f"model.init_args.{size}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        known = {
            action.dest.split(".")[0]
            for sub in getattr(self, "_subcommand_parsers", {}).values() or [parser]
            for action in sub._actions
        }
        checks.check_top_level(self.line.sources, known | {"ckpt_path", "trainer", "model", "data", "seed_everything"})
        checks.check_linked(self.line.sources)
        checks.check_stale(self.line)
        super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        """Read the checkpoint early, so that a broken one is named before any work; take no settings from it."""
        path = self.settings.get("ckpt_path")
        if path and path not in CHECKPOINTS:
            self.checkpoint = checkpoints.read_checkpoint(path)

    def _dump_config(self) -> None:
        """The configuration as plain data; it was validated when it was parsed, which takes longest of all."""
        if not hasattr(self, "config_dump"):
            text = self.parser.dump(
                self.config, skip_link_targets=False, skip_unset=False, skip_validation=True, format="yaml"
            )
            found = yaml.safe_load(text)
            self.config_dump = found[self.config.subcommand] if "subcommand" in self.config else found

    @property
    def settings(self) -> Namespace:
        command = self.config.get("subcommand")
        return self.config[command] if command else self.config

    @property
    def experiment(self) -> str:
        """File name of the first `--config` without its ending."""
        named = [Path(origin).stem for origin, _ in self.line.sources if not origin.startswith("-")]
        return named[0] if named else "unnamed"

    def before_instantiate_classes(self) -> None:
        checks.check_classes(
            self.settings, {"trainer": checks.declared_arguments(Trainer), "model": AVPromptTask, "data": AVDataModule}
        )
        check_ranges(Trainer, dict(vars(self.settings.trainer)), "--trainer.")
        trainer, command = self.settings.trainer, self.config.get("subcommand")
        if trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available() and command:
            raise ConfigError(
                "trainer.accelerator",
                f"{trainer.accelerator}, and no GPU that PyTorch can use",
                "an NVIDIA GPU",
                "On this machine add `--trainer cpu` after --config (full-size networks take minutes a step on a CPU).",
            )
        if trainer.logger is True:
            trainer.logger = Namespace(
                class_path="avprompt.callbacks.GroupedTensorBoard",
                init_args=Namespace(
                    save_dir="runs",
                    name="lightning_logs",
                    version=None,
                    log_graph=False,
                    default_hp_metric=False,
                    prefix="",
                    sub_dir=None,
                ),
            )
        check_strategy(trainer.strategy.class_path if isinstance(trainer.strategy, Namespace) else trainer.strategy)
        loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
        for logger in loggers:
            self._name_experiment(logger)
            if (
                isinstance(logger, Namespace)
                and "version" in logger.init_args
                and command != "fit"
                and (not self._version_is_a_flag())
            ):
                logger.init_args.version = None  # that of a training whose config.yaml is used again
            named = isinstance(logger, Namespace) and logger.class_path.endswith(
                (".GroupedTensorBoard", ".TensorBoardLogger", ".CSVLogger")
            )
            if named and command == "fit" and logger.init_args.version is None:
                logger.init_args.version = slurm_version()
        if not any(loggers):
            self._leave_out_monitors()
        if trainer.default_root_dir is None:  # where a run without a logger goes
            trainer.default_root_dir = str(Path("runs") / self.experiment)
        for logger in loggers:
            self._check_writable(logger)
        if command:
            checks.check_folders(self.settings.data.init_args, predicting=command == "predict")
            self._check_trained(command)

    def _version_is_a_flag(self) -> bool:
        return any(
            origin.startswith("-") and get_nested(content, "trainer.logger.init_args.version") is not None
            for origin, content in self.line.sources
        )

    def _leave_out_monitors(self) -> None:
        """Without a logger Lightning's monitors of rates and devices raise an error of their own."""
        given = self.settings.trainer.callbacks or []
        idle = [one for one in given if one.class_path.rpartition(".")[2] in checks.NEED_A_LOGGER]
        if idle:
            rank_zero_info(f"left out, as there is no logger: {', '.join(one.class_path for one in idle)}")
            self.settings.trainer.callbacks = [one for one in given if one not in idle]

    def _check_trained(self, command: str) -> None:
        """Refuse to evaluate a network that would have to be trained first, before its encoders' weights are read."""
        if command == "fit" or self.settings.ckpt_path:
            return
        alone = self.config.clone()  # a logger may open an experiment on a server as soon as it is built
        alone[command].trainer.logger, alone[command].trainer.callbacks = False, None
        with isolate_rng(), sizes_alone():
            model = self.parser.instantiate(alone)[command].model
        if count := checkpoints.count_parameters(model)["trainable"]:
            raise ConfigError(
                "--ckpt_path",
                f"nothing, for an experiment that trains {count:,} parameters",
                "a checkpoint",
                "Give its path; `--ckpt_path best` is that of this experiment's newest "
                "run, and `--ckpt_path none` evaluates the network as it is before training.",
            )

    def _name_experiment(self, logger: Any) -> None:
        """What a logger calls an experiment, where nobody has chosen: `name`, MLflow's `experiment_name`, W&B's
        `project`."""
        if not isinstance(logger, Namespace):
            return
        kind = logger.class_path.rpartition(".")[2]
        package = LOGGERS.get(kind)
        if package is not None and find_spec(package.replace("-", "_").removesuffix("_skinny")) is None:
            raise ConfigError(
                "trainer.logger",
                f"{kind}, and the package {package} is not installed",
                "a logger whose package is installed",
                f"Run `pip install {package}`, or take another logger.",
            )
        for key in ("name", "experiment_name", "project"):
            if key in logger.init_args and logger.init_args[key] in (
                "lightning_logs",
                *([None] if key == "project" else []),
            ):
                logger.init_args[key] = self.experiment
        if kind == "MLFlowLogger" and not logger.init_args.get("tracking_uri"):
            # MLflow 3 refuses folders, which it no longer extends, unless it is told so; a database needs a server's
            # packages
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing leaves this machine unasked

    def _check_writable(self, logger: Any) -> None:
        folder = logger.init_args.get("save_dir") if isinstance(logger, Namespace) else None
        folder = None if folder is None else Path(folder)
        while folder is not None and not folder.exists():
            folder = folder.parent
        if folder is not None and not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise ConfigError(
                "trainer.logger.save_dir",
                f"{folder}, which cannot be written to",
                "a writable folder",
                "Choose another folder or free some space.",
            )

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        compatibility.check_run(self.model, self.datamodule)
        if self.checkpoint is not None:  # before clips are looked for, or a user's videos decoded
            path = self.settings.ckpt_path
            checkpoints.check_record(self.model, self.checkpoint.get(checkpoints.RECORD), path)
            checkpoints.check_names(self.model, self.checkpoint["state_dict"], path)
            self.checkpoint = None

    def _run_subcommand(self, subcommand: str) -> None:
        """Run; a command that fails before it has anything to keep leaves no folder."""
        folder = logged_folder(self.trainer)
        if folder is not None and self.trainer.is_global_zero and not self.trainer.fast_dev_run:
            check_config(folder, self._config_text(), self._resumes(subcommand))  # before a logger writes there
        inner = Path(self.trainer.default_root_dir) / "version" if folder is None else folder
        self.missing = tuple(path for path in (inner, *inner.parents) if not path.exists())
        try:
            super()._run_subcommand(subcommand)
        except BaseException:
            if self.trainer.is_global_zero and (subcommand != "fit" or self.trainer.global_step == 0):
                remove_empty_run(self.trainer, self.missing)
            raise

    def _config_text(self) -> str:
        return self._parser(self.subcommand).dump(self.settings, skip_unset=False, skip_validation=True)

    def _resumes(self, subcommand: str) -> bool:
        return subcommand == "fit" and self.settings.get("ckpt_path") not in (None, UNTRAINED)

    def instantiate_trainer(self, **options: Any) -> Any:
        self._dump_config()
        logger = self.settings.trainer.logger
        name = logger.init_args.get("name") if isinstance(logger, Namespace) else None
        name = name or self.experiment
        # result.json says that a run is finished: what a run keeps besides is written before it
        forced = [
            callbacks.StepMeter(),
            callbacks.ExactResume(),
            callbacks.EpochLines(),
            callbacks.OutcomeWriter(),
            callbacks.RunReport(name, self.config_dump),
        ]
        if self.settings.trainer.get("enable_checkpointing") is not False:
            forced += [callbacks.TaskCheckpoint(), callbacks.LastCheckpoint(), callbacks.InterruptCheckpoint()]
        if self.config.get("subcommand") == "predict":
            forced.append(callbacks.PredictionWriter())
        forced.append(callbacks.FailTogether())
        present = (
            self.config_init[self.config.subcommand].trainer.callbacks
            if self.config.get("subcommand")
            else self.config_init.trainer.callbacks
        )
        kinds = Counter(type(callback) for callback in present or [])
        if twice := [
            kind.__name__ for kind, times in kinds.items() if times > 1 and kind.__module__.startswith("avprompt.")
        ]:
            raise ConfigError(
                "trainer.callbacks",
                f"{twice[0]} twice",
                "each of avprompt's callbacks once",
                "Both would write the same files. `--format` and `--features` add callbacks: where you add "
                "one yourself, give it `--trainer.callbacks.formats=[pdf]` instead.",
            )
        own_bar = any(type(callback).__name__.endswith("ProgressBar") for callback in present or [])
        if (
            self.settings.trainer.get("enable_progress_bar") is None
            and not own_bar
            and (is_quiet() or not sys.stdout.isatty())
        ):  # a bar redraws itself, which fills a file with it
            options["enable_progress_bar"] = False
        if is_quiet():
            options["enable_model_summary"] = False
        trainer = super().instantiate_trainer(
            callbacks=[*(present or []), *(c for c in forced if type(c) not in kinds)], **options
        )
        self._find_checkpoint(trainer)
        if trainer.world_size > 1:
            together.watch()
        return trainer

    def _find_checkpoint(self, trainer: Trainer) -> None:
        command = self.config.get("subcommand")
        if command and self.settings.ckpt_path in ("best", "last"):
            path = newest_checkpoint(trainer, self.settings.ckpt_path)
            rank_zero_info(f"--ckpt_path {self.settings.ckpt_path} is {path}")
            self.checkpoint = checkpoints.read_checkpoint(path)
            self.settings.ckpt_path = self.config_init[command].ckpt_path = self.config_dump["ckpt_path"] = str(path)
        if command and self.settings.ckpt_path == UNTRAINED:
            self.config_init[command].ckpt_path = None
        elif command == "fit" and self.settings.ckpt_path is None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
            path = own_checkpoint(trainer) if slurm_version() else None
            rank_zero_info(f"this SLURM job was queued again: it goes on from {path or 'the beginning'}")
            if path is not None:
                self.checkpoint = checkpoints.read_checkpoint(path)
                for settings in (self.settings, self.config_init[command], self.config_dump):
                    settings["ckpt_path"] = str(path)
        if command == "fit":
            keep_csv(trainer)


class _Parts(AVPromptCLI):
    """Builds the data module and the task, no trainer."""

    def instantiate_trainer(self, **options: Any) -> None:
        """Nothing."""


def lightning_cli() -> type[AVPromptCLI]:
    """The class behind `avprompt fit|validate|test|predict`."""
    return AVPromptCLI


def parts_of(args: list[str], meta: bool = False) -> tuple[Any, Any]:
    """Build the task and the data module that an experiment describes.

    Args:
        args: `--config X` and overrides.
        meta: build them on the meta device: exact sizes, no memory, no weights.

    Raises:
        ConfigError: see `AVPromptCLI`.

    >>> task, data = parts_of(["--config", "quickstart"], meta=True)
    >>> type(task).__name__, type(data).__name__
    ('AVE', 'AVEDataModule')
    """
    with sizes_alone() if meta else torch.device("cpu"):
        built = _Parts(args, run=False)
        return built.model, built.datamodule


def model_of(args: list[str], meta: bool = False) -> Any:
    """Build the task that an experiment describes, see `parts_of`."""
    return parts_of(args, meta)[0]
