"""Pages of the reference, as Markdown that is generated from the code.

Config keys come from the schema and its docstrings, commands from their parsers, exit codes from the comments of their
constants, TensorBoard tags from small runs, the Python API and the records of the journal from docstrings.
"""

import contextlib
import inspect
import io
import json
import logging
import os
import re
import tempfile
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any

import pbtrl
from pbtrl.agents.settings import AGENTS, live_hyperparameters
from pbtrl.cli import exit_codes
from pbtrl.cli.main import build_parser
from pbtrl.config.load import json_schema
from pbtrl.config.schema import Config
from pbtrl.core.dimensions import PRIORS
from pbtrl.strategies.catalog import STRATEGIES

GENERATED = "*Generated from the code.*\n\n"
KINDS_BY_NAME = {"agent": ("agents", "name"), "strategy": ("strategies", "name"), "hparams": ("priors", "prior")}
"""Top-level keys with settings of several kinds."""
KINDS: dict[str, dict[str, type]] = {"agents": AGENTS, "strategies": STRATEGIES, "priors": PRIORS}
SMALL = ["population.size=2", "execution.backend=inline", "env.backend=gymnasium", "fitness={min_episodes: 1}",
         "final={candidates: 1, selection_episodes: 1, episodes: 1, max_steps: 20}"]  # fmt: skip
COMMON = ("cartpole", ["env.num_envs=4", "budget.env_steps_per_member=2_048", "strategy.ready={slice_steps: 512}"])
TINY = ["env={id: maze/Foraging-v0, num_envs: 2}", "budget.env_steps_per_member=128",
        "strategy.ready={slice_steps: 64}", "hparams={gamma: {prior: uniform, low: 0.9, high: 0.99}}"]  # fmt: skip
OF_AGENTS = ("loss/", "learning/")
"""Groups of tags that depend on the agent."""


@cache
def pages() -> dict[str, str]:
    """Return the text of each page by its name."""
    return {
        "config": _config(),
        "commands": _commands(),
        "exit-codes": _exit_codes(),
        "tensorboard": _tensorboard(),
        "run-directory": _run_directory(),
        "python": _python(),
    }


def settings_table(kind: str, name: str) -> str:
    """Return the table of the settings of an agent, a strategy or a prior; sections in it get tables of their own."""
    return "\n\n".join(_tables("", KINDS[kind][name]))


# Config


def _config() -> str:
    parts = [
        f"# Config keys\n\n{GENERATED}`pbtrl config schema` prints them as a JSON schema for editors, and "
        "`pbtrl config show NAME` a config with every default. [Concepts](../concepts.md#configs) explains them.",
        "## Top level",
        *_tables("", Config),
    ]
    for key, (kind, field) in KINDS_BY_NAME.items():
        parts.append(f"## {key}\n\nThe keys depend on `{field}`.")
        for name in KINDS[kind]:
            parts += [f"### {field}: {name}", settings_table(kind, name)]
    return "\n\n".join(parts)


def _tables(title: str, settings: type) -> Iterator[str]:
    """Yield a table of keys, and one for each section in it."""
    schema, meanings, live = _schema(settings), _meanings(settings), _live(settings)
    rows, sections = [], []
    for key, spec in schema["properties"].items():
        if key in KINDS_BY_NAME and settings is Config:
            spec = {"enum": []}
            meanings[key] = f"depends on its `{KINDS_BY_NAME[key][1]}`: [{key}](#{key})"
        if section := _section(settings, key):
            sections.append((f"{title}.{key}".lstrip("."), section))
            continue
        meaning = ("**live**; " if key in live else "") + meanings.get(key, "")
        rows.append(f"| `{key}` | {_type(spec)} | {_default(spec)} | {_cell(meaning.removesuffix('; '))} |")
    if summary := _summary(settings):
        yield summary
    if rows:
        head = "| key | type | default | meaning |\n| --- | --- | --- | --- |\n"
        yield head + "\n".join(rows)
    for name, section in sections:
        yield f"**`{name}`**"
        yield from _tables(name, section)


