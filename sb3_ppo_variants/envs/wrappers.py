"""Wrappers of the humanoid tasks, for training."""

from dataclasses import dataclass
from math import atan2, cos, inf, pi, sin
from numbers import Real
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from sb3_ppo_variants.arguments import require, shown
from sb3_ppo_variants.envs.flagrun import POSES, RoboschoolHumanoidFlagrun, RoboschoolHumanoidFlagrunHarder
from sb3_ppo_variants.envs.humanoid import MOTORS
from sb3_ppo_variants.envs.tasks import RoboschoolHumanoid, checked_number, checked_pair

Observation = NDArray[np.float32]

_RIGHT_HIP, _LEFT_HIP = (list(MOTORS).index(f"{side}_hip_y") for side in ("right", "left"))
LONGEST_STRIDE = 1.0
"""Difference of the hips beyond which a longer stride earns no more, in halves of a hip's range (70°)."""


class EpisodePerFlag(gym.Wrapper[Observation, Observation, Observation, Observation], RecordConstructorArgs):
    """Ends a training episode of flagrun with each flag; the next one goes on where the robot is, with the next flag.

    Where the next flag comes is chance, and worth much: without the errors of the steps that bring one, the variance of
    an agent's advantages is smaller by some two thirds (`benchmarks/flag_changes.py`). With this wrapper a flag's last
    step is truncated, as by a time limit, with the observation that it would have had without the next flag, so that an
    algorithm credits it with γ V of that one. It is to a flag what SB3's ``EpisodicLifeEnv`` is to a life in an Atari
    game. What comes after the flag is then left out of what a step is credited with, reaching it included.

    Everything else is the task's: the robot falls, and the time limit is reached, after as many steps as without, and
    the observations between the ends are the same, so that an agent needs no wrapper to play. SB3's ``Monitor`` between
    task and wrapper, where ``make_vec_env`` puts it, counts whole episodes. A training that is resumed from a bundle
    starts the task anew, as without the wrapper.

    :param env: a flagrun task, whose observations no other wrapper changes.
    :raises ValueError: if it is none.
    """

    def __init__(self, env: gym.Env[Observation, Observation]) -> None:
        _require_flagrun(env, "EpisodePerFlag")
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._goes_on: tuple[Observation, dict[str, Any]] | None = None
        self._terms: tuple[str, ...] = env.unwrapped.REWARD_TERMS  # type: ignore[attr-defined]
        self._flag = 0
        self._target = (0.0, 0.0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """After a flag's last step, go on from there; otherwise, and with a seed or options, start the task anew.

        :return: The observation, shape (44,), and the task's `info`.
        """
        goes_on, self._goes_on = self._goes_on, None
        if goes_on is None or seed is not None or options is not None:
            goes_on = self.env.reset(seed=seed, options=options)
        self._read(goes_on[1])
        return goes_on

    def step(self, action: Observation) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """As the task's; the last step of a flag is truncated."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        flag, target = self._flag, self._target
        self._read(info)
        if self._flag != flag and not terminated:
            if not truncated:
                self._goes_on = observation, {name: told for name, told in info.items() if name not in self._terms}
                truncated = True
            robot = self.unwrapped.robot  # type: ignore[attr-defined]  # the constructor has seen it
            observation = robot.observation(atan2(target[1] - robot.mean_y, target[0] - robot.mean_x))
        return observation, float(reward), terminated, truncated, info

    def _read(self, info: dict[str, Any]) -> None:
        self._flag, self._target = info["flag"], info["target"]


class StrideReward(gym.Wrapper[Observation, Observation, Observation, Observation], RecordConstructorArgs):
    """Adds to a humanoid's reward in training: for hips that swing against each other, against hips near their limits.

    The first gait that training finds without it runs with both thighs as far back as they go and trips along from
    shank and pelvis (`docs/agents.md`). At a limit a hip's torque moves nothing, so that neither noise nor gradient
    leads out. With q the position of a hip's swing forward and backward (`hip_y`, its limits ±1), a step that is not a
    fall earns

    - `bonus` · min(|q_right − q_left|, 1), but only for `patience` steps from the start and from each time that the
      other leg comes forward, by more than `threshold`: standing with one leg forward earns nothing for long;
    - `limit_cost` · (|q| − `limit_start`) / (1 − `limit_start`) for each hip beyond `limit_start`.

    The sum is in `info` as `reward_stride`, after the task's own terms. Observations and ends of episodes are the
    task's, so that an agent needs no wrapper to play; SB3's ``Monitor`` between task and wrapper, where
    ``make_vec_env`` puts it, and with it ``EvalCallback``, tells the task's own return. It is reward shaping, and moves
    the optimum: train without it in the end.

    :param env: a humanoid task.
    :param bonus: per step and half of a hip's range; at or above zero.
    :param threshold: difference of the hips from which a leg counts as the one in front; above zero.
    :param patience: steps that a leg may stay in front; at least 1.
    :param limit_start: position from which `limit_cost` rises, 0 to 1 (1 excluded).
    :param limit_cost: of a step with one hip at its limit; at or below zero.
    :raises ValueError: `env` is no humanoid task, or an argument is out of its range.
    """

    def __init__(
        self,
        env: gym.Env[Observation, Observation],
        bonus: float = 1.0,
        threshold: float = 0.3,
        patience: int = 40,
        limit_start: float = 0.6,
        limit_cost: float = -0.5,
    ) -> None:
        _require_humanoid(env)
        require("threshold", threshold, "a finite number > 0", lambda value: 0 < value < inf)
        require("patience", patience, "an integer >= 1", lambda value: value >= 1, integer=True)
        require("limit_start", limit_start, "a number >= 0 and < 1", lambda value: 0 <= value < 1)
        RecordConstructorArgs.__init__(
            self,
            bonus=bonus,
            threshold=threshold,
            patience=patience,
            limit_start=limit_start,
            limit_cost=limit_cost,
        )
        super().__init__(env)
        self._task: RoboschoolHumanoid = env.unwrapped  # type: ignore[assignment]
        self._bonus = checked_number("bonus", bonus, low=0.0)
        self._threshold = threshold
        self._patience = patience
        self._limit_start = limit_start
        self._limit_cost = checked_number("limit_cost", limit_cost, high=0.0)
        self._right_leads: bool | None = None
        self._age = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """As the task's; no leg is in front yet."""
        self._right_leads, self._age = None, 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Observation) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """As the task's, with the reward's addition."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        added = 0.0 if terminated else self._added()
        return observation, float(reward) + added, terminated, truncated, {**info, "reward_stride": added}

    def _added(self) -> float:
        positions = self._task.robot.joint_position
        right, left = positions[_RIGHT_HIP], positions[_LEFT_HIP]
        # A larger position is further back.
        stride = abs(right - left)
        self._age += 1
        if stride > self._threshold and (right < left) != self._right_leads:
            self._right_leads, self._age = right < left, 0
        beyond = sum(max(0.0, abs(q) - self._limit_start) for q in (right, left))
        added = self._limit_cost * beyond / (1.0 - self._limit_start)
        if self._age < self._patience:
            added += self._bonus * min(stride, LONGEST_STRIDE)
        return added


class FlagCurriculum(gym.Wrapper[Observation, Observation, Observation, Observation], RecordConstructorArgs):
    """Plants flagrun's flags in front of the robot at first, and further to its sides and back as it learns to turn.

    A humanoid that runs straight ahead falls at its first sharp turn, and learns little from it. Here each flag
    lies in a direction that is uniform within ± an angle of the torso's yaw. The angle begins with `start` and
    widens by `widen` with each flag that the robot faces when it reaches it or time is up; it narrows by `narrow`,
    down to `start`, with each flag that it does not face then, and with a fall. It settles where narrow / (widen +
    narrow) of the flags are faced. While it is π, the flags are the task's own.

    A step's `info` has the present angle, as `flag_angle`. `reset(seed=...)` begins with `start` again; `reset()` keeps
    the angle. A training that is resumed from a bundle goes on with that of the beginning of the episode under way,
    unless its `start` is larger by now. Rewards, ends of episodes and all else are the task's: an agent plays without
    the wrapper.

    :param env: a flagrun task, not yet in an EpisodePerFlag, which goes outside.
    :param start: the angle at first, rad, above 0 and up to π.
    :param widen: rad per flag faced; above zero.
    :param narrow: rad per flag not faced, or fall; at or above zero.
    :param facing: the robot faces a flag less than this from its yaw, rad, above 0 and up to π.
    :param distance: of a flag from the robot's mean position, uniform between these, m.
    :raises ValueError: `env` is no flagrun task or in the wrong wrapper, or an argument is out of its range.
    """

    def __init__(
        self,
        env: gym.Env[Observation, Observation],
        start: float = 0.5,
        widen: float = 0.04,
        narrow: float = 0.02,
        facing: float = 0.5,
        distance: tuple[float, float] = (4.0, 13.0),
    ) -> None:
        _require_flagrun(env, "FlagCurriculum")
        _require_whole_episodes(env, "FlagCurriculum")
        for name, angle in (("start", start), ("facing", facing)):
            require(name, angle, "a number > 0 and <= π", lambda value: 0 < value <= pi)
        require("widen", widen, "a finite number > 0", lambda value: 0 < value < inf)
        RecordConstructorArgs.__init__(self, start=start, widen=widen, narrow=narrow, facing=facing, distance=distance)
        super().__init__(env)
        self._task: RoboschoolHumanoidFlagrun = env.unwrapped  # type: ignore[assignment]
        self._start = self._angle = float(start)
        self._widen = widen
        self._narrow = checked_number("narrow", narrow, low=0.0)
        self._facing = facing
        self._distance = checked_pair("distance", distance, "(nearest, farthest) >= 0", low=0.0)
        if self._distance[0] > self._distance[1]:
            raise ValueError(f"distance must be two numbers 0 <= nearest <= farthest; got {shown(distance)}")
        self._flag = 0
        self._target = (0.0, 0.0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """As the task's, with a flag in front."""
        if seed is not None:
            self._angle = self._start
        observation, info = self.env.reset(seed=seed, options=options)
        return self._plant(observation, info)

    def step(self, action: Observation) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """As the task's; a new flag lies in front."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        over = info["flag"] != self._flag
        if terminated or over:
            self._learn(not terminated and self._faced())
        if over and not terminated:
            observation, info = self._plant(observation, info)
        return observation, float(reward), terminated, truncated, {**info, "flag_angle": self._angle}

    def get_resume_state(self) -> float:
        """The angle, for a resume bundle."""
        return self._angle

    def set_resume_state(self, state: float) -> None:
        """The reverse of :meth:`get_resume_state`."""
        self._angle = max(state, self._start)

    def _faced(self) -> bool:
        robot = self._task.robot
        x, y = self._target
        return cos(atan2(y - robot.mean_y, x - robot.mean_x) - robot.yaw) > cos(self._facing)

    def _learn(self, success: bool) -> None:
        angle = self._angle + (self._widen if success else -self._narrow)
        self._angle = min(max(angle, self._start), pi)

    def _plant(self, observation: Observation, info: dict[str, Any]) -> tuple[Observation, dict[str, Any]]:
        task, robot = self._task, self._task.robot
        if self._angle < pi:
            turn = task.np_random.uniform(-self._angle, self._angle)
            distance = task.np_random.uniform(*self._distance)
            bearing = robot.yaw + turn
            task.target = (robot.mean_x + distance * cos(bearing), robot.mean_y + distance * sin(bearing))
            observation = observation.copy()
            observation[1:3] = sin(turn), cos(turn)
            info = {**info, "target": task.target}
        self._flag, self._target = info["flag"], task.target
        return observation, info


class LiftCurriculum(gym.Wrapper[Observation, Observation, Observation, Observation], RecordConstructorArgs):
    """Pulls a robot that starts on the ground up by its torso at first, and less and less as it learns to get up.

    The pull is upward, at the torso's centre of mass, in episodes that begin on the ground: a share of the robot's
    weight where the torso is no higher than `minimum_height`, below which the task counts it as lying, less above, and
    nothing from `fade` above that on. Either start pose has a share of its own, which begins with `start`. It sinks by
    `weaken`, down to zero, with each episode in which the robot gets up, which is to have its torso above `up_height`
    for `up_steps` successive steps; it grows by `strengthen`, up to `start`, with each other. It settles where
    strengthen / (weaken + strengthen) of the episodes succeed. (Tao et al. 2022, arXiv:2205.00307, weaken the motors as
    a character learns to get up; Huang et al. 2025, arXiv:2502.08378, pull a humanoid up.)

    With a `bonus`, the episode ends when the robot has got up, as by a fall, and that step earns as much more. So
    getting up is learned by itself, by an agent that need not walk yet. What is inside does not see such an end: a
    ``Monitor`` there tells of the tries that fail alone, and so does the task's memory, by which it draws start poses:
    give the task `pose_probabilities`. HardStarts belongs inside: outside it would take the end for a fall.

    A step's `info` has the start pose's present share, as `lift`; zero in an episode that begins upright.
    `reset(seed=...)` begins with `start` again; `reset()` keeps the shares. A training that is resumed from a bundle
    goes on with those of the beginning of the episode under way, unless its `start` is smaller by now; a try that
    was under way does not count. All else is the task's: an agent plays without the wrapper.

    :param env: a task of FlagrunHarder's, not yet in an EpisodePerFlag, which goes outside.
    :param start: share of the robot's weight at first: of both poses, or (face down, face up); at or above 0.
    :param weaken: per episode in which it gets up; above 0.
    :param strengthen: per episode in which it does not; at or above 0.
    :param up_height: of the torso, m.
    :param up_steps: at least 1.
    :param bonus: reward for getting up, which then ends the episode; None lets it go on.
    :param fade: m, above 0.
    :raises ValueError: `env` is no such task or in the wrong wrapper, or an argument is out of its range.
    """

    def __init__(
        self,
        env: gym.Env[Observation, Observation],
        start: float | tuple[float, float] = 0.9,
        weaken: float = 0.01,
        strengthen: float = 0.003,
        up_height: float = 0.85,
        up_steps: int = 15,
        bonus: float | None = None,
        fade: float = 0.2,
    ) -> None:
        if not isinstance(env.unwrapped, RoboschoolHumanoidFlagrunHarder):
            raise ValueError(f"env must be RoboschoolHumanoidFlagrunHarder-v1 or -v0; got {shown(env)}")
        _require_whole_episodes(env, "LiftCurriculum")
        for name, value in (("weaken", weaken), ("fade", fade)):
            require(name, value, "a finite number > 0", lambda value: 0 < value < inf)
        require("up_steps", up_steps, "an integer >= 1", lambda value: value >= 1, integer=True)
        shares = (start, start) if isinstance(start, Real) else start
        RecordConstructorArgs.__init__(
            self,
            start=start,
            weaken=weaken,
            strengthen=strengthen,
            up_height=up_height,
            up_steps=up_steps,
            bonus=bonus,
            fade=fade,
        )
        super().__init__(env)
        self._task: RoboschoolHumanoidFlagrunHarder = env.unwrapped
        first = checked_pair("start", shares, "(face down, face up) >= 0, or one for both", low=0.0)
        self._start = dict(zip(POSES, (0.0, *first), strict=True))
        self._shares = dict(self._start)
        self._weaken = weaken
        self._strengthen = checked_number("strengthen", strengthen, low=0.0)
        self._up_height = checked_number("up_height", up_height, low=0.0)
        self._up_steps = up_steps
        self._bonus = None if bonus is None else checked_number("bonus", bonus)
        self._fade = fade
        self._pose = POSES[0]
        self._is_open = False
        self._steps_up = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """As the task's."""
        self._learn(False)
        if seed is not None:
            self._shares = dict(self._start)
        observation, info = self.env.reset(seed=seed, options=options)
        self._pose = info["pose"]
        self._is_open = self._pose != POSES[0]
        self._steps_up = 0
        return observation, info

    def step(self, action: Observation) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """As the task's, of a robot that is pulled up; with a bonus, the step in which it has got up is the last."""
        task = self._task
        above = task.robot.torso_height - task.minimum_height
        share = self._shares[self._pose]
        if share and above < self._fade:
            task.robot.lift(share * min(1.0, 1.0 - above / self._fade))
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps_up = self._steps_up + 1 if task.robot.torso_height > self._up_height else 0
        if self._is_open and self._steps_up == self._up_steps:
            self._learn(True)
            if self._bonus is not None and not terminated:
                reward, terminated = float(reward) + self._bonus, True
        elif terminated or truncated:
            self._learn(False)
        return observation, float(reward), terminated, truncated, {**info, "lift": self._shares[self._pose]}

    def get_resume_state(self) -> dict[str, float]:
        """The share of each start pose, for a resume bundle."""
        return dict(self._shares)

    def set_resume_state(self, state: dict[str, float]) -> None:
        """The reverse of :meth:`get_resume_state`."""
        self._shares = {pose: min(share, self._start[pose]) for pose, share in state.items()}

    def _learn(self, success: bool) -> None:
        """Take in how the robot's try ended, once."""
        if self._is_open:
            self._is_open = False
            share = self._shares[self._pose] + (-self._weaken if success else self._strengthen)
            self._shares[self._pose] = min(max(share, 0.0), self._start[self._pose])


