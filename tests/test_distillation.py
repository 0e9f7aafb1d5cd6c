"""A network that learns what a teacher does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from rl_zoo3.utils import get_wrapper_class
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ppo_variants import PPOClipPaper, export_policy, load_policy
from sb3_ppo_variants.distillation import Handover, Switch, distill


class Line:
    """Acts by a matrix."""

    def __init__(self, weights: Any) -> None:
        self.weights = np.asarray(weights, dtype=np.float64)
        self.calls = 0

    def predict(self, observation: np.ndarray, *, deterministic: bool) -> tuple[np.ndarray, None]:
        assert deterministic
        self.calls += 1
        return observation @ self.weights, None


PENDULUM = np.array([[0.5], [0.3], [-0.1]])  # of cos θ, sin θ and θ's speed, up to 8: within the torques


def make(normalize: bool = True, **arguments: Any) -> PPOClipPaper:
    env: Any = make_vec_env("Pendulum-v1", 4, seed=0)
    if normalize:
        env = VecNormalize(env)
    defaults: dict[str, Any] = {"n_steps": 64, "batch_size": 64, "seed": 0}
    return PPOClipPaper("MlpPolicy", env, **(defaults | arguments))


def observations(count: int = 300) -> np.ndarray:
    random = np.random.default_rng(1)
    angle, speed = random.uniform(-np.pi, np.pi, count), random.uniform(-4, 4, count)
    return np.stack([np.cos(angle), np.sin(angle), speed], axis=1).astype(np.float32)


def acted(model: PPOClipPaper, raw: np.ndarray) -> np.ndarray:
    normalizer = model.get_vec_normalize_env()
    seen: Any = raw if normalizer is None else normalizer.normalize_obs(raw)
    return np.asarray(model.predict(seen, deterministic=True)[0])


@pytest.mark.parametrize("normalize", [True, False])
def test_the_student_acts_as_the_teacher(normalize: bool) -> None:
    model, teacher = make(normalize), Line(PENDULUM)
    raw = observations()
    before = np.abs(acted(model, raw) - raw @ PENDULUM).mean()
    losses = distill(model, teacher, 1195, rounds=2, n_epochs=30, batch_size=64)
    after = np.abs(acted(model, raw) - raw @ PENDULUM).mean()
    assert before > 0.3
    assert after < 0.05
    assert len(losses) == 2
    assert max(losses) < 0.01
    assert teacher.calls == 2 * 150, "steps of four environments, rounded up"
    normalizer: Any = model.get_vec_normalize_env()
    if normalizer is not None:
        assert normalizer.training
        assert normalizer.obs_rms.count == pytest.approx(600, abs=1)
    model.learn(256)


def test_a_switch_has_each_agent_act_where_it_is_in_charge() -> None:
    below, above = Line(np.zeros((3, 1))), Line(PENDULUM)
    teacher = Switch(below, above, 1, 0.25)
    raw = observations()
    actions, _ = teacher.predict(raw, deterministic=True)
    np.testing.assert_array_equal(actions, np.where(raw[:, 1:2] >= 0.25, raw @ PENDULUM, 0.0))
    for arguments, message in (
        ((-1, 0.0), "component must be an integer >= 0"),
        ((1, float("nan")), "threshold must be a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            Switch(below, above, *arguments)
    with pytest.raises(ValueError, match=r"observation must be \(B, n\) with n > 3; got \(300, 3\)"):
        Switch(below, above, 3, 0.0).predict(raw, deterministic=True)
    with pytest.raises(ValueError, match=r"below and above must act alike; got \(300, 2\) and \(300, 1\)"):
        Switch(Line(np.zeros((3, 2))), above, 1, 0.0).predict(raw, deterministic=True)
    edge = np.array([[0.0, 0.25, 1.0]])
    np.testing.assert_array_equal(teacher.predict(edge, deterministic=True)[0], edge @ PENDULUM)
    model = make()
    distill(model, teacher, 3000, n_epochs=30, batch_size=64)
    assert np.abs(acted(model, raw) - actions).mean() < 0.1


class Hill(gym.Env[np.ndarray, np.ndarray]):
    """A place that an action moves; a step earns its number. The end is from 4 on, or after `limit` steps."""

    observation_space = spaces.Box(-10.0, 10.0, (2,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float64)

    def __init__(self, limit: int = 100, start: float = -2.0) -> None:
        self.limit, self.start = limit, start
        self.resets: list[Any] = []
        self.reset_to: list[float] = []  # starts of the next episodes, if others

    def state(self) -> np.ndarray:
        return np.array([0.0, self.place])

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.resets.append((seed, options))
        self.place, self.steps = self.reset_to.pop(0) if self.reset_to else self.start, 0
        return self.state(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place += float(action[0])
        self.steps += 1
        return self.state(), float(self.steps), self.place >= 4.0, self.steps == self.limit, {"steps": self.steps}


class Always:
    def __init__(self, action: float) -> None:
        self.action = action
        self.seen: list[float] = []

    def predict(self, observation: np.ndarray, *, deterministic: bool) -> tuple[np.ndarray, None]:
        assert deterministic
        self.seen += observation[:, 1].tolist()
        return np.full((len(observation), 1), self.action), None


def test_a_learner_is_handed_over_to() -> None:
    up = Always(1.0)
    env = Handover(Monitor(Hill()), up, component=1, threshold=0.0)
    observation, info = env.reset(seed=3, options={"a": 1})
    assert observation.tolist() == [0.0, 0.0]
    assert info == {"steps": 2}
    assert up.seen == [-2.0, -1.0]
    assert env.unwrapped.resets == [(3, {"a": 1})]  # type: ignore[attr-defined]
    assert env.step(np.array([1.0]))[1:] == (3.0, False, False, {"steps": 3})
    observation, reward, terminated, truncated, info = env.step(np.array([-3.0]))
    assert observation[1] == 0.0
    assert (reward, terminated, truncated, info) == (4.0 + 5.0 + 6.0, False, False, {"steps": 6})
    assert up.seen == [-2.0, -1.0, -2.0, -1.0]
    for _ in range(3):
        assert not env.step(np.array([1.0]))[2]
    _, reward, terminated, _, info = env.step(np.array([1.0]))
    assert (reward, terminated) == (10.0, True)
    assert (info["episode"]["l"], info["episode"]["r"]) == (10, 55.0)  # inside, all steps are seen


def test_an_episode_may_end_with_the_other() -> None:
    env = Handover(Hill(limit=3), Always(-1.0), component=1, threshold=0.0, part="above")
    env.reset()
    observation, reward, terminated, truncated, _ = env.step(np.array([2.5]))
    assert (observation[1], reward, terminated, truncated) == (-0.5, 1.0 + 2.0, False, False)
    assert env.step(np.array([1.0]))[1:4] == (3.0, False, True)
    higher = Handover(Hill(), Always(1.0), component=1, threshold=1.0, part="above")
    higher.reset()
    observation, reward, terminated, truncated, _ = higher.step(np.array([3.0]))
    assert (observation[1], reward, terminated, truncated) == (4.0, 1.0 + 2.0 + 3.0 + 4.0, True, False)


def test_an_episode_cut_short_by_the_other_ends_with_what_the_learner_saw() -> None:
    env = Handover(Hill(limit=5), Always(1.0), component=1, threshold=0.0)
    env.reset()
    observation, reward, *ends, _ = env.step(np.array([0.5]))
    assert (observation[1], reward, ends) == (0.5, 3.0, [False, False])
    observation, reward, *ends, _ = env.step(np.array([-3.0]))
    assert (observation[1], reward, ends) == (0.5, 4.0 + 5.0, [False, True])
    env = Handover(Hill(limit=3), Always(1.0), component=1, threshold=0.0)
    env.reset()
    assert env.step(np.array([0.5]))[0][1] == 0.5  # cut short by the learner itself


def test_an_episode_without_the_learner_is_skipped() -> None:
    place = Hill(limit=2)
    place.reset_to = [-3.0, -1.0]
    env = Handover(place, Always(1.0), component=1, threshold=0.0)
    observation, info = env.reset(seed=0, options={"a": 1})
    assert (observation[1], info) == (0.0, {"steps": 1})
    assert place.resets == [(0, {"a": 1}), (None, None)]
    env = Handover(Hill(limit=2, start=-1.5), Always(1.0), component=1, threshold=0.5)
    with pytest.raises(RuntimeError, match="agent hands over in none of 100 episodes"):
        env.reset(seed=0)
    assert env.unwrapped.resets == [(0, None), *[(None, None)] * 99]  # type: ignore[attr-defined]


def test_what_a_handover_takes(tmp_path: Path) -> None:
    agent = Always(1.0)
    for arguments, message in (
        ({"component": -1}, "component must be an integer >= 0"),
        ({"component": 2}, r"env must have observations of one axis, of more than 2; got \(2,\)"),
        ({"threshold": float("inf")}, "threshold must be a finite number"),
        ({"part": "left"}, "part must be 'below' or 'above'; got 'left'"),
    ):
        given: dict[str, Any] = {"component": 1, "threshold": 0.0, **arguments}
        with pytest.raises(ValueError, match=message):
            Handover(Hill(), agent, **given)
    model = make(normalize=False)
    export_policy(model, tmp_path / "agent")
    env = Handover(gym.make("Pendulum-v1"), str(tmp_path / "agent"), component=0, threshold=0.0)
    assert env.env.reset(seed=3)[0][0] < 0.0  # so that the agent acts
    observation, _ = env.reset(seed=3)
    assert observation[0] >= 0.0
    other = Handover(gym.make("Pendulum-v1"), load_policy(tmp_path / "agent"), component=0, threshold=0.0)
    np.testing.assert_array_equal(other.reset(seed=3)[0], observation)


def test_a_handover_in_a_config(tmp_path: Path) -> None:
    export_policy(make(normalize=False), tmp_path / "agent")
    make_one = get_wrapper_class(
        {
            "env_wrapper": [
                {
                    f"{Handover.__module__}.Handover": {
                        "agent": str(tmp_path / "agent"),
                        "component": 0,
                        "threshold": 0.0,
                    }
                }
            ]
        }
    )
    assert make_one is not None
    env = make_vec_env("Pendulum-v1", 2, seed=0, wrapper_class=make_one)
    PPOClipPaper("MlpPolicy", env, n_steps=64, batch_size=64, seed=0).learn(256)
    observation: Any = env.reset()
    assert (observation[:, 0] >= 0).all()


def test_the_student_sees_its_own_states_too() -> None:
    """The teacher holds the pendulum up from where it is; the student, untrained, lets it swing."""

    class Watched(Line):
        states: list[np.ndarray]

        def predict(self, observation: np.ndarray, *, deterministic: bool) -> tuple[np.ndarray, None]:
            self.states.append(observation.copy())
            return super().predict(observation, deterministic=deterministic)

    def play(teacher_share: float) -> np.ndarray:
        teacher = Watched(np.array([[0.0], [0.0], [-2.0]]))
        teacher.states = []
        model = make(n_epochs=1)
        distill(model, teacher, 1600, rounds=2, teacher_share=teacher_share, n_epochs=1, learning_rate=1e-9)
        return np.concatenate(teacher.states)

    braked, own = play(1.0), play(0.0)
    np.testing.assert_array_equal(braked[:800], own[:800])  # the teacher's round
    assert np.abs(own[800:, 2]).mean() > 2 * np.abs(braked[800:, 2]).mean()


def test_a_seed_repeats_it() -> None:
    weights = []
    for _ in range(2):
        model = make()
        distill(model, Line(PENDULUM), 400, rounds=2, n_epochs=2)
        weights.append(th.cat([each.flatten() for each in model.policy.parameters()]))
    assert th.equal(*weights)


def test_neither_the_critic_nor_the_noise_changes() -> None:
    model = make()
    before = {name: each.clone() for name, each in model.policy.named_parameters()}
    distill(model, Line(PENDULUM), 400, rounds=2, n_epochs=2)
    changed = {name for name, each in model.policy.named_parameters() if not th.equal(each, before[name])}
    assert changed == {name for name in before if name.startswith(("mlp_extractor.policy_net", "action_net"))}


def test_symmetric_networks_stay_symmetric() -> None:
    env = VecNormalize(make_vec_env("RoboschoolHumanoid-v1", 2, seed=0))
    model = PPOClipPaper("MlpPolicy", env, n_steps=64, batch_size=64, mirror_symmetry=True, clip_actions=False, seed=0)
    weights = np.random.default_rng(0).normal(size=(44, 17)) / 10
    untrained = distill(model, Line(weights), 300, rounds=2, n_epochs=1, learning_rate=1e-9)
    losses = distill(model, Line(weights), 300, rounds=2, n_epochs=20, batch_size=32)
    assert losses[-1] < 0.5 * untrained[-1]
    symmetric = model._symmetric()
    assert symmetric is not None
    symmetric.require_symmetric()
    mirror: Any = model.mirror_symmetry
    raw = np.random.default_rng(1).normal(size=(20, 44)).astype(np.float32)
    there = acted(model, mirror.observation.apply(raw).astype(np.float32))
    np.testing.assert_allclose(mirror.action.apply(there), acted(model, raw), atol=1e-5)


def test_what_it_takes() -> None:
    teacher = Line(PENDULUM)
    wrong: list[tuple[str, Any, str]] = [
        ("total_timesteps", 0, "total_timesteps must be an integer >= 1"),
        ("rounds", 0, "rounds must be an integer >= 1"),
        ("n_epochs", 1.5, "n_epochs must be an integer >= 1"),
        ("batch_size", 0, "batch_size must be an integer >= 1"),
        ("teacher_share", 1.1, "teacher_share must be a number from 0 to 1"),
        ("learning_rate", 0.0, "learning_rate must be a finite number > 0"),
    ]
    model = make()
    for name, value, message in wrong:
        arguments: dict[str, Any] = {"total_timesteps": 100, name: value}
        with pytest.raises(ValueError, match=message):
            distill(model, teacher, **arguments)
    for bad in (Line(np.ones((3, 2))), Line(np.full((3, 1), np.nan))):
        with pytest.raises(ValueError, match="teacher must give finite actions of the model's shape"):
            distill(model, bad, 100)
    assert model.get_vec_normalize_env().training  # type: ignore[union-attr]
    other: Any = PPO("MlpPolicy", "Pendulum-v1")
    with pytest.raises(ValueError, match="model must be of one of this package's algorithms"):
        distill(other, teacher, 100)
    with pytest.raises(ValueError, match="model must have Gaussian actions; got CategoricalDistribution"):
        distill(PPOClipPaper("MlpPolicy", "CartPole-v1"), teacher, 100)
    model.env = None
    with pytest.raises(ValueError, match="model must have environments"):
        distill(model, teacher, 100)

    class Table(gym.ObservationWrapper[Any, Any, Any]):
        observation_space: Any = spaces.Box(-8.0, 8.0, (3, 1), np.float32)

        def observation(self, observation: Any) -> Any:
            return observation[:, None]

    with pytest.raises(ValueError, match="model must have observations of one axis"):
        distill(PPOClipPaper("MlpPolicy", Table(gym.make("Pendulum-v1"))), teacher, 100)
