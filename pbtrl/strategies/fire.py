"""FIRE PBT (Dalibard and Jaderberg 2021, arXiv 2109.13800): population based training without its greed.

The members form sub-populations P1, ..., Pn, and evaluators. Inside P1 members are ranked by their fitness, as in PBT.
A member of P2 (a parent) is ranked by how fast its weights improve under the hyperparameters of the best member of P1
(the child). To measure that, an evaluator copies the parent's weights and the child's hyperparameters, and trains. If
its curve gets significantly above the child's, the child takes over the evaluator's weights: a promotion. P3 relates to
P2 as P2 to P1, and so on. Only P1 has candidates for the best member.

Nothing but the journal is needed: an evaluation is the last copy of its evaluator, and its verdict follows from the
curves. Both modes use the same rules. In asynchronous mode a successful evaluator waits for its child's next decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from typing_extensions import override

from pbtrl.core.member import Member
from pbtrl.core.messages import Assignment
from pbtrl.core.naming import EVALUATOR
from pbtrl.core.population import Population
from pbtrl.strategies import Strategy
from pbtrl.strategies.assigning import assign, next_stop
from pbtrl.strategies.fire_curves import CurveComparison, compare
from pbtrl.strategies.pbt import PBT, share

MIN_POINTS = 3  # points of an evaluation's curve that can give a score or a promotion


@dataclass(frozen=True)
class Verdict:
    """State of an evaluation.

    Attributes:
        kind: `none` (no evaluation), `lost` (its parent or child was replaced), `success`, `stop` or `continue`.
        comparison: of the evaluator's curve with the child's; None if they were not compared.
        why: reason of a stop or loss, in words.
    """

    kind: Literal["none", "lost", "success", "stop", "continue"]
    comparison: CurveComparison | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class FIRE(Strategy):
    """Strategy of FIRE PBT.

    Attributes:
        pbt: rules inside each sub-population; members are compared with those of their role.
        interval: env steps between two points of a curve.
        max_eval_steps: env steps after which an evaluation must have reached the child's curve, and lead it.
        min_steps_before_eval: env steps of a parent before its first evaluation and its first exploit.
        p_value: level of the binomial test.
    """

    pbt: PBT
    interval: int
    max_eval_steps: int
    min_steps_before_eval: int
    p_value: float = 0.01

    @override
    def decide(self, population: Population) -> list[Assignment]:
        """Return assignments: promotions first, then the sub-populations, then the evaluators."""
        if self.pbt.synchronous and population.pending:
            return []
        if all(self.is_over(m) for m in population.candidates):
            return []
        return _Decision(self, population).assignments()

    @override
    def retired(self, population: Population) -> list[str]:
        """Return the members that failed too often in a row."""
        return self.pbt.retired(population)

    def is_over(self, member: Member) -> bool:
        """Return whether a member will not decide again."""
        return member.retired or (member.step >= self.pbt.horizon and not member.pending)


class _Decision:
    """One decision of FIRE. Evaluations are judged by the curves at its start."""

    def __init__(self, fire: FIRE, population: Population) -> None:
        self._fire, self._pbt, self._population = fire, fire.pbt, population
        self._evaluators = [m for m in population.members.values() if m.is_evaluator]
        self._verdicts = {e.id: self._judge(e) for e in self._evaluators}
        self._copied: set[str] = set()  # members that copy another one in this decision
        self._begun: set[str] = set()  # parents whose evaluation begins in this decision
        self._scored: dict[int, dict[str, float]] = {}

    def assignments(self) -> list[Assignment]:
        members, evaluators = self._waiting()
        made = [self._next(m) for m in members]
        return made + [a for e in evaluators if (a := self._evaluate(e)) is not None]

    def _waiting(self) -> tuple[list[Member], list[Member]]:
        """Members of sub-populations, and evaluators, that may get an assignment.

        In synchronous mode those that a stop or a failure left behind catch up first.
        """
        waiting = self._pbt.waiting(self._population)
        members = [m for m in waiting if not m.is_evaluator]
        evaluators = [m for m in waiting if m.is_evaluator]
        if not self._pbt.synchronous:
            return members, evaluators
        behind, torn = self._pbt.furthest_behind(members), [e for e in evaluators if self._is_torn(e)]
        if len(behind) < len(members) or any(self._is_torn(m) for m in members):
            return behind, torn
        return ([], torn) if torn else (members, evaluators)

    def _is_torn(self, member: Member) -> bool:
        """Whether an early stop left the member inside a slice."""
        return member.step % self._pbt.slice_steps != 0

    # --- sub-populations ---

    def _next(self, member: Member) -> Assignment:
        level = _level(member)
        if (assignment := self._promotion(member)) is None:
            if level == 1:
                assignment = self._pbt.next(self._population, member)
            else:
                scores = self._scores(level)
                assignment = self._pbt.next(self._population, member, select=lambda _, m: self._donor(m, scores))
                if member.id in scores:
                    assignment = replace(assignment, scalars={"fire/score": scores[member.id]})
        if assignment.donor:
            self._copied.add(member.id)
        return assignment

    def _promotion(self, child: Member) -> Assignment | None:
        """Let a child take over the weights of the best successful evaluator; its hyperparameters are the same."""
        if not child.healthy or self._is_torn(child):
            return None
        successes = [
            (comparison, e)
            for e in self._evaluators
            if e.copy and e.copy.hparams_donor == child.id and self._verdict(e).kind == "success"
            if (comparison := self._verdict(e).comparison)
        ]
        if not successes:
            return None
        comparison, evaluator = max(successes, key=lambda pair: pair[0].diff)
        note = f"promotion of {evaluator.id}: {comparison.diff:.3g} better, "
        note += f"{comparison.wins} of {comparison.points} points, p {comparison.p:.2g}"
        return assign(
            self._population, child, evaluator.snapshot, evaluator.snapshot_hparams, self._stop(child),
            donor=evaluator.id, inherit=True, note=note,
        )  # fmt: skip

    def _scores(self, level: int) -> dict[str, float]:
        """Score of each parent of a level that is under evaluation: the sum of its leads over the others."""
        if level not in self._scored:
            self._scored[level] = self._compute_scores(level)
        return self._scored[level]

    def _compute_scores(self, level: int) -> dict[str, float]:
        curves = {
            e.copy.donor: e.curve
            for e in sorted(self._evaluators, key=lambda e: e.copied_at)  # the newest evaluation of a parent counts
            if _level(e) == level and e.copy and e.copy.donor and len(e.curve.points) >= MIN_POINTS
            if self._verdicts[e.id].kind not in ("none", "lost") and not self._fire.is_over(e)
        }
        return {
            p: sum(compare(curve, other, self._fire.interval).diff for q, other in curves.items() if q != p)
            for p, curve in curves.items()
        }

    def _donor(self, member: Member, scores: Mapping[str, float]) -> tuple[Member | None, str]:
        """Choose the parent that a parent copies: one of the top, if it is at the bottom of those with a score."""
        n, exploit = len(scores), self._pbt.exploit
        if member.id not in scores or n < 2 or exploit.method == "none":
            return None, ""
        if member.step < self._fire.min_steps_before_eval:
            return None, ""
        order = sorted(scores, key=lambda p: (scores[p], p))
        top = max(1, share(exploit.top, n))
        bottom = min(max(1, share(exploit.bottom, n)), n - top)
        if order.index(member.id) >= bottom:
            return None, ""
        rng = self._population.rng(member.id, member.generation + 1, "exploit")
        donor = self._population.members[order[n - 1 - int(rng.integers(top))]]
        gap = (scores[donor.id] - scores[member.id]) / n
        if not donor.healthy or donor.snapshot is None or gap <= exploit.min_gap:
            return None, ""
        return donor, f"exploit {donor.id}, score {scores[donor.id]:.3g} against {scores[member.id]:.3g}"

    # --- evaluators ---

    def _evaluate(self, evaluator: Member) -> Assignment | None:
        """Continue an evaluation, begin another one, or hold a successful one until its child decides."""
        verdict = self._verdict(evaluator)
        if verdict.kind == "continue" or (self._is_torn(evaluator) and evaluator.healthy):
            values = evaluator.hyperparameters
            return assign(self._population, evaluator, evaluator.snapshot, values, self._stop(evaluator))
        return None if verdict.kind == "success" else self._begin(evaluator, verdict)

    def _begin(self, evaluator: Member, last: Verdict) -> Assignment | None:
        """Evaluate the parent that has waited longest, under the hyperparameters of the best child."""
        parents = self._idle_parents(_level(evaluator))
        children = [
            m
            for m in self._of(_level(evaluator) - 1)
            if m.ranked and m.id not in self._copied and not self._fire.is_over(m)
        ]
        if not parents or not children:
            return None
        deciding = [e for e in self._evaluators if not self._fire.is_over(e)]
        released = {e.copy.donor for e in deciding if e.copy and self._verdict(e).kind in ("stop", "lost")}
        parent = min(parents, key=lambda m: (m.id in released, m.evaluated_at, m.id))
        child = max(children, key=lambda m: m.fitness or 0.0)
        note = f"evaluates {parent.id} under {child.id}"
        if evaluator.copy and last.kind in ("stop", "lost"):
            note += f"; before, {evaluator.copy.donor} under {evaluator.copy.hparams_donor}: {last.why}"
        self._begun.add(parent.id)
        return assign(
            self._population, evaluator, parent.snapshot, child.snapshot_hparams, self._stop(evaluator),
            donor=parent.id, hparams_donor=child.id, note=note,
        )  # fmt: skip

    def _idle_parents(self, level: int) -> list[Member]:
        """Parents without an evaluator whose newest snapshot has their current weights."""
        active = {
            e.copy.donor
            for e in self._evaluators
            if e.copy
            if (kind := self._verdict(e).kind) == "success" or (kind == "continue" and not self._fire.is_over(e))
        }
        return [
            m
            for m in self._of(level)
            if m.healthy and m.snapshot and m.step >= self._fire.min_steps_before_eval
            if m.id not in active | self._begun | self._copied and not (m.pending and m.pending.donor)
        ]

    def _verdict(self, evaluator: Member) -> Verdict:
        """Verdict on an evaluation, after the copies of this decision."""
        if evaluator.copy and {evaluator.copy.donor, evaluator.copy.hparams_donor} & self._copied:
            return Verdict("lost", why="one of them copies another member")
        return self._verdicts[evaluator.id]

    def _judge(self, evaluator: Member) -> Verdict:
        """Judge an evaluation by the curves of the evaluator and of the child."""
        fire, members, began = self._fire, self._population.members, evaluator.copy
        if began is None:
            return Verdict("none")
        parent, child = members[began.donor or ""], members[began.hparams_donor or ""]
        if max(parent.copied_at, child.copied_at) > evaluator.copied_at:
            return Verdict("lost", why="one of them has copied another member")
        if not (parent.healthy and child.healthy):
            return Verdict("lost", why="one of them failed")
        if not evaluator.healthy:
            return Verdict("stop", why="diverged" if evaluator.diverged else "given up")
        if evaluator.pending:
            return Verdict("continue")
        if began.id not in self._population.snapshot_origin:  # a resumed run lets it try again
            return Verdict("stop", why="given up")
        steps, c = evaluator.step - began.start, compare(evaluator.curve, child.curve, fire.interval)
        if c.diff > 0 and c.p < fire.p_value and len(evaluator.curve.points) >= MIN_POINTS:
            if fire.is_over(child):
                return Verdict("stop", c, f"{child.id} has finished")
            return Verdict("success", c)
        if not c.overlap and steps >= fire.max_eval_steps:
            above = f"above {child.id}, but does not improve faster"
            return Verdict("stop", c, above if c.p == 0 else f"never at the level of {child.id}")
        limit = fire.p_value + max(0.0, 1.0 - steps / fire.max_eval_steps)
        if c.overlap and c.p > limit:
            return Verdict("stop", c, f"p {c.p:.2g} above {limit:.2g}")
        return Verdict("continue", c)

    # --- population ---

    def _of(self, level: int) -> list[Member]:
        return [m for m in self._population.members.values() if m.role == f"p{level}"]

    def _stop(self, member: Member) -> int:
        return next_stop(member.step, self._pbt.slice_steps, self._pbt.horizon)


def _level(member: Member) -> int:
    """Number of the member's sub-population; of an evaluator, that of its parents."""
    return int(member.role.removeprefix(EVALUATOR).strip(" p") or 2)
