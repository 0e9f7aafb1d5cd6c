"""A model that went through a zip trains on as if it had not, bit for bit; zips go from SB3's PPO to ours and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import VecNormalize

import sb3_ppo_variants
from sb3_ppo_variants import PPOAdaptiveKLPaper, PPOClipPaper, PPOFixedKLPaper, PPOUnclippedPaper, VanillaPGPaper
from tests.helpers import CountingBuffer

ALGORITHMS = [getattr(sb3_ppo_variants, name) for name in sb3_ppo_variants.ALGORITHMS.values()]
SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu"}

every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)

# Everything that an algorithm remembers, and every schedule that it follows.
EVERYTHING: dict[str, Any] = {
    "learning_rate": LinearSchedule(1e-3, 1e-4, 1.0),
    "ent_coef": LinearSchedule(0.1, 0.0, 1.0),
    "vf_coef": LinearSchedule(1.0, 0.5, 1.0),
    "clip_range_vf": LinearSchedule(5.0, 1.0, 1.0),
    "max_grad_norm": 5.0,
    "stepsize_kl_target": 1e-9,  # far below every KL: each update moves the stepsize
    "stepsize_bounds": (1e-6, 1e-2),
    "weight_init": "normc",
    "clip_actions": False,
    "bootstrap_on_timeout": False,
}
CLIP = {"clip_range": LinearSchedule(0.3, 0.1, 1.0)}
OWN: dict[Any, list[dict[str, Any]]] = {
    PPOClipPaper: [{**CLIP, "surrogate": "clip"}, {**CLIP, "surrogate": "log_clip", "target_kl": 0.5}],
    PPOAdaptiveKLPaper: [{**CLIP, "kl_target": 1e-9, "beta_init": 0.7}],
    PPOFixedKLPaper: [{"beta": LinearSchedule(3.0, 1.0, 1.0), "target_kl": 0.5}],
    PPOUnclippedPaper: [{}],
    VanillaPGPaper: [{}, {"advantage_estimator": "td"}, {"advantage_estimator": "baseline", "clip_range_vf": None}],
}
# Each kind of policy, and of rollout.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gaussian": ("Pendulum-v1", {"log_std_schedule": LinearSchedule(-0.7, -1.6, 1.0)}),
    "learned deviation": ("Pendulum-v1", {"normalize_advantage": True}),
    "discrete": ("CartPole-v1", {}),
    "gsde": ("Pendulum-v1", {"use_sde": True, "sde_sample_freq": 4}),
    "own buffer": ("Pendulum-v1", {"rollout_buffer_class": CountingBuffer}),
    "not fused": ("Pendulum-v1", {"policy_kwargs": {"optimizer_kwargs": {"fused": False}}}),
}
CASES = [
    (algorithm, kind, number)
    for algorithm in ALGORITHMS
    for kind in KINDS
    for number, own in enumerate(OWN[algorithm])
    # Monte-Carlo returns take episodes that end, which Pendulum's do after 200 steps only.
    if number == 0 or kind == "discrete" or (kind == "gaussian" and own.get("advantage_estimator") != "baseline")
]


def random_generators_alike(model: Any) -> None:
    """Seed python's, NumPy's, torch's and the environments' generators; the environments begin anew."""
    set_random_seed(11)
    model.env.seed(12)
    model._last_obs = None  # as after load(): the next learn() resets the environments


def assert_equal(ours: Any, theirs: Any, where: str = "") -> None:
    """Bit for bit, through nested dicts and lists."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_equal(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, f"{where}/{number}")
    elif isinstance(ours, th.Tensor):
        assert th.equal(ours, theirs), where
    else:
        assert ours == theirs, where


REMEMBERED = ("beta", "stepsize_factor", "n_iterations", "num_timesteps", "_n_updates", "_current_progress_remaining")


def state(model: Any) -> dict[str, Any]:
    """All that an update changes."""
    parameters = model.get_parameters()
    names = [name for name in REMEMBERED if isinstance(getattr(model, name, None), int | float)]
    copied = th.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, th.Tensor) else x, parameters)
    return {"parameters": copied, **{name: getattr(model, name) for name in names}}


def logged(model: Any) -> dict[str, Any]:
    return {name: value for name, value in model.logger.name_to_value.items() if name.startswith("train/")}


