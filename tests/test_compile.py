"""``compile=True``: the plain path's training up to rounding, compiled once, and a clear word where it cannot be."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.envs import IdentityEnvMultiBinary, IdentityEnvMultiDiscrete
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch._dynamo.utils import counters

import sb3_ppo_variants
from sb3_ppo_variants import Minibatch, PPOAdaptiveKLPaper, PPOClipPaper, PPOUnclippedPaper, VanillaPGPaper, losses
from sb3_ppo_variants.compilation import compiler_problem

ALGORITHMS = [getattr(sb3_ppo_variants, name) for name in sb3_ppo_variants.ALGORITHMS.values()]
SMALL: dict[str, Any] = {
    "n_steps": 32,
    "batch_size": 16,
    "n_epochs": 2,
    "seed": 0,
    "device": "cpu",
    "policy_kwargs": {"net_arch": [4]},
}

# PyTorch's own, of its own modules, as its compiler imports them.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    th._dynamo.reset()
    counters.clear()
    yield
    th._dynamo.reset()


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the trial compilation: these tests fail anyway where nothing can be compiled."""
    monkeypatch.setattr("sb3_ppo_variants.on_policy.compiler_problem", lambda: None)


def n_compiled() -> int:
    return counters["stats"]["unique_graphs"]


def assert_close(ours: Any, theirs: Any) -> None:
    assert ours.num_timesteps == theirs.num_timesteps
    for a, b in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        th.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ compiled


@needs_a_compiler
def test_compiled_and_plain_end_with_the_same_weights_and_the_compiled_model_is_saved(tmp_path: Path) -> None:
    # With the trial compilation, once in this file.
    compiled, plain = (
        PPOClipPaper("MlpPolicy", "CartPole-v1", compile=on, **SMALL).learn(2 * 32) for on in (True, False)
    )
    before = PPOClipPaper("MlpPolicy", "CartPole-v1", **SMALL).policy.get_parameter("action_net.weight")
    assert compiled.compile
    assert n_compiled() == 2  # the trial, and the loss with its gradient
    assert_close(compiled, plain)
    assert not th.allclose(plain.policy.get_parameter("action_net.weight"), before, rtol=0, atol=1e-4)
    for name in ("loss", "policy_gradient_loss", "value_loss", "entropy_loss", "kl", "approx_kl", "clip_fraction"):
        logged = [model.logger.name_to_value[f"train/{name}"] for model in (compiled, plain)]
        assert logged[0] == pytest.approx(logged[1], rel=1e-4, abs=1e-6), name

    compiled.save(tmp_path / "model")
    loaded = PPOClipPaper.load(tmp_path / "model", env=compiled.env, device="cpu")
    assert loaded.compile
    for key, tensor in compiled.policy.state_dict().items():
        assert th.equal(loaded.policy.state_dict()[key], tensor)


@needs_a_compiler
@pytest.mark.usefixtures("tried")
def test_what_changes_between_updates_is_not_compiled_again() -> None:
    # β doubles after each of four updates, and the schedules fall.
    arguments: dict[str, Any] = {
        "kl_target": 1e-12,
        "stepsize_kl_target": 1e-12,
        "clip_range": lambda left: 0.1 + left,
        "ent_coef": lambda left: 0.1 + left,
        **SMALL,
    }
    compiled, plain = (
        PPOAdaptiveKLPaper("MlpPolicy", "CartPole-v1", compile=on, **arguments).learn(4 * 32) for on in (True, False)
    )
    assert compiled.beta == plain.beta == 2**4
    assert n_compiled() == 1
    assert_close(compiled, plain)


class Tempered(PPOUnclippedPaper):
    """A user's surrogate: tempered ratios, the temperature falling between updates."""

    needs_kl = True

    def __init__(self, *args: Any, **kwargs: Any):
        self.temperature = 1.0
        super().__init__(*args, **kwargs)

    def coefficients(self) -> dict[str, float]:
        return {"temperature": self.temperature}

    def objective(self, batch: Minibatch) -> th.Tensor:
        assert batch.kl is not None
        tempered = batch.ratio ** batch.coefficients["temperature"]
        return losses.conservative_policy_iteration(tempered, batch.advantages) - batch.kl

    def minibatch_metrics(self, batch: Minibatch) -> dict[str, th.Tensor]:
        return {"mean_ratio": batch.ratio.mean()}

    def after_update(self, kl: float) -> None:
        self.temperature *= 0.9


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("tried")
def test_a_surrogate_of_ones_own_is_compiled() -> None:
    compiled, plain = (Tempered("MlpPolicy", "Pendulum-v1", compile=on, **SMALL).learn(3 * 32) for on in (True, False))
    assert n_compiled() == 1
    assert_close(compiled, plain)
    logged = [model.logger.name_to_value["train/mean_ratio"] for model in (compiled, plain)]
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)
    assert logged[0] != 1


