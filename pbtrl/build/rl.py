"""Builders of RL cohorts from an agent, its envs and its acting mode."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pbtrl import envs
from pbtrl.config.schema import Config
from pbtrl.config.sections import RETURN
from pbtrl.core.dimensions import AGENT
from pbtrl.core.messages import Assignment
from pbtrl.core.scores import EvaluationEpisodes
from pbtrl.core.tensors import Tensors
from pbtrl.core.trainable import Cohort
from pbtrl.system.child_process import is_supervised
from pbtrl.system.malloc import retain_freed_memory
from pbtrl.system.torch_settings import configure_torch

if TYPE_CHECKING:
    from pbtrl.agents.actor_critic import ActorCritic
    from pbtrl.rl.actors import TransportFactory
    from pbtrl.rl.cohort_spec import CohortSpec
    from pbtrl.rl.episode_metric import EpisodeMetric
    from pbtrl.rl.remote_actors import Wire
    from pbtrl.rl.video import Camera
from pbtrl.build.determinism import is_deterministic
from pbtrl.build.placement import torch_threads

WireFactory = Callable[[], "Wire"]


def rl_builder(config: Config, wire: WireFactory | None = None) -> RLBuilder | MixedBuilder:
    """Make the builder of cohorts for a config with an env.

    Args:
        config: config of the run.
        wire: makes the wire to actors on other machines; None if they are processes of this one.
    """
    return RLBuilder(config, wire=wire) if config.agents is None else MixedBuilder(config, wire)


class MixedBuilder:
    """Builder of RL cohorts for a mixed population; it has one `RLBuilder` per agent."""

    def __init__(self, config: Config, wire: WireFactory | None = None) -> None:
        self._builders = {name: RLBuilder(config, name, wire=wire) for name in config.per_agent_configs}

    def structure(self, assignment: Assignment) -> object:
        """Return the agent, and what else must be equal in a cohort of it."""
        name = assignment.hyperparameters[AGENT]
        return name, self._builders[name].structure(assignment)

    def cohort(self, members: Sequence[str], threads: int, structure: object = None) -> Cohort:
        """Make a cohort for these members, which are all of one agent."""
        assert isinstance(structure, tuple)
        return self._builders[structure[0]].cohort(members, threads)


class RLBuilder:
    """Builder of RL cohorts of one agent; `name` is its entry in a mix, `wire` as in `rl_builder`."""

    def __init__(
        self, config: Config, name: str | None = None, spaces: envs.Spaces | None = None,
        wire: WireFactory | None = None,
    ) -> None:  # fmt: skip
        own = config.per_agent_configs[name]
        assert own.env is not None
        assert own.agent is not None
        assert own.acting is not None
        self._config, self._env, self._agent, self._acting = own, own.env, own.agent, own.acting
        self._run_config, self._name, self._given_spaces, self._wire = config, name, spaces, wire

    @property
    def _spaces(self) -> envs.Spaces:
        return self._given_spaces or env_spaces(self._config)

    def check(self) -> None:
        """Raise ConfigProblem if the agent cannot read the env's observations or act in it."""
        _ = self.agent

    def structure(self, assignment: Assignment) -> object:
        """Return the member if its updates have a length of their own, so that it trains alone; else None."""
        return assignment.member if self._config.has_own_updates else None

    def cohort(self, members: Sequence[str], threads: int, structure: object = None) -> Cohort:
        """Make a cohort for these members."""
        from pbtrl.rl.actors import ActorsCohort
        from pbtrl.rl.cohort import RLCohort
        from pbtrl.rl.hogwild import HogwildCohort

        retain_freed_memory()
        configure_torch(torch_threads(self._run_config), deterministic=is_deterministic(self._run_config))
        if self._acting.mode == "actors":
            return ActorsCohort(members, self.spec, threads, self._transport())
        cohorts = {"inline": RLCohort, "hogwild": HogwildCohort}
        return cohorts[self._acting.mode](members, self.spec, threads)

    def _transport(self) -> TransportFactory:
        """Factory of the transport to the actors."""
        from pbtrl.rl.local_actors import LocalActors
        from pbtrl.rl.remote_actors import RemoteActors

        return LocalActors if self._wire is None else functools.partial(RemoteActors, self._wire())

    def evaluate(
        self, rows: Sequence[Tensors], *, episodes: int, seed: int, deterministic: bool = False, threads: int = 1,
        seconds: float | None = None, camera: Camera | None = None,
    ) -> list[EvaluationEpisodes]:  # fmt: skip
        """Play fresh episodes with each snapshot; see `rl.evaluation.evaluate`."""
        from pbtrl.rl.evaluation import evaluate

        make = self._maker(training=False, rendered=camera.episodes if camera else 0)
        return evaluate(
            self.agent, self.to_env, make, rows,
            episodes=episodes, seed=seed, deterministic=deterministic, threads=threads,
            max_steps=self._config.final.max_steps, fallback=self._config.unlimited_episode_steps, seconds=seconds,
            camera=camera,
            metric=self._metric,
        )  # fmt: skip

    @property
    def _metric(self) -> EpisodeMetric | None:
        from pbtrl.rl.episode_metric import EpisodeMetric

        fitness = self._config.fitness
        return None if fitness.metric == RETURN else EpisodeMetric(fitness.metric, fitness.metric_name)

    @cached_property
    def agent(self) -> ActorCritic:
        """Agent, built for the spaces of the env."""
        spaces = self._spaces
        agent: ActorCritic = self._agent.build(spaces.single_observation_space, spaces.single_action_space)
        return agent

    @cached_property
    def to_env(self) -> Callable[..., Any]:
        """Function from stored actions of the policy to actions of the env."""
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
        """Specification that all cohorts of the agent share."""
        from pbtrl.agents.settings import live_hyperparameters
        from pbtrl.rl.cohort_spec import CohortSpec, CohortSpecRef

        config = self._config
        fitness = config.fitness
        evaluate = None
        if fitness.source == "evaluation":

            def evaluate(row: Tensors, seed: int, threads: int) -> list[float]:
                (result,) = self.evaluate([row], episodes=fitness.episodes, seed=seed, threads=threads)
                return result.returns or [math.nan]  # no episode has the number: the fitness is absent

        return CohortSpec(
            agent=self.agent,
            to_env=self.to_env,
            make=self._maker(training=True),
            envs=self._env.num_envs,
            block=config.block_length,
            exact=self._agent.unroll_mode == "exact",
            reset=self._env.between_slices == "reset",
            curve_interval=config.curve_interval,
            live=live_hyperparameters(self._agent),
            structural={} if self._name is None else {AGENT: self._name},
            origin=CohortSpecRef("pbtrl.build.worker_entry:cohort_spec", self._run_config.to_json(), self._name),
            processes=self._acting.processes,
            replay=self._acting.replay,
            replay_size=self._acting.replay_size,
            metric=self._metric,
            evaluate=evaluate,
        )

    def _maker(self, *, training: bool, rendered: int = 0) -> Callable[[Sequence[int], int], envs.Vector]:
        env, timeout = self._env, _env_timeout(self._config)

        def make(seeds: Sequence[int], threads: int) -> envs.Vector:
            make_envs = functools.partial(
                envs.make, env.id, seeds, threads=threads, training=training, rendered=rendered, **env.options
            )
            if timeout is None:
                return make_envs()
            vector: envs.Vector = envs.with_timeout(timeout + len(seeds), make_envs)()  # one more second for each env
            return envs.with_step_timeout(vector, timeout)

        return make


def _env_timeout(config: Config) -> float | None:
    """Return the seconds for a step of envs; None in the main process, which no supervisor could replace."""
    return config.failure.env_step_timeout if is_supervised() else None


def env_spaces(config: Config) -> envs.Spaces:
    """Make one env, return its spaces and close it; see `envs.spaces`.

    Raises:
        EnvError: the env cannot be made or, in the main process, not within `failure.env_step_timeout`.
    """
    env, seconds = config.env, config.failure.env_step_timeout
    assert env is not None
    look = functools.partial(envs.spaces, env.id, **env.options)
    late = f"a first look at one env took longer than failure.env_step_timeout ({seconds:g} s)"
    spaces: envs.Spaces = envs.with_timeout(
        seconds, look, None if is_supervised() else envs.EnvError(f"env.id={env.id}", late)
    )()
    return spaces
