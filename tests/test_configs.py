"""Configurations that inherit: bases, fragments, flags in the long and the short form, names instead of paths."""

from __future__ import annotations

import inspect
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from avprompt.cli import main, run
from avprompt.configs import (
    EXPERIMENTS,
    FRAGMENTS,
    find_file,
    flatten,
    get_nested,
    read_arguments,
    read_yaml,
)
from avprompt.data_modules import AVDataModule
from avprompt.encoders import FrozenEncoder
from avprompt.errors import ConfigError
from avprompt.features import FeatureSource
from avprompt.heads import EventHead, ParsingHead
from avprompt.methods import ClassEmbeddings, PromptMethod
from avprompt.tasks.base import AVPromptTask

NAMES = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
RELEASED = [name for name in NAMES if name.endswith("_released")]
PROMPTS = "model.init_args.backbone.init_args.prompts"


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"top": "{base: low, a: 1, c: {x: 1}}", "low": "{a: 0, b: 2, c: {y: 2}}"},
            {"a": 1, "b": 2, "c": {"x": 1, "y": 2}},
        ),
        ({"top": "{base: ./low.yaml, a: 1}", "low": "a: 0"}, {"a": 1}),
        ({"top": "{base: [one, two], c: 3}", "one": "{a: 1, b: 1}", "two": "b: 2"}, {"a": 1, "b": 2, "c": 3}),
        (
            {"top": "{base: middle, a: 1}", "middle": "{base: low, b: 2}", "low": "{a: 0, b: 0, c: 0}"},
            {"a": 1, "b": 2, "c": 0},
        ),
        ({"top": "{base: low, a: null, d: null}", "low": "{a: 0, b: 1}"}, {"b": 1, "d": None}),
        ({"top": "{base: low, a: [3]}", "low": "a: [1, 2]"}, {"a": [3]}),
        ({"top": "a.b.c: 1\na.b.d: 2\na.e: 3"}, {"a": {"b": {"c": 1, "d": 2}, "e": 3}}),
        ({"top": "{base: low, a.b: 2}", "low": "a: {b: 1, c: 1}"}, {"a": {"b": 2, "c": 1}}),
    ],
    ids=["keys", "path", "list", "chain", "null", "lists", "dotted", "dotted over a base"],
)
def test_base_is_laid_under(files: dict[str, str], expected: Any, tmp_path: Path) -> None:
    write(tmp_path, **files)
    assert read_yaml(tmp_path / "top.yaml") == expected


