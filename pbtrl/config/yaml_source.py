"""Parsing of a config's YAML text and overrides to a plain tree, with the location of every part.

YAML 1.2's core schema: `1e-4` is a number; `no`, `off` and dates are text.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from typing_extensions import override

from pbtrl.config.wording import Path, dotted, shortened, shown
from pbtrl.errors import ConfigError, ConfigProblem

MAX_VALUES = 100_000  # values in a config; aliases of aliases can expand a few lines to billions

DEEPEST = 64  # levels of sections and lists

TOO_DEEP = f"more than {DEEPEST} levels of sections and lists"

MAX_NUMBER_LENGTH = 100  # characters of a number; Python refuses more than 4300

CORE = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Location:
    """Location of a setting: `key` and `value` as (line, column), counted from 1, or the number of an override."""

    key: tuple[int, int] = (1, 1)
    value: tuple[int, int] = (1, 1)
    override: int | None = None


class _Loader(yaml.SafeLoader):
    """Loader for YAML 1.2's core schema, with `_` between digits."""

    depth = 0

    @override
    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node; refuse deep nesting, on which PyYAML would spend seconds and then exhaust the stack."""
        if self.depth > DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=TOO_DEEP, problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {}


_INT = re.compile(r"[-+]?[0-9][0-9_]*$|0x_*[0-9a-fA-F][0-9a-fA-F_]*$|0o_*[0-7][0-7_]*$")


_FLOAT = re.compile(
    r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)


_SCALARS = {
    "null": (re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "int": (_INT, list("-+0123456789")),
    "float": (_FLOAT, list("-+.0123456789")),
}
for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"{CORE}{_tag}", _pattern, _first)
_Loader.add_implicit_resolver(f"{CORE}merge", re.compile(r"<<$"), ["<"])


def _kind(node: yaml.Node) -> str:
    """Return the type of a node, `str`, `int`, `map`, ...; a tag outside YAML's core schema is returned in full."""
    return str(node.tag).removeprefix(CORE)


def _scalar(node: yaml.ScalarNode) -> Any:
    kind, text = _kind(node), node.value
    if kind == "str":
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise _problem(node, f"{shown(text)} has half a character in it (a lone surrogate), which no file can hold")
        return text
    if kind not in _SCALARS:
        raise _problem(node, f"unknown tag {shortened(node.tag)!r}")
    if not _SCALARS[kind][0].fullmatch(text):
        raise _problem(node, f"{shown(text)} is tagged as {kind}, which it is not")
    if len(text) > MAX_NUMBER_LENGTH and kind in ("int", "float"):
        raise _problem(node, f"a number of {len(text):,} characters, more than the limit of {MAX_NUMBER_LENGTH}")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    digits = text.replace("_", "")
    if kind == "int":
        return int(digits, 0) if digits[:2] in ("0x", "0o") else int(digits)
    return float(re.sub(r"\.(?=[a-zA-Z])", "", digits))


def _problem(node: yaml.Node, text: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark)


def _compose(text: str) -> yaml.Node | None:
    """Parse YAML text to nodes; other errors of PyYAML become YAMLError."""
    try:
        return yaml.compose(text, Loader=_Loader)
    except (ValueError, OverflowError):
        raise yaml.YAMLError("a number in an escaped character or in a %YAML line is too large") from None


