"""Seven of gymnasium's MuJoCo tasks, many environments at a time: what they make of the simulator's states.

Every number is gymnasium's own to the last bit: the same operations in the same order and precision. Costs of actions
are therefore of single precision, as the actions are.

Shapes: ``N`` environments, ``A`` actuators, ``F`` features of an observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

# Gymnasium observes velocities, and the force in InvertedDoublePendulum-v5's slider, within these bounds of zero.
_OBSERVED_BOUND = 10
# Python's own floats can be squared up to here; beyond, they raise an error where NumPy's become infinite.
_LARGEST_SQUARED = 1e100


class Task:
    """Observations, rewards and ends of environments of one class and one model's shape.

    :param envs: unwrapped
    """

    numbers: tuple[str, ...] = ()
    """names of an environment's settings that are numbers, or pairs of them"""
    n_skipped = 0
    """how many positions an environment may leave out of its observations"""

    def __init__(self, envs: Sequence[Any]):
        self._views = [self._read_from(env) for env in envs]
        self._all_views = list(chain.from_iterable(self._views))
        n_read = sum(len(view) for view in self._views[0])
        self._state = np.zeros((len(envs), n_read))
        self._flat_state = self._state.reshape(-1)
        n_positions, n_velocities = envs[0].model.nq, envs[0].model.nv
        self._positions = self._state[:, :n_positions]
        self._velocities = self._state[:, n_positions : n_positions + n_velocities]
        self._others = self._state[:, n_positions + n_velocities :]
        self._skipped = _skipped(envs[0], self.n_skipped)

    def read(self) -> None:
        """Read all states."""
        np.concatenate(self._all_views, out=self._flat_state)

    def read_one(self, number: int) -> None:
        """Read one environment's state."""
        np.concatenate(self._views[number], out=self._state[number])

    def after_step(self, actions: np.ndarray, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read the states that a step has led to.

        :param actions: of that step, ``(N, A)``
        :param observations: written to, ``(N, F)``
        :return: rewards, and whether the episodes have ended other than by a time limit, ``(N,)`` each
        """
        self.read()
        self._observe(observations)
        return self._judge(actions)

    def _read_from(self, env: Any) -> list[np.ndarray]:
        """Views of what is read: positions, velocities, and what else the task needs, ``(n,)`` each."""
        return [env.data.qpos, env.data.qvel]

    def _observe(self, observations: np.ndarray) -> None:
        n_positions = self._positions.shape[1] - self._skipped
        observations[:, :n_positions] = self._positions[:, self._skipped :]
        observations[:, n_positions:] = self._velocities

    def _judge(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError


class Swimmer(Task):
    """Swimmer-v5: pays for speed and takes for large actions; never ends."""

    numbers: tuple[str, ...] = ("_forward_reward_weight", "_ctrl_cost_weight")
    n_skipped = 2

    def __init__(self, envs: Sequence[Any]):
        super().__init__(envs)
        self._seconds = np.array([env.dt for env in envs])
        self._forward_weight = _column(envs, "_forward_reward_weight")
        self._cost_weight = _cost_weights(envs, "_ctrl_cost_weight")
        self._never = np.zeros(len(envs), dtype=bool)

    def after_step(self, actions: np.ndarray, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As the base class's."""
        self._before = self._positions[:, 0].copy()
        return super().after_step(actions, observations)

    def _judge(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._forward() - self._cost(actions), self._never

    def _forward(self) -> np.ndarray:
        return self._forward_weight * ((self._positions[:, 0] - self._before) / self._seconds)

    def _cost(self, actions: np.ndarray) -> np.ndarray:
        cost: np.ndarray = self._cost_weight * np.square(actions).sum(axis=1)
        return cost


class HalfCheetah(Swimmer):
    """HalfCheetah-v5: as Swimmer-v5, with another observation."""

    n_skipped = 1


class Walker2d(HalfCheetah):
    """Walker2d-v5: pays for standing, too, and ends with that."""

    numbers = (*HalfCheetah.numbers, "_healthy_reward", "_healthy_z_range", "_healthy_angle_range")

    def __init__(self, envs: Sequence[Any]):
        super().__init__(envs)
        self._healthy_reward = _column(envs, "_healthy_reward")
        self._ends_unhealthy = np.array([bool(env._terminate_when_unhealthy) for env in envs])
        ranges = np.stack([self._ranges(env) for env in envs])
        self._lowest, self._highest = ranges[:, :, 0], ranges[:, :, 1]
        self._bounded = self._state[:, 1 : 1 + ranges.shape[1]]

    def _ranges(self, env: Any) -> np.ndarray:
        """Between which values height, angle and so on are healthy, ``(n, 2)``."""
        return np.array([env._healthy_z_range, env._healthy_angle_range], dtype=np.float64)

    def _observe(self, observations: np.ndarray) -> None:
        super()._observe(observations)
        _bound(observations[:, -self._velocities.shape[1] :])

    def _judge(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        healthy = ((self._lowest < self._bounded) & (self._bounded < self._highest)).all(axis=1)
        rewards = self._forward() + healthy * self._healthy_reward - self._cost(actions)
        return rewards, ~healthy & self._ends_unhealthy


class Hopper(Walker2d):
    """Hopper-v5: as Walker2d-v5, where the angle and all that follows in the state have a range in common."""

    numbers = (*Walker2d.numbers, "_healthy_state_range")

    def _ranges(self, env: Any) -> np.ndarray:
        height, angle = super()._ranges(env)
        state = np.array(env._healthy_state_range, dtype=np.float64)
        both = [max(angle[0], state[0]), min(angle[1], state[1])]
        return np.array([height, both, *[state] * (env.model.nq + env.model.nv - 3)])


class InvertedPendulum(Task):
    """InvertedPendulum-v5: pays 1 as long as the pole stands."""

    def _judge(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ends = ~np.isfinite(self._state).all(axis=1) | (np.abs(self._state[:, 1]) > 0.2)
        return 1.0 - ends, ends


class InvertedDoublePendulum(Task):
    """InvertedDoublePendulum-v5: pays for the tip's height, and takes for its distance and for speed."""

    numbers = ("_healthy_reward",)

    def __init__(self, envs: Sequence[Any]):
        super().__init__(envs)
        self._bonuses = [env._healthy_reward for env in envs]

    def _read_from(self, env: Any) -> list[np.ndarray]:
        return [*super()._read_from(env), env.data.qfrc_constraint[:1], env.data.site_xpos[0]]

    def _observe(self, observations: np.ndarray) -> None:
        observations[:, 0] = self._positions[:, 0]
        np.sin(self._positions[:, 1:], out=observations[:, 1:3])
        np.cos(self._positions[:, 1:], out=observations[:, 3:5])
        observations[:, 5:8] = self._velocities
        observations[:, 8] = self._others[:, 0]
        _bound(observations[:, 5:])

    def _judge(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # A power of a single number is not always, to the last bit, what NumPy makes of a whole array.
        numbers = self._state[:, [-3, -1, 4, 5]]
        rows: Any = numbers.tolist() if np.abs(numbers).max() < _LARGEST_SQUARED else numbers
        ends = numbers[:, 1] <= 1
        rewards = [
            bonus * int(not end) - (0.01 * x**2 + (y - 2) ** 2) - (1e-3 * v1**2 + 5e-3 * v2**2)
            for (x, y, v1, v2), bonus, end in zip(rows, self._bonuses, ends.tolist(), strict=True)
        ]
        return np.array(rewards), ends


class Reacher(Task):
    """Reacher-v5: takes for the distance between fingertip and target, and for large actions; never ends."""

    numbers = ("_reward_dist_weight", "_reward_control_weight")

    def __init__(self, envs: Sequence[Any]):
        super().__init__(envs)
        self._distance_weight = _column(envs, "_reward_dist_weight")
        self._cost_weight = _cost_weights(envs, "_reward_control_weight")
        self._never = np.zeros(len(envs), dtype=bool)

    def _read_from(self, env: Any) -> list[np.ndarray]:
        return [*super()._read_from(env), env.data.body("fingertip").xpos, env.data.body("target").xpos]

    def _observe(self, observations: np.ndarray) -> None:
        self._from_target = self._others[:, :3] - self._others[:, 3:]
        np.cos(self._positions[:, :2], out=observations[:, :2])
        np.sin(self._positions[:, :2], out=observations[:, 2:4])
        observations[:, 4:6] = self._positions[:, 2:]
        observations[:, 6:8] = self._velocities[:, :2]
        observations[:, 8:] = self._from_target[:, :2]

    def _judge(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # As np.linalg.norm has it, by the dot product of BLAS; a sum of squares would be rounded in another way.
        squares = (self._from_target[:, None] @ self._from_target[:, :, None]).reshape(-1)
        cost = -np.square(actions).sum(axis=1) * self._cost_weight
        return -np.sqrt(squares) * self._distance_weight + cost, self._never


TASKS: dict[str, type[Task]] = {
    "half_cheetah_v5.HalfCheetahEnv": HalfCheetah,
    "hopper_v5.HopperEnv": Hopper,
    "inverted_double_pendulum_v5.InvertedDoublePendulumEnv": InvertedDoublePendulum,
    "inverted_pendulum_v5.InvertedPendulumEnv": InvertedPendulum,
    "reacher_v5.ReacherEnv": Reacher,
    "swimmer_v5.SwimmerEnv": Swimmer,
    "walker2d_v5.Walker2dEnv": Walker2d,
}
"""by module and class in ``gymnasium.envs.mujoco``, which cannot be imported where MuJoCo is not installed"""


def task_of(env: Any) -> tuple[type[Task], int, int, int] | None:
    """The task of an environment, with what its memory looks like: environments are treated at once where all agree.

    :param env: unwrapped
    :return: None for other environments, and for those that are rendered at every step
    """
    kind = TASKS.get(f"{type(env).__module__}.{type(env).__qualname__}".removeprefix("gymnasium.envs.mujoco."))
    if kind is None or env.render_mode == "human" or not all(_is_numbers(getattr(env, name)) for name in kind.numbers):
        return None
    return kind, env.model.nq, env.model.nv, _skipped(env, kind.n_skipped)


def _is_numbers(value: Any) -> bool:
    """Whether a setting has numbers of Python's own, whose products have the precision of the other factor."""
    return all(type(each) in (int, float) for each in (value if isinstance(value, tuple | list) else [value]))


def _skipped(env: Any, most: int) -> int:
    return most if getattr(env, "_exclude_current_positions_from_observation", False) else 0


def _column(envs: Sequence[Any], name: str) -> np.ndarray:
    return np.array([getattr(env, name) for env in envs], dtype=np.float64)


def _cost_weights(envs: Sequence[Any], name: str) -> np.ndarray:
    """A number of each environment, in the precision of its product with one of single precision.

    NumPy 2 and NumPy 1 have different rules for that.
    """
    return np.array([getattr(env, name) * np.float32(1) for env in envs])


def _bound(values: np.ndarray) -> None:
    np.maximum(values, -_OBSERVED_BOUND, out=values)
    np.minimum(values, _OBSERVED_BOUND, out=values)