class OwnExtractor(FlattenExtractor):
    """Not among those that the explicit passes know: compiled with autograd."""


SETTINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "box": ("Pendulum-v1", {}),
    "held deviation": ("Pendulum-v1", {"log_std_schedule": -0.5}),
    "discrete": ("CartPole-v1", {"max_grad_norm": 0.5, "clip_range_vf": 1.0}),
    "multi-discrete": (lambda: IdentityEnvMultiDiscrete(3), {}),
    "multi-binary": (lambda: IdentityEnvMultiBinary(3), {}),
    "truncated minibatch": ("CartPole-v1", {"batch_size": 12}),
    "ReLU": ("CartPole-v1", {"policy_kwargs": {"net_arch": [4, 3], "activation_fn": th.nn.ReLU}}),
    "extractor of one's own": ("CartPole-v1", {"policy_kwargs": {"features_extractor_class": OwnExtractor}}),
}


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("tried")
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size of:UserWarning")
@pytest.mark.parametrize("name", SETTINGS)
def test_every_kind_of_policy_is_compiled(name: str) -> None:
    env, kwargs = SETTINGS[name]
    models = []
    for on in (True, False):
        model = PPOAdaptiveKLPaper(
            "MlpPolicy", env if isinstance(env, str) else env(), compile=on, **{**SMALL, **kwargs}
        )
        if not isinstance(env, str):
            model.env.envs[0].unwrapped.action_space.seed(0)  # type: ignore[union-attr]
        models.append(model.learn(2 * 32))
    # A truncated minibatch is a shape of its own. SB3 reads the sizes of MultiDiscrete observations from a tensor,
    # which nothing compiles: one graph before it, two behind.
    assert n_compiled() == {"truncated minibatch": 2, "multi-discrete": 3}.get(name, 1)
    assert models[0].compile
    assert_close(*models)


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("tried")
def test_a_compiled_model_trains_on_after_loading(tmp_path: Path) -> None:
    model = PPOClipPaper("MlpPolicy", "CartPole-v1", compile=True, **SMALL).learn(32)
    model.save(tmp_path / "model")
    loaded = PPOClipPaper.load(tmp_path / "model", env=model.env, device="cpu")
    before = loaded.policy.get_parameter("action_net.weight").detach().clone()
    loaded.learn(32, reset_num_timesteps=False)
    assert not th.equal(loaded.policy.get_parameter("action_net.weight"), before)


# ------------------------------------------------------------------ not compiled


class OwnPolicy(ActorCriticPolicy):
    """A user's policy."""

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        return super().evaluate_actions(obs, actions)


@pytest.mark.parametrize(
    ("policy", "kwargs"), [(OwnPolicy, {}), ("MlpPolicy", {"use_sde": True})], ids=["own policy", "gsde"]
)
@pytest.mark.usefixtures("tried")
def test_a_policy_that_is_not_compiled_is_said_to_be(policy: Any, kwargs: dict[str, Any]) -> None:
    plain = PPOClipPaper(policy, "Pendulum-v1", **SMALL, **kwargs).learn(64)
    asked = PPOClipPaper(policy, "Pendulum-v1", compile=True, **SMALL, **kwargs)
    with pytest.warns(UserWarning, match=r"compile=True has no effect, .* uncompiled: it covers SB3's own") as warned:
        asked.learn(64)
    assert len(warned) == 1  # of two updates
    assert n_compiled() == 0
    assert asked.compile  # what was asked for stays on record, and in the zip
    for a, b in zip(asked.policy.parameters(), plain.policy.parameters(), strict=True):
        assert th.equal(a, b)


@pytest.mark.parametrize(
    "algorithm",
    [algorithm for algorithm in ALGORITHMS if algorithm is not VanillaPGPaper],
)
def test_without_a_compiler_the_update_runs_uncompiled_and_says_why(
    algorithm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sb3_ppo_variants.on_policy.compiler_problem", lambda: "RuntimeError: no g++")
    asked = algorithm("MlpPolicy", "CartPole-v1", compile=True, **SMALL)
    with pytest.warns(UserWarning, match=r"compile=True has no effect, .* uncompiled: RuntimeError: no g\+\+"):
        asked.learn(32)
    plain = algorithm("MlpPolicy", "CartPole-v1", **SMALL).learn(32)
    for a, b in zip(asked.policy.parameters(), plain.policy.parameters(), strict=True):
        assert th.equal(a, b)


def test_the_compilers_problem_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Any, **_: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nwith a long trace")

    monkeypatch.setattr(th, "compile", broken)
    assert compiler_problem() == "RuntimeError: No working C++ compiler found"


@pytest.mark.parametrize("message", ["", "\n"])
def test_a_problem_without_words_is_a_problem_too(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Any, **_: Any) -> Any:
        raise AssertionError(message)

    monkeypatch.setattr(th, "compile", broken)
    problem = compiler_problem()
    assert problem is not None
    assert problem.startswith("AssertionError")
