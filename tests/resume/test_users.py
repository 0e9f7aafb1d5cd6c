"""Runs of users: images, dicts, callbacks and variants with a state of their own, loggers, extended runs."""

from __future__ import annotations

import collections
import enum
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_ppo_variants import PPOClipPaper
from sb3_ppo_variants.resume import folder as run_folder
from sb3_ppo_variants.resume.folder import BundleWarning
from tests.resume.runs import ITERATION, Interrupt, make_env, make_model, moments, progress, scramble, weights

EPISODE = 8


class Pictures(gym.Env):
    """Random pictures, alone or in a dict, in episodes of eight steps."""

    action_space = spaces.Discrete(3)

    def __init__(self, as_dict: bool = False):
        picture = spaces.Box(0, 255, (36, 36, 3), np.uint8)
        self.observation_space: Any = spaces.Dict(
            picture=picture, place=spaces.Box(-9, 9, (2,)), kind=spaces.Discrete(3)
        )
        if not as_dict:
            self.observation_space = picture
        self.as_dict = as_dict

    def observe(self) -> Any:
        picture = self.np_random.integers(0, 256, (36, 36, 3), np.uint8)
        place = self.np_random.normal(size=2).astype(np.float32)
        return {"picture": picture, "place": place, "kind": int(self.steps % 3)} if self.as_dict else picture

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observe(), float(action), False, self.steps >= EPISODE, {}


def make_pictures(kind: str) -> Any:
    as_dict = kind == "dict"
    env: Any = DummyVecEnv([lambda: Monitor(Pictures(as_dict))] * 2)
    if kind == "stacked":
        env = VecFrameStack(env, 2)
    if as_dict:
        env = VecNormalize(env, norm_obs_keys=["place"])
    policy = "MultiInputPolicy" if as_dict else "CnnPolicy"
    kwargs = {"optimizer_class": th.optim.SGD} if kind == "stacked" else {}
    return PPOClipPaper(policy, env, n_steps=16, batch_size=16, n_epochs=2, seed=1, policy_kwargs=kwargs)


@pytest.mark.parametrize("kind", ["plain", "stacked", "dict"])
def test_pictures(tmp_path: Path, kind: str) -> None:
    unbroken = make_pictures(kind).learn(96)
    with pytest.raises(KeyboardInterrupt):
        make_pictures(kind).learn(96, StopAt(64), run_folder=tmp_path)
    scramble()
    resumed = make_pictures(kind).learn(96, run_folder=tmp_path, resume=True)
    assert th.equal(weights(unbroken), weights(resumed))
    if kind != "stacked":  # SGD has no moments
        assert th.equal(moments(unbroken), moments(resumed))


