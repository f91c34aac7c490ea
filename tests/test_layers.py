"""Imports point down, rooms on one floor do not import each other, and no file that is read is executed."""

import ast
import functools
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = [
    {"__main__"},
    {"cli"},
    {"testing"},
    {"api", "registration"},
    {"training", "diagnostics", "export"},
    {"build"},
    {"reporting", "execution", "rl", "trainables", "integrations"},
    {"storage"},
    {"config"},
    {"strategies"},
    {"core", "agents", "envs"},
    {"system"},
    {"errors", "__init__"},
]
"""Rooms from the top down. A module imports from lower floors and its own room; a new room gets its place here."""

TORCHLESS = ("cli", "config", "core", "storage", "strategies", "system", "training", "diagnostics", "errors")
EXECUTING_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
EXECUTING_CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "np.load"}
BANNED_WORDS = re.compile(r"\b(nobody|anew|told|lest|gone on with)\b", re.IGNORECASE)
BANNED_OPENINGS = re.compile(r"(What|How|Where|Who|Whom|Whose|Why|Those)\b")  # of docstrings
LONGEST = 450  # lines; a longer file says why in its docstring


def module_files() -> Iterator[Path]:
    for folder, _, names in os.walk(ROOT / "pbtrl", followlinks=True):
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


ALL = sorted(module_files())
MODULES = {name(path) for path in ALL}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path, *, annotations: bool = True) -> list[str]:
    """Full names of all imports in a file, also inside functions, and optionally for annotations only."""
    return list(_imports(path, annotations=annotations))


def _imports(path: Path, *, annotations: bool) -> Iterator[str]:
    tree = parsed(path)
    typing = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    ignored = {id(n) for block in typing for n in ast.walk(block)} if not annotations else set()
    for node in (n for n in ast.walk(tree) if id(n) not in ignored):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in MODULES else str(node.module)


