"""Train every algorithm from REINFORCE to PPO on GridWorld-v0 and draw the plots of docs/reinforce-to-ppo.md.

``python docs/reinforce_to_ppo.py`` takes some minutes on one core. The grid world is so small that what is plotted
is computed, not sampled: expected returns, KL divergences and the true policy gradient come from the environment's
transition table and the policy's probabilities.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")  # before pyplot: no display is needed

import matplotlib.pyplot as plt
import numpy as np
import torch as th
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Polygon
from sb3_contrib import TRPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_ppo_variants import (
    Minibatch,
    PPOAdaptiveKLPaper,
    PPOClipPaper,
    PPOFixedKLPaper,
    PPOUnclippedPaper,
    VanillaPGPaper,
    losses,
)
from sb3_ppo_variants.envs.gridworld import GOAL, MOVES, OBSTACLES, SIZE, START, GridWorld

ENV_ID = "sb3_ppo_variants:GridWorld-v0"
N_CELLS, N_ACTIONS = SIZE * SIZE, len(MOVES)
START_CELL = SIZE * START[0] + START[1]
EPISODE_LIMIT = 100

GAMMA, N_ENVS, N_STEPS = 0.95, 8, 32
COMMON: dict[str, Any] = {"gamma": GAMMA, "n_steps": N_STEPS, "batch_size": 64}
ONE_STEP = {**COMMON, "learning_rate": 3e-3, "normalize_advantage": False}
MANY_STEPS = {**COMMON, "learning_rate": 3e-4}
LARGE_STEPSIZE = 3e-3
NEARLY_SOLVED = 0.9


class Step(NamedTuple):
    """One step of the walk."""

    name: str
    algorithm: type[OnPolicyAlgorithm]
    arguments: dict[str, Any]


STEPS = (
    Step("REINFORCE", VanillaPGPaper, {**ONE_STEP, "advantage_estimator": "reinforce"}),
    Step("value baseline", VanillaPGPaper, {**ONE_STEP, "advantage_estimator": "baseline"}),
    Step("actor-critic, TD error", VanillaPGPaper, {**ONE_STEP, "advantage_estimator": "td"}),
    Step("actor-critic, GAE", VanillaPGPaper, {**ONE_STEP, "advantage_estimator": "gae"}),
    Step("surrogate, unbounded", PPOUnclippedPaper, MANY_STEPS),
    Step("TRPO", TRPO, {**COMMON, "learning_rate": 1e-3}),
    Step("PPO, fixed KL penalty", PPOFixedKLPaper, MANY_STEPS),
    Step("PPO, adaptive KL penalty", PPOAdaptiveKLPaper, MANY_STEPS),
    Step("PPO, clipped", PPOClipPaper, MANY_STEPS),
)
ESTIMATORS = STEPS[:4]
SURROGATES = (STEPS[4], *STEPS[6:])
COLOURS = ("#4477aa", "#2299bb", "#228833", "#aa9922", "#ee6677", "#aa3377", "#ee7733", "#882255", "#0044bb")


# -------------------------------------------------------------------- the grid world as a table


def _table() -> tuple[np.ndarray, np.ndarray]:
    """The next cell and the reward of each action in each cell, both ``(cells, actions)``."""
    env = GridWorld()
    next_cells, rewards = np.zeros((N_CELLS, N_ACTIONS), int), np.zeros((N_CELLS, N_ACTIONS))
    for cell in range(N_CELLS):
        for action in range(N_ACTIONS):
            env.cell = divmod(cell, SIZE)
            next_cells[cell, action], rewards[cell, action], *_ = env.step(action)
    return next_cells, rewards


NEXT, REWARDS = _table()
GOAL_CELL = SIZE * GOAL[0] + GOAL[1]
GOES_ON = NEXT != GOAL_CELL


def expected_return(probs: np.ndarray) -> float:
    """The mean return of an episode, undiscounted and with the limit of 100 steps; ``probs`` ``(cells, actions)``."""
    values = np.zeros(N_CELLS)
    for _ in range(EPISODE_LIMIT):
        values = (probs * (REWARDS + GOES_ON * values[NEXT])).sum(1)
    return float(values[START_CELL])


def greedy(probs: np.ndarray) -> np.ndarray:
    """The deterministic policy that takes the likeliest action."""
    return np.eye(N_ACTIONS)[probs.argmax(1)]


def exact_values(probs: np.ndarray) -> np.ndarray:
    """V of each cell, discounted and without a time limit."""
    transitions = np.zeros((N_CELLS, N_CELLS))
    np.add.at(transitions, (np.arange(N_CELLS)[:, None], NEXT), probs * GOES_ON)
    return np.linalg.solve(np.eye(N_CELLS) - GAMMA * transitions, (probs * REWARDS).sum(1))


def visits(probs: np.ndarray) -> np.ndarray:
    """Which share of its steps the policy spends in each cell."""
    here, total = np.eye(N_CELLS)[START_CELL], np.zeros(N_CELLS)
    for _ in range(EPISODE_LIMIT):
        total += here
        there = np.zeros(N_CELLS)
        np.add.at(there, NEXT, here[:, None] * probs * GOES_ON)
        here = there
    return total / total.sum()


def kl(old: np.ndarray, new: np.ndarray) -> float:
    """E[KL[π_old, π_new]] over the cells that π_old visits."""
    return float(visits(old) @ (old * (np.log(old + 1e-12) - np.log(new + 1e-12))).sum(1))


# -------------------------------------------------------------------- training


def probabilities(policy: ActorCriticPolicy) -> np.ndarray:
    """π(a|s) of every cell and action."""
    with th.no_grad():
        distribution: Any = policy.get_distribution(th.arange(N_CELLS)).distribution
    return distribution.probs.numpy().astype(float)


def learned_values(policy: ActorCriticPolicy) -> np.ndarray:
    """V(s) of every cell, as the value network has it."""
    with th.no_grad():
        return policy.predict_values(th.arange(N_CELLS)).numpy().astype(float).flatten()


class Run(NamedTuple):
    """A training, seen before its first update and after each."""

    timesteps: np.ndarray
    probs: np.ndarray
    """``(updates + 1, cells, actions)``"""
    values: np.ndarray
    """``(updates + 1, cells)``"""
    seconds: float

    def returns(self) -> np.ndarray:
        """The expected return after each update."""
        return np.array([expected_return(probs) for probs in self.probs])

    def reached(self) -> int | None:
        """The timestep at which the expected return was first at least 0.9; None: it never was."""
        good = np.flatnonzero(self.returns() >= NEARLY_SOLVED)
        return int(self.timesteps[good[0]]) if len(good) else None

    def is_solved(self) -> bool:
        """Whether the deterministic policy reaches the best return, 1, at the end."""
        return expected_return(greedy(self.probs[-1])) == 1.0

    def kls(self) -> np.ndarray:
        """How far each update moved the policy."""
        return np.array([kl(*pair) for pair in zip(self.probs[:-1], self.probs[1:], strict=True)])


class _Recorder(BaseCallback):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, np.ndarray, np.ndarray]] = []

    def _on_step(self) -> bool:
        return True

    def _record(self) -> None:
        policy = self.model.policy
        assert isinstance(policy, ActorCriticPolicy)
        self.rows.append((self.num_timesteps, probabilities(policy), learned_values(policy)))

    def _on_rollout_start(self) -> None:
        self._record()

    def _on_training_end(self) -> None:
        self._record()


def build(step: Step, seed: int, **others: Any) -> OnPolicyAlgorithm:
    """The algorithm of one step of the walk, on eight grid worlds."""
    env = make_vec_env(ENV_ID, N_ENVS, seed=seed)
    return step.algorithm("MlpPolicy", env, seed=seed, device="cpu", **{**step.arguments, **others})


def train(step: Step, seed: int, timesteps: int, **others: Any) -> Run:
    """Train it, watching the policy.

    :param others: arguments other than the step's own
    """
    recorder = _Recorder()
    begin = time.perf_counter()
    build(step, seed, **others).learn(timesteps, callback=recorder)
    seconds = time.perf_counter() - begin
    counts, probs, values = zip(*recorder.rows, strict=True)
    return Run(np.array(counts), np.array(probs), np.array(values), seconds)


# -------------------------------------------------------------------- the noise of the gradient


class _GradientRecorder(VanillaPGPaper):
    """Keeps each update's policy gradient; with a stepsize of 0, of always the same policy."""

    gradients: list[np.ndarray]

    def objective(self, batch: Minibatch) -> th.Tensor:
        # The minibatch's own log-probabilities may be cut off from the weights: evaluate the policy again.
        _, log_prob, _ = self.policy.evaluate_actions(batch.observations, batch.actions.flatten())
        self.gradients.append(_gradient(losses.policy_gradient(log_prob, batch.advantages).mean(), self.policy))
        return super().objective(batch)


