"""Child processes that a Ctrl-C does not reach, that never outlive whoever started them, or import its main module."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import spawn
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

from pbtrl.errors import ChildDiedError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TIMEOUT_EXIT = -signal.SIGALRM
SAFE, OURS = "PYTHONSAFEPATH", "pbtrl"
_one_start = threading.Lock()


def call_in_child(target: Callable[..., None], *arguments: object, name: str | None = None) -> bytes:
    """What `target(pipe, our process id, *arguments)` sends from a process of its own, which is ended then.

    Raises:
        ChildDiedError: it sent nothing.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(theirs, os.getpid(), *arguments), name=name)
    try:
        start_ignoring_signals(process)
        theirs.close()
        return ours.recv_bytes()
    except EOFError:
        process.join()
        raise ChildDiedError(describe_exit(process.exitcode)) from None
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
        ours.close()


def close_in_forks(held: Connection | IO[bytes]) -> None:
    """Whom an env forks shall not have a pipe's end or a lock, and hold it when this process is dead."""
    if hasattr(os, "register_at_fork"):
        still = weakref.ref(held)
        os.register_at_fork(after_in_child=lambda: (own := still()) and own.close())


def join_or_kill(process: BaseProcess, patience: float) -> str:
    """Wait so many seconds for its end, and enforce it; how it ended.

    `join` with a timeout would wait for a pipe as well, which whom it forked may hold open.
    """
    until = time.monotonic() + patience
    while process.exitcode is None and time.monotonic() < until:
        time.sleep(0.01)
    if process.is_alive():
        process.kill()
        process.join()
    return describe_exit(process.exitcode)


def start_ignoring_signals(process: BaseProcess) -> None:
    """Start a process that a Ctrl-C, which reaches the whole process group, does not end; only a kill does.

    It inherits the mask, so this holds also while it is still starting. And it inherits SAFE: an interpreter that is
    begun with a command looks for its own modules in the working directory first, which may be a stranger's.
    """
    with _one_start:  # of several threads
        before, safe = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS), os.environ.get(SAFE)
        os.environ[SAFE] = safe or OURS
        try:
            with _without_main():
                process.start()
        finally:
            _put_back(safe)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Whom this thread starts does not import the main module, as spawned processes do: a script would train again."""
    described, starter = spawn.get_preparation_data, threading.get_ident()

    def without_main(name: str) -> dict[str, Any]:
        found = described(name)
        if threading.get_ident() != starter:
            return found
        return {key: value for key, value in found.items() if not key.startswith("init_main")}

    spawn.get_preparation_data = without_main
    try:
        yield
    finally:
        spawn.get_preparation_data = described


def is_importing_main() -> bool:
    """Whether this is a process of somebody's multiprocessing that has not come to its task: it imports for it."""
    return getattr(multiprocessing.current_process(), "_inheriting", False)


def init_child(parent: int, pipe: Connection) -> None:
    """In the child, first of all: do not heed what asks to stop, end with the parent, and keep the pipe for oneself.

    Linux kills it then; elsewhere its loop has to look for the parent. What an env starts shall not inherit any of it:
    signals with a handler are a new program's own again, ignored or blocked ones are not.
    """
    close_in_forks(pipe)
    _put_back(None if os.environ.get(SAFE) == OURS else os.environ.get(SAFE))
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has it, also for what an env starts
            signal.signal(number, lambda *_: None)
            signal.siginterrupt(number, False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _put_back(safe: str | None) -> None:
    if safe is None:
        os.environ.pop(SAFE, None)
    else:
        os.environ[SAFE] = safe


def redirect_output(log: Path) -> None:
    """What libraries and envs print in this process goes to a file, and not to the console."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def describe_exit(code: int | None) -> str:
    """A dead process's exit code in words."""
    how = f"killed by signal {-code}" if code and code < 0 else f"exit code {code}"
    if code == -signal.SIGKILL:
        return f"{how} (out of memory? it had at most {_largest():,.0f} MiB)"
    return how + (": its envs took longer than failure.env_step_timeout" if code == TIMEOUT_EXIT else "")


def _largest() -> float:
    """MiB that the largest of our children that ended had resident; the kernel keeps no peak of each."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 2**20