@pytest.mark.parametrize(("algorithm", "kind", "number"), CASES)
def test_a_trip_through_a_zip_changes_nothing(algorithm: Any, kind: str, number: int, tmp_path: Path) -> None:
    env_id, kwargs = KINDS[kind]
    env = make_vec_env(env_id, 2, seed=1)
    arguments = {**SMALL, **EVERYTHING, **OWN[algorithm][number], **kwargs}
    model = algorithm("MlpPolicy", env, **arguments).learn(128)
    assert model.stepsize_factor == pytest.approx(1.5**-2)  # two updates, each above twice the target
    if algorithm is PPOAdaptiveKLPaper:
        assert model.beta == 0.7 * 2**2
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=env, device="cpu")
    assert_equal(state(loaded), state(model))

    results = []
    for each in (model, loaded):
        random_generators_alike(each)
        each.learn(128, reset_num_timesteps=False)
        results.append((state(each), logged(each)))
        buffer = each.rollout_buffer
        results[-1][0]["rollout"] = [th.tensor(buffer.actions), th.tensor(buffer.returns), th.tensor(buffer.log_probs)]
    assert_equal(results[0], results[1])
    assert results[0][0]["num_timesteps"] == 256


def test_waiting_steps_of_cut_episodes_are_saved(tmp_path: Path) -> None:
    # Pendulum's episodes take 200 steps: after 192 of them no update was possible, and all wait for the end. Loaded
    # without a reset of the environment, the next rollout completes the episode.
    env = make_vec_env("Pendulum-v1", 1, seed=1)
    model = VanillaPGPaper("MlpPolicy", env, advantage_estimator="baseline", **{**SMALL, "n_steps": 96}).learn(192)
    assert model._n_updates == 0
    model.save(tmp_path / "model")
    loaded = VanillaPGPaper.load(tmp_path / "model", env=env, device="cpu", force_reset=False)
    loaded.learn(96, reset_num_timesteps=False)
    assert loaded._n_updates == 2  # the epochs of the value function's fit
    assert logged(loaded)["train/waiting_timesteps"] == 3 * 96 - 200


@every_algorithm
def test_a_trip_with_normalised_observations(algorithm: Any, tmp_path: Path) -> None:
    # SB3 saves VecNormalize's statistics apart from the model.
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=1))
    model = algorithm("MlpPolicy", env, **SMALL).learn(64)
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "statistics.pkl"))
    results = []
    for trip in (False, True):
        fresh = VecNormalize.load(str(tmp_path / "statistics.pkl"), make_vec_env("Pendulum-v1", 2))
        if trip:
            model = algorithm.load(tmp_path / "model", env=fresh, device="cpu")
        else:
            model.set_env(fresh)
        random_generators_alike(model)
        model.learn(64, reset_num_timesteps=False)
        results.append((state(model), logged(model)))
    assert_equal(results[0], results[1])


