"""Several processes on one study, one of them killed: nothing is lost, nothing is done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from sb3_ppo_variants.tuning import SharedStudy, run_workers
from sb3_ppo_variants.tuning.study import RETRY_OF, WORKER
from tests.tuning.studies import die_once, job_in, pretend_slowly

STORAGES = ("sqlite", "journal")
PROGRAM = """
import sys
from pathlib import Path
from sb3_ppo_variants.tuning import run_workers
from tests.tuning.studies import job_in, pretend_slowly
if __name__ == "__main__":
    run_workers(job_in(Path(sys.argv[1]), 400), 2, "w", pretend_slowly)
"""


def keys_of(kind: str, folder: Path) -> dict[str, Any]:
    url = f"journal:{folder / 'study.log'}" if kind == "journal" else f"sqlite:///{folder / 'study.db'}"
    return {"storage": url, "heartbeat": {"interval": 1, "grace": 8}}  # on a busy machine a process may stand still


def params_of(trials: list[FrozenTrial]) -> set[str]:
    return {repr(sorted(trial.params.items())) for trial in trials}


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORAGES)
def test_four_processes_run_forty_trials(kind: str, tmp_path: Path) -> None:
    job = job_in(tmp_path, 40, **keys_of(kind, tmp_path))
    assert run_workers(job, 4, "w", pretend_slowly) == 0
    trials = SharedStudy(job).trials()
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    assert len(complete) == 40
    assert all(trial.state in (TrialState.COMPLETE, TrialState.FAIL) for trial in trials)
    assert len(params_of(complete)) == 40
    assert len({trial.user_attrs[WORKER] for trial in complete}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORAGES)
def test_a_killed_worker_costs_no_trial(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = job_in(tmp_path, 40, **keys_of(kind, tmp_path))
    assert run_workers(job, 4, "w", die_once) == -signal.SIGKILL
    assert "was ended by SIGKILL" in capsys.readouterr().err
    trials = SharedStudy(job).trials()
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    assert len(complete) == 40
    (retried,) = (trial for trial in trials if RETRY_OF in trial.user_attrs)
    lost = trials[retried.user_attrs[RETRY_OF]]
    assert (lost.state, retried.state, retried.params) == (TrialState.FAIL, TrialState.COMPLETE, lost.params)
    assert len(params_of(complete)) == 40


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_puts_the_trials_of_all_workers_back(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stderr=subprocess.PIPE)
    job = job_in(tmp_path, 400)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if not (job.folder / "study.log").exists():
            continue
        trials = SharedStudy(job).trials()
        if len({trial.user_attrs.get(WORKER) for trial in trials if trial.state is TrialState.COMPLETE}) == 2:
            break
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0, errors
    counts = SharedStudy(job).counts()
    assert counts.running == 0, errors
    assert 0 < counts.waiting <= 2
    assert counts.finished > 0
