"""Validation of a raw config against a pydantic model; reports every mistake at once, in the words of the config.

The module knows no particular model.
"""

import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from pbtrl.config.wording import Path, did_you_mean, shortened, shown, unknown
from pbtrl.config.yaml_source import ConfigSource
from pbtrl.errors import ConfigProblem

M = TypeVar("M", bound=BaseModel)


class TaggedUnion:
    """Annotation for a union of classes that one key tells apart. Classes may be added to `classes` later.

    Attributes:
        key: the key that holds the name of the class.
        classes: by name.
        default: name of the class where the key is missing; None makes the key required.
        what: word for a class in messages; by default the key.
        known: lists all names, also of classes that are not in `classes` yet, which a config may name too, as it may
            `module:Class`; None if there are no others.
    """

    def __init__(
        self, key: str, classes: Mapping[str, type], default: str | None = None, what: str | None = None,
        known: Callable[[], Iterable[str]] | None = None,
    ) -> None:  # fmt: skip
        self.key, self.classes, self.default, self.what, self.known = key, classes, default, what or key, known

    @property
    def names(self) -> list[str]:
        """Names of the classes without those that another config has added as `module:Class`."""
        return [name for name in dict.fromkeys(self.known() if self.known else self.classes) if ":" not in name]

    def tag(self, value: Any) -> str | None:
        """Return the name of the class of a raw mapping or an object; the default for any other value."""
        if isinstance(value, dict):
            name = value.get(self.key, self.default)
            return None if name is None else str(name)
        return str(getattr(value, self.key, self.default or next(iter(self.classes))))

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(cls) for name, cls in self.classes.items()}
        return core_schema.tagged_union_schema(choices, discriminator=self.tag)

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Describe the classes by name; without a required key, a mapping would be valid as several of them."""
        schemas = dict(zip(core["choices"], handler(core)["oneOf"], strict=True))
        branches = [s if name == self.default else {**s, "required": [self.key]} for name, s in schemas.items()]
        if self.known:
            others = [f"^{re.escape(name)}$" for name in self.names if name not in self.classes]
            name = {"type": "string", "pattern": "|".join([":", *others])}
            branches.append({"type": "object", "properties": {self.key: name}, "required": [self.key]})
        return {"anyOf": branches}


def validated(
    kind: type[M],
    source: ConfigSource,
    check_raw: Callable[[dict[str, Any]], Iterable[ConfigProblem]],
    check_model: Callable[[M], Iterable[ConfigProblem]],
    aliases: Mapping[str, str],
) -> M:
    """Validate a source against a pydantic model.

    Invalid values are removed before `check_model` runs, so that all mistakes are reported at once.

    Args:
        kind: the model.
        source: the raw config.
        check_raw: checks of the raw tree.
        check_model: checks between valid settings.
        aliases: names that other libraries use, for suggestions.

    Raises:
        ConfigError: the mistakes that pydantic, `check_raw` and `check_model` found.
    """
    problems = list(check_raw(source.data))
    data, removed = source.data, []
    model: M | None = None
    for attempt in range(8):
        try:
            model = kind.model_validate(data)
            break
        except ValidationError as error:
            invalid = [problem for detail in error.errors() for problem in _problems(kind, detail, aliases)]
            # pydantic counts only the valid items of a list, so an invalid one also makes the list too short
            above = {p.paths[0][:depth] for p in invalid for depth in range(len(p.paths[0]))}
            invalid = [problem for problem in invalid if problem.paths[0] not in above]
            if attempt == 0:
                problems += invalid
            for problem in invalid:
                if path := _existing(data, problem.paths[0]):  # empty if its section was removed before
                    removed.append(path)
                    data = _without(data, path)
    if model is not None:
        problems += [problem for problem in check_model(model) if not _touches(problem, removed)]
    if problems or source.faults:
        raise source.error(problems)
    assert model is not None
    return model


def find_problems(kind: type, values: Mapping[str, Any], aliases: Mapping[str, str]) -> list[ConfigProblem]:
    """List what is wrong with values as the fields of a dataclass, in the words of the config."""
    try:
        TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        return [problem for detail in error.errors() for problem in _problems(kind, detail, aliases)]
    return []


def _touches(problem: ConfigProblem, removed: Iterable[Path]) -> bool:
    """Return whether a problem lies in, or contains, one of the removed paths."""
    return any(path[: len(other)] == other or other[: len(path)] == path for path in problem.paths for other in removed)


def _existing(data: Any, path: Path) -> Path:
    """Return the path, cut before its first missing key."""
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


def _problems(kind: type, detail: ErrorDetails, aliases: Mapping[str, str]) -> Iterator[ConfigProblem]:
    """Translate an error of pydantic, with the path as the user wrote it (pydantic's path has tags in between)."""
    owner, path = _walk(kind, detail["loc"])
    problem, context, given = detail["type"], detail.get("ctx", {}), detail["input"]
    if problem in ("extra_forbidden", "unexpected_keyword_argument"):
        name = str(path[-1])
        deeper = _deeper(kind, aliases.get(name, name)) if len(path) == 1 else None
        text = f"unknown key. Did you mean '{deeper}'?" if deeper else None
        yield ConfigProblem(text or unknown("unknown key", name, _keys(owner), aliases), path, at_key=True)
    elif problem == "missing":
        yield ConfigProblem("missing", path, at_key=True)
    elif problem in ("union_tag_invalid", "union_tag_not_found") and (tagged := _tagged(owner)):
        path = (*path, tagged.key)
        if problem == "union_tag_invalid":
            tag = str(context["tag"])
            yield ConfigProblem(unknown(f"unknown {tagged.what} '{shortened(tag)}'", tag, tagged.names, {}), path)
        else:
            yield ConfigProblem(f"missing. Known: {', '.join(tagged.names)}", path, at_key=True)
    elif problem == "value_error":
        cause = context["error"]
        fields = getattr(cause, "fields", ())
        yield ConfigProblem(str(cause), *([(*path, name) for name in fields] or [path]))
    else:
        yield ConfigProblem(_wording(problem, context, given, detail["msg"]), path)


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
    if problem == "multiple_of":
        return f"must be a multiple of {context['multiple_of']:g}, not {shown(given)}"
    if problem == "literal_error":
        allowed = re.findall("'([^']*)'", context["expected"])
        near = did_you_mean(str(given), allowed)
        choices = " or ".join(filter(None, (", ".join(allowed[:-1]), allowed[-1])))
        return f"must be {choices}, not {shown(given)}" + (f". {near}" if near else "")
    if problem in ("too_short", "too_long"):
        least = problem == "too_short"
        count = context["min_length" if least else "max_length"]
        return f"needs at {'least' if least else 'most'} {count} value{'' if count == 1 else 's'}"
    return f"{otherwise}, not {shown(given)}"


def _walk(kind: Any, location: Sequence[str | int]) -> tuple[Any, Path]:
    """Follow pydantic's location through the types.

    Returns:
        The class or union that owns the last key, and the path without tags.
    """
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


def _tagged(kind: Any) -> TaggedUnion | None:
    for extra in getattr(_plain(kind, keep_annotation=True), "__metadata__", ()):
        if isinstance(extra, TaggedUnion):
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
    """Return `section.name` for a key that was written one level too high; None if no section has it."""
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