def _gradient(objective: th.Tensor, policy: ActorCriticPolicy) -> np.ndarray:
    """The derivatives by all weights of the policy network, in one row."""
    weights = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]
    return th.cat([part.flatten() for part in th.autograd.grad(objective, weights)]).numpy()


def true_gradient(policy: ActorCriticPolicy) -> np.ndarray:
    """What every estimator estimates: E[∇ log π(a|s) A(s, a)], with the exact advantages."""
    probs = probabilities(policy)
    values = exact_values(probs)
    advantages = REWARDS + GAMMA * GOES_ON * values[NEXT] - values[:, None]
    weights = th.as_tensor(visits(probs)[:, None] * probs * advantages)
    distribution: Any = policy.get_distribution(th.arange(N_CELLS)).distribution
    return _gradient((weights * distribution.logits).sum(), policy)


class Noise(NamedTuple):
    """How far an estimator's gradients lie from the true one, in units of its squared length."""

    variance: float
    squared_bias: float
    cosine: float
    """mean cosine of the angle between an estimate and the truth"""


def measure_noise(step: Step, policy: ActorCriticPolicy, n_batches: int) -> Noise:
    """Estimate the gradient of one fixed policy from many batches."""
    unused = 8  # batches until the environments no longer start their episodes together
    arguments = {**step.arguments, "learning_rate": 0.0, "n_epochs": 1}
    model = build(Step(step.name, _GradientRecorder, arguments), seed=0)
    assert isinstance(model, _GradientRecorder)
    model.policy.load_state_dict(policy.state_dict())
    model.gradients = []
    model.learn((unused + n_batches) * N_ENVS * N_STEPS)
    estimates, truth = np.array(model.gradients[unused:]), true_gradient(policy)
    mean, unit = estimates.mean(0), float(truth @ truth)
    variance = float(((estimates - mean) ** 2).sum(1).mean()) / unit
    # The mean of n estimates is itself off by the n-th part of their variance.
    squared_bias = float(((mean - truth) ** 2).sum()) / unit - variance / len(estimates)
    cosine = estimates @ truth / (np.linalg.norm(estimates, axis=1) * np.sqrt(unit))
    return Noise(variance, max(squared_bias, 0.0), float(cosine.mean()))