A, B = "{class_path: m.A, x: 1, y: 2}", "{class_path: m.B, y: 3}"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"top": "{base: low, p: {x: 9}}", "low": f"p: {A}"}, {"class_path": "m.A", "init_args": {"x": 9, "y": 2}}),
        ({"top": "{base: low, p.x: 9}", "low": f"p: {A}"}, {"class_path": "m.A", "init_args": {"x": 9, "y": 2}}),
        (
            {"top": "{base: low, p: {init_args: {x: 9}}}", "low": f"p: {A}"},
            {"class_path": "m.A", "init_args": {"x": 9, "y": 2}},
        ),
        ({"top": f"{{base: low, p: {B}}}", "low": f"p: {A}"}, {"class_path": "m.B", "init_args": {"y": 3}}),
        ({"top": "{base: low, p.class_path: m.B}", "low": f"p: {A}"}, {"class_path": "m.B"}),
        ({"top": "{base: low, p: m.B}", "low": f"p: {A}"}, {"class_path": "m.B"}),
        ({"top": "p: {base: part.yaml, x: 9}", "part": A}, {"class_path": "m.A", "init_args": {"x": 9, "y": 2}}),
        ({"top": "p: part.yaml\np.x: 9", "part": A}, {"class_path": "m.A", "init_args": {"x": 9, "y": 2}}),
        (
            {
                "top": "{base: low, p: part.yaml}",
                "low": "p: {class_path: m.A, x: 1, z: 5}",
                "part": "{class_path: m.A, x: 2}",
            },
            {"class_path": "m.A", "init_args": {"x": 2}},
        ),
        (
            {"top": "p: {base: shared.yaml, class_path: m.A, x: 1}", "shared": "{x: 0, w: 7}"},
            {"class_path": "m.A", "init_args": {"x": 1, "w": 7}},
        ),
        (
            {"top": "p: {base: [part.yaml, shared.yaml]}", "part": A, "shared": "{x: 0, w: 7}"},
            {"class_path": "m.A", "init_args": {"x": 0, "y": 2, "w": 7}},
        ),
        ({"top": "{base: low, p: {x: null}}", "low": f"p: {A}"}, {"class_path": "m.A", "init_args": {"y": 2}}),
        (
            {
                "top": "{base: low, p: {t: {class_path: m.T}}}",
                "low": "p: {class_path: m.A, t: {class_path: m.S, k: 1}}",
            },
            {"class_path": "m.A", "init_args": {"t": {"class_path": "m.T"}}},
        ),
        ({"top": "{base: low, p: 3}", "low": f"p: {A}"}, 3),
    ],
    ids=[
        "short",
        "dotted",
        "long",
        "another class",
        "class alone",
        "class as text",
        "changed fragment",
        "fragment and dotted",
        "fragment starts anew",
        "arguments without class",
        "arguments over a class",
        "null",
        "class within",
        "value",
    ],
)
def test_classes(files: dict[str, str], expected: Any, tmp_path: Path) -> None:
    """Arguments of a replaced class never stay; those of a class that stays do."""
    write(tmp_path, **files)
    assert read_yaml(tmp_path / "top.yaml")["p"] == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"top": "base: nowhere"}, r"top.yaml: base: got nowhere"),
        ({"top": "base: ave_dgst"}, r"top.yaml: base: got ave_dgst.*Did you mean ave_dgsct"),
        ({"top": "p: {base: nowhere}"}, r"top.yaml: p.base: got nowhere"),
        ({"top": "p: nowhere.yaml"}, r"top.yaml: p: got nowhere.yaml"),
        ({"top": "base: 3"}, r"top.yaml: base: got \[3\]; expected a name, a path, or a list"),
        ({"top": "p: {base: {a: 1}}"}, r"top.yaml: p.base: got .*expected a name"),
        ({"top": "base: low", "low": "[1, 2]"}, r"top.yaml: base: got low, which holds no mapping"),
        (
            {"top": "base: low", "low": "base: top"},
            r"base: got top.yaml -> low.yaml -> top.yaml; expected files that do not",
        ),
        ({"top": "p: {base: low}", "low": "q: {base: top}"}, r"top.yaml -> low.yaml -> top.yaml"),
        ({"top": "base: ./top.yaml"}, r"top.yaml: base: got ./top.yaml"),
        ({"top": "{base: low, p: {x: 1}}", "low": "p: [1]"}, r"top.yaml: p: got keys \['x'\] over \[1\]"),
        ({"top": "{base: low, p.x: 1}", "low": "p: 3"}, r"top.yaml: p: got keys \['x'\] over 3"),
        ({"top": "base: low", "low": "a: ["}, r"low.yaml: got no YAML"),
    ],
)
def test_faults_name_file_and_key(files: dict[str, str], message: str, tmp_path: Path) -> None:
    write(tmp_path, **files)
    with pytest.raises(ConfigError, match=message):
        read_yaml(tmp_path / "top.yaml")


