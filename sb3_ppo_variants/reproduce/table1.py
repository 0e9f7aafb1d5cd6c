"""Table 1: eleven surrogate objectives on seven MuJoCo tasks (§6.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sb3_ppo_variants.files import atomic_write
from sb3_ppo_variants.reproduce import drawing
from sb3_ppo_variants.reproduce.blocks import TrainRuns, run_blocks
from sb3_ppo_variants.reproduce.places import OUTPUT, Places
from sb3_ppo_variants.reproduce.random_policy import RandomReturn, random_returns
from sb3_ppo_variants.reproduce.results import Row
from sb3_ppo_variants.reproduce.scores import Mean, means, normalized, rank_correlation, ranks, raw_scores
from sb3_ppo_variants.reproduce.settings import SETTINGS, TABLE_1_SETTINGS, TASKS, Selection, selected
from sb3_ppo_variants.reproduce.tables import counted, markdown, number, plain, short, signed
from sb3_ppo_variants.reproduce.training import train_runs

TIMESTEPS = 1_000_000
SEEDS = (0, 1, 2)
# What can be had in minutes: two tasks that are learned soon, and settings that the paper finds far apart.
QUICK = {
    "tasks": ("InvertedPendulum-v5", "Hopper-v5"),
    "settings": ("none", "clip_0.2", "adaptive_kl_0.01"),
    "seeds": (0, 1),
    "timesteps": 50_000,
}
PAPER = {
    "none": -0.39,
    "clip_0.1": 0.76,
    "clip_0.2": 0.82,
    "clip_0.3": 0.70,
    "adaptive_kl_0.003": 0.68,
    "adaptive_kl_0.01": 0.74,
    "adaptive_kl_0.03": 0.71,
    "fixed_kl_0.3": 0.62,
    "fixed_kl_1": 0.71,
    "fixed_kl_3": 0.72,
    "fixed_kl_10": 0.69,
}
"""Table 1's "avg. normalized score" """
# By which the picture's axis ends on the left; what is below is told as a number.
LOWEST_DRAWN = -1.0
_COLORS = {
    "none": "0.35",
    "clip_0.1": "#6baed6",
    "clip_0.2": "#2171b5",
    "clip_0.3": "#08306b",
    "adaptive_kl_0.003": "#fd8d3c",
    "adaptive_kl_0.01": "#d94801",
    "adaptive_kl_0.03": "#7f2704",
    "fixed_kl_0.3": "#a1d99b",
    "fixed_kl_1": "#41ab5d",
    "fixed_kl_3": "#006d2c",
    "fixed_kl_10": "#00260f",
}


class Line(NamedTuple):
    """A setting in the table."""

    setting: str
    ours: Mean
    other_reading: float
    """the mean if the best setting's average were 1 in place of the best run; NaN where runs are missing"""
    rank: float
    """among the settings of the table; NaN where runs are missing"""
    paper: float
    paper_rank: float
    """among the same settings"""


@dataclass(frozen=True)
class Table1:
    """What has come of the runs of a selection."""

    selection: Selection
    rows: Sequence[Row]
    random: Mapping[str, RandomReturn]
    lines: Sequence[Line]
    correlation: float
    """Spearman's, of our means and the paper's; NaN where it cannot be had"""
    files: Sequence[Path]

    @property
    def missing(self) -> int:
        """Runs that other processes may be at."""
        return len(self.selection.runs()) - len(self.rows)


