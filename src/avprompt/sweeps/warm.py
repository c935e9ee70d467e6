"""Runs' processes that are forked from one that has imported the suite: `avprompt.cli.stages` has the other side.

Why not multiprocessing's own fork server: it imports the caller's main module anew in every process, so that a script
that calls `sweep` would need a guard; there is one for the whole program, with the environment of its first use; and it
says nothing where a preloaded module fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any

#: the process that others are forked from
SERVER = "avprompt.cli.stages"


class ForkedRun:
    """A run's process, with the part of `subprocess.Popen` that a sweep needs.

    Args:
        channel: tells the process's id, and at its end its exit code.

    Raises:
        ConnectionError: there is no process to fork it from any more.

    Example:
        >>> ours, theirs = socket.socketpair()
        >>> _ = theirs.send(b"4711\\n")
        >>> process = ForkedRun(ours)
        >>> process.pid, process.poll()
        (4711, None)
        >>> _ = theirs.send(b"-15\\n")
        >>> process.wait()
        -15
    """

    def __init__(self, channel: socket.socket) -> None:
        self.channel, self.told, self.lock = channel, b"", threading.Lock()
        self.returncode: int | None = None
        while b"\n" not in self.told:
            if not (part := channel.recv(64)):
                raise ConnectionError
            self.told += part
        first, _, self.told = self.told.partition(b"\n")
        self.pid = int(first)

    def poll(self) -> int | None:
        """The exit code as Python has it, negative for a signal; `None` while the process runs."""
        with self.lock:
            if self.returncode is None:
                with contextlib.suppress(BlockingIOError):
                    part = self.channel.recv(64, socket.MSG_DONTWAIT)
                    self.told += part
                    if b"\n" in self.told:
                        self.returncode = int(self.told)
                    elif not part:  # ended, and so did the one that would have told how: as if killed
                        self.returncode = -signal.SIGKILL
            return self.returncode

    def wait(self) -> int:
        """Wait for the exit code; to be called by one thread."""
        while (code := self.poll()) is None:
            select.select([self.channel], [], [])
        self.channel.close()
        return code

    def terminate(self) -> None:
        """Ask the process to stop, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


class Warm:
    """Begins runs' processes as forks of one that has imported the suite, or, where that one fails, anew.

    Numbers are those of processes that begin anew. The one that is forked ends when this object is closed or this
    program ends; runs that it began live on, as they do without it.

    Example:
        >>> with Warm() as warm:  # `execute(run, begin=warm.begin)` begins the first one, and with it what others share
        ...     print(warm.server)
        None
    """

    def __init__(self) -> None:
        self.control: socket.socket | None = None
        self.server: subprocess.Popen | None = None
        self.lock, self.ready, self.stopped = threading.Lock(), False, False
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 (of the server, read when it fails)

    def begin(self, command: list[str], **options: Any) -> subprocess.Popen | ForkedRun:
        """Begin a process as `subprocess.Popen` does.

        Args:
            command: `python -m avprompt.cli.stages` and the stages as JSON.
            options: `env`; `stdout`, a file, for errors too; the process gets a session of its own.

        Raises:
            CancelledError: `stop` was called.
        """
        with self.lock:
            if self.server is None:
                self._start(options["env"])
            if self.control is not None:
                try:
                    process = self._ask(json.loads(command[-1]), options["env"], options["stdout"].fileno())
                    self.ready = True
                    return process
                except OSError as error:  # it ended; the runs import for themselves, and fail with their own words
                    if self.stopped:
                        raise CancelledError from error
                    self._report()
        return subprocess.Popen(command, **options)

    def _start(self, environment: dict[str, str]) -> None:
        self.control, theirs = socket.socketpair()
        with theirs:
            self.server = subprocess.Popen(
                [sys.executable, "-m", SERVER, "--serve", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self.said,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C concerns the program that has it
            )

    def _ask(self, commands: list[list[str]], environment: dict[str, str], log: int) -> ForkedRun:
        ours, theirs = socket.socketpair()
        with theirs:
            request = {"commands": commands, "environment": environment, "folder": os.getcwd()}
            content = json.dumps(request).encode()
            socket.send_fds(self.control, [len(content).to_bytes(8, "big")], [theirs.fileno(), log])
            self.control.sendall(content)
        try:
            return ForkedRun(ours)
        except BaseException:
            ours.close()
            raise

    def _report(self) -> None:
        self.control.close()
        self.control = None
        code = self.server.wait()
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").split("\n")
        reason = next((line for line in reversed(lines) if line.strip()), "")
        print(f"note: each run imports the suite itself: the process that had ended with code {code}: {reason}"[:500])

    def stop(self) -> None:
        """Have nobody wait for imports any more; what runs goes on."""
        self.stopped = True
        if not self.ready and self.server is not None:
            self.server.terminate()

    def close(self) -> None:
        """End the process that others were forked from."""
        with self.lock:
            if self.control is not None:
                self.control.close()
                self.control = None
            if self.server is not None and self.server.poll() is None:
                self.server.terminate()  # it may be importing
                self.server.wait()
        self.said.close()

    def __enter__(self) -> Warm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
