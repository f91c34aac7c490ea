"""YAML to a validated model, and every mistake in it told at once, each with the place where it was written.

`Source` holds the plain tree of a file with overrides applied, and for every path in it a mark: line and
column, or the override that set it. `Fault` names a path and says what is wrong there; pydantic's errors are
turned into faults. Nothing here knows what the config is about.
"""

import difflib
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from pbtrl.errors import ConfigError

Path = tuple[str | int, ...]
MOST = 100_000  # values in a config; aliases of aliases make billions of a few lines
DEEPEST = 64  # levels of sections and lists
TOO_DEEP = f"more than {DEEPEST} levels of sections and lists"
DIGITS = 100  # characters of a number; Python itself reads no more than 4300
SHOWN = 80  # characters of a text in a message
CORE = "tag:yaml.org,2002:"
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Fault:
    """Something wrong between `paths`, shown at the first that an override set, or else that was written.

    `at_key` points at the key rather than at its value, because the key itself is the mistake.
    """

    message: str
    paths: tuple[Path, ...]
    at_key: bool = False

    @classmethod
    def at(cls, message: str, *paths: Path, at_key: bool = False) -> "Fault":
        """A fault that involves all of `paths`."""
        return cls(message, paths, at_key)


@dataclass(frozen=True)
class Mark:
    """Where a path was written: `key` and `value` as (line, column) from 1, or which override wrote it."""

    key: tuple[int, int] = (1, 1)
    value: tuple[int, int] = (1, 1)
    override: int | None = None


class Tagged:
    """Annotation for a union of classes told apart by one key; new members of `classes` need nothing else.

    `what` is what messages call a class; the key unless given.
    """

    def __init__(
        self, key: str, classes: Mapping[str, type], default: str | None = None, what: str | None = None
    ) -> None:  # fmt: skip
        self.key, self.classes, self.default, self.what = key, classes, default, what or key

    def tag(self, value: Any) -> str | None:
        """The class's name in a raw mapping or in an object; the default for what is neither."""
        if isinstance(value, dict):
            found = value.get(self.key, self.default)
            return None if found is None else str(found)
        return str(getattr(value, self.key, self.default or next(iter(self.classes))))

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(kind) for name, kind in self.classes.items()}
        return core_schema.tagged_union_schema(choices, discriminator=self.tag)


# --- reading ---


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema plus `_` between digits: `1e-4` is a number; `no`, `off` and dates are text."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, unless it lies so deep that PyYAML would take seconds, and then all of the stack."""
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
    """`str`, `int`, `map`, ...; for a tag that is not of YAML's own, the whole of it."""
    return str(node.tag).removeprefix(CORE)


def _scalar(node: yaml.ScalarNode) -> Any:
    kind, text = _kind(node), node.value
    if kind == "str":
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise _problem(node, f"{shown(text)} has half a character in it, which no file can hold")
        return text
    if kind not in _SCALARS:
        raise _problem(node, f"unknown tag {_cut(node.tag)!r}")
    if not _SCALARS[kind][0].fullmatch(text):
        raise _problem(node, f"{shown(text)} is tagged as {kind}, which it is not")
    if len(text) > DIGITS and kind in ("int", "float"):
        raise _problem(node, f"a number of {len(text):,} characters, of which {DIGITS} are the most")
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


def _composed(text: str) -> yaml.Node | None:
    """YAML as nodes; YAMLError, also where PyYAML raises something else."""
    try:
        return yaml.compose(text, Loader=_Loader)
    except (ValueError, OverflowError):
        raise yaml.YAMLError("a number in an escaped character or in a %YAML line is too large") from None


