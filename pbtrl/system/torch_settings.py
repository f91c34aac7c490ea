"""Torch's settings for this process, and their restoration in a process of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

Settings = tuple[int, int, bool]

_replaced: list[Settings] = []  # those before the first change, if there was one


def configure_torch(threads: int, *, deterministic: bool | None = None) -> None:
    """Set the number of threads and, unless it is None, whether operations without a deterministic form raise."""
    before = _current()
    if not _replaced:
        _replaced.append(before)
    modes = before[1:] if deterministic is None else (2 if deterministic else 0, False)
    _set(threads, *modes)


@contextmanager
def torch_settings_restored() -> Iterator[None]:
    """Undo what `configure_torch` changes inside; does not import torch."""
    outer = _replaced.copy()
    _replaced.clear()
    try:
        yield
    finally:
        for settings in _replaced:
            _set(*settings)
        _replaced[:] = outer


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute with one torch thread, so that results do not depend on the number of cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _current() -> Settings:
    import torch

    fills: bool = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    return torch.get_num_threads(), torch.get_deterministic_debug_mode(), fills


def _set(threads: int, debug_mode: int, fills: bool) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(debug_mode)  # `use_deterministic_algorithms` imports the compiler
    torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
