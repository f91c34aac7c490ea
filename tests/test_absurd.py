"""Absurd input gives one line with the reason, the right exit code and no traceback, at once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pbtrl.cli import main as cli
from pbtrl.config.load import parse, resolve, to_yaml
from pbtrl.errors import ConfigError, RunError
from pbtrl.integrations.tracking_events import RunEvents
from pbtrl.reporting import report_tables, tables
from pbtrl.reporting.comparison.run_curves import run_curves
from pbtrl.reporting.lineage import copies
from pbtrl.reporting.plots import RunData
from pbtrl.storage import run_info, run_status
from pbtrl.storage.run_directory import RunDirectory
from tests.command import Command

HEAD = "trainable: {name: quadratic}\nbudget: {env_steps_per_member: 10}\n"
DIGITS = "1" * 5000
NUMBER = "a number of 5,000 characters, more than the limit of 100"
DEEP = "more than 64 levels of sections and lists"

CONFIGS = {
    "a hexadecimal number without digits": ("seed: 0x_", ":3:7: seed: must be an integer, not '0x_'"),
    "an octal number without digits": ("seed: 0o_", ":3:7: seed: must be an integer, not '0o_'"),
    "5,000 digits": (f"seed: {DIGITS}", f":3:7: {NUMBER}"),
    "5,000 digits in a time": (f"strategy: {{ready: {{every: {DIGITS}}}}}", f":3:27: {NUMBER}"),
    "5,000 digits of a fraction": (f"seed: 0.{DIGITS[2:]}", f":3:7: {NUMBER}"),
    "digits of another script": ("seed: \u0663", ":3:7: seed: must be an integer, not '\u0663'"),
    "2,000 brackets": ("seed: " + "[" * 2000, f":3:71: {DEEP}"),
    "2,000 sections": ("seed: " + "{a: " * 2000, f":3:260: {DEEP}"),
    "a tag that runs code": ("seed: !!python/object/apply:os.system [ls]", ":3:7: unknown tag"),
    "a tag that ends as one of ours": ("seed: !foo:int 3", ":3:7: unknown tag '!foo:int'"),
    "a tag that is not true": ("seed: !!int abc", ":3:7: 'abc' is tagged as int, which it is not"),
    "a character beyond all": ('name: "\\U00110000"', ": a number in an escaped character or in a %YAML line"),
    "half a character": ('name: "\\ud800"', ":3:7: '\\ud800' has half a character in it"),
    "a key of two lines": ('"a\\nb": 3', ":3:1: a\\nb: unknown key."),
    "a long key": (f"? {'k' * 5000}\n: 3", f":3:3: {'k' * 77}...: unknown key."),
    "a name longer than any": (f"name: {'x' * 65}", ":3:7: name: must be a folder's name of"),
    "more members than any run has": (
        "population: {size: 1000000000}", ":3:20: population.size: must be <= 100000, not 1000000000"
    ),
    "an integer beyond all": ("seed: 1e300", ":3:7: seed: must be between -2^128 and 2^128, not 1e+300"),
    "a zero byte": ("name: \0", ": unacceptable character #x0000"),
}  # fmt: skip


@pytest.mark.parametrize("what", CONFIGS)
def test_absurd_config_is_one_line(pbtrl: Command, what: str):
    text, message = CONFIGS[what]
    Path("c.yaml").write_text(HEAD + text)
    result = pbtrl("train", "c.yaml", "--dry-run")
    assert (result.code, result.out) == (2, "")
    first, *rest = result.err.splitlines()
    assert first.startswith(f"c.yaml{message}")
    assert len(first) < 400
    assert rest == ["1 error. Nothing was started."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c.yaml: budget: needs env_steps_per_member or total_steps"),
        ("# nothing", "c.yaml: budget: needs env_steps_per_member or total_steps"),
        ("3", "c.yaml:1:1: a config is a mapping of keys to values, not 3"),
        ("[a, b]", "c.yaml:1:1: a config is a mapping of keys to values, not ['a', 'b']"),
        (f"%YAML {DIGITS}.1\n---\nseed: 1", "c.yaml: a number in an escaped character or in a %YAML line"),
        ("a: 1\n---\nb: 2", "c.yaml:2:1: expected a single document"),
    ],
)
def test_other_files_are_refused_as_config(pbtrl: Command, text: str, message: str):
    Path("c.yaml").write_text(text)
    result = pbtrl("train", "c.yaml")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("=x", "write it as key=value"),
        ("a..b=1", "write it as key=value"),
        (".=1", "write it as key=value"),
        ("seed=" + "[" * 2000, DEEP),
        ("seed=" + DIGITS, NUMBER),
        ("seed=0x_", "must be an integer, not '0x_'"),
        ("a." * 2000 + "b=1", DEEP),
        ("seed=\0", "unacceptable character #x0000"),
        ("trainable.x=" + DIGITS, NUMBER),
        ("budget.wall_clock=\u0663h", "must be a time such as 6h"),
    ],
)
def test_absurd_override_is_one_line(pbtrl: Command, override: str, message: str):
    result = pbtrl("train", "toy_quadratic", override)
    assert (result.code, result.out) == (2, "")
    first, *rest = result.err.splitlines()
    assert first.startswith("override '")
    assert message in first
    assert len(first) < 250
    assert rest == ["1 error. Nothing was started."]
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["eval", "a", "--seed", str(2**64)],
        ["eval", "a", "--seed", DIGITS],
        ["eval", "a", "--seed", "\u0663"],
        ["eval", "a", "--episodes", DIGITS],
        ["eval", "a", "--episodes", "1_000"],
        ["tb", "a", "--port", "65536"],
        ["bench", "toy_quadratic", "--seconds", DIGITS],
        ["train", "toy_quadratic", "--name", "a\0b"],
        ["train", "toy_quadratic", "--name", ""],
        ["train", "toy_quadratic", "--runs", "a\0b"],
        ["train", "toy_quadratic", "a.b"],
        ["train", "a\0b"],
        ["train", "x" * 5000],
        ["status", "a\0b"],
        ["status", "x" * 5000],
        ["status", "a", "--runs", "x" * 5000],
        ["train", "toy_quadratic", "--runs", "x" * 5000],
        ["train", "toy_quadratic", "--runs", os.fsdecode(b"r\xff")],
        ["train", os.fsdecode(b"c\xff.yaml")],
        ["sweep", os.fsdecode(b"c\xff.yaml"), "--name", "a"],
        ["sweep", "toy_quadratic", "--seed", "7"],
        ["status", "~\0"],
        ["status", ""],
    ],
    ids=lambda argv: ascii(" ".join(argv))[1:40],
)
def test_absurd_argument_is_one_line(pbtrl: Command, argv: list[str]):
    result = pbtrl(*argv)
    assert (result.code, result.out) == (2, "")
    messages = [line for line in result.err.splitlines() if not line.startswith(("usage:", " ", "1 error."))]
    assert len(messages) == 1, result.err
    assert not Path("runs").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished run, to be copied."""
    where = tmp_path_factory.mktemp("finished")
    small = ["--runs", str(where), "--progress", "none", "budget.env_steps_per_member=30"]
    assert cli.main(["train", "toy_quadratic", *small]) == 0
    return where / "toy_quadratic"


