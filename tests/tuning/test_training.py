"""Real trainings that take turns: each is, bit for bit, the training that was never interrupted."""

from __future__ import annotations

import json
import signal
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ppo_variants.tuning import SharedStudy, best, export, load_job, run_worker
from sb3_ppo_variants.tuning.job import jobs_that_ship
from sb3_ppo_variants.tuning.objective import make_training
from sb3_ppo_variants.tuning.spaces import paper_params
from sb3_ppo_variants.tuning.training import SCORES, SeedTraining, save_policy
from sb3_ppo_variants.zoo import make_model
from tests.tuning.studies import job_in

SETTINGS: dict[str, Any] = {
    "policy": "MlpPolicy",
    "n_timesteps": 600,
    "n_envs": 2,
    "n_steps": 32,
    "batch_size": 32,
    "n_epochs": 2,
    "learning_rate": {"schedule": "linear", "start": 1e-3, "end": 0.0},
    "normalize": {"norm_obs": True, "norm_reward": True},
    "gamma": 0.97,
}


def seed_training(folder: Path, seed: int, models: list[Any], total: int = 600) -> SeedTraining:
    def make() -> Any:
        models.append(make_model("ppo_clip_paper", "CartPole-v1", SETTINGS, folder, seed, "cpu"))
        return models[-1]

    return SeedTraining(make, folder, total, 60.0)


