"""Threads of OpenBLAS, which computes numpy's matrix products; it reads its environment when numpy is imported."""

from __future__ import annotations

import os

THREADS = "OPENBLAS_NUM_THREADS"


def use_one_thread() -> None:
    """Compute with one thread, unless the user chose a number: threads beside busy workers are 20 times slower."""
    os.environ.setdefault(THREADS, "1")
