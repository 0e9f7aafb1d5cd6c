"""Gymnasium's MuJoCo tasks, stepped past their wrappers, are what they are through them: every number, to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit, TransformReward
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_variants import DivergenceWarning, PPOClipPaper, train_many
from sb3_ppo_variants.many.agent import Agent
from sb3_ppo_variants.many.mujoco_tasks import task_of
from sb3_ppo_variants.many.stepping import MujocoStepper, PlainStepper, VecEnvStepper, steppers_of
from sb3_ppo_variants.vec_env import record_episodes
from tests.many.cases import alone, assert_same, distance

Settings = dict[str, Any]

ROLLOUT = 32
"""Steps of each environment."""

RUNNERS: list[Settings] = [
    {},
    {"forward_reward_weight": 3, "ctrl_cost_weight": 0.7, "frame_skip": 2, "reset_noise_scale": 0.3},
]
UPRIGHT: list[Settings] = [
    {"terminate_when_unhealthy": False, "healthy_reward": 2},
    {"healthy_z_range": (1.2, 1.25), "healthy_angle_range": (-5, 5), "ctrl_cost_weight": 0.3},
    {"healthy_z_range": (0, math.inf), "healthy_angle_range": (-0.03, 0.04), "forward_reward_weight": 0.1},
]
WITH_POSITIONS: Settings = {"exclude_current_positions_from_observation": False}
CASES: list[tuple[str, list[Settings]]] = [
    ("HalfCheetah-v5", RUNNERS),
    ("HalfCheetah-v5", [WITH_POSITIONS]),
    ("Hopper-v5", [*RUNNERS, *UPRIGHT, {"healthy_state_range": (-3, 2.5), "healthy_angle_range": (-9, 9)}]),
    ("Hopper-v5", [{**WITH_POSITIONS, "healthy_state_range": [-0.1, 100.0]}]),
    ("InvertedDoublePendulum-v5", [{}, {"healthy_reward": 3, "frame_skip": 3, "reset_noise_scale": 0.4}]),
    ("InvertedPendulum-v5", [{}, {"frame_skip": 1, "reset_noise_scale": 0.15}]),
    ("Reacher-v5", [{}, {"reward_dist_weight": 0.7, "reward_control_weight": 3, "frame_skip": 4}]),
    ("Swimmer-v5", RUNNERS),
    ("Swimmer-v5", [WITH_POSITIONS]),
    ("Walker2d-v5", [*RUNNERS, *UPRIGHT]),
    ("Walker2d-v5", [WITH_POSITIONS]),
]


def agents_of(env_id: str, settings: list[Settings], limit: int, folder: Path) -> list[Agent]:
    """Agents at the beginning of a training, two environments each."""
    agents = []
    for index, own in enumerate(settings):
        kwargs = {**own, "max_episode_steps": limit}
        env: Any = make_vec_env(env_id, 2, monitor_dir=str(folder / str(index)), env_kwargs=kwargs)
        for each in env.envs:
            record_episodes(each)
        model = PPOClipPaper("MlpPolicy", env, seed=index, n_steps=ROLLOUT, batch_size=ROLLOUT, device="cpu")
        model._setup_learn(10**6)
        agents.append(Agent(model, f"agent {index}"))
    return agents


def episodes_of(folder: Path) -> list[list[str]]:
    """Returns and lengths in the monitors' files."""
    return [
        [line.rsplit(",", 1)[0] for line in path.read_text().splitlines()[1:]] for path in sorted(folder.rglob("*.csv"))
    ]


def wrappers_state(env: gym.Env) -> Any:
    """What the wrappers and the environment hold, times of the clock aside."""
    monitor: Any = env
    limit: Any = env
    while not isinstance(limit, TimeLimit):
        limit = limit.env
    base: Any = limit.unwrapped
    names = ("qpos", "qvel", "ctrl", "qacc_warmstart", "qfrc_constraint", "cacc", "cfrc_int", "cfrc_ext", "time")
    counted = [monitor.rewards, monitor.needs_reset, monitor.episode_returns, monitor.episode_lengths]
    return (
        [np.array(getattr(base.data, name)).tolist() for name in names],
        [*counted, monitor.total_steps, limit._elapsed_steps, base.np_random.bit_generator.state],
        [key for key in vars(base) if key == "step"],
    )


class Side:
    """Environments that are stepped in one of the two ways, and what they have given last."""

    def __init__(self, agents: list[Agent], stepper: VecEnvStepper):
        self.agents, self.stepper = agents, stepper
        model = agents[0].model
        shape = (len(agents), 2)
        self.features = np.zeros((*shape, *model.observation_space.shape), dtype=np.float32)
        self.rewards, self.ends = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)

    def step(self, actions: np.ndarray) -> None:
        self.stepper.step(actions, self.features, self.rewards, self.ends)

    def at_rollouts_end(self) -> list[Any]:
        """The models' and the environments' states."""
        self.stepper.finish()
        models = [agent.model for agent in self.agents]
        kept = [[(info["r"], info["l"]) for info in model.ep_info_buffer] for model in models]
        counted = [(model.num_timesteps, model._last_episode_starts.tolist()) for model in models]
        observed = [model._last_obs.tolist() for model in models]  # of double precision
        return [kept, counted, observed, [wrappers_state(env) for model in models for env in model.env.envs]]