def table1(
    *,
    tasks: Iterable[str] | None = None,
    settings: Iterable[str] | None = None,
    seeds: Iterable[int] = SEEDS,
    timesteps: int = TIMESTEPS,
    workers: int = 1,
    results: str | Path | None = None,
    output: str | Path = OUTPUT,
    train: TrainRuns = train_runs,
) -> Table1:
    """Do the runs of Table 1 that are missing, and draw the table.

    Each run's score is the mean raw return of its last 100 episodes. Scores are normalised per task (see
    :func:`~sb3_ppo_variants.reproduce.scores.normalized`) and averaged over the seven tasks and the seeds; other tasks
    have their results and curves, and are not in that mean.

    :param tasks: None: the seven
    :param settings: names, None: all eleven
    :param timesteps: of each run
    :param workers: processes; 1: this one
    :param results: folder of results; None: those that ship, and new ones in ``reproduction/results``
    :param output: folder for the table and the pictures
    :param train: trains the runs of a block
    :raises ValueError: for an argument that is not allowed, and for results that cannot be read
    :raises WorkerError: if a worker does not end well
    """
    selection = selected(TABLE_1_SETTINGS, tasks, settings, seeds, timesteps)
    places = Places.of(results)
    store = places.results(timesteps)
    run_blocks("table1", selection, store, workers, train)
    random = random_returns(selection.tasks, places.folder, places.shipped)
    table = tabulated(selection, list(store.rows(selection.runs()).values()), random)
    return _written(table, Path(output))


def tabulated(selection: Selection, rows: Sequence[Row], random: Mapping[str, RandomReturn]) -> Table1:
    """The table of these results.

    :param rows: of the selection's runs
    :param random: by task
    """
    compared = [task for task in selection.tasks if task in TASKS]
    raw = raw_scores(selection, [_scored(row, random) for row in rows], compared)
    zeros = np.array([random[task].mean for task in compared])
    ours = means(normalized(raw, zeros))
    other = normalized(raw, zeros, "setting").mean(axis=(1, 2)) if compared else np.full(len(raw), np.nan)
    values = np.array([mean.mean for mean in ours])
    papers = np.array([PAPER[name] for name in selection.settings])
    our_ranks = np.where(np.isnan(values), np.nan, ranks(values))
    lines = [
        Line(name, mean, float(second), float(rank), float(paper), float(paper_rank))
        for name, mean, second, rank, paper, paper_rank in zip(
            selection.settings, ours, other, our_ranks, papers, ranks(papers), strict=True
        )
    ]
    return Table1(selection, rows, random, lines, rank_correlation(values, papers), ())


def _scored(row: Row, random: Mapping[str, RandomReturn]) -> Row:
    """The row; where it diverged before an episode had ended, with the score of the random policy.

    It has learned nothing. Left out, it would take away its setting's mean, or raise it.
    """
    return row if row.score is not None else row._replace(score=random[row.task].mean)


# ------------------------------------------------------------------ text


def notes(table: Table1) -> list[str]:
    """What a reader of the table must know, in sentences."""
    selection = table.selection
    found = []
    compared = sum(task in TASKS for task in selection.tasks)
    differences = [
        text
        for differs, text in (
            (compared != 7, f"{compared} of its 7 tasks"),
            (len(selection.settings) != 11, f"{len(selection.settings)} of its 11 settings"),
            (len(selection.seeds) != 3, f"{counted(len(selection.seeds), 'seed')} (its 3)"),
            (selection.timesteps != TIMESTEPS, f"{selection.timesteps:,} timesteps (its 1,000,000)"),
        )
        if differs
    ]
    if differences:
        found.append(f"Not the paper's experiment: {', '.join(differences)}.")
    if table.missing:
        found.append(f"Not complete: {counted(table.missing, 'run')} missing; the same command goes on.")
    others = [task for task in selection.tasks if task not in TASKS]
    if others:
        found.append(f"Not in the mean, as not in the paper's: {', '.join(others)}.")
    found += ended_early(
        table.rows, "Normalised they count as the random policy, 0; the mean returns and curves are without them"
    )
    beaten = [
        task
        for task in selection.tasks
        if task in TASKS
        and all(
            row.score <= table.random[task].mean for row in table.rows if row.task == task and row.score is not None
        )
    ]
    if beaten and not table.missing:
        found.append(f"No mean, as nothing is better than the random policy: {', '.join(beaten)}.")
    few = sum(0 < row.episodes < 100 for row in table.rows)
    if few:
        found.append(f"{few} runs had fewer than 100 episodes: their scores are of all that ended.")
    found.append(made_with(table.rows))
    return found


