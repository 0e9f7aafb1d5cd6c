"""Trials whose seeds are one stack: they are worth what they are worth by turns, and are interrupted as those."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from optuna.trial import FrozenTrial, TrialState

from sb3_ppo_variants import PaperOnPolicyAlgorithm, PPOClipPaper, VanillaPGPaper
from sb3_ppo_variants.resume.names import bundle_name, bundle_paths
from sb3_ppo_variants.tuning import Job, SharedStudy, run_worker
from sb3_ppo_variants.tuning.objective import make_training, make_trainings
from sb3_ppo_variants.tuning.spaces import paper_params
from sb3_ppo_variants.tuning.stacked import StackedTrainings
from sb3_ppo_variants.tuning.training import IDENTITY, SCORES, Score, Trainings, Turns
from tests.many.cases import distance
from tests.tuning.killing import kill_once, start_worker
from tests.tuning.studies import job_in

# Episodes, of 200 steps, end with the rollouts: a training that goes on is the one that was never interrupted.
SMALL: dict[str, Any] = {
    "environment": "Pendulum-v1",
    "budget": {"trials": 1, "timesteps": 600},
    "objective": {"episodes": 3, "chunks": 3},
    "base": {"policy": "MlpPolicy", "n_envs": 1, "n_steps": 200, "batch_size": 100, "n_epochs": 2},
    "space": {"learning_rate": {}, "clip_range": {}},
    "whole_space": False,
}
WRAPPED: dict[str, Any] = {**SMALL, "fixed": {"env_wrapper": "tests.tuning.test_stacked.Unreliable"}}
NORMALIZED: dict[str, Any] = {**SMALL, "fixed": {"normalize": True}}


class Unreliable(gym.Wrapper):
    """What seed 1000 begins with does something else at one step of its second rollout."""

    what: ClassVar[Any] = None

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self._is_the_one, self._steps = False, 0

    def reset(self, **arguments: Any) -> Any:
        self._is_the_one |= arguments.get("seed") == 1000
        return self.env.reset(**arguments)

    def step(self, action: Any) -> Any:
        self._steps += 1
        observation, *rest = self.env.step(action)
        if self._is_the_one and self._steps == 250 and self.what is not None:
            what, Unreliable.what = self.what, None
            if isinstance(what, signal.Signals):
                signal.raise_signal(what)
            elif isinstance(what, Exception):
                raise what
            else:
                observation = np.full_like(observation, what)
        return observation, *rest


@pytest.fixture(autouse=True)
def _reliable_again() -> Any:
    yield
    Unreliable.what = None


def paper(job: Job, folder: Path) -> StackedTrainings:
    """The trainings of the paper's values."""
    settings = job.settings(paper_params(job.algorithm, job.environment, job.space))
    trainings = make_trainings(job, settings, folder)
    assert isinstance(trainings, StackedTrainings)
    return trainings


def scores_of(trainings: Trainings, job: Job) -> list[list[Score]]:
    return [trainings.advance(timesteps) for timesteps in job.boundaries]


def assert_alike(scores: list[list[Score]], expected: list[list[Score]]) -> None:
    """The same up to rounding."""
    assert len(scores) == len(expected)
    for row, others in zip(scores, expected, strict=True):
        assert [score[1:] for score in row] == [score[1:] for score in others]
        assert [score.mean for score in row] == pytest.approx([score.mean for score in others], rel=1e-3)


def policies_in(folder: Path, algorithm: type[PaperOnPolicyAlgorithm] = PPOClipPaper) -> list[Any]:
    return [algorithm.load(folder / f"seed_{seed}" / "model.zip", device="cpu") for seed in (0, 1000)]


def by_turns(job: Job, folder: Path) -> Turns:
    trainings = make_trainings(
        job, job.settings(paper_params(job.algorithm, job.environment, job.space)), folder, make_training
    )
    assert isinstance(trainings, Turns)
    return trainings


def trials_of(job: Job, make: Any = None) -> list[FrozenTrial]:
    run_worker(job, "a", make)
    return SharedStudy(job).trials()