@pytest.mark.parametrize("what", CONFIGS)
def test_absurd_config_in_an_untrusted_run_is_one_line(pbtrl: Command, finished: Path, what: str):
    text, _ = CONFIGS[what]
    run = Path(shutil.copytree(finished, "runs/toy_quadratic"))
    (run / "config.resolved.yaml").write_text(HEAD + text)
    for command in ("eval", "resume"):
        result = pbtrl(command, "toy_quadratic")
        assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 2)
        assert "runs/toy_quadratic/config.resolved.yaml" in result.err
    assert pbtrl("verify", "toy_quadratic").code == 4
    assert pbtrl("list").code == pbtrl("status", "toy_quadratic").code == 0


ABSURD = ["null", '"x"', "1" * 4000, DIGITS, "-1", "1e999", "[]", "{}", "[" * 2000, '"\\ud800"']


@pytest.mark.parametrize("value", ABSURD, ids=lambda value: value[:10])
@pytest.mark.parametrize("key", ["started", "sittings", "versions", "reason", "id"])
def test_absurd_run_json_is_one_line(pbtrl: Command, finished: Path, key: str, value: str):
    run = Path(shutil.copytree(finished, "runs/toy_quadratic"))
    text = json.dumps(json.loads((run / "run.json").read_text()) | {key: "HERE"})
    (run / "run.json").write_text(text.replace('"HERE"', value))
    assert pbtrl("list").code == pbtrl("status", "last").code == 0
    result = pbtrl("verify", "toy_quadratic")
    assert result.code in (0, 4)
    try:
        run_info.read_run_info(RunDirectory(run))
    except RunError:
        assert result.code == 4
        assert f"damaged   run.json: {run}/run.json cannot be read: " in result.out
    warnings = run_info.record_start(RunDirectory(run), [])
    assert len(warnings) == (result.code == 4)


