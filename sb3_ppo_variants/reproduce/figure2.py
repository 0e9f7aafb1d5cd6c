"""Fig. 2: surrogate objectives between the policy before and the policy after the first update, on Hopper."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_ppo_variants import losses
from sb3_ppo_variants.arguments import require
from sb3_ppo_variants.files import atomic_write
from sb3_ppo_variants.on_policy import ADVANTAGE_EPSILON
from sb3_ppo_variants.ppo_clip import PPOClipPaper
from sb3_ppo_variants.presets import TABLE_1
from sb3_ppo_variants.reproduce import drawing
from sb3_ppo_variants.reproduce.places import OUTPUT
from sb3_ppo_variants.reproduce.settings import check_task
from sb3_ppo_variants.reproduce.tables import number, plain
from sb3_ppo_variants.rollout_data import samples_of

TASK = "Hopper-v5"
CLIP_RANGE = 0.2
SEEDS = (0, 1, 2, 3, 4)
# α from −1 to 2, with −1, 0, 1 and 2 among the points.
ALPHAS = np.linspace(-1.0, 2.0, 121)
PAPER_KL = 0.02
"""at α = 1 (caption)"""


class Interpolation(NamedTuple):
    """Objectives on the rollout of the first update at θ_old + α (θ_new − θ_old); ``n`` values of α."""

    seed: int
    alphas: np.ndarray
    """``(n,)``"""
    kl: np.ndarray
    """E[KL[π_old, π]], in nats, ``(n,)``"""
    cpi: np.ndarray
    """L^CPI = E[r Â], eq. 6, ``(n,)``"""
    clipped: np.ndarray
    """E[clip(r, 1−ε, 1+ε) Â], ``(n,)``"""
    clip: np.ndarray
    """L^CLIP, eq. 7, ``(n,)``"""

    @property
    def best_alpha(self) -> float:
        """Where L^CLIP is largest."""
        return float(self.alphas[self.clip.argmax()])

    @property
    def kl_at_1(self) -> float:
        """E[KL] at the updated policy."""
        return float(np.interp(1.0, self.alphas, self.kl))


class _KeepsOldParameters(BaseCallback):
    """Copies the policy's parameters between rollout and update."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.old = {name: value.clone() for name, value in self.model.policy.state_dict().items()}


def interpolation(seed: int, task: str = TASK, alphas: np.ndarray = ALPHAS) -> Interpolation:
    """Make the first update of Table 1's clip PPO, ε = 0.2, and evaluate what the figure shows.

    Advantages are those of the update: standardised over the rollout. So E[r Â] is 0 at α = 0.

    :param alphas: ``(n,)``
    """
    env = make_vec_env(task)
    threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        model = PPOClipPaper("MlpPolicy", env, seed=seed, device="cpu", clip_range=CLIP_RANGE, **TABLE_1)
        keeps = _KeepsOldParameters()
        model.learn(model.n_steps, callback=keeps)
        return _evaluated(model, keeps.old, seed, alphas)
    finally:
        th.set_num_threads(threads)
        env.close()


def _evaluated(model: Any, old: dict[str, th.Tensor], seed: int, alphas: np.ndarray) -> Interpolation:
    samples = samples_of(model.rollout_buffer)
    raw = samples.advantages
    advantages = (raw - raw.mean()) / (raw.std(correction=0) + ADVANTAGE_EPSILON)
    policy = model.policy
    new = {name: value.clone() for name, value in policy.state_dict().items()}
    reference: Any = None
    columns: list[tuple[float, ...]] = []
    with th.no_grad():
        for alpha in [0.0, *alphas]:
            policy.load_state_dict({name: value + alpha * (new[name] - value) for name, value in old.items()})
            distribution = policy.get_distribution(samples.observations).distribution
            moments = distribution.mean, distribution.stddev
            if reference is None:  # the first α is 0
                reference = moments
                continue
            log_prob = distribution.log_prob(samples.actions).sum(dim=-1)
            ratio = losses.probability_ratio(log_prob, samples.old_log_prob)
            objectives = (
                losses.gaussian_kl(reference[0], reference[1], moments[0], moments[1]),
                losses.conservative_policy_iteration(ratio, advantages),
                losses.conservative_policy_iteration(ratio.clamp(1 - CLIP_RANGE, 1 + CLIP_RANGE), advantages),
                losses.clipped_surrogate(ratio, advantages, CLIP_RANGE),
            )
            columns.append(tuple(float(objective.double().mean()) for objective in objectives))
    policy.load_state_dict(new)
    return Interpolation(seed, alphas, *(np.array(column) for column in zip(*columns, strict=True)))


def figure2(
    *, task: str = TASK, seeds: Iterable[int] = SEEDS, output: str | Path = OUTPUT
) -> tuple[list[Interpolation], list[Path]]:
    """Draw Fig. 2 for the first seed, and tell of all of them.

    :param output: folder for the picture and the text
    :return: what was computed, and the files
    :raises ValueError: for a task or seed that is not allowed
    """
    check_task(task)
    chosen = list(seeds)
    if not chosen:
        raise ValueError("seeds must be at least one")
    for seed in chosen:
        require("seeds", seed, "integers in [0, 2**32)", lambda value: 0 <= value < 2**32, integer=True)
    computed = [interpolation(seed, task) for seed in chosen]
    files = drawing.save(draw(computed[0], task), Path(output), "figure2")
    path = Path(output) / "figure2.txt"
    atomic_write(path, described(computed).encode())
    return computed, [*files, path]


def described(computed: list[Interpolation]) -> str:
    """What the caption of Fig. 2 tells, for each seed."""
    cells = [
        [str(each.seed), number(each.kl_at_1, ".4f"), number(each.best_alpha), number(float(each.clip.max()), ".4f")]
        for each in computed
    ]
    header = ["seed", "KL at α = 1", "α of the largest L^CLIP", "largest L^CLIP"]
    return f"{plain(header, cells)}\n\nThe paper: KL about {PAPER_KL} at α = 1, where L^CLIP is largest.\n"


def draw(computed: Interpolation, task: str = TASK) -> Any:
    """The picture."""
    figure = drawing.new_figure(6.2, 3.6)
    axes = figure.add_subplot()
    lines = {
        r"$\hat{E}_t[KL_t]$": (computed.kl, "C0"),
        r"$L^{CPI} = \hat{E}_t[r_t \hat{A}_t]$": (computed.cpi, "C1"),
        r"$\hat{E}_t[\mathrm{clip}(r_t, 1-\epsilon, 1+\epsilon)\, \hat{A}_t]$": (computed.clipped, "C2"),
        r"$L^{CLIP} = \hat{E}_t[\min(r_t \hat{A}_t, \mathrm{clip}(r_t, 1-\epsilon, 1+\epsilon)\, \hat{A}_t)]$": (
            computed.clip,
            "C3",
        ),
    }
    for label, (values, color) in lines.items():
        axes.plot(computed.alphas, values, color=color, label=label)
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    for alpha in (0, 1):
        axes.axvline(alpha, color="0.7", linewidth=0.8, zorder=0)
    axes.set_xticks([-1, 0, 1, 2])
    axes.set_xlabel("linear interpolation factor α")
    shown = np.concatenate([computed.clip, computed.clipped, computed.cpi, computed.kl[computed.alphas <= 1]])
    axes.set_ylim(shown.min() - 0.01, shown.max() + 0.01)
    axes.set_title(f"First update on {task.rpartition(':')[2]}, seed {computed.seed}", fontsize=10)
    axes.legend(fontsize=8, framealpha=0.9)
    return figure
