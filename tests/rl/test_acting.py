"""Actors and Hogwild processes, simulated in this process: their draws, their state and their traces.

Actors are tested as processes of this machine and, `remote`, as those behind a wire that carries bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from pbtrl.agents.types import State, Trajectory
from pbtrl.rl.actors import ActorsCohort
from pbtrl.rl.hogwild import HogwildCohort
from pbtrl.rl.pool_messages import Forget, LearnBlock
from pbtrl.rl.rollout import Rollout
from pbtrl.rl.shared_memory import TIMED, to_dict
from tests.rl.conftest import MemoryWire
from tests.rl.test_cohort import CARTPOLE, UNREAL, builder, slice_of

pytestmark = pytest.mark.usefixtures("one_process")

TWO = ("m00", "m01")
STEPS = 10  # of a block


def cohort_of(mode: str, processes: int = 2, env: Any = CARTPOLE, agent: Any = None, **acting: Any) -> Any:
    """Two fresh members, with 4 envs each in every process."""
    named = "actors" if mode == "remote" else mode
    acting = {} if mode == "inline" else {"mode": named, "processes": processes, **acting}
    build = builder(env, 4, agent, acting=acting)
    build._wire = MemoryWire if mode == "remote" else None
    cohort = build.cohort(TWO, 1)
    for slot in range(2):
        cohort.init(slot, 10 + slot)
    return cohort


Actors = Callable[..., ActorsCohort]


@pytest.fixture(params=["actors", "remote"])
def actors(request: pytest.FixtureRequest) -> Actors:
    return partial(cohort_of, request.param)


def hogwild(*how: Any, **more: Any) -> HogwildCohort:
    cohort = cohort_of("hogwild", *how, **more)
    assert isinstance(cohort, HogwildCohort)
    return cohort


def begin(cohort: Any, generation: int = 0, blocks: int = 500) -> None:
    cohort.begin([slice_of(m, 4 * STEPS * blocks, generation) for m in TWO])
    if isinstance(cohort, ActorsCohort):
        come_up(cohort)


def come_up(cohort: Any) -> None:
    while not all(link.up for link in links(cohort)):
        cohort.rollout.pool._receive(0.0)


def links(cohort: Any) -> list[Any]:
    result: list[Any] = cohort.rollout.pool._links
    return result


def workers(cohort: Any) -> list[Any]:
    return [link._actor.remote._actor if hasattr(link, "_actor") else link.worker for link in links(cohort)]


def kill_all(cohort: Any) -> None:
    """Kill all processes, which are replaced."""
    before = [link.restarts for link in links(cohort)]
    for link in links(cohort):
        link.kill()
    cohort.rollout.pool.tell(Forget(0))  # the death behind a wire is noticed by a call
    while [link.restarts for link in links(cohort)] != [n + 1 for n in before]:
        cohort.rollout.pool._receive(0.0)
    come_up(cohort)


def rollouts(cohort: Any) -> list[Rollout]:
    return [w.rollout if isinstance(cohort, HogwildCohort) else w._rollout for w in workers(cohort)]


# What is drawn


@pytest.mark.parametrize("mode", ["actors", "remote", "hogwild"])
def test_all_envs_of_a_cohort_have_different_seeds(mode: str) -> None:
    """Across processes, members, restarted processes and slices."""
    cohort = cohort_of(mode, env={**CARTPOLE, "between_slices": "reset"})
    seen = []
    for generation in range(2):
        begin(cohort, generation)
        seen += [r.inputs.observations.flatten(0, 1) for r in rollouts(cohort)]
        kill_all(cohort)
        seen += [r.inputs.observations.flatten(0, 1) for r in rollouts(cohort)]
    assert len(torch.cat(seen).unique(dim=0)) == 2 * 2 * 2 * len(TWO) * 4
    cohort.close()


def test_blocks_of_actors_have_different_noise(actors: Actors) -> None:
    cohort = actors()
    begin(cohort)
    noise = []
    for _ in range(6):
        block = cohort.collect()
        noise += list(block.noise.clone())
        cohort.learn(block)
    assert len(torch.stack(noise).flatten(1).unique(dim=0)) == 6 * len(TWO)
    cohort.close()


def test_hogwild_processes_have_different_noise() -> None:
    cohort = hogwild()
    begin(cohort)
    result = workers(cohort)
    kill_all(cohort)
    result += workers(cohort)
    assert len({g.initial_seed() for worker in result for g in worker._generators}) == 4 * len(TWO)
    cohort.close()


# Actors: what they act by


def acted_by(cohort: ActorsCohort, tensors: dict[str, torch.Tensor], block: Trajectory) -> bool:
    """Whether a block's policies are those of these weights and statistics for its observations."""
    agent = cohort._spec.agent
    state = agent.init([torch.Generator() for _ in TWO])
    for name, value in tensors.items():
        state.tensors[name].copy_(value)
    inputs = block.inputs(slice(None), slice(None))
    policies = [agent.act(state, inputs[:, t], block.rnn_state, None).policy for t in range(STEPS)]
    return torch.allclose(torch.stack(policies, 1), block.policy, atol=1e-5)


