"""The simulation of clusters: its arithmetic, on cases that can be computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from benchmarks.cluster_simulation import (
    Constants,
    Server,
    Work,
    knee,
    observed,
    simulate,
)
from pbtrl.core.messages import Report
from pbtrl.core.records import ReportRecord, RunResumed

FREE = Constants(
    call=0.0, report=(0.0, 0.0), decision=(0.0, 0.0), sync=0.0, store=(0.0, 0.0), line=0.0, pack=(0.0, 0.0),
    server=(0.0, 0.0), local=(0.0, 0.0), spread=0.0, deaths=0.0,
)  # fmt: skip
WORK = Work("", 9.0, 1_000_000)


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("workers", [1, 5])
def test_nothing_is_lost_without_costs(workers: int, sync: bool) -> None:
    assert simulate(WORK, workers, FREE, sync=sync, slices=6) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"call": 0.1}, 0.5),  # also for four lines of metrics
        ({"report": (0.25, 0.25)}, 0.5),
        ({"decision": (0.2, 0.3)}, 0.5),
        ({"sync": 0.5}, 1.0),  # a report and a decision
        ({"store": (0.1, 4e-7)}, 0.5),
        ({"pack": (0.1, 4e-7)}, 0.5),
        ({"line": 0.1}, 0.4),  # after 2, 4, 6 and 8 of 9 s
    ],
)
def test_one_worker_waits_for_everything(changes: dict[str, float], lost: float) -> None:
    assert simulate(WORK, 1, replace(FREE, **changes), slices=6) == pytest.approx(9 / (9 + lost))


def test_a_shared_file_system_replaces_the_store() -> None:
    costs = replace(FREE, store=(9.0, 0.0), line=9.0, pack=(9.0, 0.0), local=(0.2, 0.0), server=(0.1, 2e-7))
    assert simulate(WORK, 1, costs, shared=True, slices=6) == pytest.approx(9 / 9.5)


def test_requests_queue() -> None:
    server = Server()
    assert [server.finish(at, 3.0) for at in (0.0, 1.0, 7.0)] == [3.0, 6.0, 10.0]


@pytest.mark.parametrize(("workers", "round_trip"), [(1, 14), (2, 14), (3, 15), (6, 30)])
def test_a_store_serves_one_after_the_other(workers: int, round_trip: float) -> None:
    """Workers train 9 s and share a store that takes 5 s per snapshot: from three of them on it is the limit."""
    slow = replace(FREE, store=(5.0, 0.0))
    assert simulate(WORK, workers, slow, copies=False, slices=20) == pytest.approx(9 / round_trip, rel=0.02)


def test_copies_load_their_donors() -> None:
    """Loading takes a second round through the worker."""
    slow = replace(FREE, store=(1e-9, 0.0), pack=(0.5, 0.0))
    result = simulate(WORK, 10, slow, sync=True, slices=20)
    assert result == pytest.approx(9 / 10, abs=0.005)  # the others wait for them
    assert simulate(WORK, 10, slow, copies=False, slices=20) == pytest.approx(9 / 9.5)


def test_a_generation_waits_for_its_slowest() -> None:
    """The larger of two normal numbers is 0.564 deviations above the mean."""
    uneven = replace(FREE, spread=0.1)
    assert simulate(WORK, 2, uneven, sync=True, slices=600) == pytest.approx(1 / 1.0564, abs=0.006)
    assert simulate(WORK, 2, uneven, slices=50) == pytest.approx(1.0)


def test_deaths_lose_half_a_slice_and_a_restart() -> None:
    """Of 9 s, half are lost on average, 7 s until the death is seen, and 10 s until there is a new worker."""
    deadly = replace(FREE, deaths=40.0, detect=(0.0, 14.0), restart=10.0)
    per_slice = math.expm1(0.1)  # deaths per slice that ends well
    result = simulate(WORK, 20, deadly, slices=60)
    assert result == pytest.approx(9 / (9 + per_slice * 21.5), abs=0.03)


def test_the_same_seed_gives_the_same_number() -> None:
    assert simulate(WORK, 8, Constants(), slices=20) == simulate(WORK, 8, Constants(), slices=20)


def test_the_knee_is_the_last_efficient_number_of_workers() -> None:
    assert knee(lambda n: 0.95 if n <= 64 else 0.8) == "64"
    assert knee(lambda n: 0.89) == "none"
    assert knee(lambda n: 0.9) == ">= 1,000"


def test_a_real_journal_is_observed_without_first_slices() -> None:
    slices = [("m00", 50.0, 40.0), ("m01", 60.0, 50.0), ("m00", 60.0, 8.0), ("m01", 70.0, 8.0), ("m00", 70.0, 9.0)]
    reports = [(Report(f"{m}/000000", m, 1, {}, timing={"seconds": s}), e) for m, e, s in slices]
    records = [ReportRecord(report, elapsed=elapsed) for report, elapsed in reports]
    efficiency, mean, spread = observed([RunResumed(), *records])
    assert efficiency == pytest.approx(25 / 30)
    assert mean == pytest.approx(25 / 3)
    assert spread == 0.0  # in the second generation both took 8 s
    records[3] = replace(records[3], report=replace(records[3].report, timing={"seconds": 10.0}))
    assert observed(records)[2] == pytest.approx(math.sqrt(2) / 9)
