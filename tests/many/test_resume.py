"""Many trainings that are interrupted go on as if nothing had happened; each can also go on alone."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import VecEnv

from sb3_ppo_variants import BundleError, PPOAdaptiveKLPaper, PPOClipPaper, VanillaPGPaper, train_many
from sb3_ppo_variants.resume.names import bundle_paths
from tests.many.cases import assert_same, distance
from tests.resume.runs import RandomWalk, moments, progress, scramble

# An iteration is two episodes, so that none is under way where one ends.
SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 8, "n_epochs": 2, "stepsize_kl_target": 0.01}
SPECS: Any = [(PPOAdaptiveKLPaper, {}, 0), (PPOClipPaper, {"learning_rate": lambda left: 1e-3 * left}, 1)]
VANILLA_SPECS: Any = [(VanillaPGPaper, {}, 0), (VanillaPGPaper, {"learning_rate": lambda left: 1e-3 * left}, 1)]
TOTAL = 5 * 16


class Walk(RandomWalk):
    """Can end the program in the middle of an iteration."""

    counter = itertools.count()
    how: ClassVar[Any] = None

    def step(self, action: Any) -> Any:
        if self.how is not None and next(self.counter) == 2 * (2 * 16 + 5):
            if self.how is not signal.SIGTERM:
                raise self.how
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(action)


OPENED: list[VecEnv] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def train(folder: Path, total: int = TOTAL, specs: Any = SPECS, **arguments: Any) -> list[Any]:
    """Models whose environments are closed after the test."""
    models = train_many(specs, Walk, total, folder=folder, **SMALL, **arguments)
    OPENED.extend(model.env for model in models)
    return models


def interrupted(folder: Path, how: Any = KeyboardInterrupt, **arguments: Any) -> None:
    """A training that ends in its third iteration."""
    Walk.counter, Walk.how = itertools.count(), how
    try:
        with pytest.raises(SystemExit if how is signal.SIGTERM else how):
            train(folder, **arguments)
    finally:
        Walk.how = None
    scramble()


@pytest.mark.parametrize(
    ("how", "specs"),
    [(KeyboardInterrupt, SPECS), (OSError, SPECS), (signal.SIGTERM, SPECS), (KeyboardInterrupt, VANILLA_SPECS)],
)
def test_an_interrupted_training_goes_on(tmp_path: Path, how: Any, specs: Any) -> None:
    expected = train(tmp_path / "whole", specs=specs)
    interrupted(tmp_path / "cut", how, specs=specs)
    models = train(tmp_path / "cut", specs=specs, resume=True)
    for index, (model, other) in enumerate(zip(models, expected, strict=True)):
        assert_same(model, other)
        assert len(moments(model)) == len(moments(other))
        folders = [tmp_path / kind / f"agent_{index:03}" for kind in ("whole", "cut")]
        rows, others = (progress(folder) for folder in folders)
        assert [row["time/total_timesteps"] for row in rows] == [row["time/total_timesteps"] for row in others]
        assert len(rows) == 5
        returns, other_returns = (load_results(str(folder))["r"].tolist() for folder in folders)
        assert returns == pytest.approx(other_returns, rel=1e-4)
        assert len(returns) == 10


def test_a_finished_training_has_nothing_left_to_do(tmp_path: Path) -> None:
    models = train(tmp_path)
    again = train(tmp_path, resume="auto")
    for model, other in zip(again, models, strict=True):
        assert distance(model, other) == 0.0


def test_other_seeds_are_other_runs(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(BundleError, match="it is of another run: its seed is 0, here it is 5"):
        train(tmp_path, specs=[(*spec[:2], seed) for spec, seed in zip(SPECS, (5, 6), strict=True)], resume="auto")


def test_agents_whose_bundles_are_of_different_iterations(tmp_path: Path) -> None:
    expected = train(tmp_path / "whole")
    interrupted(tmp_path / "cut", bundle_interval=0)
    newest, older = bundle_paths(tmp_path / "cut" / "agent_001")
    assert older.name < newest.name
    newest.unlink()
    models = train(tmp_path / "cut", resume=True)
    for model, other in zip(models, expected, strict=True):
        assert_same(model, other)


@pytest.mark.parametrize("specs", [SPECS, VANILLA_SPECS])
def test_one_agent_goes_on_alone(tmp_path: Path, specs: Any) -> None:
    expected = train(tmp_path / "whole", specs=specs)
    interrupted(tmp_path / "cut", specs=specs)
    folder = tmp_path / "cut" / "agent_001"
    algorithm, own, seed = specs[1]
    env = make_vec_env(Walk, monitor_dir=str(folder), monitor_kwargs={"override_existing": False})
    OPENED.append(env)
    model = algorithm("MlpPolicy", env, seed=seed, device="cpu", **SMALL, **own)
    model.learn(TOTAL, run_folder=folder, resume=True)
    assert distance(model, expected[1]) < 1e-5


def test_folders_are_not_mixed_up(tmp_path: Path) -> None:
    train(tmp_path, 16)
    with pytest.raises(BundleError, match="resume='auto' goes on with it"):
        train(tmp_path, 16)
    with pytest.raises(BundleError, match="its algorithm is PPOAdaptiveKLPaper"):
        train(tmp_path, 16, SPECS[::-1], resume=True)
    with pytest.raises(BundleError, match="there is no resume bundle"):
        train(tmp_path / "other", 16, resume=True)