def noise_during_training(timesteps: Sequence[int], n_batches: int) -> list[list[Noise]]:
    """The noise of all four estimators, on the policies that GAE has after so many timesteps."""
    table = []
    for count in timesteps:
        model = build(ESTIMATORS[3], seed=0)
        if count > 0:
            model.learn(count)
        assert isinstance(model.policy, ActorCriticPolicy)
        table.append([measure_noise(step, model.policy, n_batches) for step in ESTIMATORS])
    return table


# -------------------------------------------------------------------- drawing


def _curve(axes: Axes, runs: list[Run], lines: np.ndarray, colour: str, **style: Any) -> None:
    """The mean of ``lines`` ``(seeds, points)``, in a band between their quartiles."""
    timesteps = runs[0].timesteps[-lines.shape[1] :] / 1000
    axes.fill_between(timesteps, *np.quantile(lines, (0.25, 0.75), axis=0), color=colour, alpha=0.25, linewidth=0)
    axes.plot(timesteps, lines.mean(0), color=colour, linewidth=1.8, **style)


def _returns(runs: list[Run]) -> np.ndarray:
    return np.array([run.returns() for run in runs])


def draw_learning_curves(path: Path, runs: list[list[Run]]) -> None:
    """One panel for each step of the walk, with the step before it in grey."""
    figure, grid = plt.subplots(3, 3, figsize=(9, 7), sharex=True, sharey=True, layout="constrained")
    for number, (step, axes) in enumerate(zip(STEPS, grid.flat, strict=True)):
        if number > 0:
            before = runs[number - 1]
            axes.plot(before[0].timesteps / 1000, _returns(before).mean(0), color="0.65", linewidth=1.4, linestyle="--")
        _curve(axes, runs[number], _returns(runs[number]), COLOURS[number])
        axes.set_title(f"{number + 1}  {step.name}", fontsize=11, loc="left", color=COLOURS[number])
        axes.set_ylim(-1.8, 1.25)
        axes.axhline(1.0, color="0.85", linewidth=0.8, zorder=0)
        axes.grid(axis="x", color="0.93")
        reached = [run.reached() for run in runs[number]]
        if None not in reached:
            label = f"{NEARLY_SOLVED} at {np.median(np.array(reached)):,.0f}"
            axes.text(0.97, 0.5, label, transform=axes.transAxes, ha="right", fontsize=9, color=COLOURS[number])
    grid[1, 0].set_ylabel("expected return of an episode")
    for axes in grid[2]:
        axes.set_xlabel("thousand timesteps")
    grid[0, 1].text(0.97, 0.06, "dashed: the step before", transform=grid[0, 1].transAxes, ha="right", color="0.4")
    _save(figure, path)


