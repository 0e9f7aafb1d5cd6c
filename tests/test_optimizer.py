"""The optimiser's steps: fused Adam where PyTorch has it, by its kernel where nothing else hangs on ``step()``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from torch.optim.optimizer import register_optimizer_step_post_hook

from sb3_ppo_variants import PPOClipPaper
from sb3_ppo_variants.optimizer import FusedAdamSteps, OptimizerSteps, is_fused, prefer_fused, steps_of

SMALL: dict[str, Any] = {"n_steps": 64, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}


def parameters(dtype: th.dtype = th.float32) -> list[th.nn.Parameter]:
    generator = th.Generator().manual_seed(0)
    shapes = ((4, 3), (4,), (2, 4), ())
    return [th.nn.Parameter(th.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def set_gradients(optimizer: th.optim.Optimizer, seed: int) -> None:
    generator = th.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = th.randn(parameter.shape, generator=generator).to(parameter.dtype)


def after_one_step(optimizer: th.optim.Optimizer) -> th.optim.Optimizer:
    set_gradients(optimizer, seed=99)
    optimizer.step()
    return optimizer


class OwnAdam(th.optim.Adam):
    """A user's optimiser."""


# ------------------------------------------------------------------ prefer_fused


@pytest.mark.parametrize("optimizer_class", [th.optim.Adam, th.optim.AdamW])
def test_adam_becomes_fused(optimizer_class: Any) -> None:
    optimizer = optimizer_class(parameters())
    assert not is_fused(optimizer)
    prefer_fused(optimizer)
    assert is_fused(optimizer)
    assert optimizer.param_groups[0]["fused"] is True


@pytest.mark.parametrize(
    "chosen", [{"fused": False}, {"foreach": True}, {"foreach": False}], ids=["not fused", "foreach", "neither"]
)
def test_a_choice_is_left_alone(chosen: dict[str, bool]) -> None:
    optimizer = th.optim.Adam(parameters(), **chosen)  # type: ignore[arg-type]
    before = copy.deepcopy(optimizer.param_groups[0])
    prefer_fused(optimizer)
    assert not is_fused(optimizer)
    assert {name: optimizer.param_groups[0][name] for name in chosen} == {name: before[name] for name in chosen}
    assert optimizer.param_groups[0]["fused"] == before["fused"]


@pytest.mark.parametrize("optimizer_class", [th.optim.SGD, th.optim.RMSprop, th.optim.Adagrad, OwnAdam])
def test_other_classes_are_left_alone(optimizer_class: Any) -> None:
    optimizer = optimizer_class(parameters(), lr=0.1)
    before = copy.deepcopy(optimizer.param_groups[0])
    prefer_fused(optimizer)
    assert optimizer.param_groups[0].get("fused") == before.get("fused")
    assert not is_fused(optimizer)


def test_what_no_kernel_takes_is_left_alone() -> None:
    for parameter in (th.nn.Parameter(th.zeros(2, dtype=th.complex64)), th.nn.Parameter(th.zeros(2, device="meta"))):
        optimizer = th.optim.Adam([parameter])
        prefer_fused(optimizer)
        assert not is_fused(optimizer)


def test_groups_are_decided_on_one_by_one() -> None:
    first, *others = parameters()
    groups: list[dict[str, Any]] = [{"params": [first]}, {"params": others, "foreach": True}]
    optimizer = th.optim.Adam(groups)
    prefer_fused(optimizer)
    assert [group["fused"] for group in optimizer.param_groups] == [True, None]
    assert not is_fused(optimizer)  # not all of it


def test_an_optimiser_becomes_fused_between_its_steps() -> None:
    # As one whose state comes from a zip of SB3's PPO: the moments go on. Fused and not differ by rounding only.
    plain, fused = (after_one_step(th.optim.Adam(parameters(), lr=1e-2)) for _ in range(2))
    prefer_fused(fused)
    for seed in range(5):
        for optimizer in (plain, fused):
            set_gradients(optimizer, seed)
            optimizer.step()
    assert {entry["step"].item() for entry in fused.state.values()} == {6}
    for a, b in zip(plain.param_groups[0]["params"], fused.param_groups[0]["params"], strict=True):
        th.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


# ------------------------------------------------------------------ the kernel's steps


