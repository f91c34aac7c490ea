"""Completion as shells ask for it, and the script for each of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pbtrl.cli import completion
from pbtrl.config.load import json_schema, load
from tests.command import ROOT, Command

ENTRY = "import sys; from pbtrl.cli.main import main; sys.argv[0] = 'pbtrl'; sys.exit(main())"


@pytest.fixture(scope="module")
def filled_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache := tmp_path_factory.mktemp("cache")))
        completion.config_keys()
    return cache


@pytest.fixture(autouse=True)
def use_filled_cache(filled_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(filled_cache))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def ask(where: Path, line: str) -> set[str]:
    """The completions of a line, from a process like that of a shell."""
    answers = where / "answers"
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": "bash"}
    environ |= {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_STDOUT_FILENAME": str(answers)}
    done = subprocess.run([sys.executable, "-c", ENTRY], cwd=where, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return {word.strip() for word in answers.read_text().split("\013")}


@pytest.mark.parametrize(
    ("line", "expected", "others"),
    [
        ("pbtrl ", {"train", "resume", "completion"}, set()),
        ("pbtrl train m", {"maze", "mixed", "mine.yaml"}, {"cartpole", "notes.txt"}),
        ("pbtrl train cartpole --if-exists ", {"resume", "overwrite"}, {"train"}),
        ("pbtrl train cartpole pop", {"population.size=", "population.mode="}, {"population=", "seed="}),
        ("pbtrl train cartpole strategy.exploit.method=t", {"strategy.exploit.method=t_test"}, set()),
        ("pbtrl train cartpole hparams.eps_kl.", {"hparams.eps_kl.low=", "hparams.eps_kl.prior="}, set()),
        ("pbtrl sweep cartpole --set agent.na", {"agent.name="}, {"agent.network="}),
        ("pbtrl status ", {"last", "one", "two"}, {"cartpole"}),
        ("pbtrl status --runs elsewhere ", {"last", "three"}, {"one"}),
        ("pbtrl eval one --member ", {"best", "all", "m00", "m01"}, set()),
        ("pbtrl schedule one --member ", {"best", "m00"}, {"all"}),
        ("pbtrl eval nothing --member ", set(), {"m00"}),
    ],
)
def test_completions(tmp_path: Path, line: str, expected: set[str], others: set[str]) -> None:
    for run in ("runs/one", "runs/two", "elsewhere/three"):
        (tmp_path / run / "members/m00").mkdir(parents=True)
        (tmp_path / run / "members/m01").mkdir()
        (tmp_path / run / "journal.jsonl").touch()
    for name in ("mine.yaml", "notes.txt"):
        (tmp_path / name).touch()
    completions = ask(tmp_path, line)
    assert expected <= completions
    assert not others & completions


def test_answers_import_nothing_slow() -> None:
    """Once the keys are cached, not even pydantic, which takes 0.3 s."""
    code = "import sys; from pbtrl.cli import completion, main; main.build_parser(); completion.config_keys()\n"
    code += "sys.exit(' '.join({'pydantic', 'yaml', 'numpy', 'torch', 'argcomplete'} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_keys_are_cached_until_settings_change(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = completion.config_keys()
    (cache,) = (empty_cache / "pbtrl").iterdir()
    monkeypatch.setattr(completion, "_keys_of_the_schema", lambda: {"new": []})
    assert completion.config_keys() == keys
    cache.write_text("{")
    assert completion.config_keys() == {"new": []}
    cache.rename(cache.with_name("config-keys-old.json"))
    assert completion.config_keys() == {"new": []}
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_no_cache_is_no_error(empty_cache: Path) -> None:
    empty_cache.touch()
    assert "population.size" in completion.config_keys()


def test_keys_are_those_of_configs() -> None:
    keys = completion.config_keys()
    assert {"seed", "env.id", "budget.total_steps", "agent.clip", "strategy.ready.slice_steps"} <= keys.keys()
    assert keys["agent.name"][:2] == ["impala", "a3c"]
    assert "agent" not in keys
    assert set(json_schema()["properties"]) == {key.partition(".")[0] for key in keys}
    load("cartpole", ["population.size=3", f"strategy.name={keys['strategy.name'][1]}"])


def test_script_of_bash_completes(tmp_path: Path, pbtrl: Command) -> None:
    script = pbtrl("completion", "bash")
    assert (script.code, script.err) == (0, "")
    (tmp_path / "script").write_text(script.out)
    (tmp_path / "pbtrl").write_text(f'#!/bin/sh\nexec {sys.executable} -c "{ENTRY}" "$@"\n')
    (tmp_path / "pbtrl").chmod(0o755)
    lines = (
        "source ./script; COMP_LINE='pbtrl train cartp'; COMP_POINT=17; COMP_TYPE=9; COMP_WORDS=(pbtrl train cartp)\n"
    )
    lines += 'COMP_CWORD=2; _python_argcomplete pbtrl cartp train 2>/dev/null; echo "[${COMPREPLY[*]}]"'
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", lines], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.stdout.strip() == "[cartpole ]"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_script_of_other_shells(pbtrl: Command, shell: str) -> None:
    script = pbtrl("completion", shell)
    assert script.code == 0
    assert "pbtrl" in script.out


def test_missing_library_is_named_with_its_extra(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "argcomplete.shell_integration", None)
    refused = pbtrl("completion", "zsh")
    assert (refused.code, refused.out) == (2, "")
    assert (
        refused.err == 'pbtrl completion needs argcomplete, which is not installed: pip install "pbtrl[completion]"\n'
    )
