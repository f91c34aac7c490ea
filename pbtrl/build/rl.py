"""Builders of RL cohorts: an agent, its envs and its acting mode put together."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pbtrl import envs
from pbtrl.config.schema import Config
from pbtrl.core.dimensions import AGENT
from pbtrl.core.messages import Assignment
from pbtrl.core.tensors import Tensors
from pbtrl.core.trainable import Cohort
from pbtrl.system.malloc import retain_freed_memory

if TYPE_CHECKING:
    from pbtrl.agents.actor_critic import ActorCritic
    from pbtrl.rl.cohort_spec import CohortSpec
from pbtrl.build.determinism import DETERMINISTIC, determinism
from pbtrl.build.placement import torch_threads


def rl_builder(config: Config) -> RLBuilder | MixedBuilder:
    """What makes the cohorts of a config that has an env."""
    return RLBuilder(config) if config.agents is None else MixedBuilder(config)


class MixedBuilder:
    """RL cohorts for a population of several agents; a builder of its own makes those of each."""

    def __init__(self, config: Config) -> None:
        self._builders = {name: RLBuilder(config, name) for name in config.kinds}

    def structure(self, assignment: Assignment) -> object:
        """The agent; and where it updates every unroll, whose length is the member's own, the member."""
        name = assignment.hyperparameters[AGENT]
        return name, assignment.member if self._builders[name].exact else None

    def cohort(self, members: Sequence[str], threads: int, structure: object = None) -> Cohort:
        """A cohort for these members, which are all of one agent."""
        assert isinstance(structure, tuple)
        return self._builders[structure[0]].cohort(members, threads)


class RLBuilder:
    """RL cohorts of one agent, which has a name where the config is of a mix."""

    def __init__(self, config: Config, name: str | None = None, spaces: envs.Spaces | None = None) -> None:
        kind = config.kinds[name]
        assert kind.env is not None
        assert kind.agent is not None
        assert kind.acting is not None
        self._config, self._env, self._agent, self._acting = kind, kind.env, kind.agent, kind.acting
        self._whole, self._name, self._given_spaces = config, name, spaces

    @property
    def _spaces(self) -> envs.Spaces:
        return self._given_spaces or env_spaces(self._config)

    def check(self) -> None:
        """Raise ValueError, with one line, if the agent cannot live in the env."""
        _ = self.agent

    @property
    def exact(self) -> bool:
        """Whether a member updates every unroll, so that only members of equal unrolls could share a cohort."""
        return self._agent.unroll_mode == "exact"

    def structure(self, assignment: Assignment) -> object:
        """All members share one; what differs are live hyperparameters."""
        return None

    def cohort(self, members: Sequence[str], threads: int, structure: object = None) -> Cohort:
        """A cohort for these members."""
        import torch

        from pbtrl.rl.actors import ActorsCohort
        from pbtrl.rl.cohort import RLCohort
        from pbtrl.rl.hogwild import HogwildCohort

        retain_freed_memory()
        torch.set_num_threads(torch_threads(self._whole))
        torch.use_deterministic_algorithms(determinism(self._whole) == DETERMINISTIC)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        kinds = {"inline": RLCohort, "actors": ActorsCohort, "hogwild": HogwildCohort}
        return kinds[self._acting.mode](members, self.spec, threads)

    def evaluate(
        self, rows: Sequence[Tensors], *, episodes: int, seed: int, deterministic: bool = False, threads: int = 1,
        seconds: float | None = None,
    ) -> list[Any]:  # fmt: skip
        """Fresh episodes with each snapshot; see `rl.evaluate.evaluate`."""
        from pbtrl.rl.evaluation import evaluate

        make = self._maker(training=False)
        return evaluate(
            self.agent, self.to_env, make, rows,
            episodes=episodes, seed=seed, deterministic=deterministic, threads=threads,
            max_steps=self._config.final.max_steps, fallback=self._config.unlimited_episode_steps, seconds=seconds,
        )  # fmt: skip

    @cached_property
    def agent(self) -> ActorCritic:
        """The algorithm, for this env's spaces."""
        shown = self._spaces
        agent: ActorCritic = self._agent.build(shown.single_observation_space, shown.single_action_space)
        return agent

    @cached_property
    def to_env(self) -> Callable[..., Any]:
        """From the policy's stored actions to those that the env takes."""
        import torch
        from gymnasium.spaces import Box

        space = self._spaces.single_action_space
        policy = self.agent.policy
        if not isinstance(space, Box):
            return policy.to_env
        low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
        return lambda action: policy.to_env(action, low.float(), high.float())

    @cached_property
    def spec(self) -> CohortSpec:
        """What its cohorts share."""
        from pbtrl.agents.settings import live_hyperparameters
        from pbtrl.rl.cohort_spec import CohortSpec, CohortSpecRef

        config = self._config
        fitness = config.fitness
        evaluate = None
        if fitness.source == "evaluation":

            def evaluate(row: Tensors, seed: int, threads: int) -> list[float]:
                (played,) = self.evaluate([row], episodes=fitness.episodes, seed=seed, threads=threads)
                return list(played.returns)

        return CohortSpec(
            agent=self.agent,
            to_env=self.to_env,
            make=self._maker(training=True),
            envs=self._env.num_envs,
            block=config.block_length,
            exact=self.exact,
            reset=self._env.between_slices == "reset",
            curve_interval=config.curve_interval,
            live=live_hyperparameters(self._agent),
            structural={} if self._name is None else {AGENT: self._name},
            origin=CohortSpecRef("pbtrl.build.worker_entry:cohort_spec", self._whole.to_json(), self._name),
            processes=self._acting.processes,
            replay=self._acting.replay,
            replay_size=self._acting.replay_size,
            evaluate=evaluate,
        )

    def _maker(self, *, training: bool) -> Callable[[Sequence[int], int], envs.Vector]:
        env, patience = self._env, _patience(self._config)

        def make(seeds: Sequence[int], threads: int) -> envs.Vector:
            made = functools.partial(
                envs.make, env.id, seeds, threads=threads, backend=env.backend, protocol=env.protocol,
                training=training, kwargs=env.kwargs,
            )  # fmt: skip
            if patience is None:
                return made()
            vector: envs.Vector = envs.within(patience + len(seeds), made)()  # a second more for each of them
            return envs.impatient(vector, patience)

        return make


def _patience(config: Config) -> float | None:
    """Seconds that envs may take; None in the first process, where nobody would notice and start another."""
    return config.failure.env_step_timeout if _in_worker() else None


def _in_worker() -> bool:
    return multiprocessing.parent_process() is not None


def env_spaces(config: Config) -> envs.Spaces:
    """A look at the env, which makes one and closes it; see `envs.spaces`.

    Raises:
        EnvError: it cannot be had, or, in the first process, not in time.
    """
    env, seconds = config.env, config.failure.env_step_timeout
    assert env is not None
    look = functools.partial(envs.spaces, env.id, backend=env.backend, protocol=env.protocol, kwargs=env.kwargs)
    late = f"env.id={env.id}: a first look at one env took longer than failure.env_step_timeout ({seconds:g} s)"
    found: envs.Spaces = envs.within(seconds, look, None if _in_worker() else envs.EnvError(late))()
    return found
