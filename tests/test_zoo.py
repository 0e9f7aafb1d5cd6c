"""Running the algorithms through rl_zoo3: configs, their forms and checks, the search, and what rl_zoo3 lacks."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from gymnasium.wrappers import RecordEpisodeStatistics
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize
from torch import nn

import sb3_ppo_variants
from sb3_ppo_variants import ALGORITHMS, PPOAdaptiveKLPaper, PPOClipPaper, zoo
from sb3_ppo_variants.envs import TASKS
from sb3_ppo_variants.tuning.spaces import OF_VARIANT
from sb3_ppo_variants.vec_env import SharedMemoryVecEnv, WorkerLostWarning

Factory = Callable[..., Any]
OTHERS = {"Pendulum-v1", "CartPole-v1", "HalfCheetah-v5"}
"""Other people's tasks that every config has settings for; the rest of Table 1's is in `test_presets.py`."""
NEEDED: dict[str, Any] = {"policy": "MlpPolicy", "n_timesteps": 100}


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    zoo.register()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log where it runs


@pytest.fixture
def make_manager(tmp_path: Path) -> Iterator[Factory]:
    """rl_zoo3's ExperimentManager as its training script makes it, quiet and without evaluation."""
    from rl_zoo3.train import ExperimentManager

    opened: list[VecEnv] = []

    class ClosingManager(ExperimentManager):
        def create_envs(self, *args: Any, **kwargs: Any) -> VecEnv:
            opened.append(super().create_envs(*args, **kwargs))
            return opened[-1]

    def make(algo: str = "ppo_clip_paper", env_id: str = "CartPole-v1", **kwargs: Any) -> Any:
        args = argparse.Namespace(algo=algo, env=env_id, env_kwargs=None)
        quiet: dict[str, Any] = {"eval_freq": -1, "verbose": 0, "device": "cpu", "n_evaluations": 1}
        return ClosingManager(args, algo, env_id, str(tmp_path / "logs"), **{**quiet, **kwargs})

    yield make
    for env in opened:
        env.close()


@pytest.fixture
def build(make_manager: Factory) -> Factory:
    """The model that a manager sets up."""
    return lambda *args, **kwargs: make_manager(*args, **kwargs).setup_experiment()[0]


def write_config(folder: Path, **settings: Any) -> str:
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump({"CartPole-v1": {**NEEDED, **settings}}))
    return str(path)


def shipped(algo: str) -> dict[str, dict[str, Any]]:
    return yaml.safe_load(zoo.config_path(algo).read_text())


# ------------------------------------------------------------------ the configs we ship


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_has_settings_for_every_task(algo: str) -> None:
    assert set(shipped(algo)) - {"default"} >= {*TASKS, *OTHERS}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_flag_tasks_differ_in_noise_rollouts_networks_and_training_wrappers_and_versions_in_nothing(algo: str) -> None:
    settings = shipped(algo)
    for name in ("RoboschoolHumanoid", "RoboschoolHumanoidFlagrun", "RoboschoolHumanoidFlagrunHarder"):
        assert settings[f"{name}-v0"] == settings[f"{name}-v1"]
    noise = {"schedule": "linear", "start": -1.3, "end": -1.6}
    flagrun = {**settings["RoboschoolHumanoid-v1"], "n_steps": 512, "batch_size": 1024, "log_std_schedule": noise}
    larger = {
        "policy_kwargs": {"net_arch": [256, 256]},
        "log_std_schedule": {"schedule": "linear", "start": -1.75, "end": -1.75},
        "stepsize_kl_target": 0.015,
    }
    package = "sb3_ppo_variants.envs.wrappers"
    wrappers: dict[str, list[Any]] = {
        "": [f"{package}.StrideReward"],
        "Flagrun": [f"{package}.FlagCurriculum", {f"{package}.HardStarts": {"within": 80}}],
        "FlagrunHarder": [f"{package}.EpisodePerFlag"],
    }
    for task, expected in wrappers.items():
        found = settings[f"RoboschoolHumanoid{task}-v1"]
        if algo == "ppo_clip_paper":
            assert found["env_wrapper"] == expected
        else:
            assert "env_wrapper" not in found
        if task:
            own = larger if (algo, task) == ("ppo_clip_paper", "FlagrunHarder") else {}
            assert {**found, "env_wrapper": None} == {**flagrun, **own, "env_wrapper": None}


