"""What users of SB3 rely on, for each algorithm of ours."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import (
    FakeImageEnv,
    IdentityEnv,
    IdentityEnvBox,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
    SimpleMultiObsEnv,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

import sb3_ppo_variants
from sb3_ppo_variants import (
    Minibatch,
    PaperOnPolicyAlgorithm,
    PPOAdaptiveKLPaper,
    PPOClipPaper,
    PPOFixedKLPaper,
    losses,
)
from tests.helpers import CountingBuffer

ALGORITHMS = [getattr(sb3_ppo_variants, name) for name in sb3_ppo_variants.ALGORITHMS.values()]
SMALL: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu"}

# Those without a ratio, or without a bound on it: a clip_range is refused.
UNCLIPPED = [sb3_ppo_variants.PPOUnclippedPaper, sb3_ppo_variants.VanillaPGPaper]
# Those whose policy follows the objective in minibatches, for several epochs.
PPO_VARIANTS = [algorithm for algorithm in ALGORITHMS if algorithm is not sb3_ppo_variants.VanillaPGPaper]

every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
every_ppo_variant = pytest.mark.parametrize("algorithm", PPO_VARIANTS)


# ------------------------------------------------------------------ drop-in


@every_algorithm
def test_takes_every_argument_of_sb3_ppo_in_the_same_order(algorithm: type[PaperOnPolicyAlgorithm]) -> None:
    theirs = list(inspect.signature(PPO).parameters)
    ours = list(inspect.signature(algorithm).parameters)
    assert ours[: len(theirs)] == theirs


@every_algorithm
def test_positional_arguments_mean_what_they_mean_in_sb3(algorithm: Any) -> None:
    clip_range = None if algorithm in UNCLIPPED else 0.1
    model = algorithm(
        "MlpPolicy", "CartPole-v1", 1e-3, 32, 16, 3, 0.9, 0.8, clip_range, 0.5, False, 0.01, 0.7, 0.4, device="cpu"
    )
    assert (model.learning_rate, model.n_steps, model.batch_size, model.n_epochs) == (1e-3, 32, 16, 3)
    assert (model.gamma, model.gae_lambda, model.normalize_advantage) == (0.9, 0.8, False)
    assert (model.clip_range and model.clip_range(1), model.clip_range_vf(1)) == (clip_range, 0.5)
    assert (model.ent_coef, model.vf_coef, model.max_grad_norm) == (0.01, 0.7, 0.4)


@every_algorithm
def test_defaults_are_table_3(algorithm: type[PaperOnPolicyAlgorithm]) -> None:
    model = algorithm("MlpPolicy", "Pendulum-v1", device="cpu")
    # Table 3: T = 2048, stepsize 3e-4, K = 10, M = 64, γ = 0.99, λ = 0.95. §6.1: 2×64 tanh, no entropy bonus.
    assert (model.n_steps, model.learning_rate, model.n_epochs, model.batch_size) == (2048, 3e-4, 10, 64)
    assert (model.gamma, model.gae_lambda, model.ent_coef) == (0.99, 0.95, 0.0)
    assert [
        layer.out_features for layer in model.policy.mlp_extractor.policy_net if hasattr(layer, "out_features")
    ] == [
        64,
        64,
    ]
    assert any(isinstance(layer, th.nn.Tanh) for layer in model.policy.mlp_extractor.policy_net)
    # The authors' code, where the paper is silent.
    assert (model.vf_coef, model.max_grad_norm, model.normalize_advantage) == (1.0, None, "batch")
    # SB3's, where ours to choose.
    assert (model.clip_actions, model.bootstrap_on_timeout) == (True, True)


def test_defaults_that_the_variants_set() -> None:
    clip = PPOClipPaper("MlpPolicy", "CartPole-v1")
    assert clip.clip_range(1) == 0.2  # type: ignore[operator, misc]
    penalty = PPOAdaptiveKLPaper("MlpPolicy", "CartPole-v1")
    assert (penalty.kl_target, penalty.beta_init, penalty.beta, penalty.clip_range) == (0.01, 1.0, 1.0, None)
    fixed = PPOFixedKLPaper("MlpPolicy", "CartPole-v1")
    assert (fixed.beta, fixed.clip_range) == (3.0, None)  # Table 1's best fixed β
    for algorithm in UNCLIPPED:
        assert algorithm("MlpPolicy", "CartPole-v1").clip_range is None


OBSERVATIONS: dict[str, tuple[str, Any]] = {
    "dict": ("MultiInputPolicy", lambda: SimpleMultiObsEnv(random_start=False)),
    "image": ("CnnPolicy", lambda: FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=False)),
    "box": ("MlpPolicy", lambda: IdentityEnvBox()),
    "multi-discrete": ("MlpPolicy", lambda: IdentityEnvMultiDiscrete(3)),
    "multi-binary": ("MlpPolicy", lambda: IdentityEnvMultiBinary(3)),
}


@every_algorithm
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_trains_saves_loads_and_predicts_the_same(
    algorithm: type[PaperOnPolicyAlgorithm], name: str, tmp_path: Path
) -> None:
    policy, make_env = OBSERVATIONS[name]
    model = algorithm(policy, make_env(), **SMALL).learn(128)
    before = {key: tensor.clone() for key, tensor in model.policy.state_dict().items()}
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=model.env)
    for key, tensor in loaded.policy.state_dict().items():
        assert th.equal(tensor, before[key])
    assert model.env is not None
    observation: Any = model.env.reset()
    assert np.array_equal(
        model.predict(observation, deterministic=True)[0], loaded.predict(observation, deterministic=True)[0]
    )
    loaded.learn(64)
    assert any(not th.equal(tensor, before[key]) for key, tensor in loaded.policy.state_dict().items())


def test_zips_that_sb3_ppo_saved_load(tmp_path: Path) -> None:
    theirs = PPO("MlpPolicy", "CartPole-v1", clip_range=LinearSchedule(0.3, 0.1, 1.0), **SMALL).learn(128)
    theirs.save(tmp_path / "ppo")
    ours = PPOClipPaper.load(tmp_path / "ppo", env=theirs.env)
    observation = np.array([0.1, -0.2, 0.3, -0.4])
    assert np.array_equal(
        ours.predict(observation, deterministic=True)[0], theirs.predict(observation, deterministic=True)[0]
    )
    # What SB3 had set is kept, so that training goes on as it was.
    assert (ours.vf_coef, ours.max_grad_norm, ours.normalize_advantage) == (0.5, 0.5, True)
    assert ours.clip_range(0.5) == pytest.approx(0.2)  # type: ignore[operator, misc]
    ours.learn(128, reset_num_timesteps=False)
    assert ours.num_timesteps == 256


@every_algorithm
def test_loads_with_the_zeros_that_rl_zoo3_injects(algorithm: type[PaperOnPolicyAlgorithm], tmp_path: Path) -> None:
    algorithm("MlpPolicy", "CartPole-v1", **SMALL).save(tmp_path / "model")
    zeros = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    assert algorithm.load(tmp_path / "model", custom_objects=zeros).predict(np.zeros(4))[0] in (0, 1)


class OwnEvaluationPolicy(ActorCriticPolicy):
    """A user's policy whose ``evaluate_actions`` is its own, and never touches ``action_dist``."""

    calls = 0

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        type(self).calls += 1
        distribution = DiagGaussianDistribution(1)
        features = self.extract_features(obs)
        latent_pi, latent_vf = self.mlp_extractor(features)
        distribution.proba_distribution(self.action_net(latent_pi), self.log_std)
        return self.value_net(latent_vf), distribution.log_prob(actions), distribution.entropy()


