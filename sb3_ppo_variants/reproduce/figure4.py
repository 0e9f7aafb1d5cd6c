"""Fig. 4: learning curves on the three Roboschool humanoids, of runs whose curves are kept with the agents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sb3_ppo_variants.agents.curves import Curve, read_curves
from sb3_ppo_variants.agents.folder import Agent, find_agent, shipped_agents
from sb3_ppo_variants.arguments import check_names
from sb3_ppo_variants.envs import TASKS as OUR_TASKS
from sb3_ppo_variants.files import atomic_write, folder_name
from sb3_ppo_variants.reproduce import drawing
from sb3_ppo_variants.reproduce.places import OUTPUT
from sb3_ppo_variants.reproduce.tables import markdown, number, plain

TASKS = ("RoboschoolHumanoid-v1", "RoboschoolHumanoidFlagrun-v1", "RoboschoolHumanoidFlagrunHarder-v1")


class End(NamedTuple):
    """Where a curve of the paper ends."""

    timesteps: int
    mean_return: float


PAPER_ENDS = {
    "RoboschoolHumanoid": End(50_000_000, 4000),
    "RoboschoolHumanoidFlagrun": End(100_000_000, 2500),
    "RoboschoolHumanoidFlagrunHarder": End(100_000_000, 3000),
}
"""of Fig. 4, whose tasks are the -v0; read off its axes within a tenth"""
OPENAI_AGENTS = {
    "RoboschoolHumanoid-v1": 4615,
    "RoboschoolHumanoidFlagrun-v1": 2620,
    "RoboschoolHumanoidFlagrunHarder-v1": 1561,
    "RoboschoolHumanoid-v0": 3517,
    "RoboschoolHumanoidFlagrun-v0": 1916,
    "RoboschoolHumanoidFlagrunHarder-v0": 2203,
}
"""mean return of OpenAI's agents of 2017 in our tasks, deterministic, 100 episodes; the README's table"""
RECIPES = {"paper": "Table 4 as written", "ours": "our settings"}
"""what recipes are called in the legend; others have their own names"""
_COLORS = ("#9467bd", "#1f77b4", "#2ca02c", "#d62728", "#8c564b")


class Figure4(NamedTuple):
    """What there is of the curves of some tasks."""

    tasks: Sequence[str]
    curves: dict[str, list[Curve]]
    """by task; empty where there are none"""
    agents: dict[str, Agent]
    """by task, where there is one"""
    files: Sequence[Path] = ()


def figure4(
    *, tasks: Iterable[str] | None = None, agents: str | Path | None = None, output: str | Path = OUTPUT
) -> Figure4:
    """Draw Fig. 4 from the curves in a folder of agents; nothing is trained.

    :param tasks: Roboschool humanoids; None: the three -v1
    :param agents: folder of agents; None: that of those that ship
    :param output: folder for the picture and the text
    :raises ValueError: for a task that is none of these, and for curves that cannot be read
    """
    folder = shipped_agents() if agents is None else Path(agents)
    found = gathered(list(TASKS if tasks is None else tasks), folder)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    texts = {output / "figure4.txt": plain, output / "figure4.md": markdown}
    for path, render in texts.items():
        atomic_write(path, described(found, render).encode())
    files = [*texts, *drawing.save(draw(found), output, "figure4")]
    return found._replace(files=files)


def gathered(tasks: Sequence[str], agents: Path) -> Figure4:
    """What a folder of agents holds of some tasks.

    :raises ValueError: as :func:`figure4`
    """
    check_names("task", tasks, [task for task in OUR_TASKS if task.startswith("RoboschoolHumanoid")])
    found = {task: find_agent(task, agents) for task in tasks}
    return Figure4(
        tasks,
        {task: read_curves(agents / folder_name(task)) for task in tasks},
        {task: agent for task, agent in found.items() if agent is not None},
    )


def described(found: Figure4, render: Any = plain) -> str:
    """A line for each run, beside where the paper's curve ends; what is missing is said."""
    header = ["task", "run", "timesteps", "hours", "mean return"]
    cells = []
    for task in found.tasks:
        for curve in found.curves[task]:
            label = f"{_label(curve)}, seed {curve.seed}"
            hours = f"{curve.wall_clock / 3600:.1f}"
            cells.append([task, label, f"{curve.timesteps:,}", hours, number(curve.mean_return, ",.0f")])
        if task in found.agents:
            score = found.agents[task].score
            mean, std = (number(score[name], ",.0f") for name in ("mean", "std"))
            label = f"its agent, deterministic, {score['episodes']} episodes"
            cells.append([task, label, f"{found.agents[task].timesteps:,}", "", f"{mean} ± {std}"])
        end = PAPER_ENDS[task.rpartition("-")[0]]
        cells.append([task, "the paper's Fig. 4 (-v0), about", f"{end.timesteps:,}", "", f"{end.mean_return:,.0f}"])
        cells.append([task, "OpenAI's agent of 2017, deterministic", "", "", f"{OPENAI_AGENTS[task]:,}"])
    notes = [f"No curve of {task} yet." for task in _missing(found)]
    notes.append("Mean return of runs: over the last 100 training episodes, of the stochastic policy.")
    return f"{render(header, cells)}\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"


