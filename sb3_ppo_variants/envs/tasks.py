"""The humanoid that runs straight ahead: what the robot is asked to do, and how a step is paid."""

from collections.abc import Sequence
from math import atan2, hypot, inf, isfinite, pi
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle
from numpy.typing import ArrayLike, NDArray

from sb3_ppo_variants.arguments import require, require_choice
from sb3_ppo_variants.envs import rewards
from sb3_ppo_variants.envs.bullet import CONTROL_PERIOD, RESTITUTION, World, has_display
from sb3_ppo_variants.envs.humanoid import (
    ACTION_SIZE,
    MIRROR_SYMMETRY,
    OBSERVATION_LIMIT,
    OBSERVATION_SIZE,
    Humanoid,
)
from sb3_ppo_variants.envs.rendering import RENDERERS, Camera, load_egl, require_egl

MOTOR_COST_SCALE = 4.25
"""17 motors, of which 4 do the walking: Roboschool's reason to charge the humanoid 17/4 of its usual cost."""
ACTION_LIMIT = 1e6
"""Largest Euclidean norm of an action; the electricity cost squares it, and must stay finite. Ours."""


class StartPose(NamedTuple):
    """How the torso starts an episode: height in m, pitch and yaw in rad."""

    height: float
    pitch: float
    yaw: float


