"""Files of results: one row per run, never lost, never doubled, never mixed."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sb3_ppo_variants.reproduce.blocks import WorkerError, _claimed, blocks_of, run_blocks
from sb3_ppo_variants.reproduce.results import Results, Row
from sb3_ppo_variants.reproduce.settings import SETTINGS, TABLE_1_SETTINGS, Run, Selection, selected
from tests.reproduce.environments import NAMESPACED
from tests.reproduce.pretended import TASKS, die_once, pretend, row_of

STEPS = 5000


def selection_of(
    settings: tuple[str, ...] = ("none", "clip_0.2"),
    seeds: tuple[int, ...] = (0, 1),
    tasks: tuple[str, ...] = TASKS,
    timesteps: int = STEPS,
) -> Selection:
    return selected(TABLE_1_SETTINGS, tasks, settings, seeds, timesteps)


def trained(results: Results) -> list[str]:
    path = results.in_progress / "trained.txt"
    return [line.split(" ", 1)[1] for line in path.read_text().splitlines()] if path.exists() else []


def test_rows_are_read_as_they_were_written_and_in_order(tmp_path: Path) -> None:
    results = Results(tmp_path, STEPS)
    runs = [Run("Hopper-v5", SETTINGS[name], seed) for name in ("clip_0.2", "none") for seed in (1, 0)]
    for run in runs:
        results.add([row_of(run, STEPS)])
    assert results.rows(runs) == {run: row_of(run, STEPS) for run in runs}
    lines = [json.loads(line) for line in results.path("Hopper-v5").read_text().splitlines()]
    assert [(line["setting"], line["seed"]) for line in lines] == [
        ("none", 0), ("none", 1), ("clip_0.2", 0), ("clip_0.2", 1)
    ]  # fmt: skip


def test_a_row_that_is_there_stays(tmp_path: Path) -> None:
    results = Results(tmp_path, STEPS)
    run = Run("Hopper-v5", SETTINGS["none"], 0)
    results.add([row_of(run, STEPS, 1.0)])
    results.add([row_of(run, STEPS, 2.0)])
    assert results.rows([run])[run].score == 1.0
    assert len(results.path("Hopper-v5").read_text().splitlines()) == 1


def test_own_results_come_before_those_that_ship_which_are_only_read(tmp_path: Path) -> None:
    first, second = (Run("Hopper-v5", SETTINGS[name], 0) for name in ("none", "clip_0.2"))
    shipped = Results(tmp_path / "shipped", STEPS)
    shipped.add([row_of(first, STEPS, 1.0), row_of(second, STEPS, 2.0)])
    before = shipped.path("Hopper-v5").read_bytes()
    results = Results(tmp_path / "own", STEPS, tmp_path / "shipped")
    assert results.missing([first, second]) == []
    results.add([row_of(second, STEPS, 3.0)])
    assert [row.score for row in results.rows([first, second]).values()] == [1.0, 3.0]
    assert shipped.path("Hopper-v5").read_bytes() == before


def test_other_timesteps_are_other_files(tmp_path: Path) -> None:
    run = Run("Hopper-v5", SETTINGS["none"], 0)
    Results(tmp_path, STEPS).add([row_of(run, STEPS)])
    assert Results(tmp_path, STEPS + 1).missing([run]) == [run]
    # A file that was moved by hand is told of, not taken for what its new place says.
    target = Results(tmp_path, STEPS + 1).path("Hopper-v5")
    target.parent.mkdir()
    target.write_bytes(Results(tmp_path, STEPS).path("Hopper-v5").read_bytes())
    with pytest.raises(ValueError, match="is of Hopper-v5 with 5000 timesteps, and belongs elsewhere"):
        Results(tmp_path, STEPS + 1).missing([run])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("settings", {"clip_range": 0.3}, r"clip_0.2 with seed 0, but with clip_range = 0.3 in place of 0.2"),
        ("settings", {"gamma": 0.9}, r"with gamma = 0.9 in place of 0.99"),
        ("settings", {"vf_coef": 0.5}, r"with vf_coef = 0.5 in place of 1.0"),
        ("algorithm", "sb3_ppo_variants.PPOUnclippedPaper", "with algorithm = "),
    ],
)
def test_other_settings_are_an_error(tmp_path: Path, name: str, value: Any, words: str) -> None:
    run = Run("Hopper-v5", SETTINGS["clip_0.2"], 0)
    row = row_of(run, STEPS)
    row = row._replace(settings={**row.settings, **value}) if name == "settings" else row._replace(algorithm=value)
    Results(tmp_path, STEPS).add([row])
    with pytest.raises(ValueError, match=words):
        Results(tmp_path, STEPS).missing([run])


def test_an_argument_that_came_later_and_has_its_default_is_no_other_setting(tmp_path: Path) -> None:
    run = Run("Hopper-v5", SETTINGS["clip_0.2"], 0)
    row = row_of(run, STEPS)
    results = Results(tmp_path, STEPS)
    results.add([row._replace(settings={key: row.settings[key] for key in row.settings if key != "weight_init"})])
    assert results.missing([run]) == []
    results.path("Hopper-v5").unlink()
    results.add([row._replace(settings={key: row.settings[key] for key in row.settings if key != "gamma"})])
    with pytest.raises(ValueError, match=r"with gamma = None in place of 0.99"):
        results.missing([run])


def test_other_settings_are_named_with_the_file_that_they_are_in(tmp_path: Path) -> None:
    first, second = (Run("Hopper-v5", SETTINGS["none"], seed) for seed in (0, 1))
    for folder, run in (("own", first), ("shipped", second)):
        row = row_of(run, STEPS)
        Results(tmp_path / folder, STEPS).add([row._replace(settings={**row.settings, "gamma": 0.9})])
    results = Results(tmp_path / "own", STEPS, tmp_path / "shipped")
    for run, path in ((first, results.path("Hopper-v5")), (second, tmp_path / "shipped" / "5000" / "Hopper-v5.jsonl")):
        with pytest.raises(ValueError, match=rf"^{path} has a result of none with seed {run.seed}, but with gamma = "):
            results.missing([run])


@pytest.mark.parametrize("line", ['{"task": "Hopper-v5"', '{"task": "Hopper-v5"}', "3", "[]", '{"score": NaN}', None])
def test_what_is_no_result_is_named(tmp_path: Path, line: str | None) -> None:
    results = Results(tmp_path, STEPS)
    run = Run("Hopper-v5", SETTINGS["none"], 0)
    results.add([row_of(run, STEPS)])
    if line is None:  # only what has diverged may have no score
        line = json.dumps(row_of(run, STEPS)._replace(seed=1, score=None)._asdict())
    with open(results.path("Hopper-v5"), "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"line 2 of .*Hopper-v5.jsonl is no result"):
        results.missing([run])


def test_two_rows_of_one_run_are_an_error_unless_they_are_equal(tmp_path: Path) -> None:
    results = Results(tmp_path, STEPS)
    run = Run("Hopper-v5", SETTINGS["none"], 0)
    results.add([row_of(run, STEPS)])
    path = results.path("Hopper-v5")
    path.write_text(path.read_text() * 2)  # what merging the files of two machines by hand may give
    assert results.missing([run]) == []
    path.write_text(
        path.read_text().splitlines()[0].replace('"episodes": 120', '"episodes": 121') + "\n" + path.read_text()
    )
    with pytest.raises(ValueError, match="is of none with seed 0 once more"):
        results.missing([run])


def _add_many(folder: Path, name: str) -> None:
    for seed in range(15):
        Results(folder, STEPS).add([row_of(Run("Hopper-v5", SETTINGS[name], seed), STEPS)])


@pytest.mark.slow
def test_several_processes_write_one_file_and_lose_no_row(tmp_path: Path) -> None:
    names = ["none", "clip_0.1", "clip_0.2", "clip_0.3"]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_add_many, args=(tmp_path, name)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    runs = [Run("Hopper-v5", SETTINGS[name], seed) for name in names for seed in range(15)]
    assert Results(tmp_path, STEPS).missing(runs) == []


# ------------------------------------------------------------------ blocks


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    results, selection = Results(tmp_path, STEPS), selection_of()
    run_blocks("test", selection, results, train=pretend)
    assert len(trained(results)) == 8
    assert results.missing(selection.runs()) == []
    run_blocks("test", selection, results, train=pretend)
    assert len(trained(results)) == 8
    assert [path.name for path in results.in_progress.iterdir() if path.is_dir()] == []


def test_removing_a_line_or_a_file_has_only_that_done_again(tmp_path: Path) -> None:
    results, selection = Results(tmp_path, STEPS), selection_of()
    run_blocks("test", selection, results, train=pretend)
    before = results.rows(selection.runs())
    path = results.path("Hopper-v5")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))  # clip_0.2 with seed 0 was the third
    results.path("InvertedPendulum-v5").unlink()
    run_blocks("test", selection, results, train=pretend)
    again = trained(results)[8:]
    assert sorted(again) == sorted(
        [
            "Hopper-v5 clip_0.2 0",
            *(f"InvertedPendulum-v5 {name} {seed}" for name in ("none", "clip_0.2") for seed in (0, 1)),
        ]
    )
    assert results.rows(selection.runs()) == before


def test_a_block_is_of_one_task_and_of_a_size(tmp_path: Path) -> None:
    selection = selection_of(tuple(setting.name for setting in TABLE_1_SETTINGS), (0, 1, 2))
    blocks = blocks_of(Results(tmp_path, STEPS), selection.runs(), size=11)
    assert [(block.task, len(block.runs), {run.seed for run in block.runs}) for block in blocks] == [
        (task, 11, {seed}) for task in ("Hopper-v5", "InvertedPendulum-v5") for seed in (0, 1, 2)
    ]


def test_what_cannot_be_stacked_is_a_block_of_its_own(tmp_path: Path) -> None:
    selection = Selection(("Hopper-v5",), ("a2c", "clip_0.2", "none", "trpo", "vanilla_pg"), (0, 1), STEPS)
    blocks = blocks_of(Results(tmp_path, STEPS), selection.runs())
    assert sorted(sorted({run.setting.name for run in block.runs}) for block in blocks) == [
        ["a2c"], ["a2c"], ["clip_0.2", "none"], ["trpo"], ["trpo"], ["vanilla_pg"]
    ]  # fmt: skip


def _fail(*_: Any) -> list[Any]:
    raise KeyboardInterrupt


def test_an_interrupted_block_is_gone_on_with_in_its_folder(tmp_path: Path) -> None:
    results, selection = Results(tmp_path, STEPS), selection_of()
    with pytest.raises(KeyboardInterrupt):
        run_blocks("test", selection, results, train=_fail)
    (begun,) = (path for path in results.in_progress.iterdir() if path.is_dir())
    (begun / "bundle").touch()
    # More settings are wanted now: those that were begun stay together, and keep their folder.
    run_blocks("test", selection_of(("none", "clip_0.1", "clip_0.2")), results, train=pretend)
    folders = [line.split()[0] for line in (results.in_progress / "trained.txt").read_text().splitlines()]
    assert folders.count(begun.name) == 4
    assert len(trained(results)) == len(set(trained(results))) == 12
    assert not begun.exists()


def test_the_same_command_begun_later_trains_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of four workers would of a machine, and one of four of another that begins when two blocks are begun."""
    name = "sb3_ppo_variants.reproduce.blocks.in_processes"
    monkeypatch.setattr(name, lambda _name, work, arguments, _errors: work(*arguments[0]))
    results, selection = Results(tmp_path, STEPS), selected(TABLE_1_SETTINGS, ["Hopper-v5"], None, range(3), STEPS)
    first_calls, second_calls = iter(range(9)), iter(range(9))

    def train_second(*arguments: Any) -> list[Row]:
        return _fail() if next(second_calls) == 1 else pretend(*arguments)

    def train_first(*arguments: Any) -> list[Row]:
        if next(first_calls) == 1:
            with pytest.raises(KeyboardInterrupt):
                run_blocks("second", selection, results, 4, train_second)
        return pretend(*arguments)

    run_blocks("first", selection, results, 4, train_first)
    assert results.missing(selection.runs()) == []
    assert len(trained(results)) == len(set(trained(results))) == 33
    assert [path.name for path in results.in_progress.iterdir() if path.is_dir()] == []


