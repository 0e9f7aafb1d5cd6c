"""What changes between updates: β, the stepsize, schedules; in the logs, in force, and when a training goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import IdentityEnvMultiBinary, IdentityEnvMultiDiscrete
from stable_baselines3.common.utils import LinearSchedule

import sb3_ppo_variants
from sb3_ppo_variants import Minibatch, PPOAdaptiveKLPaper, PPOClipPaper, PPOFixedKLPaper, VanillaPGPaper, losses
from sb3_ppo_variants.controllers import adapt_beta, adapt_stepsize
from tests.helpers import CountingBuffer

ALGORITHMS = [getattr(sb3_ppo_variants, name) for name in sb3_ppo_variants.ALGORITHMS.values()]
SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "seed": 0, "device": "cpu"}

every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


def traced(algorithm: Any) -> Any:
    """The algorithm, keeping what each update logged in ``trace``."""

    class Traced(algorithm):
        def after_update(self, kl: float) -> None:
            super().after_update(kl)
            # A dump has emptied the logger before the update, or never, where nothing is dumped.
            self.__dict__.setdefault("trace", []).append(dict(self.logger.name_to_value))

    return Traced


def logged(model: Any, name: str) -> list[float]:
    return [update[f"train/{name}"] for update in model.trace]


def script_kls(monkeypatch: pytest.MonkeyPatch, *kls: float) -> None:
    """Let E[KL] after each update be the next of ``kls``, whatever the policy did."""
    remaining: Iterator[float] = iter(kls)
    monkeypatch.setattr("sb3_ppo_variants.rollout_data.StoredRollout.mean_kl", lambda *_: next(remaining))


# ------------------------------------------------------------------ β

# d_targ = 0.75, so the band is [0.5, 1.125], all exact in binary. By hand, from β = 3: 1.2 > 1.125 → 6; 1.125 stays;
# 0.5 stays; 0.49 < 0.5 → 3; 0 → 1.5; 2 → 3.
BETA_KLS = (1.2, 1.125, 0.5, 0.49, 0.0, 2.0)
BETAS = [3, 6, 6, 6, 3, 1.5, 3]


def test_beta_by_the_rule() -> None:
    betas = [3.0]
    for kl in BETA_KLS:
        betas.append(adapt_beta(betas[-1], kl, kl_target=0.75))
    assert betas == BETAS


def test_beta_in_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    in_force: list[Any] = []

    class Spy(traced(PPOAdaptiveKLPaper)):  # type: ignore[misc]
        def objective(self, batch: Minibatch) -> th.Tensor:
            in_force.append(batch.coefficients["beta"])
            return super().objective(batch)

    script_kls(monkeypatch, *BETA_KLS)
    model = Spy("MlpPolicy", "CartPole-v1", kl_target=0.75, beta_init=3.0, **SMALL).learn(6 * 32)
    assert in_force == BETAS[:-1]
    assert logged(model, "beta") == BETAS[:-1]  # of the update, not of the next
    assert logged(model, "kl") == list(BETA_KLS)
    assert model.beta == BETAS[-1]


# ------------------------------------------------------------------ the stepsize

# A target of 0.5, so the band is [0.25, 1]. In units of the first stepsize, by hand: 1.01 > 1 → 1/1.5; 1 and 0.25 stay;
# 0.24 → 1; 0 → 1.5; inf would end a training.
STEPSIZE_KLS = (1.01, 1.0, 0.25, 0.24, 0.0)
STEPSIZES = [1, 1 / 1.5, 1 / 1.5, 1 / 1.5, 1, 1.5]


def test_the_stepsize_by_the_rule() -> None:
    stepsizes = [1e-3]
    for kl in STEPSIZE_KLS:
        stepsizes.append(adapt_stepsize(stepsizes[-1], kl, 0.5, (1e-5, 1e-2)))
    assert stepsizes == pytest.approx([1e-3 * stepsize for stepsize in STEPSIZES], rel=1e-12)
    # Between the boundaries, both included, it is left alone and not only nearly so.
    assert [adapt_stepsize(1e-3, kl, 0.5, (1e-5, 1e-2)) for kl in (0.25, 0.5, 1.0)] == [1e-3] * 3


@pytest.mark.parametrize(
    ("stepsize", "kl", "expected"),
    [
        (1.4, 9.0, 1.0),  # 1.4 / 1.5 < 1, the smallest
        (1.0, 9.0, 1.0),
        (0.5, 9.0, 0.5),  # a schedule took it there: no further out
        (0.5, 0.0, 0.75),  # and back in
        (7.0, 0.0, 8.0),  # 7 · 1.5 > 8, the largest
        (8.0, 0.0, 8.0),
        (9.0, 0.0, 9.0),
        (9.0, 9.0, 6.0),
    ],
)
def test_the_stepsize_keeps_within_its_bounds(stepsize: float, kl: float, expected: float) -> None:
    assert adapt_stepsize(stepsize, kl, kl_target=1.0, bounds=(1.0, 8.0)) == expected


def stepsize_in_force(model: Any) -> float:
    return model.policy.optimizer.param_groups[0]["lr"]


@every_algorithm
def test_the_stepsize_in_a_training(algorithm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script_kls(monkeypatch, *STEPSIZE_KLS)
    model = traced(algorithm)("MlpPolicy", "CartPole-v1", learning_rate=1e-3, stepsize_kl_target=0.5, **SMALL)
    model.learn(5 * 32)
    assert logged(model, "learning_rate") == pytest.approx([1e-3 * stepsize for stepsize in STEPSIZES[:-1]])
    assert stepsize_in_force(model) == pytest.approx(1e-3 * STEPSIZES[-2])
    assert model.stepsize_factor == pytest.approx(STEPSIZES[-1])


def test_vanilla_pg_fits_its_value_function_with_the_adapted_stepsize(monkeypatch: pytest.MonkeyPatch) -> None:
    in_force: list[float] = []

    class Spy(VanillaPGPaper):
        def _clip_and_step(self, steps: Any) -> None:
            in_force.append(stepsize_in_force(self))
            super()._clip_and_step(steps)

    script_kls(monkeypatch, 2.0, 0.5)  # the first is above 2 · 0.5
    settings = {**SMALL, "batch_size": 16}
    Spy("MlpPolicy", "CartPole-v1", learning_rate=1.5e-3, stepsize_kl_target=0.5, **settings).learn(2 * 32)
    assert in_force == pytest.approx([1.5e-3] * 3 + [1e-3] * 3)  # the policy's step, and two of the value function's


@every_algorithm
def test_the_stepsize_follows_the_measured_kl(algorithm: Any) -> None:
    # Whatever an update does, its KL lies above 1e-12 and below 1e3: three updates, all in one direction.
    for target, factor in ((1e-12, 1 / 1.5), (1e3, 1.5)):
        model = traced(algorithm)("MlpPolicy", "Pendulum-v1", stepsize_kl_target=target, **SMALL).learn(3 * 32)
        assert model.stepsize_factor == pytest.approx(factor**3)
        assert all(1e-12 < kl < 1e2 for kl in logged(model, "kl"))


@every_algorithm
def test_without_a_target_the_stepsize_stays(algorithm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script_kls(monkeypatch, *STEPSIZE_KLS)
    model = traced(algorithm)("MlpPolicy", "CartPole-v1", learning_rate=1e-3, **SMALL).learn(3 * 32)
    assert logged(model, "learning_rate") == [1e-3] * 3
    assert model.stepsize_factor == 1


def test_the_stepsize_multiplies_a_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    # 4 updates; the schedule falls from 1e-3 to 0 and is at 3/4, 2/4, 1/4 and 0 of it. Factors: 1, 1.5, 2.25, 1.5
    # after the KLs 0, 0, 2 against a target of 0.5.
    script_kls(monkeypatch, 0.0, 0.0, 2.0, 2.0)
    model = traced(PPOClipPaper)(
        "MlpPolicy", "CartPole-v1", learning_rate=LinearSchedule(1e-3, 0.0, 1.0), stepsize_kl_target=0.5, **SMALL
    ).learn(4 * 32)
    assert logged(model, "learning_rate") == pytest.approx([0.75e-3, 0.5e-3 * 1.5, 0.25e-3 * 2.25, 0])
    assert model.stepsize_factor == pytest.approx(1.5)  # a stepsize of 0 says nothing about the factor


def test_the_bounds_hold_in_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1e-3 → 1.2e-3, where 1.5e-3 is out of bounds, and stays; then 0.8e-3 twice, where 0.533e-3 is out of bounds.
    script_kls(monkeypatch, 0.0, 0.0, 9.0, 9.0, 9.0)
    model = traced(PPOClipPaper)(
        "MlpPolicy", "CartPole-v1", learning_rate=1e-3, stepsize_kl_target=0.5, stepsize_bounds=(0.8e-3, 1.2e-3),
        **SMALL,
    ).learn(5 * 32)  # fmt: skip
    assert logged(model, "learning_rate") == pytest.approx([1e-3, 1.2e-3, 1.2e-3, 0.8e-3, 0.8e-3])


def test_a_buffer_of_ones_own_is_measured_only_where_the_kl_is_needed() -> None:
    # A copy of the policy for each update is the price.
    for target in (None, 1e-12):
        model = traced(PPOClipPaper)(
            "MlpPolicy", "CartPole-v1", rollout_buffer_class=CountingBuffer, stepsize_kl_target=target, **SMALL
        ).learn(32)
        assert ("train/kl" in model.trace[0]) == (target is not None)
        assert model.stepsize_factor == pytest.approx(1 if target is None else 1 / 1.5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"stepsize_kl_target": 0.0}, r"stepsize_kl_target must be a finite number > 0 or None; got 0\.0"),
        ({"stepsize_kl_target": math.inf}, "stepsize_kl_target must be a finite number > 0 or None; got inf"),
        ({"stepsize_bounds": (1e-2, 1e-5)}, r"stepsize_bounds must be a pair 0 < smallest <= largest < inf; got"),
        ({"stepsize_bounds": (0, 1)}, "stepsize_bounds must be a pair"),
        ({"stepsize_bounds": 1e-3}, r"stepsize_bounds must be a pair .*; got 0\.001"),
        ({"stepsize_bounds": "12"}, "stepsize_bounds must be a pair .*; got '12'"),
        ({"log_std_schedule": "small"}, "log_std_schedule must be a finite number, a schedule or None; got 'small'"),
        ({"log_std_schedule": -math.inf}, "log_std_schedule must be a finite number, a schedule or None; got -inf"),
    ],
)
@every_algorithm
def test_bad_settings_are_named(algorithm: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        algorithm("MlpPolicy", "Pendulum-v1", **kwargs)


# ------------------------------------------------------------------ log σ


class LogStds(BaseCallback):
    """Keeps the log standard deviation at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def _on_step(self) -> bool:
        self.seen.append(self.model.policy.log_std[0].item())  # type: ignore[index]
        return True


