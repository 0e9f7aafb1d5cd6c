"""SB3's callbacks, loggers, policies, buffers and seeds, for each algorithm of ours."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import set_random_seed
from torch import nn

import sb3_ppo_variants
from sb3_ppo_variants import PPOClipPaper, VanillaPGPaper

ALGORITHMS = [getattr(sb3_ppo_variants, name) for name in sb3_ppo_variants.ALGORITHMS.values()]
SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}

every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


# ------------------------------------------------------------------ callbacks


class Recorder(BaseCallback):
    """Keeps the order of the calls, and the names and values that ``locals`` held in each."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.names: dict[str, set[str]] = {}
        self.last: dict[str, Any] = {}

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.names[call] = set(self.locals)

    def _on_training_start(self) -> None:
        self._note("training_start")

    def _on_rollout_start(self) -> None:
        self._note("rollout_start")

    def _on_step(self) -> bool:
        self._note("step")
        self.last = dict(self.locals)
        assert self.num_timesteps == self.model.num_timesteps
        return True

    def _on_rollout_end(self) -> None:
        self._note("rollout_end")

    def _on_training_end(self) -> None:
        self._note("training_end")


def recorded(algorithm: Any, **kwargs: Any) -> Recorder:
    recorder = Recorder()
    model = algorithm("MlpPolicy", make_vec_env("Pendulum-v1", 2), **{**SMALL, **kwargs})
    model.learn(128, callback=recorder)
    return recorder


@every_algorithm
def test_callbacks_are_called_as_sb3_calls_them_and_find_the_same_names(algorithm: Any) -> None:
    theirs, ours = recorded(PPO), recorded(algorithm)
    assert ours.calls == theirs.calls
    rollout = ["rollout_start", *["step"] * 32, "rollout_end"]
    assert ours.calls == ["training_start", *rollout, *rollout, "training_end"]
    leftovers = {"idx", "done"}  # of a loop over the environments, which ours leaves out
    for call, names in theirs.names.items():
        assert names - leftovers <= ours.names[call], call


@every_algorithm
def test_what_the_names_hold(algorithm: Any) -> None:
    theirs, ours = recorded(PPO).last, recorded(algorithm).last
    # The step's own numbers: the same types and shapes, for 2 environments of 3 observations and 1 action.
    for name in ("obs_tensor", "actions", "clipped_actions", "values", "log_probs", "new_obs", "rewards", "dones"):
        assert type(ours[name]) is type(theirs[name]), name
        assert ours[name].shape == theirs[name].shape, name
        assert ours[name].dtype == theirs[name].dtype, name
    assert ours["n_steps"] == theirs["n_steps"] == 31
    assert type(ours["rollout_buffer"]) is RolloutBuffer
    assert len(ours["infos"]) == 2
    assert np.array_equal(ours["clipped_actions"], np.clip(ours["actions"], -2, 2))


@every_algorithm
def test_a_callback_ends_the_training(algorithm: Any) -> None:
    model = algorithm("MlpPolicy", "CartPole-v1", **SMALL)
    model.learn(320, callback=lambda local_names, _: local_names["self"].num_timesteps < 40)
    assert model.num_timesteps == 40
    assert model.n_iterations == 1  # the second rollout was not complete


@every_algorithm
def test_evaluation_and_checkpoints(algorithm: Any, tmp_path: Path) -> None:
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", 1),
        eval_freq=32,
        n_eval_episodes=1,
        best_model_save_path=str(tmp_path / "best"),
        log_path=str(tmp_path / "log"),
        verbose=0,
    )
    checkpoints = CheckpointCallback(save_freq=32, save_path=str(tmp_path / "checkpoints"), name_prefix="model")
    model = algorithm("MlpPolicy", make_vec_env("CartPole-v1", 1), **SMALL)
    model.learn(96, callback=CallbackList([evaluation, checkpoints]))
    assert np.load(tmp_path / "log" / "evaluations.npz")["timesteps"].tolist() == [32, 64, 96]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        f"model_{timesteps}_steps.zip" for timesteps in (32, 64, 96)
    }
    best = algorithm.load(tmp_path / "best" / "best_model", device="cpu")
    assert best.num_timesteps in (32, 64, 96)
    assert best.predict(np.zeros(4))[0] in (0, 1)


