"""Normalisation, means, ranks and the table, on rows whose numbers are worked out by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_ppo_variants.reproduce import drawing, figure3, table1
from sb3_ppo_variants.reproduce.monitor import Episodes, read_episodes
from sb3_ppo_variants.reproduce.places import shipped_results
from sb3_ppo_variants.reproduce.random_policy import RandomReturn, measure, random_returns
from sb3_ppo_variants.reproduce.results import Results
from sb3_ppo_variants.reproduce.scores import means, normalized, rank_correlation, ranks
from sb3_ppo_variants.reproduce.settings import FIGURE_3_SETTINGS, SETTINGS, TABLE_1_SETTINGS, Run, selected
from sb3_ppo_variants.reproduce.tables import number
from tests.reproduce.pretended import TASKS, pretend, row_of

# Two settings, two seeds, two tasks.
RAW = np.array([[[10.0, -4.0], [30.0, -6.0]], [[50.0, -8.0], [20.0, -12.0]]])
RANDOM = np.array([10.0, -12.0])


def test_normalized_by_the_best_run() -> None:
    # Task 1: random 10, best run 50: (x − 10) / 40. Task 2: random −12, best run −4: (x + 12) / 8.
    expected = np.array([[[0, 1], [0.5, 0.75]], [[1, 0.5], [0.25, 0]]])
    np.testing.assert_allclose(normalized(RAW, RANDOM), expected)


def test_normalized_by_the_best_setting() -> None:
    # Task 1: the settings' means are 20 and 35: (x − 10) / 25. Task 2: −5 and −10: (x + 12) / 7.
    expected = np.array([[[0, 8 / 7], [0.8, 6 / 7]], [[1.6, 4 / 7], [0.4, 0]]])
    np.testing.assert_allclose(normalized(RAW, RANDOM, "setting"), expected)


def test_normalized_takes_one_of_two_readings() -> None:
    with pytest.raises(ValueError, match="best must be one of 'run', 'setting'"):
        normalized(RAW, RANDOM, "task")  # type: ignore[arg-type]


def test_a_task_on_which_nothing_beats_the_random_policy_has_no_scale() -> None:
    scores = normalized(RAW, np.array([10.0, 0.0]))
    assert np.isnan(scores[:, :, 1]).all()
    assert not np.isnan(scores[:, :, 0]).any()


def test_means_and_their_intervals() -> None:
    first, second = means(normalized(RAW, RANDOM))
    assert first.mean == pytest.approx((0 + 1 + 0.5 + 0.75) / 4)
    assert second.mean == pytest.approx((1 + 0.5 + 0.25 + 0) / 4)
    # Drawn again with replacement: task 1's mean is 0, 0.25 or 0.5, task 2's 0.75, 0.875 or 1; of nine pairs the
    # lowest and the highest have a probability of 1/16 each, more than 2.5 %: they are the interval's ends.
    assert (first.low, first.high) == (pytest.approx(0.375), pytest.approx(0.75))
    before: Any = np.random.get_state()
    means(normalized(RAW, RANDOM))
    after: Any = np.random.get_state()
    assert np.array_equal(before[1], after[1])


def test_a_mean_of_missing_runs_is_none() -> None:
    raw = RAW.copy()
    raw[0, 1, 1] = np.nan
    first, second = means(normalized(raw, RANDOM))
    assert np.isnan([first.mean, first.low, first.high]).all()
    assert (first.runs, second.runs) == (3, 4)
    assert not np.isnan(second.mean)


def test_one_seed_has_no_interval() -> None:
    (only,) = means(normalized(RAW[:1, :1], RANDOM - 1))
    assert np.isnan([only.low, only.high]).all()
    assert not np.isnan(only.mean)


def test_ranks_and_their_correlation() -> None:
    assert ranks(np.array([0.2, 0.9, 0.5, 0.5])).tolist() == [4.0, 1.0, 2.5, 2.5]
    # Ranks 1 2 3 4 against 2 1 3 4: ρ = 1 − 6 Σd² / (n (n² − 1)) = 1 − 6 · 2 / (4 · 15) = 0.8.
    ours, papers = np.array([4.0, 3.0, 2.0, 1.0]), np.array([0.3, 0.4, 0.2, 0.1])
    assert rank_correlation(ours, papers) == pytest.approx(0.8)
    # Without the first: 1 2 3 against 1 2 3.
    assert rank_correlation(np.array([np.nan, 3.0, 2.0, 1.0]), papers) == pytest.approx(1)
    assert np.isnan(rank_correlation(np.array([np.nan, np.nan, 2.0, 1.0]), papers))


# ------------------------------------------------------------------ episodes


def test_score_and_curve_of_episodes() -> None:
    # 150 episodes of 10 timesteps with returns 0, 1, …: the last 100 have the mean of 50 to 149.
    episodes = Episodes(np.arange(10, 1501, 10), np.arange(150.0))
    assert episodes.score() == 99.5
    # Parts of 15 timesteps: the first has the episode that ends at 10, the second those at 20 and 30; the last
    # those at 1490 and 1500.
    curve = episodes.curve(1500)
    assert (len(curve), curve[0], curve[1], curve[-1]) == (100, 0.0, 1.5, 148.5)
    # Of 1490 timesteps the last part begins after 1475: it has those that end at 1480, 1490 and, after its end, 1500.
    assert episodes.curve(1490)[-1] == 148.0
    few = Episodes(np.array([600]), np.array([7.0]))
    assert few.score() == 7.0
    assert [(part, value) for part, value in enumerate(few.curve(1000)) if value is not None] == [(59, 7.0)]
    assert np.isnan(Episodes(np.array([]), np.array([])).score())


def test_episodes_of_several_environments_are_in_the_order_of_their_ends(tmp_path: Path) -> None:
    (tmp_path / "0.monitor.csv").write_text('#{"t_start": 0}\nr,l,t\n1.5,10,0.1\n2.5,10,0.2\n')
    (tmp_path / "1.monitor.csv").write_text('#{"t_start": 0}\nr,l,t\n-1,15,0.1\n')
    episodes = read_episodes(tmp_path)
    assert episodes.ends.tolist() == [20, 30, 40]
    assert episodes.returns.tolist() == [1.5, -1.0, 2.5]
    (tmp_path / "1.monitor.csv").write_text('#{"t_start": 0}\nr,l,t\n-1,many,0.1\n')
    with pytest.raises(ValueError, match=r"1.monitor.csv is no file of a Monitor"):
        read_episodes(tmp_path)
    with pytest.raises(ValueError, match=r"has no monitor\.csv"):
        read_episodes(tmp_path / "nowhere")


# ------------------------------------------------------------------ the table

SELECTION = selected(TABLE_1_SETTINGS, TASKS, ("none", "clip_0.2", "fixed_kl_3"), (0, 1), 5000)
ZEROS = {task: RandomReturn(task, 10, zero, 0.1, 0, {}) for task, zero in zip(TASKS, (10.0, -12.0), strict=True)}


def table_of(scores: dict[tuple[str, int], tuple[float, float]]) -> table1.Table1:
    rows = [
        row_of(Run(task, SETTINGS[name], seed), 5000, score)
        for (name, seed), pair in scores.items()
        for task, score in zip(TASKS, pair, strict=True)
    ]
    return table1.tabulated(SELECTION, rows, ZEROS)


SCORES = {
    ("none", 0): (10.0, -4.0), ("none", 1): (30.0, -6.0),
    ("clip_0.2", 0): (50.0, -8.0), ("clip_0.2", 1): (20.0, -12.0),
    ("fixed_kl_3", 0): (50.0, -4.0), ("fixed_kl_3", 1): (30.0, -4.0),
}  # fmt: skip


def test_the_table() -> None:
    table = table_of(SCORES)
    # As above; and β = 3 has 1, 0.5, 1, 1.
    assert [line.ours.mean for line in table.lines] == pytest.approx([0.5625, 0.4375, 0.875])
    assert [line.rank for line in table.lines] == [2, 3, 1]
    assert [line.paper for line in table.lines] == [-0.39, 0.82, 0.72]
    assert [line.paper_rank for line in table.lines] == [3, 1, 2]
    # d = −1, 2, −1: 1 − 6 · 6 / (3 · 8) = −0.5.
    assert table.correlation == pytest.approx(-0.5)
    text = table1.described(table)
    assert "Spearman's rank correlation with the paper's: −0.50 (3 settings)." in text
    (line,) = (line for line in text.splitlines() if line.startswith("no clipping or penalty") and "−0.39" in line)
    assert line.split()[4:6] == ["0.56", "0.38"]
    assert "+0.95" in line  # 0.5625 + 0.39
    assert "Not the paper's experiment: 2 of its 7 tasks, 3 of its 11 settings, 2 seeds (its 3), 5,000" in text
    assert "no clipping or penalty  20.00 ± 10" in text


def test_only_what_is_not_the_papers_is_named() -> None:
    names = [setting.name for setting in TABLE_1_SETTINGS]
    selection = selected(TABLE_1_SETTINGS, TASKS[:1], names, (0, 1, 2), 1_000_000)
    rows = [row_of(run, 1_000_000) for run in selection.runs()]
    assert "Not the paper's experiment: 1 of its 7 tasks." in table1.notes(table1.tabulated(selection, rows, ZEROS))


def test_a_table_with_missing_runs_says_so() -> None:
    table = table_of({key: value for key, value in SCORES.items() if key != ("none", 1)})
    assert np.isnan(table.lines[0].ours.mean)
    assert np.isnan(table.lines[0].rank)
    assert (table.lines[1].rank, table.lines[2].rank) == (2, 1)
    assert table.missing == 2
    assert "Not complete: 2 runs missing" in table1.described(table)
    assert table1.draw_scores(table)


def test_the_results_that_ship_are_all_of_table_1_and_are_told_as_they_are() -> None:
    names = [setting.name for setting in TABLE_1_SETTINGS]
    selection = selected(TABLE_1_SETTINGS, table1.TASKS, names, (0, 1, 2), 1_000_000)
    folder = shipped_results()
    rows = Results(folder, selection.timesteps).rows(selection.runs())
    random = random_returns(selection.tasks, folder, folder)
    table = table1.tabulated(selection, list(rows.values()), random)
    assert (table.missing, len(table.rows)) == (0, 231)
    page, readme = (Path(folder.parent, name).read_text() for name in ("docs/reproduction.md", "README.md"))
    for line in table.lines:
        told = f"| {number(line.ours.mean, '.2f')} | {number(line.paper, '.2f')} |\n"
        assert re.search(rf"^\| {re.escape(SETTINGS[line.setting].label)} \|.*{re.escape(told)}", page, re.MULTILINE)
    assert f"with it, {table.correlation:.2f}." in page
    none, clip_1, clip_2 = (number(line.ours.mean, ".2f") for line in table.lines[:3])
    assert f"(ε = 0.1: {clip_1}; the paper's ε = 0.2: 0.82, here {clip_2})" in readme
    assert f"worst by far ({none}; paper −0.39)" in readme


def test_what_lies_beyond_the_axis_is_told_in_the_picture() -> None:
    for worst, below in ((-180.0, "down to {low}"), (-300.0, "{mean}")):
        table = table_of({**SCORES, ("none", 1): (worst, -6.0)})
        ours = table.lines[0].ours
        assert ours.low < table1.LOWEST_DRAWN
        (axes,) = table1.draw_scores(table).axes
        (text,) = axes.texts
        assert text.get_text() == below.format(low=number(ours.low), mean=number(ours.mean))
        assert axes.get_xlim()[0] == pytest.approx(table1.LOWEST_DRAWN - 0.1)
    assert not table1.draw_scores(table_of(SCORES)).axes[0].texts


def test_a_table_without_a_scale_says_so() -> None:
    table = table_of({key: (10.0, pair[1]) for key, pair in SCORES.items()})  # 10 is the random policy's
    assert np.isnan([line.ours.mean for line in table.lines]).all()
    assert f"No mean, as nothing is better than the random policy: {TASKS[0]}." in table1.described(table)
    assert "No mean" not in table1.described(table_of(SCORES))


def test_another_task_is_not_in_the_mean() -> None:
    selection = selected(TABLE_1_SETTINGS, ["Pendulum-v1", "Hopper-v5"], ("none", "clip_0.2"), (0, 1), 5000)
    rows = [row_of(run, 5000, 1000.0 if run.task == "Pendulum-v1" else 20.0 + run.seed) for run in selection.runs()]
    zeros = {"Hopper-v5": ZEROS["Hopper-v5"], "Pendulum-v1": ZEROS["Hopper-v5"]._replace(task="Pendulum-v1")}
    table = table1.tabulated(selection, rows, zeros)
    # Hopper alone: 20 and 21, of random 10 and best 21: 10/11 and 1.
    assert [line.ours.mean for line in table.lines] == pytest.approx([21 / 22] * 2)
    assert "Not in the mean, as not in the paper's: Pendulum-v1." in table1.described(table)
    assert table1.per_task(table)[0] == ["setting", "Hopper-v5", "Pendulum-v1"]


def test_what_diverged_and_what_was_made_with_other_versions_is_told() -> None:
    table = table_of(SCORES)
    rows = [table.rows[0]._replace(diverged=4096, versions={"torch": "2.1"}), *table.rows[1:]]
    text = table1.described(table1.tabulated(SELECTION, rows, ZEROS))
    assert "Ended early, as a number was not finite: none on Hopper-v5, seed 0." in text
    assert "Made with torch 2.0 and 2.1." in text


def test_what_diverged_before_an_episode_had_ended_counts_as_the_random_policy() -> None:
    table = table_of(SCORES)
    lost = [(row.setting, row.seed, row.task) == ("none", 1, TASKS[0]) for row in table.rows]
    changes: Any = {"score": None, "episodes": 0, "diverged": 4096, "curve": [None] * 4}
    rows = [row._replace(**changes) if is_lost else row for row, is_lost in zip(table.rows, lost, strict=True)]
    without = table1.tabulated(SELECTION, rows, ZEROS)
    # That run had (30 − 10) / 40 = 0.5 of the 0, 1, 0.5 and 0.75; now it has 0.
    assert [line.ours.mean for line in without.lines] == pytest.approx([0.4375, 0.4375, 0.875])
    text = table1.described(without)
    assert "Of these without a score, as no episode had ended: none on Hopper-v5, seed 1. Normalised they count" in text
    assert table1.per_task(without)[1][0][1:] == ["10.00", "−5.000 ± 1.0"]
    assert "fewer than 100 episodes" not in text
    assert table1.draw_curves(without)
    nothing = [row._replace(**changes) for row in table.rows]
    assert table1.draw_curves(table1.tabulated(SELECTION, nothing, ZEROS))
    told = figure3.described(selected(FIGURE_3_SETTINGS, TASKS, ["clip_0.2"], (0, 1), 5000), [nothing[4], rows[5]])
    assert "Of these without a score, as no episode had ended: clip_0.2 on Hopper-v5, seed 0. They are not in" in told


def test_table1_trains_what_is_missing_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_ppo_variants.reproduce.random_policy.measure", lambda task: measure(task, 2))
    results = tmp_path / "results"
    arguments = {"tasks": ["InvertedPendulum-v5"], "settings": ["none", "clip_0.2"], "seeds": [0, 1], "timesteps": 5000}

    def draw(train: object) -> table1.Table1:
        return table1.table1(**arguments, results=results, output=tmp_path / "out", train=train)  # type: ignore[arg-type]

    table = draw(pretend)
    names = ["table1.txt", "table1.md", "table1.png", "table1.svg", "table1_curves.png", "table1_curves.svg"]
    assert [path.name for path in table.files] == names
    before = {path: path.read_bytes() for path in table.files}
    assert draw(None).rows == table.rows  # complete: nothing is trained, and the same is drawn
    assert {path: path.read_bytes() for path in table.files} == before
    assert "| no clipping or penalty |" in (tmp_path / "out" / "table1.md").read_text()


# ------------------------------------------------------------------ the random policy


def test_random_returns_are_measured_once(tmp_path: Path) -> None:
    measured = measure("InvertedPendulum-v5", 30)
    assert measured.episodes == 30
    # Return 1 a step, till it falls after some steps; a controlled one stands for 1000.
    assert 3 < measured.mean < 20
    assert 0 < measured.standard_error < 3
    assert measure("InvertedPendulum-v5", 30) == measured
    (tmp_path / "random_policy.jsonl").write_text(
        '{"task": "Hopper-v5", "episodes": 3, "mean": 17.5, "standard_error": 1, "seed": 0, "versions": {}}\n'
    )
    assert random_returns(("Hopper-v5",), tmp_path / "new", tmp_path)["Hopper-v5"].mean == 17.5
    assert not (tmp_path / "new").exists()
    (tmp_path / "random_policy.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"line 1 of .*random_policy.jsonl is no result"):
        random_returns(("Hopper-v5",), tmp_path)


# ------------------------------------------------------------------ curves


def test_gaps_in_curves_are_bridged() -> None:
    row = row_of(Run("Hopper-v5", SETTINGS["none"], 0), 4000, 8.0)._replace(curve=[None, 4.0, None, 8.0])
    ends, values = drawing.curve_points([row, row._replace(curve=[1.0, 2.0, 3.0, None])])
    assert ends.tolist() == [1000, 2000, 3000, 4000]
    assert values.tolist() == [[4, 4, 6, 8], [1, 2, 3, 3]]


@pytest.mark.parametrize("n_tasks", [2, 4])
def test_the_legend_is_in_the_picture(n_tasks: int) -> None:
    tasks = ["Hopper-v5", "Reacher-v5", "Swimmer-v5", "Walker2d-v5"][:n_tasks]
    selection = selected(TABLE_1_SETTINGS, tasks, None, (0, 1), 5000)
    zeros = {task: RandomReturn(task, 10, 0.0, 0.1, 0, {}) for task in tasks}
    figure = table1.draw_curves(table1.tabulated(selection, [row_of(run, 5000) for run in selection.runs()], zeros))
    figure.draw_without_rendering()
    assert len(figure.legends) == 1
    box, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    assert whole.y0 <= box.y0 < box.y1 <= whole.y1


def test_results_folder_of_a_task_with_a_module(tmp_path: Path) -> None:
    assert Results(tmp_path, 10).path("some.module:Task-v0").name == "Task-v0.jsonl"
