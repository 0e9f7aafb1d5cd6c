"""Optuna's own figures of a study, as PNG and together on one page, which needs no network.

Optuna draws; what is added here says what is maximised and in how many trials, and makes room for twenty parameters.
"""

from __future__ import annotations

import html
import importlib.util
import math
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from sb3_ppo_variants.files import atomic_write
from sb3_ppo_variants.tuning.job import Job
from sb3_ppo_variants.tuning.looking import look_at
from sb3_ppo_variants.tuning.study import NOT_RUN

MODULES = ("matplotlib", "plotly")
PAGE = "study.html"
VALUE = "mean return"
# Parallel coordinates of more cannot be read on paper; the page has all.
MOST_AXES = 8
# PED-ANOVA compares the best trials with all: the best tenth, but at least these, as optuna advises, or half. In fewer,
# chance makes a parameter look important; and so it does with one that few trials have, which is not assessed.
FEWEST_BEST = 5
BEST_TENTH, HALF = 0.1, 0.5
# Slices side by side.
COLUMNS = 5
BLUE, ORANGE, RED = "tab:blue", "tab:orange", "tab:red"


class _Seen(NamedTuple):
    """A study, and what its figures say of it."""

    job: Job
    study: optuna.Study
    complete: list[FrozenTrial]
    objective: str
    """what is maximised, in words"""
    counts: str
    """of trials, in words"""
    never_failed: bool
    """whether the trials in state FAIL are all ones that were never run"""
    importances: dict[str, float]
    """by parameter that at least half of the complete trials have, the largest first"""
    n_best: int
    """number of the best trials that importances are about"""

    def kwargs(self, name: str) -> dict[str, Any]:
        """What optuna's function for a figure is called with."""
        named: dict[str, Any] = {} if name in ("learning", "timeline") else {"target_name": VALUE}
        if name == "importances":
            named.update(evaluator=_evaluator(self.n_best, len(self.complete)), params=list(self.importances))
        if name == "rank":
            named["params"] = self.pair
        return named

    def title(self, name: str) -> str:
        """A figure's title."""
        title = FIGURES[name].title
        if name != "importances":
            return title
        title += f" for being among the best {self.n_best} of {len(self.complete)} (PED-ANOVA)"
        rare = [self.label(each) for each in self.parameters if each not in self.importances]
        return f"{title}; too rare to tell: {', '.join(rare)}" if rare else title

    @property
    def parameters(self) -> list[str]:
        """The names of all parameters that a complete trial has."""
        return sorted({name for trial in self.complete for name in trial.params})

    @property
    def pair(self) -> list[str]:
        """The two most important of the parameters that every complete trial has."""
        return [name for name in self.importances if self.trials_with(name) == len(self.complete)][:2]

    def trials_with(self, name: str) -> int:
        """The number of complete trials that have a parameter."""
        return sum(name in trial.params for trial in self.complete)

    def label(self, name: str) -> str:
        """A parameter's name, and how many trials have it if not all do."""
        number = self.trials_with(name)
        return name if number == len(self.complete) else f"{name} (in {number} of {len(self.complete)})"


class _Figure(NamedTuple):
    function: str
    """in ``optuna.visualization`` and ``optuna.visualization.matplotlib``"""
    title: str
    mend: Callable[[Any, _Seen], None]
    """changes what matplotlib has drawn"""