def test_a_block_is_begun_without_what_is_done_by_then_and_gone_on_with_as_it_was_begun(tmp_path: Path) -> None:
    results, selection = Results(tmp_path, STEPS), selection_of()

    def train(runs: Sequence[Run], timesteps: int, folder: Path, reached: Any) -> list[Row]:
        if runs[0].task == "Hopper-v5":  # which comes first; others do the half of the next block meanwhile
            run_blocks("other", selection_of(("none",), tasks=("InvertedPendulum-v5",)), results, train=pretend)
            return pretend(runs, timesteps, folder, reached)
        assert [run.setting.name for run in runs] == ["clip_0.2", "clip_0.2"]
        return _fail()

    with pytest.raises(KeyboardInterrupt):
        run_blocks("test", selection, results, train=train)
    (begun,) = (path for path in results.in_progress.iterdir() if path.is_dir())
    results.path("InvertedPendulum-v5").unlink()  # what was left out is to be done again, and does not join them
    run_blocks("test", selection, results, train=pretend)
    assert results.missing(selection.runs()) == []
    lines = (results.in_progress / "trained.txt").read_text().splitlines()
    assert [[line.split()[0], line.split(" ", 2)[2]] for line in lines[-4:]] == [
        [begun.name, "clip_0.2 0"], [begun.name, "clip_0.2 1"], [begun.name, "none 0"], [begun.name, "none 1"]
    ]  # fmt: skip
    assert len(lines) == 4 + 2 + 4


