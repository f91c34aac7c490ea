"""The README and docs/: links, paths, commands, configs and examples.

A code block whose first line is a comment with a file name is that file.
"""

import ast
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from pbtrl.agents.settings import AGENTS, live_hyperparameters
from pbtrl.cli import exit_codes
from pbtrl.cli.main import parse_arguments
from pbtrl.config.load import json_schema, load, parse
from pbtrl.core.trainable import Trainable
from pbtrl.strategies import Strategy
from pbtrl.strategies.catalog import STRATEGIES
from pbtrl.testing import AgentConformance, PopulationConformance, TrainableConformance
from tests.command import Command, kinds

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
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
        yield [*takewhile(lambda word: word not in (">", "|"), words[1:])]
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
        exec(compile(files(DOCS / page)[name], name, "exec"), module.__dict__)
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

    def write(page: str) -> None:  # a page in docs/, or its path
        for name, code in files(DOCS / page).items():
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


def test_readme_leads_to_every_page() -> None:
    reached, ahead = {README}, [README]
    while ahead:
        page = ahead.pop()
        links = {(page.parent / link.partition("#")[0]).resolve() for link in LINK.findall(page.read_text())}
        ahead += links & set(PAGES) - reached
        reached |= links & set(PAGES)
    assert reached == set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_named_files_exist(page: Path) -> None:
    assert [path for path in PATH.findall(page.read_text()) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_valid(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shown: Callable[[str], None]
) -> None:
    shown(str(page))
    for argv in commands(page):
        try:
            arguments = parse_arguments(argv)
        except SystemExit as end:
            if end.code == 0:  # --version
                continue
            pytest.fail(f"pbtrl {shlex.join(argv)}\n{capsys.readouterr().err}")
        if argv[0] in LOADING and arguments.config is not None:
            own = tmp_path / arguments.config
            load(own if own.is_file() else arguments.config, arguments.overrides)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_configs_are_valid(page: Path, shown: Callable[[str], None]) -> None:
    shown(str(page))
    for code in blocks(page, "yaml"):
        parse(code, page.name)


# Pages about agents, strategies, messages and batch systems


@pytest.mark.parametrize("name", AGENTS)
def test_page_of_an_agent_names_its_live_hyperparameters(name: str) -> None:
    text = (DOCS / f"agents/{name}.md").read_text()
    _, _, listed = text.partition("## Live hyperparameters")
    assert set(re.findall(r"`(\w+)`", listed.partition("##")[0])) == set(live_hyperparameters(AGENTS[name]))
    assert f"<!-- settings: agents.{name} -->" in text


def test_every_strategy_has_a_page() -> None:
    pages = [page.read_text() for page in (DOCS / "strategies").glob("*.md")]
    shown = [name for text in pages for name in re.findall(r"<!-- settings: strategies\.(\w+) -->", text)]
    assert sorted(shown) == sorted(name for name, kind in STRATEGIES.items() if kind.__module__.startswith("pbtrl."))


def test_figures_are_those_of_the_benchmarks() -> None:
    """Scores with an interval, as in `19.5 [19.2, 19.7]`."""
    measured = (DOCS / "benchmarks.md").read_text()
    pages = [*(DOCS / "agents").glob("*.md"), *(DOCS / "guides").glob("*.md")]
    scores = {score for page in pages for score in re.findall(r"[\d.]+ \[[\d.]+, [\d.]+\]", page.read_text())}
    assert len(scores) > 10
    assert [score for score in scores if score not in measured] == []


def messages() -> list[str]:
    """The first line of each block of troubleshooting.md."""
    return [code.splitlines()[0] for code in blocks(DOCS / "troubleshooting.md", "")]


@cache
def texts_of_the_code() -> frozenset[str]:
    """The literal parts of all texts of the code, but not of its docstrings."""
    parts: set[str] = set()
    for path in (path for room in ("pbtrl", "agents", "envs") for path in (ROOT / room).rglob("*.py")):
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        constants = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in docstrings]
        parts |= {node.value.strip() for node in constants if isinstance(node.value, str) and len(node.value) >= 8}
    return frozenset(parts)


def test_troubleshooting_has_twenty_messages() -> None:
    assert len(messages()) == len(set(messages())) == 20


