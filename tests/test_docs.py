"""The README and docs/: links, paths, commands, configs and examples.

A code block whose first line is a comment with a file name is that file.
"""

import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from pbtrl.cli.main import parse_arguments
from pbtrl.config.load import load, parse
from pbtrl.core.trainable import Trainable
from pbtrl.strategies import Strategy
from pbtrl.testing import AgentConformance, PopulationConformance, TrainableConformance
from tests.command import Command

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LOADING = ("train", "bench", "doctor", "config")  # commands that take a config

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(pbtrl (?:train|bench|doctor|config) [^`]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"`(?:[\w ]+ )?((?:pbtrl|agents|envs|configs|docs|tests)/[\w/.-]+\.\w+)")


def blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(page.read_text()) if kind == language]


def files(page: Path) -> dict[str, str]:
    """The files that a page shows, by name."""
    shown = [code for language in ("python", "yaml") for code in blocks(page, language)]
    named = ((re.match(r"# ([\w.-]+\.(?:py|yaml))\n", code), code) for code in shown)
    return {match[1]: code for match, code in named if match}


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every `pbtrl` command in a shell block, and of those in a line of text that name a config."""
    lines = [line for code in blocks(page, "sh") for line in code.splitlines() if line.startswith("pbtrl ")]
    for words in (shlex.split(line, comments=True) for line in lines):
        yield words[1:]
    for text in INLINE.findall(BLOCK.sub("", page.read_text())):
        words = shlex.split(text)
        if not any(word.isupper() for word in words):  # `pbtrl train CONFIG`
            yield words[1:]


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def example(page: str, name: str) -> ModuleType:
    """A file that a page shows, as a module."""
    module = ModuleType(Path(name).stem)
    sys.modules[module.__name__] = module
    try:
        exec(compile(files(ROOT / "docs" / page)[name], name, "exec"), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    return module


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Put the files of a page into the working directory, from where they can be imported."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: list[str] = []

    def write(page: str) -> None:
        for name, code in files(README if page == README.name else ROOT / "docs" / page).items():
            (tmp_path / name).write_text(code)
            names.append(Path(name).stem)

    yield write
    for name in set(names) - before:
        sys.modules.pop(name, None)


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 130


@pytest.mark.parametrize("command", ["make train", "make test"])
def test_readme_has_the_two_commands_that_set_up(command: str) -> None:
    assert any(line.startswith(command) for code in blocks(README, "sh") for line in code.splitlines())


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_have_targets(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_readme_links_to_every_page() -> None:
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= set(LINK.findall(README.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_named_files_exist(page: Path) -> None:
    assert [path for path in PATH.findall(page.read_text()) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_valid(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shown: Callable[[str], None]
) -> None:
    shown(page.name)
    for argv in commands(page):
        try:
            arguments = parse_arguments(argv)
        except SystemExit:
            pytest.fail(f"pbtrl {shlex.join(argv)}\n{capsys.readouterr().err}")
        if argv[0] in LOADING and arguments.config is not None:
            own = tmp_path / arguments.config
            load(own if own.is_file() else arguments.config, arguments.overrides)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_configs_are_valid(page: Path, shown: Callable[[str], None]) -> None:
    shown(page.name)
    for code in blocks(page, "yaml"):
        parse(code, page.name)


# Examples


class TestOwnTrainable(TrainableConformance):
    hyperparameters: ClassVar[dict[str, Any]] = {"learning_rate": 0.1, "weight_decay": 1e-3}

    def make(self, rng: np.random.Generator) -> Trainable:
        return example("own-trainable.md", "my_model.py").MyModel(rng)


class TestOwnStrategy(PopulationConformance):
    @classmethod
    def strategy(cls) -> Strategy:
        kind = example("own-strategy.md", "my_search.py").CopyBest
        return kind(space=cls.space, slice_steps=cls.slice_steps, horizon=cls.horizon)


class TestOwnAgent(AgentConformance):
    settings = example("own-agent.md", "my_agent.py").MyAgentSettings(hidden=(8,))

    @pytest.fixture(autouse=True)
    def importable(self, shown: Callable[[str], None]) -> None:
        shown("own-agent.md")


SMALL = {
    "own-agent.md": ("my_agent.yaml", ["budget.env_steps_per_member=1280", "strategy.ready.slice_steps=640",
                                       "final.episodes=2"]),
    "own-strategy.md": ("my_search.yaml", []),
    "own-trainable.md": ("my_model.yaml", []),
}  # fmt: skip


@pytest.mark.parametrize("page", SMALL)
def test_own_code_is_trained_by_its_config(pbtrl: Command, shown: Callable[[str], None], page: str) -> None:
    """Also in workers; commands on the run directory ask for trust."""
    shown(page)
    config, overrides = SMALL[page]
    trained = pbtrl("train", config, *overrides, "execution={backend: processes, workers: 1}", "--name", "mine")
    assert trained.code == 0, trained.err
    refused = pbtrl("eval", "mine", "--episodes", "1")
    assert (refused.code, "allow it with --trust-imports" in refused.err) == (2, True)
    assert pbtrl("eval", "mine", "--episodes", "1", "--trust-imports").code == 0
    assert pbtrl("resume", "mine").code == 2
    assert pbtrl("status", "mine").code == 0
    assert pbtrl("verify", "mine").code == 0


@pytest.mark.usefixtures("quick_disk")
def test_strategy_runs_without_a_config(
    shown: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown("own-strategy.md")
    runpy.run_path(str(tmp_path / "try_it.py"))
    fitness = re.findall(r": ([\d.]+)", capsys.readouterr().out)
    assert len(fitness) == 4
    assert min(map(float, fitness)) > 1.1


def test_agent_learns_with_a_learning_rate_per_member(
    shown: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown("own-agent.md")
    runpy.run_path(str(tmp_path / "try_agent.py"))
    fast, slow = map(float, re.findall(r"[\d.]+", capsys.readouterr().out.splitlines()[-1]))
    assert fast > 100 > 50 > slow


def test_env_is_trained(pbtrl: Command, shown: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    shown("own-env.md")
    small = ["budget.env_steps_per_member=3_200", "strategy.ready.slice_steps=1_600", "execution.backend=inline"]
    trained = pbtrl("train", "corridor.yaml", *small)
    assert trained.code == 0, trained.err
    runpy.run_path(str(ROOT / "docs/overhead.py"))["overhead"](Path("runs/corridor"))
    assert "between slices of" in capsys.readouterr().out
