"""Mazes: distribution and frequency of redraws, and the parts that stay within an episode."""

from collections import Counter

import numpy as np
import pytest

from pbtrl.envs.maze import MOVES, Foraging


def episodes(count, **options):
    """One env after each of several resets, of which only the first is seeded."""
    env = Foraging(**options)
    for i in range(count):
        env.reset(seed=None if i else 0)
        yield env


def test_walls_goal_and_start_are_redrawn_every_episode():
    drawn = [(env.walls.tobytes(), env.goal, env.at) for env in episodes(30)]
    for values in zip(*drawn, strict=True):
        assert len(set(values)) > 15


def test_maze_depends_on_its_seed():
    env, seen = Foraging(), {}
    for seed in (1, 2, 3, 1, 2, 3):
        seen.setdefault(seed, set()).add((env.reset(seed=seed)[0].tobytes(), env.walls.tobytes(), env.goal, env.at))
    assert [len(drawn) for drawn in seen.values()] == [1, 1, 1]
    assert len(set.union(*seen.values())) == 3


def test_goal_and_start_are_uniform_over_free_cells():
    """In a ring of 8 cells; starts are anywhere but at the goal."""
    drawn = [(env.goal, env.at) for env in episodes(900, size=5, loops=1.0)]
    assert all(goal != start for goal, start in drawn)
    ring = sorted((y, x) for y in (1, 2, 3) for x in (1, 2, 3) if (y, x) != (2, 2))
    for places in zip(*drawn, strict=True):
        counts = Counter(places)
        assert sorted(counts) == ring
        assert min(counts.values()) > 0.6 * 900 / 8


def test_goal_stays_and_reaching_it_restarts_elsewhere():
    rng, env = np.random.default_rng(0), next(episodes(1, size=5, loops=1.0, length=3000))
    goal, places = env.goal, Counter()
    for _ in range(2000):
        _, reward, terminated, truncated, _ = env.step(rng.integers(4))
        assert (env.goal, terminated, truncated) == (goal, False, False)
        places[env.at] += int(reward)
    assert len(+places) == 7


@pytest.mark.parametrize("length", [1, 25])
def test_every_episode_has_the_configured_length(length):
    for env in episodes(3, length=length):
        assert [env.step(0)[3] for _ in range(length)] == [False] * (length - 1) + [True]


@pytest.mark.parametrize(("loops", "passages"), [(0.0, 15), (1.0, 24)])
def test_loops_add_passages_to_a_spanning_tree(loops, passages):
    """4 x 4 cells have 24 walls between neighbors; a tree takes 15 of them out."""
    for env in episodes(5, size=9, loops=loops):
        between = [(y, x) for y in range(1, 8) for x in range(1, 8) if (y + x) % 2]
        assert sum(not env.walls[place] for place in between) == passages


def test_wall_color_encodes_its_position():
    env, colors = next(episodes(1, view=3, pixels=1, length=3000)), {}
    for action in np.random.default_rng(0).integers(4, size=2000):
        seen = env.step(action)[0]
        for dy, dx in MOVES:
            place = env.at[0] + dy, env.at[1] + dx
            if env.walls[place]:
                colors.setdefault(place, set()).add(tuple(seen[1 + dy, 1 + dx].tolist()))
    assert len(colors) > 30
    assert all(len(shades) == 1 for shades in colors.values())
    assert len(set.union(*colors.values())) == len(colors)