@pytest.mark.parametrize(("name", "algorithm"), [("ppo_clip", PPOClipPaper), ("vanilla_pg", VanillaPGPaper)])
def test_a_stack_learns_what_the_seeds_learn_by_turns(name: str, algorithm: Any, tmp_path: Path) -> None:
    job = job_in(tmp_path, **{**NORMALIZED, "algorithm": f"{name}_paper", "space": {"learning_rate": {}}})
    th.manual_seed(5)
    np.random.seed(5)
    expected = th.rand(1), np.random.rand()
    th.manual_seed(5)
    np.random.seed(5)
    stacked = scores_of(paper(job, tmp_path / "stacked"), job)
    assert (th.rand(1), np.random.rand()) == expected  # the caller's own generators are left alone
    turned = scores_of(by_turns(job, tmp_path / "turns"), job)
    assert_alike(stacked, turned)
    assert [score.timesteps for score in stacked[1]] == [400, 400]
    policies = (policies_in(tmp_path / kind, algorithm) for kind in ("stacked", "turns"))
    for policy, other in zip(*policies, strict=True):
        assert 0.0 < distance(policy, other) < 1e-4  # as much as rounding makes, or the stack was none
    kept = [sorted(path.name for path in (tmp_path / kind / "seed_1000").iterdir()) for kind in ("stacked", "turns")]
    assert kept[0] == kept[1]
    assert {"vecnormalize.pkl", "progress.csv", SCORES, IDENTITY} <= set(kept[0])


@pytest.mark.slow
def test_a_study_decides_the_same(tmp_path: Path) -> None:
    keys = {**SMALL, "pruner": {"name": "percentile", "percentile": 10.0, "n_startup_trials": 1}}
    keys["budget"] = {"trials": 4, "timesteps": 600}
    # What the first rollout already shows.
    keys["space"] = {"learning_rate": {}, "anneal_log_std": {}, "log_std_start": {}, "log_std_end": {}}
    stacked, turned = (
        trials_of(job_in(tmp_path / name, **keys), make) for name, make in (("stacked", None), ("turns", make_training))
    )
    states = [trial.state for trial in stacked]
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    assert states == [trial.state for trial in turned]
    for trial, other in zip(stacked, turned, strict=True):
        assert trial.params == other.params
        assert trial.intermediate_values == pytest.approx(other.intermediate_values, rel=1e-3)
        assert trial.value == pytest.approx(other.value, rel=1e-3)


@pytest.mark.parametrize("first", ["stacked", "turns"])
def test_what_was_stopped_goes_on_either_way(first: str, tmp_path: Path) -> None:
    """A study that was begun when seeds took turns goes on as a stack, and nothing is trained twice."""
    job = job_in(tmp_path, **NORMALIZED)
    expected = scores_of(by_turns(job, tmp_path / "whole"), job)
    ways: list[Callable[[Job, Path], Trainings]] = [paper, by_turns] if first == "stacked" else [by_turns, paper]
    trainings = ways[0](job, tmp_path / "cut")
    reached = trainings.advance(job.boundaries[0])
    trainings.stop()
    trainings.stop()  # does no harm
    trainings = ways[1](job, tmp_path / "cut")
    assert trainings.advance(job.boundaries[0]) == reached
    assert_alike(scores_of(trainings, job), expected)
    for policy, other in zip(policies_in(tmp_path / "cut"), policies_in(tmp_path / "whole"), strict=True):
        assert distance(policy, other) < 1e-4


def test_a_killed_stack_goes_on_from_bundles_of_different_iterations(tmp_path: Path) -> None:
    """Killed while it wrote the bundles of an iteration: the one of seed 1000 is missing."""
    job = job_in(tmp_path, **{**SMALL, "bundle_interval": 0})
    expected = scores_of(paper(job, tmp_path / "whole"), job)
    trainings = paper(job, tmp_path / "cut")
    trainings.advance(job.boundaries[1])
    shutil.copytree(tmp_path / "cut", tmp_path / "killed")
    trainings.stop()
    folders = [tmp_path / "killed" / f"seed_{seed}" for seed in (0, 1000)]
    bundle_paths(folders[1])[0].unlink()
    (folders[1] / SCORES).unlink()
    assert bundle_paths(folders[0])[0].name > bundle_paths(folders[1])[0].name
    goes_on = paper(job, tmp_path / "killed")
    # The first score of seed 1000 is lost, and it is beyond that; what comes is what would have come.
    assert_alike([goes_on.advance(timesteps) for timesteps in job.boundaries[1:]], expected[1:])


def test_a_finished_stack_makes_no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_in(tmp_path, **SMALL)
    scores = scores_of(paper(job, tmp_path), job)
    again = paper(job, tmp_path)
    monkeypatch.delattr(again, "_running")
    assert scores_of(again, job) == scores
    (tmp_path / "seed_0" / SCORES).unlink()  # killed before it could tell: the bundle of the end knows
    policy = tmp_path / "seed_0" / "model.zip"
    policy.unlink()
    assert paper(job, tmp_path).advance(600) == scores[-1]
    assert policy.is_file()