def test_names_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the current folder wins, then those in its experiments/ and lightning_configs/, then what ships."""
    monkeypatch.chdir(tmp_path)
    for name in ("ave_dgsct", "ave_dgsct.yaml", "experiments/ave_dgsct.yaml", "experiments/ave_dgsct"):
        assert find_file(name) == EXPERIMENTS / "ave_dgsct.yaml"
    for name in ("trainer/cpu", "lightning_configs/trainer/cpu.yaml"):
        assert find_file(name) == FRAGMENTS / "trainer" / "cpu.yaml"
    (tmp_path / "experiments").mkdir()
    write(tmp_path / "experiments", ave_dgsct="{base: ave_none, seed_everything: 5}")
    assert read_yaml("ave_dgsct")["seed_everything"] == 5
    write(tmp_path, ave_dgsct="{base: ave_dgsct, seed_everything: 7}")
    assert read_yaml("ave_dgsct")["seed_everything"] == 7
    assert read_yaml("ave_dgsct")["trainer"]["max_epochs"] == 50  # its base is the one that ships, not itself


@pytest.mark.parametrize(
    ("value", "accelerator"),
    [
        ("cpu", "cpu"),
        ("trainer/cpu", "cpu"),
        ("trainer/cpu.yaml", "cpu"),
        ("lightning_configs/trainer/cpu.yaml", "cpu"),
        (str(FRAGMENTS / "trainer" / "cpu.yaml"), "cpu"),
        ("mine.yaml", "mine"),
    ],
)
def test_fragments_in_flags(value: str, accelerator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, mine="accelerator: mine")
    line = read_arguments(["--config", "ave_dgsct", "--trainer", value])
    assert line.content["trainer"]["accelerator"] == accelerator and line.content["trainer"]["max_epochs"] == 50
    assert not any("cpu" in word for word in line.arguments if word.startswith("--trainer"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trainer", "cpuu"], "--trainer: got trainer/cpuu.*Did you mean trainer/cpu"),
        (["--trainer", "nowhere.yaml"], "--trainer.*got nowhere.yaml"),
        (["--model.backbone.prompts=methods/dgsc.yaml"], "--model.backbone.prompts.*Did you mean methods/dgsct"),
    ],
)
def test_misspelt_fragments(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_arguments(["--config", "ave_dgsct", *flags])


def test_misspelt_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "avs_s4_dgstc"])
    assert stop.value.code == 2 and "Did you mean avs_s4_dgsct" in capsys.readouterr().err


def test_fragment_of_a_class_replaces_on_the_command_line_too() -> None:
    """S4's arguments are none of AVE's, though the class is the same."""
    line = read_arguments(["--config", "avs_s4_dgsct", "--model.backbone.prompts", "methods/dgsct"])
    assert "prompt_map" not in get_nested(line.content, f"{PROMPTS}.init_args")
    assert not any("bicubic" in word for word in line.arguments)
    line = read_arguments(["--config", "avs_s4_dgsct", "--model.backbone.prompts.reduction", "4"])
    assert get_nested(line.content, f"{PROMPTS}.init_args.prompt_map") == "bicubic"


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("--model.backbone.prompts.spatial=false", f"--{PROMPTS}.init_args.spatial=false"),
        ("--data.shots=4", "--data.init_args.shots=4"),
        ("--trainer.logger.save_dir=x", "--trainer.logger.init_args.save_dir=x"),
        ("--model.optimizer.lr=1", "--model.init_args.optimizer.init_args.lr=1"),
        ("--model.backbone.visual.fbank.mean=1", "--model.init_args.backbone.init_args.visual.init_args.fbank.mean=1"),
        ("--model.backbone.prompts=NoPrompts", f"--{PROMPTS}=avprompt.methods.NoPrompts"),
        ("--trainer.max_epochs=3", "--trainer.max_epochs=3"),
    ],
)
def test_short_flags_say_what_long_ones_say(short: str, long: str) -> None:
    sources = [read_arguments(["--config", "ave_avstfp_b16", flag]).sources[-1][1] for flag in (short, long)]
    assert sources[0] == sources[1]


def test_optimizer_of_the_signature_is_a_class(tmp_path: Path) -> None:
    """Where no file names one, the parser takes the constructor's default; so does a short flag."""
    write(tmp_path, plain="{base: quickstart, model: {optimizer: null}}")
    line = read_arguments(["--config", str(tmp_path / "plain.yaml"), "--model.optimizer.lr", "1"])
    assert get_nested(line.content, "model.init_args.optimizer.init_args") == {"lr": 1}


def test_null_of_a_flag_is_a_value() -> None:
    line = read_arguments(["--config", "avqa_dgsct", "--data.negatives", "null"])
    assert line.content["data"]["init_args"]["negatives"] is None


def test_appended_callbacks_keep_the_others() -> None:
    line = read_arguments(["--config", "ave_dgsct", "--trainer.callbacks+=lightning.pytorch.callbacks.Timer"])
    assert len(line.content["trainer"]["callbacks"]) == 4
    assert "--trainer.callbacks+=lightning.pytorch.callbacks.Timer" in line.arguments


def parsed(args: list[str]) -> dict[str, Any]:
    """What the parser makes of a command line, by dotted name."""
    from avprompt.cli import lightning_cli

    class ConfigOnly(lightning_cli()):
        def instantiate_classes(self) -> None:
            """Nothing."""

    found = yaml.safe_load(
        ConfigOnly(args, run=False).parser.dump(ConfigOnly(args, run=False).config, skip_unset=False)
    )
    return flatten(found)