@every_algorithm
def test_a_custom_policy_and_a_custom_buffer_are_called(algorithm: type[PaperOnPolicyAlgorithm]) -> None:
    OwnEvaluationPolicy.calls = CountingBuffer.calls = 0
    algorithm(OwnEvaluationPolicy, "Pendulum-v1", rollout_buffer_class=CountingBuffer, **SMALL).learn(64)
    # Epochs × minibatches; the vanilla policy gradient takes one step on the whole batch.
    assert OwnEvaluationPolicy.calls == (2 * 2 if algorithm in PPO_VARIANTS else 1)
    assert CountingBuffer.calls >= 2


def test_custom_and_stock_paths_of_the_kl_agree() -> None:
    # The stock path stores π_old's distributions, the custom one keeps a frozen π_old; gSDE's noise carries gradients.
    for kwargs in ({}, {"use_sde": True}):
        stock = PPOAdaptiveKLPaper("MlpPolicy", "Pendulum-v1", learning_rate=3e-3, **SMALL, **kwargs).learn(64)
        custom = PPOAdaptiveKLPaper(
            "MlpPolicy", "Pendulum-v1", learning_rate=3e-3, rollout_buffer_class=CountingBuffer, **SMALL, **kwargs
        ).learn(64)
        logged = [model.logger.name_to_value["train/kl"] for model in (stock, custom)]
        assert logged[0] > 0
        assert logged[0] == pytest.approx(logged[1], rel=1e-4)


