"""The grid world: every transition and reward by its table, the pictures by their pixels, and the usual checks."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from sb3_ppo_variants.envs import register_envs
from sb3_ppo_variants.envs.gridworld import GridWorld

ENV_ID = "GridWorld-v0"
ROOT = Path(__file__).parents[2]
UP, DOWN, LEFT, RIGHT = range(4)
CELLS = [(row, column) for row in range(5) for column in range(5)]
REWARDS = {(2, 2): 1.0, (1, 2): -1.0, (2, 1): -1.0}
DETOUR = (RIGHT, RIGHT, RIGHT, DOWN, DOWN, LEFT)
BLUE, RED, GREEN, WHITE = (35, 90, 200), (204, 55, 45), (30, 140, 70), (250, 250, 248)


def placed(cell: tuple[int, int], **kwargs: Any) -> GridWorld:
    """The grid world with the agent walked to a cell, the goal aside, along the top row and down the column."""
    env = GridWorld(**kwargs)
    env.reset(seed=0)
    for action in [RIGHT] * cell[1] + [DOWN] * cell[0]:
        env.step(action)
    assert env.cell == cell
    return env


def frame_at(cell: tuple[int, int]) -> NDArray[np.uint8]:
    frame = placed(cell, render_mode="rgb_array").render()
    assert isinstance(frame, np.ndarray)
    return frame


def test_registered_with_its_limits() -> None:
    register_envs()
    spec = gym.spec(ENV_ID)
    assert (spec.max_episode_steps, spec.reward_threshold) == (100, 0.95)
    with gym.make(f"sb3_ppo_variants:{ENV_ID}") as env:
        assert env.observation_space == gym.spaces.Discrete(25)
        assert env.action_space == gym.spaces.Discrete(4)
        assert isinstance(env.unwrapped, GridWorld)


def test_checkers_find_nothing_to_warn_of() -> None:
    for mode in ("ansi", "rgb_array"):
        with gym.make(ENV_ID, render_mode=mode) as env:
            gymnasium_check_env(env.unwrapped)
            sb3_check_env(env.unwrapped)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_every_episode_starts_in_the_corner(seed: int | None) -> None:
    env = GridWorld()
    env.step(RIGHT)
    assert env.reset(seed=seed) == (0, {"cell": (0, 0)})


@pytest.mark.parametrize("action", range(4))
@pytest.mark.parametrize("cell", CELLS)
def test_every_transition(cell: tuple[int, int], action: int) -> None:
    row, column = cell
    target = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)][action]
    if target not in CELLS:  # the wall
        target = cell
    observation, reward, terminated, truncated, info = placed(cell).step(action)
    assert observation == 5 * target[0] + target[1]
    assert reward == REWARDS.get(target, 0.0)
    assert terminated == (target == (2, 2))
    assert not truncated
    assert info == {"cell": target}


def test_staying_on_an_obstacle_is_impossible_but_returning_to_it_costs_again() -> None:
    env = placed((1, 2))
    assert [env.step(action)[1] for action in (UP, DOWN, UP, DOWN)] == [0.0, -1.0, 0.0, -1.0]


def test_the_detour_earns_one_and_the_shortest_way_nothing() -> None:
    for actions, expected in ((DETOUR, 1.0), ((RIGHT, RIGHT, DOWN, DOWN), 0.0), ((DOWN, DOWN, RIGHT, RIGHT), 0.0)):
        env = GridWorld()
        env.reset(seed=0)
        steps = [env.step(action) for action in actions]
        assert sum(step[1] for step in steps) == expected
        assert [step[2] for step in steps] == [False] * (len(actions) - 1) + [True]


def test_rewards_are_keywords() -> None:
    env = placed((1, 1), goal_reward=7, obstacle_reward=-0.25)
    assert [env.step(action)[1] for action in (RIGHT, DOWN)] == [-0.25, 7.0]


def test_time_limit_truncates_at_step_100() -> None:
    with gym.make(ENV_ID) as env:
        env.reset(seed=0)
        ends = [env.step(UP)[2:4] for _ in range(100)]
    assert ends == [(False, False)] * 99 + [(False, True)]


@pytest.mark.parametrize("action", [-1, 4, 1.0, None, np.array([1])])
def test_what_is_no_action_is_refused_and_nothing_moves(action: Any) -> None:
    env = placed((3, 1))
    with pytest.raises(ValueError, match=r"action must be 0 \(up\), 1 \(down\), 2 \(left\) or 3 \(right\); got"):
        env.step(action)
    assert env.cell == (3, 1)


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("render_mode", "human", "render_mode must be one of None, 'ansi', 'rgb_array'; got 'human'"),
        ("goal_reward", float("nan"), "goal_reward must be a finite number; got nan"),
        ("obstacle_reward", float("-inf"), "obstacle_reward must be a finite number; got -inf"),
        ("obstacle_reward", "none", "obstacle_reward must be a finite number; got 'none'"),
    ],
)
def test_keyword_out_of_range_is_named(keyword: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GridWorld(**{keyword: value})


def test_same_actions_same_episode() -> None:
    actions = np.random.default_rng(0).integers(4, size=300)
    first, second = GridWorld(), GridWorld()
    first.reset(seed=1)
    second.reset(seed=2)
    assert [first.step(action) for action in actions] == [second.step(action) for action in actions]


# ------------------------------------------------------------------ pictures


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ((0, 0), "A....\n..X..\n.XG..\n.....\n.....\n"),
        ((1, 2), ".....\n..A..\n.XG..\n.....\n.....\n"),
        ((2, 2), ".....\n..X..\n.XA..\n.....\n.....\n"),
        ((4, 3), ".....\n..X..\n.XG..\n.....\n...A.\n"),
    ],
)
def test_text(cell: tuple[int, int], expected: str) -> None:
    assert placed(cell, render_mode="ansi").render() == expected


@pytest.mark.parametrize("agent", CELLS)
def test_frame_shows_every_cell_for_what_it_is(agent: tuple[int, int]) -> None:
    frame = frame_at(agent)
    assert (frame.shape, frame.dtype) == ((320, 320, 3), np.uint8)
    for row, column in CELLS:
        # The middle of each cell, 64 pixels wide: the agent, a triangle, the inside of the ring, or the floor.
        middle = tuple(frame[64 * row + 32, 64 * column + 32].tolist())
        free = {(1, 2): RED, (2, 1): RED, (2, 2): (214, 240, 218)}.get((row, column), WHITE)
        assert middle == (BLUE if (row, column) == agent else free)
    # Where the agent stands, what is under it still shows: the ring's rim and the triangle's foot.
    assert tuple(frame[128 + 32, 128 + 8]) == GREEN
    assert tuple(frame[64 + 49, 128 + 16]) == RED
    assert tuple(frame[128 + 49, 64 + 16]) == RED


def test_lines_run_between_the_cells() -> None:
    frame = frame_at((0, 0))
    lines = [pixel for pixel in range(320) if pixel % 64 in (0, 63)]
    assert (frame[lines] == (176, 180, 186)).all()
    assert (frame[:, lines] == (176, 180, 186)).all()
    assert (frame == (176, 180, 186)).all(axis=2).mean() < 0.07  # 1 − (62/64)²


def test_a_frame_is_the_callers_own() -> None:
    env = placed((0, 0), render_mode="rgb_array")
    frame = env.render()
    assert isinstance(frame, np.ndarray)
    before = frame.copy()
    frame[:] = 0
    np.testing.assert_array_equal(env.render(), before)


def test_render_without_a_mode_says_so() -> None:
    env = GridWorld()
    env.reset()
    with pytest.warns(UserWarning, match=r"render\(\) shows nothing without render_mode"):
        assert env.render() is None


# ------------------------------------------------------------------ copies and imports


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_has_the_same_settings(copied: Any) -> None:
    env = copied(GridWorld(render_mode="ansi", goal_reward=3.0, obstacle_reward=-2.0))
    assert (env.render_mode, env.goal_reward, env.obstacle_reward) == ("ansi", 3.0, -2.0)
    env.reset(seed=0)
    assert [env.step(action)[1] for action in DETOUR] == [0.0] * 5 + [3.0]


def test_needs_neither_pybullet_nor_torch_nor_sb3() -> None:
    code = (
        "import sys, gymnasium\n"
        f"env = gymnasium.make('sb3_ppo_variants:{ENV_ID}', render_mode='rgb_array')\n"
        "env.reset(seed=0); env.step(env.action_space.sample()); env.render()\n"
        "print([name for name in ('pybullet', 'torch', 'stable_baselines3', 'pygame') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert output.stdout.strip() == "[]"