@pytest.mark.parametrize(("count", "lags"), [(1, [0, 1, 1, 1, 1, 1, 1]), (2, [0, 1, 2, 3, 3, 3, 3])])
def test_block_carries_its_policy_lag(actors: Actors, count: int, lags: list[int]) -> None:
    """Weights and the statistics that normalize observations go to the actors with every update."""
    cohort = actors(count, agent={"learning_rate": 0.01})
    begin(cohort)
    names = ("params", "shift", "scale")
    versions, result = [{name: cohort._state.tensors[name].clone() for name in names}], []
    for n in range(len(lags)):
        block = cohort.collect()
        fits = [v for v, tensors in enumerate(versions) if acted_by(cohort, tensors, block)]
        learned = cohort.learn(block)
        versions.append({name: cohort._state.tensors[name].clone() for name in names})
        result.append((n - fits[0] if len(fits) == 1 else fits, learned.metrics["acting/lag"].tolist()))
    assert result == [(lag, [lag, lag]) for lag in lags]
    assert all((a["shift"] != b["shift"]).all() for a, b in pairwise(versions))
    cohort.close()


def test_slice_starts_with_its_given_weights(actors: Actors) -> None:
    cohort = actors()
    fresh = [cohort.save(slot) for slot in range(2)]
    begin(cohort)
    for _ in range(3):  # and stops there, with blocks under way
        assert not cohort.advance()
    for slot in range(2):
        cohort.load(slot, fresh[1 - slot])
    begin(cohort, 1)
    block = cohort.collect()
    assert acted_by(cohort, cohort._state.tensors, block)
    cohort.close()


# Actors: what is kept of the past


def test_running_returns_are_kept_per_actor(actors: Actors) -> None:
    """The reward scale equals that of returns added up by hand, also with replay, deaths and several slices."""
    cohort = actors(agent={"rewards": "normalize", "learning_rate": 0.0}, replay=0.5)
    returns: list[list[float]] = [[] for _ in TWO]
    so_far, whose = np.zeros((2, len(TWO), 4)), []
    for generation in range(2):
        begin(cohort, generation)
        for n in range(14):
            block = cohort.collect()
            whose.append(cohort._actors._taken.actor)  # type: ignore[union-attr]
            own = torch.ones(4, dtype=torch.bool) if block.from_replay is None else ~block.from_replay
            running = so_far[whose[-1]]
            running[block.initial_inputs.first[:, own].numpy()] = 0.0
            for t in range(STEPS):
                live, over = ~block.is_reset_step[:, t, own].numpy(), block.done[:, t, own].numpy()
                running[live] = block.rewards[:, t, own].numpy()[live] + 0.99 * running[live]
                for slot in range(2):
                    returns[slot] += running[slot][live[slot]].tolist()
                running[over] = 0.0
            cohort.learn(block)
            if n == 5:
                links(cohort)[0].kill()
        assert links(cohort)[0].restarts == generation + 1
    assert {*whose} == {0, 1}
    tensors = cohort._state.tensors
    assert tensors["return.count"].tolist() == [len(running) for running in returns]
    np.testing.assert_allclose(tensors["return.mean"], [np.mean(running) for running in returns], rtol=1e-5)
    variance = tensors["return.m2"] / tensors["return.count"]
    np.testing.assert_allclose(variance, [np.var(running) for running in returns], rtol=1e-5)
    cohort.close()


