"""`pbtrl verify --decisions`: the strategy derives every decision again from the journal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import Command, journal

SMALL = {
    "quadratic": ("toy_quadratic",),
    "fire": ("toy_deceptive", "population.size=11", "budget.env_steps_per_member=400", "population.mode=async"),
}


def rewrite(run: Path, lines: list[dict[str, object]]) -> None:
    (run / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("name", SMALL)
def test_all_decisions_are_derived_again(pbtrl: Command, name: str) -> None:
    assert pbtrl("train", *SMALL[name], "--name", "a").code == 0
    decisions = sum(line["kind"] == "decision" for line in journal(Path("runs/a")))
    result = pbtrl("verify", "a", "--decisions")
    assert (result.code, result.out) == (0, f"{decisions} decisions derived again from the journal, all the same\n")
    assert pbtrl("verify", "a", "--decisions", "--json").json == {"decisions": decisions, "difference": None}


def test_extended_run_is_derived_with_the_budget_of_each_session(pbtrl: Command) -> None:
    assert pbtrl("train", "toy_quadratic", "budget.env_steps_per_member=15", "--name", "a").code == 0
    assert pbtrl("resume", "a", "budget.env_steps_per_member=40").code == 0
    assert pbtrl("verify", "a", "--decisions").code == 0


def test_changed_journal_is_found(pbtrl: Command) -> None:
    assert pbtrl("train", "toy_quadratic", "--name", "a").code == 0
    lines = journal(Path("runs/a"))
    number = next(i for i, line in enumerate(lines) if line["kind"] == "decision" and i > 10)
    changed = lines[number]["assignments"][1]
    original = dict(changed["hyperparameters"])
    changed["hyperparameters"]["h0"] += 0.25
    rewrite(Path("runs/a"), lines)
    result = pbtrl("verify", "a", "--decisions")
    assert result.code == 4
    assert result.out.startswith(f"journal line {number + 1}: the decision about m01 comes out differently\n")
    assert f"recorded: {changed['id']}" in result.out
    assert f"derived: {changed['id']}" in result.out
    lines[number]["retired"] = ["m00"]
    changed["hyperparameters"] = original
    rewrite(Path("runs/a"), lines[: number + 1])
    retired = pbtrl("verify", "a", "--decisions").out.splitlines()
    assert retired[0].endswith("the decision about m00 comes out differently")
    assert retired[1:] == ["  recorded: it retires", "  derived: it goes on"]
    del lines[number]["retired"]
    del lines[number]["assignments"][1]
    rewrite(Path("runs/a"), lines[: number + 1])
    assert "recorded: nothing" in pbtrl("verify", "a", "--decisions").out
