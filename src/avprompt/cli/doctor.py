"""`avprompt doctor`: what this machine has, what is missing, and what that means."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from avprompt.cli.parsing import PlainParser
from avprompt.cores import usable_cores

#: optional packages, and what needs them
EXTRAS = {
    "h5py": "published features of AVE (avprompt[features])",
    "submitit": "sweep --slurm (avprompt[slurm])",
    "shtab": "completion (avprompt[completion])",
    "dasheng": "the encoder Dasheng (avprompt[dasheng])",
}
#: bytes below which a run is likely to fail
LOW_DISK, LOW_SHM = 5 * 10**9, 10**9


def examine(folder: Path = Path()) -> dict[str, Any]:
    """Facts of this machine, and `findings`: (`ok`, `note` or `missing`, what, what that means).

    Args:
        folder: that runs would be written to.
    """
    import av
    import torch

    cuda = torch.cuda.is_available()
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda_of_torch": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count() if cuda else 0)],
        "driver": _driver(),
        "bf16": bool(cuda and torch.cuda.is_bf16_supported()),
        "cpu_cores": usable_cores(),
        "pyav": av.__version__,
        "ffmpeg": {name: ".".join(map(str, version)) for name, version in av.library_versions.items()},
        "decoders": {name: name in av.codecs_available for name in ("h264", "hevc", "vp9", "av1", "aac", "opus")},
        "disk_free_bytes": shutil.disk_usage(folder).free,
        "writable": os.access(folder, os.W_OK),
        "shm_bytes": shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "versions": {
            name: metadata.version(name)
            for name in ("avprompt", "lightning", "jsonargparse", "timm", "open-clip-torch", "transformers", "numpy")
        },
        "extras": {name: importlib.util.find_spec(name) is not None for name in EXTRAS},
    }
    return {**facts, "findings": [list(finding) for finding in findings(facts)]}


def _driver() -> str | None:
    """Version of the NVIDIA driver, `None` without one."""
    path = Path("/proc/driver/nvidia/version")
    return path.read_text().split("\n")[0].split("  ")[1] if path.is_file() else None


def findings(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What the facts mean.

    Args:
        facts: of `examine`.

    Example:
        >>> facts = {"gpus": [], "driver": "550", "cuda_of_torch": None, "bf16": False, "decoders": {"h264": True},
        ...          "disk_free_bytes": 10**12, "writable": True, "shm_bytes": 64 * 2**20, "extras": {}}
        >>> for kind, what, meaning in findings(facts): print(f"{kind}: {what}: {meaning}")
        missing: GPU: there is a driver, but this torch is built for CPUs: install torch with CUDA
        ok: decoders: h264
        ok: disk: 1000.0 GB free
        note: /dev/shm: 0.07 GB: use --data.num_workers 0, or start the container with --shm-size=8g
    """
    found: list[tuple[str, str, str]] = []
    if facts["gpus"]:
        found.append(("ok", "GPU", ", ".join(facts["gpus"])))
        if not facts["bf16"]:
            found.append(("note", "bfloat16", "this GPU lacks it: use --trainer.precision 16-mixed or 32-true"))
    elif facts["driver"] and not facts["cuda_of_torch"]:
        found.append(("missing", "GPU", "there is a driver, but this torch is built for CPUs: install torch with CUDA"))
    elif facts["driver"]:
        found.append(
            (
                "missing",
                "GPU",
                (
                    "there is a driver, but torch sees no device: look at CUDA_VISIBLE_DEVICES, "
                    f"and whether the driver is as new as CUDA {facts['cuda_of_torch']}"
                ),
            )
        )
    else:
        found.append(
            (
                "note",
                "GPU",
                "none: add --trainer cpu; the quickstarts are made for that, full-size networks take minutes a step",
            )
        )
    lacking = [name for name, there in facts["decoders"].items() if not there]
    found.append(
        ("missing", "decoders", f"{', '.join(lacking)}: such videos cannot be read")
        if lacking
        else ("ok", "decoders", ", ".join(facts["decoders"]))
    )
    free = facts["disk_free_bytes"] / 1e9
    if not facts["writable"]:
        found.append(("missing", "disk", "this folder cannot be written to: runs need another one"))
    else:
        found.append(
            ("note", "disk", f"{free:.1f} GB free: checkpoints and stores may not fit")
            if (facts["disk_free_bytes"] < LOW_DISK)
            else ("ok", "disk", f"{free:.1f} GB free")
        )
    if facts["shm_bytes"] is not None:
        size = f"{facts['shm_bytes'] / 1e9:.2f} GB"
        found.append(
            ("note", "/dev/shm", f"{size}: use --data.num_workers 0, or start the container with --shm-size=8g")
            if facts["shm_bytes"] < LOW_SHM
            else ("ok", "/dev/shm", size)
        )
    return [
        *found,
        *(
            ("note", name, f"not installed; needed for {EXTRAS[name]}")
            for name, there in facts["extras"].items()
            if not there
        ),
    ]


def doctor(args: list[str]) -> None:
    """`avprompt doctor [--json]`; exit code 1: something is missing that runs need."""
    parser = PlainParser(
        prog="avprompt doctor",
        allow_abbrev=False,
        description=("Say what this machine has, what is missing, and what that means."),
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(args)
    found = examine()
    if given.json:
        print(json.dumps(found))
    else:
        for name in ("python", "platform", "torch", "cuda_of_torch", "driver", "bf16", "cpu_cores", "pyav"):
            print(f"{name:<14} {found[name] if found[name] is not None else 'none'}")
        for name, values in (("ffmpeg", found["ffmpeg"]), ("versions", found["versions"])):
            print(f"{name:<14} {', '.join(f'{key} {value}' for key, value in values.items())}")
        print()
        for kind, what, meaning in found["findings"]:
            print(f"{kind:<8} {what}: {meaning}")
    if any(kind == "missing" for kind, _, _ in found["findings"]):
        sys.exit(1)
