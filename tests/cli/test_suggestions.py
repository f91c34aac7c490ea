"""Commands that pbtrl suggests work when pasted, for any location and name of a run."""

from __future__ import annotations

import re
import shlex
import signal
from pathlib import Path

import pytest

from pbtrl.cli import main as cli
from pbtrl.config.load import parse
from pbtrl.core.naming import RUN_NAME
from pbtrl.storage import references, run_creation, run_lookup
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.training import scoring
from tests.command import CART, Command, journal

COMMAND = re.compile(r"pbtrl (?:resume|eval|status|tb|report|lineage|verify) [^|;`\n]+")
ROOTS = ["runs", "my runs", "it's", "a/b", "./~", "./-r", "."]


def suggested(text: str) -> list[Path]:
    """Runs of the commands in a text, as the command line finds them."""
    result = []
    for command in COMMAND.findall(text):
        arguments = cli.parse_arguments(shlex.split(command)[1:])
        result.append(run_lookup.find(arguments.run, arguments.runs).path)
    return result


@pytest.mark.parametrize("root", ROOTS)
def test_suggested_commands_find_the_run(pbtrl: Command, monkeypatch: pytest.MonkeyPatch, root: str):
    """From an empty root over a stopped run to a finished one, and a damaged one."""
    where, run = [f"--runs={root}"], Path(root) / "toy_quadratic"
    begin = pbtrl("list", *where).out.partition(": ")[2]
    assert cli.parse_arguments(shlex.split(begin)[1:]).runs == Path(root)

    def about_it(*argv: str) -> int:
        result = pbtrl(*argv, *where)
        paths = suggested(result.out + result.err)
        assert paths, argv
        assert all(path.samefile(run) for path in paths)
        return result.code

    with monkeypatch.context() as inside:
        inside.setattr(scoring, "evaluate", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        assert about_it("train", "toy_quadratic") == 130
    assert about_it("status", "toy_quadratic") == 0
    assert about_it("train", "toy_quadratic") == 2
    assert about_it("resume", "toy_quadratic") == 0
    assert about_it("resume", "toy_quadratic") == 0
    assert about_it("train", "toy_quadratic") == 2
    newest = max((run / "members/m00/snapshots").iterdir())
    newest.rename(run / "aside")
    assert about_it("verify", "toy_quadratic") == 4


@pytest.mark.parametrize("name", ["a b", "-x", "~x", "it's", ".hidden", "é", "x" * 70, "--help", "a=b"])
def test_renamed_run_is_suggested_by_path(pbtrl: Command, name: str):
    assert pbtrl("train", "toy_quadratic").code == 0
    run = Path("runs/toy_quadratic").rename(Path("runs", name))
    (result,) = suggested(f"pbtrl status {references.run_reference(RunDirectory(run))}")
    assert result.samefile(run)
    (result,) = suggested(f"pbtrl resume {references.cli_reference(RunDirectory(run))} budget.env_steps_per_member=1")
    assert result.samefile(run)


@pytest.mark.parametrize("where", [".", "./", "../toy_quadratic", "..", "tb/.."])
def test_run_is_found_from_inside_its_directory(pbtrl: Command, monkeypatch: pytest.MonkeyPatch, where: str):
    assert pbtrl("train", "toy_quadratic").code == 0
    run = Path("runs/toy_quadratic").resolve()
    monkeypatch.chdir(run / "tb" if where == ".." else run)
    result = pbtrl("status", where)
    assert (result.code, result.out.split(":")[0]) == (0, "toy_quadratic")
    assert pbtrl("status", where, "--json").json["name"] == "toy_quadratic"
    assert suggested(f"pbtrl status {references.run_reference(run_lookup.find(where, Path('runs')))}")[0].samefile(run)


@pytest.mark.parametrize("text", ["runs/toy_quadratic/", "link/toy_quadratic", "direct", "~/runs/toy_quadratic"])
def test_run_behind_a_link_or_in_home_directory(pbtrl: Command, monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert pbtrl("train", "toy_quadratic").code == 0
    Path("link").symlink_to("runs")
    Path("direct").symlink_to("runs/toy_quadratic")
    result = pbtrl("status", text)
    assert (result.code, result.out.split(":")[0]) == (0, "toy_quadratic")
    assert suggested(f"pbtrl status {references.run_reference(run_lookup.find(text, Path('runs')))}")[0].samefile(
        "runs/toy_quadratic"
    )
    assert pbtrl("status", "toy_quadratic", "--runs", "link").code == 0


def test_home_is_expanded_in_roots_and_configs(pbtrl: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(Path.cwd() / "home"))
    Path("home").mkdir()
    Path("home/c.yaml").write_text(CART)
    assert pbtrl("train", "~/c.yaml", "--runs=~/r", "--name", "a", "budget.env_steps_per_member=240").code == 0
    assert Path("home/r/a/best.json").exists()
    assert not Path("~").exists()


def test_folder_is_never_a_config(pbtrl: Command):
    Path("toy_quadratic").mkdir()
    Path("other").mkdir()
    assert pbtrl("train", "toy_quadratic", "--dry-run").code == 0
    assert pbtrl("train", "other", "--dry-run").err.startswith("other: is a directory\n")


# Names that nobody asked for


@pytest.mark.parametrize(
    "env", ["_under:make", "-x:make", "...:...", "é:make", "x" * 300, "ALE/Pong-v5", "a b/c:d", "x" * 39 + "-:y"]
)
def test_generated_names_are_legal(env: str):
    config = parse(f"env: {{id: '{env}'}}\nbudget: {{total_steps: 1000}}")
    name = run_creation.default_name(config.label)
    assert RUN_NAME.fullmatch(name)
    assert RUN_NAME.fullmatch(f"{name[:58]}-99999")
    assert name[:58] == name


@pytest.mark.parametrize("option", [[], ["--suffix"]])
def test_generated_names_are_unique(pbtrl: Command, monkeypatch: pytest.MonkeyPatch, option: list[str]):
    """Two runs that start in the same second generate the same name first."""
    monkeypatch.setattr(run_creation, "default_name", lambda _: "same")
    small = ["name=null", "budget.env_steps_per_member=20"]
    for name in ("same", "same-2", "same-3"):
        assert pbtrl("train", "toy_quadratic", *small, *option, f"seed={len(name)}").code == 0
        assert journal(Path("runs", name))[0]["name"] == name
    assert [journal(path)[0]["seed"] for path in sorted(Path("runs").iterdir())] == [4, 6, 6]
