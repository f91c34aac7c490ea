"""Child processes that ignore Ctrl-C, never outlive their parent and never import its main module."""

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
from multiprocessing import resource_tracker, spawn
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

from pbtrl.errors import ChildDiedError
from pbtrl.system.openblas import THREADS, use_one_thread

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TIMEOUT_EXIT = -signal.SIGALRM
SAFE, OURS = "PYTHONSAFEPATH", "pbtrl"
_one_start = threading.Lock()
_supervised = False


def start_child(
    target: Callable[..., None], *arguments: object, duplex: bool = True, name: str | None = None, daemon: bool = False
) -> tuple[BaseProcess, Connection]:
    """Start `target(pipe, our process id, *arguments)` in a process of its own that ignores signals.

    Returns:
        The process, and our end of the pipe.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex)
    process = context.Process(target=target, args=(theirs, os.getpid(), *arguments), name=name, daemon=daemon)
    try:
        start_ignoring_signals(process)
    except BaseException:  # a signal may come between its start and our return
        if process.pid is not None:
            process.kill()
            process.join()
        ours.close()
        raise
    finally:
        theirs.close()
    return process, ours


def call_in_child(target: Callable[..., None], *arguments: object, name: str | None = None) -> bytes:
    """Run `target(pipe, parent's process id, *arguments)` in a new process; returns the bytes that it sends.

    The process is killed after its first message.

    Raises:
        ChildDiedError: it ended without a message.
    """
    process, pipe = start_child(target, *arguments, duplex=False, name=name)
    try:
        return pipe.recv_bytes()
    except EOFError:
        process.join()
        raise ChildDiedError(describe_exit(process.exitcode)) from None
    finally:
        process.kill()
        process.join()
        pipe.close()


def close_in_forks(held: Connection | IO[bytes]) -> None:
    """Close this handle (a pipe's end or a lock) in forked children so that they cannot keep it open."""
    if hasattr(os, "register_at_fork"):
        reference = weakref.ref(held)
        os.register_at_fork(after_in_child=lambda: (handle := reference()) and handle.close())


def join_or_kill(process: BaseProcess, patience: float) -> str:
    """Wait up to `patience` seconds for a process to end, then kill it; returns in words how it ended.

    `join` with a timeout is not used, because it also waits for a pipe, which the process's own children may hold open.
    """
    until = time.monotonic() + patience
    while process.exitcode is None and time.monotonic() < until:
        time.sleep(0.01)
    if process.is_alive():
        process.kill()
        process.join()
    return describe_exit(process.exitcode)


def start_ignoring_signals(process: BaseProcess) -> None:
    """Start a process that Ctrl-C, which reaches the whole process group, does not end.

    The process inherits the signal mask, so this also holds during its startup. It also inherits PYTHONSAFEPATH: else
    the new interpreter would look for its modules in the working directory first, which may be untrusted. OpenBLAS has
    one thread there, unless the user chose a number.
    """
    with _one_start:  # mask and environment belong to the whole process
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        environment = {name: os.environ.get(name) for name in (SAFE, THREADS)}
        os.environ[SAFE] = environment[SAFE] or OURS
        use_one_thread()
        try:
            resource_tracker.ensure_running()  # unblocks the signals; the first start would launch it
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            with without_main_module():
                process.start()
        finally:
            for name, value in environment.items():
                _restore(name, value)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def without_main_module() -> Iterator[None]:
    """Keep processes that this thread spawns from importing the main module: a user's script would train again."""
    original, starter = spawn.get_preparation_data, threading.get_ident()

    def without_main(name: str) -> dict[str, Any]:
        data = original(name)
        if threading.get_ident() != starter:
            return data
        return {key: value for key, value in data.items() if not key.startswith("init_main")}

    spawn.get_preparation_data = without_main
    try:
        yield
    finally:
        spawn.get_preparation_data = original


def is_importing_main() -> bool:
    """Return whether this is a multiprocessing child that is still importing its parent's main module."""
    return getattr(multiprocessing.current_process(), "_inheriting", False)


def init_child(parent: int, pipe: Connection) -> None:
    """Initialize a child process: ignore stop signals, die with the parent, and close the pipe in forks.

    Linux kills the child when its parent dies; elsewhere the child's loop must check for its parent. Programs that an
    env starts must not inherit any of this. So stop signals get an empty handler, which a new program resets, whereas
    ignored or blocked signals would stay so.
    """
    close_in_forks(pipe)
    if os.environ.get(SAFE) == OURS:
        del os.environ[SAFE]
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` also holds for programs that an env starts
            signal.signal(number, lambda *_: None)
            signal.siginterrupt(number, False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _restore(name: str, value: str | None) -> None:
    """Set an environment variable, or remove it if the value is None."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def declare_supervised() -> None:
    """Say that somebody replaces this process if it dies, although multiprocessing has not started it."""
    global _supervised
    _supervised = True


def is_supervised() -> bool:
    """Return whether this process is replaced if it dies."""
    return _supervised or multiprocessing.parent_process() is not None


def redirect_output(log: Path) -> None:
    """Redirect stdout and stderr of this process, including those of C libraries, to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def describe_exit(code: int | None) -> str:
    """Describe a process's exit code in words."""
    how = f"killed by signal {-code}" if code and code < 0 else f"exit code {code}"
    if code == -signal.SIGKILL:
        return f"{how} (out of memory? it had at most {_largest():,.0f} MiB)"
    return how + (": its envs took longer than failure.env_step_timeout" if code == TIMEOUT_EXIT else "")


def _largest() -> float:
    """Peak resident memory (MiB) of the largest child that has ended; the kernel keeps no peak per child."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 2**20