def test_resolved_experiment_is_the_same_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--show` and `--copy` leave nothing out; the copy runs without the files that it came from."""
    run(["experiments", "avs_ms3_dgsct_released", "--show"])
    shown = capsys.readouterr().out
    assert shown.startswith("# AVSBench MS3") and "base:" not in shown
    run(["experiments", "avs_ms3_dgsct_released", "--copy", str(tmp_path / "mine")])
    copy = tmp_path / "mine" / "avs_ms3_dgsct_released.yaml"
    assert copy.read_text() == shown
    assert parsed(["--config", str(copy)]) == parsed(["--config", "avs_ms3_dgsct_released"])
    with pytest.raises(ConfigError, match="which exists"):
        run(["experiments", "avs_ms3_dgsct_released", "--copy", str(tmp_path / "mine")])


def test_list_of_experiments(capsys: pytest.CaptureFixture[str]) -> None:
    run(["experiments"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: re.split(r"\s{2,}", line) for line in lines[1:]}
    assert list(rows) == NAMES
    assert rows["ave_dgsct"] == ["ave_dgsct", "AVE", "DGSCT", "Swin-V2-L + HTS-AT", "accuracy 82.2"]
    assert rows["avqa_avstfp_l14"] == ["avqa_avstfp_l14", "AVQA", "AVSTFP", "CLIP ViT-L/14 for both", "average 77"]
    assert rows["fewshot_ave_coop"][2:] == ["CoOp", "CLIP ViT-B/32 + CLAP HTS-AT", "accuracy 64.4"]
    assert rows["zeroshot_ave"][-1] == "accuracy 64.7" and rows["ave_none"][-1] == "Swin-V2-L + HTS-AT"
    assert not any("accuracy" in cell for name in NAMES if "quickstart" in name for cell in rows[name])


def test_misspelt_name_of_an_experiment() -> None:
    with pytest.raises(ConfigError, match="Did you mean ave_dgsct"):
        run(["experiments", "ave_dgstc", "--show"])


def differences(name: str) -> dict[str, Any]:
    """Dotted name -> value of what an experiment says otherwise than its base, without `init_args`."""
    path = EXPERIMENTS / f"{name}.yaml"
    base = yaml.safe_load(path.read_text())["base"]
    one, other = (flatten(read_yaml(file)) for file in (base, path))
    changed = {key for key in one.keys() | other.keys() if one.get(key, "") != other.get(key, "")}
    return {key.replace(".init_args", ""): other.get(key) for key in changed}


@pytest.mark.parametrize("name", RELEASED)
def test_header_of_a_released_experiment_names_its_differences(name: str) -> None:
    """What the header quotes is what the file changes: no more, no less."""
    text = (EXPERIMENTS / f"{name}.yaml").read_text()
    header = " ".join(line[2:] for line in text.splitlines() if line.startswith("#"))
    base = yaml.safe_load(text)["base"]
    told = header.partition(f"Against {base}: ")[2].partition("Not repeated")[0]
    assert told, f"no `Against {base}:` in the header"
    quoted = {word for word in re.findall(r"`([\w.]+)`", header) if not word.endswith("_dgsct")}
    changed = set(differences(name))
    for word in quoted - {"swin"}:
        assert any(key.endswith(f".{word}") or key == word for key in changed), f"`{word}` is no difference"
    for key in changed:
        assert any(key.endswith(f".{word}") or key == word for word in quoted), f"{key} is not in the header"


@pytest.mark.parametrize("name", NAMES)
def test_every_line_of_an_experiment_counts(name: str, tmp_path: Path) -> None:
    """A key that says what the base says already is no change."""
    content = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text())
    whole = read_yaml(name)
    for key in content:
        if key == "base":
            continue
        (tmp_path / "less.yaml").write_text(yaml.safe_dump({k: v for k, v in content.items() if k != key}))
        assert read_yaml(tmp_path / "less.yaml") != whole, f"{key} changes nothing"


def test_experiments_stay_short() -> None:
    """Written as changes of one another, comments aside, they need under 20 lines each, fragments and sweeps included."""
    lines = [
        line
        for folder in (EXPERIMENTS, FRAGMENTS)
        for path in folder.rglob("*.yaml")
        for line in path.read_text().splitlines()
        if not line.startswith("#")
    ]
    assert len(lines) < 20 * len(NAMES)


def flags_of(text: str) -> set[str]:
    """Flags of a configuration that a text mentions."""
    return set(re.findall(r"--((?:model|data|trainer)(?:\.[a-z_]+)+)", text))


PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(EXPERIMENTS.rglob("*.yaml")),
    *sorted(FRAGMENTS.rglob("*.yaml")),
    *sorted((ROOT / "src").rglob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
]


def test_pages_use_short_flags() -> None:
    long = {
        str(path.relative_to(ROOT)): sorted(found)
        for path in PAGES
        if (found := {flag for flag in flags_of(path.read_text(encoding="utf-8")) if "init_args" in flag})
    }
    assert not long


#: an experiment that has what a flag is about, where ave_dgsct has not
OWNERS = (
    "ave_dgsct",
    "avqa_dgsct",
    "fewshot_ave_dgsct",
    "ave_avstfp_b16",
    "avvp_dgsct",
    "avs_ms3_quickstart",
    "ave_late_fusion_quickstart",
    "ave_avmoe",
    "ave_stgcma_l14",
    "avqa_st_avqa_networks",
    "avvp_jomold_feats",
    "avs_s4_pvt",
)
#: a misspelling that the guide explains, an argument of features that are read from a cache, and those of callbacks that
#: a command line adds
OTHERS = {
    "trainer.max_epoch",
    "model.backbone.cache",
    "trainer.callbacks.videos",
    "trainer.callbacks.formats",
    "trainer.callbacks.umap",
}


def test_flags_that_pages_mention_exist() -> None:
    """Each is an argument of an experiment's classes, as the parser finds it."""
    known: set[str] = set()
    for name in OWNERS:
        known |= {key.replace(".init_args", "") for key in parsed(["--config", name])}
    known |= {key.rpartition(".")[0] for key in known} | {f"{key}+" for key in known}
    known |= {".".join(key.split(".")[:depth]) for key in known for depth in range(1, 6)}
    mentioned = {flag: path for path in PAGES for flag in flags_of(path.read_text(encoding="utf-8"))}
    wrong = {
        flag: str(path.relative_to(ROOT))
        for flag, path in mentioned.items()
        if flag.rstrip(".") not in known and flag not in OTHERS
    }
    assert not wrong


def test_callbacks_as_lightning_s_manual_adds_them() -> None:
    """By a name alone, then its arguments one by one."""
    flags = [
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor=val_accuracy",
        "--trainer.callbacks.patience=1",
    ]
    assert read_arguments(["--config", "quickstart", *flags]).arguments[-3:] == flags


def test_no_argument_takes_any_module() -> None:
    """A configuration could then build every module of the process, and completion would go through all of them."""

    def kinds(kind: type) -> set[type]:
        return {kind}.union(*(kinds(below) for below in kind.__subclasses__()))

    bases = (
        AVPromptTask,
        AVDataModule,
        FeatureSource,
        FrozenEncoder,
        PromptMethod,
        ClassEmbeddings,
        EventHead,
        ParsingHead,
    )
    ours = {kind for base in bases for kind in kinds(base) if kind.__module__.startswith("avprompt.")}
    wide = {
        f"{kind.__name__}.{name}"
        for kind in ours
        for name, value in inspect.signature(kind).parameters.items()
        if re.search(r"\bnn\.Module\b", str(value.annotation))
    }
    assert len(ours) > 60 and not wide


@pytest.fixture(scope="module")
def completion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The completion script of bash."""
    from avprompt.cli.completion import script
    from avprompt.cli.main import FUNCTIONS

    pytest.importorskip("shtab", reason="completion needs the extra `completion`")
    path = tmp_path_factory.mktemp("completion") / "avprompt"
    path.write_text(script("bash", FUNCTIONS, ("sweep",)))
    assert path.stat().st_size < 5e6  # classes that take classes of their own kind multiply
    return path


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("avprompt exp", {"experiments"}),
        ("avprompt experiments ave_dgsct_", {"ave_dgsct_released"}),
        ("avprompt fit --config avs_s4_d", {"avs_s4_dgsct", "avs_s4_dgsct_released"}),
        ("avprompt fit --model.backbone.prompts.num_to", {"--model.backbone.prompts.num_tokens"}),
        ("avprompt params --data.eval_b", {"--data.eval_batch_size"}),
        ("avprompt sweep --quick", {"--quickstart"}),
        ("avprompt data syn", {"synth"}),
        ("avprompt data synth av", {"ave", "avsbench"}),
    ],
)
def test_shell_completion(line: str, expected: set[str], completion: Path) -> None:
    """As bash calls it when Tab is pressed at the end of a line."""
    words = line.split()
    code = (
        f"source {completion}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; "
        "COMP_POINT=${#COMP_LINE}; _shtab_avprompt; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    said = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout
    assert expected <= set(said.split()) and all(word.startswith(words[-1]) for word in said.split())