@pytest.mark.filterwarnings("ignore:.*The environment RoboschoolHumanoid.*-v0 is out of date:DeprecationWarning")
@pytest.mark.parametrize("env_id", sorted({*TASKS, *OTHERS}))
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_config_builds_the_model_it_describes(build: Factory, algo: str, env_id: str) -> None:
    settings = shipped(algo)[env_id]
    # 16 humanoids take seconds to load and show no more than four of them, a minibatch of which still fits; and
    # worker processes take as long to start as everything else here, so one case has them.
    n_envs = min(settings.get("n_envs", 1), 4)
    fewer: dict[str, Any] = {"n_envs": n_envs}
    if (algo, env_id) != ("ppo_clip_paper", "RoboschoolHumanoid-v1"):
        fewer["vec_env"] = "dummy"
    model = build(algo, env_id, hyperparams=fewer)
    assert type(model) is getattr(sb3_ppo_variants, ALGORITHMS[algo])
    assert model.n_envs == n_envs
    for name in ("n_steps", "batch_size", "gamma", "clip_actions"):
        if name in settings:
            assert getattr(model, name) == settings[name]
    assert isinstance(model.get_env(), VecNormalize) == bool(settings.get("normalize"))


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_half_cheetah_is_table_3_as_written(make_manager: Factory, algo: str) -> None:
    manager = make_manager(algo, "HalfCheetah-v5")
    model, _ = manager.setup_experiment()
    table_3 = {"n_steps": 2048, "batch_size": 64, "n_epochs": 10, "learning_rate": 3e-4, "gamma": 0.99}
    assert {name: getattr(model, name) for name in table_3} == table_3
    assert model.gae_lambda == 0.95
    assert model.n_envs == 1
    assert not model.clip_actions
    assert manager.n_timesteps == 1_000_000


def test_a_task_without_an_entry_gets_the_default_one(build: Factory) -> None:
    model = build(env_id="Acrobot-v1")
    assert isinstance(model, PPOClipPaper)
    assert model.n_steps == 2048


def test_the_algorithms_of_rl_zoo3_keep_its_configs(make_manager: Factory) -> None:
    manager = make_manager("ppo", "CartPole-v1")
    assert Path(manager.config).parts[-3:] == ("rl_zoo3", "hyperparams", "ppo.yml")
    model, _ = manager.setup_experiment()
    assert model.lr_schedule(0.5) == pytest.approx(0.5 * 0.001)  # its entry says lin_0.001


def test_data_lies_inside_an_installed_package_or_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "__file__", str(tmp_path / "package" / "zoo.py"))
    assert zoo.data_folder("zoo_configs") == tmp_path / "zoo_configs"
    (tmp_path / "package" / "zoo_configs").mkdir(parents=True)
    assert zoo.data_folder("zoo_configs") == tmp_path / "package" / "zoo_configs"


# ------------------------------------------------------------------ the forms of a config