def draw_noise(path: Path, timesteps: Sequence[int], table: list[list[Noise]]) -> None:
    """Variance and squared bias of each estimator's gradient."""
    figure, grid = plt.subplots(1, len(table), figsize=(10, 3.4), sharey=True, layout="constrained")
    for axes, count, row in zip(np.atleast_1d(grid), timesteps, table, strict=True):
        for place, noise in enumerate(row):
            axes.bar(place - 0.2, noise.variance, 0.38, color=COLOURS[place])
            axes.bar(place + 0.2, noise.squared_bias, 0.38, color="white", edgecolor=COLOURS[place], hatch="///")
            axes.annotate(f"{noise.variance:.2g}", (place - 0.2, noise.variance), ha="center", va="bottom", fontsize=9)
        axes.set_xticks(range(len(row)), ["REINFORCE", "baseline", "TD error", "GAE"], fontsize=9)
        axes.set_title(f"policy after {count:,} timesteps" if count else "untrained policy", fontsize=11)
        axes.set_yscale("log")
        axes.set_ylim(0.003, 40)
        axes.grid(axis="y", color="0.93")
        axes.set_axisbelow(True)
    first = np.atleast_1d(grid)[0]
    first.set_ylabel("÷ squared length of the true gradient")
    first.bar(0, 0, color="0.5", label="variance")
    first.bar(0, 0, color="white", edgecolor="0.5", hatch="///", label="squared bias")
    first.legend(frameon=False, loc="upper right", ncols=2, fontsize=9, columnspacing=1.0)
    _save(figure, path)