@every_algorithm
def test_parameters_set_are_those_that_were_got(algorithm: Any) -> None:
    trained = algorithm("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    other = algorithm("MlpPolicy", "Pendulum-v1", **{**SMALL, "seed": 1}).learn(32)
    observation = np.array([1.0, 0.0, 0.5])
    assert trained.predict(observation, deterministic=True)[0] != other.predict(observation, deterministic=True)[0]
    wanted = state(trained)["parameters"]
    other.set_parameters(trained.get_parameters())
    assert_equal(other.get_parameters(), wanted)
    assert trained.predict(observation, deterministic=True)[0] == other.predict(observation, deterministic=True)[0]
    other.learn(64)  # and it learns from there, by itself
    assert not th.equal(other.policy.action_net.weight, trained.policy.action_net.weight)
    # Adam's moments are shared, as torch's load_state_dict() has it; the weights are not.
    assert_equal(trained.get_parameters()["policy"], wanted["policy"])


@every_algorithm
def test_parameters_are_set_by_name_and_in_full(algorithm: Any) -> None:
    model = algorithm("MlpPolicy", "Pendulum-v1", **SMALL)
    assert set(model.get_parameters()) == {"policy", "policy.optimizer"}
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        model.set_parameters({"policy": model.policy.state_dict()})
    model.set_parameters({"policy": model.policy.state_dict()}, exact_match=False)


# ------------------------------------------------------------------ to and from SB3's PPO


def largest_difference(ours: Any, theirs: Any) -> float:
    pairs = zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def test_a_zip_of_sb3s_ppo_trains_on_with_fused_adam(tmp_path: Path) -> None:
    theirs = PPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    theirs.save(tmp_path / "ppo")
    ours = PPOClipPaper.load(tmp_path / "ppo", env=theirs.env, device="cpu")
    fused = [ours.policy.optimizer.param_groups[0]["fused"]]
    for model in (theirs, ours):
        random_generators_alike(model)
        model.learn(64, reset_num_timesteps=False)
    fused.append(ours.policy.optimizer.param_groups[0]["fused"])
    assert fused == [None, True]  # as SB3 left it, and from our first update on
    # 4 updates of 2 steps each, the moments among what was loaded.
    assert {entry["step"].item() for entry in ours.policy.optimizer.state.values()} == {4 * 2}
    # The same training, up to the rounding of 4 steps of 3e-4.
    assert largest_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("algorithm", [PPOAdaptiveKLPaper, PPOFixedKLPaper])
def test_a_zip_of_sb3s_ppo_trains_on_with_a_penalty(algorithm: Any, tmp_path: Path) -> None:
    theirs = PPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    theirs.save(tmp_path / "ppo")
    ours = algorithm.load(tmp_path / "ppo", env=theirs.env, device="cpu").learn(64, reset_num_timesteps=False)
    assert ours.num_timesteps == 128
    assert logged(ours)["train/kl"] > 0


def test_a_deviation_that_sb3s_ppo_learned_can_be_held(tmp_path: Path) -> None:
    # Adam has moments for it from then on, and no gradient.
    theirs = PPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    theirs.save(tmp_path / "ppo")
    ours = PPOClipPaper.load(tmp_path / "ppo", env=theirs.env, device="cpu", log_std_schedule=-1.0)
    ours.learn(64, reset_num_timesteps=False)
    assert ours.policy.log_std.tolist() == [-1.0]


def test_a_zip_of_ours_loads_into_sb3s_ppo_and_trains_on(tmp_path: Path) -> None:
    choices: dict[str, Any] = {"vf_coef": 0.5, "max_grad_norm": 0.5, "normalize_advantage": True}
    ours = PPOClipPaper("MlpPolicy", "Pendulum-v1", clip_range=LinearSchedule(0.3, 0.1, 1.0), **choices, **SMALL)
    ours.learn(64).save(tmp_path / "ours")
    theirs = PPO.load(tmp_path / "ours", env=ours.env, device="cpu")
    assert_equal(theirs.get_parameters(), ours.get_parameters())
    observation = np.array([1.0, 0.0, 0.5])
    assert theirs.predict(observation, deterministic=True)[0] == ours.predict(observation, deterministic=True)[0]
    for model in (ours, theirs):
        random_generators_alike(model)
        model.learn(64, reset_num_timesteps=False)
    assert theirs.clip_range(0.5) == pytest.approx(0.2)  # type: ignore[operator]
    assert largest_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("algorithm", [each for each in ALGORITHMS if each is not PPOClipPaper])
def test_a_zip_without_clipping_loads_into_the_classes_that_clip_and_back(algorithm: Any, tmp_path: Path) -> None:
    ours = algorithm("MlpPolicy", "CartPole-v1", **{**SMALL, "n_steps": 64}).learn(64)
    ours.save(tmp_path / "ours")
    cases: list[tuple[Any, dict[str, Any]]] = [(PPOClipPaper, {}), (PPO, {"max_grad_norm": 0.5})]
    for clipping, needed in cases:
        loaded = clipping.load(tmp_path / "ours", env=ours.env, device="cpu", clip_range=0.2, **needed)
        assert_equal(loaded.get_parameters(), ours.get_parameters())
        loaded.learn(64, reset_num_timesteps=False)
        assert logged(loaded)["train/clip_range"] == pytest.approx(0.2)
        loaded.save(tmp_path / "clipped")
        clips = algorithm in (PPOAdaptiveKLPaper, PPOFixedKLPaper)  # the others have no such setting
        for choice, kept in (({}, 0.2 if clips else None), ({"clip_range": None}, None)):
            again = algorithm.load(tmp_path / "clipped", env=ours.env, device="cpu", **choice)
            again.learn(64, reset_num_timesteps=False)
            assert logged(again).get("train/clip_range") == (kept and pytest.approx(kept))


def test_a_zip_of_one_kl_variant_brings_its_beta_into_the_other(tmp_path: Path) -> None:
    fixed = PPOFixedKLPaper("MlpPolicy", "CartPole-v1", beta=2.0, **SMALL)
    fixed.save(tmp_path / "fixed")
    assert PPOAdaptiveKLPaper.load(tmp_path / "fixed", device="cpu").beta == 2.0
    adaptive = PPOAdaptiveKLPaper.load(tmp_path / "fixed", env=fixed.env, device="cpu", beta=0.5)
    adaptive.learn(32).save(tmp_path / "adaptive")
    assert adaptive.beta in (0.25, 0.5, 1.0)
    assert PPOFixedKLPaper.load(tmp_path / "adaptive", device="cpu").beta == adaptive.beta


def test_a_zip_holds_no_weights_but_the_policys(tmp_path: Path) -> None:
    # π_old's copy, the stored rollout and compiled functions do not belong in it: the policy's 2·(3·64 + 64) +
    # 2·(64·64 + 64) + 2·64 + 2 + 1 = 8963 numbers, its two moments, and little else, at 4 bytes each.
    model = PPOAdaptiveKLPaper("MlpPolicy", "Pendulum-v1", n_steps=2048, n_epochs=1, device="cpu", seed=0).learn(2048)
    model.save(tmp_path / "model.zip")
    assert sum(parameter.numel() for parameter in model.policy.parameters()) == 8963
    assert (tmp_path / "model.zip").stat().st_size < 3 * 8963 * 4 + 60_000