def _missing(found: Figure4) -> list[str]:
    return [task for task in found.tasks if not found.curves[task]]


def _label(curve: Curve) -> str:
    """What the settings of a run are called: the algorithm too, unless it is the clipping one."""
    recipe = RECIPES.get(curve.recipe, curve.recipe)
    return recipe if curve.algo == "ppo_clip_paper" else f"{recipe}, {curve.algo}"


def draw(found: Figure4) -> Any:
    """The picture: a panel for each task, a line for each run, a colour for each recipe; the agent's score."""
    labels = sorted({_label(curve) for curves in found.curves.values() for curve in curves})
    colors = {label: _COLORS[place % len(_COLORS)] for place, label in enumerate(labels)}
    figure = drawing.new_figure(3.4 * len(found.tasks) + 0.2, 3.4)
    panels = figure.subplots(1, len(found.tasks), squeeze=False)[0]
    handles: dict[str, Any] = {}
    for panel, task in zip(panels, found.tasks, strict=True):
        _draw_task(panel, task, found.curves[task], found.agents.get(task), colors)
        drawn, names = panel.get_legend_handles_labels()
        handles.update(zip(names, drawn, strict=True))
    panels[0].set_ylabel("return, mean of 100 episodes", fontsize=8)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _draw_task(axes: Any, task: str, curves: Sequence[Curve], agent: Agent | None, colors: dict[str, str]) -> None:
    for curve in curves:
        steps, means = ([point[place] for point in curve.curve] for place in (0, 1))
        axes.plot(steps, means, color=colors[_label(curve)], linewidth=1.1, label=_label(curve))
    end = PAPER_ENDS[task.rpartition("-")[0]]
    axes.plot(*end, "*", color="black", markersize=9, label="end of the paper's curve (-v0)", clip_on=False)
    axes.axhline(OPENAI_AGENTS[task], color="gray", linestyle=":", linewidth=1, label="OpenAI's agent of 2017")
    returns = [0.0, end.mean_return, OPENAI_AGENTS[task], *(point[1] for curve in curves for point in curve.curve)]
    timesteps = [end.timesteps, *(curve.timesteps for curve in curves)]
    if agent is not None:
        returns.append(agent.score["mean"])
        timesteps.append(agent.timesteps)
        axes.plot(timesteps[-1], returns[-1], "o", color="black", markersize=5, label="our agent, deterministic")
    axes.set_ylim(1.05 * min(returns), 1.05 * max(returns))
    axes.set_xlim(0, max(timesteps))
    if not curves:
        axes.text(0.5, 0.4, "no run yet", transform=axes.transAxes, ha="center", color="gray")
    axes.set_title(f"{task}\n{_seeds(curves)}", fontsize=8)
    axes.set_xlabel("timesteps", fontsize=8)
    axes.xaxis.set_major_formatter(drawing.thousands)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, linewidth=0.5)


def _seeds(curves: Sequence[Curve]) -> str:
    """Which seeds each recipe was run with, a line for each."""
    by_label: dict[str, list[str]] = {}
    for curve in curves:
        by_label.setdefault(_label(curve), []).append(str(curve.seed))
    return "\n".join(f"{label}: seed {', '.join(seeds)}" for label, seeds in by_label.items())
