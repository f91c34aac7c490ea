"""Evaluations of snapshots on fresh episodes, their scores, and the best member of a run that was chosen by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

EPISODES = 30  # of an evaluation


@dataclass(frozen=True)
class EvaluationEpisodes:
    """Evaluation episodes of one member.

    Attributes:
        returns: raw return of each episode, or what `fitness.metric` measured in its place, of the episodes that have
            such a number; of a trainable its one score.
        lengths: length of each episode (env steps), including those that the metric could not measure.
        seeds: seeds of the envs.
        max_steps: env steps after which an episode was cut; None without a limit.
        truncated: number of episodes that were cut at `max_steps` or at the deadline; the env's own time limit does not
            count.
        timed_out: whether the deadline came before all episodes ended.
        unmeasured: number of episodes that the metric could not measure.
        held_out: whether a trainable was scored on data that nothing else uses.
    """

    returns: list[float]
    lengths: list[int]
    seeds: list[int]
    max_steps: int | None = None
    truncated: int = 0
    timed_out: bool = False
    unmeasured: int = 0
    held_out: bool = False


@dataclass(frozen=True)
class Score:
    """Score of a snapshot; the names are those of the JSON that `pbtrl eval` prints.

    Attributes:
        member: member that made the snapshot.
        return_mean: mean over the episodes; None if it is not finite, or no episode has the number of `fitness.metric`.
        episodes: number of episodes.
        ci95: ends of the 95 % interval of the mean; None for one episode or if it is not finite.
        held_out: whether a trainable was scored on data that nothing else uses.
        truncated: number of episodes that were cut at `max_steps` or for lack of time.
        max_steps: env steps after which an episode was cut; None without a limit.
        timed_out: whether the time ended before all episodes did.
        unmeasured: number of episodes that do not count, because they have no number of `fitness.metric`.
    """

    member: str
    return_mean: float | None
    episodes: int
    ci95: tuple[float, float] | None = None
    held_out: bool = False
    truncated: int = 0
    max_steps: int | None = None
    timed_out: bool = False
    unmeasured: int = 0


@dataclass(frozen=True)
class BestMember:
    """Result of the final choice, as best.json has it.

    Attributes:
        member: the chosen member.
        snapshot: its snapshot.
        sha256: digest of the snapshot's manifest.
        evaluation: score of the chosen member on fresh seeds.
        selection: score of each candidate on selection seeds.
    """

    member: str
    snapshot: str
    sha256: str
    evaluation: Score
    selection: tuple[Score, ...] = ()

    @property
    def means(self) -> Mapping[str, float | None]:
        """Mean of each candidate on selection seeds, and of the chosen one on fresh seeds."""
        return {score.member: score.return_mean for score in (*self.selection, self.evaluation)}