@every_algorithm
def test_a_reward_threshold_stops_the_training(algorithm: Any) -> None:
    # CartPole gives 1 a step: any evaluation earns more than 0.
    stop = StopTrainingOnRewardThreshold(reward_threshold=0, verbose=0)
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", 1), callback_on_new_best=stop, eval_freq=32, n_eval_episodes=1, verbose=0
    )
    model = algorithm("MlpPolicy", make_vec_env("CartPole-v1", 1), **SMALL).learn(96, callback=evaluation)
    assert model.num_timesteps == 32


@every_algorithm
def test_a_number_of_episodes_stops_the_training(algorithm: Any) -> None:
    # Pendulum's episodes take 200 steps.
    model = algorithm("MlpPolicy", "Pendulum-v1", **SMALL)
    model.learn(1000, callback=StopTrainingOnMaxEpisodes(max_episodes=1))
    assert model.num_timesteps == 200


@pytest.mark.filterwarnings("ignore:rich is experimental/alpha")  # what tqdm says of the bar that SB3 chose
@every_algorithm
def test_the_progress_bar(algorithm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = algorithm("MlpPolicy", "CartPole-v1", **SMALL).learn(64, progress_bar=True)
    assert model.num_timesteps == 64
    captured = capsys.readouterr()
    assert "64/64" in captured.out + captured.err


# ------------------------------------------------------------------ logs

SB3S_NAMES = {
    "train/entropy_loss",
    "train/policy_gradient_loss",
    "train/value_loss",
    "train/approx_kl",
    "train/loss",
    "train/explained_variance",
    "train/std",
    "train/n_updates",
    "train/learning_rate",
}


@every_algorithm
def test_the_logged_names_are_sb3s_and_a_few_more(algorithm: Any) -> None:
    names = []
    for each in (PPO, algorithm):
        model = each("MlpPolicy", "Pendulum-v1", **SMALL).learn(32)
        names.append({name for name in model.logger.name_to_value if name.startswith("train/")})
    theirs, ours = names
    assert theirs == SB3S_NAMES | {"train/clip_range", "train/clip_fraction"}
    assert ours >= SB3S_NAMES | {"train/kl"}
    clips = issubclass(algorithm, PPOClipPaper)
    assert ({"train/clip_range", "train/clip_fraction"} <= ours) == clips


@every_algorithm
def test_tensorboard_gets_events_under_the_algorithms_name(algorithm: Any, tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model = algorithm("MlpPolicy", "CartPole-v1", tensorboard_log=str(tmp_path), **SMALL).learn(96)
    assert [path.name for path in tmp_path.iterdir()] == [f"{algorithm.__name__}_1"]
    events = accumulators.EventAccumulator(str(tmp_path / f"{algorithm.__name__}_1"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/kl", "rollout/ep_rew_mean", "time/fps"} <= tags
    # Each dump comes before its update: the first two updates are in the dumps of the second and the third rollout.
    assert [event.step for event in events.Scalars("train/loss")] == [64, 96]
    model.learn(32, tb_log_name="mine", reset_num_timesteps=False)
    assert (tmp_path / "mine_0").exists() or (tmp_path / "mine_1").exists()


@every_algorithm
def test_verbose_prints_a_table_and_0_nothing(algorithm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    algorithm("MlpPolicy", "CartPole-v1", verbose=0, **SMALL).learn(64)
    assert capsys.readouterr().out == ""
    algorithm("MlpPolicy", "CartPole-v1", verbose=1, **SMALL).learn(64)
    printed = capsys.readouterr().out
    assert "Using cpu device" in printed
    for name in ("ep_rew_mean", "total_timesteps", "learning_rate", "loss", "kl"):
        assert f" {name} " in printed


def learn_into_csv(model: Any, folder: Path, timesteps: int, **kwargs: Any) -> list[dict[str, str]]:
    """Train with a logger of one's own, and return the rows that it dumped."""
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(timesteps, **kwargs)
    model.logger.close()
    with open(folder / "progress.csv", newline="") as file:
        return list(csv.DictReader(file))


@every_algorithm
def test_a_logger_of_ones_own(algorithm: Any, tmp_path: Path) -> None:
    rows = learn_into_csv(algorithm("MlpPolicy", "CartPole-v1", **SMALL), tmp_path, 64)
    assert {"train/loss", "train/kl", "rollout/ep_rew_mean"} <= set(rows[0])
    assert [row["time/total_timesteps"] for row in rows] == ["32", "64"]


@every_algorithm
def test_the_log_interval(algorithm: Any, tmp_path: Path) -> None:
    rows = learn_into_csv(algorithm("MlpPolicy", "CartPole-v1", **SMALL), tmp_path, 4 * 32, log_interval=2)
    assert [row["time/total_timesteps"] for row in rows] == ["64", "128"]


@every_algorithm
def test_the_window_of_the_logged_returns(algorithm: Any) -> None:
    # Many more than 3 episodes of CartPole end in 320 steps of a first policy.
    model = algorithm("MlpPolicy", "CartPole-v1", stats_window_size=3, **SMALL).learn(320)
    assert model.ep_info_buffer is not None
    assert model.ep_info_buffer.maxlen == len(model.ep_info_buffer) == 3


# ------------------------------------------------------------------ seeds and devices


def weights(model: Any) -> dict[str, th.Tensor]:
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@every_algorithm
def test_a_seed_reproduces_a_training_exactly(algorithm: Any, env_id: str) -> None:
    trained = []
    for seed in (5, 5, 6):
        model = algorithm("MlpPolicy", make_vec_env(env_id, 2), **{**SMALL, "seed": seed}).learn(128)
        trained.append((weights(model), model.rollout_buffer.rewards.tolist()))
        random.random()  # a state that the next training must not depend on
        np.random.rand()
        th.rand(1)
    (first, rewards), (again, rewards_again), (other, _) = trained
    assert all(th.equal(first[name], again[name]) for name in first)
    assert rewards == rewards_again
    assert not all(th.equal(first[name], other[name]) for name in first)


@every_algorithm
def test_set_random_seed_restarts_the_draws(algorithm: Any) -> None:
    model = algorithm("MlpPolicy", "Pendulum-v1", **SMALL)
    observation = np.array([1.0, 0.0, 0.5])
    draws = []
    for _ in range(2):
        model.set_random_seed(7)
        draws.append([model.predict(observation)[0].item() for _ in range(3)])
    set_random_seed(7)
    draws.append([model.predict(observation)[0].item() for _ in range(3)])
    assert draws[0] == draws[1] == draws[2]
    assert len(set(draws[0])) == 3


@every_algorithm
def test_the_device_is_the_one_asked_for(algorithm: Any) -> None:
    model = algorithm("MlpPolicy", "CartPole-v1", **{**SMALL, "device": "cpu"})
    assert model.device == th.device("cpu")
    assert {parameter.device.type for parameter in model.policy.parameters()} == {"cpu"}


# ------------------------------------------------------------------ policies and buffers


class Doubling(BaseFeaturesExtractor):
    """A user's extractor: learned, and twice as wide as the observation."""

    calls = 0

    def __init__(self, observation_space: spaces.Box, factor: int = 2):
        n_inputs = observation_space.shape[0]
        super().__init__(observation_space, factor * n_inputs)
        self.linear = nn.Linear(n_inputs, factor * n_inputs)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        type(self).calls += 1
        return th.relu(self.linear(observations))


@pytest.mark.parametrize("shared", [True, False])
@every_algorithm
def test_a_features_extractor_of_ones_own_is_called_and_learns(algorithm: Any, shared: bool) -> None:
    Doubling.calls = 0
    model = algorithm(
        "MlpPolicy",
        "Pendulum-v1",
        policy_kwargs={
            "features_extractor_class": Doubling,
            "features_extractor_kwargs": {"factor": 3},
            "share_features_extractor": shared,
        },
        **SMALL,
    )
    before = weights(model)
    model.learn(64)
    assert Doubling.calls > 64  # every step of the rollouts, and the updates
    assert model.policy.mlp_extractor.policy_net[0].in_features == 3 * 3
    after = weights(model)
    extractors = [name for name in before if "extractor.linear" in name]
    assert len(extractors) >= (2 if shared else 4)
    assert all(not th.equal(after[name], before[name]) for name in extractors)


@every_algorithm
def test_the_architecture_and_the_activation(algorithm: Any) -> None:
    model = algorithm(
        "MlpPolicy",
        "CartPole-v1",
        policy_kwargs={"net_arch": {"pi": [8], "vf": [16, 4]}, "activation_fn": nn.ReLU},
        **SMALL,
    ).learn(64)
    extractor = model.policy.mlp_extractor
    assert [type(module) for module in extractor.policy_net] == [nn.Linear, nn.ReLU]
    widths = [module.out_features for module in extractor.value_net if isinstance(module, nn.Linear)]
    assert widths == [16, 4]


@every_algorithm
def test_an_optimizer_of_ones_own(algorithm: Any) -> None:
    kwargs = {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}}
    model = algorithm("MlpPolicy", "CartPole-v1", learning_rate=1e-3, policy_kwargs=kwargs, **SMALL)
    before = weights(model)
    model.learn(64)
    assert type(model.policy.optimizer) is th.optim.SGD
    assert any(not th.equal(tensor, before[name]) for name, tensor in weights(model).items())


class Halved(ActorCriticPolicy):
    """A user's policy: V(s) is half of what the network gives."""

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        return 0.5 * values, log_prob, entropy

    def predict_values(self, obs: Any) -> th.Tensor:
        return 0.5 * super().predict_values(obs)

    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, 0.5 * values, log_prob


@every_algorithm
def test_a_policy_of_ones_own_is_the_one_that_learns(algorithm: Any) -> None:
    results = []
    for policy in ("MlpPolicy", Halved):
        model = algorithm(policy, "CartPole-v1", **SMALL)
        model.learn(32)
        results.append((model.rollout_buffer.values, model.logger.name_to_value["train/value_loss"]))
    (plain, plain_loss), (halved, halved_loss) = results
    # The same draws before the first update: half the values.
    assert halved == pytest.approx(plain / 2, rel=1e-5, abs=1e-6)
    assert halved_loss != plain_loss


class Scaled(RolloutBuffer):
    """A user's buffer: with an argument, and rewards in units of it."""

    def __init__(self, *args: Any, unit: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.unit = unit

    def add(self, obs: Any, action: Any, reward: np.ndarray, *rest: Any) -> None:
        super().add(obs, action, reward / self.unit, *rest)


@every_algorithm
def test_a_rollout_buffer_of_ones_own_with_its_arguments(algorithm: Any) -> None:
    model = algorithm(
        "MlpPolicy", "CartPole-v1", rollout_buffer_class=Scaled, rollout_buffer_kwargs={"unit": 4.0}, **SMALL
    ).learn(64)
    assert isinstance(model.rollout_buffer, Scaled)
    assert set(model.rollout_buffer.rewards.flatten()) == {0.25}  # CartPole gives 1 a step


class OwnEnv(gym.Env):
    """Counts its steps in ``info``; succeeds in every second episode, of 4 steps each."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: int) -> Any:
        self.steps += 1
        done = self.steps % 4 == 0
        return np.zeros(1, dtype=np.float32), 1.0, done, False, {"is_success": done and self.steps % 8 == 0}


@every_algorithm
def test_the_success_rate_is_logged(algorithm: Any, tmp_path: Path) -> None:
    (row,) = learn_into_csv(algorithm("MlpPolicy", OwnEnv(), **SMALL), tmp_path, 32)
    # 8 episodes of return 4, of which 4 succeed.
    assert float(row["rollout/success_rate"]) == 0.5
    assert float(row["rollout/ep_rew_mean"]) == 4


@every_algorithm
def test_prediction_takes_one_observation_or_many(algorithm: Any) -> None:
    model = algorithm("MlpPolicy", "Pendulum-v1", **SMALL)
    single, state = model.predict(np.zeros(3), deterministic=True)
    many, _ = model.predict(np.zeros((5, 3)), deterministic=True)
    assert (single.shape, many.shape, state) == ((1,), (5, 1), None)
    assert many == pytest.approx(np.repeat(single[None], 5, axis=0), abs=1e-6)
    mean_return, _ = evaluate_policy(model, make_vec_env("Pendulum-v1", 1), n_eval_episodes=1)
    assert -2000 < mean_return < 0  # type: ignore[operator]


def test_each_algorithm_has_its_own_policy_step_count() -> None:
    # SB3's n_updates counts epochs: K per rollout, those of the value function's fit where the policy takes one step.
    for algorithm in ALGORITHMS:
        model = algorithm("MlpPolicy", "CartPole-v1", **SMALL).learn(64)
        assert model._n_updates == 2 * 2
        steps = {int(entry["step"]) for entry in model.policy.optimizer.state.values()}
        # Two rollouts of 2 epochs of 2 minibatches: 8 steps of everything, or 2 of the policy and 8 of the values.
        assert steps == ({2, 8} if algorithm is VanillaPGPaper else {8})
