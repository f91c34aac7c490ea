"""Seeds derived from a root and a purpose, so that streams of random numbers are independent."""

from __future__ import annotations

import hashlib
import zlib

import numpy as np


def seed_for(seed: int, purpose: str) -> int:
    """Derive an independent 63-bit seed for one purpose."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1, np.uint64)[0] >> 1)


def evaluation_seed(seed: int, purpose: str) -> int:
    """Derive a 56-bit seed for one purpose from a run's seed; training never uses it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:7], "big")


def env_seeds(seed: int, envs: int) -> list[int]:
    """Derive one seed per env, in [0, 2**31)."""
    return [int(s) for s in np.random.default_rng(seed).integers(0, 2**31, envs)]
