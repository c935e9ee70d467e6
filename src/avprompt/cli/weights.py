"""`avprompt weights`: the files of pretrained weights that experiments need, where they come from, and whether they are
here."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from avprompt.cli.experiments import with_defaults
from avprompt.cli.parsing import PlainParser
from avprompt.configs import EXPERIMENTS, find_file, is_spec, read_yaml
from avprompt.errors import WeightsError

#: What no library knows of files that users put in place: source, licence, and where a hub serves them. The licences are
#: those of the LICENSE file of RetroCirce/HTS-Audio-Transformer, which says nothing of the weights alone (commit
#: 7711b9f), and of the model card of lukewys/laion_clap; RoBERTa's card could not be read, its licence is from memory.
KNOWN: dict[str, tuple[str, str, tuple[str, tuple[str, ...]] | None]] = {
    "HTSAT_AudioSet_Saved_1.ckpt": ("https://github.com/RetroCirce/HTS-Audio-Transformer (AudioSet)", "mit", None),
    "630k-audioset-fusion-best.pt": (
        "https://huggingface.co/lukewys/laion_clap",
        "cc0-1.0",
        ("lukewys/laion_clap", ("630k-audioset-fusion-best.pt",)),
    ),
    "roberta-base": (
        "https://huggingface.co/FacebookAI/roberta-base",
        "mit",
        ("FacebookAI/roberta-base", ("vocab.json", "merges.txt")),
    ),
}
#: arguments whose values are files that an experiment cannot do without
FILES = ("pretrained", "tokenizer", "cache", "head_from", "grounding")


@dataclass
class Weight:
    """One file of weights.

    Args:
        name: the file, or a library's name of it.
        source: address, or what makes it.
        licence: as its authors name it; empty where that is not known.
        hub: repository and files that huggingface_hub fetches, `None` elsewhere.
        folder: that they are fetched to; `None` is the hub's cache.
        path: where it lies, `None` where it is missing.
        bytes: its size, once it is here.
        sha256: as the library or the hub states it, empty where neither does.
        experiments: that need it.
    """

    name: str
    source: str = ""
    licence: str = ""
    hub: tuple[str, tuple[str, ...]] | None = None
    folder: Path | None = None
    path: Path | None = None
    bytes: int | None = None
    sha256: str = ""
    experiments: list[str] = field(default_factory=list)

    def look(self) -> None:
        """Find the file, and what its place says of it."""
        if self.folder is not None:
            found = self.folder / Path(self.name).name
            self.path = found if found.exists() else None
        elif self.hub is not None:
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(self.hub[0], self.hub[1][0])
            self.path = Path(found) if isinstance(found, str) else None
            if self.path is not None and re.fullmatch(r"[0-9a-f]{64}", self.path.resolve().name):
                self.sha256 = self.path.resolve().name  # the hub names large files by their digest
        if self.path is not None:
            files = [self.path] if self.path.is_file() else [file for file in self.path.rglob("*") if file.is_file()]
            self.bytes = sum(file.stat().st_size for file in files)

    def fetch(self) -> None:
        """Fetch it from the hub.

        Raises:
            WeightsError: no hub serves it, or it cannot be reached.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        repo, files = self.hub
        folder = None if self.folder is None else self.folder / (self.name.rpartition("/")[2] if len(files) > 1 else "")
        try:
            for file in files:
                hf_hub_download(repo, file, local_dir=folder)
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise WeightsError(
                self.name,
                f"{type(error).__name__}: {str(error).splitlines()[0]}",
                f"{', '.join(files)} of {self.source}",
                "Check the network and HF_HUB_OFFLINE, or put the file there by hand.",
            ) from error
        self.look()

    def digest(self) -> str:
        """SHA-256 of the file that is here; empty where it is missing, or a folder."""
        if self.path is None or not self.path.is_file():
            return ""
        with self.path.open("rb") as file:
            return (
                hashlib.file_digest(file, "sha256").hexdigest()
                if hasattr(hashlib, "file_digest")
                else (hashlib.sha256(file.read()).hexdigest())
            )


def needed(content: Any) -> list[Weight]:
    """The weights that a configuration names, in its order.

    Args:
        content: of an experiment, in the long form.

    Example:
        >>> [weight.name for weight in needed(read_yaml("ave_dgsct"))]
        ['timm:swinv2_large_window12_192.ms_in22k', 'checkpoints/HTSAT_AudioSet_Saved_1.ckpt']
    """
    found: list[Weight] = []
    if isinstance(content, list):
        return [weight for part in content for weight in needed(part)]
    if not isinstance(content, dict):
        return found
    if is_spec(content):
        arguments = with_defaults(content)["init_args"] if content["class_path"].startswith("avprompt.") else {}
        for name in FILES:
            value = None if name == "cache" and arguments.get("tower") else arguments.get(name)  # which writes it
            if isinstance(value, (str, Path)) and str(value) not in ("none", "synthetic", "zenodo"):
                found.append(weight_of(content["class_path"], str(value), str(arguments.get("model", ""))))
            elif value == "zenodo":
                # the LICENSE file of XiaoMi/dasheng and of its package, 312963e; there is none of the weights alone
                found.append(
                    Weight(f"dasheng:{arguments['model']}", "the address that the package dasheng names", "apache-2.0")
                )
    for key, value in content.items():
        found += needed(value)
        if isinstance(value, str) and key in ("visual", "audio") and ":" in value:
            library, _, name = value.partition(":")
            model, _, tag = name.partition("." if library == "timm" else "/")
            if tag:
                kinds = {"timm": "TimmViT", "open_clip": "CLIP", "ast": "ASTransformer"}
                found.append(weight_of(kinds.get(library, library), name if library == "ast" else tag, model))
    return found