@pytest.mark.parametrize(
    ("written", "start", "halfway", "end"),
    [
        # 3e-4 → 1e-5: halfway (3e-4 + 1e-5) / 2 = 1.55e-4
        ({"schedule": "linear", "start": 3.0e-4, "end": 1.0e-5}, 3.0e-4, 1.55e-4, 1.0e-5),
        # LinearAnneal(−0.7, −1.6) of Table 4: halfway −(0.7 + 1.6) / 2 = −1.15
        ({"schedule": "linear", "start": -0.7, "end": -1.6}, -0.7, -1.15, -1.6),
        # done after a quarter of the training: from there on it stays at its end
        ({"schedule": "linear", "start": 1, "end": 0.5, "end_fraction": 0.25}, 1.0, 0.5, 0.5),
        # YAML 1.1 reads 3e-4 as a string
        ({"schedule": "linear", "start": "3e-4", "end": "1e-4"}, 3.0e-4, 2.0e-4, 1.0e-4),
        ("lin_0.2", 0.2, 0.1, 0.0),
    ],
)
def test_schedules(written: Any, start: float, halfway: float, end: float) -> None:
    schedule = zoo.read_schedule("learning_rate", written)
    assert [schedule(1.0), schedule(0.5), schedule(0.0)] == pytest.approx([start, halfway, end])


@pytest.mark.parametrize("written", [0.2, None, 3])
def test_plain_values_stay_as_they_are(written: Any) -> None:
    assert zoo.read_schedule("clip_range", written) is written


@pytest.mark.parametrize(
    "written",
    [
        "fast",
        "lin_fast",
        {"schedule": "cosine", "start": 1, "end": 0},
        {"schedule": "linear", "start": 1},
        {"schedule": "linear", "start": 1, "end": None},
        {"schedule": "linear", "start": 1, "end": 0, "stop": 0},
        {"schedule": "linear", "start": 1, "end": 0, "end_fraction": 0},
        {"schedule": "linear", "start": 1, "end": 0, "end_fraction": float("nan")},
        {"start": 1, "end": 0},
    ],
)
def test_what_is_no_schedule_is_refused_in_one_sentence(written: Any) -> None:
    with pytest.raises(ValueError, match=r"learning_rate must be a number, lin_<start> .* got") as caught:
        zoo.read_schedule("learning_rate", written)
    assert "\n" not in str(caught.value)


def test_forms_reach_the_constructor(build: Factory, tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        learning_rate={"schedule": "linear", "start": 1e-3, "end": 1e-4},
        clip_range="lin_0.2",
        clip_range_vf=None,
        gamma="9e-1",
        policy_kwargs={"activation_fn": "relu", "net_arch": [8]},
        normalize={"norm_obs": True, "norm_reward": False, "clip_obs": 5.0},
    )
    model = build(config=config)
    assert model.lr_schedule(0.0) == pytest.approx(1e-4)
    assert model.clip_range(0.5) == pytest.approx(0.1)
    assert model.clip_range_vf is None
    assert model.gamma == 0.9
    assert model.policy.activation_fn is nn.ReLU
    normalizer = model.get_vec_normalize_env()
    assert normalizer is not None
    assert (normalizer.norm_reward, normalizer.clip_obs, normalizer.gamma) == (False, 5.0, 0.9)


def test_the_network_of_old_configs(build: Factory, tmp_path: Path) -> None:
    network = {"pi": [8], "vf": [4]}
    model = build(config=write_config(tmp_path, policy_kwargs={"net_arch": [network]}))  # without SB3's warning
    assert model.policy.net_arch == network


def test_a_schedule_in_a_zip_needs_no_rl_zoo3(build: Factory, tmp_path: Path) -> None:
    model = build(config=write_config(tmp_path, learning_rate="lin_0.1"))
    assert type(model.learning_rate) is LinearSchedule


def test_clip_range_null_turns_clipping_off_where_the_algorithm_allows_it(build: Factory, tmp_path: Path) -> None:
    config = write_config(tmp_path, clip_range=None)
    assert build("ppo_adaptive_kl_paper", config=config).clip_range is None
    with pytest.raises(ValueError, match="clip_range"):
        build(config=config)


def test_numbers_out_of_range_reach_the_constructors_own_check(build: Factory) -> None:
    with pytest.raises(ValueError, match=r"clip_range must be .* got -0\.1"):
        build(hyperparams={"clip_range": -0.1})


