"""Optuna's own figures of a study, as PNG and, where plotly is installed, as pages."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from sb3_ppo_variants.tuning.job import Job
from sb3_ppo_variants.tuning.looking import look_at

FIGURES = {
    "history": "plot_optimization_history",
    "importances": "plot_param_importances",
    "slice": "plot_slice",
    "parallel_coordinates": "plot_parallel_coordinate",
}


def plot(job: Job, folder: str | Path) -> list[Path]:
    """Draw a study's history, importances, slices and parallel coordinates.

    :param folder: for the figures; made where it does not exist
    :return: the files
    :raises StorageError: if the storage cannot be used
    :raises ValueError: if there is no such study, or fewer than two complete trials in it
    """
    study = look_at(job).study
    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < 2:
        raise ValueError(f"the study {job.name!r} must have two complete trials to be drawn: tune run goes on with it")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    files = []
    for name, function in FIGURES.items():
        files.append(_png(getattr(optuna.visualization.matplotlib, function), study, target / f"{name}.png", name))
        if importlib.util.find_spec("plotly") is not None:
            files.append(_page(getattr(optuna.visualization, function), study, target / f"{name}.html", name))
    return files


def _drawn(function: Callable[..., Any], study: optuna.Study, name: str) -> Any:
    arguments: dict[str, Any] = {}
    if name == "importances":  # the default one needs scikit-learn
        arguments["evaluator"] = optuna.importance.PedAnovaImportanceEvaluator()
    return function(study, **arguments)


def _png(function: Callable[..., Any], study: optuna.Study, path: Path, name: str) -> Path:
    import matplotlib

    before = matplotlib.get_backend()
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    try:
        with warnings.catch_warnings():
            # Optuna calls its figures in matplotlib experimental, and some of its axes have a single value.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="optuna|matplotlib")
            axes = _drawn(function, study, name)
        first = axes.flat[0] if hasattr(axes, "flat") else axes
        first.figure.savefig(path, dpi=120, bbox_inches="tight")
    finally:
        plt.close("all")
        matplotlib.use(before)
    return path


def _page(function: Callable[..., Any], study: optuna.Study, path: Path, name: str) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        _drawn(function, study, name).write_html(path)
    return path