@every_algorithm
def test_log_std_follows_its_schedule_from_rollout_to_rollout(algorithm: Any) -> None:
    # Table 4's schedule; at the start of 3 rollouts 1, 2/3 and 1/3 of the training remain:
    # −0.7, −0.7 − 0.9 / 3 and −0.7 − 2 · 0.9 / 3.
    expected = [-0.7, -1.0, -1.3]
    model = traced(algorithm)("MlpPolicy", "Pendulum-v1", log_std_schedule=LinearSchedule(-0.7, -1.6, 1.0), **SMALL)
    assert model.policy.log_std.tolist() == pytest.approx([-0.7])
    callback = LogStds()
    model.learn(3 * 32, callback=callback)
    assert callback.seen == pytest.approx(np.repeat(expected, 32), abs=1e-6)
    assert logged(model, "std") == pytest.approx(np.exp(expected))
    assert model.policy.log_std.tolist() == pytest.approx([-1.3])  # nothing learned on top
    # The log-probabilities are those of that deviation.
    buffer = model.rollout_buffer
    std = np.exp(-1.3)
    densest = -np.log(std * np.sqrt(2 * np.pi))
    assert buffer.log_probs.max() <= densest + 1e-5
    assert buffer.log_probs.max() > densest - 0.5


@every_algorithm
def test_a_constant_log_std_is_held(algorithm: Any) -> None:
    model = algorithm("MlpPolicy", "Pendulum-v1", log_std_schedule=-1.5, learning_rate=1e-2, **SMALL).learn(64)
    assert model.policy.log_std.tolist() == [-1.5]
    assert model.policy.log_std.grad is None
    learned = algorithm("MlpPolicy", "Pendulum-v1", learning_rate=1e-2, **SMALL).learn(64)
    assert learned.policy.log_std.tolist() != [0.0]


