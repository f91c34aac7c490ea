"""Mazes that are seen only near by, so that memory pays; importing envs registers them as `maze/Foraging-v0`.

They stand in for the first-person mazes of DeepMind Lab, at a cost that a laptop can pay.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left
GOAL = (0, 255, 0)


class Foraging(gymnasium.Env[Picture, Any]):
    """A goal lies at one place of a maze for a whole episode; reaching it pays 1 and puts one somewhere at random.

    Maze, goal and starts are drawn anew every episode, which is cut after `length` steps. A wall's color says where
    it is. Who wanders about comes upon the goal by chance; who remembers where it lies goes there.

    Args:
        size: cells along a side, odd; every other one may be a wall.
        view: cells seen along a side, odd, with oneself in the middle.
        pixels: of a cell, along a side.
        length: steps of an episode.
        loops: share of the inner walls that are taken out of a maze that has none to spare.
    """

    def __init__(self, size: int = 9, view: int = 5, pixels: int = 8, length: int = 200, loops: float = 0.3) -> None:
        side = view * pixels
        self.observation_space = Box(0, 255, (side, side, 3), np.uint8)
        self.action_space = Discrete(len(MOVES))
        self._size, self._view, self._pixels, self._length, self._loops = size, view, pixels, length, loops
        self.walls = np.ones((size, size), np.bool_)
        self.goal = self.at = (0, 0)
        self._painted = np.zeros((size, size, 3), np.uint8)
        self._t = 0

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As gymnasium.Env.reset."""
        super().reset(seed=seed)
        self._t = 0
        self._dig()
        self.goal = self._somewhere()
        self._paint()
        self.at = self._elsewhere()
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As gymnasium.Env.step."""
        self._t += 1
        down, right = MOVES[int(action)]
        there = self.at[0] + down, self.at[1] + right
        if not self.walls[there]:  # the outermost cells are walls, so it is inside
            self.at = there
        reached = self.at == self.goal
        if reached:
            self.at = self._elsewhere()
        return self._seen(), float(reached), False, self._t >= self._length, {}

    def _dig(self) -> None:
        """A random spanning tree over the cells of odd coordinates, and a few passages more."""
        self.walls[:] = True
        path, inner = [(1, 1)], range(1, self._size - 1)
        self.walls[1, 1] = False
        while path:
            y, x = path[-1]
            ways = [(dy, dx) for dy, dx in MOVES if y + 2 * dy in inner and x + 2 * dx in inner]
            ways = [(dy, dx) for dy, dx in ways if self.walls[y + 2 * dy, x + 2 * dx]]
            if not ways:
                path.pop()
                continue
            dy, dx = ways[self.np_random.integers(len(ways))]
            self.walls[y + dy, x + dx] = self.walls[y + 2 * dy, x + 2 * dx] = False
            path.append((y + 2 * dy, x + 2 * dx))
        between = np.add.outer(np.arange(self._size), np.arange(self._size)) % 2 == 1
        between[[0, -1]] = between[:, [0, -1]] = False
        self.walls[between & (self.np_random.random(self.walls.shape) < self._loops)] = False

    def _paint(self) -> None:
        """The whole maze, a pixel per cell, with a margin of walls to look into."""
        margin = self._view // 2
        rows = np.arange(-margin, self._size + margin).clip(0, self._size - 1)
        shade = 40 + 200 * rows // self._size
        colors = np.stack([*np.meshgrid(shade, shade, indexing="ij"), np.full((len(rows),) * 2, 160)], -1)
        walls = np.pad(self.walls, margin, constant_values=True)
        self._painted = np.where(walls[..., None], colors, 0).astype(np.uint8)
        self._painted[self.goal[0] + margin, self.goal[1] + margin] = GOAL

    def _seen(self) -> Picture:
        y, x = self.at
        near = self._painted[y : y + self._view, x : x + self._view]
        return near.repeat(self._pixels, 0).repeat(self._pixels, 1)

    def _somewhere(self) -> tuple[int, int]:
        free = np.argwhere(~self.walls)
        y, x = free[self.np_random.integers(len(free))]
        return int(y), int(x)

    def _elsewhere(self) -> tuple[int, int]:
        """Not at the goal."""
        while (place := self._somewhere()) == self.goal:
            pass
        return place


gymnasium.register("maze/Foraging-v0", "pbtrl.envs.maze:Foraging")
