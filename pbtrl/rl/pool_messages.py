"""Messages between a learner and the workers of its pool, as JSON; tensors travel beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pbtrl.core.messages import Assignment
from pbtrl.system.typed_json import Codec

Numbers = Sequence[float | None]
"""One number per member or episode; None stands for one that is not finite."""

PackedEpisodes = tuple[Numbers, Sequence[int], Numbers, int]
"""Arguments of `pbtrl.rl.rollout.Episodes.extend`."""


@dataclass(frozen=True)
class ResetEnvs:
    """To an actor: make new envs, with these seeds [P * B], in order of members."""

    seeds: Sequence[int]


@dataclass(frozen=True)
class Forget:
    """To an actor: the policy of a member's slot is a new one."""

    slot: int


@dataclass(frozen=True)
class Act:
    """To an actor: act for `steps` steps per env, with these seeds of noise [P], into a slot for blocks."""

    slot: int
    steps: int
    noise: Sequence[int]


@dataclass(frozen=True)
class Block:
    """From an actor: the block is in its slot.

    Attributes:
        slot, steps: of the request.
        version: number of updates of the weights that acted.
        episodes: that finished, by member.
        new: it is the first block of new envs.
    """

    slot: int
    steps: int
    version: int
    episodes: Sequence[PackedEpisodes]
    new: bool


@dataclass(frozen=True)
class BeginSlice:
    """To a Hogwild process: begin a slice; the members in the slots `replaced` have a new policy."""

    assignments: tuple[Assignment, ...]
    replaced: Sequence[int]


@dataclass(frozen=True)
class LearnBlock:
    """To a Hogwild process: act for `steps` steps per env, and learn from them."""

    steps: int


@dataclass(frozen=True)
class Learned:
    """From a Hogwild process: its update; all but `steps` by member, as in `pbtrl.agents.types.UpdateResult`."""

    steps: int
    updates: Sequence[int]
    skipped: Sequence[int]
    metrics: Mapping[str, Numbers]
    consumed: Mapping[str, Sequence[float]]
    episodes: Sequence[PackedEpisodes]


@dataclass(frozen=True)
class Raised:
    """From a worker: an exception ended it; `error` is one line."""

    error: str
    traceback: str


@dataclass(frozen=True)
class Weights:
    """To an actor on another machine, ahead of weights: the number of their updates."""

    version: int


Request = Act | LearnBlock
ToWorker = ResetEnvs | Forget | BeginSlice | Request
Answer = Block | Learned
Message = ToWorker | Answer | Raised | Weights

_codec = Codec[Message](Message, parts={"assignments": Assignment})
encode, decode = _codec.encode, _codec.decode
