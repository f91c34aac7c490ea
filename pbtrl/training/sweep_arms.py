"""Arms of a sweep: configs times a grid of settings, their names and their planned steps."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pbtrl.build.factory import prepare
from pbtrl.config.differences import NEUTRAL, flatten
from pbtrl.config.load import check, config_from_dict, read
from pbtrl.config.plain_values import plain
from pbtrl.config.schema import Config
from pbtrl.config.wording import shortened, shown
from pbtrl.config.yaml_source import ConfigSource, dump_yaml
from pbtrl.core.naming import EVALUATOR
from pbtrl.errors import ConfigError, ConfigProblem
from pbtrl.system.strict_json import to_json

ConfigInput = str | Path | Mapping[str, Any]
"""A YAML file, the name of a shipped config, or plain values."""

NAME_LENGTH = 40  # characters of an arm's name; "-s" and a seed of 20 digits fit into a run's name behind them
MAX_ARMS = 1000
NOT_SWEPT = {"seed": "use --seeds", "name": "use --name"} | dict.fromkeys(NEUTRAL, "it belongs to the machine")
TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*"|.""", re.DOTALL)
PAIRS = {"[": 1, "{": 1, "]": -1, "}": -1}


@dataclass(frozen=True)
class Arm:
    """One arm: a config that is trained with every seed of the sweep.

    Attributes:
        name: short name, unique in the sweep; see `arm_names`.
        label: config that it was made of, as the user named it.
        settings: its values of the grid, by dotted name.
        config: the checked and resolved config, without a name.
        experiment: the config's own name, or that of its env or trainable.
        source: text that the config was read from; None if it was stored by a sweep.
    """

    name: str
    label: str
    settings: Mapping[str, Any]
    config: Config
    experiment: str = ""
    source: ConfigSource | None = None

    @property
    def notes(self) -> list[str]:
        """Lines to tell the user."""
        return self.source.notes if self.source else []

    @property
    def text(self) -> str:
        """Config as YAML."""
        return dump_yaml(self.config.to_dict())

    @property
    def steps(self) -> int:
        """Planned steps of one run, over all its members or trials: FIRE's evaluators and stopped trials count too."""
        config = self.config
        planned = config.strategy.total_steps(config)
        return config.population.size * config.steps_per_member if planned is None else planned

    @property
    def task(self) -> tuple[object, ...]:
        """Env or trainable, and metric; `pbtrl compare` refuses arms that differ in them."""
        env, trainable = self.config.env, self.config.trainable
        return env and (env.id, env.protocol), trainable and trainable.name, self.config.fitness.metric

    @property
    def trains(self) -> str:
        """Number of its members or trials in words: `8 members`, `64 trials`, `22 members (6 evaluators)`."""
        strategy, size = self.config.strategy, self.config.population.size
        if strategy.runs_trials:
            count = strategy.count_trials(self.config)
            return "trials" if count is None else _counted(count, "trial")
        evaluators = sum(role.startswith(EVALUATOR) for role in strategy.roles(size).values())
        return _counted(size, "member") + (f" ({_counted(evaluators, 'evaluator')})" if evaluators else "")


def make_arms(configs: Sequence[ConfigInput], overrides: Sequence[str], grid: Mapping[str, Sequence[str]]) -> list[Arm]:
    """Make and check every arm; `grid` has the values of each setting as YAML text.

    Raises:
        ConfigError: an arm cannot run; the messages name the arms. Or two arms are the same, or a setting of the grid
            may not be varied or is overridden.
    """
    for key in grid:
        if why := NOT_SWEPT.get(key.partition(".")[0]):
            raise ConfigError([f"--set {key}: not a setting to vary; {why}"])
    for override in overrides:
        name = override.partition("=")[0].strip()
        if hidden := [key for key in grid if f"{name}.".startswith(f"{key}.")]:
            raise ConfigError([f"override '{shortened(override)}': --set {hidden[0]} would replace it"])
    cells = [
        (config, dict(zip(grid, texts, strict=True)))
        for config in configs
        for texts in itertools.product(*grid.values())
    ]
    if len(cells) > MAX_ARMS:
        raise ConfigError([f"{len(cells):,} arms, more than {MAX_ARMS:,}"])
    labels = ["config" if isinstance(config, Mapping) else str(config) for config, _ in cells]
    settings = [{key: _parsed(text) for key, text in cell.items()} for _, cell in cells]
    names = arm_names(labels, settings)
    arms: list[Arm] = []
    mistakes: dict[str, list[str]] = {}
    for name, label, values, (config, texts) in zip(names, labels, settings, cells, strict=True):
        try:
            source = read(config, [*overrides, *(f"{key}={text}" for key, text in texts.items())])
            prepared = prepare(check(source), source)
        except ConfigError as error:
            for message in error.messages:
                mistakes.setdefault(message, []).append(name)
            continue
        unnamed = config_from_dict({key: value for key, value in prepared.to_dict().items() if key != "name"})
        arms.append(Arm(name, label, values, unnamed, prepared.label, source))
    if mistakes:
        raise ConfigError([_in_arms(affected, names) + message for message, affected in mistakes.items()])
    _check_different(arms)
    return arms