def _said(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        return ", ".join(filter(None, (error.context, error.problem)))
    return str(error).splitlines()[0]


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or `_Loader` would take for a number."""


for _tag, _pattern in (("int", _INT), ("float", _FLOAT)):
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list("-+.0123456789"))


def dumped(tree: Mapping[str, Any]) -> str:
    """YAML text that `Source` reads back as an equal tree."""
    return str(yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110))


class Source:
    """A raw config: the plain tree, and where each part of it was written."""

    def __init__(self, text: str = "", file: str = "config", overrides: Sequence[str] = ()) -> None:
        """Parse `text`; `file` is the name that messages give it. Raises ConfigError."""
        self.text, self.file = text, file
        self.data: dict[str, Any] = {}
        self.marks: dict[Path, Mark] = {}
        self.overrides: list[tuple[str, Path]] = []
        self.faults: list[tuple[tuple[int, int], str]] = []
        self._built = 0
        try:
            node = _composed(text)
            data = None if node is None else self._build(node, (), (1, 1), None, ())
        except yaml.MarkedYAMLError as error:
            place = error.problem_mark or error.context_mark
            where = f"{file}:{place.line + 1}:{place.column + 1}" if place else file
            raise ConfigError([f"{where}: {_said(error)}"]) from None
        except yaml.YAMLError as error:
            raise ConfigError([f"{file}: {_said(error)}"]) from None
        if data is not None and not isinstance(data, dict):
            raise ConfigError([f"{file}:1:1: a config is a mapping of keys to values, not {shown(data)}"])
        self.data = data or {}
        for override in overrides:
            self.override(override)

    def _build(
        self,
        node: yaml.Node,
        path: Path,
        key: tuple[int, int],
        override: int | None,
        above: tuple[yaml.Node, ...],
    ) -> Any:
        """The value of a node, marking it and everything below; aliases are copied."""
        self._built += 1
        if self._built > MOST:
            raise _problem(node, f"more than {MOST:,} values, those of aliases counted wherever they are used")
        if len(path) > DEEPEST:
            raise _problem(node, TOO_DEEP)
        if node in above:
            raise _problem(node, "an alias that contains itself")
        here = node.start_mark.line + 1, node.start_mark.column + 1
        self.marks[path] = Mark(key, here, override)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if _kind(node) not in ("map", "seq"):
            raise _problem(node, f"unknown tag {_cut(node.tag)!r}")
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
                raise _problem(key_node, f"{_dotted((*path, name))} is given twice")
            own.add(name)
            built[name] = self._build(value_node, (*path, name), place, override, above)
        return built

    def override(self, text: str) -> None:
        """Apply `a.b=value`, the value being YAML; a mistake in its form is kept and told with the rest."""
        number = len(self.overrides)
        dotted, equals, raw = text.partition("=")
        path: Path = tuple(dotted.strip().split("."))
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
                self.marks[path[:depth]] = Mark(override=number)
            if not isinstance(below, dict):
                held = "a list: give it whole" if isinstance(below, list) else f"{shown(below)}, not a section"
                self._refuse(number, f"{_dotted(path[:depth])} is {held}")
                return
            tree = below
        try:
            node = _composed(raw)
            for stale in [known for known in self.marks if known[: len(path)] == path]:
                del self.marks[stale]
            self.marks[path] = Mark(override=number)
            value = None if node is None else self._build(node, path, (1, 1), number, ())
            tree[str(path[-1])] = value
        except yaml.YAMLError as error:
            self._refuse(number, _said(error))

    def _refuse(self, number: int, problem: str) -> None:
        self.faults.append(((1, number), f"override '{_cut(self.overrides[number][0])}': {problem}"))

    def error(self, faults: Iterable[Fault]) -> ConfigError:
        """All faults as text: the file's in the order of its lines, then the overrides'."""
        placed = {*self.faults, *(self._place(fault) for fault in faults)}
        return ConfigError([text for order, text in sorted(placed)])

    def _place(self, fault: Fault) -> tuple[tuple[int, ...], str]:
        known = [(path, *self._nearest(path)) for path in fault.paths]
        written = sorted((k for k in known if k[0] == k[1]), key=lambda k: k[2].override is None)
        path, marked, mark = (written or known)[0]
        dotted = _dotted(path)
        if mark.override is not None:
            text, target = self.overrides[mark.override]
            place = f"override '{_cut(text)}': " + ("" if path == target else f"{dotted}: ")
            return (1, mark.override), place + fault.message
        if not marked:
            return (
                0,
                0,
            ), f"{self.file}: {dotted}: {fault.message}" if dotted else f"{self.file}: {fault.message}"
        line, column = mark.key if fault.at_key or marked != path else mark.value
        return (0, line, column), f"{self.file}:{line}:{column}: {dotted}: {fault.message}"

    def _nearest(self, path: Path) -> tuple[Path, Mark]:
        for length in range(len(path), 0, -1):
            if path[:length] in self.marks:
                return path[:length], self.marks[path[:length]]
        return (), Mark()


# --- validating ---


def validated(
    kind: type[M],
    source: Source,
    before: Callable[[dict[str, Any]], Iterable[Fault]],
    after: Callable[[M], Iterable[Fault]],
    aliases: Mapping[str, str],
) -> M:
    """The model, or a ConfigError with the faults of pydantic, of `before` (raw) and of `after` (whole).

    Where a value is wrong, the checks of the whole go on without it, so that one run tells everything.
    """
    faults = list(before(source.data))
    data, removed = source.data, []
    model: M | None = None
    for attempt in range(8):
        try:
            model = kind.model_validate(data)
            break
        except ValidationError as error:
            found = [fault for detail in error.errors() for fault in _faults(kind, detail, aliases)]
            # pydantic counts a list's valid items, so a wrong one also makes the list too short
            above = {f.paths[0][:depth] for f in found for depth in range(len(f.paths[0]))}
            found = [fault for fault in found if fault.paths[0] not in above]
            if attempt == 0:
                faults += found
            for fault in found:
                if gone := _existing(data, fault.paths[0]):  # else an earlier fault took its owner along
                    removed.append(gone)
                    data = _without(data, gone)
    if model is not None:
        faults += [
            fault
            for fault in after(model)
            if not any(
                path[: len(gone)] == gone or gone[: len(path)] == path for path in fault.paths for gone in removed
            )
        ]
    if faults or source.faults:
        raise source.error(faults)
    assert model is not None
    return model


def _existing(data: Any, path: Path) -> Path:
    """The part of the path to drop: itself, or for what is missing its nearest owner."""
    for depth, part in enumerate(path):
        if not isinstance(data, dict) or part not in data:
            return path[:depth]
        data = data[part]
    return path


def _without(data: dict[str, Any], path: Path) -> dict[str, Any]:
    head, rest = str(path[0]), path[1:]
    if rest and isinstance(data.get(head), dict):
        return {**data, head: _without(data[head], rest)}
    return {key: value for key, value in data.items() if key != head}


def _faults(kind: type, detail: ErrorDetails, aliases: Mapping[str, str]) -> Iterator[Fault]:
    """pydantic's error in our words, at the path as the user wrote it (pydantic's has tags in between)."""
    owner, path = _walk(kind, detail["loc"])
    problem, context, given = detail["type"], detail.get("ctx", {}), detail["input"]
    if problem in ("extra_forbidden", "unexpected_keyword_argument"):
        name = str(path[-1])
        deeper = _deeper(kind, aliases.get(name, name)) if len(path) == 1 else None
        text = f"unknown key. Did you mean '{deeper}'?" if deeper else None
        yield Fault(text or unknown("unknown key", name, _keys(owner), aliases), (path,), at_key=True)
    elif problem == "missing":
        yield Fault("missing", (path,), at_key=True)
    elif problem in ("union_tag_invalid", "union_tag_not_found") and (tagged := _tagged(owner)):
        path = (*path, tagged.key)
        if problem == "union_tag_invalid":
            tag = str(context["tag"])
            yield Fault(unknown(f"unknown {tagged.what} '{_cut(tag)}'", tag, tagged.classes, {}), (path,))
        else:
            yield Fault(f"missing. Known: {', '.join(tagged.classes)}", (path,), at_key=True)
    elif problem == "value_error":
        cause = context["error"]
        fields = getattr(cause, "fields", ())
        yield Fault(str(cause), tuple((*path, name) for name in fields) or (path,))
    else:
        yield Fault(_wording(problem, context, given, detail["msg"]), (path,))


def _wording(problem: str, context: Mapping[str, Any], given: object, otherwise: str) -> str:
    for start, need in (
        ("int_", "an integer"),
        ("float_", "a number"),
        ("bool_", "true or false"),
        ("string_type", "text"),
        ("tuple_type", "a list"),
        ("list_type", "a list"),
        ("dict_type", "a section of keys"),
        ("model_", "a section of keys"),
        ("dataclass_", "a section of keys"),
        ("finite_number", "finite"),
    ):
        if problem.startswith(start):
            return f"must be {need}, not {shown(given)}"
    for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
        if name in context:
            return f"must be {sign} {context[name]:g}, not {shown(given)}"
    if problem == "literal_error":
        allowed = re.findall("'([^']*)'", context["expected"])
        near = _near(str(given), allowed)
        choices = " or ".join(filter(None, (", ".join(allowed[:-1]), allowed[-1])))
        return f"must be {choices}, not {shown(given)}" + (f". {near}" if near else "")
    if problem in ("too_short", "too_long"):
        least = problem == "too_short"
        count = context["min_length" if least else "max_length"]
        return f"needs at {'least' if least else 'most'} {count} value{'' if count == 1 else 's'}"
    return f"{otherwise}, not {shown(given)}"


def unknown(label: str, name: str, known: Iterable[str], aliases: Mapping[str, str]) -> str:
    """`unknown key. Did you mean 'size'?`, or the list of what there is when nothing is near."""
    known = list(known)
    alias = aliases.get(name)
    near = f"Did you mean '{alias}'?" if alias in known else _near(name, known)
    return f"{label}. {near or 'Known: ' + ', '.join(known)}"


def _near(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name[:SHOWN].lower(), known, n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else ""


def _dotted(path: Path) -> str:
    return _cut(".".join(map(str, path)))


def _cut(text: str) -> str:
    """Text that is short enough for a message."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def shown(value: object) -> str:
    """A value as the user would write it, short."""
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list | tuple):
        return repr(list(value)) if len(repr(value)) < 40 else "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _cut(repr(value))


