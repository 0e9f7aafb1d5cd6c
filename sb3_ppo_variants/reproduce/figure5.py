"""Fig. 5: still frames of the flagrun policy, around the moment when it reaches a flag and the next one appears."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_ppo_variants.agents.folder import Agent, require_agent
from sb3_ppo_variants.agents.scoring import FIRST_SEED
from sb3_ppo_variants.arguments import check_names, require
from sb3_ppo_variants.envs import TASKS as OUR_TASKS
from sb3_ppo_variants.envs.bullet import CONTROL_PERIOD
from sb3_ppo_variants.envs.rendering import POLE_HEIGHT, is_in_view
from sb3_ppo_variants.reproduce import drawing
from sb3_ppo_variants.reproduce.places import OUTPUT
from sb3_ppo_variants.reproduce.tables import number

TASK = "RoboschoolHumanoidFlagrun-v1"
OFFSETS = (-60, -30, -1, 0, 30, 60, 90)
"""the frames' steps, counted from the one in which the next flag appears"""
FRAME_SIZE = 480
"""width and height of a frame, pixels"""
EPISODES = 20
"""that are searched for a turn"""


class Turn(NamedTuple):
    """A flag that is reached, and what comes of the next."""

    seed: int
    step: int
    """in which the next flag appears, from 1"""
    in_view: bool
    """whether the next flag is in the frame when it appears; where it is not, the arrow on the lawn points to it"""


def figure5(
    *,
    task: str = TASK,
    agents: str | Path | None = None,
    episodes: int = EPISODES,
    output: str | Path = OUTPUT,
) -> tuple[Turn, list[Path]]:
    """Draw Fig. 5 with an agent's deterministic policy.

    The turn is the first one whose next flag is in view when it appears, in episodes from the seeds 1000, 1001, …; if
    there is none, the first. It is one that the robot still runs in :data:`OFFSETS` steps.

    :param task: a flagrun task
    :param agents: folder of agents; None: that of those that ship
    :param episodes: that are searched
    :param output: folder for the picture
    :return: the turn, and the files
    :raises ValueError: for a task without flags, where there is no agent, or where it reaches no flag
    """
    check_names("task", [task], [name for name in OUR_TASKS if "Flagrun" in name])
    require("episodes", episodes, "an integer >= 1", lambda value: value >= 1, integer=True)
    agent = require_agent(task, None if agents is None else Path(agents))
    if agent.wrapping:
        raise ValueError(f"{agent.folder} must play the task without wrappers; it has {', '.join(agent.wrapping)}")
    turn = find_turn(agent, episodes)
    frames = _frames(agent, turn)
    return turn, drawing.save(draw(frames, turn), Path(output), "figure5")


def find_turn(agent: Agent, episodes: int) -> Turn:
    """The turn to show: see :func:`figure5`.

    :raises ValueError: if no flag is reached in time for the first and the last frame
    """
    turns: list[Turn] = []
    for seed in range(FIRST_SEED, FIRST_SEED + episodes):
        found = list(_turns(agent, seed))
        turns += found
        for turn in found:
            if turn.in_view:
                return turn
    if not turns:
        raise ValueError(f"{agent.folder} reaches no flag, and runs on, in {episodes} episodes of {agent.env_id}")
    return turns[0]


def _turns(agent: Agent, seed: int) -> Iterator[Turn]:
    """Those of an episode that have all their frames."""
    turns: list[Turn] = []
    step = reached = 0
    for step, (env, info) in enumerate(_steps(agent, seed)):
        if info["flags_reached"] > reached:
            reached = info["flags_reached"]
            (x, y, _), *_ = env.robot.body.read_root()
            in_view = is_in_view((*env.target, 0.5 * POLE_HEIGHT), (x, y), FRAME_SIZE, FRAME_SIZE)
            turns.append(Turn(seed, step, in_view))
    return (turn for turn in turns if turn.step + OFFSETS[0] >= 0 and turn.step + OFFSETS[-1] < step)


def _frames(agent: Agent, turn: Turn) -> list[np.ndarray]:
    """The episode once more, bit for bit, and pictures of it."""
    frames = []
    steps = _steps(agent, turn.seed, render_mode="rgb_array", width=FRAME_SIZE, height=FRAME_SIZE)
    wanted = {turn.step + offset for offset in OFFSETS}
    for step, (env, _) in enumerate(steps):
        if step in wanted:
            frames.append(env.render())
        if len(frames) == len(OFFSETS):
            break
    return frames


def _steps(agent: Agent, seed: int, **env_kwargs: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """An episode's environment and info, after the reset and after each step."""
    from sb3_ppo_variants.export import load_policy

    policy = load_policy(agent.folder, "cpu")
    env: Any = gym.make(agent.env_id, **{**agent.env_kwargs, **env_kwargs})
    with closing(env):
        observation, info = env.reset(seed=seed)
        yield env.unwrapped, info
        over = False
        while not over:
            # A batch of one, as the score's episodes are played.
            actions, _ = policy.predict(observation[None], deterministic=True)
            observation, _, terminated, truncated, info = env.step(actions[0])
            yield env.unwrapped, info
            over = terminated or truncated


def draw(frames: list[np.ndarray], turn: Turn) -> Any:
    """The picture: the frames in a row, with their times from the moment when the next flag appears."""
    figure = drawing.new_figure(1.75 * len(frames), 2.15)
    for place, (offset, frame) in enumerate(zip(OFFSETS, frames, strict=True)):
        axes = figure.add_subplot(1, len(frames), place + 1)
        axes.imshow(frame)
        axes.set_axis_off()
        axes.set_title(f"{number(offset * CONTROL_PERIOD, '+.2f' if offset else '.0f')} s", fontsize=8, pad=3)
    where = "" if turn.in_view else "; it is out of view, where the arrow points"
    title = f"Fig. 5: at 0 s a flag is reached and the next one appears{where} (seed {turn.seed}, step {turn.step})"
    figure.suptitle(title, fontsize=9)
    return figure
