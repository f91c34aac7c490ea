"""MF-PBT, multiple-frequencies PBT (Doulazmi et al. 2025, arXiv 2506.03225).

Sub-populations evolve at different frequencies: the i-th in every `frequencies[i]`-th round. One that evolves often is
greedy; one that evolves rarely gives hyperparameters time to pay off. The members of one that evolves are ranked:

    first and second quarter   continue
    third quarter              is compared, in order, with the best members of the other sub-populations; if one of
                               these is better, its weights migrate
    last quarter               copies the first quarter and explores

Hyperparameters come with a migrant from a sub-population that evolves less often. From one that evolves more often they
may be greedy, so they come from the best member of the own sub-population. A migration never explores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import override

from pbtrl.core.member import Member
from pbtrl.core.messages import Assignment
from pbtrl.core.population import Population
from pbtrl.strategies.pbt import PBT, Select


@dataclass(frozen=True, kw_only=True)
class MFPBT(PBT):
    """Strategy of multiple-frequencies PBT, which is synchronous.

    A member that failed copies the best of its sub-population and explores, in any round. Members without a fitness
    continue; the quarters are those of the others.

    Attributes:
        frequencies: rounds from one evolution of a sub-population to the next, by its members' role.
    """

    frequencies: Mapping[str, int]
    synchronous: bool = True

    @override
    def evolve(self, population: Population, member: Member, select: Select) -> Assignment:
        ranking = population.ranking()
        own = [m for m in ranking if m.role == member.role]
        evolves = (member.step // self.slice_steps) % self.frequencies[member.role] == 0
        if evolves and member in own:
            quarter = len(own) // 4
            from_below = len(own) - own.index(member)
            if from_below <= quarter:
                rank = quarter - from_below
                donor = own[rank]
                return self.take_over(population, member, donor, f"exploit {donor.id}, rank {rank + 1} of {len(own)}")
            if from_below <= 2 * quarter:
                third = own[len(own) - 2 * quarter : len(own) - quarter]
                others = [m for m in ranking if m.role != member.role]
                if migrant := migrants(third, others).get(member.id):
                    return self._migrate(population, member, migrant, own[0])
        return self.assign(population, member, member.snapshot, member.hyperparameters)

    def _migrate(self, population: Population, member: Member, migrant: Member, best: Member) -> Assignment:
        """Let a member take over a migrant's weights; `best` is the best member of its own sub-population."""
        values, hparams_donor, note = member.hyperparameters, None, f"migrant {migrant.id}, own hyperparameters"
        if self.frequencies[member.role] < self.frequencies[migrant.role]:
            values, note = migrant.snapshot_hparams, f"migrant {migrant.id}"
        elif self.frequencies[member.role] > self.frequencies[migrant.role]:
            values, hparams_donor = best.snapshot_hparams, best.id
            note = f"migrant {migrant.id}, hyperparameters of {best.id}"
        return self.assign(
            population, member, migrant.snapshot, values, donor=migrant.id, note=note, hparams_donor=hparams_donor
        )


def migrants(receivers: Sequence[Member], others: Sequence[Member]) -> dict[str, Member]:
    """Return the migrant that each receiver takes over, if any, by the receiver's id.

    Both are sorted, best first. Each receiver is compared with the best of the others that has not migrated yet.
    """
    pairs: dict[str, Member] = {}
    for receiver in receivers:
        migrant = others[len(pairs)] if len(pairs) < len(others) else None
        if migrant and (migrant.fitness or 0.0) > (receiver.fitness or 0.0):
            pairs[receiver.id] = migrant
    return pairs