@pytest.mark.parametrize(
    ("env", "kwargs"),
    [
        ("CartPole-v1", {}),
        (IdentityEnvMultiDiscrete(3), {}),
        (IdentityEnvMultiBinary(3), {}),
        ("Pendulum-v1", {"use_sde": True}),
    ],
    ids=["discrete", "multi-discrete", "multi-binary", "gsde"],
)
@every_algorithm
def test_a_schedule_of_log_std_needs_gaussian_actions(algorithm: Any, env: Any, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"log_std_schedule must be None unless actions are Gaussian .*; got -1\.0"):
        algorithm("MlpPolicy", env, log_std_schedule=-1.0, **SMALL, **kwargs)


def test_a_schedule_of_log_std_that_leaves_the_finite_numbers_is_refused_where_it_does() -> None:
    model = PPOClipPaper(
        "MlpPolicy", "Pendulum-v1", log_std_schedule=lambda left: math.log(left) if left > 0.5 else math.nan, **SMALL
    )
    with pytest.raises(ValueError, match=r"log_std_schedule must stay finite; it gave nan at .*\(32 timesteps\)"):
        model.learn(64)


# ------------------------------------------------------------------ schedules of coefficients

# 2 updates: when they begin, 1/2 and 0 of the training remain.
FALLING = LinearSchedule(0.4, 0.1, 1.0)
FALLEN = [0.25, 0.1]