def assert_steps_equal(env_id: str, settings: list[Settings], limit: int, n_rollouts: int, folder: Path) -> None:
    """Step the same environments in both ways, by the same actions."""
    together, expected = (agents_of(env_id, settings, limit, folder / name) for name in ("fast", "slow"))
    (stepper,) = steppers_of(together)
    assert type(stepper) is MujocoStepper
    fast, slow = Side(together, stepper), Side(expected, VecEnvStepper(expected, range(len(expected))))
    rng, n_ends = np.random.default_rng(0), 0
    for step in range(n_rollouts * ROLLOUT):
        scale = rng.choice([0.3, 1.0, 20.0])  # most beyond the bounds of the action space
        shape = (len(settings), 2, *together[0].model.action_space.shape)
        actions = (scale * rng.normal(size=shape)).astype(np.float32)
        for side in (fast, slow):
            if step % ROLLOUT == 0:
                side.stepper.begin(side.features, side.ends)
            side.step(actions)
        assert np.array_equal(fast.features, slow.features)
        assert np.array_equal(fast.rewards, slow.rewards)
        assert np.array_equal(fast.ends, slow.ends)
        n_ends += int(slow.ends.sum())
        if step % ROLLOUT == ROLLOUT - 1:
            assert fast.at_rollouts_end() == slow.at_rollouts_end()
    for agent in (*together, *expected):
        agent.model.env.close()
    assert n_ends >= 4 * len(settings)
    assert episodes_of(folder / "fast") == episodes_of(folder / "slow") != []


@pytest.mark.parametrize(("env_id", "settings"), CASES)
def test_steps_are_those_of_the_environments(env_id: str, settings: list[Settings], tmp_path: Path) -> None:
    assert_steps_equal(env_id, settings, 25, 2, tmp_path)


@pytest.mark.parametrize("limit", [3, 25])
def test_steps_within_the_time_limit_of_rl_zoo3(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = (gym.wrappers, gym.wrappers.common, gym.envs.registration)
    for owner in owners:  # afterwards what the import replaces is put back
        monkeypatch.setattr(owner, "TimeLimit", getattr(owner, "TimeLimit", TimeLimit), raising=False)
    from rl_zoo3.gym_patches import PatchedTimeLimit

    for owner in owners:
        monkeypatch.setattr(owner, "TimeLimit", PatchedTimeLimit)
    assert isinstance(gym.make("Hopper-v5"), PatchedTimeLimit)
    assert_steps_equal("Hopper-v5", [{}, UPRIGHT[0]], limit, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "settings"), CASES)
def test_thousands_of_steps_are_those_of_the_environments(
    env_id: str, settings: list[Settings], tmp_path: Path
) -> None:
    assert_steps_equal(env_id, settings, 400, 40, tmp_path)


def test_agents_learn_what_they_learn_alone() -> None:
    settings: Settings = {"n_steps": 64, "batch_size": 32, "n_epochs": 2}
    specs: Any = [(PPOClipPaper, {}, 0), (PPOClipPaper, {"clip_actions": False}, 1)]
    for spec, model in zip(
        specs, train_many(specs, "InvertedDoublePendulum-v5", 192, n_envs=2, **settings), strict=True
    ):
        assert MujocoStepper.kind_of(model) is not None
        assert_same(model, alone(spec, "InvertedDoublePendulum-v5", 192, 2, **settings))
        model.learn(128, reset_num_timesteps=False)  # the environments go on


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Walker2d-v5"])
def test_each_bound_of_health_by_itself(env_id: str) -> None:
    settings: Settings = {"healthy_z_range": (-0.6, 0.7), "healthy_angle_range": (-0.4, 0.9)}
    narrow = {"healthy_state_range": (-0.8, 0.45)} if env_id == "Hopper-v5" else {}
    wide = {"healthy_state_range": (-3, 3)} if env_id == "Hopper-v5" else {}
    for own in (settings | narrow, settings | wide, {**settings, "healthy_angle_range": (-2.0, 2.0)} | narrow):
        base: Any = gym.make(env_id, **own).unwrapped
        task = task_of(base)[0]([base])  # type: ignore[index]
        size = base.model.nq + base.model.nv
        observations = np.zeros((1, base.observation_space.shape[0]))
        for state in [sign * row for row in np.eye(size) for sign in (-1.0, -0.7, -0.5, 0.0, 0.5, 0.8, 1.0)]:
            base.set_state(state[: base.model.nq], state[base.model.nq :])
            _, ends = task.after_step(np.zeros((1, base.model.nu), dtype=np.float32), observations)
            assert ends[0] == (not base.is_healthy)
        base.close()