def ended_early(rows: Sequence[Row], without_score: str) -> list[str]:
    """Which runs diverged, and which of them before an episode had ended, in sentences.

    :param without_score: a sentence, without its point, on what is made of the latter
    """
    found = []
    diverged = [row for row in rows if row.diverged is not None]
    if diverged:
        found.append(f"Ended early, as a number was not finite: {_named(diverged)}.")
    scoreless = [row for row in diverged if row.score is None]
    if scoreless:
        found.append(f"Of these without a score, as no episode had ended: {_named(scoreless)}. {without_score}.")
    return found


def _named(rows: Sequence[Row]) -> str:
    return "; ".join(f"{row.setting} on {row.task}, seed {row.seed}" for row in rows)


def made_with(rows: Sequence[Row]) -> str:
    """The versions of all packages, as a sentence."""
    packages: dict[str, set[str]] = {}
    for row in rows:
        for package, version in row.versions.items():
            packages.setdefault(package, set()).add(version)
    made = ", ".join(f"{package} {' and '.join(sorted(found))}" for package, found in packages.items())
    return f"Made with {made}."


def summary(table: Table1) -> tuple[list[str], list[list[str]]]:
    """The table beside the paper's, as header and cells."""
    header = ["setting", "ours", "95 % interval", "paper", "difference", "rank", "paper's rank", "best setting = 1"]
    cells = [
        [
            SETTINGS[line.setting].label,
            number(line.ours.mean),
            "–" if math.isnan(line.ours.low) else f"{number(line.ours.low)} to {number(line.ours.high)}",
            number(line.paper),
            signed(line.ours.mean - line.paper),
            number(line.rank, "g"),
            number(line.paper_rank, "g"),
            number(line.other_reading),
        ]
        for line in table.lines
    ]
    return header, cells


def per_task(table: Table1) -> tuple[list[str], list[list[str]]]:
    """Raw scores: mean over seeds and, after ±, half of what lies between the lowest and the highest."""
    selection = table.selection
    raw = raw_scores(selection, table.rows, selection.tasks)
    header = ["setting", *(task.rpartition(":")[2] for task in selection.tasks)]
    cells = [
        [SETTINGS[name].label, *(spread(raw[place, :, task]) for task in range(len(selection.tasks)))]
        for place, name in enumerate(selection.settings)
    ]
    cells.append(["random policy", *(short(table.random[task].mean) for task in selection.tasks)])
    best = [raw[:, :, task] for task in range(len(selection.tasks))]
    cells.append(["best run", *("–" if np.isnan(each).all() else short(float(np.nanmax(each))) for each in best)])
    return header, cells


def spread(scores: np.ndarray) -> str:
    """Scores as their mean and half their range; NaN are left out.

    :param scores: of the seeds, ``(R,)``
    """
    there = scores[~np.isnan(scores)]
    if not len(there):
        return "–"
    half = f" ± {short((there.max() - there.min()) / 2, 2)}" if len(there) > 1 else ""
    return f"{short(there.mean())}{half}"


def described(table: Table1, render: Any = plain) -> str:
    """The table, the tasks' table and the notes as text.

    :param render: :func:`~sb3_ppo_variants.reproduce.tables.plain` or ``markdown``
    """
    heading = "## " if render is markdown else ""
    correlation = (
        "Spearman's rank correlation with the paper's: "
        f"{number(table.correlation)} ({sum(not math.isnan(line.ours.mean) for line in table.lines)} settings)."
    )
    parts = [
        f"{heading}Table 1: mean normalised score",
        render(*summary(table)),
        correlation,
        f"{heading}Mean return of the last 100 episodes: mean over seeds ± half the range",
        render(*per_task(table)),
        "\n".join(f"- {note}" for note in notes(table)),
    ]
    return "\n\n".join(parts) + "\n"


