"""Settings of searches over trials, from random search to Bayesian optimization."""

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from typing_extensions import override

from pbtrl.core.dimensions import Choice
from pbtrl.core.values import MAX_MEMBERS, Value, Whole, integral
from pbtrl.errors import ConfigProblem, MissingPackageError
from pbtrl.strategies.brackets import Bracket, Sizes, halving, hyperband, rung_steps
from pbtrl.strategies.rules import Count
from pbtrl.strategies.settings import StrategyContext, StrategySettings

if TYPE_CHECKING:
    from pbtrl.strategies import Strategy
    from pbtrl.strategies.trials import Proposer

Eta = Annotated[Whole, Field(ge=2)]
TrialCount = Annotated[Count, Field(le=MAX_MEMBERS)]
LARGEST_GRID = 10_000


@dataclass(frozen=True, kw_only=True)
class TrialSettings(StrategySettings):
    """Base of the settings of searches over trials, which never copy and keep their hyperparameters."""

    @property
    @override
    def explores(self) -> bool:
        """False: hyperparameters never change."""
        return False

    @property
    @override
    def copies(self) -> bool:
        """False: trials never copy."""
        return False

    @property
    @override
    def runs_trials(self) -> bool:
        return True

    @override
    def count_trials(self, config: Any) -> int:
        """Return the number of trials of the whole run."""
        raise NotImplementedError

    def planned(self, config: Any) -> int:
        """Return the env steps of the whole run, if nothing ends it before; by default all trials train to the end."""
        steps: int = config.steps_per_member
        return self.count_trials(config) * steps

    @override
    def total_steps(self, config: Any) -> int | None:
        """Return the planned env steps, or `budget.total_steps` if that is less."""
        if not self.runs_trials:
            return None
        cap = config.budget.total_steps
        return self.planned(config) if cap is None else min(cap, self.planned(config))

    @override
    def validate(self, config: Any) -> Iterator[ConfigProblem]:
        """Yield mistakes between the number of trials, their budget and the number of places."""
        if not self.runs_trials:
            return
        problems = list(self.check(config))
        yield from problems
        if problems:
            return
        size, count = config.population.size, self.count_trials(config)
        if size > count:
            text = f"{size} is more than the number of trials, {count:,}: at most that many can train at once"
            yield ConfigProblem(text, ("population", "size"))
        cap, budget = config.budget.total_steps, config.steps_per_member
        if cap is not None and cap < budget:
            text = f"{cap:,} is less than the budget of one trial, {budget:,}: none could finish"
            yield ConfigProblem(text, ("budget", "total_steps"), ("budget", "env_steps_per_member"))

    def check(self, config: Any) -> Iterator[ConfigProblem]:
        """Yield mistakes of this strategy alone; `validate` needs a config without them for the rest."""
        yield from ()


@dataclass(frozen=True, kw_only=True)
class RandomSearchSettings(TrialSettings):
    """Settings of random search, the baseline: members keep their initial hyperparameters.

    Attributes:
        trials: number of draws; by default one per member.
    """

    name: Literal["random_search"] = "random_search"
    trials: TrialCount | None = None

    @property
    @override
    def runs_trials(self) -> bool:
        """True with `trials`; by default members stay."""
        return self.trials is not None

    @override
    def count_trials(self, config: Any) -> int:
        """Return the number of draws."""
        return self.trials or int(config.population.size)

    @override
    def build(self, context: StrategyContext) -> "Strategy":
        from pbtrl.strategies.random_search import random_search, random_trials

        if self.trials is None:
            return random_search(context.space, slice_steps=context.slice_steps, horizon=context.horizon)
        return random_trials(context.space, trials=self.trials, **trial_arguments(context))


@dataclass(frozen=True, kw_only=True)
class GridSettings(TrialSettings):
    """Settings of grid search. `points` is the number of points per dimension; choices have all their values."""

    name: Literal["grid"] = "grid"
    points: Annotated[Count, Field(le=LARGEST_GRID)] = 3

    @override
    def count_trials(self, config: Any) -> int:
        """Return the number of points of the grid."""
        from pbtrl.strategies.grid import grid_size

        return grid_size(config.space, self.points)[0]

    @override
    def check(self, config: Any) -> Iterator[ConfigProblem]:
        """Yield a grid that is too large."""
        from pbtrl.strategies.grid import grid_size

        size, product = grid_size(config.space, self.points)
        if size > LARGEST_GRID:
            text = f"{self.points} points per dimension are {product} = {size:,} trials, more than {LARGEST_GRID:,}"
            yield ConfigProblem(text, ("strategy", "points"))

    @override
    def build(self, context: StrategyContext) -> "Strategy":
        from pbtrl.strategies.grid import grid

        return grid(context.space, points=self.points, **trial_arguments(context))


