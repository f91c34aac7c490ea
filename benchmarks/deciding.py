"""Measure what a strategy's decisions cost, with canned reports and without files.

    python benchmarks/deciding.py quickstart population.size=64 strategy.name=pb2 --generations 1000

The reports' fitness is a random walk. `share` assumes that all members train at once, for 15 s per slice.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import time
from collections import deque

import numpy as np

from pbtrl.build.factory import make_header, make_strategy
from pbtrl.config.load import check, read
from pbtrl.core.messages import Assignment, Report
from pbtrl.core.population import Population
from pbtrl.storage.journal import dumps
from pbtrl.storage.parsing import parse_record

SLICE = 15.0  # seconds
PARTS = 10  # in which the cost is printed, as it may grow with the journal


def record(population: Population, kind: str, body: dict[str, object]) -> None:
    """Record a line as if it had been read from a journal."""
    population.record(parse_record({**json.loads(dumps({"kind": kind, **body})), "timing": {}}, "memory"))


def canned(a: Assignment, rng: np.random.Generator) -> Report:
    """Make the report of a slice."""
    returns = tuple((a.stop / (a.stop - a.start) + rng.normal(size=20)).tolist())
    curve = ((a.stop, returns[-1]),)
    lengths = ((a.stop - a.start) // 20,) * 20
    return Report(a.id, a.member, a.stop, a.hyperparameters, returns, lengths, (), curve)


def main() -> None:
    """Print CPU seconds per generation, in parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--generations", type=int, default=100)
    given = parser.parse_args()
    config = check(read(given.config, [*given.overrides, "budget.env_steps_per_member=1_000_000_000_000"]))
    strategy, population = make_strategy(config), make_header(config, "deciding").population()
    rng, queue, spent = np.random.default_rng(0), deque[Assignment](), 0.0
    part = max(1, given.generations // PARTS)
    for generation in range(given.generations):
        for _ in range(population.size):
            population.free = population.size - len(population.pending)
            start = time.process_time()
            decided = strategy.decide(population)
            spent += time.process_time() - start
            if decided:
                record(population, "decision", {"assignments": [a.to_json() for a in decided], "free": population.free})
            queue += decided
            record(population, "report", canned(queue.popleft(), rng).to_json())
        if (generation + 1) % part == 0:
            print(
                f"generation {generation + 1}: {1000 * spent / part:.1f} ms  share {spent / part / SLICE:.3%}",
                flush=True,
            )
            spent = 0.0


if __name__ == "__main__":
    main()