def weight_of(kind: str, value: str, model: str) -> Weight:
    """The file behind an argument of an encoder or task: a path, or the tag of a library."""
    from avprompt.encoders.base import is_path

    name = kind.rpartition(".")[2]
    if name == "ASTransformer" and re.fullmatch(r"[\w.-]+/[\w.-]+", value) and not Path(value).exists():
        return Weight(
            f"ast:{value}",
            f"https://huggingface.co/{value}",
            "bsd-3-clause" if value.startswith("MIT/ast") else "",  # its model card
            (value, ("model.safetensors",)),
        )
    if is_path(value) or name not in ("SwinV2", "SwinV1", "TimmViT", "CLIP", "CLIPText"):
        source, licence, hub = KNOWN.get(Path(value).name, ("", "", None))
        if not source and "runs/" in value:
            source = f"`avprompt fit --config {Path(value).parts[1]}`"
        elif not source and "texts" in value:
            source = "written by the first run that has a text tower"
        return Weight(value, source, licence, hub, Path(value).parent)
    if name in ("CLIP", "CLIPText"):
        import open_clip

        known = open_clip.get_pretrained_cfg(model, value)
        place = (known.get("hf_hub") or "").strip("/")
        digest = re.search(r"/([0-9a-f]{64})/", known.get("url") or "")
        made = Weight(
            f"open_clip:{model}/{value}",
            f"https://huggingface.co/{place}" if place else known.get("url", ""),
            "mit" if value == "openai" else "",
            (place, ("open_clip_model.safetensors",)) if place else None,
        )
        if digest and not place:
            made.sha256 = digest[1]
        return made
    from timm.models import get_pretrained_cfg

    known = get_pretrained_cfg(f"{model}.{value}", allow_unregistered=True)
    repo = getattr(known, "hf_hub_id", None)
    return Weight(
        f"timm:{model}.{value}",
        f"https://huggingface.co/{repo}" if repo else getattr(known, "url", ""),
        getattr(known, "license", None) or "",
        (repo, (known.hf_hub_filename or "model.safetensors",)) if repo else None,
    )


def all_weights(paths: list[Path]) -> list[Weight]:
    """The weights of some experiments, each once, looked for.

    Args:
        paths: of the experiments.
    """
    found: dict[str, Weight] = {}
    for path in paths:
        for weight in needed(read_yaml(path)):
            mine = found.setdefault(weight.name, weight)
            if path.stem not in mine.experiments:
                mine.experiments.append(path.stem)
    for weight in found.values():
        weight.look()
    return list(found.values())


def weights(args: list[str]) -> None:
    """`avprompt weights [EXPERIMENT ...] [--fetch] [--hash] [--json]`.

    Raises:
        WeightsError: a file differs from its known digest; with `--fetch`, a file cannot be fetched.
    """
    parser = PlainParser(
        prog="avprompt weights",
        allow_abbrev=False,
        description=(
            "List the files of weights that experiments need: source, licence, size, SHA-256 where known, found or "
            "missing. Exit code 1: something is missing."
        ),
    )
    parser.add_argument("experiments", nargs="*", help="names or files; none are all that ship")
    parser.add_argument("--config", action="append", default=[], help="likewise")
    parser.add_argument(
        "--fetch", action="store_true", help="fetch what is missing and a hub serves, through huggingface_hub"
    )
    parser.add_argument("--hash", action="store_true", help="read the files that are here, and compare their digests")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(args)
    paths = [find_file(name) for name in (*given.experiments, *given.config)] or sorted(EXPERIMENTS.glob("*.yaml"))
    found = all_weights(paths)
    for weight in found if given.fetch else []:
        if weight.path is None and weight.hub is not None:
            print(f"fetching {weight.name} from {weight.source}", file=sys.stderr, flush=True)
            weight.fetch()
    for weight in found if given.hash else []:
        read = weight.digest()
        if read and weight.sha256 and read != weight.sha256:
            raise WeightsError(weight.path, f"SHA-256 {read}", weight.sha256, "Fetch the file again.")
        weight.sha256 = read or weight.sha256
    if given.json:
        print(
            json.dumps(
                [
                    {
                        **asdict(weight),
                        "folder": None,
                        "path": weight.path and str(weight.path),
                        "hub": weight.hub and weight.hub[0],
                    }
                    for weight in found
                ],
                default=str,
            )
        )
    else:
        for weight in found:
            size = "" if weight.bytes is None else f", {weight.bytes / 1e6:,.1f} MB"
            here = "missing" + (" (--fetch)" if weight.hub else "") if weight.path is None else f"found{size}"
            users = ", ".join(weight.experiments[:3]) + (
                f" and {len(weight.experiments) - 3} more" if len(weight.experiments) > 3 else ""
            )
            print(
                f"{weight.name}: {here}\n    from {weight.source or 'not known'}; licence "
                f"{weight.licence or 'not known'}; SHA-256 {weight.sha256 or 'not known'}\n    for {users}"
            )
        lacking = sum(weight.path is None for weight in found)
        print(f"{len(found)} files, {lacking} missing")
    if any(weight.path is None for weight in found):
        sys.exit(1)