def arm_names(labels: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name arms by what varies: the config's name, values that are words, and other values after their setting.

    Sections of one `name` are followed by the settings in which they differ from that with the fewest settings. A
    single arm has the name of its config.

    Examples: `pbt`, `random_search-size8`, `cartpole-pbt`, `pbt-copy-weights`.
    """
    varying = [key for key in settings[0] if len({repr(values[key]) for values in settings}) > 1]
    several = len(set(labels)) > 1 or not varying
    shortest: dict[tuple[str, str], dict[str, Any]] = {}  # section and its name -> settings
    for key, value in ((key, values[key]) for values in settings for key in varying):
        if isinstance(value, Mapping):
            own, at = dict(flatten(value)), (key, _word(key, value))
            shortest[at] = min(shortest.get(at, own), own, key=len)
    names: list[str] = []
    for label, values in zip(labels, settings, strict=True):
        words = [Path(label).stem] if several else []
        for key in varying:
            words.append(_word(key, values[key]))
            if isinstance(values[key], Mapping):
                base = shortest[key, words[-1]]
                words += [_word(name, v) for name, v in flatten(values[key]) if v != base.get(name)]
        name = re.sub("[^A-Za-z0-9._-]+", "-", "-".join(words)).strip("-._")[:NAME_LENGTH] or "arm"
        taken = {other.lower() for other in names}  # some file systems ignore case
        choices = (name if n == 1 else f"{name[: NAME_LENGTH - 5]}-{n}" for n in itertools.count(1))
        names.append(next(choice for choice in choices if choice.lower() not in taken))
    return names


def parse_grid(options: Sequence[str]) -> dict[str, list[str]]:
    """Parse `section.key=a,b` to the YAML text of each value; commas inside brackets and quotes do not separate.

    Raises:
        ConfigError: an option has another form, an empty value, or the setting of an earlier one.
    """
    grid: dict[str, list[str]] = {}
    for option in options:
        key, equals, text = option.partition("=")
        key, values = key.strip(), [value.strip() for value in _split(text)]
        if not equals or not key or not all(values):
            raise ConfigError([f"--set {option[:80]}: write it as key=a,b, as in strategy.name=pbt,random_search"])
        if key in grid:
            raise ConfigError([f"--set {key}: given twice"])
        grid[key] = values
    return grid


def grid_text(grid: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
    """Write the values of each setting as YAML text, as `parse_grid` returns them.

    Raises:
        ConfigError: a setting has no list of values, an empty one, or a value that YAML cannot hold.
    """
    if not isinstance(grid, Mapping):
        raise ConfigError(["grid: must map settings to values, as in {'strategy.name': ['pbt', 'random_search']}"])
    texts: dict[str, list[str]] = {}
    for key, values in grid.items():
        if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
            raise ConfigError([f"grid: {key}: must be a list of values, not {shown(values)}"])
        try:
            texts[str(key)] = [to_json(plain(value, (str(key),))) for value in values]
        except ConfigProblem as problem:
            raise ConfigError([f"grid: {problem}"]) from problem
        if not texts[str(key)]:
            raise ConfigError([f"grid: {key}: must be a list of values, not an empty one"])
    return texts


def _split(text: str) -> Iterator[str]:
    """Split YAML values at the commas between them."""
    depth, value = 0, ""
    for token in TOKEN.findall(text):
        if token == "," and depth == 0:
            yield value
            value = ""
            continue
        depth = max(0, depth + PAIRS.get(token, 0))
        value += token
    yield value


def _parsed(text: str) -> Any:
    """Return the value of YAML text; the text itself if it is none, which is reported with the arm."""
    return ConfigSource(overrides=[f"value={text}"]).data.get("value", text)


def _word(key: str, value: Any) -> str:
    if isinstance(value, str) and value[:1].isalpha():
        return value.rpartition(":")[2]  # module:Class
    name = key.rpartition(".")[2]
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return _word(key, value["name"])
    if isinstance(value, Mapping):
        value = [part for item in value.items() for part in item]
    parts = value if isinstance(value, list) else [value]
    text = "-".join("none" if part is None else str(part).lower() for part in parts)
    return f"{name}-{text}" if text[:1].isalpha() else f"{name}{text}"


def _in_arms(affected: Sequence[str], names: Sequence[str]) -> str:
    """Return the arms that have a mistake, with a colon; nothing if all have it."""
    return "" if len(affected) == len(names) else f"{', '.join(affected)}: "


def _check_different(arms: Sequence[Arm]) -> None:
    seen: dict[str, Arm] = {}
    for arm in arms:
        if (other := seen.setdefault(arm.text, arm)) is not arm:
            raise ConfigError([f"{_described(other)} and {_described(arm)} are the same config"])


def _described(arm: Arm) -> str:
    """Return the name and the values of an arm, as in `pbt-2 (strategy.name='pbt')`."""
    values = ", ".join(f"{key}={shown(value)}" for key, value in arm.settings.items())
    return f"{arm.name} ({values})" if values else arm.name


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
