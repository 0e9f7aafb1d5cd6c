"""Networks kept symmetric under a task's mirror image."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_ppo_variants import (
    BundleError,
    BundleWarning,
    PPOAdaptiveKLPaper,
    PPOClipPaper,
    VanillaPGPaper,
    export_policy,
    load_policy,
)
from sb3_ppo_variants.symmetry import SignedPermutation, symmetrize_statistics

# Components 1 and 2 are a right and a left one, 3 points sideways; of the actions, 0 and 1 are right and left.
MIRROR = {"observation": ([0, 2, 1, 3], [1, 1, 1, -1]), "action": ([1, 0, 2], [1, 1, -1])}
OBSERVATION, ACTION = (
    SignedPermutation(*(np.array(part) for part in MIRROR[name])) for name in ("observation", "action")
)


class Lopsided(gym.Env[np.ndarray, np.ndarray]):
    """Tells of a mirror image, and pays for what is not symmetric: an ordinary network would not stay so."""

    mirror_symmetry = MIRROR

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (3,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._observe(), float(action @ [1.0, -2.0, 0.5]), False, self.steps == 20, {}

    def _observe(self) -> np.ndarray:
        return (self.np_random.normal(size=4) * [1, 2, 3, 4] + [0, 1, -1, 2]).astype(np.float32)


class Untold(Lopsided):
    """Tells nothing of a mirror image."""

    mirror_symmetry = property()


class Learned(FlattenExtractor):
    """An extractor with weights, whose features are as many as the observations."""

    def __init__(self, space: spaces.Box):
        super().__init__(space)
        self.layer = th.nn.Linear(4, 4)


def trained(algorithm: type[Any] = PPOClipPaper, env: Any = None, **settings: Any) -> Any:
    arguments: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "n_epochs": 3, "seed": 0, "mirror_symmetry": True}
    env = VecNormalize(DummyVecEnv([Lopsided] * 2)) if env is None else env
    return algorithm("MlpPolicy", env, **{**arguments, **settings}).learn(512)


def means_and_values(model: Any, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    normalizer = model.get_vec_normalize_env()
    observations = raw if normalizer is None else normalizer.normalize_obs(raw)
    tensor = th.as_tensor(observations, dtype=th.float32)
    with th.no_grad():
        return (
            model.policy.get_distribution(tensor).distribution.mean.numpy(),
            model.policy.predict_values(tensor).numpy(),
        )


def assert_symmetric(model: Any) -> None:
    means, values = means_and_values(model, RAW)
    mirrored_means, mirrored_values = means_and_values(model, OBSERVATION.apply(RAW))
    np.testing.assert_allclose(mirrored_means, ACTION.apply(means), atol=1e-5)
    np.testing.assert_allclose(mirrored_values, values, atol=1e-5)


RAW = np.random.default_rng(0).normal(size=(200, 4)) * 3


@pytest.mark.parametrize("algorithm", [PPOClipPaper, PPOAdaptiveKLPaper, VanillaPGPaper])
@pytest.mark.parametrize("settings", [{}, {"weight_init": "normc", "policy_kwargs": {"activation_fn": th.nn.ReLU}}])
def test_mirrored_states_get_mirrored_actions_and_equal_values(algorithm: type[Any], settings: dict[str, Any]) -> None:
    model = trained(algorithm, **settings)
    assert_symmetric(model)
    means, values = means_and_values(model, RAW)
    log_std = model.policy.log_std.detach().numpy()
    assert log_std[0] == log_std[1] != 0.0
    assert np.abs(means).max() > 0.01
    assert np.ptp(values) > 0.01


def test_without_it_networks_are_not_symmetric() -> None:
    model = trained(mirror_symmetry=False)
    means, _ = means_and_values(model, RAW)
    assert np.abs(means_and_values(model, OBSERVATION.apply(RAW))[0] - ACTION.apply(means)).max() > 0.01


def test_the_projected_gradient_is_that_of_the_samples_and_their_mirror_images() -> None:
    model = trained()
    generator = np.random.default_rng(1)
    observations = generator.normal(size=(50, 4)).astype(np.float32)
    actions = generator.normal(size=(50, 3)).astype(np.float32)
    weights = th.as_tensor(generator.normal(size=50), dtype=th.float32)

    def gradient(*pairs: tuple[np.ndarray, np.ndarray]) -> list[th.Tensor]:
        model.policy.zero_grad()
        for seen, done in pairs:
            values, log_prob, _ = model.policy.evaluate_actions(th.as_tensor(seen), th.as_tensor(done))
            (((weights * log_prob).mean() + (weights - values.flatten()).square().mean()) / len(pairs)).backward()
        return [parameter.grad.clone() for parameter in model.policy.parameters()]

    images = OBSERVATION.apply(observations).astype(np.float32), ACTION.apply(actions).astype(np.float32)
    expected = gradient((observations, actions), images)
    alone = gradient((observations, actions))
    model._symmetric().project_gradients()
    projected = [parameter.grad for parameter in model.policy.parameters()]
    for ours, theirs in zip(projected, expected, strict=True):
        th.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert any((one - other).abs().max() > 0.01 for one, other in zip(alone, expected, strict=True))


def test_weights_begin_as_large_as_without_it() -> None:
    plain, symmetric = (
        PPOClipPaper("MlpPolicy", DummyVecEnv([Lopsided]), seed=0, mirror_symmetry=asked) for asked in (False, True)
    )
    for one, other in zip(plain.policy.parameters(), symmetric.policy.parameters(), strict=True):
        th.testing.assert_close(one.norm(), other.norm())


def test_statistics_are_those_of_all_observations_and_their_mirror_images() -> None:
    seen = np.random.default_rng(2).normal(size=(300, 4)) * [1, 2, 3, 4] + [0, 1, -1, 2]
    ours, expected = RunningMeanStd(shape=(4,)), RunningMeanStd(shape=(4,))
    ours.update(seen)
    symmetrize_statistics(ours, OBSERVATION)
    expected.update(np.concatenate([seen, OBSERVATION.apply(seen)]))
    # The count of SB3's statistics begins at 1e-4, so they agree to that.
    np.testing.assert_allclose(ours.mean, expected.mean, atol=1e-5)
    np.testing.assert_allclose(ours.var, expected.var, rtol=1e-4)
    assert ours.mean[3] == 0.0
    assert ours.mean[1] == ours.mean[2]


def test_statistics_follow_in_training_and_not_where_they_are_fixed() -> None:
    model = trained()
    statistics = model.get_vec_normalize_env().obs_rms
    assert statistics.mean[3] == 0.0
    assert statistics.mean[1] == statistics.mean[2]
    fixed = VecNormalize(DummyVecEnv([Lopsided]), training=False)
    statistics = RunningMeanStd(shape=(4,))
    vars(fixed)["obs_rms"] = statistics
    statistics.mean[:] = [0, 1, 2, 3]
    trained(env=fixed)
    assert statistics.mean.tolist() == [0, 1, 2, 3]


def test_a_zip_goes_on_symmetrically(tmp_path: Path) -> None:
    model = trained()
    model.save(tmp_path / "model.zip")
    alone = PPOClipPaper.load(tmp_path / "model.zip")  # without an environment to ask
    for one, other in zip(model.policy.parameters(), alone.policy.parameters(), strict=True):
        assert th.equal(one, other)
    went_on = PPOClipPaper.load(tmp_path / "model.zip", env=model.get_env()).learn(256, reset_num_timesteps=False)
    assert_symmetric(went_on)


def test_the_gradient_is_clipped_as_that_of_symmetric_networks() -> None:
    model = PPOClipPaper(
        "MlpPolicy",
        DummyVecEnv([Lopsided]),
        learning_rate=1.0,
        n_steps=64,
        n_epochs=1,
        max_grad_norm=0.01,
        mirror_symmetry=True,
        policy_kwargs={"optimizer_class": th.optim.SGD},
    )
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(64)
    steps = [after - each for after, each in zip(model.policy.parameters(), before, strict=True)]
    assert th.cat([step.flatten() for step in steps]).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    """Its episodes end with the rollouts. What was observed last is normalised anew, symmetrically, as where it is
    resumed: bundles would warn of environments that begin otherwise.
    """

    def made(mirror_symmetry: bool = True) -> Any:
        env = VecNormalize(DummyVecEnv([Lopsided] * 2))
        settings: dict[str, Any] = {"n_steps": 40, "batch_size": 40, "n_epochs": 2, "seed": 0}
        return PPOClipPaper("MlpPolicy", env, mirror_symmetry=mirror_symmetry, **settings)

    whole = made().learn(320)
    made().learn(160, run_folder=tmp_path / "run")
    resumed = made().learn(320, run_folder=tmp_path / "run", resume=True)
    for one, other in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert th.equal(one, other)
    made(False).learn(80, run_folder=tmp_path / "plain")
    told, refused = pytest.warns(BundleWarning, match="mirror_symmetry was False"), pytest.raises(BundleError)
    with told, refused as raised:
        made().learn(160, run_folder=tmp_path / "plain", resume=True)
    assert "weights that are not symmetric" in str(raised.value)


def test_weights_that_are_not_symmetric_are_refused(tmp_path: Path) -> None:
    plain = trained(mirror_symmetry=False)
    plain.save(tmp_path / "plain.zip")
    with pytest.raises(ValueError, match="mirror_symmetry must be False: the policy has weights that are not sym"):
        PPOClipPaper.load(tmp_path / "plain.zip", env=plain.get_env(), mirror_symmetry=True)
    with pytest.raises(ValueError, match="mirror_symmetry=True needs an environment"):
        PPOClipPaper.load(tmp_path / "plain.zip", mirror_symmetry=True)
    model = trained()
    model.policy = plain.policy  # as a callback may
    with pytest.raises(ValueError, match="weights that are not symmetric"):
        model.learn(128)


def test_a_policy_that_replaces_another_is_kept_symmetric() -> None:
    model = trained()
    before = model.policy
    model.policy = copy.deepcopy(before)
    model.learn(256)
    assert_symmetric(model)
    assert not th.equal(model.policy.action_net.weight, before.action_net.weight)


def test_rounding_does_not_add_up() -> None:
    model = trained()
    weight = model.policy.action_net.weight
    with th.no_grad():
        weight += 1e-6 * th.rand_like(weight)
    model.learn(128)
    indices, signs = MIRROR["action"]
    image = weight[indices].roll(weight.shape[1] // 2, dims=1) * th.tensor(signs)[:, None]
    assert th.equal(weight, image)


def test_worker_processes_that_know_no_mirror_image_survive_the_question() -> None:
    env = SubprocVecEnv([Untold], start_method="fork")
    with pytest.raises(ValueError, match="needs an environment with an attribute mirror_symmetry"):
        PPOClipPaper("MlpPolicy", env, mirror_symmetry=True)
    env.close()


def test_a_normalizer_of_other_observations_is_refused() -> None:
    env = VecFrameStack(VecNormalize(DummyVecEnv([Lopsided])), 2)
    twice = {"observation": ([0, 2, 1, 3, 4, 6, 5, 7], [1, 1, 1, -1] * 2), "action": MIRROR["action"]}
    with pytest.raises(ValueError, match="VecNormalize has observations of another shape"):
        PPOClipPaper("MlpPolicy", env, mirror_symmetry=twice)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("yes", "mirror_symmetry must be True, False or"),
        ({"observation": MIRROR["observation"]}, "mirror_symmetry must be True, False or"),
        ({**MIRROR, "action": ([1, 0], [1, 1])}, "action must be \\(indices, signs\\), 3 of each"),
        ({**MIRROR, "action": ([1, 1, 2], [1, 1, 1])}, "each index from 0 to 2 once"),
        ({**MIRROR, "action": ([1, 0, 2], [1, 1, 0])}, "signs of 1 or -1"),
        ({**MIRROR, "action": ([1, 2, 0], [1, 1, 1])}, "applied twice, must give back"),
        ({**MIRROR, "action": ([1, 0, 2], [1, -1, 1])}, "applied twice, must give back"),
        ({**MIRROR, "action": 3}, "action must be \\(indices, signs\\)"),
    ],
)
def test_what_is_no_mirror_image_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOClipPaper("MlpPolicy", DummyVecEnv([Lopsided]), mirror_symmetry=value)


@pytest.mark.parametrize(
    ("env", "settings", "message"),
    [
        (Untold, {}, "needs an environment with an attribute mirror_symmetry"),
        ("CartPole-v1", {}, "mirror_symmetry must be False: it is for Gaussian actions"),
        (Lopsided, {"policy_kwargs": {"net_arch": [7]}}, "even numbers of units.*got 7"),
        (Lopsided, {"policy_kwargs": {"activation_fn": th.nn.Softmax}}, "not Softmax"),
        (Lopsided, {"policy_kwargs": {"features_extractor_class": Learned}}, "must be FlattenExtractor; got Learned"),
        (Lopsided, {"use_sde": True}, "mirror_symmetry must be False: it is for Gaussian actions"),
    ],
)
def test_what_cannot_be_symmetric_is_refused(env: Any, settings: dict[str, Any], message: str) -> None:
    made = env if isinstance(env, str) else DummyVecEnv([env])
    with pytest.raises(ValueError, match=message):
        PPOClipPaper("MlpPolicy", made, mirror_symmetry=True, **settings)


def test_a_new_training_starts_from_a_symmetric_agent_and_from_no_other(tmp_path: Path) -> None:
    for name, symmetric in (("symmetric", True), ("other", False)):
        export_policy(trained(mirror_symmetry=symmetric), tmp_path / name)
    model = trained(seed=3)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    with pytest.raises(ValueError, match="weights that are not symmetric"):
        load_policy(tmp_path / "other").start(model)
    assert all(th.equal(*pair) for pair in zip(model.policy.parameters(), before, strict=True))
    load_policy(tmp_path / "symmetric").start(model)
    assert not all(th.equal(*pair) for pair in zip(model.policy.parameters(), before, strict=True))
    policy = load_policy(tmp_path / "symmetric")
    with pytest.raises(ValueError, match="statistics must be symmetric under the task's mirror image"):
        policy.start(model, statistics={1: (5.0, 9.0)}, rescale=True)
    own_mean = policy._statistics[""][0]
    own_mean[1] += 0.5  # a best model's statistics are of the middle of a rollout, not symmetric yet
    policy.start(model, statistics={1: (5.0, 9.0), 2: (5.0, 9.0)}, rescale=True)
    assert_symmetric(model)
    model.learn(512)
    assert_symmetric(model)