def test_the_config_that_is_saved_is_the_one_that_was_written(make_manager: Factory, tmp_path: Path) -> None:
    written = {"schedule": "linear", "start": 1e-3, "end": 1e-4}
    config = write_config(tmp_path, learning_rate=written, normalize={"norm_obs": True}, gamma=0.9)
    manager = make_manager(config=config)
    _, saved = manager.setup_experiment()
    assert saved["learning_rate"] == written
    assert saved["normalize"] == {"norm_obs": True}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_an_unknown_key_names_itself_the_nearest_and_the_allowed(algo: str) -> None:
    algorithm = getattr(sb3_ppo_variants, ALGORITHMS[algo])
    with pytest.raises(
        ValueError, match=r"'n_step', did you mean 'n_steps'\? \(allowed: .*gae_lambda.*vec_env"
    ) as caught:
        zoo.read_hyperparams(algorithm, {**NEEDED, "n_step": 5})
    assert "\n" not in str(caught.value)


def test_the_adaptive_kl_algorithm_takes_its_own_keys_and_clip_ppo_does_not() -> None:
    zoo.read_hyperparams(PPOAdaptiveKLPaper, {**NEEDED, "kl_target": 0.02, "beta_init": 2.0})
    with pytest.raises(ValueError, match="unknown config key 'kl_target'"):
        zoo.read_hyperparams(PPOClipPaper, {**NEEDED, "kl_target": 0.02})


