"""`avprompt data prepare|verify|synth|stats|features`."""

from __future__ import annotations

import json
import sys

from avprompt.errors import ConfigError, WriteError

STATS = """usage: avprompt data stats --config X [overrides as for fit]

Measure mean and standard deviation of the un-normalised fbank features of the training split, with the settings of the
experiment's audio encoder. Writes them to fbank_statistics.json in the data's root and prints them as flags."""


def data(args: list[str]) -> None:
    """Run one of the commands that prepare, check, generate or measure data.

    Args:
        args: the command's name and its options.

    Raises:
        AVPromptError: see the command's own function.
    """
    if args[:1] == ["stats"]:
        stats(args[1:])
        return
    if args[:1] == ["features"]:
        from avprompt.cli.features import features

        features(args[1:])
        return
    from jsonargparse import auto_cli

    from avprompt.cli.parsing import Parser
    from avprompt.datasets.verify import verify
    from avprompt.media.prepare import prepare
    from avprompt.ranges import checked
    from avprompt.synthetic import SYNTHETIC_DATASETS

    made = {name: checked(function) for name, function in SYNTHETIC_DATASETS.items()}
    complete = auto_cli(
        {"prepare": checked(prepare), "verify": verify, "synth": made},
        args=args,
        prog="avprompt data",
        parser_class=Parser,
        allow_abbrev=False,
        as_positional=False,
        epilog="See also `avprompt data stats --help` and `avprompt data features --help`.",
    )
    if args[:1] == ["verify"] and complete is False:
        sys.exit(1)


def stats(args: list[str]) -> None:
    """Measure the spectrograms of an experiment's training split.

    Args:
        args: `--config X` and overrides.

    Raises:
        ConfigError: the audio encoder has no fbank front end, or the data are sampled otherwise than the encoders take.
    """
    if "--help" in args or "-h" in args:
        print(STATS)
        return
    if not args:
        print(STATS.split("\n")[0], file=sys.stderr)
        sys.exit(2)
    from dataclasses import asdict

    from avprompt.cli.lightning import parts_of
    from avprompt.compatibility import check_run
    from avprompt.configs import get_nested, read_arguments
    from avprompt.datasets.fbank_statistics import fbank_statistics
    from avprompt.encoders import Fbank
    from avprompt.files import write_whole

    model, datamodule = parts_of(args, meta=True)
    audio = model.backbone.audio
    fbank = getattr(audio, "fbank", None)
    if not isinstance(fbank, Fbank):
        raise ConfigError(
            "model.backbone.audio",
            type(audio).__name__,
            "an encoder with an fbank front end, such as ViTSpectrogram",
            "Choose another experiment.",
        )
    check_run(model, datamodule)
    datamodule.setup("fit")
    train = datamodule.datasets["train"]
    found = fbank_statistics(train.ids, train.reader, fbank, train.substitute, datamodule.num_workers)
    settings = {key: value for key, value in asdict(fbank).items() if key not in ("mean", "std")}
    path = datamodule.root / "fbank_statistics.json"
    seconds = found.segments * datamodule.sampling.seconds
    record = {"split": "train", **asdict(found), "seconds": seconds, "fbank": settings}
    try:
        write_whole(path, (json.dumps(record, indent=2) + "\n").encode())
    except WriteError as error:
        print(f"{path} cannot be written ({error.got}); what it would hold:\n{json.dumps(record, indent=2)}")
    print(f"{path}: {found.clips} clips, {found.segments} segments, {found.corrupt} clips left out")
    given = get_nested(read_arguments(args).content, "model.init_args.backbone.init_args.audio")
    # with `audio: shared` or `separate` the visual encoder's arguments describe the front end
    side = "visual" if given in ("shared", "separate") else "audio"
    for name in ("mean", "std"):
        print(f"--model.backbone.{side}.fbank.{name} {getattr(found, name):.4f}")