@pytest.mark.parametrize("message", messages())
def test_message_still_exists(message: str) -> None:
    """In the golden texts, within a text of the code, or 40 % of it consist of literal parts of such texts."""
    golden, texts = (ROOT / "tests/config/mistakes.txt").read_text(), texts_of_the_code()
    rest = message
    for part in sorted((part for part in texts if part in message), key=len, reverse=True):
        rest = rest.replace(part, "")
    assert message in golden or any(message in text for text in texts) or len(rest) <= 0.6 * len(message), rest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_slurm_job_is_requeued_until_it_is_finished(tmp_path: Path) -> None:
    """`srun` sends SIGTERM to its first step, as SLURM does before the time limit; `scontrol` only notes its call."""
    script = next(code for code in blocks(DOCS / "guides/slurm.md", "bash") if code.startswith("#!"))
    assert "#SBATCH --requeue --signal=TERM@120\n" in script
    bin = tmp_path / "bin"
    bin.mkdir()
    stop = 'until grep -qs report runs/my_run/journal.jsonl; do sleep 0.1; done; kill "$!"'
    programs = {
        "srun": f'if [ -e begun ]; then exec "$@"; fi; touch begun; "$@" & {{ {stop}; }}; wait "$!"',
        "scontrol": 'echo "$@" >> requeued',
        "pbtrl": f'exec {sys.executable} -m pbtrl "$@"',
    }
    for name, text in programs.items():
        (bin / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin / name).chmod(0o755)
    shutil.copy(ROOT / "configs/toy_quadratic.yaml", tmp_path / "my_run.yaml")
    (tmp_path / "train.sbatch").write_text(script)
    environ = {**os.environ, "PATH": f"{bin}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "PYTHONPATH": str(ROOT)}
    job = ["bash", "train.sbatch"]
    done = [subprocess.run(job, cwd=tmp_path, env=environ, capture_output=True, timeout=110) for _ in range(3)]
    assert [job.returncode for job in done] == [143, 0, 0], [job.stderr for job in done]
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert kinds(tmp_path / "runs/my_run")[-1] == "finish"


# Generated pages


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "_site/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_config_keys_are_complete(reference: ModuleType) -> None:
    """Every key of the schema, each with a meaning or a name that says it."""
    text = reference._config()
    schema = json_schema()
    keys = {key for definition in [schema, *schema["$defs"].values()] for key in definition.get("properties", ())}
    assert {key for key in keys if f"`{key}`" not in text and f".{key}`" not in text} == set()
    assert "| `gamma` | number | `0.99` | **live**; discount per env step. |" in text
    assert "number of members; with a mix the sum of its counts." in text


def test_commands_and_exit_codes_are_complete(reference: ModuleType) -> None:
    text = reference._commands()
    assert {
        name for name in ("train", "resume", "sweep", "export", "track") if f"usage: pbtrl {name} " not in text
    } == set()
    codes = [str(value) for value in vars(exit_codes).values() if isinstance(value, int)]
    assert re.findall(r"^\| (\d+) \|", reference._exit_codes(), re.MULTILINE) == ["0", *codes]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_site_is_built_without_warnings_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    done = subprocess.run(
        build, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)="([^"]+)"', page.read_text())
        assert [url for url in loaded if re.match(r"(https?:)?//", url)] == [], page
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", sheet.read_text()), sheet
    tags = (tmp_path / "reference/tensorboard/index.html").read_text()
    assert all(tag in tags for tag in ("population/fitness_max", "loss/pixel_control", "final/score"))
    python = (tmp_path / "reference/python/index.html").read_text()
    assert all(f'id="pbtrl.{name}"' in python for name in ("api.train", "api.Run.evaluate", "errors.ConfigError"))
    assert "<td><code>target_kl</code></td>" in (tmp_path / "agents/ppo/index.html").read_text()
    assert (tmp_path / "configs/reference.yaml").read_text() == (ROOT / "configs/reference.yaml").read_text()


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


@pytest.mark.parametrize(
    ("page", "name", "most"), [("own-agent.md", "my_agent.py", 60), ("own-trainable.md", "my_model.py", 40)]
)
def test_examples_are_short(page: str, name: str, most: int) -> None:
    assert len(files(DOCS / page)[name].splitlines()) <= most


@pytest.mark.parametrize("page", SMALL)
def test_own_code_is_trained_by_its_config(pbtrl: Command, shown: Callable[[str], None], page: str) -> None:
    """Also in workers; commands on the run directory ask for trust."""
    shown(page)
    config, overrides = SMALL[page]
    trained = pbtrl("train", config, *overrides, "execution={backend: processes, workers: 1}", "--name", "mine")
    assert trained.code == 0, trained.err
    refused = pbtrl("eval", "mine")
    assert (refused.code, "allow it with --trust-imports" in refused.err) == (2, True)
    assert pbtrl("eval", "mine", "--trust-imports").code == 0
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
    runpy.run_path(str(DOCS / "overhead.py"))["overhead"](Path("runs/corridor"))
    assert "between slices of" in capsys.readouterr().out