def test_the_force_at_the_end_of_the_rail_is_observed() -> None:
    base: Any = gym.make("InvertedDoublePendulum-v5").unwrapped
    task = task_of(base)[0]([base])  # type: ignore[index]
    for x, force in ((0.99, False), (1.0005, True), (1.05, True)):
        base.set_state(np.array([x, 0.1, -0.1]), np.array([0.1, 20.0, -0.2]))
        observations = np.zeros((1, 9))
        task.after_step(np.zeros((1, 1), dtype=np.float32), observations)
        assert np.array_equal(observations[0], base._get_obs())
        assert bool(observations[0, 8]) is force
    base.close()


def weighted(weights: list[float]) -> Callable[[], Any]:
    """Makes the environment of one agent after another."""
    waiting = list(weights)
    return lambda: gym.make("Swimmer-v5", forward_reward_weight=waiting.pop(0))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_an_agent_whose_rewards_are_not_finite_ends_by_itself() -> None:
    settings: Settings = {"n_steps": 32, "batch_size": 32, "n_epochs": 1}
    with pytest.warns(DivergenceWarning, match=r"agent 1 .* ends: environment 0 gave a reward of -?inf"):
        models = train_many(PPOClipPaper, weighted([1.0, 1e300, 1.0]), 64, seeds=range(3), **settings)
    assert [model.num_timesteps for model in models] == [64, 1, 64]
    assert [model.env.envs[0].get_total_steps() for model in models] == [64, 1, 64]
    for index in (0, 2):
        spec: Any = (PPOClipPaper, {}, index)
        assert distance(models[index], alone(spec, "Swimmer-v5", 64, 1, **settings)) < 1e-5


class Subclass(gym.Wrapper):
    """A wrapper of the user's."""


def overridden() -> gym.Env:
    env: Any = gym.make("Hopper-v5")
    env.unwrapped.step = env.unwrapped.step
    return Monitor(env)


@pytest.mark.parametrize(
    ("make", "is_taken"),
    [
        (lambda: Monitor(gym.make("Hopper-v5")), True),
        (lambda: Monitor(gym.make("Hopper-v5", disable_env_checker=True, max_episode_steps=7)), True),
        (lambda: gym.make("Hopper-v5"), False),
        (lambda: Monitor(gym.make("Hopper-v5").unwrapped), False),
        (lambda: Monitor(TimeLimit(gym.make("Hopper-v5"), 3)), False),
        (lambda: Monitor(gym.make("Hopper-v5"), info_keywords=("x_position",)), False),
        (lambda: Monitor(Subclass(gym.make("Hopper-v5"))), False),
        (lambda: Monitor(TransformReward(gym.make("Hopper-v5"), lambda reward: -float(reward))), False),
        (lambda: Monitor(gym.make("Hopper-v5", ctrl_cost_weight=np.float64(0.1))), False),
        (lambda: Monitor(gym.make("Hopper-v5", healthy_z_range=(np.float32(0.7), 9.0))), False),
        (lambda: Monitor(gym.make("Ant-v5")), False),
        (lambda: Monitor(gym.make("Pendulum-v1")), False),
        (overridden, False),
    ],
)
def test_what_is_stepped_past_its_wrappers(make: Callable[[], gym.Env], is_taken: bool) -> None:
    model = PPOClipPaper("MlpPolicy", DummyVecEnv([make]), n_steps=32, batch_size=32, device="cpu")
    (stepper,) = steppers_of([Agent(model, "0")])
    assert type(stepper) is (MujocoStepper if is_taken else PlainStepper)
    assert model.env is not None
    model.env.close()


def test_environments_that_are_rendered_are_stepped_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = PPOClipPaper(
        "MlpPolicy", DummyVecEnv([lambda: Monitor(gym.make("Hopper-v5"))]), n_steps=32, batch_size=32, device="cpu"
    )
    assert isinstance(model.env, DummyVecEnv)
    monkeypatch.setattr(model.env.envs[0].unwrapped, "render_mode", "human")
    assert MujocoStepper.kind_of(model) is None
    model.env.close()


def test_one_agent_with_two_kinds_of_environments_and_agents_of_two_kinds() -> None:
    def model_of(*weights: Settings) -> Any:
        makes = [lambda own=own: Monitor(gym.make("Hopper-v5", **own)) for own in weights]
        return PPOClipPaper("MlpPolicy", DummyVecEnv(makes), n_steps=32, batch_size=32, device="cpu")  # type: ignore[arg-type]

    slim = {"healthy_reward": 2.0}
    agents = [Agent(model_of(slim, {}), "0"), Agent(model_of({}, {"ctrl_cost_weight": np.float64(1)}), "1")]
    assert [type(stepper) for stepper in steppers_of(agents)] == [MujocoStepper, PlainStepper]
    for agent in agents:
        agent.model.env.close()