def combined(model: Any, *names: str) -> list[float]:
    """The loss, put together from the logged terms and coefficients."""
    losses_ = []
    for update in model.trace:
        terms = [update["train/policy_gradient_loss"]]
        for coefficient, term in zip(names[::2], names[1::2], strict=True):
            value = update.get(f"train/{coefficient}", getattr(model, coefficient))
            terms.append(value * update[f"train/{term}"])
        losses_.append(sum(terms))
    return losses_


@every_algorithm
def test_schedules_of_the_losss_coefficients(algorithm: Any) -> None:
    model = traced(algorithm)("MlpPolicy", "CartPole-v1", ent_coef=FALLING, vf_coef=lambda left: 2 * left + 1, **SMALL)
    model.learn(64)
    assert logged(model, "ent_coef") == pytest.approx(FALLEN)
    assert logged(model, "vf_coef") == pytest.approx([2, 1])
    # One minibatch per update, so that means are that minibatch's numbers. The vanilla policy gradient fits its value
    # function apart from it.
    value = ("vf_coef", "value_loss") if algorithm is not VanillaPGPaper else ()
    assert logged(model, "loss") == pytest.approx(combined(model, "ent_coef", "entropy_loss", *value), rel=1e-6)


@every_algorithm
def test_a_vanishing_vf_coef_leaves_the_value_function_alone(algorithm: Any) -> None:
    model = algorithm("MlpPolicy", "CartPole-v1", vf_coef=lambda left: 0.0, **SMALL)
    before = {key: tensor.clone() for key, tensor in model.policy.state_dict().items()}
    model.learn(64)
    changed = {key for key, tensor in model.policy.state_dict().items() if not th.equal(tensor, before[key])}
    assert "action_net.weight" in changed
    assert "value_net.weight" not in changed


