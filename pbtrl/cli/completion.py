"""Shell completion: `pbtrl completion SHELL`, and the answers to the shell's questions.

The shell runs `pbtrl` at every Tab, so this module imports nothing slow. Config keys come from the schema, which takes
half a second; they are kept in a cache until a file with settings changes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pbtrl.cli.arguments import add_command
from pbtrl.errors import MissingPackageError, PbtrlError, RunError
from pbtrl.system.streams import tell
from pbtrl.system.strict_json import to_json

PACKAGE = Path(__file__).parents[1]
Keys = dict[str, list[str]]


def add_completion(commands: Any) -> None:
    """Add the command."""
    completion = add_command(commands, "completion", run_completion, "print a completion script for a shell")
    completion.add_argument("shell", choices=["bash", "zsh", "fish"], help="for bash: source <(pbtrl completion bash)")


def run_completion(a: argparse.Namespace) -> int:
    """Print the script, and fill the cache of keys."""
    try:
        from argcomplete.shell_integration import shellcode
    except ImportError:
        raise RunError(str(MissingPackageError("pbtrl completion", "argcomplete", "completion"))) from None
    config_keys()
    tell(shellcode(["pbtrl"], shell=a.shell).rstrip())
    return 0


def answer(parser: argparse.ArgumentParser) -> None:
    """Print the completions that a shell asks for, and exit; return where no shell asks."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete

    configs = argcomplete.completers.FilesCompleter(["yaml"])
    (commands,) = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for name, command in commands.items():
        for action in command._actions:
            match action.dest:
                case "config":
                    several = action.nargs == "*"  # as in `sweep`, where argparse takes overrides for configs
                    action.completer = lambda prefix, several=several, **_: [
                        *_shipped(), *configs(prefix), *(_settings(prefix) if several else ()),
                    ]  # fmt: skip
                case "overrides" | "set":
                    action.completer = lambda prefix, **_: [*_settings(prefix)]
                case "run" | "selected":
                    action.completer = lambda parsed_args, **_: [*_runs(parsed_args.runs)]
                case "member":
                    special = ["best", "all"] if name == "eval" else ["best"]
                    action.completer = lambda parsed_args, special=special, **_: _members(parsed_args, special)
    argcomplete.autocomplete(parser, always_complete_options="long")


def _shipped() -> list[str]:
    return [path.stem for path in (PACKAGE / "configs").glob("*.yaml")]


def _runs(root: Path) -> Iterator[str]:
    from pbtrl.storage.run_lookup import run_directories, sweep_directories

    yield "last"
    yield from (run.name for run in run_directories(root))
    yield from (f"{sweep.name}/{run.name}" for sweep in sweep_directories(root) for run in run_directories(sweep))


def _members(a: argparse.Namespace, special: list[str]) -> list[str]:
    from pbtrl.storage.run_lookup import find

    with suppress(PbtrlError, OSError):  # no such run, or none yet
        return [*special, *sorted(path.name for path in find(a.run, a.runs).members.iterdir())]
    return []


def _settings(prefix: str) -> Iterator[str]:
    """Yield `a.b=` for keys, and `a.b=value` once the key is complete."""
    key, equals, _ = prefix.partition("=")
    keys = config_keys()
    yield from (f"{key}={value}" for value in keys.get(key, ())) if equals else (f"{name}=" for name in keys)


def config_keys() -> Keys:
    """Return all dotted keys of a config, each with its values if they are few."""
    sources = sorted([PACKAGE / "agents/settings.py", *PACKAGE.glob("config/*.py"), *PACKAGE.glob("strategies/*.py")])
    stamp = hashlib.sha256(repr([(str(path), path.stat().st_mtime_ns) for path in sources]).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pbtrl"
    cache = folder / f"config-keys-{stamp}.json"
    try:
        cached: Keys = json.loads(cache.read_text())
        return cached
    except (OSError, ValueError):
        keys = _keys_of_the_schema()
    with suppress(OSError):  # without a cache it is only slower
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("config-keys-*.json"):
            old.unlink(missing_ok=True)
        staged = folder / f".tmp-{os.getpid()}"
        staged.write_text(to_json(keys))
        staged.replace(cache)
    return keys


def _keys_of_the_schema() -> Keys:
    from pbtrl.agents.settings import AGENTS, live_hyperparameters
    from pbtrl.config.load import json_schema
    from pbtrl.core.dimensions import PRIORS

    schema: dict[str, Any] = json_schema()
    keys: Keys = {}

    def visit(node: dict[str, Any], path: str) -> None:
        """Collect the keys below a node, also those of all kinds that it may be of."""
        node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        for branch in [*node.get("anyOf", ()), *node.get("oneOf", ())]:
            visit(branch, path)
        for name, below in node.get("properties", {}).items():
            visit(below, f"{path}.{name}" if path else name)
        values = [node["const"]] if "const" in node else node.get("enum", [])
        if path and "properties" not in node and not any(key.startswith(f"{path}.") for key in keys):
            known = keys.setdefault(path, [])
            known += [str(value) for value in values if str(value) not in known]

    visit(schema, "")
    for name in dict.fromkeys(name for settings in AGENTS.values() for name in live_hyperparameters(settings)):
        for prior in PRIORS.values():
            visit(schema["$defs"][prior.__name__], f"hparams.{name}")
    return keys