@cache
def _definitions() -> dict[str, Any]:
    schema = json_schema()
    return {**schema["$defs"], "Config": schema}


def _schema(settings: type) -> dict[str, Any]:
    definition: dict[str, Any] = _definitions()[settings.__name__]
    return definition


def _section(settings: type, key: str) -> type | None:
    """Return the class of a key that is a section of keys."""
    spec = _schema(settings)["properties"][key]
    names = [branch.get("$ref", "") for branch in [spec, spec.get("items", {}), *spec.get("anyOf", [])]]
    name = next((n.rpartition("/")[2] for n in names if n), None)
    return next((cls for cls in _classes() if cls.__name__ == name), None)


@cache
def _classes() -> tuple[type, ...]:
    """Return all classes that the schema may mention."""
    from pbtrl.config import sections
    from pbtrl.strategies import (
        fire_settings,
        pbt_settings,
        pbt_variants_settings,
        replay_settings,
        rl_search_settings,
        rules,
        trial_settings,
    )

    modules = (sections, rules, pbt_settings, pbt_variants_settings, fire_settings, rl_search_settings,
               replay_settings, trial_settings)  # fmt: skip
    return tuple(cls for module in modules for cls in vars(module).values() if isinstance(cls, type))


def _live(settings: type) -> set[str]:
    return set(live_hyperparameters(settings)) if settings in AGENTS.values() else set()


def _summary(settings: type) -> str:
    text = inspect.cleandoc(settings.__dict__.get("__doc__") or "")
    return re.split(r"\n\s*Attributes:\n", text)[0].strip()


def _meanings(settings: type) -> dict[str, str]:
    """Return the meaning of each key, from the `Attributes:` of the class and its bases."""
    found: dict[str, str] = {}
    for cls in reversed(settings.__mro__):
        text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
        _, _, attributes = text.partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \w)", attributes.rstrip()):
            names, colon, meaning = entry.strip().partition(": ")
            if colon and re.fullmatch(r"[\w, ]+", names):
                found |= dict.fromkeys(names.split(", "), re.sub(r"\s+", " ", meaning))
    return found


def _type(spec: dict[str, Any]) -> str:
    if "const" in spec:
        return f"`{spec['const']}`"
    if "enum" in spec:
        return ", ".join(f"`{value}`" for value in spec["enum"])
    if "$ref" in spec:
        return spec["$ref"].rpartition("/")[2]
    if branches := spec.get("anyOf") or spec.get("oneOf"):
        named = [_type(branch) for branch in branches if branch.get("type") != "null"]
        return " or ".join(dict.fromkeys(named)) if len(named) < 4 else "by name"
    if spec.get("type") == "array":
        return f"list of {_type(spec['items'])}" if "items" in spec else "pair"
    return {"object": "mapping", "string": "text", "boolean": "true or false"}.get(
        spec.get("type", ""), spec.get("type", "any")
    )


def _default(spec: dict[str, Any]) -> str:
    if "default" not in spec or isinstance(spec["default"], dict):
        return ""
    value = spec["default"]
    return "none" if value is None else f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# Command line


def _commands() -> str:
    os.environ["COLUMNS"] = "100"
    parser = build_parser()
    (commands,) = (action for action in parser._actions if getattr(action, "choices", None) and action.dest != "help")
    parts = [f"# Command line\n\n{GENERATED}```\n{parser.format_help()}```"]
    parts += [
        f"## pbtrl {name}\n\n```\n{below.format_help()}```" for name, below in dict(commands.choices or {}).items()
    ]
    return "\n\n".join(parts)