def _text_of(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        return ", ".join(filter(None, (error.context, error.problem)))
    return str(error).splitlines()[0]


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes text which YAML 1.1 or `_Loader` would read as a number."""


for _tag, _pattern in (("int", _INT), ("float", _FLOAT)):
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list("-+.0123456789"))


def section(tree: Mapping[str, Any], *path: str) -> dict[str, Any]:
    """Return the section at a path of a raw tree; empty for anything else."""
    below: Any = tree
    for key in path:
        below = below.get(key) if isinstance(below, Mapping) else None
    return below if isinstance(below, dict) else {}


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """Format a tree as YAML text that `ConfigSource` reads as an equal tree."""
    return str(yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110))


class ConfigSource:
    """Raw config.

    Attributes:
        data: the plain tree.
        marks: location of every path.
        faults: malformed overrides, as (order, message).
        replaced: values of the file that overrides replaced.
        notes: lines to tell the user.
    """

    def __init__(self, text: str = "", file: str = "config", overrides: Sequence[str] = ()) -> None:
        """Parse `text`, which messages call `file`, and apply the overrides. Raises ConfigError."""
        self.text, self.file = text, file
        self.data: dict[str, Any] = {}
        self.marks: dict[Path, Location] = {}
        self.overrides: list[tuple[str, Path]] = []
        self.faults: list[tuple[tuple[int, int], str]] = []
        self.replaced: dict[Path, Any] = {}
        self.notes: list[str] = []
        self._built = 0
        try:
            node = _compose(text)
            data = None if node is None else self._build(node, (), (1, 1), None, ())
        except yaml.MarkedYAMLError as error:
            place = error.problem_mark or error.context_mark
            where = f"{file}:{place.line + 1}:{place.column + 1}" if place else file
            raise ConfigError([f"{where}: {_text_of(error)}"]) from None
        except yaml.YAMLError as error:
            raise ConfigError([f"{file}: {_text_of(error)}"]) from None
        if data is not None and not isinstance(data, dict):
            raise ConfigError([f"{file}:1:1: a config is a mapping of keys to values, not {shown(data)}"])
        self.data = data or {}
        for text in overrides:
            self.override(text)

    def _build(
        self,
        node: yaml.Node,
        path: Path,
        key: tuple[int, int],
        override: int | None,
        above: tuple[yaml.Node, ...],
    ) -> Any:
        """Build the value of a node and record the locations of it and everything below; aliases are copied."""
        self._built += 1
        if self._built > MAX_VALUES:
            raise _problem(node, f"more than {MAX_VALUES:,} values, those of aliases counted wherever they are used")
        if len(path) > DEEPEST:
            raise _problem(node, TOO_DEEP)
        if node in above:
            raise _problem(node, "an alias that contains itself")
        here = node.start_mark.line + 1, node.start_mark.column + 1
        self.marks[path] = Location(key, here, override)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if _kind(node) not in ("map", "seq"):
            raise _problem(node, f"unknown tag {shortened(node.tag)!r}")
        above = (*above, node)
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, (*path, i), here, override, above) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.MappingNode)
        built: dict[str, Any] = {}
        own: set[str] = set()
        for key_node, value_node in sorted(node.value, key=lambda pair: _kind(pair[0]) != "merge"):
            place = key_node.start_mark.line + 1, key_node.start_mark.column + 1
            if _kind(key_node) == "merge":
                merged = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for one in reversed(merged):
                    value = self._build(one, path, place, override, above)
                    if not isinstance(value, dict):
                        raise _problem(one, "<< merges mappings only")
                    built.update(value)
                continue
            if not isinstance(key_node, yaml.ScalarNode) or _kind(key_node) != "str":
                raise _problem(key_node, "a key must be text")
            name = key_node.value
            if name in own:
                raise _problem(key_node, f"{dotted((*path, name))} is given twice")
            own.add(name)
            built[name] = self._build(value_node, (*path, name), place, override, above)
        return built

    def override(self, text: str) -> None:
        """Apply `a.b=value`, where the value is YAML. A malformed override is reported with all other mistakes."""
        number = len(self.overrides)
        name, equals, raw = text.partition("=")
        path: Path = tuple(name.strip().split("."))
        self.overrides.append((text, path))
        if not equals or not all(path):
            self._refuse(number, "write it as key=value, as in population.size=8")
            return
        if len(path) > DEEPEST:
            self._refuse(number, TOO_DEEP)
            return
        tree = self.data
        for depth, part in enumerate(path[:-1], start=1):
            below = tree.get(str(part))
            if below is None:
                below = tree[str(part)] = {}
                self.marks[path[:depth]] = Location(override=number)
            if not isinstance(below, dict):
                kind = "a list: give it whole" if isinstance(below, list) else f"{shown(below)}, not a section"
                self._refuse(number, f"{dotted(path[:depth])} is {kind}")
                return
            tree = below
        try:
            node = _compose(raw)
            if path in self.marks and self.marks[path].override is None:
                self.replaced[path] = tree[str(path[-1])]
            for stale in [known for known in self.marks if known[: len(path)] == path]:
                del self.marks[stale]
            self.marks[path] = Location(override=number)
            value = None if node is None else self._build(node, path, (1, 1), number, ())
            tree[str(path[-1])] = value
        except yaml.YAMLError as error:
            self._refuse(number, _text_of(error))

    def _refuse(self, number: int, problem: str) -> None:
        self.faults.append(((1, number), f"override '{shortened(self.overrides[number][0])}': {problem}"))

    def error(self, problems: Iterable[ConfigProblem]) -> ConfigError:
        """Make an error of all mistakes: those of the file in the order of its lines, then those of overrides."""
        located = {*self.faults, *(self._locate(problem) for problem in problems)}
        return ConfigError([text for order, text in sorted(located)])

    def _locate(self, problem: ConfigProblem) -> tuple[tuple[int, ...], str]:
        """Return the order of a problem and its text with its location."""
        candidates = [(path, *self._nearest(path)) for path in problem.paths]
        written = sorted((c for c in candidates if c[0] == c[1]), key=lambda c: c[2].override is None)
        path, marked, mark = (written or candidates)[0]
        name = dotted(path)
        if mark.override is not None:
            text, target = self.overrides[mark.override]
            place = f"override '{shortened(text)}': " + ("" if path == target else f"{name}: ")
            return (1, mark.override), place + problem.message
        if not marked:
            return (0, 0), f"{self.file}: {name}: {problem.message}" if name else f"{self.file}: {problem.message}"
        line, column = mark.key if problem.at_key or marked != path else mark.value
        return (0, line, column), f"{self.file}:{line}:{column}: {name}: {problem.message}"

    def _nearest(self, path: Path) -> tuple[Path, Location]:
        """Return the longest part of a path that was written, and its location."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.marks:
                return path[:length], self.marks[path[:length]]
        return (), Location()