@pytest.mark.parametrize("value", ABSURD, ids=lambda value: value[:10])
@pytest.mark.parametrize("key", ["seed", "size", "horizon", "frames_per_step", "hyperparameters", "rule", "schema"])
def test_absurd_header_is_one_line(pbtrl: Command, finished: Path, key: str, value: str):
    run = Path(shutil.copytree(finished, "runs/toy_quadratic"))
    first, *rest = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    line = json.dumps(json.loads(first) | {key: "HERE"}).replace('"HERE"', value)
    (run / "journal.jsonl").write_text("".join([f"{line}\n", *rest]))
    for command in ("list", "status", "lineage", "verify"):
        result = pbtrl(command, *(() if command == "list" else ("toy_quadratic",)))
        assert result.code in (0, 4), command
        assert len(result.err.splitlines()) == (result.code == 4 and command != "verify")


# Whatever comes in


WORDS = [
    "seed", "env", "{", "}", "[", "]", ":", ": ", "-", "- ", "\n", "\n  ", "&a", "*a", "<<: ", "!!int ", "!x ", "? ",
    "0x_", "0o7", "1e5", "_", "1", ".inf", "~", "'", '"', "\\", "\\U", "%YAML ", "---\n", "...", "|", ">", "#", ",",
    "\0", "\ud800", "\u0663", "population", "hparams", "size", "null", "true", "@", "`", "\t", "=", ".",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=25).map("".join)


@given(st.booleans(), TEXTS, st.lists(TEXTS, max_size=2))
@settings(max_examples=300, deadline=None)
def test_any_config_loads_or_is_refused(headed: bool, text: str, overrides: list[str]):
    try:
        config = parse(HEAD + text if headed else text, overrides=overrides)
    except ConfigError as error:
        messages = error.messages
    else:
        assert resolve(parse(to_yaml(config))) == resolve(config)
        return
    assert messages
    assert all(message.isprintable() for message in messages)  # so that it is one line


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(10**4000),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "id", "x"]), inner, max_size=3)
    ),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield path
    for key, below in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(below, (*path, key))


@given(st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_journal_is_read_or_reported_damaged(finished: Path, tmp_path: Path, data: st.DataObject):
    """Any value in it is replaced by another, or bytes are missing."""
    raw = (finished / "journal.jsonl").read_bytes()
    lines = [json.loads(line) for line in raw.splitlines()]
    which = data.draw(st.integers(0, len(lines) - 1))
    *above, last = data.draw(st.sampled_from([path for path in places(lines[which]) if path]))
    owner = lines[which]
    for key in above:
        owner = owner[key]
    owner[last] = data.draw(JSON)
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    if data.draw(st.booleans()):
        start, length = data.draw(st.integers(0, len(raw))), data.draw(st.integers(0, 20))
        content = raw[:start] + raw[start + length :]
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    (run / "journal.jsonl").write_bytes(content)
    (row,) = run_status.listing(tmp_path)
    json.dumps(row)
    try:
        status = run_status.status(RunDirectory(run))
    except RunError:
        assert row["error"]
        return
    assert tables.status(status, "run", "")
    header, records, population = RunDirectory(run).load()
    json.dumps(copies(records))
    run_curves(header, records, {}, None)
    tracked = RunEvents(RunDirectory(run))
    assert len([tracked.events(record) for record in tracked.read()]) == len(records)
    run_data = RunData(header, records, population, None)
    report_tables.time_shares(run_data)
    report_tables.failures(run_data)
