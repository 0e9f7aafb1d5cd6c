"""``ppo-variants tune dashboard``: what it answers over HTTP, and that looking changes nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sb3_ppo_variants import cli
from sb3_ppo_variants.tuning import Job, SharedStudy, plot, run_worker, serve_dashboard
from sb3_ppo_variants.tuning.dashboard import DashboardServer, make_dashboard_server
from tests.tuning.studies import job_in, pretend

STORAGES = ("sqlite", "journal")
PROGRAM = """
import sys
from sb3_ppo_variants.tuning import serve_dashboard
from tests.tuning.studies import job_in
from pathlib import Path
storage = sys.argv[2] if len(sys.argv) > 2 else None
serve_dashboard(job_in(Path(sys.argv[1]), storage=storage), port=0)
"""
# A proxy of the machine's has nothing to do with its own addresses.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def job_of(kind: str, folder: Path, **keys: Any) -> Job:
    return job_in(folder, storage=f"journal:{folder / 'study.log'}" if kind == "journal" else None, **keys)


@contextmanager
def served(job: Job) -> Iterator[DashboardServer]:
    with make_dashboard_server(job, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def get(address: str, path: str = "") -> bytes:
    with DIRECT.open(f"{address}{path}", timeout=60) as answer:
        content: bytes = answer.read()
    return content


def require_whole_study(address: str) -> None:
    """The page, and over the API of it the three trials with their values and the importances of their parameters."""
    base, _, number = address.partition("/dashboard/studies/")
    assert b"/static/bundle.js" in get(address)
    study = json.loads(get(base, f"/api/studies/{number}"))
    assert (study["name"], study["directions"]) == ("tiny", ["maximize"])
    assert [trial["state"] for trial in study["trials"]] == ["Complete"] * 3
    assert all(len(trial["intermediate_values"]) == 4 for trial in study["trials"])
    (importances,) = json.loads(get(base, f"/api/studies/{number}/param_importances"))["param_importances"]
    assert {"learning_rate", "clip_range"} <= {each["name"] for each in importances}
    assert sum(each["importance"] for each in importances) == pytest.approx(1)


@pytest.mark.filterwarnings("ignore:Some regimes")  # optuna, of parameters that exist in few trials
@pytest.mark.parametrize("kind", STORAGES)
def test_trials_and_importances_are_served(kind: str, tmp_path: Path) -> None:
    job = job_of(kind, tmp_path, trials=3)
    run_worker(job, "a", pretend)
    with served(job) as server:
        require_whole_study(server.address)


def test_a_study_is_followed_and_cannot_be_changed(tmp_path: Path) -> None:
    job = job_of("sqlite", tmp_path, trials=2)
    run_worker(job, "a", pretend)
    with served(job) as server:
        base = server.address.partition("/dashboard")[0]
        for method, path in {"DELETE": "/api/studies/1", "POST": "/api/trials/1/tell"}.items():
            request = urllib.request.Request(f"{base}{path}", data=b"{}", method=method)
            with pytest.raises(urllib.error.HTTPError, match="405"):
                DIRECT.open(request, timeout=60)
        run_worker(job_of("sqlite", tmp_path, trials=3), "b", pretend)
        assert len(json.loads(get(base, "/api/studies/1"))["trials"]) == 3
    assert SharedStudy(job, create=False).counts().complete == 3


@pytest.mark.parametrize("kind", STORAGES)
def test_looking_for_a_study_makes_nothing(kind: str, tmp_path: Path) -> None:
    job = job_of(kind, tmp_path)
    with pytest.raises(ValueError, match=r"there is no study 'tiny' in (sqlite|journal):.*; tune run begins one"):
        serve_dashboard(job)
    with pytest.raises(ValueError, match="there is no study 'tiny'"):
        plot(job, tmp_path / "plots")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database_stays_empty(tmp_path: Path) -> None:
    job = job_of("sqlite", tmp_path)
    job.folder.mkdir()
    (job.folder / "study.db").touch()
    with pytest.raises(ValueError, match="there is no study 'tiny'"):
        serve_dashboard(job)
    assert (job.folder / "study.db").stat().st_size == 0


def test_another_study_of_the_storage_is_not_this_one(tmp_path: Path) -> None:
    run_worker(job_of("sqlite", tmp_path, trials=1), "a", pretend)
    with pytest.raises(ValueError, match="there is no study 'other'"):
        serve_dashboard(job_of("sqlite", tmp_path, name="other"))


def test_mistakes_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.yml"
    path.write_text(
        "{name: tiny, algorithm: ppo_clip_paper, environment: CartPole-v1, budget: {trials: 1, timesteps: 160000}, "
        f"folder: {tmp_path / 'study'}}}"
    )

    def say(*arguments: str) -> str:
        assert cli.main(["tune", "dashboard", str(path), *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "there is no study 'tiny'" in say()
    SharedStudy(job_of("sqlite", tmp_path, trials=1, objective={}, seeds=3))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen at host '127.0.0.1', port {port} (Address already in use)" in say("--port", str(port))
    assert "cannot listen at host '192.0.2.1'" in say("--host", "192.0.2.1")  # nobody's: RFC 5737
    assert "port must be an integer from 0 to 65535; got 65536" in say("--port", "65536")
    monkeypatch.setattr("sb3_ppo_variants.tuning.dashboard.MODULE", "no_such_module")
    assert 'pip install "sb3-ppo-variants[tune]"' in say()


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORAGES)
def test_a_process_of_its_own_until_ctrl_c(kind: str, tmp_path: Path) -> None:
    job = job_of(kind, tmp_path, trials=3)
    run_worker(job, "a", pretend)
    arguments = [str(tmp_path), *([job.storage] if job.storage else [])]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Dashboard: http://127.0.0.1:"), line
        require_whole_study(line.split()[1])
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
