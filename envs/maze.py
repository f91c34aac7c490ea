"""Mazes with a limited view, in which memory helps; importing envs registers them as `maze/Foraging-v0`.

They are a substitute for the first-person mazes of DeepMind Lab that is cheap enough for a laptop.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from typing_extensions import override

Picture = NDArray[np.uint8]
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left
GOAL = (0, 255, 0)
AGENT = (255, 255, 255)


class Foraging(gymnasium.Env[Picture, Any]):
    """Maze with a goal that stays in place for an episode; reaching it pays 1 and moves the agent to a random cell.

    Every episode has a new random maze, goal and start, and is truncated after `length` steps. The color of a wall
    encodes its position. Without memory an agent finds the goal by chance only; with memory it can return to it.

    Args:
        size: cells along a side of the maze, odd and at least 5; every other cell may be a wall.
        view: cells along a side of the view, odd, with the agent in the center.
        pixels: pixels along a side of a cell.
        length: steps per episode.
        loops: fraction of the inner walls that is removed from a maze without loops.
        render_mode: `rgb_array` for pictures of the whole maze.

    Raises:
        ValueError: size or view is even, or too small.
    """

    metadata = {  # noqa: RUF012, as gymnasium declares it
        "render_modes": ["rgb_array"],
        "render_fps": 8,
    }

    def __init__(
        self, size: int = 9, view: int = 5, pixels: int = 8, length: int = 200, loops: float = 0.3,
        render_mode: str | None = None,
    ) -> None:  # fmt: skip
        for name, cells, least in (("size", size, 5), ("view", view, 1)):
            if cells < least or cells % 2 == 0:
                raise ValueError(f"{name} must be odd and at least {least}, not {cells}")
        self.render_mode = render_mode
        side = view * pixels
        self.observation_space = Box(0, 255, (side, side, 3), np.uint8)
        self.action_space = Discrete(len(MOVES))
        self._size, self._view, self._pixels, self._length, self._loops = size, view, pixels, length, loops
        self.walls = np.ones((size, size), np.bool_)
        self.goal = self.at = (0, 0)
        self._painted = np.zeros((size, size, 3), np.uint8)
        self._t = 0

    @override
    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode in a new maze."""
        super().reset(seed=seed)
        self._t = 0
        self._dig()
        self.goal = self._somewhere()
        self._paint()
        self.at = self._elsewhere()
        return self._seen(), {}

    @override
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move by one cell, unless there is a wall."""
        self._t += 1
        down, right = MOVES[int(action)]
        there = self.at[0] + down, self.at[1] + right
        if not self.walls[there]:  # never out of bounds, because the outermost cells are walls
            self.at = there
        reached = self.at == self.goal
        if reached:
            self.at = self._elsewhere()
        return self._seen(), float(reached), False, self._t >= self._length, {}

    @override
    def render(self) -> Any:
        """Return a picture of the whole maze with the agent in white; None without a render mode."""
        if self.render_mode is None:
            return None
        margin = self._view // 2
        picture = self._painted[margin : margin + self._size, margin : margin + self._size].copy()
        picture[self.at] = AGENT
        return picture.repeat(self._pixels, 0).repeat(self._pixels, 1)

    def _dig(self) -> None:
        """Dig a random spanning tree over the cells with odd coordinates, then remove some more walls."""
        self.walls[:] = True
        path, inner = [(1, 1)], range(1, self._size - 1)
        self.walls[1, 1] = False
        while path:
            y, x = path[-1]
            moves = [(dy, dx) for dy, dx in MOVES if y + 2 * dy in inner and x + 2 * dx in inner]
            moves = [(dy, dx) for dy, dx in moves if self.walls[y + 2 * dy, x + 2 * dx]]
            if not moves:
                path.pop()
                continue
            dy, dx = moves[self.np_random.integers(len(moves))]
            self.walls[y + dy, x + dx] = self.walls[y + 2 * dy, x + 2 * dx] = False
            path.append((y + 2 * dy, x + 2 * dx))
        between = np.add.outer(np.arange(self._size), np.arange(self._size)) % 2 == 1
        between[[0, -1]] = between[:, [0, -1]] = False
        self.walls[between & (self.np_random.random(self.walls.shape) < self._loops)] = False

    def _paint(self) -> None:
        """Paint the whole maze with one pixel per cell, and a margin of walls for views at the edge."""
        margin = self._view // 2
        rows = np.arange(-margin, self._size + margin).clip(0, self._size - 1)
        shade = 40 + 200 * rows // self._size
        colors = np.stack([*np.meshgrid(shade, shade, indexing="ij"), np.full((len(rows),) * 2, 160)], -1)
        walls = np.pad(self.walls, margin, constant_values=True)
        self._painted = np.where(walls[..., None], colors, 0).astype(np.uint8)
        self._painted[self.goal[0] + margin, self.goal[1] + margin] = GOAL

    def _seen(self) -> Picture:
        y, x = self.at
        view = self._painted[y : y + self._view, x : x + self._view]
        return view.repeat(self._pixels, 0).repeat(self._pixels, 1)

    def _somewhere(self) -> tuple[int, int]:
        free = np.argwhere(~self.walls)
        y, x = free[self.np_random.integers(len(free))]
        return int(y), int(x)

    def _elsewhere(self) -> tuple[int, int]:
        """Draw a free cell other than the goal."""
        while (place := self._somewhere()) == self.goal:
            pass
        return place


gymnasium.register("maze/Foraging-v0", "pbtrl.envs.maze:Foraging")