# ------------------------------------------------------------------ what is ours


class Recorder(gym.Env):
    """Records the actions it is given; each episode is cut after five steps; the reward is 1."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Box(-0.1, 0.1, (1,))

    def __init__(self) -> None:
        self.actions: list[np.ndarray] = []
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        self.actions.append(np.array(action))
        self.steps += 1
        return np.zeros(1, dtype=np.float32), 1.0, False, self.steps == 5, {}


def test_log_clip_uses_the_interval_of_the_logarithm() -> None:
    model = PPOClipPaper("MlpPolicy", "CartPole-v1", surrogate="log_clip", **SMALL)
    # ε = 0.2: r = 0.8 is inside [e^−0.2, e^0.2] = [0.819, 1.221]? No: below. r = 1.21 is inside, though above 1 + ε.
    ratio = th.tensor([0.8, 1.21])
    fields = dict.fromkeys(Minibatch._fields)
    batch = Minibatch(**{  # type: ignore[arg-type]
        **fields, "advantages": -th.ones(2), "ratio": ratio, "log_prob": th.log(ratio), "old_log_prob": th.zeros(2),
        "clip_range": 0.2,
    })  # fmt: skip
    # Â = −1: r = 0.8 is held at e^−0.2; r = 1.21 is left alone.
    assert model.objective(batch).tolist() == pytest.approx([-math.exp(-0.2), -1.21])
    assert model.minibatch_metrics(batch)["clip_fraction"] == 0.5


def test_loading_for_prediction_neither_warns_nor_fails(tmp_path: Path) -> None:
    env = make_vec_env("CartPole-v1", 8)
    PPOClipPaper("MlpPolicy", env, n_steps=1, batch_size=8, device="cpu").save(tmp_path / "model")
    loaded = PPOClipPaper.load(tmp_path / "model", env=make_vec_env("CartPole-v1", 1))
    assert loaded.predict(np.zeros(4))[0] in (0, 1)
    with pytest.raises(ValueError, match=r"n_steps \* n_envs >= 2"):  # but training is refused
        loaded.learn(8)
    assert PPOClipPaper.load(tmp_path / "model").predict(np.zeros(4))[0] in (0, 1)


def test_a_rollout_that_minibatches_do_not_divide_warns_as_sb3_does() -> None:
    with pytest.warns(UserWarning, match="You have specified a mini-batch size of 48"):
        PPOClipPaper("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=48, device="cpu")


@pytest.mark.parametrize("clip_actions", [True, False])
def test_clip_actions_governs_rollouts_and_predict(clip_actions: bool) -> None:
    env = Recorder()
    model = PPOClipPaper("MlpPolicy", env, clip_actions=clip_actions, **SMALL).learn(64)
    assert (np.abs(env.actions).max() <= 0.1) == clip_actions
    single = [model.predict(np.zeros(1))[0] for _ in range(50)]
    assert single[0].shape == (1,)
    assert (np.abs(single).max() <= 0.1) == clip_actions
    assert model.predict(np.zeros((3, 1)))[0].shape == (3, 1)
    # The rollout remembers what was sampled, either way: the log-probabilities belong to those.
    assert np.abs(model.rollout_buffer.actions).max() > 0.1


@pytest.mark.parametrize("bootstrap", [True, False])
def test_bootstrap_on_timeout(bootstrap: bool) -> None:
    model = PPOClipPaper("MlpPolicy", Recorder(), bootstrap_on_timeout=bootstrap, n_epochs=1, n_steps=10, batch_size=10)
    model.policy.value_net.bias.data.fill_(2.0)
    value = model.policy.predict_values(th.zeros(1, 1)).item()
    model.learn(10)
    # Steps 5 and 10 end their episodes: r = 1, or 1 + γ V(last observation).
    last = 1 + 0.99 * value if bootstrap else 1.0
    assert value == 2.0
    assert model.rollout_buffer.rewards.flatten() == pytest.approx([1, 1, 1, 1, last] * 2)


@pytest.mark.parametrize(("choice", "expected"), [("batch", (0.0, 1.0)), (False, None)])
def test_advantages_are_standardised_over_the_whole_batch(choice: Any, expected: tuple[float, float] | None) -> None:
    seen: list[th.Tensor] = []

    class Spy(PPOClipPaper):
        def objective(self, batch: Minibatch) -> th.Tensor:
            seen.append(batch.advantages)
            return super().objective(batch)

    model = Spy("MlpPolicy", "CartPole-v1", **{**SMALL, "n_epochs": 1, "normalize_advantage": choice}).learn(64)
    whole = th.cat(seen)
    raw = model.rollout_buffer.advantages
    mean, std = expected or (float(raw.mean()), float(raw.std()))
    assert whole.mean().item() == pytest.approx(mean, abs=1e-5)
    assert whole.std(correction=0).item() == pytest.approx(std, abs=1e-4)
    if choice == "batch":  # a single minibatch is not standardised in itself
        assert abs(seen[0].mean().item()) > 1e-3


def test_metrics_are_means_over_the_update() -> None:
    losses_seen: list[float] = []

    class Spy(PPOClipPaper):
        def minibatch_metrics(self, batch: Minibatch) -> dict[str, th.Tensor]:
            objective = self.objective(batch).mean()
            losses_seen.append(-objective.item())
            return {**super().minibatch_metrics(batch), "mine": objective}

    model = Spy("MlpPolicy", "CartPole-v1", **SMALL).learn(64)
    logged = model.logger.name_to_value
    assert len(losses_seen) == 4
    assert logged["train/policy_gradient_loss"] == pytest.approx(np.mean(losses_seen), abs=1e-6)
    assert logged["train/mine"] == pytest.approx(-np.mean(losses_seen), abs=1e-6)
    assert {"train/kl", "train/approx_kl", "train/clip_fraction", "train/explained_variance"} <= set(logged)


@pytest.mark.parametrize(("vec_env", "while_stepping"), [(DummyVecEnv, 2), (SubprocVecEnv, 1)])
def test_torch_has_one_thread_while_worker_processes_step(vec_env: Any, while_stepping: int) -> None:
    seen: list[int] = []

    def note(*_: Any) -> bool:
        seen.append(th.get_num_threads())
        return True

    env = vec_env([lambda: gym.make("CartPole-v1")])
    th.set_num_threads(2)
    try:
        PPOClipPaper("MlpPolicy", env, **{**SMALL, "n_epochs": 1}).learn(64, callback=note)
        assert set(seen) == {while_stepping}
        assert th.get_num_threads() == 2  # set back for the update
    finally:
        th.set_num_threads(1)
        env.close()


# ------------------------------------------------------------------ adaptive KL


class KLTrace(PPOAdaptiveKLPaper):
    """Keeps each minibatch's KL and each update's (β used, KL after it)."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.minibatch_kls: list[float] = []
        self.updates: list[tuple[float, float]] = []
        super().__init__(*args, **kwargs)

    def objective(self, batch: Minibatch) -> th.Tensor:
        assert batch.kl is not None
        self.minibatch_kls.append(batch.kl.mean().item())
        return super().objective(batch)

    def after_update(self, kl: float) -> None:
        self.updates.append((self.beta, kl))
        super().after_update(kl)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_kl_is_zero_before_the_first_step_of_each_update_and_positive_after(env: str) -> None:
    model = KLTrace("MlpPolicy", env, learning_rate=3e-3, **SMALL).learn(3 * 64)
    first_of_each_update = model.minibatch_kls[::4]
    assert first_of_each_update == pytest.approx([0, 0, 0], abs=1e-6)
    assert all(kl > 1e-6 for kl in model.minibatch_kls[1::4])


