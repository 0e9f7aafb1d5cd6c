"""Scores of runs on one scale, their means with intervals, and ranks.

Shapes: ``S`` settings, ``R`` seeds, ``E`` tasks. A run that is not there, or has no score, is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from sb3_ppo_variants.arguments import require_choice
from sb3_ppo_variants.reproduce.results import Row
from sb3_ppo_variants.reproduce.settings import Selection

BestOf = Literal["run", "setting"]
RESAMPLES = 2000
CONFIDENCE = 0.95


def raw_scores(selection: Selection, rows: Sequence[Row], tasks: Sequence[str]) -> np.ndarray:
    """Scores ``(settings, seeds, tasks)``; NaN where there is no result, or one without a score."""
    known = {(row.setting, row.seed, row.task): row.score for row in rows if row.score is not None}
    return np.array(
        [
            [[known.get((name, seed, task), np.nan) for task in tasks] for seed in selection.seeds]
            for name in selection.settings
        ]
    ).reshape(len(selection.settings), len(selection.seeds), len(tasks))


def normalized(raw: np.ndarray, random: np.ndarray, best: BestOf = "run") -> np.ndarray:
    """Scores, per task shifted and scaled so that the random policy has 0 and the best result 1 (§6.1).

    The paper says "the best result"; what it scores is a run, so we take the best run's (``best="run"``): no run is
    above 1, and a setting reaches 1 only where all of its seeds do. By the other reading the best mean of a setting
    over its seeds is 1 (``best="setting"``): then single runs are above 1, and every score of a task is larger by one
    factor, what lies between random and the best run over what lies between random and the best setting. No order
    within a task changes; the tasks' weights in the mean over them do, in favour of those whose seeds differ most.

    :param raw: mean returns, ``(S, R, E)``
    :param random: of the random policy, ``(E,)``
    :param best: what is 1
    :return: ``(S, R, E)``; NaN for a task on which nothing is better than the random policy
    :raises ValueError: for another ``best``
    """
    require_choice("best", best, ("run", "setting"))
    results = raw if best == "run" else raw.mean(axis=1, keepdims=True)
    scale = np.full(raw.shape[2], np.nan)
    for task in range(raw.shape[2]):
        there = results[:, :, task][~np.isnan(results[:, :, task])]
        if len(there) and there.max() > random[task]:
            scale[task] = there.max() - random[task]
    scores: np.ndarray = (raw - random) / scale
    return scores


class Mean(NamedTuple):
    """A setting's mean over all its runs."""

    mean: float
    """NaN where runs are missing, or a task has no scale"""
    low: float
    """of the interval; NaN where the mean is, and where there is one seed"""
    high: float
    runs: int
    """that have a score"""


def means(scores: np.ndarray) -> list[Mean]:
    """Each setting's mean over seeds and tasks, with its 95 % interval.

    The interval is rliable's (Agarwal et al. 2021): percentiles of means of runs drawn again with replacement, task by
    task. It tells what other seeds would have given on these tasks; with three seeds it is rather too narrow.

    :param scores: ``(S, R, E)``
    """
    return [_mean(each) for each in scores]


def _mean(scores: np.ndarray) -> Mean:
    n_runs = int((~np.isnan(scores)).sum())
    if n_runs < scores.size:
        return Mean(np.nan, np.nan, np.nan, n_runs)
    low, high = (np.nan, np.nan) if len(scores) < 2 else _interval(scores)
    return Mean(float(scores.mean()), low, high, n_runs)


def _interval(scores: np.ndarray) -> tuple[float, float]:
    from rliable import library, metrics

    before = np.random.get_state()  # rliable draws from the global generator
    np.random.seed(0)
    try:
        _, intervals = library.get_interval_estimates(
            {"": scores},
            lambda each: np.array([metrics.aggregate_mean(each)]),
            reps=RESAMPLES,
            confidence_interval_size=CONFIDENCE,
        )
    finally:
        np.random.set_state(before)
    low, high = intervals[""][:, 0]
    return float(low), float(high)


def ranks(values: np.ndarray) -> np.ndarray:
    """1 for the largest, and so on; equal ones share the mean of their ranks, and NaN has none.

    :param values: ``(S,)``
    :return: ``(S,)``
    """
    from scipy import stats

    found: np.ndarray = stats.rankdata(-values, nan_policy="omit")
    return found


def rank_correlation(ours: np.ndarray, papers: np.ndarray) -> float:
    """Spearman's rank correlation of two sets of means; NaN where fewer than three are in both.

    :param ours: ``(S,)``, NaN where there is none
    :param papers: ``(S,)``, likewise
    """
    from scipy import stats

    both = ~np.isnan(ours) & ~np.isnan(papers)
    if both.sum() < 3:
        return float("nan")
    correlation: Any = stats.spearmanr(ours[both], papers[both])
    return float(correlation.statistic)