# ------------------------------------------------------------------ files


def _written(table: Table1, folder: Path) -> Table1:
    folder.mkdir(parents=True, exist_ok=True)
    texts = {folder / "table1.txt": plain, folder / "table1.md": markdown}
    for path, render in texts.items():
        atomic_write(path, described(table, render).encode())
    files = [*texts, *drawing.save(draw_scores(table), folder, "table1")]
    if table.rows:
        files += drawing.save(draw_curves(table), folder, "table1_curves")
    return Table1(table.selection, table.rows, table.random, table.lines, table.correlation, tuple(files))


def draw_curves(table: Table1) -> Any:
    """The learning curves of all settings, task by task."""
    styles = {
        name: drawing.Style(SETTINGS[name].label, _COLORS[name], "--" if name == "none" else "-", name != "none")
        for name in table.selection.settings
    }
    title = f"Table 1's settings: mean over {len(table.selection.seeds)} seeds, and their range"
    return drawing.draw_curves(table.rows, table.selection.tasks, styles, title)


def draw_scores(table: Table1) -> Any:
    """The settings' means with their intervals, beside the paper's."""
    figure = drawing.new_figure(7.2, 1.5 + 0.36 * len(table.lines))
    axes = figure.add_subplot()
    left = LOWEST_DRAWN - 0.1
    for place, line in enumerate(table.lines):
        color = _COLORS[line.setting]
        axes.plot(line.paper, place, "D", color="none", markeredgecolor="black", markersize=6, zorder=3)
        mean = line.ours.mean
        if math.isnan(mean):
            continue
        if mean < LOWEST_DRAWN:
            axes.annotate(
                number(mean), (left, place), (left + 0.16, place), va="center", fontsize=8,
                arrowprops={"arrowstyle": "->", "color": color},
            )  # fmt: skip
            continue
        if not math.isnan(line.ours.low):
            ends = [max(line.ours.low, left), line.ours.high]
            axes.plot(ends, [place, place], color=color, linewidth=2.5, alpha=0.5)
        if line.ours.low < LOWEST_DRAWN:
            axes.plot(left + 0.02, place, "<", color=color, markersize=6)
            axes.text(left + 0.05, place - 0.2, f"down to {number(line.ours.low)}", fontsize=7)
        axes.plot(mean, place, "o", color=color, markersize=7, zorder=2)
    axes.plot([], [], "o", color="0.3", label="ours, 95 % interval")
    axes.plot([], [], "D", color="none", markeredgecolor="black", label="paper")
    axes.set_yticks(range(len(table.lines)), [SETTINGS[line.setting].label for line in table.lines])
    axes.set_ylim(len(table.lines) - 0.5, -0.5)  # the first on top
    axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    lowest = min(0.0, *(line.paper for line in table.lines), *_drawn(table))
    reaches_out = any(value < LOWEST_DRAWN for line in table.lines for value in (line.ours.mean, line.ours.low))
    axes.set_xlim(left if reaches_out else lowest - 0.1, 1.05)
    axes.set_xlabel("mean normalised score (random policy = 0, best run = 1)")
    axes.grid(axis="x", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    n_tasks = sum(task in TASKS for task in table.selection.tasks)
    axes.set_title(
        f"Table 1: {n_tasks} tasks × {len(table.selection.seeds)} seeds, {table.selection.timesteps:,} timesteps",
        fontsize=10,
    )
    return figure


def _drawn(table: Table1) -> list[float]:
    """What of our means and intervals is on the axis."""
    values = [value for line in table.lines for value in (line.ours.mean, line.ours.low) if value >= LOWEST_DRAWN]
    return values or [0.0]