def test_a_task_with_a_namespace_is_gone_on_with_and_removed_like_others(tmp_path: Path) -> None:
    results = Results(tmp_path, STEPS)
    with pytest.raises(KeyboardInterrupt):
        run_blocks("test", selection_of(tasks=(NAMESPACED,)), results, train=_fail)
    (begun,) = (path for path in results.in_progress.iterdir() if path.is_dir())
    selection = selection_of(("none", "clip_0.1", "clip_0.2"), tasks=(NAMESPACED,))
    run_blocks("test", selection, results, train=pretend)
    folders = [line.split()[0] for line in (results.in_progress / "trained.txt").read_text().splitlines()]
    assert folders.count(begun.name) == 4
    assert results.missing(selection.runs()) == []
    assert results.path(NAMESPACED) == tmp_path / str(STEPS) / "tests-Echo-v0.jsonl"
    assert [path.name for path in results.in_progress.iterdir() if path.is_dir()] == []


def test_a_block_of_another_selection_is_left_alone(tmp_path: Path) -> None:
    results = Results(tmp_path, STEPS)
    with pytest.raises(KeyboardInterrupt):
        run_blocks("test", selection_of(), results, train=_fail)
    run_blocks("test", selection_of(("none",)), results, train=pretend)
    assert {line.split()[1] for line in trained(results)} == {"none"}
    assert len([path for path in results.in_progress.iterdir() if path.is_dir()]) == 1


