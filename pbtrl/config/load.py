"""Load configs from files, names of shipped configs, text or plain values, and write them as text."""

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pbtrl.config.aliases import ALIASES
from pbtrl.config.checks import check_config
from pbtrl.config.open_names import adopt
from pbtrl.config.plain_values import plain
from pbtrl.config.pydantic_errors import validated
from pbtrl.config.raw_checks import check_raw
from pbtrl.config.replaced_names import drop_foreign_settings, drop_other_form
from pbtrl.config.schema import Config
from pbtrl.config.wording import did_you_mean, shown
from pbtrl.config.yaml_source import ConfigSource, dump_yaml
from pbtrl.errors import ConfigError, ConfigProblem
from pbtrl.system.files import is_text, reason

MAX_CONFIG_BYTES = 2**20  # bytes of a config file


def _folder() -> Path:
    return Path(__file__).parents[1] / "configs"


def shipped() -> list[str]:
    """Names of the configs that come with pbtrl, for `load`."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def describe_shipped() -> dict[str, str]:
    """Return what each shipped config trains, by name: the first sentence of its file."""
    return {name: _first_sentence((_folder() / f"{name}.yaml").read_text(encoding="utf-8")) for name in shipped()}


def _first_sentence(config: str) -> str:
    comment = itertools.takewhile(lambda line: line.startswith("#"), config.splitlines())
    text = " ".join(line.removeprefix("#").strip() for line in comment)
    return re.split(r"(?<!et al)[.:;] ", text, maxsplit=1)[0].removesuffix(".")


def locate(path_or_name: str | Path) -> Path:
    """Resolve a path or the bare name of a shipped config. A folder of that name does not hide the shipped config."""
    path = Path(os.path.expanduser(path_or_name) if isinstance(path_or_name, str) else path_or_name)
    absent = not os.path.exists(path) or os.path.isdir(path)
    if absent and path.name == str(path_or_name) and path.stem in shipped():
        return _folder() / f"{path.stem}.yaml"
    return path


def read(path_or_name: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> ConfigSource:
    """Read a YAML file, a shipped config by its bare name, or plain values, and apply `a.b=value` overrides.

    Raises:
        ConfigError: the file is missing, unreadable, too large or not YAML, or YAML has no such value.
    """
    if isinstance(path_or_name, Mapping):
        try:
            return ConfigSource(dump_yaml(plain(path_or_name)), "config", overrides)
        except ConfigProblem as problem:
            raise ConfigError([f"config: {problem}"]) from None
    if not isinstance(path_or_name, str | Path):
        raise ConfigError(
            [f"a config is a YAML file, a shipped config's name or a dictionary, not {shown(path_or_name)}"]
        )
    if "\0" in str(path_or_name):
        raise ConfigError([f"{str(path_or_name)[:80]!r}: no path has a zero byte in it"])
    path = locate(path_or_name)
    if not is_text(path):
        raise ConfigError([f"{path}: the path is not UTF-8"])
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise ConfigError([f"{path}: larger than {MAX_CONFIG_BYTES / 2**20:.0f} MiB, which no config is"])
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        near = did_you_mean(path.stem, shipped()) or f"Shipped configs: {', '.join(shipped())}"
        raise ConfigError([f"{path}: no such file. {near}"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: not UTF-8 text"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: {reason(error).lower()}"]) from None
    return ConfigSource(text, str(path), overrides)


def check(source: ConfigSource) -> Config:
    """Validate a source.

    Raises:
        ConfigError: its text lists every mistake with its place.
    """
    env = source.data.get("env")
    if isinstance(env, dict):
        located = {k: _with_absolute_paths(env[k], ("env", k), source) for k in ("kwargs", "wrappers") if k in env}
        source.data["env"] = {**env, **located}
    return _validate(source)


def _with_absolute_paths(value: Any, at: tuple[str | int, ...], source: ConfigSource) -> Any:
    if isinstance(value, dict):
        return {key: _with_absolute_paths(below, (*at, key), source) for key, below in value.items()}
    if isinstance(value, list):
        return [_with_absolute_paths(below, (*at, place), source) for place, below in enumerate(value)]
    if isinstance(value, str) and value.startswith(("./", "../")):
        location = source.marks.get(at)
        folder = Path(source.file).parent if location is not None and location.override is None else Path()
        return os.path.abspath(folder / value)
    return value


def load(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Load a config from a YAML file or a shipped config's name, with overrides; see `read` and `check`."""
    return check(read(path_or_name, overrides))


def parse(text: str, file: str = "config", overrides: Sequence[str] = ()) -> Config:
    """Load a config from YAML text; messages call it `file`. Raises ConfigError."""
    return check(ConfigSource(text, file, overrides))


def config_from_dict(tree: Mapping[str, Any]) -> Config:
    """Load a config from plain values, with every check of `load`. Raises ConfigError."""
    source = ConfigSource()
    source.data = dict(tree)
    return _validate(source)


def config_from_json(text: str) -> Config:
    """Load a config that `Config.to_json` wrote."""
    return config_from_dict(json.loads(text))


def with_setting(config: Config, path: str, value: Any) -> Config:
    """Return a checked copy with one dotted path set: `with_setting(config, "env.backend", "envpool")`."""
    tree = config.to_dict()
    *sections, last = path.split(".")
    below = tree
    for section in sections:
        below = below.setdefault(section, {})
    below[last] = value
    return config_from_dict(tree)


def resolve(config: Config) -> Config:
    """Return an equal config with budget, slices and block lengths written out, in whole blocks."""
    tree = config.to_dict()
    tree["budget"]["env_steps_per_member"] = config.steps_per_member
    tree["strategy"]["ready"] |= {"slice_steps": config.slice_steps, "burn_in": config.burn_in}
    tree["fitness"]["curve_interval"] = config.curve_interval
    for name, agent_config in config.per_agent_configs.items():
        settings = tree["agent"] if name is None else tree["agents"][name]
        settings["block_length"] = agent_config.block_length
    return config_from_dict(tree)


def to_yaml(config: Config) -> str:
    """Format the resolved config as YAML, for config.resolved.yaml; it loads as the same run."""
    return dump_yaml(resolve(config).to_dict())


def _validate(source: ConfigSource) -> Config:
    adopt(source)
    drop_foreign_settings(source)
    drop_other_form(source)
    return validated(Config, source, check_raw, check_config, ALIASES)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a config, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