def test_replay_has_learned_unrolls_in_the_configured_share(actors: Actors) -> None:
    cohort = actors(replay=0.75)
    begin(cohort)
    lived: set[tuple[bytes, ...]] = set()
    for n in range(8):
        block = cohort.collect()
        split = [value.unbind(2 if name in TIMED else 1) for name, value in to_dict(block).items()]
        unrolls = [tuple(value.numpy().tobytes() for value in unroll) for unroll in zip(*split, strict=True)]
        past = [False] * 4 if block.from_replay is None else block.from_replay.tolist()
        assert past.count(True) == (12 if n else 0)  # three quarters of what is learned from
        assert past.count(False) == 4
        assert all((unroll in lived) == old for unroll, old in zip(unrolls, past, strict=True))
        lived |= set(unrolls)
        cohort.learn(block)
    cohort.close()


@pytest.mark.parametrize("between", ["continue", "reset"])
def test_copied_weights_start_with_an_empty_replay(actors: Actors, between: str) -> None:
    cohort = actors(env={**CARTPOLE, "between_slices": between}, replay=0.5)
    begin(cohort, blocks=6)
    while not cohort.advance():
        pass
    cohort.load(1, cohort.save(0))
    begin(cohort, 1)
    block = cohort.collect()
    assert block.from_replay is not None
    assert block.from_replay.any()
    assert block.is_reset_step[1][:, block.from_replay].all()
    assert not block.is_reset_step[0][:, block.from_replay].all()
    assert not block.is_reset_step[1][:, ~block.from_replay].all()
    cohort.close()


@pytest.mark.parametrize("mode", ["actors", "remote", "hogwild"])
def test_requests_do_not_exceed_the_rest_of_a_slice(mode: str) -> None:
    cohort = cohort_of(mode)
    cohort.begin([slice_of(m, 4 * STEPS * 5 + 4 * 3) for m in TWO])
    while not cohort.advance():
        pass
    outcome = cohort.outcome(0)
    assert outcome.steps == 4 * STEPS * 5 + 4 * 3
    assert outcome.scalars == {}
    cohort.close()


def test_dropped_steps_are_counted_without_their_episodes(actors: Actors) -> None:
    cohort = actors(1, env={"id": "probe/Bandit-v0"})
    begin(cohort)
    cohort.advance()
    outcome = cohort.outcome(0)  # one of the two blocks that were asked for at first
    assert outcome.steps == 4 * STEPS
    assert outcome.scalars == {"acting/dropped_steps": 4 * STEPS}
    assert len(outcome.returns) == 4 * STEPS // 2  # every other step is a reset
    cohort.close()


def test_new_actor_starts_without_running_returns(actors: Actors) -> None:
    """Also where its first block was dropped."""
    cohort = actors(1, agent={"rewards": "normalize"})
    begin(cohort)
    cohort.advance()
    links(cohort)[0].kill()
    cohort.advance()  # what it had answered before
    assert cohort._state.running["return"].any()
    while not cohort._ready():
        pass
    assert links(cohort)[0].restarts == 1
    cohort.outcome(0)
    begin(cohort, 1)
    cohort.collect()
    assert not cohort._state.running["return"].any()
    cohort.close()