def _walk(kind: Any, location: Sequence[str | int]) -> tuple[Any, Path]:
    """Follow pydantic's location through the types: the owner of its last key, and the path without tags."""
    path: Path = ()
    owner = kind
    for place, part in enumerate(location):
        tagged = _tagged(kind)
        if tagged is not None:
            owner = kind = tagged.classes[str(part)]
            continue
        kind = _plain(kind)
        hints = get_type_hints(kind, include_extras=True) if _has_keys(kind) else {}
        last = place == len(location) - 1
        if _has_keys(kind):
            owner, kind = kind, hints.get(str(part), Any)
        elif get_origin(kind) in (dict, tuple, list):
            kind = get_args(kind)[1 if get_origin(kind) is dict else 0]
        elif not last:
            break
        path = (*path, part)
    return (kind if _tagged(kind) is not None else owner), path


def _tagged(kind: Any) -> Tagged | None:
    for extra in getattr(_plain(kind, keep_annotation=True), "__metadata__", ()):
        if isinstance(extra, Tagged):
            return extra
    return None


def _plain(kind: Any, keep_annotation: bool = False) -> Any:
    while True:
        if get_origin(kind) is Annotated and not keep_annotation:
            kind = get_args(kind)[0]
        elif get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind):
            kind = next(arm for arm in get_args(kind) if arm is not type(None))
        else:
            return kind


def _has_keys(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or is_dataclass(kind))


def _deeper(kind: Any, name: str) -> str | None:
    """`section.name`, for a key that was written one level too high."""
    for section, hint in get_type_hints(kind, include_extras=True).items():
        tagged = _tagged(hint)
        below = tagged.classes.get(tagged.default or "") if tagged else _plain(hint)
        if name in _keys(below):
            return f"{section}.{name}"
    return None


def _keys(kind: Any) -> list[str]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return list(kind.model_fields)
    return [f.name for f in fields(kind)] if is_dataclass(kind) else []