class RoboschoolHumanoid(gym.Env[NDArray[np.float32], NDArray[np.float32]], EzPickle):
    """`RoboschoolHumanoid-v1` and `-v0`: run toward a target a kilometre ahead without falling.

    **Observation**: shape (44,), float32, in ±5; see `Humanoid.observation`. The two foot flags are those
    of the end of the step before, as Roboschool's were.

    **Action**: shape (17,), a torque for each motor as a share of its strength. Values beyond ±1 are
    accepted: the torque is clipped, the electricity cost is not.

    **Reward**: alive + progress + electricity + joints at limit + feet collision. `info` carries each as
    `reward_alive`, `reward_progress`, `reward_electricity`, `reward_joints_at_limit` and
    `reward_feet_collision`; summed in this order they are the reward exactly.

    **Termination**: the torso is at or below `minimum_height`, or the simulation is no longer finite (that
    step pays `fall_penalty` alone). The 1000-step limit of the registered id is gymnasium's truncation.

    Defaults are Roboschool's of July 2017 (v1); what v0, of May 2017, has otherwise is in the register table
    (`sb3_ppo_variants.envs.TASKS`). Costs are at or below zero.

    :param render_mode: None, "rgb_array" (frames of `width` × `height`) or "human" (a window; needs a display).
    :param alive_bonus: reward of a step on which the torso is above `minimum_height`.
    :param fall_penalty: reward of the step on which it is not, which ends the episode; at or below zero.
    :param minimum_height: torso height under which the robot has fallen, m.
    :param progress_weight: reward per m/s of approach to the target.
    :param electricity_cost: per unit of mean |action · joint speed| (in 10 rad/s).
    :param stall_torque_cost: per unit of mean squared action.
    :param joints_at_limit_cost: per hinge within 0.5 % of its range from a limit.
    :param feet_collision_cost: per foot that touches anything but the floor.
    :param power: common factor of the motors' powers.
    :param initial_height: torso height at reset, m.
    :param yaw_range: the yaw at reset is uniform within ± this, rad.
    :param joint_range: every hinge's angle at reset is uniform within ± this, rad.
    :param restitution: of all that touches; of two that meet, the product counts. Roboschool's Bullet had 0.5,
        PyBullet has 0 by default.
    :param target: (x, y) to run to, m. Assigning the attribute of this name turns the robot to another one; the
        next step's progress is toward that.
    :param width: of a rendered frame, pixels.
    :param height: of a rendered frame, pixels.
    :param renderer: of frames: "tiny" (CPU, works everywhere) or "egl" (OpenGL without a display, for a GPU).
    :raises ValueError: an argument is out of its range, or an action is not 17 finite numbers; in the second
        case the simulation is untouched, and the episode goes on.
    :raises RuntimeError: `render_mode="human"` without a display, or frames by "egl" without a driver.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        # What works here: gymnasium's checker opens every mode that it finds listed.
        "render_modes": [*(["human"] if has_display() else []), "rgb_array"],
        "render_fps": round(1.0 / CONTROL_PERIOD),
    }
    REWARD_TERMS: ClassVar[tuple[str, ...]] = (
        "reward_alive",
        "reward_progress",
        "reward_electricity",
        "reward_joints_at_limit",
        "reward_feet_collision",
    )
    """The reward's terms in a step's `info`, in the order in which they are summed."""
    mirror_symmetry: ClassVar[dict[str, tuple[list[int], list[int]]]] = MIRROR_SYMMETRY
    """What left and right are to observations and actions; see `MIRROR_SYMMETRY`."""

    def __init__(
        self,
        *,
        render_mode: str | None = None,
        alive_bonus: float = 2.0,
        fall_penalty: float = -1.0,
        minimum_height: float = 0.78,
        progress_weight: float = 1.0,
        electricity_cost: float = MOTOR_COST_SCALE * -2.0,
        stall_torque_cost: float = MOTOR_COST_SCALE * -0.1,
        joints_at_limit_cost: float = -0.2,
        feet_collision_cost: float = -1.0,
        power: float = 0.41,
        initial_height: float = 1.4,
        yaw_range: float = pi / 16.0,
        joint_range: float = 0.1,
        restitution: float = RESTITUTION,
        target: tuple[float, float] = (1000.0, 0.0),
        width: int = 640,
        height: int = 480,
        renderer: str = "tiny",
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        EzPickle.__init__(self, **arguments)  # a copy is made from these, with a simulation of its own
        require_choice("render_mode", render_mode, (None, "human", "rgb_array"))
        require("width", width, "an integer >= 1", lambda value: value >= 1, integer=True)
        require("height", height, "an integer >= 1", lambda value: value >= 1, integer=True)
        require_choice("renderer", renderer, RENDERERS)
        self.render_mode = render_mode
        self._renderer = renderer
        self.alive_bonus = checked_number("alive_bonus", alive_bonus)
        self.fall_penalty = checked_number("fall_penalty", fall_penalty, high=0.0)
        self.minimum_height = checked_number("minimum_height", minimum_height, low=0.0)
        self.progress_weight = checked_number("progress_weight", progress_weight, low=0.0)
        self.electricity_cost = checked_number("electricity_cost", electricity_cost, high=0.0)
        self.stall_torque_cost = checked_number("stall_torque_cost", stall_torque_cost, high=0.0)
        self.joints_at_limit_cost = checked_number("joints_at_limit_cost", joints_at_limit_cost, high=0.0)
        self.feet_collision_cost = checked_number("feet_collision_cost", feet_collision_cost, high=0.0)
        self.power = checked_number("power", power, low=0.0)
        self.initial_height = checked_number("initial_height", initial_height, low=0.0)
        self.yaw_range = checked_number("yaw_range", yaw_range, low=0.0)
        self.joint_range = checked_number("joint_range", joint_range, low=0.0)
        self.restitution = checked_number("restitution", restitution, low=0.0, high=1.0)
        self._target = checked_pair("target", target, "(x, y)")

        self.observation_space = spaces.Box(-OBSERVATION_LIMIT, OBSERVATION_LIMIT, (OBSERVATION_SIZE,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (ACTION_SIZE,), np.float32)
        self._frame_size = (width, height)
        self._distance = self._potential = 0.0
        self._open()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode. With a seed, it is the same episode in a fresh and in a used environment.

        :return: The observation, shape (44,), and an `info` without reward terms.
        """
        super().reset(seed=seed)
        if self._broken:
            # What is not finite spreads through Bullet's memory: nothing less than a new world removes it.
            self._world.close()
            self._open()
        self._world.forget()
        joints = self.np_random.uniform(-self.joint_range, self.joint_range, ACTION_SIZE).tolist()
        pose = self._start_pose()
        self.robot.place(joints, pose.height, pose.pitch, pose.yaw)
        self.robot.read()
        self._set_up()
        observation = self._observe()
        self._mark()
        if self.render_mode == "human":
            self.render()
        return observation, self._situation()

    def step(self, action: ArrayLike) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Advance by one control step of 16.5 ms.

        :param action: shape (17,), finite.
        :return: Observation, reward, terminated, truncated (never by itself), and the reward's terms.
        :raises ValueError: the action is not 17 finite numbers; nothing has moved then.
        """
        checked = _checked_action(action)
        self.robot.act(checked)
        self._world.step()
        self.robot.read()
        observation = self._observe()
        if self._is_finite():
            self.robot.read_contacts()
            terms = self._reward_terms(checked)
            terminated = self._has_fallen()
        else:
            self._broken = terminated = True
            observation = np.nan_to_num(observation)
            terms = {**dict.fromkeys(self.REWARD_TERMS, 0.0), "reward_alive": self.fall_penalty}
        reward = 0.0
        for term in terms.values():  # one after the other: from Python 3.12 on, sum() rounds otherwise
            reward += term
        if self.render_mode == "human":
            self.render()
        return observation, reward, terminated, False, {**terms, **self._situation()}

    def render(self) -> NDArray[np.uint8] | None:
        """The present frame, shape (height, width, 3), uint8, for "rgb_array"; otherwise None."""
        if self._camera is None:
            gym.logger.warn('render() shows nothing without render_mode="rgb_array" or "human".')
            return None
        if self.render_mode == "human":
            self._camera.show(self._flag())
            return None
        return self._camera.frame(self._flag())

    def close(self) -> None:
        """Free the simulation; closing twice is harmless."""
        self._world.close()

    @property
    def client(self) -> int:
        """PyBullet's number for this environment's client, for looking into the simulation."""
        return self._world.client

    @property
    def target(self) -> tuple[float, float]:
        """(x, y) of the point to run to, m."""
        return self._target

    @target.setter
    def target(self, target: tuple[float, float]) -> None:
        self._target = checked_pair("target", target, "(x, y)")
        # No progress comes from this: the next step counts from here, toward the new target.
        self._measure()
        self._mark()

    def _open(self) -> None:
        by_egl = self.render_mode == "rgb_array" and self._renderer == "egl"
        if by_egl:
            require_egl()
        self._world = World(self.render_mode == "human", self.restitution)
        if by_egl:
            load_egl(self._world.client)
        self.robot = Humanoid(self._world, self.power)
        self._furnish()
        self._camera = None
        if self.render_mode is not None:
            self._camera = Camera(self._world, self.robot.body, *self._frame_size, self._renderer)
        self._broken = False

    def _start_pose(self) -> StartPose:
        return StartPose(self.initial_height, 0.0, self.np_random.uniform(-self.yaw_range, self.yaw_range))

    def _furnish(self) -> None:
        """What a task adds to a new world, beside the robot: nothing here."""

    def _set_up(self) -> None:
        """What a task starts an episode with, once the robot is in place: nothing here."""

    def _situation(self) -> dict[str, Any]:
        """What a task tells in `info` beside the reward's terms: nothing here."""
        return {}

    def _flag(self) -> tuple[float, float] | None:
        """Where a picture shows a flag: nowhere here."""
        return None

    def _measure(self) -> float:
        """Refresh the distance to the target from the latest readings; returns the target's bearing, rad."""
        dx = self._target[0] - self.robot.mean_x
        dy = self._target[1] - self.robot.mean_y
        self._distance = hypot(dx, dy)
        return atan2(dy, dx)

    def _observe(self) -> NDArray[np.float32]:
        """The observation of the latest readings; refreshes the distance to the target."""
        return self.robot.observation(self._measure())

    def _mark(self) -> None:
        """Let the next step's progress count from here."""
        self._potential = rewards.potential(self._distance, CONTROL_PERIOD)

    def _progress(self) -> float:
        """Change of the potential since the last mark, m/s; sets the next one."""
        before = self._potential
        self._mark()
        return self._potential - before

    def _is_finite(self) -> bool:
        return isfinite(self._distance) and self.robot.is_finite()

    def _has_fallen(self) -> bool:
        return self.robot.torso_height <= self.minimum_height

    def _alive_reward(self) -> float:
        return self.fall_penalty if self._has_fallen() else self.alive_bonus

    def _electricity_price(self) -> float:
        return self.electricity_cost

    def _reward_terms(self, action: Sequence[float]) -> dict[str, float]:
        robot = self.robot
        return {
            "reward_alive": self._alive_reward(),
            "reward_progress": self.progress_weight * self._progress(),
            "reward_electricity": rewards.electricity(
                action, robot.joint_speed, self._electricity_price(), self.stall_torque_cost
            ),
            "reward_joints_at_limit": rewards.joints_at_limit(robot.joint_position, self.joints_at_limit_cost),
            "reward_feet_collision": rewards.feet_collision(robot.feet_colliding, self.feet_collision_cost),
        }