def assert_same_state(ours: th.optim.Optimizer, theirs: th.optim.Optimizer) -> None:
    pairs = zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True)
    for a, b in pairs:
        assert th.equal(a, b)
        assert ours.state[a].keys() == theirs.state[b].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for name, tensor in theirs.state[b].items():
            assert th.equal(ours.state[a][name], tensor), name


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "SB3's": {"eps": 1e-5},
    "others": {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.01},
}


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_steps_equal_the_optimisers_bit_for_bit(name: str, dtype: th.dtype) -> None:
    ours, theirs = (after_one_step(th.optim.Adam(parameters(dtype), fused=True, **SETTINGS[name])) for _ in range(2))
    for update in range(3):  # whose stepsizes differ
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + update)
        steps = steps_of(ours)
        assert type(steps) is FusedAdamSteps
        for number in range(4):
            steps.zero_grad()
            assert all(parameter.grad is None for parameter in ours.param_groups[0]["params"])
            for optimizer in (ours, theirs):
                set_gradients(optimizer, seed=10 * update + number)
            steps.step()
            theirs.step()
        steps.finish()
        assert_same_state(ours, theirs)
    # One step before the three updates of four.
    assert {entry["step"].item() for entry in ours.state.values()} == {1 + 3 * 4}


def test_a_parameter_that_never_learned_is_left_out() -> None:
    held = parameters()
    held[1].requires_grad_(False)
    optimizer = th.optim.Adam(held, fused=True)
    for parameter in held:
        parameter.grad = th.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    before = held[1].clone()
    steps = steps_of(optimizer)
    assert type(steps) is FusedAdamSteps
    steps.zero_grad()
    for parameter in held:
        parameter.grad = th.ones_like(parameter) if parameter.requires_grad else None
    steps.step()
    steps.finish()
    assert th.equal(held[1], before)
    assert held[1] not in optimizer.state


def test_a_parameter_without_a_gradient_stays_and_keeps_its_moments() -> None:
    # As optimizer.step() has it: a parameter that learned, and that this loss does not depend on.
    ours, theirs = (after_one_step(th.optim.Adam(parameters(), fused=True)) for _ in range(2))
    steps = steps_of(ours)
    steps.zero_grad()
    for optimizer in (ours, theirs):
        set_gradients(optimizer, seed=0)
        optimizer.param_groups[0]["params"][1].grad = None
    steps.step()
    theirs.step()
    steps.finish()
    assert_same_state(ours, theirs)


# ------------------------------------------------------------------ and where they are not taken


def scheduled() -> th.optim.Optimizer:
    optimizer = th.optim.Adam(parameters(), fused=True)
    th.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)  # counts the calls of step()
    return after_one_step(optimizer)


def replaced() -> th.optim.Optimizer:
    optimizer = th.optim.Adam(parameters(), fused=True)
    original = optimizer.step
    optimizer.step = lambda *args: original(*args)  # type: ignore[method-assign]
    return after_one_step(optimizer)


def hooked(kind: str) -> th.optim.Optimizer:
    optimizer = after_one_step(th.optim.Adam(parameters(), fused=True))
    getattr(optimizer, f"register_step_{kind}_hook")(lambda *_: None)
    return optimizer


def in_two_groups() -> th.optim.Optimizer:
    first, *others = parameters()
    groups: list[dict[str, Any]] = [{"params": [first]}, {"params": others, "lr": 0.1}]
    return after_one_step(th.optim.Adam(groups, fused=True))


def uneven() -> th.optim.Optimizer:
    optimizer = after_one_step(th.optim.Adam(parameters(), fused=True))
    set_gradients(optimizer, seed=0)
    optimizer.param_groups[0]["params"][0].grad = None
    optimizer.step()
    return optimizer


def partly_new() -> th.optim.Optimizer:
    optimizer = th.optim.Adam(parameters(), fused=True)
    optimizer.param_groups[0]["params"][0].grad = th.ones(4, 3)
    optimizer.step()
    return optimizer