def test_kl_is_exact_and_of_the_whole_batch() -> None:
    model = KLTrace("MlpPolicy", "Pendulum-v1", learning_rate=3e-3, **SMALL)
    old = {key: tensor.clone() for key, tensor in model.policy.state_dict().items()}
    model.learn(64)
    # By hand, from the two policies at every observation of the rollout: KL[π_old, π_new], summed over actions.
    observations = th.as_tensor(model.rollout_buffer.observations)
    new: Any = model.policy.get_distribution(observations).distribution
    model.policy.load_state_dict(old)
    before: Any = model.policy.get_distribution(observations).distribution
    expected = th.distributions.kl_divergence(before, new).sum(dim=-1).mean()
    assert model.updates[0][1] == pytest.approx(expected.item(), rel=1e-4)


def test_beta_moves_once_per_update_and_serves_the_next() -> None:
    # With a huge target every KL is below the band, so β halves after each update; it is 1 in the first.
    model = KLTrace("MlpPolicy", "CartPole-v1", kl_target=1e3, **SMALL).learn(3 * 64)
    assert [beta for beta, _ in model.updates] == [1, 0.5, 0.25]
    assert model.beta == 0.125
    # With a tiny one it doubles.
    model = KLTrace("MlpPolicy", "CartPole-v1", kl_target=1e-12, beta_init=3.0, **SMALL).learn(2 * 64)
    assert [beta for beta, _ in model.updates] == [3, 6]
    assert model.logger.name_to_value["train/beta"] == 6