class StopAt(BaseCallback):
    """Ctrl-C at the first step after a number of timesteps."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.num_timesteps > self.at:
            raise KeyboardInterrupt
        return True


# ------------------------------------------------------------------ callbacks


class Keeps(BaseCallback):
    """Keeps whatever is put into it."""

    def _on_step(self) -> bool:
        return True


ODD = {
    "text": np.str_("x"),
    "graph": th.ones(2, requires_grad=True) * 2,
    "counts": collections.defaultdict(int, a=3),
    "counter": collections.Counter("ab"),
    "parameter": th.nn.Parameter(th.zeros(2)),
    "date": np.datetime64("2020-01-01"),
    "module": th.nn.Linear(2, 2),
}


def test_callbacks_may_hold_anything(tmp_path: Path) -> None:
    callback = Keeps()
    vars(callback).update(ODD)
    make_model().learn(ITERATION, callback, run_folder=tmp_path)
    other = Keeps()
    vars(other).update(ODD)
    make_model().learn(2 * ITERATION, other, run_folder=tmp_path, resume=True)
    assert type(other.counts) is collections.defaultdict  # type: ignore[attr-defined]


def test_a_large_attribute_is_left_out_with_a_warning(tmp_path: Path) -> None:
    class Large(Keeps):
        def __init__(self) -> None:
            super().__init__()
            self.history = [0.0] * 200_000

    with pytest.warns(BundleWarning, match="the attribute 'history' of Large holds more than 100000 values"):
        make_model().learn(ITERATION, Large(), run_folder=tmp_path)


def test_settings_of_a_callback_are_those_of_the_new_program(tmp_path: Path) -> None:
    class Best(EvalCallback):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)

    class Deadline(BaseCallback):
        def _on_training_start(self) -> None:
            self.began = time.time()

        def _on_step(self) -> bool:
            return True

    def make(name: str, n_episodes: int) -> list[BaseCallback]:
        best = Best(make_env("dummy"), None, None, 1, 4, best_model_save_path=str(tmp_path / name), verbose=0)
        return [best, StopTrainingOnMaxEpisodes(n_episodes), Deadline()]

    old = make("old", 8)
    make_model().learn(9 * ITERATION, old, run_folder=tmp_path / "run")
    new = make("new", 10_000)
    began = time.time()
    model = make_model().learn(4 * ITERATION, new, run_folder=tmp_path / "run", resume=True)
    assert model.num_timesteps == 4 * ITERATION
    assert new[0].best_model_save_path == str(tmp_path / "new")  # type: ignore[attr-defined]
    assert new[0].n_calls == 4 * 16  # of each iteration once, also of those before
    assert new[2].began >= began  # type: ignore[attr-defined]


def test_what_a_callback_tells_takes_the_place_of_its_attributes(tmp_path: Path) -> None:
    class Tells(Keeps):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[int] = []

        def _on_rollout_start(self) -> None:
            self.seen.append(self.num_timesteps)

        def get_resume_state(self) -> list[int]:
            return self.seen

        def set_resume_state(self, state: list[int]) -> None:
            self.seen = [-1, *state]

    make_model().learn(2 * ITERATION, Tells(), run_folder=tmp_path)
    callback = Tells()
    make_model().learn(3 * ITERATION, callback, run_folder=tmp_path, resume=True)
    assert callback.seen == [-1, 0, ITERATION, 2 * ITERATION]


def test_errors_of_the_users_own_stay_what_they_are(tmp_path: Path) -> None:
    class Fails(Keeps):
        def _on_training_start(self) -> None:
            raise ValueError("no key")

    make_model().learn(ITERATION, run_folder=tmp_path)
    with pytest.raises(ValueError, match=r"^no key$"):
        make_model().learn(2 * ITERATION, Fails(), run_folder=tmp_path, resume=True)
    assert len(progress(tmp_path)) == 1


def test_evaluations_that_have_not_begun_keep_their_seeds(tmp_path: Path) -> None:
    results = []
    for name, times in (("unbroken", 0), ("resumed", 1)):
        for attempt in range(times + 1):
            evaluation = EvalCallback(make_env("dummy"), None, None, 2, 40, log_path=str(tmp_path / name), verbose=0)
            evaluation.eval_env.seed(7)
            callbacks = [evaluation, *([Interrupt(1)] if attempt < times else [])]
            try:
                make_model().learn(3 * ITERATION, callbacks, run_folder=tmp_path / name, resume="auto")
            except KeyboardInterrupt:
                assert attempt < times
        results.append(np.load(tmp_path / name / "evaluations.npz")["results"].tolist())
    assert results[0] == results[1]


def test_infos_of_episodes_may_hold_anything(tmp_path: Path) -> None:
    class Why(enum.Enum):
        FELL = 1

    class Explains(gym.Wrapper):
        def step(self, action: Any) -> Any:
            *others, info = self.env.step(action)
            return *others, {**info, "why": Why.FELL}

    def make() -> PPOClipPaper:
        env = DummyVecEnv([lambda: Monitor(Explains(gym.make("CartPole-v1")), info_keywords=("why",))])
        return PPOClipPaper("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=1, seed=1)

    make().learn(128, run_folder=tmp_path)
    assert make().learn(192, run_folder=tmp_path, resume=True).num_timesteps == 192


# ------------------------------------------------------------------ variants and models


class WithModule(PPOClipPaper):
    """A variant with a network beside the policy, as SB3 lets one save it."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self.bonus = th.nn.Linear(3, 1)
        self.updates: list[float] = []

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, tensors = super()._get_torch_save_params()
        return [*names, "bonus"], tensors

    def train(self) -> None:
        super().train()
        with th.no_grad():
            self.bonus.weight += 1.0
        self.updates.append(self.bonus.weight.sum().item())