@dataclass(frozen=True, kw_only=True)
class FixedSettings(TrialSettings):
    """Settings of constant hyperparameters.

    Attributes:
        values: values of searched hyperparameters; the others have the middle of their prior.
        trials: number of trials with other seeds; by default one per member.
    """

    name: Literal["fixed"] = "fixed"
    values: dict[str, Value] = field(default_factory=dict)
    trials: TrialCount | None = None

    @property
    @override
    def runs_trials(self) -> bool:
        """True with `trials`; by default members stay."""
        return self.trials is not None

    @override
    def count_trials(self, config: Any) -> int:
        return self.trials or int(config.population.size)

    @override
    def validate(self, config: Any) -> Iterator[ConfigProblem]:
        """Yield values of hyperparameters that are not searched, and values outside their dimension."""
        yield from super().validate(config)
        for name, value in self.values.items():
            dimensions = [space[name] for space in config.space.parts if name in space]
            path = ("strategy", "values", name)
            if not dimensions:
                known = ", ".join(config.space.names) or "none"
                yield ConfigProblem(f"not a searched hyperparameter; those are: {known}", path, at_key=True)
            elif not all(dimension.contains(integral(value)) for dimension in dimensions):
                yield ConfigProblem(f"must be {dimensions[0].domain}, not {value!r}", path, ("hparams", name))

    @override
    def build(self, context: StrategyContext) -> "Strategy":
        from pbtrl.strategies.fixed import fixed

        return fixed(context.space, self.values, trials=self.trials, **trial_arguments(context))


@dataclass(frozen=True, kw_only=True)
class BayesianSettings(TrialSettings):
    """Settings of Bayesian optimization.

    Attributes:
        sampler: sampler of Optuna: `tpe` (tree-structured Parzen estimators), `gp` (Gaussian process), `cmaes`
            (evolution strategy), `qmc` (scrambled Sobol points) or `random`.
        trials: number of trials.
        startup_trials: number of results below which trials are random.
    """

    name: Literal["bayesian"] = "bayesian"
    sampler: Literal["tpe", "gp", "cmaes", "qmc", "random"] = "tpe"
    trials: TrialCount = 50
    startup_trials: Count = 10

    @override
    def count_trials(self, config: Any) -> int:
        return self.trials

    @override
    def check(self, config: Any) -> Iterator[ConfigProblem]:
        """Yield a space that CMA-ES cannot search."""
        counts = [sum(not isinstance(d, Choice) for d in space.values()) for space in config.space.parts]
        if self.sampler == "cmaes" and min(counts, default=2) < 2:
            text = f"cmaes needs at least 2 numeric hyperparameters, not {min(counts)}"
            yield ConfigProblem(text, ("strategy", "sampler"), ("hparams",))

    @override
    def build(self, context: StrategyContext) -> "Strategy":
        """Make Bayesian optimization.

        Raises:
            ConfigProblem: a package is missing.
        """
        from pbtrl.strategies.bayesian import bayesian

        _need("optuna", self.sampler)
        if self.sampler == "cmaes":
            _need("cmaes", self.sampler)
        return bayesian(
            context.space,
            sampler=self.sampler,
            trials=self.trials,
            startup_trials=self.startup_trials,
            **trial_arguments(context),
        )


@dataclass(frozen=True, kw_only=True)
class RungSettings(TrialSettings):
    """Base of the settings of searches that stop trials at rungs.

    Attributes:
        eta: 1/eta of the trials of a rung go on to the next one.
        min_steps: smallest number of env steps of a trial. Rungs are the budget of a trial, a 1/eta of it and so on,
            down to the last one that is not smaller; by default an 81st of the budget.
    """

    eta: Eta = 3
    min_steps: Count | None = None

    def rungs(self, horizon: int, block: int) -> tuple[int, ...]:
        """Return the rungs in whole blocks, from the lowest one up."""
        return rung_steps(horizon, self._lowest(horizon, block), self.eta, block)

    def brackets(self, rungs: tuple[int, ...]) -> tuple[Bracket, ...]:
        """Return the planned brackets."""
        raise NotImplementedError

    @override
    def count_trials(self, config: Any) -> int:
        """Return the number of trials of all brackets."""
        return sum(bracket.sizes[0] for bracket in self._planned(config))

    @override
    def planned(self, config: Any) -> int:
        """Return the env steps of all brackets."""
        return sum(bracket.steps for bracket in self._planned(config))

    @override
    def check(self, config: Any) -> Iterator[ConfigProblem]:
        """Yield a budget without a rung below it, and fewer trials than ever go on."""
        horizon = config.steps_per_member
        lowest = math.ceil(self._lowest(horizon, config.block))
        if len(self.rungs(horizon, config.block)) == 1:
            text = f"eta {self.eta} x min_steps {lowest:,} = {self.eta * lowest:,} is more than the budget of a trial, "
            text += f"{horizon:,}: there is no rung below it"
            where = ("eta",) if self.min_steps is None else ("min_steps",)
            yield ConfigProblem(text, ("strategy", *where), ("budget", "env_steps_per_member"))
        elif (count := self.count_trials(config)) < self.eta:
            text = f"{count} trials are fewer than eta ({self.eta}): none would ever go on"
            yield ConfigProblem(text, ("strategy", "trials"), ("strategy", "eta"))
        elif count > MAX_MEMBERS:
            text = f"min_steps {lowest:,} makes {count:,} trials, more than {MAX_MEMBERS:,}"
            yield ConfigProblem(text, ("strategy", "min_steps"), ("strategy", "eta"))

    def _lowest(self, horizon: int, block: int) -> int | Fraction:
        """Return the smallest number of steps of a trial, a fraction so that no default rung is lost by rounding."""
        return max(self.min_steps or Fraction(horizon, 81), block)

    def _planned(self, config: Any) -> tuple[Bracket, ...]:
        return self.brackets(self.rungs(config.steps_per_member, config.block))