def test_taking_turns_changes_nothing(tmp_path: Path) -> None:
    models: list[Any] = []
    trainings = [seed_training(tmp_path / f"turns_{seed}", seed, models) for seed in (0, 1)]
    th.manual_seed(5)
    np.random.seed(5)
    expected = th.rand(1), np.random.rand()
    th.manual_seed(5)
    np.random.seed(5)
    for timesteps in (150, 300, 600):
        scores = [training.advance(timesteps) for training in trainings]
        assert [score.timesteps for score in scores] == [-(-timesteps // 64) * 64] * 2
    assert (th.rand(1), np.random.rand()) == expected  # the caller's own generators are left alone

    for seed in (0, 1):
        alone = make_model("ppo_clip_paper", "CartPole-v1", SETTINGS, tmp_path / f"alone_{seed}", seed, "cpu")
        alone.learn(600)
        alone.env.close()
        turned = next(model for model in models if model.seed == seed)
        assert turned.num_timesteps == alone.num_timesteps
        for name, value in alone.policy.state_dict().items():
            assert th.equal(value, turned.policy.state_dict()[name]), name
        returns = [episode["r"] for episode in alone.ep_info_buffer]
        assert scores[seed].mean == np.mean(returns)
        assert scores[seed].episodes == len(returns)


def test_gamma_goes_to_the_agent_and_to_vec_normalize(tmp_path: Path) -> None:
    model = make_model("ppo_clip_paper", "CartPole-v1", SETTINGS, tmp_path, 0, "cpu")
    assert model.gamma == 0.97
    assert model.get_vec_normalize_env().gamma == 0.97
    save_policy(model, tmp_path)
    assert VecNormalize.load(str(tmp_path / "vecnormalize.pkl"), model.env.venv).gamma == 0.97
    model.env.close()


def test_a_stopped_training_goes_on_from_its_bundle(tmp_path: Path) -> None:
    models: list[Any] = []
    first = seed_training(tmp_path, 0, models)
    reached = first.advance(300)
    first.stop()
    first.stop()  # does no harm
    assert json.loads((tmp_path / SCORES).read_text())["300"]["timesteps"] == reached.timesteps
    second = seed_training(tmp_path, 0, models)
    assert second.advance(300) == reached
    assert len(models) == 1  # nothing had to be made for that
    assert second.advance(600).timesteps == 640
    assert len(models) == 2
    third = seed_training(tmp_path, 0, models)
    assert third.advance(600).timesteps == 640
    third.stop()
    assert len(models) == 2
    (tmp_path / SCORES).unlink()  # killed before it could tell: the bundle of the end knows
    assert seed_training(tmp_path, 0, models).advance(600).timesteps == 640


def test_ctrl_c_reaches_the_training(tmp_path: Path) -> None:
    models: list[Any] = []
    training = seed_training(tmp_path, 0, models, total=10_000_000)

    def interrupt() -> None:
        while not (models and models[0].num_timesteps > 0):
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        training.advance(10_000_000)
    training.stop()
    assert list((tmp_path / "bundles").glob("bundle_*"))
    assert models[0].num_timesteps > 0


def test_a_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    settings = job.settings({"clip_range": 0.1})
    make_training(job, settings, 0, tmp_path / "seed_0")
    make_training(job, settings, 0, tmp_path / "seed_0")  # goes on with it
    for other, seed in ((job.settings({"clip_range": 0.2}), 0), (settings, 1)):
        with pytest.raises(ValueError, match="seed_0 holds another training, of an earlier study or another job"):
            make_training(job, other, seed, tmp_path / "seed_0")


def test_models_of_ended_trials_are_freed(tmp_path: Path) -> None:
    made: list[weakref.ref[Any]] = []

    def make(job: Any, settings: Any, seed: int, folder: Path) -> Any:
        def remembered() -> Any:
            model = make_model(job.algorithm, job.environment, SETTINGS, folder, seed, "cpu")
            made.append(weakref.ref(model))
            return model

        return SeedTraining(remembered, folder, 64, 60.0)

    job = job_in(tmp_path, 2)
    run_worker(job, "a", make)
    assert [reference() for reference in made] == [None] * 4


def test_what_a_training_raises_is_raised(tmp_path: Path) -> None:
    def fails() -> Any:
        raise RuntimeError("no environment")

    training = SeedTraining(fails, tmp_path, 100, 60.0)
    with pytest.raises(RuntimeError, match="no environment"):
        training.advance(50)
    training.stop()


@pytest.mark.slow
def test_a_real_study_and_its_export_trains_as_it_is(tmp_path: Path) -> None:
    job = job_in(
        tmp_path,
        2,
        budget={"trials": 2, "timesteps": 512},
        objective={"episodes": 7, "chunks": 2},
        space={
            "n_steps": {"choices": [32, 64]},
            "n_envs": {"choices": [1, 2]},
            "n_epochs": {"high": 2},
            "network": {"choices": ["8x8"]},
        },
        rerun={"best": 1, "seeds": 2},
    )
    assert run_worker(job, "a") == 2
    trials = SharedStudy(job).trials()
    for trial in trials:
        assert trial.user_attrs["scores"]["timesteps"] == [512, 512]
        assert max(trial.user_attrs["scores"]["episodes"]) <= 7
        assert (job.folder / f"trial_{trial.number:05d}" / "seed_1000" / "progress.csv").is_file()
    rated = best(job)[0]
    path = export(job, rated, tmp_path / "tuned.yml")

    from sb3_ppo_variants.cli import main

    arguments = ["--algo", job.algorithm, "--env", job.environment, "--conf-file", str(path), "--seed", "1000000"]
    assert main(["train", *arguments, "--no-progress", "--eval-freq", "-1", "-f", str(tmp_path / "logs")]) == 0
    from sb3_ppo_variants import PPOClipPaper

    trained = PPOClipPaper.load(tmp_path / "logs" / job.algorithm / "CartPole-v1_1" / "CartPole-v1.zip", device="cpu")
    assert trained.num_timesteps == 512
    # The same settings and the same seed are the same training: that of the re-run, whose policies are kept.
    folder = job.folder / "rerun" / f"trial_{rated.trial.number:05d}" / "seed_1000000"
    kept = PPOClipPaper.load(folder / "model.zip", device="cpu")
    assert not (folder / "bundles").exists()
    for name, value in trained.policy.state_dict().items():
        assert th.equal(value, kept.policy.state_dict()[name]), name


@pytest.mark.parametrize("name", jobs_that_ship())
def test_the_first_trial_of_each_job_that_ships_makes_a_model(name: str, tmp_path: Path) -> None:
    job = load_job(name)
    settings = job.settings(paper_params(job.algorithm, job.environment, job.space))
    model = make_model(job.algorithm, job.environment, settings, tmp_path, 0, "cpu")
    assert (model.n_envs, model.batch_size) == (settings["n_envs"], settings["batch_size"])
    model.env.close()