@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if a is not VanillaPGPaper])
def test_a_vf_coef_that_falls_to_zero_leaves_the_value_function_from_then_on(algorithm: Any) -> None:
    # 3 updates at 2/3, 1/3 and 0 of the training: vf_coef is 1, 1 and 0.
    model = algorithm("MlpPolicy", "CartPole-v1", vf_coef=lambda left: math.ceil(left), **SMALL)
    weights = []

    def keep(*_: Any) -> None:
        weights.append(model.policy.get_parameter("value_net.weight").detach().clone())

    model.after_update = keep
    model.learn(96)
    assert not th.equal(weights[0], weights[1])
    assert th.equal(weights[1], weights[2])


@every_algorithm
def test_constants_are_not_logged(algorithm: Any) -> None:
    model = traced(algorithm)("MlpPolicy", "CartPole-v1", ent_coef=0.1, **SMALL).learn(32)
    assert not {"train/ent_coef", "train/vf_coef", "train/clip_range_vf"} & set(model.trace[0])


@pytest.mark.parametrize("algorithm", [PPOClipPaper, PPOAdaptiveKLPaper, PPOFixedKLPaper])
def test_schedules_of_the_clip_ranges(algorithm: Any) -> None:
    in_force = []

    class Spy(traced(algorithm)):  # type: ignore[misc]
        def objective(self, batch: Minibatch) -> th.Tensor:
            in_force.append(batch.clip_range)
            return super().objective(batch)

    model = Spy("MlpPolicy", "CartPole-v1", clip_range=FALLING, clip_range_vf=FALLING, **SMALL).learn(64)
    assert in_force == pytest.approx(FALLEN)
    assert logged(model, "clip_range") == pytest.approx(FALLEN)
    assert logged(model, "clip_range_vf") == pytest.approx(FALLEN)


def test_a_schedule_of_a_fixed_beta() -> None:
    in_force = []

    class Spy(traced(PPOFixedKLPaper)):  # type: ignore[misc]
        def objective(self, batch: Minibatch) -> th.Tensor:
            in_force.append(batch.coefficients["beta"])
            return super().objective(batch)

    model = Spy("MlpPolicy", "CartPole-v1", beta=FALLING, **SMALL).learn(64)
    assert in_force == pytest.approx(FALLEN)
    assert logged(model, "beta") == pytest.approx(FALLEN)
    constant = Spy("MlpPolicy", "CartPole-v1", beta=2.5, **SMALL).learn(64)
    assert logged(constant, "beta") == [2.5, 2.5]


@pytest.mark.parametrize(("name", "bad"), [("ent_coef", math.nan), ("vf_coef", math.inf), ("beta", -1.0)])
def test_a_schedule_that_leaves_its_range_is_refused_where_it_does(name: str, bad: float) -> None:
    schedule = {name: lambda left: 0.1 if left > 0.4 else bad}
    model: Any = PPOFixedKLPaper("MlpPolicy", "CartPole-v1", **SMALL, **schedule)
    with pytest.raises(ValueError, match=rf"{name} must be .*; its schedule gave {bad} at iteration 2 \(64 timesteps"):
        model.learn(64)


# ------------------------------------------------------------------ a surrogate of one's own


