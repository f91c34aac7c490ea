"""Imports point down only, siblings do not know each other, and nothing can execute a file that it reads."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS: list[list[set[str]]] = [
    [{"cli", "__main__"}],
    [{"session", "runs", "extension", "bench", "doctor", "evaluation", "verify", "report"}],
    [{"build", "config", "checks", "loading"}],
    [{"controller"}],
    [
        {"strategies"},
        {"execution"},
        {"rl", "trainables"},
        {"tensorboard", "board", "progress", "pictures", "lineage", "standings", "retention"},
    ],
    [
        {
            "space",
            "population",
            "journal",
            "snapshots",
            "trainable",
            "header",
            "metrics",
            "lock",
            "figures",
            "interrupts",
            "apart",
            "children",
            "tables",
            "crash",
            "disk",
            "heap",
            "schema",
            "strict_json",
            "streams",
            "card",
            "cgroups",
        }
    ],
    [{"agents"}, {"envs"}],
]
"""From the top down. A module imports from lower floors and its own group; a new one gets its place here."""

TORCHLESS = tuple(f"pbtrl.{m}" for m in ("strategies", "controller", "space", "population", "journal"))
EXECUTING_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
EXECUTING_CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "np.load"}


ALL = sorted(p for package in ("pbtrl", "agents", "envs") for p in (ROOT / package).rglob("*.py"))


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name(path) for path in ALL}


def imports(path: Path) -> Iterator[str]:
    """Full names of everything imported anywhere in a file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in MODULES else str(node.module)


def place(module: str) -> tuple[int, int] | None:
    """Floor and group of a module of ours; None for the package pbtrl itself, which holds nothing."""
    first, _, rest = module.partition(".")
    part = rest.partition(".")[0] if first == "pbtrl" else first
    if not part:
        return None
    for floor, groups in enumerate(FLOORS):
        for group, parts in enumerate(groups):
            if part in parts:
                return floor, group
    raise AssertionError(f"{module} has no place in tests/test_layers.py")


@pytest.mark.parametrize("path", ALL, ids=name)
def test_imports_point_down(path: Path) -> None:
    here = place(name(path))
    for other in imports(path):
        if other.partition(".")[0] in ("pbtrl", "agents", "envs") and (there := place(other)):
            assert here, f"{name(path)} holds nothing and imports nothing"
            assert there[0] > here[0] or there == here, f"{name(path)} imports {other}"


def test_every_place_but_the_planned_ones_is_taken() -> None:
    parts = {m.split(".")[1] for m in MODULES if m.startswith("pbtrl.")} | {"agents", "envs"}
    planned = {"report"}
    assert {p for floor in FLOORS for group in floor for p in group} - planned <= parts


@pytest.mark.parametrize("path", [p for p in ALL if name(p).startswith(TORCHLESS)], ids=name)
def test_deciding_knows_no_torch(path: Path) -> None:
    assert not any(other.partition(".")[0] == "torch" for other in imports(path))


def test_deciding_loads_no_torch() -> None:
    code = (
        "import sys, pbtrl.controller, pbtrl.core.search_space, pbtrl.execution.processes;"
        "import pbtrl.strategies.random_search; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("library", ["ray", "optuna"])
def test_big_optional_libraries_are_imported_in_one_file(library: str) -> None:
    assert sum(any(i.partition(".")[0] == library for i in imports(path)) for path in ALL) <= 1


@pytest.mark.parametrize("path", ALL, ids=name)
def test_nothing_executes_a_file_that_it_reads(path: Path) -> None:
    assert not {other.partition(".")[0] for other in imports(path)} & EXECUTING_MODULES
    calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)}
    assert not calls & EXECUTING_CALLS
