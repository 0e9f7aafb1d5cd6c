"""``ppo-variants reproduce``: what it takes, and what it says of mistakes."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sb3_ppo_variants import cli, presets
from sb3_ppo_variants.reproduce import command, figure3, table1
from sb3_ppo_variants.reproduce.places import Places, shipped_results
from sb3_ppo_variants.reproduce.settings import (
    FIGURE_3_SETTINGS,
    SETTINGS,
    TABLE_1_SETTINGS,
    TASKS,
    Run,
    selected,
)


def test_figure1_needs_only_what_drawing_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("mujoco", "rliable", "scipy", "sb3_contrib"):
        monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["reproduce", "table1", "-o", str(tmp_path)]) == 2
    assert "there is no mujoco" in capsys.readouterr().err
    assert cli.main(["reproduce", "figure1", "-o", str(tmp_path / "out")]) == 0
    assert f"File: {tmp_path / 'out' / 'figure1.svg'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table1", "--tasks", "Hoper-v5"], "unknown task 'Hoper-v5', did you mean 'Hopper-v5'?"),
        (["table1", "--tasks", "CartPole-v1"], "tasks must have a Box of one axis as their action space"),
        (["table1", "--tasks", "Hopper-v5", "Hopper-v5"], "tasks must be one or more, each named once"),
        (["table1", "--settings", "clip_0.4"], "unknown setting 'clip_0.4', did you mean 'clip_0."),
        (["table1", "--settings", "a2c"], "unknown setting 'a2c'"),
        (["figure3", "--settings", "none"], "unknown setting 'none'"),
        (["table1", "--seeds", "-1"], "seeds must be integers in [0, 2**32); got -1"),
        (["table1", "--seeds", "1", "1"], "seeds must be one or more, each named once; got [1, 1]"),
        (["table1", "--timesteps", "0"], "timesteps must be an integer >= 1; got 0"),
        (["table1", "--workers", "0", "--tasks", "Hopper-v5"], "workers must be an integer >= 1; got 0"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["reproduce", *arguments, "-o", str(tmp_path), "--results", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_a_string_is_no_list_of_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tasks must be a list of names; got the string 'Hopper-v5'"):
        table1.table1(tasks="Hopper-v5", output=tmp_path)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "MODULES", ("no_such_module",))
    assert cli.main(["reproduce", "table1"]) == 2
    assert 'pip install "sb3-ppo-variants[reproduce]"' in capsys.readouterr().err


@pytest.mark.parametrize(("name", "module"), [("table1", table1), ("figure3", figure3)])
def test_quick_can_be_changed_by_flags(name: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    class _Seen(Exception):  # noqa: N818
        pass

    def see(**arguments: Any) -> None:
        seen.append(arguments)
        raise _Seen

    monkeypatch.setattr(module, name, see)
    for flags in (["--quick"], ["--quick", "--seeds", "7", "--workers", "1"], []):
        with pytest.raises(_Seen):
            cli.main(["reproduce", name, *flags])
    output = {"output": Path("reproduction")}
    assert seen[0] == {**module.QUICK, "workers": 2, **output}
    assert seen[1] == {**module.QUICK, "workers": 1, "seeds": [7], **output}
    assert seen[2] == output


def test_the_settings_are_table_1s() -> None:
    assert list(table1.PAPER) == [setting.name for setting in TABLE_1_SETTINGS]
    for setting in TABLE_1_SETTINGS:
        arguments = setting.arguments("Hopper-v5")
        assert {name: arguments[name] for name in presets.TABLE_1} == dict(presets.TABLE_1)
        assert arguments["clip_actions"] is False
        (number,) = (float(value) for _, value in setting.own) if setting.own else (None,)
        assert number is None or setting.name.endswith(f"{number:g}")
    assert len(TASKS) == 7


def test_the_settings_are_figure_3s() -> None:
    assert len(FIGURE_3_SETTINGS) == 6
    assert SETTINGS["clip_0.2"] in FIGURE_3_SETTINGS
    trpo = SETTINGS["trpo"].arguments("Hopper-v5")
    assert trpo["target_kl"] == pytest.approx(0.01 / 3)  # of three dimensions of the action
    assert SETTINGS["a2c_trust_region"].arguments("Hopper-v5") == SETTINGS["a2c"].arguments("Hopper-v5")
    assert SETTINGS["a2c"].n_envs("Hopper-v5") == 16
    clips = [setting.name for setting in FIGURE_3_SETTINGS if setting.described("Hopper-v5").get("clip_actions", True)]
    assert clips == ["cem"]


def test_what_is_told_of_a_setting_has_the_defaults_of_our_algorithms() -> None:
    clip = SETTINGS["clip_0.2"]
    told = clip.described("Hopper-v5")
    ours = {"vf_coef": 1.0, "max_grad_norm": None, "normalize_advantage": "batch", "bootstrap_on_timeout": True}
    assert {name: told[name] for name in ours} == ours
    assert "seed" not in told
    assert dataclasses.replace(clip, own=(*clip.own, ("vf_coef", 1.0))).described("Hopper-v5") == told
    assert SETTINGS["a2c_trust_region"].described("Hopper-v5")["delta"] == 1.0
    assert SETTINGS["adaptive_kl_0.01"].described("Hopper-v5")["beta_init"] == 1.0
    assert SETTINGS["adaptive_kl_0.01"].described("Hopper-v5")["clip_range"] is None


def test_runs_can_be_sent_to_a_process() -> None:
    for setting in SETTINGS.values():
        run = Run("Hopper-v5", setting, 0)
        assert pickle.loads(pickle.dumps(run)) == run


def test_long_tasks_come_first_and_tables_keep_the_papers_order() -> None:
    selection = selected(TABLE_1_SETTINGS, ["Reacher-v5", "Walker2d-v5", "Hopper-v5"], ["clip_0.2", "none"], [1, 0], 10)
    assert selection.tasks == ("Hopper-v5", "Reacher-v5", "Walker2d-v5")
    assert selection.settings == ("none", "clip_0.2")
    assert list(dict.fromkeys(run.task for run in selection.runs())) == ["Walker2d-v5", "Hopper-v5", "Reacher-v5"]


def test_places(tmp_path: Path) -> None:
    assert Places.of(None) == (Path("reproduction/results"), shipped_results())
    assert Places.of(tmp_path) == (tmp_path, None)
    assert (shipped_results() / "README.md").is_file()


def test_the_command_line_takes_its_folder_of_output_from_the_places_and_reads_no_results_for_that() -> None:
    code = (
        "import sys; from sb3_ppo_variants.reproduce import places; places.OUTPUT = 'elsewhere';"
        "from sb3_ppo_variants.reproduce import command; assert command.OUTPUT == 'elsewhere';"
        "assert not {'torch', 'filelock', 'sb3_ppo_variants.reproduce.results'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