@dataclass(eq=False)
class _Start:
    """How an episode began: the task's random generator before it, its falls, and passes since the last of them."""

    generator: Any
    falls: int = 0
    passed: int = 0


class HardStarts(gym.Wrapper[Observation, Observation, Observation, Observation], RecordConstructorArgs):
    """Begins a share of a humanoid's training episodes as those began that soon ended in a fall.

    A trained humanoid falls in its first second or hardly ever, and from the same starts again and again. Trained on
    those more often, it learns more from them. A start that ended in a fall within `within` steps is kept until the
    robot has got through those steps from it `passes` times in a row, or has fallen `tries` times: from some nothing
    saves it. An episode begins with probability `share` with one of those kept, if there are any, otherwise as the
    task's.

    It is for an agent that walks: one that always falls adds starts faster than they are given up. With FlagCurriculum
    inside, a fall from a hard start narrows the angle like any other.

    A start is the state of the task's random generator, and so the robot's joints and heading; flags and poses as far
    as they depend on nothing else. `reset(seed=...)` begins as the task does and forgets all starts; a training that is
    resumed from a bundle has those of the beginning of the episode under way. All else is the task's: an agent plays
    without the wrapper.

    :param env: a humanoid task, not yet in an EpisodePerFlag, which goes outside.
    :param share: of the episodes, above 0 and up to 1.
    :param within: steps in which a fall makes a start hard, at least 1; a shorter episode's end counts as well.
    :param tries: falls after which a start is given up; at least 2.
    :param passes: times in a row that the robot is to get through, at least 1: in a training's noise one may be luck.
    :raises ValueError: `env` is no humanoid task or in the wrong wrapper, or an argument is out of its range.
    """

    def __init__(
        self,
        env: gym.Env[Observation, Observation],
        share: float = 0.5,
        within: int = 60,
        tries: int = 5,
        passes: int = 1,
    ) -> None:
        _require_humanoid(env)
        _require_whole_episodes(env, "HardStarts")
        require("share", share, "a number > 0 and <= 1", lambda value: 0 < value <= 1)
        require("within", within, "an integer >= 1", lambda value: value >= 1, integer=True)
        require("tries", tries, "an integer >= 2", lambda value: value >= 2, integer=True)
        require("passes", passes, "an integer >= 1", lambda value: value >= 1, integer=True)
        RecordConstructorArgs.__init__(self, share=share, within=within, tries=tries, passes=passes)
        super().__init__(env)
        self._share = share
        self._within = within
        self._tries = tries
        self._passes = passes
        self._hard: list[_Start] = []
        self._start: _Start | None = None
        self._goes_on: Any = None
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """As the task's, or once more from a hard start."""
        self._go_on()
        random = self.unwrapped.np_random
        self._start, self._steps = None, 0
        if seed is not None:
            self._hard.clear()
        elif self._hard and random.random() < self._share:
            self._start = self._hard[random.integers(len(self._hard))]
            self._goes_on = random.bit_generator.state
            random.bit_generator.state = self._start.generator
        else:
            self._start = _Start(random.bit_generator.state)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Observation) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """As the task's."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        start = self._start
        if start is not None and self._steps <= self._within:
            if terminated:
                start.falls += 1
                start.passed = 0
                if start.falls == 1:
                    self._hard.append(start)
            elif truncated or self._steps == self._within:
                start.passed += 1
            if start in self._hard and (start.passed == self._passes or start.falls == self._tries):
                self._hard.remove(start)
        if terminated or truncated:
            self._go_on()
        return observation, float(reward), terminated, truncated, info

    def get_resume_state(self) -> dict[str, Any]:
        """The hard starts, and where the task's random generator is to go on, for a resume bundle."""
        return {"hard": [dict(vars(start)) for start in self._hard], "goes_on": self._goes_on}

    def set_resume_state(self, state: dict[str, Any]) -> None:
        """The reverse of :meth:`get_resume_state`."""
        self._hard = [_Start(**start) for start in state["hard"]]
        self._goes_on = state["goes_on"]

    def _go_on(self) -> None:
        """After an episode from a hard start, let the task's random generator go on where it was before."""
        if self._goes_on is not None:
            self.unwrapped.np_random.bit_generator.state, self._goes_on = self._goes_on, None


def _require_whole_episodes(env: gym.Env[Any, Any], name: str) -> None:
    while isinstance(env, gym.Wrapper):
        if isinstance(env, EpisodePerFlag):
            raise ValueError(f"env must have whole episodes: put {name} inside EpisodePerFlag; got {shown(env)}")
        env = env.env


def _require_humanoid(env: gym.Env[Any, Any]) -> None:
    if not isinstance(env.unwrapped, RoboschoolHumanoid):
        raise ValueError(f"env must be a humanoid task, such as RoboschoolHumanoid-v1; got {shown(env)}")


def _require_flagrun(env: gym.Env[Any, Any], name: str) -> None:
    if not isinstance(env.unwrapped, RoboschoolHumanoidFlagrun):
        raise ValueError(f"env must be a flagrun task, such as RoboschoolHumanoidFlagrun-v1; got {shown(env)}")
    if env.observation_space != env.unwrapped.observation_space:
        raise ValueError(f"env must have the task's own observations: put {name} inside other wrappers")