def test_a_seed_that_diverges_prunes_the_trial_at_once(tmp_path: Path) -> None:
    told = []
    for name, make in (("stacked", None), ("turns", make_training)):
        Unreliable.what = np.nan
        (trial,) = trials_of(job_in(tmp_path / name, **WRAPPED), make)
        assert trial.state is TrialState.PRUNED
        assert list(trial.intermediate_values) == [200]
        told.append(trial.user_attrs["diverged"])
    assert told[0] == told[1]
    assert told[0].startswith("seed 1000 diverged on the way to 400 timesteps: environment 0 gave an observation")
    assert not list((tmp_path / "stacked").rglob("bundles"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_puts_the_trial_back_and_it_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    (expected,) = trials_of(job_in(tmp_path / "whole", **WRAPPED))
    job = job_in(tmp_path / "cut", **WRAPPED)
    Unreliable.what = number
    with pytest.raises(KeyboardInterrupt if number is signal.SIGINT else SystemExit):
        run_worker(job, "a")
    (trial,) = SharedStudy(job).trials()
    assert trial.state is TrialState.WAITING
    assert list(trial.intermediate_values) == [200]
    folder = SharedStudy(job).folder_of(trial)
    assert [bundle_paths(folder / f"seed_{seed}")[0].name for seed in (0, 1000)] == [bundle_name(200)] * 2
    (trial,) = trials_of(job)
    assert trial.state is TrialState.COMPLETE
    assert trial.intermediate_values == pytest.approx(expected.intermediate_values, rel=1e-3)


def test_an_environments_error_fails_the_trial(tmp_path: Path) -> None:
    Unreliable.what = OSError("the simulator is gone")
    job = job_in(tmp_path, **WRAPPED)
    with pytest.raises(OSError, match="simulator"):
        run_worker(job, "a")
    (trial,) = SharedStudy(job).trials()
    assert trial.state is TrialState.FAIL
    assert trial.user_attrs["error"].startswith("OSError: the simulator is gone")


@pytest.mark.parametrize(
    "keys",
    [
        {
            "algorithm": "vanilla_pg_paper",
            "space": {"learning_rate": {}},
            "fixed": {"advantage_estimator": "baseline"},
        },
        {"fixed": {"use_sde": True}},
        {"fixed": {"policy_kwargs": {"optimizer_kwargs": {"weight_decay": 0.01}}}},
        {"seeds": 1},  # which is the training of ppo-variants train, bit for bit
    ],
)
def test_what_cannot_be_stacked_takes_turns(
    keys: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = job_in(tmp_path, **{**SMALL, **keys, "budget": {"trials": 1, "timesteps": 600}})
    settings = job.settings(paper_params(job.algorithm, job.environment, job.space))
    folder = tmp_path / "asked"
    th.manual_seed(5)
    expected = th.rand(1)
    th.manual_seed(5)
    assert isinstance(make_trainings(job, settings, folder), Turns)
    assert th.rand(1) == expected
    assert not [path for path in folder.rglob("*") if path.is_file() and path.name != IDENTITY]
    (trial,) = trials_of(job)
    assert trial.state is TrialState.COMPLETE
    output = capfd.readouterr()
    assert "stack" not in output.out + output.err


def test_a_stacked_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    job = job_in(tmp_path, **SMALL)
    make_trainings(job, job.settings({"clip_range": 0.1}), tmp_path)
    with pytest.raises(ValueError, match="seed_0 holds another training"):
        make_trainings(job, job.settings({"clip_range": 0.2}), tmp_path)


@pytest.mark.slow
def test_a_stacked_trial_whose_worker_is_killed_ends_as_if_it_was_not(tmp_path: Path) -> None:
    keys: dict[str, Any] = {**SMALL, "budget": {"trials": 1, "timesteps": 20_000}, "bundle_interval": 0}
    keys["objective"] = {"episodes": 10, "chunks": 10}
    undisturbed, killed = job_in(tmp_path / "undisturbed", **keys), job_in(tmp_path / "killed", **keys)
    first = start_worker(killed, "a", None)
    run = killed.folder / "trial_00000" / "seed_1000"
    kill_once(first, (run / SCORES).exists)
    reached = json.loads((run / SCORES).read_text())
    for job, name in ((killed, "b"), (undisturbed, "a")):
        other = start_worker(job, name, None)
        other.join()
        assert other.exitcode == 0
    lost, retried = SharedStudy(killed).trials()
    assert (lost.state, retried.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert reached.items() <= json.loads((run / SCORES).read_text()).items()  # what was reached is not done again
    (expected,) = SharedStudy(undisturbed).trials()
    early = [int(step) for step in reached]
    assert [retried.intermediate_values[step] for step in early] == pytest.approx(
        [expected.intermediate_values[step] for step in early], rel=1e-3
    )
    assert retried.user_attrs["scores"]["timesteps"] == expected.user_attrs["scores"]["timesteps"]
