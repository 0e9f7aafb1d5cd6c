"""Pictures: how they are saved, and learning curves, a panel for each task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sb3_ppo_variants.reproduce.results import Row
from sb3_ppo_variants.reproduce.tables import number

DPI = 150
BAND_ALPHA = 0.15
# Of more curves than this the bands would hide one another.
MANY = 6
BAND_ALPHA_OF_MANY = 0.07
# Of the height between the lowest and the highest curve, left free above and below.
MARGIN = 0.06


class Style(NamedTuple):
    """How a setting's curve is drawn."""

    label: str
    color: Any
    dashes: str = "-"
    fits: bool = True
    """whether the axes are chosen so that all of the curve is within"""


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches, that needs no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write a picture as PNG and SVG; the same picture gives the same bytes.

    :return: the files
    """
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(paths[0], dpi=DPI)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def draw_curves(rows: Sequence[Row], tasks: Sequence[str], styles: Mapping[str, Style], title: str) -> Any:
    """Learning curves: the mean over seeds, and a band from the lowest to the highest seed.

    Runs of which no episode ended are left out.

    :param rows: of all tasks and settings
    :param styles: by setting, in the order of the legend
    :return: the figure
    """
    columns = min(4, len(tasks))
    n_rows = math.ceil(len(tasks) / columns)
    has_place = n_rows * columns > len(tasks)  # for the legend, among the panels
    legend_columns = 3 if columns < 3 else 4
    below = 0.4 if has_place else 0.6 + 0.2 * len(styles) / legend_columns
    figure = new_figure(max(6.6, 3.3 * columns), 2.6 * n_rows + below)
    panels = figure.subplots(n_rows, columns, squeeze=False).flatten()
    alpha = BAND_ALPHA if len(styles) <= MANY else BAND_ALPHA_OF_MANY
    for panel, task in zip(panels, tasks, strict=False):
        _draw_task(panel, [row for row in rows if row.task == task], styles, alpha)
        panel.set_title(task.rpartition(":")[2], fontsize=10)
    for panel in panels[max(0, len(tasks) - columns) : len(tasks)]:  # those with none below
        panel.set_xlabel("timesteps", fontsize=8)
    for panel in panels[: len(tasks) : columns]:
        panel.set_ylabel("return", fontsize=8)
    for panel in panels[len(tasks) :]:
        panel.axis("off")
    handles: dict[str, Any] = {}
    for panel in panels[: len(tasks)]:
        drawn, names = panel.get_legend_handles_labels()
        handles.update(zip(names, drawn, strict=True))
    labels = [style.label for style in styles.values() if style.label in handles]
    listed = [handles[label] for label in labels], labels
    if has_place:
        panels[len(tasks)].legend(*listed, loc="center", fontsize=8, frameon=False)
    else:
        figure.legend(
            *listed,
            loc="outside lower center",
            ncols=min(legend_columns, max(1, len(labels))),
            fontsize=8,
            frameon=False,
        )
    figure.suptitle(title, fontsize=11)
    return figure


def _draw_task(axes: Any, rows: Sequence[Row], styles: Mapping[str, Style], alpha: float) -> None:
    lows: list[float] = []
    highs: list[float] = []
    outside: list[tuple[str, float]] = []
    for name, style in styles.items():
        curves = [row for row in rows if row.setting == name and any(value is not None for value in row.curve)]
        if not curves:
            continue
        ends, values = curve_points(curves)
        middle, low, high = values.mean(axis=0), values.min(axis=0), values.max(axis=0)
        axes.plot(ends, middle, style.dashes, color=style.color, linewidth=1.2, label=style.label)
        if len(curves) > 1:
            axes.fill_between(ends, low, high, color=style.color, alpha=alpha, linewidth=0)
        if style.fits:
            lows.append(float(low.min()))
            highs.append(float(high.max()))
        else:
            outside.append((style.label, float(low.min())))
    if lows and outside:
        margin = MARGIN * (max(highs) - min(lows)) or 1.0
        axes.set_ylim(min(lows) - margin, max(highs) + margin)
        for label, lowest in outside:
            if lowest < min(lows) - margin:
                axes.text(
                    0.98,
                    0.02,
                    f"{label}: down to {number(lowest, ',.0f')}",
                    transform=axes.transAxes,
                    fontsize=6,
                    ha="right",
                )
    axes.xaxis.set_major_formatter(thousands)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, linewidth=0.5)


def curve_points(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """The seeds' curves of one setting, at the same timesteps.

    A part in which no episode of a seed ended is drawn on the line between its neighbours; before a seed's first
    episode, and after the end of one that diverged, it has the nearest value.

    :param rows: of each of which an episode ended
    :return: timesteps ``(n,)`` and returns ``(seeds, n)``
    """
    n_points = len(rows[0].curve)
    ends = np.arange(1, n_points + 1) * rows[0].timesteps / n_points
    values = []
    for row in rows:
        curve = np.array([np.nan if value is None else value for value in row.curve], dtype=float)
        there = ~np.isnan(curve)
        values.append(np.interp(ends, ends[there], curve[there]))
    return ends, np.array(values)


def thousands(value: float, _position: Any = None) -> str:
    """A number of timesteps at an axis."""
    if value == 0:
        return "0"
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k"