FALLBACKS: dict[str, Callable[[], th.optim.Optimizer]] = {
    "before the first step": lambda: th.optim.Adam(parameters(), fused=True),
    "not all past their first step": partly_new,
    "not as many steps for all": uneven,
    "not fused": lambda: after_one_step(th.optim.Adam(parameters(), fused=False)),
    "amsgrad": lambda: after_one_step(th.optim.Adam(parameters(), fused=True, amsgrad=True)),
    "maximize": lambda: after_one_step(th.optim.Adam(parameters(), fused=True, maximize=True)),
    "AdamW": lambda: after_one_step(th.optim.AdamW(parameters(), fused=True)),
    "decoupled weight decay": lambda: after_one_step(
        th.optim.Adam(parameters(), fused=True, decoupled_weight_decay=True)
    ),
    "a subclass": lambda: after_one_step(OwnAdam(parameters(), fused=True)),
    "SGD": lambda: after_one_step(th.optim.SGD(parameters(), lr=0.1)),
    "two groups": in_two_groups,
    "a scheduler": scheduled,
    "a replaced step": replaced,
    "a hook before": lambda: hooked("pre"),
    "a hook after": lambda: hooked("post"),
}


@pytest.mark.parametrize("name", FALLBACKS)
def test_anything_else_is_left_to_the_optimisers_own_step(name: str) -> None:
    ours, theirs = FALLBACKS[name](), FALLBACKS[name]()
    steps = steps_of(ours)
    assert type(steps) is OptimizerSteps
    for seed in range(3):
        steps.zero_grad()
        for optimizer in (ours, theirs):
            set_gradients(optimizer, seed)
        steps.step()
        theirs.step()
    steps.finish()
    pairs = zip(ours.param_groups, theirs.param_groups, strict=True)
    for a, b in pairs:
        assert all(th.equal(x, y) for x, y in zip(a["params"], b["params"], strict=True))


def test_a_hook_on_the_optimiser_runs_at_every_step_of_a_training() -> None:
    model = PPOClipPaper("MlpPolicy", "CartPole-v1", **SMALL)
    calls: list[Any] = []
    model.policy.optimizer.register_step_post_hook(lambda *args: calls.append(args))
    model.learn(2 * 64)
    assert len(calls) == 2 * 2 * 4  # updates × epochs × minibatches


def test_a_hook_on_all_optimisers_runs_at_every_step_of_a_training() -> None:
    calls: list[Any] = []
    handle = register_optimizer_step_post_hook(lambda *args: calls.append(args))
    try:
        PPOClipPaper("MlpPolicy", "CartPole-v1", **SMALL).learn(2 * 64)
    finally:
        handle.remove()
    assert len(calls) == 2 * 2 * 4


# ------------------------------------------------------------------ in a training


def trained(**optimizer_kwargs: Any) -> Any:
    policy_kwargs = {"optimizer_kwargs": {"eps": 1e-5, **optimizer_kwargs}}
    return PPOClipPaper("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, **SMALL).learn(2 * 64)


def test_fused_is_the_default_and_differs_by_rounding_only() -> None:
    default, plain, foreach = trained(), trained(fused=False), trained(foreach=True)
    flags = [model.policy.optimizer.param_groups[0]["fused"] for model in (default, plain, foreach)]
    assert flags == [True, False, None]
    # With it goes the leave to round otherwise than SB3.
    assert [model._evaluator().exact_rounding for model in (default, plain, foreach)] == [False, True, True]
    for other in (plain, foreach):
        for a, b in zip(default.policy.parameters(), other.policy.parameters(), strict=True):
            # 16 steps of 3e-4, whose directions agree to a few digits where gradients are tiny.
            th.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_state_counts_every_step() -> None:
    model = trained()
    # 2 updates of 2 epochs of 4 minibatches.
    assert {entry["step"].item() for entry in model.policy.optimizer.state.values()} == {16}
    stopped = PPOClipPaper("MlpPolicy", "Pendulum-v1", target_kl=1e-9, learning_rate=1e-3, **SMALL).learn(2 * 64)
    # Early stopping ends each update before its second step.
    assert {entry["step"].item() for entry in stopped.policy.optimizer.state.values()} == {2}


def test_the_stepsize_of_each_update_is_the_schedules() -> None:
    # A stepsize of 0 in the second half: nothing moves any more.
    model = PPOClipPaper("MlpPolicy", "Pendulum-v1", learning_rate=lambda left: 1e-3 if left > 0.4 else 0.0, **SMALL)
    weights: list[th.Tensor] = []

    def keep(kl: float) -> None:
        weights.append(model.policy.get_parameter("action_net.weight").detach().clone())

    model.after_update = keep  # type: ignore[method-assign]
    model.learn(4 * 64)
    # The updates are made when 3/4, 1/2, 1/4 and 0 of the training remain.
    assert not th.equal(weights[0], weights[1])
    assert th.equal(weights[1], weights[2])
    assert th.equal(weights[1], weights[3])
