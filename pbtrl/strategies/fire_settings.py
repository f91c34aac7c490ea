"""Settings of FIRE PBT: sub-populations and evaluators."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from typing_extensions import override

from pbtrl.core.naming import EVALUATOR, member_ids
from pbtrl.core.values import Real
from pbtrl.errors import ConfigProblem
from pbtrl.strategies.pbt_settings import exploit_problems, pbt_arguments
from pbtrl.strategies.rules import Count, Exploit, Explore
from pbtrl.strategies.settings import StrategyContext, StrategySettings

if TYPE_CHECKING:
    from pbtrl.strategies import Strategy

PER_PARENT = 3 / 4  # evaluators of a sub-population per member of it
POINTS = 10  # points of the curve in a slice, by default
ENOUGH_POINTS = 12  # of which 11 wins are significant; of 8 points all must be


@dataclass(frozen=True, kw_only=True)
class FireSettings(StrategySettings):
    """Settings of FIRE PBT.

    Attributes:
        exploit: rule of every sub-population; only `truncation` and `none` rank by score as well as by fitness. For
            `min_gap` the difference of two scores is divided by the number of scores, which makes it one of fitness.
        explore: rule of every sub-population.
        subpopulations: sizes of P1, P2, ...; all further members are evaluators. By default two sub-populations of
            about equal size, and three evaluators for every four parents.
        max_eval_steps: env steps after which an evaluation must have reached the level of its child, and lead it; by
            default three slices.
        min_steps_before_eval: env steps of a parent before its first evaluation and first exploit; by default a slice.
        p_value: level of the binomial test between two curves.
    """

    name: Literal["fire"] = "fire"
    exploit: Exploit = field(default_factory=lambda: Exploit(bottom=0.25, top=0.25))
    explore: Explore = field(default_factory=lambda: Explore(factors=(0.5, 0.8, 1.25, 2.0)))
    subpopulations: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    max_eval_steps: Count | None = None
    min_steps_before_eval: Count | None = None
    p_value: Annotated[Real, Field(gt=0, lt=1)] = 0.01

    @property
    @override
    def candidate_roles(self) -> tuple[str, ...]:
        """P1 alone: only its members are ranked by their fitness."""
        return ("p1",)

    @override
    def curve_interval(self, slice_steps: int) -> int:
        """Return a tenth of a slice: the curves must have enough points for the test."""
        return math.ceil(slice_steps / POINTS)

    def sizes(self, size: int) -> tuple[int, ...]:
        """Return the size of each sub-population in a population of `size`."""
        if self.subpopulations is not None:
            return self.subpopulations
        parents = int(size / (2 + PER_PARENT))
        return (size - parents - int(PER_PARENT * parents), parents)

    def evaluators(self, size: int) -> tuple[int, ...]:
        """Return the number of evaluators of P2, P3, ...: shares of all, in proportion to the parents."""
        parents = self.sizes(size)[1:]
        free, whole = size - sum(self.sizes(size)), sum(parents)
        ends = [free * sum(parents[: i + 1]) // whole for i in range(len(parents))]
        return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))

    @override
    def roles(self, size: int) -> dict[str, str]:
        """Return `p1`, `p2`, ... and `evaluator` by member; of several kinds of evaluators `evaluator p2`, ..."""
        counts = {f"p{i}": n for i, n in enumerate(self.sizes(size), 1)}
        several = len(counts) > 2
        for level, n in enumerate(self.evaluators(size), 2):
            counts[f"{EVALUATOR} p{level}" if several else EVALUATOR] = n
        roles = [role for role, n in counts.items() for _ in range(n)]
        return dict(zip(member_ids(size), roles, strict=False))

    @override
    def validate(self, config: Any) -> Iterator[ConfigProblem]:
        """Yield mistakes between sub-populations, evaluators and curves."""
        population, where = config.population, ("strategy", "subpopulations")
        if population.mix is not None:
            yield ConfigProblem("fire needs one agent for all members", ("population", "mix"), ("strategy", "name"))
        if population.reference_members:
            text = "fire has no reference members: an evaluation would compare with them"
            yield ConfigProblem(text, ("population", "reference_members"), ("strategy", "name"))
        if self.exploit.method not in ("truncation", "none"):
            yield ConfigProblem("fire needs truncation, or none", ("strategy", "exploit", "method"))
        if self.explore.when == "always":
            text = "fire needs after_copy: an evaluation compares curves of constant hyperparameters"
            yield ConfigProblem(text, ("strategy", "explore", "when"), ("strategy", "name"))
        yield from exploit_problems(self.exploit, config)
        yield from self._parts(population.size, where)
        evaluation, points = self.steps_of_evaluation(config.slice_steps), self.points(config)
        if len(self.sizes(population.size)) > 1 and points < (fewest := _fewest_points(self.p_value)):
            text = f"{evaluation:,} steps have {points} points of the curve, one every {config.curve_interval:,}; "
            text += (
                f"with fewer than {fewest} no test can reach p < {self.p_value:g} (0.5^{points} = {0.5**points:.2g})"
            )
            yield ConfigProblem(text, ("strategy", "max_eval_steps"), ("fitness", "curve_interval"))

    def _parts(self, size: int, where: tuple[str, ...]) -> Iterator[ConfigProblem]:
        """Check that sub-populations and evaluators add up to the population."""
        sizes = self.sizes(size)
        text = " + ".join(map(str, sizes))
        if self.subpopulations is None and (sizes[1] < 2 or self.evaluators(size)[0] < 2):
            least = next(n for n in range(size, 100) if self.sizes(n)[1] > 1 and self.evaluators(n)[0] > 1)
            yield ConfigProblem(
                f"fire needs at least {least} members, for {' + '.join(map(str, self.sizes(least)))} members and "
                f"{self.evaluators(least)[0]} evaluators, or strategy.subpopulations; not {size}",
                ("population", "size"),
            )
        elif sum(sizes) > size:
            yield ConfigProblem(f"{text} = {sum(sizes)} is more than population.size {size}", where)
        elif len(sizes) == 1 and sizes[0] != size:
            extra = size - sizes[0]
            text = (
                f"a single sub-population of {sizes[0]} leaves {extra} of {size} members without anything to evaluate"
            )
            yield ConfigProblem(text, where, ("population", "size"))
        elif len(sizes) > 1 and min(self.evaluators(size)) < 2:
            left = size - sum(sizes)
            text = f"{text} of {size} members leave {left} evaluators; every sub-population after the first needs "
            text += f"at least 2, or no two of its members can be compared: {2 * (len(sizes) - 1)} in all"
            yield ConfigProblem(text, where, ("population", "size"))

    def steps_of_evaluation(self, slice_steps: int) -> int:
        """Return `max_eval_steps` or its default (env steps)."""
        return self.max_eval_steps or 3 * slice_steps

    def points(self, config: Any) -> int:
        """Return the points of a curve in the longest evaluation."""
        return int(self.steps_of_evaluation(config.slice_steps) // config.curve_interval)

    @override
    def warnings(self, config: Any) -> Iterator[str]:
        """Yield that the curves have few points, or holes. A single sub-population compares no curves."""
        if len(self.sizes(config.population.size)) == 1:
            return
        if (points := self.points(config)) < ENOUGH_POINTS:
            yield (
                f"the longest evaluation has {points} points of the curve, so nearly all must be wins for a promotion; "
                f"with {ENOUGH_POINTS} or more (strategy.max_eval_steps, fitness.curve_interval) the test is less "
                "strict"
            )
        env = config.env
        if env is not None and config.curve_interval < env.typical_episode * env.num_envs:
            yield (
                f"fitness.curve_interval ({config.curve_interval:,}) is shorter than an episode of "
                f"{env.typical_episode:,} steps in each of {env.num_envs} envs: the curves that fire compares will "
                "have holes"
            )

    @override
    def build(self, context: StrategyContext) -> "Strategy":
        from pbtrl.strategies.fire import FIRE
        from pbtrl.strategies.pbt import PBT

        return FIRE(
            pbt=PBT(exploit=self.exploit, explore=self.explore, **pbt_arguments(context)),
            interval=context.curve_interval,
            max_eval_steps=self.steps_of_evaluation(context.slice_steps),
            min_steps_before_eval=self.min_steps_before_eval or context.slice_steps,
            p_value=self.p_value,
        )


def _fewest_points(p_value: float) -> int:
    """Return the fewest points with which the test can reject: if every one is a win, p = 0.5^points."""
    points = 1
    while 0.5**points >= p_value:
        points += 1
    return points