# Hogwild: what is shared


def interleaved(cohort: HogwildCohort, first: Any, second: Any) -> None:
    """The first process copies the weights; the second learns from a block, then the first from its own."""
    collect = first.rollout.collect

    def meanwhile(*how: Any) -> Trajectory:
        second.answer(LearnBlock(STEPS))
        block: Trajectory = collect(*how)
        return block

    first.rollout.collect = meanwhile
    first.answer(LearnBlock(STEPS))
    first.rollout.collect = collect


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_concurrent_updates_keep_weights_and_moments(optimizer: str) -> None:
    """Algorithm S3: gradients are of the weights that acted, and are applied to the current shared weights."""
    agent = {"name": "a3c", "optimizer": optimizer, "rmsprop_decay": 1.0}  # under which mean squares stay at 1
    after = {}
    for who in ("nobody", "first", "second", "both"):
        cohort = hogwild(agent=agent)
        begin(cohort)
        first, second = workers(cohort)
        if who == "both":
            interleaved(cohort, first, second)
        elif who != "nobody":
            {"first": first, "second": second}[who].answer(LearnBlock(STEPS))
        after[who] = {name: value.clone() for name, value in cohort._shared.tensors.items()}
        cohort.close()
    if optimizer == "rmsprop":
        steps = [after[who]["params"] - after["nobody"]["params"] for who in ("first", "second", "both")]
        assert all(step.abs().max() > 1e-5 for step in steps)
        torch.testing.assert_close(steps[2], steps[0] + steps[1], rtol=0.0, atol=1e-6)
    else:
        assert after["both"]["adam.steps"].tolist() == [2, 2]
        moments = [after[who]["adam.m"] for who in ("first", "second", "both")]
        torch.testing.assert_close(moments[2], moments[0] + 0.9 * moments[1])


def test_process_starts_a_block_with_the_shared_weights() -> None:
    cohort = hogwild(agent={"name": "a3c"})
    begin(cohort)
    shared = cohort._shared.tensors
    start = {name: value.clone() for name, value in shared.items()}
    live = torch.zeros(len(TWO), dtype=torch.float64)
    for turn in range(4):
        worker = workers(cohort)[turn % 2]
        collect, now = worker.rollout.collect, {name: value.clone() for name, value in shared.items()}

        def looked(state: State, *how: Any, collect: Any = collect, now: Any = now) -> Trajectory:
            assert state.private is not None
            for name, value in {**state.tensors, "params": state.private}.items():
                assert torch.equal(value, now[name]), name
            block: Trajectory = collect(state, *how)
            live.add_((~block.is_reset_step).flatten(1).sum(-1))
            return block

        worker.rollout.collect = looked
        worker.answer(LearnBlock(STEPS))
        worker.rollout.collect = collect
        assert torch.equal(shared["observation.count"], live)
    unchanged = {name for name in shared if torch.equal(shared[name], start[name])}
    assert unchanged == {"skipped"}
    cohort.close()


def test_blocks_in_flight_count_when_a_slice_is_stopped() -> None:
    cohort = hogwild()
    begin(cohort)
    cohort.advance()
    assert cohort.outcome(0).steps == 2 * 2 * 4 * STEPS  # two processes had been asked for two each
    cohort.close()


# Who has a new policy


@pytest.mark.parametrize("mode", ["inline", "hogwild"])
def test_agent_replay_of_a_replaced_policy_is_unused(mode: str) -> None:
    cohort = cohort_of(mode, env={"id": "probe/Recall-v0"}, agent=UNREAL)
    begin(cohort, blocks=8)
    while not cohort.advance():
        pass
    cohort.load(1, cohort.save(0))
    begin(cohort, 1)
    for state in [cohort._state] if mode == "inline" else [w._state for w in workers(cohort)]:
        assert state.running["replay.is_reset_step"][1].all()
        assert not state.running["replay.is_reset_step"][0].all()
    cohort.close()