@dataclass(frozen=True, kw_only=True)
class SuccessiveHalvingSettings(RungSettings):
    """Settings of successive halving. `trials` is the number of trials at the lowest rung."""

    name: Literal["successive_halving"] = "successive_halving"
    trials: TrialCount = 81

    @override
    def brackets(self, rungs: tuple[int, ...]) -> tuple[Bracket, ...]:
        """Return the single bracket."""
        return (halving(self.trials, rungs, self.eta),)

    @override
    def build(self, context: StrategyContext) -> "Strategy":
        from pbtrl.strategies.successive_halving import SuccessiveHalving
        from pbtrl.strategies.trials import Prior

        return SuccessiveHalving(
            propose=Prior(context.space),
            brackets=self.brackets(self.rungs(context.horizon, context.block)),
            **trial_arguments(context),
        )


@dataclass(frozen=True, kw_only=True)
class ModelSettings(RungSettings):
    """Base of the settings of searches at rungs that may propose trials by a model, as BOHB does.

    Attributes:
        sampler: `random` draws new trials from the prior; `tpe` fits Optuna's sampler on the highest rung that has
            `startup_trials` results.
        startup_trials: number of results at a rung below which trials are random.
    """

    sampler: Literal["random", "tpe"] = "random"
    startup_trials: Count = 10

    def _proposer(self, context: StrategyContext) -> "Proposer":
        """Return the source of new trials.

        Raises:
            ConfigProblem: Optuna is missing.
        """
        from pbtrl.strategies.suggestions import Suggestions, best_rung_results
        from pbtrl.strategies.trials import Prior

        if self.sampler == "random":
            return Prior(context.space)
        _need("optuna", self.sampler)
        observe = partial(
            best_rung_results,
            brackets=self.brackets(self.rungs(context.horizon, context.block)),
            slice_steps=context.slice_steps,
            enough=self.startup_trials,
        )
        return Suggestions(
            space=context.space, sampler=self.sampler, startup_trials=self.startup_trials, observe=observe
        )


@dataclass(frozen=True, kw_only=True)
class HyperbandSettings(ModelSettings):
    """Settings of Hyperband.

    Attributes:
        sizes: number of trials that each bracket starts: the paper's `formula`, or the smaller numbers of its `table`.
    """

    name: Literal["hyperband"] = "hyperband"
    sizes: Sizes = "formula"

    @override
    def brackets(self, rungs: tuple[int, ...]) -> tuple[Bracket, ...]:
        """Return all brackets."""
        return hyperband(rungs, self.eta, self.sizes)

    @override
    def build(self, context: StrategyContext) -> "Strategy":
        """Make Hyperband.

        Raises:
            ConfigProblem: Optuna is missing.
        """
        from pbtrl.strategies.hyperband import hyperband as make

        return make(
            self._proposer(context),
            rungs=self.rungs(context.horizon, context.block),
            eta=self.eta,
            sizes=self.sizes,
            **trial_arguments(context),
        )


@dataclass(frozen=True, kw_only=True)
class ASHASettings(ModelSettings):
    """Settings of asynchronous successive halving.

    Attributes:
        form: `promote` pauses trials at a rung until they are in its top 1/eta; `delay` does so too, but never promotes
            more than 1/eta of a rung; `stop` ends trials that are not in the top 1/eta on arrival.
        trials: number of trials at the lowest rung.
    """

    name: Literal["asha"] = "asha"
    form: Literal["promote", "delay", "stop"] = "promote"
    eta: Eta = 4
    trials: TrialCount = 64

    @override
    def brackets(self, rungs: tuple[int, ...]) -> tuple[Bracket, ...]:
        """Return the bracket in which exactly 1/eta of each rung goes on; `promote` and `stop` may let more go on."""
        return (halving(self.trials, rungs, self.eta),)

    @override
    def build(self, context: StrategyContext) -> "Strategy":
        """Make ASHA.

        Raises:
            ConfigProblem: Optuna is missing.
        """
        from pbtrl.strategies.asha import ASHA

        return ASHA(
            propose=self._proposer(context),
            count=self.trials,
            rungs=self.rungs(context.horizon, context.block),
            eta=self.eta,
            form=self.form,
            **trial_arguments(context),
        )


def trial_arguments(context: StrategyContext) -> dict[str, Any]:
    """Return what all searches over trials take from the context."""
    return {
        "slice_steps": context.slice_steps,
        "horizon": context.horizon,
        "synchronous": context.synchronous,
    }


def _need(package: str, sampler: str) -> None:
    """Raise unless an optional package is installed."""
    if importlib.util.find_spec(package) is None:
        raise MissingPackageError(sampler, package, "search", ("strategy", "sampler"))
