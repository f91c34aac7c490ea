"""The command line in this process or in its own, and small configs for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pbtrl.cli import main as cli

ROOT = Path(__file__).parents[1]

CART = """\
env: {id: CartPole-v1, num_envs: 4, backend: gymnasium, between_slices: reset}
seed: 3
population: {size: 4, mode: sync}
execution: {backend: inline}
budget: {env_steps_per_member: 720}
hparams:
  learning_rate: {prior: log_uniform, low: 1e-4, high: 1e-2}
  unroll_length: {prior: int_uniform, low: 5, high: 10}
fitness: {window_episodes: 20, min_episodes: 1}
strategy: {ready: {slice_steps: 240}}
final: {candidates: 2, selection_episodes: 2, episodes: 3}
"""
"""Three generations, deterministic, half a second."""


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Result]
"""`pbtrl("train", "toy_quadratic")`, run where the test's files are."""

ForkServer = Callable[..., dict[str, Any]]
"""`fork_server(folder, "train", "toy_quadratic", crash="host.began")`, run in a process of its own."""


def in_process(capsys: Any) -> Command:
    def run(*argv: object) -> Result:
        try:
            code = cli.main([str(a) for a in argv])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def spawn(where: Path, *argv: object) -> subprocess.Popen[str]:
    """The command in its own process group, as a terminal would start it; stdout and stderr are pipes."""
    command = [sys.executable, "-m", "pbtrl", *map(str, argv)]
    return subprocess.Popen(
        command,
        cwd=where,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{where}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def descendants(pid: int) -> list[int]:
    """Children of a process, and theirs."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [p for child in map(int, children) for p in (child, *descendants(child))]


def journal(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]


def kinds(run: Path) -> list[str]:
    return [line["kind"] for line in journal(run)]


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run but the lock."""
    files = (p for p in sorted(run.rglob("*")) if p.is_file() and p.name != "LOCK")
    return {str(p.relative_to(run)): p.read_bytes() for p in files}


def weights(run: Path) -> dict[str, str]:
    """SHA-256 of the tensors of every snapshot, from its manifest."""
    result = {}
    for manifest in sorted(run.glob("members/*/snapshots/*/MANIFEST.json")):
        result[str(manifest.parent)[len(str(run)) :]] = json.loads(manifest.read_text())["tensors.safetensors"][
            "sha256"
        ]
    return result