def plot(job: Job, folder: str | Path) -> list[Path]:
    """Draw a study: a PNG of each figure, and a page of all.

    The figures: history, importances (by PED-ANOVA, of the complete trials), slices, parallel coordinates, the rank of
    trials over the two most important parameters, the distribution of the trials' values, the returns that trials were
    judged by, and a timeline.

    :param folder: for the figures; made where it does not exist
    :return: the files
    :raises StorageError: if the storage cannot be used
    :raises ValueError: if there is no such study, fewer than two complete trials in it, or no plotly
    """
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f'plots need the [tune] extra: pip install "sb3-ppo-variants[tune]"; there is no {missing[0]}')
    with _quiet():
        seen = _see(job)
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        names = [name for name in FIGURES if name != "rank" or len(seen.pair) == 2]
        files = [_png(seen, name, target / f"{name}.png") for name in names]
        return [*files, _page(seen, names, target / PAGE)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without optuna's warnings that its figures are experimental, and that a parameter is in few trials: we say it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "Some regimes for parameter", UserWarning)
        warnings.filterwarnings("ignore", "Target and region quantiles", UserWarning)
        warnings.filterwarnings("ignore", "Attempting to set identical", UserWarning)  # all of a parameter's values
        warnings.filterwarnings("ignore", "The figure layout has changed to tight", UserWarning)  # and is changed back
        yield


def _see(job: Job) -> _Seen:
    shared = look_at(job)
    complete = shared.trials([TrialState.COMPLETE])
    if len(complete) < 2:
        raise ValueError(f"the study {job.name!r} must have two complete trials to be drawn: tune run goes on with it")
    n_best = max(min(FEWEST_BEST, int(HALF * len(complete))), round(BEST_TENTH * len(complete)), 1)
    names = sorted({name for trial in complete for name in trial.params})
    common = [name for name in names if sum(name in trial.params for trial in complete) >= HALF * len(complete)]
    counts = shared.counts()
    not_run = sum(NOT_RUN in trial.user_attrs for trial in shared.trials([TrialState.FAIL]))
    others = {"pruned": counts.pruned, "failed": counts.failed - not_run, "running": counts.running}
    episodes, seeds = job.objective.episodes, job.seeds
    return _Seen(
        job,
        shared.study,
        complete,
        f"maximised: mean return of the last {episodes} episode{'s' * (episodes > 1)}, "
        f"mean over {seeds} seed{'s' * (seeds > 1)}",
        ", ".join(
            [f"{counts.complete} complete trials", *(f"{number} {what}" for what, number in others.items() if number)]
        ),
        counts.failed == not_run,
        optuna.importance.get_param_importances(
            shared.study, evaluator=_evaluator(n_best, len(complete)), params=common
        ),
        n_best,
    )


def _evaluator(n_best: int, n_complete: int) -> Any:
    return optuna.importance.PedAnovaImportanceEvaluator(target_quantile=n_best / n_complete)


# ------------------------------------------------------------------ matplotlib


def _png(seen: _Seen, name: str, path: Path) -> Path:
    import matplotlib

    before = matplotlib.get_backend()
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = FIGURES[name]
    kwargs = seen.kwargs(name)
    if name == "parallel_coordinates":
        kwargs["params"] = list(seen.importances)[:MOST_AXES]
    try:
        # Optuna sets a style for good.
        with plt.rc_context({"figure.constrained_layout.use": True, "figure.figsize": (8, 5)}):
            axes = getattr(optuna.visualization.matplotlib, figure.function)(seen.study, **kwargs)
            first = axes.flat[0] if hasattr(axes, "flat") else axes
            canvas = first.figure
            for each in canvas.axes:
                each.set_title("")
                each.set_title("", loc="left")
            figure.mend(axes, seen)
            is_cut = name == "parallel_coordinates" and len(seen.importances) > MOST_AXES
            cut = f", the {MOST_AXES} most important ones" if is_cut else ""
            title = textwrap.fill(f"{seen.job.name}: {seen.title(name)}{cut}", 100)
            title = f"{title}\n{seen.objective}\n{seen.counts}"
            canvas.suptitle(title, fontsize=10, x=0.01, ha="left")
            canvas.savefig(path, dpi=100, bbox_inches="tight")
    finally:
        plt.close("all")
        matplotlib.use(before)
    return path


def _mend_history(axes: Any, seen: _Seen) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.figure.set_layout_engine("constrained")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for line in axes.lines:
        line.set_drawstyle("steps-post")
    axes.set_xlabel("trial")
    axes.legend(["a complete trial", "the best so far"], loc="lower right")


def _mend_importances(axes: Any, seen: _Seen) -> None:
    axes.set_yticks(axes.get_yticks(), [seen.label(tick.get_text()) for tick in axes.get_yticklabels()])
    axes.set(xlabel="importance", ylabel="")
    axes.get_legend().remove()


def _mend_slice(axes: Any, seen: _Seen) -> None:
    """From one row, fourteen meters of it, to several."""
    from matplotlib.gridspec import GridSpec

    slices = list(axes.flat) if hasattr(axes, "flat") else [axes]
    canvas = slices[0].figure
    (bar,) = (each for each in canvas.axes if each not in slices)
    points = slices[0].collections[0]
    bar.remove()
    columns = min(COLUMNS, len(slices))
    rows = math.ceil(len(slices) / columns)
    canvas.set_size_inches(2.4 * columns + 1.2, 2.3 * rows + 0.9)
    grid = GridSpec(rows, columns, figure=canvas)
    for index, each in enumerate(slices):
        each.set_subplotspec(grid[index // columns, index % columns])
        is_first = index % columns == 0
        each.tick_params(labelleft=is_first, left=is_first, labelsize=8)
        each.set_xlabel(each.get_xlabel(), fontsize=10)
        each.set_ylabel(VALUE if is_first else "", fontsize=10)
        _readable_log_ticks(each)
        if each.get_xscale() == "linear":
            each.margins(x=0.08)
            each.autoscale(axis="x")
    canvas.colorbar(points, ax=slices, label="trial", aspect=40, pad=0.01)


def _readable_log_ticks(axes: Any) -> None:
    """0.001 in the place of 10⁻³, and no labels that overlap."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            near = high / low < 30
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if near else (1.0,)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


def _mend_parallel_coordinates(axes: Any, seen: _Seen) -> None:
    canvas = axes.figure
    number = len(axes.get_xticks())
    canvas.set_size_inches(1.3 * number + 1.5, 5.5)
    axes.collections[0].set_cmap("viridis_r")  # the lightest blue of optuna's cannot be seen
    for each in canvas.axes:
        each.grid(False)
        each.patch.set_visible(False)
        each.tick_params(labelsize=8)
        _readable_log_ticks(each)
    axes.tick_params(axis="x", rotation=15, labelsize=9)
    names = [tick.get_text() for tick in axes.get_xticklabels()]
    axes.set_xticks(axes.get_xticks(), [VALUE, *names[1:]])


def _mend_rank(axes: Any, seen: _Seen) -> None:
    _readable_log_ticks(axes)


def _mend_values(axes: Any, seen: _Seen) -> None:
    axes.set(xlabel=VALUE, ylabel="fraction of trials that are no better")
    if axes.get_legend() is not None:
        axes.get_legend().remove()


def _mend_learning(axes: Any, seen: _Seen) -> None:
    from matplotlib.lines import Line2D

    axes.figure.set_layout_engine("constrained")
    axes.set(xlabel="timesteps of each seed", ylabel=VALUE)
    best = seen.study.best_trial.number
    states = {trial.number: trial.state for trial in seen.study.get_trials(deepcopy=False)}
    for line in axes.lines:
        number = int(line.get_label().removeprefix("Trial"))
        is_complete = states[number] is TrialState.COMPLETE
        line.set(color=BLUE if is_complete else ORANGE, alpha=0.5)
        if number == best:
            line.set(color=RED, alpha=1.0, linewidth=2.5, zorder=3)
    shown = {f"trial {best}, the best": RED, "complete": BLUE, "pruned, or running": ORANGE}
    axes.legend([Line2D([], [], color=color, marker=".") for color in shown.values()], list(shown))


def _mend_timeline(axes: Any, seen: _Seen) -> None:
    """A trial that was never run has no length; the legend does not speak of it."""
    axes.figure.set_layout_engine("constrained")
    axes.set(xlabel="time", ylabel="trial")
    handles = axes.get_legend().legend_handles
    shown = [each for each in handles if each.get_label() != "FAIL" or not seen.never_failed]
    axes.legend(shown, [each.get_label().lower() for each in shown], loc="upper left")


FIGURES = {
    "history": _Figure("plot_optimization_history", "history", _mend_history),
    "importances": _Figure("plot_param_importances", "importance of parameters", _mend_importances),
    "slice": _Figure("plot_slice", "each parameter by itself", _mend_slice),
    "parallel_coordinates": _Figure("plot_parallel_coordinate", "parameters together", _mend_parallel_coordinates),
    "rank": _Figure("plot_rank", "rank of trials over the two most important parameters", _mend_rank),
    "values": _Figure("plot_edf", "distribution of the values of complete trials", _mend_values),
    "learning": _Figure("plot_intermediate_values", "what trials were judged by", _mend_learning),
    "timeline": _Figure("plot_timeline", "timeline", _mend_timeline),
}


# ------------------------------------------------------------------ plotly


def _page(seen: _Seen, names: list[str], path: Path) -> Path:
    """All figures on one page, with plotly's own code in it: 5 MB, once, so that it opens without a network."""
    parts: list[str] = []
    for name in names:
        for drawn in _drawn(seen, name):
            code: Any = not any("<script" in part for part in parts)
            parts.append(drawn.to_html(full_html=False, include_plotlyjs=code, config={"responsive": True}))
    title = html.escape(f"{seen.job.name}: {seen.job.algorithm} on {seen.job.environment}")
    parts.insert(0, f"<h1>{title}</h1>\n<p>{html.escape(seen.objective)}</p>\n<p>{html.escape(seen.counts)}</p>")
    body = "\n".join(parts)
    atomic_write(
        path,
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>\n'
        "<style>body {font-family: sans-serif; margin: 2em; max-width: 1300px}</style></head>\n"
        f"<body>\n{body}\n</body>\n</html>\n".encode(),
    )
    return path


def _drawn(seen: _Seen, name: str) -> Iterator[Any]:
    """A figure as plotly's, or several where one would be wider than a screen."""
    figure, kwargs = FIGURES[name], seen.kwargs(name)
    draw = getattr(optuna.visualization, figure.function)
    if name != "slice":
        drawn = draw(seen.study, **kwargs)
        drawn.update_layout(title=seen.title(name), width=None, height=550)
        if name == "learning":
            drawn.update_layout(xaxis_title="timesteps of each seed", yaxis_title=VALUE)
        if name == "importances":
            drawn.update_yaxes(labelalias={each: seen.label(each) for each in seen.importances})
            drawn.update_layout(showlegend=False)
        yield drawn
        return
    parameters = seen.parameters
    for start in range(0, len(parameters), COLUMNS):
        drawn = draw(seen.study, params=parameters[start : start + COLUMNS], **kwargs)
        drawn.update_layout(title=figure.title if start == 0 else "", width=None, height=350)
        drawn.for_each_xaxis(lambda axis: _mend_log_axis(axis, seen))
        yield drawn


def _mend_log_axis(axis: Any, seen: _Seen) -> None:
    """Powers of ten alone, or with their double and fivefold, of plotly's labels, which would overlap."""
    if axis.type == "log":
        values = [trial.params[axis.title.text] for trial in seen.complete if axis.title.text in trial.params]
        axis.update(dtick="D2" if max(values) / min(values) < 30 else 1)
