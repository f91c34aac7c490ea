"""Limits as `doctor` prints them. test_cli.py has the whole command, test_cgroups.py a real limited group."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pbtrl.build import placement
from pbtrl.config.load import load
from pbtrl.diagnostics import doctor
from pbtrl.system import cgroups


@pytest.mark.parametrize(
    ("cores", "quota", "what"),
    [
        (4, None, "4 of 4 cores may be used; 6 workers share them"),
        (3, None, "3 of 4 cores may be used (CPU affinity); 6 workers share them"),
        (4, 0.5, "1 of 4 cores may be used (cgroup quota 0.5); 6 workers share them"),
        (3, 1.25, "2 of 4 cores may be used (cgroup quota 1.25); 6 workers share them"),
        (3, 7.0, "3 of 4 cores may be used (CPU affinity); 6 workers share them"),
    ],
)
def test_doctor_names_the_limit_of_the_cores(monkeypatch: pytest.MonkeyPatch, cores: int, quota: float, what: str):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(placement, "available_cores", lambda: list(range(cores)))
    monkeypatch.setattr(cgroups, "cpu_quota", lambda: quota)
    assert doctor._cores(load("cartpole", overrides=["population.size=6", "execution.workers=6"])) == what
    assert doctor._cores(None) == what.partition(";")[0]


@pytest.mark.parametrize(
    ("machine", "job", "workers", "ok", "what"),
    [
        (8000, None, 2, True, "7.8 GiB free; 2 workers need 400 MiB, 200 MiB each"),
        (8000, (300, 250), 1, True, "250 MiB free of the job's limit of 300 MiB; 1 worker needs 200 MiB"),
        (8000, (9000, 8500), 1, True, "7.8 GiB free; 1 worker needs 200 MiB"),
        (
            8000,
            (300, 250),
            2,
            False,
            "250 MiB free of the job's limit of 300 MiB; 2 workers need 400 MiB, 200 MiB each",
        ),
        (150, None, 1, False, "150 MiB free; 1 worker needs 200 MiB"),
    ],
)
def test_doctor_checks_whether_workers_fit(
    monkeypatch: pytest.MonkeyPatch,
    machine: int,
    job: tuple[int, int] | None,
    workers: int,
    ok: bool,
    what: str,
):
    mib = 2**20
    limit = job and cgroups.MemoryLimit(job[0] * mib, job[1] * mib)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=machine * mib))
    monkeypatch.setattr(doctor, "_measured", lambda config: 200 * mib)
    monkeypatch.setattr(cgroups, "memory_limit", lambda: limit)
    config = load("cartpole", overrides=[f"execution.workers={workers}"])
    advice = ": set execution.workers lower" if workers > 1 else ": the job needs more memory"
    result = doctor._check("memory", lambda: doctor._memory(config))
    text = f"{what} with members and envs"
    assert result == {"check": "memory", "ok": ok, "what": text if ok else f"MemoryError: {text}{advice}"}


@pytest.mark.parametrize(
    ("execution", "need"), [("workers=8", "; 8 workers need "), ("backend=inline", "; 1 worker needs ")]
)
def test_doctor_counts_workers_of_trainables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, execution: str, need: str
):
    monkeypatch.setattr(doctor, "_steps", lambda *args, **options: "")
    checks = doctor.examine(tmp_path, load("translator", overrides=[f"execution.{execution}"]))
    assert need in next(check["what"] for check in checks if check["check"] == "memory")
