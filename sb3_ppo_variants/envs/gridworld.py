"""A grid world small enough to follow every step of by hand: the first task of a course, and a quick check."""

from functools import cache
from math import isfinite
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle
from numpy.typing import NDArray

from sb3_ppo_variants.arguments import require, require_choice

Cell = tuple[int, int]
"""(row, column), both 0–4, from the top left."""

SIZE = 5
START: Cell = (0, 0)
GOAL: Cell = (2, 2)
OBSTACLES: tuple[Cell, ...] = ((1, 2), (2, 1))
MOVES: tuple[Cell, ...] = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""What each action adds to (row, column): 0 up, 1 down, 2 left, 3 right."""

CELL_PIXELS = 64
"""Width of a drawn cell; with it a frame's width is a multiple of 16, as video codecs want it."""
GRID_LINE, FLOOR = (176, 180, 186), (250, 250, 248)
GOAL_FLOOR, GOAL_MARK = (214, 240, 218), (30, 140, 70)
OBSTACLE_FLOOR, OBSTACLE_MARK = (250, 218, 214), (204, 55, 45)
AGENT_MARK = (35, 90, 200)
"""Colours of a frame: red, green, blue, 0–255."""


class GridWorld(gym.Env[np.int64, np.int64], EzPickle):
    """`GridWorld-v0`: from the corner of a 5 × 5 grid to its centre, around two obstacles.

    Source: the grid world of the DevFest 2017 code lab. The agent starts at (0, 0); the goal is (2, 2), the
    obstacles are (1, 2) and (2, 1). Nothing is random. The best return is 1, by a detour of six steps
    such as (0, 1), (0, 2), (0, 3), (1, 3), (2, 3), (2, 2); the shortest ways, of four, lead through an obstacle.

    **Observation**: the number of the agent's cell, 5 · row + column, in `Discrete(25)`; SB3's `MlpPolicy` sees it
    one-hot encoded.

    **Action**: `Discrete(4)`: 0 up, 1 down, 2 left, 3 right. A move into the wall leaves the agent where it is.

    **Reward**: `goal_reward` on the goal, `obstacle_reward` for each step that ends on an obstacle, else 0. `info`
    carries the agent's cell as `cell`, (row, column).

    **Termination**: the goal; an obstacle ends nothing. The 100-step limit of the registered id is gymnasium's
    truncation.

    :param render_mode: None, "ansi" (five lines of text) or "rgb_array" (frames of 320 × 320 pixels).
    :param goal_reward: reward of the step onto the goal, finite.
    :param obstacle_reward: reward of a step that ends on an obstacle, finite.
    :raises ValueError: an argument is out of its range, or an action is none of 0–3; in the second case the agent
        stays, and the episode goes on.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # type: ignore[misc]

    def __init__(
        self, *, render_mode: str | None = None, goal_reward: float = 1.0, obstacle_reward: float = -1.0
    ) -> None:
        EzPickle.__init__(self, render_mode=render_mode, goal_reward=goal_reward, obstacle_reward=obstacle_reward)
        require_choice("render_mode", render_mode, (None, "ansi", "rgb_array"))
        require("goal_reward", goal_reward, "a finite number", isfinite)
        require("obstacle_reward", obstacle_reward, "a finite number", isfinite)
        self.render_mode = render_mode
        self.goal_reward = float(goal_reward)
        self.obstacle_reward = float(obstacle_reward)
        self.observation_space = spaces.Discrete(SIZE * SIZE)
        self.action_space = spaces.Discrete(len(MOVES))
        self.cell = START

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """Put the agent at (0, 0); every episode starts there, whatever the seed.

        :return: The observation, and `cell`.
        """
        super().reset(seed=seed)
        self.cell = START
        return self._observe(), {"cell": self.cell}

    def step(self, action: np.int64 | int) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Move by one cell, or stay where the wall is.

        :param action: 0 up, 1 down, 2 left, 3 right.
        :return: Observation, reward, terminated, truncated (never by itself), and `cell`.
        :raises ValueError: the action is none of these; nothing has moved then.
        """
        if not self.action_space.contains(action):
            raise ValueError(f"action must be 0 (up), 1 (down), 2 (left) or 3 (right); got {action!r}")
        down, right = MOVES[int(action)]
        row, column = self.cell
        self.cell = (min(max(row + down, 0), SIZE - 1), min(max(column + right, 0), SIZE - 1))
        at_goal = self.cell == GOAL
        reward = self.goal_reward if at_goal else self.obstacle_reward if self.cell in OBSTACLES else 0.0
        return self._observe(), reward, at_goal, False, {"cell": self.cell}

    def render(self) -> str | NDArray[np.uint8] | None:
        """The present state.

        :return: For "ansi" five lines, with `A` for the agent, `X` for an obstacle, `G` for the goal and `.` for a
            free cell; for "rgb_array" a frame of shape (320, 320, 3), uint8: the agent is a blue disc, obstacles are
            red triangles, the goal is a green ring; otherwise None.
        """
        if self.render_mode == "ansi":
            return _text(self.cell)
        if self.render_mode == "rgb_array":
            return _frame(self.cell)
        gym.logger.warn('render() shows nothing without render_mode="ansi" or "rgb_array".')
        return None

    def _observe(self) -> np.int64:
        row, column = self.cell
        return np.int64(SIZE * row + column)


def _text(agent: Cell) -> str:
    signs = {GOAL: "G", **dict.fromkeys(OBSTACLES, "X"), agent: "A"}
    return "".join("".join(signs.get((row, column), ".") for column in range(SIZE)) + "\n" for row in range(SIZE))


def _frame(agent: Cell) -> NDArray[np.uint8]:
    """The grid with the agent in a cell, shape (320, 320, 3)."""
    rows = []
    for row in range(SIZE):
        cells = [(row, column) for column in range(SIZE)]
        rows.append(np.hstack([_picture(cell == GOAL, cell in OBSTACLES, cell == agent) for cell in cells]))
    return np.vstack(rows)


@cache
def _picture(is_goal: bool, is_obstacle: bool, has_agent: bool) -> NDArray[np.uint8]:
    """One cell with what is in it, shape (64, 64, 3): a line of two pixels runs between neighbours."""
    # Four samples per pixel and axis, at x and y in ±1 of the cell; their mean draws smooth edges.
    y, x = (np.mgrid[0 : 4 * CELL_PIXELS, 0 : 4 * CELL_PIXELS] + 0.5) / (2 * CELL_PIXELS) - 1.0
    radius = np.hypot(x, y)
    picture = np.full((*x.shape, 3), GRID_LINE, np.float32)
    inside = np.maximum(abs(x), abs(y)) < 1.0 - 2.0 / CELL_PIXELS
    picture[inside] = FLOOR
    if is_goal:
        picture[inside] = GOAL_FLOOR
        picture[(radius > 0.66) & (radius < 0.84)] = GOAL_MARK
    elif is_obstacle:
        picture[inside] = OBSTACLE_FLOOR
        picture[(y < 0.6) & (y > 2.0 * abs(x) - 0.8)] = OBSTACLE_MARK
    if has_agent:
        picture[radius < 0.54] = (255, 255, 255)  # a rim, so that the disc stands out from an obstacle
        picture[radius < 0.48] = AGENT_MARK
    samples = picture.reshape(CELL_PIXELS, 4, CELL_PIXELS, 4, 3)
    return samples.mean(axis=(1, 3)).round().astype(np.uint8)