def draw_large_stepsize(path: Path, runs: list[list[Run]]) -> None:
    """Expected return, and how far each update moves the policy, where the stepsize is too large."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharex=True, layout="constrained")
    for step, of_step in zip(SURROGATES, runs, strict=True):
        colour = COLOURS[STEPS.index(step)]
        _curve(left, of_step, _returns(of_step), colour, label=step.name)
        kls = np.array([run.kls() for run in of_step])
        right.plot(of_step[0].timesteps[1:] / 1000, np.maximum(np.median(kls, axis=0), 1e-5), color=colour)
    left.set_ylim(-1.8, 1.25)
    left.set_ylabel("expected return of an episode")
    left.legend(frameon=False, loc="lower right")
    right.set_yscale("log")
    right.set_ylabel("KL[π_old, π_new] of an update, median")
    for axes in (left, right):
        axes.set_xlabel("thousand timesteps")
        axes.grid(color="0.93")
    _save(figure, path)


def draw_policy(path: Path, run: Run, early: int) -> None:
    """Policy and value function on the grid: early, at the end, and what the values of the end should be."""
    panels = (
        (f"after {run.timesteps[early]:,} timesteps, V learned", run.probs[early], run.values[early]),
        (f"after {run.timesteps[-1]:,} timesteps, V learned", run.probs[-1], run.values[-1]),
        ("the same policy, V exact", run.probs[-1], exact_values(run.probs[-1])),
    )
    figure, grid = plt.subplots(1, 3, figsize=(11, 3.7), layout="constrained")
    for axes, (title, probs, values) in zip(grid, panels, strict=True):
        cells = values.reshape(SIZE, SIZE).copy()
        cells[GOAL] = np.nan  # the episode is over there
        image = axes.imshow(cells, cmap="RdBu", vmin=-1, vmax=1, alpha=0.75)
        for cell in range(N_CELLS):
            _draw_cell(axes, divmod(cell, SIZE), probs[cell])
        axes.set_title(title, fontsize=11)
        axes.set_xticks(np.arange(SIZE - 1) + 0.5, [])
        axes.set_yticks(np.arange(SIZE - 1) + 0.5, [])
        axes.grid(color="white", linewidth=2)
        axes.tick_params(length=0)
    figure.colorbar(image, ax=grid, shrink=0.8, label="V(s)")
    _save(figure, path)


def _draw_cell(axes: Axes, cell: tuple[int, int], probs: np.ndarray) -> None:
    """An arrow for each action, as long as it is likely, and the probability of the likeliest."""
    row, column = cell
    if cell == GOAL:
        axes.add_patch(Circle((column, row), 0.33, fill=False, edgecolor="#1e8c46", linewidth=5))
        return
    if cell in OBSTACLES:
        corners = [(column, row - 0.45), (column - 0.3, row + 0.2), (column + 0.3, row + 0.2)]
        axes.add_patch(Polygon(corners, fill=False, edgecolor="#cc372d", linewidth=2))
    for (down, right), probability in zip(MOVES, probs, strict=True):
        if probability > 0.02:
            tip = (column + 0.44 * right * probability, row + 0.44 * down * probability)
            arrow = {"arrowstyle": "-|>", "color": "black", "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", tip, (column, row), arrowprops={**arrow, "mutation_scale": 5 + 6 * probability})
    axes.text(column - 0.46, row + 0.46, f"{probs.max():.2f}", fontsize=7.5, ha="left", va="bottom")
    if cell == START:
        axes.text(column - 0.46, row - 0.46, "start", fontsize=7.5, ha="left", va="top")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})
    plt.close(figure)


# -------------------------------------------------------------------- the whole


def _report(step: Step, runs: list[Run]) -> None:
    """One line of the page's table."""
    reached = ["never" if run.reached() is None else f"{run.reached():,}" for run in runs]
    solved = sum(run.is_solved() for run in runs)
    seconds = np.median([run.seconds for run in runs])
    print(
        f"{step.name:26} solved {solved}/{len(runs)}  {seconds:5.1f} s  0.9 reached at {', '.join(reached)}", flush=True
    )


def _train_all(steps: Sequence[Step], seeds: int, timesteps: int, **others: Any) -> list[list[Run]]:
    table = []
    for step in steps:
        table.append([train(step, seed, timesteps, **others) for seed in range(seeds)])
        _report(step, table[-1])
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each algorithm")
    parser.add_argument("--timesteps", type=int, default=20_000, help="length of each training")
    parser.add_argument("--batches", type=int, default=200, help="batches from which the gradient's noise is measured")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder for the plots")
    options = parser.parse_args(arguments)
    th.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)

    runs = _train_all(STEPS, options.seeds, options.timesteps)
    draw_learning_curves(options.out / "learning-curves.png", runs)
    clipped = runs[-1][0]
    draw_policy(options.out / "policy-and-values.png", clipped, early=min(8, len(clipped.timesteps) - 1))

    moments = (0, options.timesteps // 4, options.timesteps // 2)
    noise = noise_during_training(moments, options.batches)
    for count, row in zip(moments, noise, strict=True):
        for step, of_step in zip(ESTIMATORS, row, strict=True):
            print(f"{step.name:26} at {count:,}: " + ", ".join(f"{k} {v:.3g}" for k, v in of_step._asdict().items()))
    draw_noise(options.out / "gradient-noise.png", moments, noise)

    print(f"With a stepsize of {LARGE_STEPSIZE}:")
    runs = _train_all(SURROGATES, options.seeds, options.timesteps // 2, learning_rate=LARGE_STEPSIZE)
    draw_large_stepsize(options.out / "large-stepsize.png", runs)


if __name__ == "__main__":
    main()