def test_networks_beside_the_policy_go_on(tmp_path: Path) -> None:
    first = make_model(WithModule).learn(2 * ITERATION, run_folder=tmp_path)
    second = make_model(WithModule, seed=None).learn(2 * ITERATION, run_folder=tmp_path, resume=True)
    assert th.equal(first.bonus.weight, second.bonus.weight)
    assert first.updates == second.updates
    second.learn(ITERATION, reset_num_timesteps=False)
    assert len(second.updates) == 3


def test_a_loaded_model_can_be_resumed(tmp_path: Path) -> None:
    make_model(PPOClipPaper).learn(ITERATION).save(tmp_path / "model")

    def load() -> PPOClipPaper:
        return PPOClipPaper.load(tmp_path / "model", env=make_env("dummy"))

    unbroken = load().learn(2 * ITERATION, run_folder=tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        load().learn(2 * ITERATION, Interrupt(1), run_folder=tmp_path / "b")
    scramble()
    resumed = load().learn(2 * ITERATION, run_folder=tmp_path / "b", resume=True)
    assert th.equal(weights(resumed), weights(unbroken))
    assert th.equal(moments(resumed), moments(unbroken))


def test_further_learning_after_an_extension_has_schedules_again(tmp_path: Path) -> None:
    make_model(PPOClipPaper).learn(ITERATION, run_folder=tmp_path)
    model = make_model(PPOClipPaper).learn(2 * ITERATION, run_folder=tmp_path, resume=True)
    assert model.policy.optimizer.param_groups[0]["lr"] == 0
    model.learn(2 * ITERATION, reset_num_timesteps=False)
    assert model._current_progress_remaining == 0
    assert model.schedule_timesteps is None


def test_an_extension_is_on_disk_before_it_begins(tmp_path: Path) -> None:
    make_model(PPOClipPaper).learn(2 * ITERATION, run_folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        make_model(PPOClipPaper).learn(
            6 * ITERATION, Interrupt(0), run_folder=tmp_path, resume=True, stretch_schedules=True
        )
    state = run_folder.RunFolder(tmp_path).newest()
    assert state is not None
    assert state.state["model"]["attributes"]["_total_timesteps"] == 6 * ITERATION
    assert state.state["model"]["attributes"].get("schedule_timesteps") is None


def test_a_logger_of_the_users_own_gets_what_waited(tmp_path: Path) -> None:
    for total in (2, 3):
        model = make_model(env=make_env("dummy", tmp_path))
        model.set_logger(configure(str(tmp_path / f"log{total}"), ["csv"]))
        model.learn(total * ITERATION, run_folder=tmp_path, resume="auto")
        model.logger.close()
    header, row = (tmp_path / "log3" / "progress.csv").read_text().splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=True))["train/n_updates"] == "20"


def test_lost_rows_of_the_log_are_told(tmp_path: Path) -> None:
    make_model().learn(3 * ITERATION, run_folder=tmp_path)
    lines = (tmp_path / "progress.csv").read_text().splitlines(keepends=True)
    (tmp_path / "progress.csv").write_text("".join(lines[:2]))
    with pytest.warns(BundleWarning, match="has lost 2 of 3 rows"):
        make_model().learn(4 * ITERATION, run_folder=tmp_path, resume=True)
    assert len(progress(tmp_path)) == 2


def test_a_log_that_cannot_be_written_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_ppo_variants.resume import logs

    original, calls = logs.ProgressWriter._write_waiting, []

    def full(self: Any) -> None:
        calls.append(1)
        if 2 <= len(calls) <= 3:
            raise OSError(28, "No space left on device")
        original(self)

    monkeypatch.setattr(logs.ProgressWriter, "_write_waiting", full)
    with pytest.warns(BundleWarning, match=r"progress.csv could not be written: .*No space left"):
        make_model().learn(5 * ITERATION, run_folder=tmp_path)
    assert [int(row["time/iterations"]) for row in progress(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_args: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(run_folder.fcntl, "flock", flock)
    with pytest.warns(BundleWarning, match="cannot be locked .*Operation not supported"):
        make_model().learn(ITERATION, run_folder=tmp_path)
