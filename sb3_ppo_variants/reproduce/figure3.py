"""Fig. 3: clip PPO and five other algorithms on the seven MuJoCo tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_ppo_variants.files import atomic_write
from sb3_ppo_variants.reproduce import drawing
from sb3_ppo_variants.reproduce.blocks import TrainRuns, run_blocks
from sb3_ppo_variants.reproduce.places import OUTPUT, Places
from sb3_ppo_variants.reproduce.results import Row
from sb3_ppo_variants.reproduce.scores import raw_scores
from sb3_ppo_variants.reproduce.settings import FIGURE_3_SETTINGS, SETTINGS, Selection, selected
from sb3_ppo_variants.reproduce.table1 import ended_early, made_with, spread
from sb3_ppo_variants.reproduce.tables import counted, markdown, number, plain
from sb3_ppo_variants.reproduce.training import train_runs

TIMESTEPS = 1_000_000
SEEDS = (0, 1, 2)
# As Table 1's; of the algorithms, those that learn soonest.
QUICK = {
    "tasks": ("InvertedPendulum-v5", "Hopper-v5"),
    "settings": ("a2c", "clip_0.2", "trpo"),
    "seeds": (0, 1),
    "timesteps": 50_000,
}
PAPER_ENDS = {
    "HalfCheetah-v5": 1800,
    "Hopper-v5": 2300,
    "InvertedDoublePendulum-v5": 8000,
    "InvertedPendulum-v5": 1000,
    "Reacher-v5": -7,
    "Swimmer-v5": 110,
    "Walker2d-v5": 3300,
}
"""where the curve of PPO (clip) ends in Fig. 3, read off its axes within a tenth"""
_COLORS = {
    "a2c": "#1f77b4",
    "a2c_trust_region": "#ff7f0e",
    "cem": "#2ca02c",
    "clip_0.2": "#9467bd",
    "vanilla_pg": "#8c564b",
    "trpo": "#d62728",
}


def _label(name: str) -> str:
    return "PPO (clip), ε = 0.2" if name == "clip_0.2" else SETTINGS[name].label


@dataclass(frozen=True)
class Figure3:
    """What has come of the runs of a selection."""

    selection: Selection
    rows: Sequence[Row]
    files: Sequence[Path]


def figure3(
    *,
    tasks: Iterable[str] | None = None,
    settings: Iterable[str] | None = None,
    seeds: Iterable[int] = SEEDS,
    timesteps: int = TIMESTEPS,
    workers: int = 1,
    results: str | Path | None = None,
    output: str | Path = OUTPUT,
    train: TrainRuns = train_runs,
) -> Figure3:
    """Do the runs of Fig. 3 that are missing, and draw its curves.

    Those of PPO are the runs of Table 1 with ε = 0.2, and are not done twice.

    :param tasks: None: the seven
    :param settings: names, None: all six
    :param timesteps: of each run
    :param workers: processes; 1: this one
    :param results: folder of results; None: those that ship, and new ones in ``reproduction/results``
    :param output: folder for the pictures and the text
    :param train: trains the runs of a block
    :raises ValueError: for an argument that is not allowed, and for results that cannot be read
    :raises WorkerError: if a worker does not end well
    """
    selection = selected(FIGURE_3_SETTINGS, tasks, settings, seeds, timesteps)
    store = Places.of(results).results(timesteps)
    run_blocks("figure3", selection, store, workers, train)
    rows = list(store.rows(selection.runs()).values())
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {folder / "figure3.txt": plain, folder / "figure3.md": markdown}
    for path, render in texts.items():
        atomic_write(path, described(selection, rows, render).encode())
    files = [*texts, *(drawing.save(draw(selection, rows), folder, "figure3") if rows else [])]
    return Figure3(selection, rows, files)


def described(selection: Selection, rows: Sequence[Row], render: Any = plain) -> str:
    """The returns at the end, task by task, beside where the paper's curve of PPO ends."""
    raw = raw_scores(selection, rows, selection.tasks)
    header = ["algorithm", *(task.rpartition(":")[2] for task in selection.tasks)]
    cells = [
        [_label(name), *(spread(raw[place, :, task]) for task in range(len(selection.tasks)))]
        for place, name in enumerate(selection.settings)
    ]
    ends = [number(PAPER_ENDS.get(task, math.nan), "g") for task in selection.tasks]
    cells.append(["the paper's PPO, about", *ends])
    title = "Mean return of the last 100 episodes: mean over seeds ± half the range"
    notes = [made_with(rows)]
    if selection.timesteps != TIMESTEPS:
        notes.insert(0, f"Not the paper's experiment: {selection.timesteps:,} timesteps, its 1,000,000.")
    missing = len(selection.runs()) - len(rows)
    if missing:
        notes.insert(0, f"Not complete: {counted(missing, 'run')} missing; the same command goes on.")
    notes += ended_early(rows, "They are not in the means and curves")
    return "\n\n".join([title, render(header, cells), "\n".join(f"- {note}" for note in notes)]) + "\n"


def draw(selection: Selection, rows: Sequence[Row]) -> Any:
    """The picture."""
    styles = {name: drawing.Style(_label(name), _COLORS[name]) for name in selection.settings}
    title = f"Fig. 3: mean over {len(selection.seeds)} seeds, and their range"
    return drawing.draw_curves(rows, selection.tasks, styles, title)
