"""``ppo-variants tune``: each of its commands, and what it says of mistakes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sb3_ppo_variants
from sb3_ppo_variants import cli, tuning
from sb3_ppo_variants.safe_yaml import load_yaml
from tests.tuning.studies import pretend

JOB = """
name: tiny
algorithm: ppo_clip_paper
environment: CartPole-v1
budget: {{trials: 3, timesteps: 160_000}}
seeds: 2
objective: {{episodes: 10, chunks: 4}}
folder: {folder}
heartbeat: {{interval: 1, grace: 2}}
pruner: none
rerun: {{best: 2, seeds: 2}}
"""


@pytest.fixture
def job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sb3_ppo_variants.tuning.worker.run_worker.__defaults__", (None, pretend))
    monkeypatch.setattr("sb3_ppo_variants.tuning.worker.run_workers.__defaults__", (1, None, pretend))
    monkeypatch.setattr("sb3_ppo_variants.tuning.results.best.__defaults__", (1, pretend))
    path = tmp_path / "job.yml"
    path.write_text(JOB.format(folder=tmp_path / "study"))
    return path


@pytest.mark.slow
def test_run_status_best_and_export(job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", "status", str(job_file)]) == 2
    assert "there is no study 'tiny'" in capsys.readouterr().err
    assert cli.main(["tune", "run", str(job_file), "--worker-name", "a"]) == 0
    assert "tiny: 3 of 3 trials finished" in capsys.readouterr().out
    assert cli.main(["tune", "status", str(job_file)]) == 0
    assert "best so far: trial " in capsys.readouterr().out
    target = job_file.with_name("tuned.yml")
    assert cli.main(["tune", "best", str(job_file), "--export", str(target)]) == 0
    assert "(95 %, 2 seeds)" in capsys.readouterr().out
    assert list(load_yaml(target)) == ["CartPole-v1"]


@pytest.mark.slow
def test_plot(job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", "run", str(job_file), "--worker-name", "a"]) == 0
    capsys.readouterr()
    assert cli.main(["tune", "plot", str(job_file)]) == 0
    figures = [Path(line.removeprefix("Figure: ")) for line in capsys.readouterr().out.splitlines()]
    assert {"history.png", "study.html"} <= {path.name for path in figures}
    assert all(path.parent == job_file.parent / "study" / "plots" for path in figures)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nothing.yml"], "unknown job 'nothing.yml'"),
        (["run", "ppo_clip_paper_pendulum", "--workers", "0"], "--workers must be an integer >= 1; got 0"),
    ],
)
def test_mistakes_are_named(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sb3_ppo_variants.tuning.command.MODULES", ("no_such_module",))
    assert cli.main(["tune", "status", "ppo_clip_paper_pendulum"]) == 2
    assert 'pip install "sb3-ppo-variants[tune]"' in capsys.readouterr().err


def test_the_help_names_the_jobs_that_ship(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["tune", "-h"])
    assert "ppo_clip_paper_humanoid" in capsys.readouterr().out


def test_jobs_and_spaces_need_no_optuna() -> None:
    code = (
        "import sys; from sb3_ppo_variants import tuning, cli; tuning.load_job('ppo_clip_paper_humanoid'); "
        "sys.exit('optuna' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_all_public_names_are_there() -> None:
    for name in tuning.__all__:
        assert getattr(tuning, name) is not None
    with pytest.raises(AttributeError, match="it offers"):
        tuning.nothing  # noqa: B018


def test_only_tuning_and_the_zoo_know_optuna() -> None:
    package = Path(sb3_ppo_variants.__file__).parent

    def imports(path: Path) -> set[str]:
        nodes: list[Any] = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}

    knowing = {
        path.relative_to(package).parts[0]
        for path in package.rglob("*.py")
        if any(name.partition(".")[0] == "optuna" for name in imports(path))
    }
    assert knowing == {"tuning", "zoo.py"}
