"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

FREED_AND_TAKEN = """
import resource, sys
import torch
from pbtrl.system import malloc

if sys.argv[1] == "keep":
    malloc.retain_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def update():
    kept = [torch.ones(size, 2**20) for size in (2, 3, 5, 8)]  # up to 32 MiB each

for _ in range(10):
    update()
before = faults()
for _ in range(5):
    update()
print((faults() - before) / 5)
"""


def faults(how: str) -> float:
    """Page faults of each update."""
    done = subprocess.run([sys.executable, "-c", FREED_AND_TAKEN, how], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can keep what is freed")
def test_freed_memory_is_reused_by_the_next_update() -> None:
    assert faults("keep") < 100
    assert faults("leave") > 1_000
