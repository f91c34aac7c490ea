"""Population based training (Jaderberg et al. 2017, arXiv 1711.09846): every exploit and explore rule.

Each member trains in slices of `slice_steps` env steps, on a grid of its own clock. At a grid point past `burn_in` it
may exploit (copy the weights, hyperparameters or both of a better member) and explore (change hyperparameters). Random
search is PBT with neither; see random_search.py.

In a mixed population, members are compared only with members of the same agent. With `exploit.across_agents` all are
compared, and a member that copies takes over the agent of its donor.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from typing_extensions import override

from pbtrl.core.dimensions import AGENT
from pbtrl.core.member import Member
from pbtrl.core.messages import Assignment, Hyperparameters
from pbtrl.core.population import Population
from pbtrl.core.search_space import MixedSearchSpace, SearchSpace
from pbtrl.strategies import Strategy
from pbtrl.strategies.assigning import assign, next_stop
from pbtrl.strategies.rules import Exploit, Explore
from pbtrl.strategies.stagnation import growth


@dataclass(frozen=True)
class Ranking:
    """Healthy members that are compared with each other.

    Attributes:
        members: those with a `rank_fitness`.
        order: the same, worst first. Equal members are ordered by a draw that does not depend on the receiver, so that
            all receivers of a decision see the same ranking.
        fitness: their `rank_fitness`, in the same order.
        place: index in `order`, by id.
        unreported: number of healthy members that have not trained yet.
    """

    members: Sequence[Member]
    order: Sequence[Member]
    fitness: Sequence[float]
    place: Mapping[str, int]
    unreported: int


Select = Callable[[Population, Member], tuple[Member | None, str]]
"""Rule that chooses the member to copy, and says why."""


@dataclass(frozen=True, kw_only=True)
class PBT(Strategy):
    """Strategy of population based training.

    Attributes:
        space: the searched hyperparameters, of one agent or of each of several.
        slice_steps: env steps of a member between two decisions.
        horizon: budget of a member (env steps).
        burn_in: env steps before the first exploit.
        exploit: the exploit rule.
        explore: the explore rule.
        copy: parts that an exploit copies: `weights`, `hparams`, or both; one alone is the paper's ablation.
        synchronous: decide for a whole generation at once, when all its members have reported. Members that a stop or a
            failure left behind catch up first.
        references: number of control members, the first ones. They may be donors but never receivers. One that diverged
            or was given up is retired.
        max_consecutive_failures: a member that was given up more often than this in a row is retired.
        grow: factor of the ready interval at a stagnation, 1 for a constant one. Slices keep their length.
        patience: ready intervals without a better fitness that count as stagnation.
    """

    space: SearchSpace | MixedSearchSpace
    slice_steps: int
    horizon: int
    burn_in: int = 0
    exploit: Exploit = field(default_factory=Exploit)
    explore: Explore = field(default_factory=Explore)
    copy: frozenset[str] = frozenset({"weights", "hparams"})
    synchronous: bool = False
    references: int = 0
    max_consecutive_failures: int = 3
    grow: int = 1
    patience: int = 3

    @override
    def decide(self, population: Population) -> list[Assignment]:
        """Return assignments for all members without one; in synchronous mode only when no member has one."""
        if self.synchronous and population.pending:
            return []
        waiting = self.waiting(population)
        if self.synchronous:
            waiting = self.furthest_behind(waiting)
        interval = self.ready_interval(population)
        return [self.next(population, m, interval) for m in waiting]

    def waiting(self, population: Population) -> list[Member]:
        """Return the members that have no assignment and may get one."""
        idle = [m for m in population.members.values() if not m.pending and not m.retired]
        waiting = [m for m in idle if m.step < self.horizon]
        return [m for m in waiting if m.healthy or self._rescues(population, m)]

    def furthest_behind(self, members: Sequence[Member]) -> list[Member]:
        """Return those of the members that have finished the fewest slices."""
        fewest = min((m.step // self.slice_steps for m in members), default=0)
        return [m for m in members if m.step // self.slice_steps == fewest]

    @override
    def retired(self, population: Population) -> list[str]:
        """Return the members that failed and do not copy another one."""
        failed = [m for m in population.members.values() if not m.healthy and not m.pending]
        return [m.id for m in failed if not self._rescues(population, m)]

    def _rescues(self, population: Population, member: Member) -> bool:
        """Return whether a failed member copies another one. Otherwise it is retired.

        Members are retired if the strategy makes no copies, or if they failed too often in a row. An evaluator needs
        no exploit: it begins another evaluation.
        """
        if (self.exploit.method == "none" and not member.is_evaluator) or self._is_reference(member):
            return False
        return member.consecutive_failures <= self.max_consecutive_failures

    def ready_interval(self, population: Population) -> int:
        """Return the env steps between two exploits of a member: a slice, multiplied at each stagnation by `grow`.

        Only rounds that all members have reached count, so that the order of reports does not matter.
        """
        if self.grow == 1:
            return self.slice_steps
        reached = min((m.step for m in population.members.values() if m.healthy and not m.retired), default=0)
        steps = range(self.slice_steps, reached + 1, self.slice_steps)
        best = [population.best_at[step] for step in steps if step in population.best_at]
        return self.slice_steps * growth(best, self.grow, self.patience)

    def next(
        self, population: Population, member: Member, interval: int | None = None, select: Select | None = None
    ) -> Assignment:
        """Return the next assignment of a member: start, rescue, exploit, explore or continue.

        Args:
            population: the population.
            member: one of its members that has no assignment.
            interval: env steps between two exploits; by default a slice.
            select: rule that replaces the exploit rule.
        """
        if member.generation < 0:
            space = self.space.initial_space(member.place)
            drawn = space.sample(population.rng(member.id, 0, "prior"))
            return self.assign(population, member, None, drawn, note="initial")
        if not member.healthy:
            return self._rescue(population, member)
        ready = member.step % (interval or self.slice_steps) == 0 and member.step >= self.burn_in
        if not ready or self._is_reference(member):
            return self.assign(population, member, member.snapshot, member.hyperparameters)
        return self.evolve(population, member, select or self._donor)

    def evolve(self, population: Population, member: Member, select: Select) -> Assignment:
        """Let a healthy member that is ready copy another one and explore, or continue."""
        donor, note = select(population, member)
        if donor:
            return self.take_over(population, member, donor, note)
        values = member.hyperparameters
        if self.explore.when == "always":
            values = self._explore_values(population, member, values)
        return self.assign(population, member, member.snapshot, values)

    def take_over(self, population: Population, member: Member, donor: Member, note: str) -> Assignment:
        """Let a member copy a donor and explore."""
        parent = donor.snapshot if "weights" in self.copy else member.snapshot
        inherited = donor.snapshot_hparams if "hparams" in self.copy else member.hyperparameters
        values = self._explore_values(population, member, inherited)
        return self.assign(population, member, parent, values, donor=donor.id, note=note)

    def _rescue(self, population: Population, member: Member) -> Assignment:
        """Let a diverged or given-up member copy the best healthy member, or start with fresh weights."""
        why = "diverged" if member.diverged else "given up"
        healthy = [m for m in self._peers(population, member) if m.healthy and m.snapshot]
        donors = [m for m in healthy if m.ranked] or healthy
        rng = population.rng(member.id, member.generation + 1, "rescue")
        if not donors:
            drawn = self.space.of(member.hyperparameters).sample(rng)
            return self.assign(population, member, None, drawn, note=f"{why}, starts afresh")
        donor = max(donors, key=lambda m: -math.inf if m.rank_fitness is None else m.rank_fitness)
        values = self._explore_values(population, member, donor.snapshot_hparams)
        return self.assign(
            population, member, donor.snapshot, values, donor=donor.id, note=f"{why}, exploit {donor.id}"
        )

    def _donor(self, population: Population, member: Member) -> tuple[Member | None, str]:
        """Choose the member to copy. Returns it with the reason, or None for no copy.

        Every healthy member with a `rank_fitness` is ranked. Only members with a fitness since their last copy may
        receive or donate.
        """
        if self.exploit.method == "none" or not member.ranked:
            return None, ""
        ranking = self._ranking(population, member)
        if len(ranked := ranking.members) < 2:
            return None, ""
        rng = population.rng(member.id, member.generation + 1, "exploit")
        if self.exploit.method == "truncation":
            donor = self._truncation(ranking, member, rng)
        else:
            others = [m for m in ranked if m is not member]
            donor = (self._t_test if self.exploit.method == "t_test" else self._tournament)(others, member, rng)
        gap = self.exploit.min_gap
        if donor is None or (gap > 0 and _fitness(donor) - _fitness(member) <= gap):
            return None, ""
        rank = 1 + len(ranked) - bisect_right(ranking.fitness, _fitness(donor))
        return donor, f"exploit {donor.id}, rank {rank} of {len(ranked)}"

    def _peers(self, population: Population, member: Member) -> list[Member]:
        """Return the members that this one is compared with, including itself: not retired, of its role and agent."""
        members = [m for m in population.members.values() if m.role == member.role and not m.retired]
        if self.exploit.across_agents:
            return members
        return [m for m in members if m.hyperparameters.get(AGENT) == member.hyperparameters.get(AGENT)]

    def _ranking(self, population: Population, member: Member) -> Ranking:
        """Return the ranking of a member's peers, which is made once per decision."""
        key = "ranking", member.role, None if self.exploit.across_agents else member.hyperparameters.get(AGENT)
        if key not in population.memo:
            peers = [m for m in self._peers(population, member) if m.healthy]
            fitness = {m.id: y for m in peers if (y := m.rank_fitness) is not None}
            ranked = [m for m in peers if m.id in fitness]
            equals = Counter(fitness.values())

            def place_of(m: Member) -> tuple[float, float]:
                tied = equals[fitness[m.id]] > 1
                return fitness[m.id], population.rng(m.id, m.generation, "tie").random() if tied else 0.0

            order = sorted(ranked, key=place_of)
            place = {m.id: index for index, m in enumerate(order)}
            unreported = sum(m.snapshot is None for m in peers)
            population.memo[key] = Ranking(ranked, order, [fitness[m.id] for m in order], place, unreported)
        result: Ranking = population.memo[key]
        return result

    def _truncation(self, ranking: Ranking, member: Member, rng: np.random.Generator) -> Member | None:
        """Draw a donor from the top if the member is at the bottom.

        While only k members are ranked, and n - k have not reported, k/n of `bottom * n` members copy. A member whose
        fitness is absent for other reasons does not count: it could hold up the others for ever.
        """
        k, n = len(ranking.order), len(ranking.order) + ranking.unreported
        top = max(1, share(self.exploit.top, k))
        bottom = min(max(1, share(self.exploit.bottom, n)) * k // n, k - top)
        if (place := ranking.place[member.id]) >= bottom:
            return None
        donors = [m for m in ranking.order[place + 1 :] if m.ranked][-top:]
        return donors[int(rng.integers(len(donors)))] if donors else None

    def _t_test(self, others: Sequence[Member], member: Member, rng: np.random.Generator) -> Member | None:
        """Draw another member; return it if it has a fitness and its episodes are significantly better."""
        donor = others[int(rng.integers(len(others)))]
        return donor if donor.ranked and self._significant(donor, member) else None

    def _tournament(self, others: Sequence[Member], member: Member, rng: np.random.Generator) -> Member | None:
        """Draw another member; return it if it ranks higher.

        If its rank is from before a copy, return a random fitter member whose fitness is its own.
        """
        opponent = others[int(rng.integers(len(others)))]
        if not self._beats(opponent, member, rng):
            return None
        if opponent.ranked:
            return opponent
        fitter = [m for m in others if m.ranked and _fitness(m) > _fitness(member)]
        return fitter[int(rng.integers(len(fitter)))] if fitter else None

    def _beats(self, opponent: Member, member: Member, rng: np.random.Generator) -> bool:
        if _rank_fitness(opponent) == _fitness(member):
            return self.exploit.ties == "copy" or rng.random() < 0.5
        return _rank_fitness(opponent) > _fitness(member)

    def _significant(self, donor: Member, member: Member) -> bool:
        """Run a one-sided Welch test. Without any variance, the higher mean is significant."""
        theirs, own = donor.window[-self.exploit.episodes :], member.window[-self.exploit.episodes :]
        if min(len(theirs), len(own)) < 2 or np.mean(theirs) <= np.mean(own):
            return False
        if np.ptp(theirs) == 0 and np.ptp(own) == 0:
            return True
        from scipy.stats import ttest_ind_from_stats  # takes half a second, and only this rule needs it

        test = ttest_ind_from_stats(
            *(float(np.mean(theirs)), float(np.std(theirs, ddof=1)), len(theirs)),
            *(float(np.mean(own)), float(np.std(own, ddof=1)), len(own)),
            equal_var=False,
            alternative="greater",
        )
        return bool(test.pvalue < self.exploit.alpha)

    def _explore_values(self, population: Population, member: Member, values: Hyperparameters) -> Hyperparameters:
        rule, rng = self.explore, population.rng(member.id, member.generation + 1, "explore")
        explored = dict(values)
        for name, dimension in self.space.of(values).items():
            if rule.method == "none" or rng.random() >= rule.probability:
                continue
            if rule.method == "resample" or rng.random() < rule.resample_probability:
                explored[name] = dimension.sample(rng)
            elif rule.method == "perturb":
                factor = rule.factors[rng.integers(len(rule.factors))]
                explored[name] = dimension.perturb(values[name], factor, rng)
            else:
                explored[name] = dimension.gaussian(values[name], rule.sd, rng)
        return explored

    def assign(
        self, population: Population, member: Member, parent: str | None, values: Hyperparameters, *,
        donor: str | None = None, note: str = "", hparams_donor: str | None = None,
    ) -> Assignment:  # fmt: skip
        """Make the next assignment of a member, up to the end of its slice."""
        stop = next_stop(member.step, self.slice_steps, self.horizon)
        return assign(population, member, parent, values, stop, donor=donor, note=note, hparams_donor=hparams_donor)

    def _is_reference(self, member: Member) -> bool:
        return member.place < self.references


def _fitness(member: Member) -> float:
    assert member.fitness is not None
    return member.fitness


def _rank_fitness(member: Member) -> float:
    assert member.rank_fitness is not None
    return member.rank_fitness


def share(fraction: float, count: int) -> int:
    """Return a fraction of a number of members, rounded down; the tolerance makes 0.29 of 100 equal 29."""
    return math.floor(fraction * count + 1e-9)