def test_a_block_that_another_process_has_is_passed_over(tmp_path: Path) -> None:
    from filelock import FileLock

    results, selection = Results(tmp_path, STEPS), selection_of()
    taken = blocks_of(results, selection.runs())[0]
    folder = results.in_progress / taken.name
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"):
        run_blocks("test", selection, results, train=pretend)
    assert set(results.missing(selection.runs())) == set(taken.runs)
    run_blocks("test", selection, results, train=pretend)
    assert results.missing(selection.runs()) == []


def test_killed_between_the_results_and_the_end_of_the_block(tmp_path: Path) -> None:
    results, selection = Results(tmp_path, STEPS), selection_of()
    with pytest.raises(KeyboardInterrupt):
        run_blocks("test", selection, results, train=_fail)
    for task in TASKS:
        results.add([row_of(run, STEPS) for run in selection.runs() if run.task == task])
    run_blocks("test", selection, results, train=_fail)  # trains nothing
    assert results.missing(selection.runs()) == []
    assert [path.name for path in results.in_progress.iterdir() if path.is_dir()] == []


def _kill(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_killed_while_a_block_is_removed(tmp_path: Path) -> None:
    results, selection = Results(tmp_path, STEPS), selection_of(tasks=("Hopper-v5",))

    def train(runs: Sequence[Run], timesteps: int, folder: Path, reached: Any) -> list[Row]:
        # Of a folder that has lost a monitor's file, but no bundle, the runs could not be scored.
        assert {path.name for path in folder.iterdir()} == {"lock", "block.json"}
        (folder / "bundle").touch()
        return pretend(runs, timesteps, folder, reached)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.rmtree", _kill)
        with pytest.raises(KeyboardInterrupt):
            run_blocks("test", selection, results, train=train)
    assert results.missing(selection.runs()) == []
    results.path("Hopper-v5").unlink()
    run_blocks("test", selection, results, train=train)
    assert len(trained(results)) == 8
    assert [path.name for path in results.in_progress.iterdir() if path.is_dir()] == []


def test_another_process_may_claim_a_block_that_is_being_removed(tmp_path: Path) -> None:
    results, selection = Results(tmp_path, STEPS), selection_of(tasks=("Hopper-v5",))
    rmtree = shutil.rmtree
    claimed: list[Path] = []

    def claim_and_remove(path: Path, **arguments: Any) -> None:
        if not claimed:
            claimed.append(path)
            (path / "lock").unlink()  # as rmtree may begin with it
            (block,) = blocks_of(Results(tmp_path / "other", STEPS), selection.runs())
            with _claimed(results, block) as folder:
                assert folder is not None
                rmtree(path, **arguments)
                assert folder.is_dir()
        else:
            rmtree(path, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.rmtree", claim_and_remove)
        run_blocks("test", selection, results, train=pretend)
    assert claimed
    assert results.missing(selection.runs()) == []


def test_a_block_of_a_task_that_is_not_known_here_is_left_alone(tmp_path: Path) -> None:
    results, selection = Results(tmp_path, STEPS), selection_of()
    for name in ("no_such_module:Task-v0", "NoSuchTask-v0"):
        folder = results.in_progress / f"{name.rpartition(':')[2]}-0"
        folder.mkdir(parents=True)
        (folder / "block.json").write_text(json.dumps({"task": name, "runs": [["trpo", 0, {}]]}))
    run_blocks("test", selection, results, train=pretend)
    assert results.missing(selection.runs()) == []


@pytest.mark.slow
def test_two_workers_one_of_which_is_killed(tmp_path: Path) -> None:
    results, selection = Results(tmp_path, STEPS), selection_of()
    with pytest.raises(WorkerError, match="a worker of test did not end well"):
        run_blocks("test", selection, results, 2, die_once)
    run_blocks("test", selection, results, 2, die_once)
    assert results.missing(selection.runs()) == []
    assert len(trained(results)) == 8


@pytest.mark.parametrize("workers", [0, -1, 1.5, True])
def test_workers_must_be_a_number(tmp_path: Path, workers: Any) -> None:
    with pytest.raises(ValueError, match=r"workers must be an integer >= 1"):
        run_blocks("test", selection_of(), Results(tmp_path, STEPS), workers, pretend)


def test_what_is_missing_is_shared_among_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One task's runs would otherwise be one block, and all workers but one idle."""
    selection = selected(TABLE_1_SETTINGS, ["Hopper-v5"], None, range(3), STEPS)
    given: list[Any] = []
    name = "sb3_ppo_variants.reproduce.blocks.in_processes"
    monkeypatch.setattr(name, lambda _name, _work, arguments, _errors: given.extend(arguments))
    run_blocks("test", selection, Results(tmp_path, STEPS), workers=2, train=pretend)
    assert len(given) == 2
    assert [len(block.runs) for block in given[0][2]] == [17, 16]