def test_a_larger_beta_holds_the_policy_nearer() -> None:
    kls = [
        KLTrace("MlpPolicy", "CartPole-v1", beta_init=beta, learning_rate=3e-3, **SMALL).learn(64).updates[0][1]
        for beta in (0.0, 30.0)
    ]
    assert kls[1] < 0.5 * kls[0]


def test_beta_is_saved_and_restored_and_not_confused_with_beta_init(tmp_path: Path) -> None:
    model = PPOAdaptiveKLPaper("MlpPolicy", "CartPole-v1", kl_target=1e3, **SMALL).learn(128)
    assert model.beta == 0.25
    model.save(tmp_path / "model")
    # rl_zoo3 hands every hyperparameter to load().
    loaded = PPOAdaptiveKLPaper.load(tmp_path / "model", env=model.env, beta_init=1.0, kl_target=1e3)
    assert (loaded.beta, loaded.beta_init) == (0.25, 1.0)
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.beta == 0.125


def test_beta_init_counts_where_the_zip_has_no_beta(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1", **SMALL).save(tmp_path / "ppo")
    assert PPOAdaptiveKLPaper.load(tmp_path / "ppo", beta_init=5.0).beta == 5.0


def test_the_minibatch_kl_is_of_the_old_policy_against_the_new() -> None:
    # The actor's σ quadruples after the rollout: KL[old, new] = log 4 + 1/32 − 1/2, and 7.5 − log 4 the other way.
    seen: list[th.Tensor] = []

    class Spy(PPOAdaptiveKLPaper):
        def objective(self, batch: Minibatch) -> th.Tensor:
            assert batch.kl is not None
            seen.append(batch.kl.detach())
            if len(seen) == 1:
                self.policy.state_dict()["log_std"].add_(math.log(4))
            return super().objective(batch)

    model = Spy("MlpPolicy", "Pendulum-v1", learning_rate=0.0, **{**SMALL, "n_epochs": 1}).learn(64)
    assert seen[1] == pytest.approx(math.log(4) + 1 / 32 - 1 / 2, rel=1e-4)
    assert model.logger.name_to_value["train/kl"] == pytest.approx(math.log(4) + 1 / 32 - 1 / 2, rel=1e-4)


def test_a_compiled_policy_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    model = PPOAdaptiveKLPaper("MlpPolicy", "CartPole-v1", **SMALL)
    # The wrapper of torch.compile, without the compiler.
    model.policy = th.compile(model.policy, backend="eager")  # type: ignore[assignment]
    assert model.learn(64).beta != 1.0


def test_a_large_rollout_is_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    kls = []
    for rows in (2048, 10):
        monkeypatch.setattr("sb3_ppo_variants.rollout_data.EVALUATION_ROWS", rows)
        model = PPOAdaptiveKLPaper("MlpPolicy", "CartPole-v1", **SMALL).learn(64)
        kls.append(model.logger.name_to_value["train/kl"])
    assert kls[0] > 0
    assert kls[0] == pytest.approx(kls[1], rel=1e-3)


def test_the_parts_of_a_large_batch_count_by_their_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    logged = []
    for rows in (2048, 60):
        monkeypatch.setattr("sb3_ppo_variants.vanilla_pg.EVALUATION_ROWS", rows)
        model = sb3_ppo_variants.VanillaPGPaper("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
        logged.append(model.logger.name_to_value)
    for name in ("policy_gradient_loss", "loss", "entropy_loss", "approx_kl"):
        assert logged[1][f"train/{name}"] == pytest.approx(logged[0][f"train/{name}"], rel=1e-4, abs=1e-6), name


def test_beta_zero_is_no_penalty() -> None:
    model = PPOAdaptiveKLPaper("MlpPolicy", "CartPole-v1", beta_init=0.0, **SMALL).learn(64)
    assert model.beta == 0.0

    class Unpenalised(PaperOnPolicyAlgorithm):
        def objective(self, batch: Minibatch) -> th.Tensor:
            return losses.conservative_policy_iteration(batch.ratio, batch.advantages)

    plain = Unpenalised("MlpPolicy", "CartPole-v1", clip_range=None, **SMALL).learn(64)
    for ours, theirs in zip(model.policy.parameters(), plain.policy.parameters(), strict=True):
        assert th.equal(ours, theirs)


def test_clip_and_penalty_act_together() -> None:
    fractions, weights = [], []
    for clip_range in (None, 0.01):
        model = PPOAdaptiveKLPaper("MlpPolicy", "CartPole-v1", clip_range=clip_range, learning_rate=3e-3, **SMALL)
        model.learn(64)
        fractions.append(model.logger.name_to_value.get("train/clip_fraction"))
        weights.append(model.policy.state_dict()["action_net.weight"])
    assert fractions[0] is None
    assert fractions[1] is not None
    assert fractions[1] > 0
    assert not th.equal(*weights)


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_kl_that_is_not_finite_ends_the_training_with_the_iteration_named(
    kl: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PPOAdaptiveKLPaper("MlpPolicy", "CartPole-v1", **SMALL).learn(64)
    monkeypatch.setattr("sb3_ppo_variants.rollout_data.StoredRollout.mean_kl", lambda *_: kl)
    with pytest.raises(FloatingPointError, match=r"KL.* at iteration 2 \(128 timesteps\)"):
        model.learn(64, reset_num_timesteps=False)
    assert model.beta == 0.5  # of the first update; the broken one did not touch it


@every_algorithm
def test_a_diverging_run_ends_with_the_iteration_named(algorithm: type[PaperOnPolicyAlgorithm]) -> None:
    # Steps of 1e20 drive the weights past float32 within the first update.
    with pytest.raises(FloatingPointError, match=r"at iteration 1 \(64 timesteps\): the training has diverged"):
        algorithm("MlpPolicy", "Pendulum-v1", learning_rate=1e20, **SMALL).learn(64)


def test_an_unknown_distribution_is_refused_by_name() -> None:
    class Laplace:
        """A distribution of the user's own, of which no exact KL is known."""

    class LaplacePolicy(ActorCriticPolicy):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.action_dist = Laplace()  # type: ignore[assignment]

    with pytest.raises(TypeError, match="the policy's is a Laplace"):
        PPOAdaptiveKLPaper(LaplacePolicy, "Pendulum-v1", **SMALL)
    PPOClipPaper(LaplacePolicy, "Pendulum-v1", **SMALL)  # needs no KL


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"clip_range": -0.1},
            r"clip_range must be (a number >= 0, a schedule or None|a number >= 0 or a schedule|None: .*); got -0\.1",
        ),
        ({"clip_range": float("nan")}, r"clip_range must be (a number >= 0|None: .*; got nan)"),
        ({"clip_range": "0.2"}, r"clip_range must be (a number >= 0|None: .*; got '0\.2')"),
        ({"clip_range_vf": 0.0}, "clip_range_vf must be a number > 0"),
        ({"learning_rate": -1.0}, "learning_rate must be a number >= 0 or a schedule; got -1.0"),
        ({"learning_rate": None}, "learning_rate must be a number >= 0 or a schedule; got None"),
        ({"n_steps": 0}, "n_steps must be an integer >= 1"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1"),
        ({"n_epochs": 0}, "n_epochs must be an integer >= 1"),
        ({"gamma": 1.5}, r"gamma must be a number in \[0, 1\]; got 1\.5"),
        ({"gae_lambda": -1}, r"gae_lambda must be a number in \[0, 1\]"),
        ({"n_steps": 64.5}, "n_steps must be an integer >= 1; got 64.5"),
        ({"gamma": lambda _: 0.9}, r"gamma must be a number in \[0, 1\]; got <function"),
        ({"max_grad_norm": -1}, "max_grad_norm must be a number >= 0 or None"),
        ({"target_kl": -1}, "target_kl must be a number >= 0 or None"),
        ({"ent_coef": float("nan")}, "ent_coef must be a finite number or a schedule; got nan"),
        ({"vf_coef": "0.5"}, "vf_coef must be a finite number or a schedule; got '0.5'"),
        ({"clip_actions": "no"}, "clip_actions must be one of True, False; got 'no'"),
        ({"bootstrap_on_timeout": None}, "bootstrap_on_timeout must be one of True, False; got None"),
        (
            {"normalize_advantage": "bach"},
            "normalize_advantage must be one of True, False, 'batch'; got 'bach' .*'batch'",
        ),
        ({"normalize_advantage": True, "batch_size": 1}, "normalize_advantage=True needs batch_size >= 2"),
        ({"normalize_advantage": "batch", "n_steps": 1}, r"normalize_advantage='batch' needs n_steps \* n_envs >= 2"),
    ],
)
@every_algorithm
def test_bad_arguments_are_named_with_the_allowed_values(
    algorithm: type[PaperOnPolicyAlgorithm], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        algorithm("MlpPolicy", "CartPole-v1", **kwargs)


def test_bad_arguments_of_the_variants() -> None:
    with pytest.raises(
        ValueError, match=r"surrogate must be one of 'clip', 'log_clip'; got 'clipp' \(did you mean 'clip'"
    ):
        PPOClipPaper("MlpPolicy", "CartPole-v1", surrogate="clipp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clip_range must be a number >= 0 or a schedule; got None"):
        PPOClipPaper("MlpPolicy", "CartPole-v1", clip_range=None)
    with pytest.raises(ValueError, match="kl_target must be a finite number > 0; got 0"):
        PPOAdaptiveKLPaper("MlpPolicy", "CartPole-v1", kl_target=0)
    with pytest.raises(ValueError, match=r"beta_init must be 0 or a number in .*; got -1"):
        PPOAdaptiveKLPaper("MlpPolicy", "CartPole-v1", beta_init=-1)
    with pytest.raises(ValueError, match="beta must be a finite number >= 0 or a schedule; got -1"):
        PPOFixedKLPaper("MlpPolicy", "CartPole-v1", beta=-1)
    for algorithm in UNCLIPPED:
        with pytest.raises(ValueError, match=r"clip_range must be None: .*; got 0\.2"):
            algorithm("MlpPolicy", "CartPole-v1", clip_range=0.2)
    with pytest.raises(ValueError, match=r"target_kl must be None: .*; got 0\.02"):
        sb3_ppo_variants.VanillaPGPaper("MlpPolicy", "CartPole-v1", target_kl=0.02)


def test_bad_arguments_to_load_are_refused_too(tmp_path: Path) -> None:
    PPOClipPaper("MlpPolicy", "CartPole-v1", **SMALL).save(tmp_path / "model")
    with pytest.raises(ValueError, match="clip_range must be"):
        PPOClipPaper.load(tmp_path / "model", clip_range=-0.1)
    PPOAdaptiveKLPaper("MlpPolicy", "CartPole-v1", **SMALL).save(tmp_path / "penalty")
    with pytest.raises(ValueError, match="beta must be 0 or a number in"):
        PPOAdaptiveKLPaper.load(tmp_path / "penalty", beta=-1.0)


def test_a_schedule_that_turns_negative_is_refused_where_it_does() -> None:
    model = PPOClipPaper("MlpPolicy", "CartPole-v1", clip_range=lambda left: left - 0.75, **SMALL)
    with pytest.raises(
        ValueError, match=r"clip_range must be finite and >= 0 throughout; its schedule gave -0\.25 at iteration 1"
    ):
        model.learn(128)


@pytest.mark.parametrize(
    ("algorithm", "name"), [(PPOClipPaper, "clip_range"), (PPOClipPaper, "clip_range_vf"), (PPOFixedKLPaper, "beta")]
)
def test_a_line_down_to_zero_ends_there(algorithm: Any, name: str) -> None:
    model = algorithm("MlpPolicy", "CartPole-v1", **{**SMALL, name: lambda left: 0.2 * left})
    assert model.learn(model.n_steps + 1).num_timesteps == 2 * model.n_steps


# ------------------------------------------------------------------ learning


# What is done now earns the reward of now, whatever comes after: γ = 0. Epochs and stepsizes are those of SB3's own
# tests of PPO on these environments.
DISCRETE_SETTINGS: dict[str, Any] = {"n_steps": 256, "n_epochs": 4, "gamma": 0.0, "learning_rate": 2e-3}
BOX_SETTINGS: dict[str, Any] = {**DISCRETE_SETTINGS, "learning_rate": 1e-3}
# Where nothing holds the policy near the old one, four epochs lead astray on the box.
UNCLIPPED_BOX_SETTINGS: dict[str, Any] = {**BOX_SETTINGS, "n_epochs": 1}
# One step per rollout, hence many small rollouts.
VANILLA_SETTINGS: dict[str, Any] = {**BOX_SETTINGS, "n_steps": 32, "batch_size": 32, "n_epochs": 1}


def identity_settings(algorithm: type[PaperOnPolicyAlgorithm], is_box: bool) -> dict[str, Any]:
    if algorithm not in PPO_VARIANTS:
        return {**VANILLA_SETTINGS, "learning_rate": 5e-3 if is_box else 1e-2}
    if not is_box:
        return DISCRETE_SETTINGS
    return UNCLIPPED_BOX_SETTINGS if algorithm in UNCLIPPED else BOX_SETTINGS


@pytest.mark.parametrize(
    ("make_env", "timesteps"),
    [
        (lambda: IdentityEnv(4), 1280),
        pytest.param(lambda: IdentityEnvMultiDiscrete(4), 1280, marks=pytest.mark.slow),
        pytest.param(lambda: IdentityEnvMultiBinary(4), 3072, marks=pytest.mark.slow),
        (lambda: IdentityEnvBox(eps=0.5), 1280),
    ],
    ids=["discrete", "multi-discrete", "multi-binary", "box"],
)
@every_algorithm
def test_solves_the_identity_environments(
    algorithm: type[PaperOnPolicyAlgorithm], make_env: Any, timesteps: int
) -> None:
    env = DummyVecEnv([make_env])
    is_box = isinstance(env.action_space, spaces.Box)
    if algorithm not in PPO_VARIANTS:
        timesteps = 3072
    model = algorithm("MlpPolicy", env, device="cpu", seed=3, **identity_settings(algorithm, is_box)).learn(timesteps)
    # Of 100. At random: 1/4, 1/16 and 1/16 are right; on the box, where π starts near N(0, 1), fewer than half.
    threshold = 90 if algorithm not in UNCLIPPED else 75
    evaluate_policy(model, env, n_eval_episodes=10, reward_threshold=threshold, warn=False)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [PPOClipPaper, PPOAdaptiveKLPaper, PPOFixedKLPaper])
def test_solves_cart_pole_for_four_of_five_seeds(algorithm: type[PaperOnPolicyAlgorithm]) -> None:
    solved = 0
    for seed in range(5):
        model = algorithm("MlpPolicy", "CartPole-v1", seed=seed, device="cpu").learn(100_000)
        mean_return: Any
        mean_return, _ = evaluate_policy(model, make_vec_env("CartPole-v1", seed=1000 + seed), n_eval_episodes=20)
        solved += mean_return >= 450
    assert solved >= 4