def room(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def floor(module: str) -> int:
    result = [number for number, rooms in enumerate(FLOORS) if room(module) in rooms]
    assert result, f"{module} has no floor in {__file__}"
    return result[0]


@pytest.mark.parametrize("path", ALL, ids=name)
def test_imports_point_down(path: Path) -> None:
    here = name(path)
    for other in imports(path, annotations=here != "pbtrl"):  # whose names are loaded when they are used
        if other.partition(".")[0] == "pbtrl" and room(other) != room(here):
            assert floor(other) > floor(here), f"{here} imports {other}"


def test_every_room_exists() -> None:
    assert {r for rooms in FLOORS for r in rooms} == {room(m) for m in MODULES}


def test_imports_have_no_cycle() -> None:
    graph = {name(path): [m for m in imports(path, annotations=False) if m in MODULES] for path in ALL}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("path", ALL, ids=name)
def test_files_are_short_and_have_docstrings(path: Path) -> None:
    text = path.read_text()
    summary = (ast.get_docstring(parsed(path)) or "").partition("\n")[0]
    assert summary.endswith((".", ":")), f"{path} opens without a sentence about what it is for"
    assert len(text.splitlines()) <= LONGEST or "lines" in summary


def test_median_file_is_short() -> None:
    lengths = sorted(len(path.read_text().splitlines()) for path in ALL)
    assert lengths[len(lengths) // 2] < 200


@pytest.mark.parametrize("path", [p for p in ALL if room(name(p)) in TORCHLESS], ids=name)
def test_torchless_rooms_import_no_torch(path: Path) -> None:
    loaded = [n for n in parsed(path).body if isinstance(n, ast.Import | ast.ImportFrom)]
    assert not any("torch" in ast.unparse(n).replace(".", " ").split() for n in loaded)


def test_deciding_loads_no_torch() -> None:
    code = (
        "import sys, pbtrl.training.controller, pbtrl.core.search_space, pbtrl.execution.processes, pbtrl.cli.main;"
        "import pbtrl.strategies.random_search; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


LIBRARIES = [
    ("ray", ["execution"]),
    ("optuna", ["integrations", "strategies"]),
    ("wandb", ["integrations"]),
    ("mlflow", ["integrations"]),
    ("onnx", ["export"]),
    ("onnxruntime", ["export"]),
    ("onnxscript", ["export"]),
    ("imageio_ffmpeg", ["storage"]),
]


@pytest.mark.parametrize(("library", "rooms"), LIBRARIES)
def test_optional_libraries_are_imported_in_one_file_of_a_room(library: str, rooms: list[str]) -> None:
    """Files that bear the library's name count as one."""
    using = [path for path in ALL if any(i.partition(".")[0] == library for i in imports(path))]
    places = {(room(name(p)), library if p.stem.partition("_")[0] == library else p.stem) for p in using}
    assert len(places) == len({where for where, _ in places})
    assert {where for where, _ in places} <= set(rooms)


@pytest.mark.parametrize("path", ALL, ids=name)
def test_nothing_executes_a_file_that_it_reads(path: Path) -> None:
    assert not {other.partition(".")[0] for other in imports(path)} & EXECUTING_MODULES
    calls = {ast.unparse(n.func) for n in ast.walk(parsed(path)) if isinstance(n, ast.Call)}
    assert not calls & EXECUTING_CALLS


RUN_FILES = {
    "run.json", "config.resolved.yaml", "journal.jsonl", "LOCK", "best.json", "metrics.jsonl", "log.txt", "ray.log",
    "report.html", "MANIFEST.json",
}  # fmt: skip
RUN_FOLDERS = {"members", "tb", "eval", "requests", "plots", "export", "snapshots", "config.yaml"}
"""Names that mean other things too, and so count only as a part of a path."""


@pytest.mark.parametrize("path", [p for p in ALL if room(name(p)) != "storage"], ids=name)
def test_only_storage_knows_the_files_of_a_run(path: Path) -> None:
    """All others ask `RunDirectory`."""

    def parts(tree: ast.AST) -> set[str]:
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        return {part for text in texts if " " not in text for part in text.split("/")}

    tree = parsed(path)
    divided = [n.right for n in ast.walk(tree) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Div)]
    assert not parts(tree) & RUN_FILES
    assert not set().union(*map(parts, divided)) & RUN_FOLDERS


def test_no_module_has_two_names() -> None:
    """`agents`, `envs` and `configs` are importable from the root too, and must not be."""
    for path in [*ALL, *ROOT.glob("tests/**/*.py")]:
        assert not {other.partition(".")[0] for other in imports(path)} & {"agents", "envs"}, path


SHARED_CLASS_NAMES = {
    "Policy": "the export's copy is a file of its own, which people use as rl/policy.py's without pbtrl",
}


def test_no_two_public_classes_share_a_name() -> None:
    names = [n.name for path in ALL for n in parsed(path).body if isinstance(n, ast.ClassDef) and n.name[0] != "_"]
    assert {n for n, count in Counter(names).items() if count > 1} == SHARED_CLASS_NAMES.keys()


@pytest.mark.parametrize("path", ALL, ids=name)
def test_prose_is_plain(path: Path) -> None:
    text = path.read_text()
    assert not BANNED_WORDS.findall(text)
    for node in ast.walk(parsed(path)):
        match node:  # docstrings, also those of attributes and constants
            case ast.Expr(value=ast.Constant(value=str(docstring))):
                assert not BANNED_OPENINGS.match(docstring.strip()), docstring


def test_names_of_tests_are_short() -> None:
    """At most 70 characters; the reason for a test belongs in its docstring."""
    defined = (node for path in ROOT.glob("tests/**/*.py") for node in ast.walk(parsed(path)))
    names = [node.name for node in defined if isinstance(node, ast.FunctionDef) and node.name.startswith("test")]
    assert len(names) > 1000
    assert [name for name in names if len(name) > 70] == []