def _exit_codes() -> str:
    source = inspect.getsource(exit_codes)
    rows = ["| 0 | done |"]
    rows += [
        f"| {value} | {meaning} |" for value, meaning in re.findall(r"^\w+ = (\d+)  # (.+)$", source, re.MULTILINE)
    ]
    text = inspect.cleandoc(exit_codes.__doc__ or "")
    return f"# Exit codes\n\n{GENERATED}{text}\n\n| code | meaning |\n| --- | --- |\n" + "\n".join(rows)


# TensorBoard


def _tensorboard() -> str:
    agents: defaultdict[str, list[str]] = defaultdict(list)
    common = _written_tags(*COMMON)
    for name in AGENTS:
        settings = f"agent={{name: {name}, unroll_length: 8, block_length: 8, minibatches: 1}}"
        for tag in _written_tags("maze", [*TINY, settings]):
            if tag.startswith(OF_AGENTS):
                agents[tag].append(name)
    rows = [f"| `{tag}` | all |" for tag in sorted(common) if not tag.startswith((*OF_AGENTS, "hparams/"))]
    rows += [
        f"| `{tag}` | {', '.join(names) if len(names) < len(AGENTS) else 'all'} |"
        for tag, names in sorted(agents.items())
    ]
    return (
        "# TensorBoard tags\n\n*Generated: the tags that small runs wrote.* `hparams/NAME` is there for each searched "
        "hyperparameter. [Watching](../watching.md#tensorboard) says what the tags mean, and which others some runs "
        "have.\n\n| tag | agents |\n| --- | --- |\n" + "\n".join(rows)
    )


def _written_tags(config: str, overrides: list[str]) -> set[str]:
    """Train for some slices, and read the tags of the event files."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    logging.getLogger("pbtrl").setLevel(logging.ERROR)  # its warnings that these runs are very short
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run = pbtrl.train(config, overrides=[*SMALL, *overrides], runs=folder, name="tags", progress="none")
        events = [event for file in run.path.glob("tb/*/*") for event in EventFileLoader(str(file)).Load()]
    tags = {value.tag.removesuffix("/text_summary") for event in events for value in event.summary.value}
    return {tag for tag in tags if "__" not in tag and not tag.startswith("_")}


# Run directory, API


def _run_directory() -> str:
    from pbtrl.storage import journal, run_directory

    def text(module: Any) -> str:
        """Return a docstring whose indented paragraphs become blocks of code."""
        paragraphs = inspect.cleandoc(module.__doc__ or "").split("\n\n")
        return "\n\n".join(f"```\n{textwrap.dedent(p)}\n```" if p.startswith("    ") else p for p in paragraphs)

    parts = [f"# Run directory and journal\n\n{GENERATED}", text(run_directory)]
    parts.append("[Architecture](../architecture.md#a-run-directory) explains each file.\n\n## Journal")
    parts.append(text(journal))
    for title, names in {
        "First line": ["pbtrl.storage.run_header.RunHeader"],
        "Messages": [f"pbtrl.core.messages.{n}" for n in ("Assignment", "Report", "Failure")],
        "Typed records": ["pbtrl.core.records"],
    }.items():
        parts += [f"### {title}", *(_directive(name, 4) for name in names)]
    return "\n\n".join(parts)


def _python() -> str:
    lines = [f"# Python API\n\n{GENERATED}`import pbtrl` exports these names."]
    names = [name for name in pbtrl.__all__ if not name.endswith("Error")]
    lines += [_directive(f"{_home(name)}.{name}", 2) for name in names]
    lines += ["## Errors", *(_directive(f"pbtrl.errors.{name}", 3) for name in pbtrl.__all__ if name.endswith("Error"))]
    return "\n\n".join(lines)


def _home(name: str) -> str:
    return str(getattr(pbtrl, name).__module__)


def _directive(name: str, level: int) -> str:
    """Return the place at which mkdocstrings puts the documentation of a name, under a heading of a level."""
    return f"::: {name}\n    options:\n      heading_level: {level}"