class Halving(traced(PPOClipPaper)):  # type: ignore[misc]
    """A user's variant: a coefficient that it halves after each update."""

    def __init__(self, *args: Any, temperature: float = 4.0, **kwargs: Any):
        self.temperature = temperature
        self.in_force: list[Any] = []
        super().__init__(*args, **kwargs)

    def coefficients(self) -> dict[str, float]:
        return {**super().coefficients(), "temperature": self.temperature}

    def after_update(self, kl: float) -> None:
        super().after_update(kl)
        self.temperature /= 2

    def objective(self, batch: Minibatch) -> th.Tensor:
        self.in_force.append(batch.coefficients["temperature"])
        surrogate = losses.conservative_policy_iteration(batch.ratio, batch.advantages)
        return batch.coefficients["temperature"] * surrogate


def test_coefficients_of_ones_own_are_logged_and_in_the_minibatch() -> None:
    model = Halving("MlpPolicy", "CartPole-v1", **{**SMALL, "n_epochs": 2}).learn(3 * 32)
    assert model.in_force == [4, 4, 2, 2, 1, 1]  # the same throughout an update
    assert logged(model, "temperature") == [4, 2, 1]
    assert model.temperature == 0.5


# ------------------------------------------------------------------ going on


def resumed(model: Any, path: Path, timesteps: int) -> Any:
    model.save(path)
    return type(model).load(path, env=model.env).learn(timesteps, reset_num_timesteps=False)


def test_a_resumed_training_goes_on_with_its_beta_and_stepsize(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Constant learning rate: the trace is that of a training without the break.
    kls = (2.0, 2.0, 0.0, 2.0, 1.0)
    traces = []
    for first in (2 * 32, 5 * 32):
        script_kls(monkeypatch, *kls)
        model = traced(PPOAdaptiveKLPaper)(
            "MlpPolicy", "CartPole-v1", kl_target=0.75, stepsize_kl_target=0.75, **SMALL
        ).learn(first)
        if first < 5 * 32:
            model = resumed(model, tmp_path / "model", 5 * 32 - first)
        assert model.num_timesteps == 5 * 32
        traces.append((logged(model, "beta"), logged(model, "learning_rate"), model.beta, model.stepsize_factor))
    assert traces[0] == traces[1]
    assert traces[0][0] == [1, 2, 4, 2, 4]


def test_schedules_go_on_from_the_remaining_progress(tmp_path: Path) -> None:
    # 64 timesteps, then 64 more: SB3 counts progress over all 128 then. Updates are made at 1/2 and 0, then at
    # 1 − 96/128 and 0; their rollouts began at 1 and 1/2, then at 1 − 64/128 and 1 − 96/128.
    names = {"clip_range": FALLING, "ent_coef": FALLING, "learning_rate": LinearSchedule(1e-3, 0.0, 1.0)}
    model = traced(PPOClipPaper)(
        "MlpPolicy", "Pendulum-v1", log_std_schedule=LinearSchedule(-1.0, -2.0, 1.0), **names, **SMALL
    ).learn(64)
    model = resumed(model, tmp_path / "model", 64)
    fallen = [*FALLEN, 0.1 + 0.3 / 4, 0.1]
    assert logged(model, "clip_range") == pytest.approx(fallen)
    assert logged(model, "ent_coef") == pytest.approx(fallen)
    assert logged(model, "learning_rate") == pytest.approx([0.5e-3, 0, 0.25e-3, 0])
    assert logged(model, "std") == pytest.approx(np.exp([-1.0, -1.5, -1.5, -1.75]))


def test_a_second_learn_starts_schedules_anew_and_keeps_what_was_adapted(monkeypatch: pytest.MonkeyPatch) -> None:
    script_kls(monkeypatch, 9.0, 9.0, 0.5, 0.5)
    model = traced(PPOAdaptiveKLPaper)(
        "MlpPolicy", "CartPole-v1", kl_target=0.5, stepsize_kl_target=0.5, clip_range=FALLING, **SMALL
    )
    model.learn(64).learn(64)
    assert logged(model, "clip_range") == pytest.approx(FALLEN * 2)
    assert logged(model, "beta") == [1, 2, 4, 4]
    assert logged(model, "learning_rate") == pytest.approx([3e-4, 2e-4, 4e-4 / 3, 4e-4 / 3])