def _checked_action(action: ArrayLike) -> list[float]:
    try:
        array = np.asarray(action)
    except ValueError as error:
        raise ValueError(f"action must have shape ({ACTION_SIZE},), got lists of unequal length") from error
    if array.shape != (ACTION_SIZE,):
        raise ValueError(f"action must have shape ({ACTION_SIZE},), got {array.shape}")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"action must be finite numbers; got an array of {array.dtype}: {action!r}")
    values: list[float] = (array if array.dtype.char in "fd" else array.astype(np.float64)).tolist()
    # NaN compares false with the limit.
    if not hypot(*values) <= ACTION_LIMIT:
        raise ValueError(f"action must be finite numbers of at most {ACTION_LIMIT:g} together; got {values}")
    return values


def checked_number(name: str, value: float, low: float = -inf, high: float = inf) -> float:
    """``value`` as a float, or a ValueError that names the argument and its range."""
    bounds = [f" >= {low:g}" if low > -inf else "", f" <= {high:g}" if high < inf else ""]
    require(
        name, value, "a finite number" + " and".join(filter(None, bounds)), lambda v: isfinite(v) and low <= v <= high
    )
    return float(value)


def checked_pair(name: str, value: Any, meaning: str, low: float = -inf) -> tuple[float, float]:
    """``value`` as two floats, or a ValueError that names the argument and what it means."""
    if not (isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) and len(value) == 2):
        raise ValueError(f"{name} must be two finite numbers {meaning}; got {value!r}")
    return checked_number(name, value[0], low), checked_number(name, value[1], low)