@pytest.mark.parametrize("name", sorted(set(inspect.signature(PPOClipPaper).parameters) - zoo.COMMAND_LINE_KEYS))
def test_every_other_argument_of_the_constructor_is_a_key(name: str) -> None:
    default = inspect.signature(PPOClipPaper).parameters[name].default
    assert name in zoo.read_hyperparams(PPOClipPaper, {**NEEDED, name: NEEDED.get(name, default)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**NEEDED, "seed": 1}, "unknown config key 'seed'"),  # --seed sets it
        ({"n_timesteps": 100}, "lack 'policy'"),
        ({"policy": "MlpPolicy"}, "lack 'n_timesteps'"),
        ({**NEEDED, "gamma": {"schedule": "linear", "start": 1, "end": 0}}, "gamma takes no schedule.*clip_range"),
        ({**NEEDED, "policy_kwargs": {"net_arc": [4]}}, "policy_kwargs key 'net_arc', did you mean 'net_arch'"),
        ({**NEEDED, "policy_kwargs": {"activation_fn": "tan"}}, "activation_fn 'tan', did you mean 'tanh'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.read_hyperparams(PPOClipPaper, settings)


def test_a_setup_that_fails_leaves_no_run_behind(build: Factory, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="log_std_schedule"):  # which only the task's actions tell
        build(hyperparams={"log_std_schedule": -0.1})
    assert not list((tmp_path / "logs" / "ppo_clip_paper").iterdir())


# ------------------------------------------------------------------ vectorisation


@pytest.mark.parametrize(("name", "vec_env_class"), [("subproc", SubprocVecEnv), ("shared_memory", SharedMemoryVecEnv)])
def test_a_config_chooses_how_environments_are_vectorised(
    make_manager: Factory, tmp_path: Path, name: str, vec_env_class: type[VecEnv]
) -> None:
    manager = make_manager(config=write_config(tmp_path, vec_env=name))
    model, _ = manager.setup_experiment()
    assert manager.vec_env_class is vec_env_class
    assert isinstance(model.get_env().unwrapped, vec_env_class)
    model.get_env().close()


def test_the_command_line_wins_over_the_config(
    make_manager: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo._OurExperiments, "chooses_vec_env", True)
    manager = make_manager(config=write_config(tmp_path, vec_env="subproc"), vec_env_type="dummy")
    manager.setup_experiment()
    assert manager.vec_env_class is DummyVecEnv


def test_the_command_line_of_another_program_does_not(
    make_manager: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["my_script.py", "--vector-size", "3"])
    manager = make_manager(config=write_config(tmp_path, vec_env="subproc"))
    manager.setup_experiment()
    assert manager.vec_env_class is SubprocVecEnv


def test_vec_env_of_the_command_line_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import rl_zoo3.train

    seen: list[bool] = []
    monkeypatch.setattr(rl_zoo3.train, "train", lambda: seen.append(zoo._OurExperiments.chooses_vec_env))
    for arguments in (["--vec-env", "dummy"], []):
        zoo.train("train", arguments)
    assert seen == [True, False]


def test_a_config_gives_the_vectorised_environment_its_arguments(make_manager: Factory, tmp_path: Path) -> None:
    choice = {"name": "shared_memory", "n_workers": 2, "start_method": "fork"}
    manager = make_manager(config=write_config(tmp_path, vec_env=choice, n_envs=3))
    model, saved = manager.setup_experiment()
    assert saved["vec_env"] == choice
    assert len(model.get_env().unwrapped._chunks) == 2
    evaluation = manager.create_envs(1, eval_env=True)  # which has no room for two workers
    assert len(evaluation.unwrapped._chunks) == 1
    assert manager.vec_env_kwargs == {"n_workers": 2, "start_method": "fork"}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"name": "shared_memory", "n_worker": 2},
            r"unknown argument of vec_env: shared_memory, 'n_worker', did you mean 'n_workers'\? "
            r"\(allowed: max_restarts, n_workers, start_method\)",
        ),
        ({"name": "dummy", "n_workers": 2}, r"unknown argument of vec_env: dummy, 'n_workers' \(allowed: none\)"),
        ({"n_workers": 2}, r"vec_env must be a name or a mapping with a name; got {'n_workers': 2}"),
        ({"name": "share_memory"}, "unknown vec_env 'share_memory', did you mean 'shared_memory'"),
    ],
)
def test_wrong_arguments_of_a_vectorised_environment(build: Factory, choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(hyperparams={"vec_env": choice})


@pytest.mark.parametrize(
    ("algo", "own"),
    [
        ("ppo_clip_paper", {"vec_env": "dummy", "batch_size": 128}),
        ("ppo_clip_paper", {"vec_env": "subproc", "batch_size": 128}),
        ("a2c", {}),
    ],
)
def test_evaluations_go_without_the_wrappers_of_training_alone(
    make_manager: Factory, tmp_path: Path, algo: str, own: dict[str, Any]
) -> None:
    wrappers = ["gymnasium.wrappers.RecordEpisodeStatistics", "sb3_ppo_variants.envs.wrappers.StrideReward"]
    settings = {**NEEDED, "n_envs": 1, "env_wrapper": wrappers, "env_kwargs": {"minimum_height": 0.0}, **own}
    config = tmp_path / "config.yml"
    config.write_text(yaml.safe_dump({"RoboschoolHumanoid-v1": settings}))
    manager = make_manager(algo, "RoboschoolHumanoid-v1", eval_freq=128, config=str(config))
    manager.setup_experiment()
    terms = []
    for env in manager._opened:
        env.reset()
        terms.append("reward_stride" in env.step(np.zeros((1, 17), np.float32))[3][0])
        assert env.env_is_wrapped(RecordEpisodeStatistics) == [True]
    assert terms == [False, True], "those of the evaluations come first"


@pytest.mark.slow
def test_shared_memory_steps_training_and_evaluation(make_manager: Factory, tmp_path: Path) -> None:
    choice = {"name": "shared_memory", "n_workers": 2, "start_method": "fork"}
    config = write_config(tmp_path, vec_env=choice, n_envs=4, n_steps=32, batch_size=32)
    manager = make_manager(config=config, eval_freq=128, log_interval=-1)
    model, _ = manager.setup_experiment()
    manager.learn(model)  # and evaluates: a warning of SB3's of unlike environments would be an error
    assert [type(env.unwrapped) for env in manager._opened] == [SharedMemoryVecEnv] * 2
    assert (Path(manager.save_path) / "evaluations.npz").is_file()
    assert len(load_results(manager.save_path)) > 0
    for env in manager._opened:
        env.close()


@pytest.mark.slow  # Ray takes seconds to start
def test_ray_steps_the_training_and_evaluation_stays_here(make_manager: Factory, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from sb3_ppo_variants.vec_env import RayVecEnv

    choice = {"name": "ray", "n_actors": 2, "num_cpus": 0.5}
    config = write_config(tmp_path, vec_env=choice, n_envs=4, n_steps=32, batch_size=32)
    manager = make_manager(config=config, eval_freq=128, log_interval=-1)
    model, _ = manager.setup_experiment()
    manager.learn(model)  # and evaluates: a warning of SB3's of unlike environments would be an error
    (evaluation,) = [env for env in manager._opened if isinstance(env.unwrapped, DummyVecEnv)]
    assert evaluation.num_envs == 1
    assert manager.vec_env_class is RayVecEnv
    training = model.get_env()
    assert isinstance(training.unwrapped, RayVecEnv)
    assert len(training.unwrapped._chunks) == 2
    assert (Path(manager.save_path) / "evaluations.npz").is_file()
    training.close()


def play_over_a_loss(manager: Any, kill: Callable[[Any], None]) -> None:
    """Train's environments with a loss of the second of two workers: what the monitor writes and the infos tell."""
    model, _ = manager.setup_experiment()
    env = model.get_env()
    env.reset()
    folder = Path(manager.save_path)
    told = [info["episode"] for _ in range(40) for info in env.step(np.zeros(4, np.int64))[3] if "episode" in info]
    assert len(load_results(str(folder))) == len(told) > 0
    lengths = env.unwrapped.get_attr("_elapsed_steps")  # of gymnasium's TimeLimit: since the last reset
    kill(env.unwrapped._chunks[1])
    with pytest.warns(WorkerLostWarning):
        env.unwrapped.get_attr("render_mode")  # so that the loss is sure to be seen before the step
    infos = env.step(np.zeros(4, np.int64))[3]
    now = [info["episode"] for info in infos if "episode" in info]
    cut = [info["episode"] for info in infos[2:]]
    assert [episode["l"] for episode in cut] == lengths[2:]
    assert [episode["r"] for episode in cut] == lengths[2:]  # CartPole's reward is 1 per step
    written = load_results(str(folder))
    assert written["l"].tolist() == [episode["l"] for episode in [*told, *now]]
    assert [path.name for path in folder.glob("*.monitor.csv")] == ["0.monitor.csv"]
    env.close()


@pytest.mark.slow
def test_the_monitor_of_a_training_over_ray_is_the_learners(make_manager: Factory, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    choice = {"name": "ray", "n_actors": 2, "num_cpus": 0.5}
    manager = make_manager(config=write_config(tmp_path, vec_env=choice, n_envs=4, normalize=True))
    play_over_a_loss(manager, lambda actor: ray.kill(actor._handle))


def test_the_monitor_of_a_training_over_shared_memory_is_the_learners(make_manager: Factory, tmp_path: Path) -> None:
    def kill(started: Any) -> None:
        started._process.kill()
        started._process.join()

    choice = {"name": "shared_memory", "n_workers": 2, "start_method": "fork"}
    config = write_config(tmp_path, vec_env=choice, n_envs=4, normalize=True)
    play_over_a_loss(make_manager(config=config), kill)


def test_ray_that_is_not_installed_is_named(build: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "sb3_ppo_variants.vec_env.ray", raising=False)
    with pytest.raises(
        ValueError, match=r"vec_env: ray cannot be used: RayVecEnv needs the \[ray\] extra: pip install"
    ):
        build(config=write_config(tmp_path, vec_env="ray"))


def test_an_unknown_vec_env_is_refused(build: Factory, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown vec_env 'subprocess', did you mean 'subproc'\?"):
        build(config=write_config(tmp_path, vec_env="subprocess"))


# ------------------------------------------------------------------ the command line's pairs


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("3e-4", 3e-4),
        ("None", None),
        ("log_clip", "log_clip"),
        ("lin_0.1", "lin_0.1"),
        ("{'a': [1]}", {"a": [1]}),
        ("dict(b=1)", {"b": 1}),
        ("HerReplayBuffer", "HerReplayBuffer"),
        ("1" * 400, "1" * 400),
    ],
)
def test_values_on_the_command_line_are_literals_or_words(text: str, value: Any) -> None:
    assert zoo.read_literal(text) == value


@pytest.mark.parametrize("text", ["exit(1)", "dict(a=b)", "[exit]", f"[{'1' * 400}]"])
def test_values_on_the_command_line_are_not_run_as_code(text: str) -> None:
    with pytest.raises(ValueError, match=r"a must be a mapping such as \{key: value\}, or text of literals.*; got"):
        zoo.read_literal(text, "a")


# ------------------------------------------------------------------ the search


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_what_a_search_samples_fits_the_constructor(algo: str) -> None:
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    algorithm = getattr(sb3_ppo_variants, ALGORITHMS[algo])
    trial = optuna.create_study().ask()
    sampled = HYPERPARAMS_SAMPLER[algo](trial, 2, 1, {})
    zoo.read_hyperparams(algorithm, {**NEEDED, **sampled})
    assert HYPERPARAMS_CONVERTER[algo](trial.params) == sampled
    assert ("clip_range" in sampled) == (algorithm is PPOClipPaper)
    assert ("clip_range" in trial.params) == (algorithm is PPOClipPaper)
    assert {parameter.name for parameter in OF_VARIANT[algo]} <= set(sampled)


def test_trial_0_can_be_loaded(make_manager: Factory, tmp_path: Path) -> None:
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER

    journal = str(tmp_path / "study.log")
    study = optuna.create_study(storage=JournalStorage(JournalFileBackend(journal)), study_name="study")
    first, second = study.ask(), study.ask()
    sampled = [HYPERPARAMS_SAMPLER["ppo_clip_paper"](trial, 1, 1, {}) for trial in (first, second)]
    assert sampled[0]["gamma"] != sampled[1]["gamma"]
    for number in (0, 1):
        manager = make_manager(storage=journal, study_name="study", trial_id=number)
        assert manager.read_hyperparameters()[0]["gamma"] == sampled[number]["gamma"]
    # What the command line asks for wins over the trial, as in rl_zoo3.
    manager = make_manager(storage=journal, study_name="study", trial_id=0, hyperparams={"gamma": 0.5})
    assert manager.read_hyperparameters()[0]["gamma"] == 0.5


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")  # of the sampled sizes
@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (FloatingPointError("the loss is nan"), optuna.TrialPruned),
        (ValueError("Expected parameter loc to satisfy Real(), but found invalid values"), optuna.TrialPruned),
        (ValueError("operands could not be broadcast together"), ValueError),
        (AssertionError("a bug"), AssertionError),
    ],
)
def test_a_search_prunes_what_diverged_and_reports_bugs(
    make_manager: Factory, monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: type[Exception]
) -> None:
    def learn(*_args: Any, **_kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(PPOClipPaper, "learn", learn)
    manager = make_manager(optimize_hyperparameters=True, n_timesteps=100)
    assert manager.setup_experiment() is None
    with pytest.raises(outcome):
        manager.objective(optuna.create_study().ask())


# ------------------------------------------------------------------ rl_zoo3's way of loading


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_zip_loads_with_the_zeros_that_rl_zoo3_injects(build: Factory, tmp_path: Path, algo: str) -> None:
    model = build(algo, "CartPole-v1")
    model.save(tmp_path / "model")
    zeros = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    loaded = type(model).load(tmp_path / "model", custom_objects=zeros)
    observation = model.observation_space.sample()
    assert loaded.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]
