"""The humanoid that runs from flag to flag, and the one that must also get up and stand being hit.

Source of every constant and rule: Roboschool, `gym_humanoid_flagrun.py` of July 2017 (v1) and of May 2017 (v0).
"""

import inspect
from collections import deque
from collections.abc import Sequence
from functools import partial
from math import cos, hypot, inf, isclose, pi, sin
from operator import le
from typing import Any, ClassVar

import numpy as np
from gymnasium.utils import EzPickle
from numpy.typing import ArrayLike, NDArray

from sb3_ppo_variants.arguments import extend_signature, require
from sb3_ppo_variants.envs import rewards
from sb3_ppo_variants.envs.bullet import IDENTITY
from sb3_ppo_variants.envs.tasks import (
    MOTOR_COST_SCALE,
    RoboschoolHumanoid,
    StartPose,
    checked_number,
    checked_pair,
)

POSES = ("walk", "stand_up", "roll_over")
"""The start poses of the harder task: upright, face down, face up."""
CUBE_START = (-1.5, 0.0, 0.05)
"""Where the cube lies until it is thrown, m."""


class RoboschoolHumanoidFlagrun(RoboschoolHumanoid):
    """`RoboschoolHumanoidFlagrun-v1` and `-v0`: run to a flag; once there, or when time is up, to the next one.

    Observation, action and termination are those of `RoboschoolHumanoid`, whose keywords this task takes as well,
    but for `target`: that is the flag. In the step that brings a new flag the observation is already about the new
    one and the progress is 0. Starting an episode takes one step off its first flag's time.

    `info` tells, after a reset as well, `target` (the flag's (x, y), m), `flag` (how many flags the
    episode has had before this one) and `flags_reached` (how many of those the robot reached in time).

    :param flag_range: a flag's x and y are uniform within ± these, m.
    :param straight_probability: share of the episodes whose first flag is straight ahead.
    :param straight_range: such a flag's x is uniform between these, m; its y is 0.
    :param flag_radius: a flag is reached within this distance, m.
    :param flag_timeout: steps until the next flag comes in any case.
    :param electricity_cost: as in `RoboschoolHumanoid`; half of its default, "for more athletic running".
    :param humanoid: the other keywords of `RoboschoolHumanoid`.
    :raises ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        flag_range: tuple[float, float] = (13.125, 6.25),
        straight_probability: float = 0.5,
        straight_range: tuple[float, float] = (13.125, 26.25),
        flag_radius: float = 1.0,
        flag_timeout: int = 150,
        electricity_cost: float = MOTOR_COST_SCALE * -2.0 / 2.0,
        **humanoid: Any,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "humanoid", "__class__")}
        self.flag_range = checked_pair("flag_range", flag_range, "(x, y) >= 0", low=0.0)
        self.straight_probability = checked_number("straight_probability", straight_probability, low=0.0, high=1.0)
        self.straight_range = _checked_range("straight_range", straight_range)
        self.flag_radius = checked_number("flag_radius", flag_radius, low=0.0)
        require("flag_timeout", flag_timeout, "an integer >= 1", lambda value: value >= 1, integer=True)
        self.flag_timeout = int(flag_timeout)
        self._steps_left = self._flags = self._flags_reached = 0
        super().__init__(target=(0.0, 0.0), electricity_cost=electricity_cost, **humanoid)
        EzPickle.__init__(self, **arguments, **humanoid)

    def _set_up(self) -> None:
        super()._set_up()
        self._flags = self._flags_reached = 0
        if self.np_random.random() < self.straight_probability:
            self._plant(self.np_random.uniform(*self.straight_range), 0.0)
        else:
            self._plant_anywhere()

    def _situation(self) -> dict[str, Any]:
        return {"target": self.target, "flag": self._flags, "flags_reached": self._flags_reached}

    def _flag(self) -> tuple[float, float] | None:
        return self.target

    def _observe(self) -> NDArray[np.float32]:
        observation = super()._observe()
        self._steps_left -= 1
        reached = self._distance < self.flag_radius
        if reached or self._steps_left <= 0:
            self._flags += 1
            self._flags_reached += reached
            self._plant_anywhere()
            observation = super()._observe()
        return observation

    def _plant_anywhere(self) -> None:
        x, y = self.flag_range
        self._plant(self.np_random.uniform(-x, x), self.np_random.uniform(-y, y))

    def _plant(self, x: float, y: float) -> None:
        self.target = (x, y)
        self._steps_left = self.flag_timeout


class RoboschoolHumanoidFlagrunHarder(RoboschoolHumanoidFlagrun):
    """`RoboschoolHumanoidFlagrunHarder-v1` and `-v0`: `RoboschoolHumanoidFlagrun`, from the ground up, under fire.

    An episode starts in one of three poses: "walk" (upright), "stand_up" (face down) or "roll_over" (face up).
    From time to time a cube is thrown at the robot while it is up. It may fall if it gets up again in time.

    **Reward**: a sixth term, `reward_posture`, pays the change of the robot's uprightness, so getting up pays and
    falling costs; `reward_alive` grows from `lying_bonus` to `alive_bonus` with the same uprightness. A step that
    begins and ends with the torso under `minimum_height` makes no progress: crawling earns nothing. The step that
    brings a new flag has neither progress nor a change of posture.

    **Termination**: `ground_limit` steps on the ground (each step above `minimum_height` makes up for one below), or,
    with `walk_ends_on_fall`, any step below for an episode that began upright. Such a step's `reward_alive`
    is `fall_penalty`.

    `info` also tells `pose`, the start pose of the episode.

    The next pose is drawn by how often it succeeded lately, where success is an episode of `success_steps` steps:
    with n episodes remembered, the weight is 1 − successes / (1 + n). The memory belongs to this environment:
    `reset(seed=...)` clears it, `reset()` keeps it, and a copy starts without. An episode that is
    cut short from outside is not remembered.

    :param pose_probabilities: of walk, stand_up and roll_over; None draws by success as above.
    :param curriculum_memory: episodes remembered of each pose.
    :param success_steps: steps after which an episode has succeeded; the time limit of the registered ids.
    :param walk_ends_on_fall: an episode that began upright ends as soon as the robot is on the ground.
    :param minimum_height: torso height under which the robot is on the ground, m.
    :param ground_limit: steps on the ground that end an episode.
    :param stand_up_height: torso height at reset, face down, m; upright it is `initial_height`.
    :param stand_up_pitch: pitch at reset, face down, rad.
    :param roll_over_height: torso height at reset, face up, m.
    :param roll_over_pitch: pitch at reset, face up, rad.
    :param alive_bonus: reward of an upright step.
    :param lying_bonus: reward of a step flat on the floor; in between it is in proportion.
    :param posture_weight: reward for getting up all the way, per unit of `alive_bonus` − `lying_bonus`.
    :param posture_height: mean height of torso and pelvis from which on the robot is upright, m.
    :param posture_pelvis_share: the pelvis's weight in that mean; the rest is the torso's.
    :param electricity_cost: as in `RoboschoolHumanoid`, of a step above `minimum_height`. Not scaled by 17/4:
        Roboschool's own slip, and part of the task.
    :param lying_electricity_cost: the same of a step on the ground.
    :param cube_edge: m.
    :param cube_mass: kg.
    :param cube_inertia: about each axis, kg·m².
    :param cube_friction: its lateral friction, which is multiplied with that of what it touches, 0.8.
    :param throw_period: the cube flies in every so-many-th step, counted from 0, while no steps on the ground are
        to be made up for; 0 for never.
    :param throw_after: and not before this step has passed.
    :param throw_distance: horizontal distance of the throw from where it is aimed, at a uniform angle, m.
    :param throw_height: height of the throw above where it is aimed, m.
    :param throw_speed: the speed is uniform between these, m/s. It is aimed at where the torso will be
        after `throw_distance` at that speed.
    :param throw_spread: added to each component of the velocity, uniform within ± this, m/s.
    :param flagrun: the other keywords of `RoboschoolHumanoidFlagrun`.
    :raises ValueError: an argument is out of its range.
    """

    REWARD_TERMS: ClassVar[tuple[str, ...]] = (*RoboschoolHumanoidFlagrun.REWARD_TERMS, "reward_posture")

    def __init__(
        self,
        *,
        pose_probabilities: tuple[float, float, float] | None = None,
        curriculum_memory: int = 10,
        success_steps: int = 1000,
        walk_ends_on_fall: bool = True,
        minimum_height: float = 0.8,
        ground_limit: int = 170,
        stand_up_height: float = 0.45,
        stand_up_pitch: float = pi / 2.0,
        roll_over_height: float = 0.22,
        roll_over_pitch: float = pi * 3.0 / 2.0 - 0.15,
        lying_bonus: float = 0.5,
        posture_weight: float = 100.0,
        posture_height: float = 0.7,
        posture_pelvis_share: float = 0.3,
        electricity_cost: float = -2.0 / 2.0,
        lying_electricity_cost: float = -2.0 / 5.0,
        cube_edge: float = 0.1,
        cube_mass: float = 1.2,
        cube_inertia: float = 0.002,
        cube_friction: float = 0.8,
        throw_period: int = 30,
        throw_after: int = 100,
        throw_distance: float = 4.0,
        throw_height: float = 1.0,
        throw_speed: tuple[float, float] = (20.0, 30.0),
        throw_spread: float = 1.0,
        **flagrun: Any,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "flagrun", "__class__")}
        _check_counts(
            curriculum_memory=(curriculum_memory, 1),
            success_steps=(success_steps, 1),
            ground_limit=(ground_limit, 1),
            throw_period=(throw_period, 0),
            throw_after=(throw_after, 0),
        )
        self.pose_probabilities = _checked_probabilities(pose_probabilities)
        self.curriculum = Curriculum(len(POSES), int(curriculum_memory))
        self.success_steps = int(success_steps)
        self.walk_ends_on_fall = bool(walk_ends_on_fall)
        self.ground_limit = int(ground_limit)
        self.stand_up_height = checked_number("stand_up_height", stand_up_height, low=0.0)
        self.stand_up_pitch = checked_number("stand_up_pitch", stand_up_pitch)
        self.roll_over_height = checked_number("roll_over_height", roll_over_height, low=0.0)
        self.roll_over_pitch = checked_number("roll_over_pitch", roll_over_pitch)
        self.lying_bonus = checked_number("lying_bonus", lying_bonus)
        self.posture_weight = checked_number("posture_weight", posture_weight, low=0.0)
        self.posture_height = _positive("posture_height", posture_height)
        self.posture_pelvis_share = checked_number("posture_pelvis_share", posture_pelvis_share, low=0.0, high=1.0)
        self.lying_electricity_cost = checked_number("lying_electricity_cost", lying_electricity_cost, high=0.0)
        self.cube_edge = _positive("cube_edge", cube_edge)
        self.cube_mass = _positive("cube_mass", cube_mass)
        self.cube_inertia = _positive("cube_inertia", cube_inertia)
        self.cube_friction = checked_number("cube_friction", cube_friction, low=0.0)
        self.throw_period = int(throw_period)
        self.throw_after = int(throw_after)
        self.throw_distance = _positive("throw_distance", throw_distance)
        self.throw_height = checked_number("throw_height", throw_height, low=0.0)
        self.throw_speed = _checked_range("throw_speed", throw_speed)
        _positive("throw_speed", self.throw_speed[0])
        self.throw_spread = checked_number("throw_spread", throw_spread, low=0.0)
        self._pose = self._steps = self._ground_steps = 0
        self._bonus = 0.0
        self._was_lying = self._remembered = False
        super().__init__(minimum_height=minimum_height, electricity_cost=electricity_cost, **flagrun)
        EzPickle.__init__(self, **arguments, **flagrun)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode. A seed also clears the memory that the start poses are drawn by.

        :return: The observation, shape (44,), and an `info` without reward terms.
        """
        if seed is not None:
            self.curriculum.forget()
        return super().reset(seed=seed, options=options)

    def step(self, action: ArrayLike) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Advance by one control step of 16.5 ms; see `RoboschoolHumanoid.step`."""
        result = super().step(action)
        self._steps += 1
        has_succeeded = self._steps >= self.success_steps
        if not self._remembered and (result[2] or has_succeeded):
            self._remembered = True
            self.curriculum.remember(self._pose, has_succeeded)
        return result

    def get_resume_state(self) -> list[list[bool]]:
        """The memory that the start poses are drawn by, for a resume bundle."""
        return self.curriculum.outcomes()

    def set_resume_state(self, state: list[list[bool]]) -> None:
        """The reverse of :meth:`get_resume_state`."""
        self.curriculum.restore(state)

    def _furnish(self) -> None:
        self._cube = self._world.add_cube(self.cube_edge, self.cube_mass, self.cube_inertia, self.cube_friction)

    def _start_pose(self) -> StartPose:
        weights = self.curriculum.weights() if self.pose_probabilities is None else self.pose_probabilities
        point = self.np_random.random() * sum(weights)
        self._pose = min(int(np.searchsorted(np.cumsum(weights), point, side="right")), len(POSES) - 1)
        upright = super()._start_pose()
        if POSES[self._pose] == "stand_up":
            return StartPose(self.stand_up_height, self.stand_up_pitch, upright.yaw)
        if POSES[self._pose] == "roll_over":
            return StartPose(self.roll_over_height, self.roll_over_pitch, upright.yaw)
        return upright

    def _set_up(self) -> None:
        super()._set_up()
        self._cube.place((), CUBE_START, IDENTITY)
        self._steps = self._ground_steps = 0
        self._remembered = False

    def _situation(self) -> dict[str, Any]:
        return {**super()._situation(), "pose": POSES[self._pose]}

    def _is_lying(self) -> bool:
        return self.robot.torso_height < self.minimum_height

    def _has_fallen(self) -> bool:
        return self._ground_steps >= self.ground_limit

    def _standing_bonus(self) -> float:
        upright = rewards.uprightness(
            self.robot.torso_height, self.robot.pelvis_height, self.posture_pelvis_share, self.posture_height
        )
        return self.lying_bonus + (self.alive_bonus - self.lying_bonus) * upright

    def _alive_reward(self) -> float:
        return self.fall_penalty if self._has_fallen() else self._standing_bonus()

    def _electricity_price(self) -> float:
        return self.lying_electricity_cost if self._is_lying() else self.electricity_cost

    def _mark(self) -> None:
        super()._mark()
        self._bonus = self._standing_bonus()
        self._was_lying = self._is_lying()

    def _progress(self) -> float:
        was_lying = self._was_lying
        progress = super()._progress()
        return 0.0 if was_lying and self._was_lying else progress

    def _reward_terms(self, action: Sequence[float]) -> dict[str, float]:
        is_due = self.throw_period > 0 and self._steps % self.throw_period == 0 and self._steps > self.throw_after
        if is_due and self._ground_steps == 0:
            self._throw()
        self._count_ground_steps()
        bonus = self._bonus
        terms = super()._reward_terms(action)
        terms["reward_posture"] = self.posture_weight * (self._bonus - bonus)
        return terms

    def _count_ground_steps(self) -> None:
        if not self._is_lying():
            self._ground_steps = max(self._ground_steps - 1, 0)
        elif self.walk_ends_on_fall and POSES[self._pose] == "walk":
            self._ground_steps = self.ground_limit
        else:
            self._ground_steps += 1

    def _throw(self) -> None:
        angle = self.np_random.uniform(-pi, pi)
        speed = self.np_random.uniform(*self.throw_speed)
        spread = self.np_random.uniform(-self.throw_spread, self.throw_spread, 3)
        torso = (self.robot.mean_x, self.robot.mean_y, self.robot.torso_height)
        away = (self.throw_distance * cos(angle), self.throw_distance * sin(angle), self.throw_height)
        flight, reach = self.throw_distance / speed, hypot(self.throw_distance, self.throw_height)
        start = [p + v * flight + a for p, v, a in zip(torso, self.robot.torso_velocity, away, strict=True)]
        velocity = [s - a * speed / reach for s, a in zip(spread.tolist(), away, strict=True)]
        self._cube.place((), start, IDENTITY, velocity)


class Curriculum:
    """Weights for drawing the next of several tasks: the more, the less often its last episodes succeeded.

    :param tasks: how many there are, numbered from 0.
    :param memory: episodes remembered of each.
    """

    def __init__(self, tasks: int, memory: int) -> None:
        self._episodes: list[deque[bool]] = [deque(maxlen=memory) for _ in range(tasks)]

    def weights(self) -> list[float]:
        """1 − successes / (1 + episodes) of each task: above zero whatever happens."""
        return [1.0 - sum(episodes) / (1.0 + len(episodes)) for episodes in self._episodes]

    def remember(self, task: int, success: bool) -> None:
        """Add the outcome of an episode; the oldest remembered one of its task makes room."""
        self._episodes[task].append(success)

    def outcomes(self) -> list[list[bool]]:
        """Whether the remembered episodes of each task succeeded, the oldest first."""
        return [list(episodes) for episodes in self._episodes]

    def restore(self, outcomes: list[list[bool]]) -> None:
        """Remember what :meth:`outcomes` told.

        :raises ValueError: if it is of another number of tasks.
        """
        if len(outcomes) != len(self._episodes):
            raise ValueError(f"outcomes must be of {len(self._episodes)} tasks; got {len(outcomes)}")
        for episodes, remembered in zip(self._episodes, outcomes, strict=True):
            episodes.clear()
            episodes.extend(remembered)

    def forget(self) -> None:
        """Empty the memory."""
        for episodes in self._episodes:
            episodes.clear()


def _check_counts(**counts: tuple[int, int]) -> None:
    for name, (value, low) in counts.items():
        require(name, value, f"an integer >= {low}", partial(le, low), integer=True)


def _positive(name: str, value: float) -> float:
    require(name, value, "a finite number > 0", lambda number: 0.0 < number < inf)
    return float(value)


def _checked_range(name: str, value: Sequence[float]) -> tuple[float, float]:
    low, high = checked_pair(name, value, "(smallest, largest)")
    if low > high:
        raise ValueError(f"{name} must be two finite numbers (smallest, largest); got {value!r}")
    return low, high


def _checked_probabilities(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    is_triple = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) and len(value) == len(POSES)
    if is_triple:
        for probability in value:
            checked_number("pose_probabilities", probability, low=0.0, high=1.0)
    if not (is_triple and isclose(sum(value), 1.0)):
        raise ValueError(f"pose_probabilities must be None or {len(POSES)} numbers that sum to 1; got {value!r}")
    return tuple(float(probability) for probability in value)


def _show_keywords(task: type[RoboschoolHumanoid]) -> None:
    """Let the signature list the keywords that a task hands on to the one it extends, but for `target`."""
    signature = extend_signature(inspect.signature(task.__bases__[0]), task.__init__)
    keywords = [parameter for parameter in signature.parameters.values() if parameter.name != "target"]
    task.__signature__ = signature.replace(parameters=keywords)  # type: ignore[attr-defined]


_show_keywords(RoboschoolHumanoidFlagrun)
_show_keywords(RoboschoolHumanoidFlagrunHarder)
