"""The processes of a sweep's runs.

`python -m avprompt.cli.stages '[["fit", ...], ["test", ...]]'` runs the stages of one run: what a process imports
before it computes takes longer than to test a small network.

`python -m avprompt.cli.stages --serve N` has imported all that before the first run comes, and then forks a process for
each run that is asked for on the socket N (`avprompt.sweeps.warm` asks). A fork is safe only as long as nothing has
computed on several threads or touched a GPU: this process imports, and builds one network on the meta device, and does
nothing else. Where that went wrong all the same, or where a run needs another environment, its process begins anew as
above instead.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from avprompt.cli import main
from avprompt.cli.main import WAITING
from avprompt.cli.optional_packages import leave_out_extras
from avprompt.errors import AVPromptError

#: what a run may be given otherwise than this process: CUDA reads it when a process first uses a GPU
OWN = "CUDA_VISIBLE_DEVICES"
#: keeps `torch.cuda.is_available` from touching a GPU
CAREFUL = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def stages(commands: list[list[str]]) -> None:
    """Run command lines one after the other; a failure ends the process with its exit code.

    Args:
        commands: words after `avprompt` of each.

    >>> stages([["--version"], ["--version"]])  # doctest: +ELLIPSIS
    0...
    0...
    """
    for command in commands:
        main(command)


def threads() -> int:
    """Threads of this process, 0 where the system does not say.

    >>> threads() >= 0
    True
    """
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 0


def preload() -> int:
    """Import what a run imports.

    Returns:
        Number of threads that NumPy's linear algebra keeps; it ends them itself before a fork. More must not be there.
    """
    os.environ |= CAREFUL | {name: value for name, value in WAITING.items() if name not in os.environ}
    leave_out_extras()
    import numpy  # noqa: F401

    allowed = threads()

    import avprompt.cli.lightning  # noqa: F401

    return allowed


def rehearse(command: list[str]) -> None:
    """Parse a command line and build its network on the meta device, on one thread: parser and libraries remember what
    they looked up. What is wrong with the command its run will say.

    Args:
        command: `fit` or `test` with its flags.
    """
    from lightning.pytorch.utilities.seed import isolate_rng
    from threadpoolctl import threadpool_limits

    from avprompt.cli.lightning import parts_of

    flags, before = list(command[1:]), dict(os.environ)
    if "--ckpt_path" in flags:
        place = flags.index("--ckpt_path")
        del flags[place : place + 2]
    said = io.StringIO()
    with (
        threadpool_limits(1),
        isolate_rng(),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        contextlib.suppress(AVPromptError, ValueError, TypeError, SystemExit),
    ):
        parts_of(flags, meta=True)
    os.environ.clear()  # of the seed that Lightning notes there
    os.environ.update(before)


def anew(commands: list[list[str]], environment: dict[str, str]) -> None:
    """Replace this process by one that has imported nothing."""
    os.execve(sys.executable, [sys.executable, "-m", __spec__.name, json.dumps(commands)], environment)


def touched_gpu() -> bool:
    """Whether the process that this one was forked from has touched a GPU, which this one then cannot use."""
    import torch

    return torch.cuda._is_in_bad_fork() and torch.cuda.device_count() > 0


def begin(log: int, request: dict[str, Any], environment: dict[str, str], clean: bool) -> list[list[str]]:
    """Make a forked process one of its own, and return what it is to run."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.setsid()
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    os.chdir(request["folder"])
    wanted, commands = request["environment"], request["commands"]
    same = {**wanted, OWN: ""} == {**environment, OWN: ""}
    if OWN in wanted:
        os.environ[OWN] = wanted[OWN]
    else:
        os.environ.pop(OWN, None)
    if not (clean and same) or touched_gpu():
        anew(commands, wanted)
    return commands


def receive(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next request and its open files, `None` at the end."""
    size, files, _, _ = socket.recv_fds(control, 8, 2)
    if not size:
        return None
    size += control.recv(8 - len(size), socket.MSG_WAITALL) if len(size) < 8 else b""
    return json.loads(control.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)), files


def serve(control: socket.socket) -> list[list[str]] | None:
    """Fork a process for each request until the other side is gone; `None` then, and in each process its stages.

    A request is 8 bytes of length, JSON (`commands`, `environment`, `folder`), and two open files: a socket on which the
    process's id and, at the end, its exit code are told, and its log.
    """
    environment = dict(os.environ)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a run's own affair
    allowed, rehearsed = preload(), False
    running: dict[int, socket.socket] = {}
    gc.freeze()  # what is here stays, and shared between the processes
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    while True:
        watched: list[Any] = [control, awake]
        ready, _, _ = select.select(watched, [], [])
        if awake in ready:
            os.read(awake, 4096)
            while running:
                ended, status = os.waitpid(-1, os.WNOHANG)
                if not ended:
                    break
                with running.pop(ended) as channel, contextlib.suppress(OSError):  # nobody waits any more
                    channel.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        if control not in ready:
            continue
        if (received := receive(control)) is None:
            return None
        request, (own, log) = received
        if not rehearsed:
            rehearse(request["commands"][0])
            rehearsed = True
            gc.freeze()
        channel, clean = socket.socket(fileno=own), threads() <= allowed
        process = os.fork()
        if process == 0:
            control.close()
            os.close(awake)
            os.close(wake)
            for other in running.values():
                other.close()
            channel.set_inheritable(True)
            channel.detach()  # stays open as long as this process lives
            return begin(log, request, environment, clean)
        os.close(log)
        running[process] = channel
        with contextlib.suppress(OSError):
            channel.sendall(f"{process}\n".encode())


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        todo = serve(socket.socket(fileno=int(sys.argv[2])))
        sys.argv[1:] = [json.dumps(todo)]  # what Lightning starts further processes of a run with
    else:
        todo = json.loads(sys.argv[1])
    stages(todo or [])
