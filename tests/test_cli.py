"""The ``ppo-variants`` command, as a user meets it: what it prints, what it writes, how it fails."""

from __future__ import annotations

import itertools
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch as th
import yaml

import sb3_ppo_variants
from sb3_ppo_variants import ALGORITHMS, BundleWarning, PPOClipPaper, cli, demo, load_policy, zoo
from sb3_ppo_variants.agents.curves import read_curves

QUIET = ["--eval-freq", "-1", "--verbose", "0", "--no-progress"]
SHORT_TRAINING = ["-n", "256", "-params", "n_steps:64", "n_envs:2", "batch_size:64", *QUIET]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


def only_error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error output, which is one sentence."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


# ------------------------------------------------------------------ without rl_zoo3


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help_names_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 0
    printed = capsys.readouterr().out
    for command in (
        "train",
        "enjoy",
        "record",
        "plot",
        "list",
        "demo",
        "export",
        "package",
        "push-to-hub",
        "tune",
        "reproduce",
    ):
        assert re.search(rf"^  {command} ", printed, re.MULTILINE)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ppo-variants {sb3_ppo_variants.__version__}\n"


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert "unknown command 'trian', did you mean 'train'?" in only_error_line(capsys)


def test_importing_the_command_loads_neither_torch_nor_rl_zoo3() -> None:
    code = "import sys, sb3_ppo_variants.cli; sys.exit(bool({'torch', 'rl_zoo3', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0


@pytest.fixture
def _no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (*cli.ZOO_MODULES, *cli.DEMO_MODULES, "torch", "stable_baselines3"):
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.usefixtures("_no_extra")
def test_list_needs_no_extra_and_shows_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    tasks = [name for name, spec in gym.registry.items() if str(spec.entry_point).startswith("sb3_ppo_variants")]
    for name in [*ALGORITHMS, *ALGORITHMS.values(), *tasks, "HalfCheetah-v5", str(zoo.data_folder("zoo_configs"))]:
        assert name in printed
    # Columns are aligned: the classes begin below one another.
    starts = {line.index(name) for name in ALGORITHMS.values() for line in printed.splitlines() if f" {name} " in line}
    assert len(starts) == 1


@pytest.mark.parametrize("command", ["train", "enjoy", "record", "plot", "demo", "package", "push-to-hub"])
@pytest.mark.usefixtures("_no_extra")
def test_what_needs_the_extra_says_so_in_one_sentence(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command]) == 2
    assert only_error_line(capsys) == (
        f'ppo-variants {command} needs the [zoo] extra: pip install "sb3-ppo-variants[zoo]"'
    )


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_listed_tasks_of_a_config_are_its_keys(algo: str) -> None:
    assert zoo.configured_tasks(algo) == list(yaml.safe_load(zoo.config_path(algo).read_text()))


def test_demo_hands_its_arguments_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def record_arguments(arguments: list[str]) -> int:
        seen.append(arguments)
        return 3

    monkeypatch.setattr(demo, "main", record_arguments)
    assert cli.main(["demo", "--seed", "1"]) == 3
    assert seen == [["--seed", "1"]]


# ------------------------------------------------------------------ wrong input


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["train", "--algo", "ppo_clip"],
            r"'ppo_clip', did you mean 'ppo_clip_paper'\? \(allowed: .*trpo",
        ),
        (["train", "--gym-packages", "nowhere"], "--gym-packages: there is no module nowhere that can be imported$"),
        (["plot", "--env", "no.where:CartPole-v1"], "--env: there is no module no.where that can be imported$"),
        (["train", "--env", "CartPol-v1"], r"unknown task 'CartPol-v1', did you mean 'CartPole-v1'\?$"),
        (["train", "--env", "RoboschoolHumanoid-v2"], r"did you mean 'RoboschoolHumanoid-v1'\?$"),
        (["enjoy", "--env", "CartPol-v1"], "unknown task 'CartPol-v1'"),
        (["train", "-params", "clip_range:-0.1"], r"clip_range must be .*; got -0\.1"),
        (["train", "-params", "surrogate:logclip"], "surrogate must be one of 'clip', 'log_clip'"),
        (
            ["train", "--algo", "a2c", "-params", "clip_range:0.1"],
            r"unknown config key 'clip_range'.* \(allowed: .*gamma",
        ),
        (["train", "-n", "0"], "--n-timesteps must be an integer >= 1; got 0$"),
        (["train", "-params", "n_envs:0"], "n_envs must be an integer >= 1; got 0$"),
        (["train", "--conf-file", "nowhere"], "there is no config file nowhere$"),
        (["train", "-params", "clip_rang:0.1"], r"unknown config key 'clip_rang', did you mean 'clip_range'\?"),
        (["train", "-conf", "nowhere.yml"], "there is no config file nowhere.yml"),
        (["train", "-i", "nowhere.zip"], "trained_agent must be a valid path"),
        (["train", "--env-kwargs", "speed:1"], "unexpected keyword argument 'speed'"),
        (["enjoy"], "No model found for ppo_clip_paper on CartPole-v1"),
        (["record"], "No model found for ppo_clip_paper on CartPole-v1"),
        (["plot"], "no finished episode of ppo_clip_paper on CartPole-v1 in logs"),
    ],
)
def test_wrong_input_is_answered_in_one_sentence(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("logs/ppo_clip_paper").mkdir(parents=True)
    assert cli.main([*argv, *(QUIET if argv[0] == "train" else [])]) == 2
    error = only_error_line(capsys)
    assert error.startswith(f"ppo-variants {argv[0]}: ")
    assert re.search(message, error)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(_self: PPOClipPaper) -> None:
        raise ValueError("operands could not be broadcast together")

    monkeypatch.setattr(PPOClipPaper, "train", train)
    with pytest.raises(ValueError, match="broadcast"):
        cli.main(["train", *SHORT_TRAINING])


def test_a_bug_during_setup_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PPOClipPaper, "_check_arguments", lambda _self: float("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["train", *SHORT_TRAINING])


def test_a_training_that_diverges_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def train(_self: PPOClipPaper) -> None:
        raise FloatingPointError("the loss is nan at iteration 3")

    monkeypatch.setattr(PPOClipPaper, "train", train)
    assert cli.main(["train", *SHORT_TRAINING]) == 1
    assert only_error_line(capsys) == "ppo-variants train: the loss is nan at iteration 3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CartPole-v1: {policy: [", "settings.yml is not YAML"),
        ("CartPole-v1:", "CartPole-v1 in settings.yml must be a mapping of settings; got None"),
        ("- CartPole-v1", "settings.yml must be a mapping from tasks to their settings"),
    ],
)
def test_a_broken_config_file_is_named(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("settings.yml").write_text(text)
    assert cli.main(["train", "--conf-file", "settings.yml"]) == 2
    assert message in only_error_line(capsys)


# ------------------------------------------------------------------ the round trip


def test_train_enjoy_record_plot(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *SHORT_TRAINING]) == 0
    run = Path("logs/ppo_clip_paper/CartPole-v1_1")
    assert (run / "CartPole-v1.zip").is_file()
    assert list(Path("logs/tb/CartPole-v1").glob("PPOClipPaper_*/events.out.tfevents.*"))

    capsys.readouterr()
    assert cli.main(["enjoy", "-n", "600"]) == 0
    assert "Mean reward: " in capsys.readouterr().out

    assert cli.main(["record", "-n", "8"]) == 0
    film = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("Film: "))
    assert film.stat().st_size > 1000
    assert film.read_bytes()[4:8] == b"ftyp"  # an MP4

    assert cli.main(["plot"]) == 0
    picture = Path("logs/ppo_clip_paper/CartPole-v1_curve.png")
    assert capsys.readouterr().out == f"Curve: {picture} (1 run)\n"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_best_model_plays_with_its_own_normaliser(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["n_timesteps:256", "n_envs:1", "n_steps:128", "batch_size:128", "normalize:True"]
    evaluations = ["--eval-freq", "128", "--eval-episodes", "1"]
    assert cli.main(["train", "--no-progress", *evaluations, "-params", *settings]) == 0
    (last,) = Path("logs").glob("*/*/CartPole-v1/vecnormalize.pkl")
    assert (last.parent / "best" / last.name).is_file()
    last.write_bytes(b"of another time")
    for command, flag in (("enjoy", "--load-best"), ("record", "--load-best"), ("enjoy", "--load-b")):
        assert cli.main([command, "-n", "8", flag]) == 0
        with pytest.raises(pickle.UnpicklingError):
            cli.main([command, "-n", "8"])
    (last.parent / "best" / last.name).unlink()  # a run of rl_zoo3 has none
    capsys.readouterr()
    with pytest.raises(pickle.UnpicklingError):
        cli.main(["enjoy", "-n", "8", "--load-best"])
    assert f"with the last normaliser: there is no {last.parent / 'best' / last.name}" in capsys.readouterr().out


def test_an_algorithm_of_ones_own(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import rl_zoo3

    class Own(sb3_ppo_variants.PaperOnPolicyAlgorithm):
        def objective(self, batch: Any) -> Any:
            return batch.ratio * batch.advantages

    monkeypatch.setitem(rl_zoo3.ALGOS, "own", Own)
    settings = {"policy": "MlpPolicy", "n_timesteps": 64, "n_envs": 2, "n_steps": 16, "batch_size": 16}
    Path("own.yml").write_text(yaml.safe_dump({"CartPole-v1": {**settings, "vec_env": "dummy"}}))
    chosen = ["--algo", "own", "--env", "CartPole-v1"]
    assert cli.main(["train", *chosen, "-conf", "own.yml", *QUIET]) == 0
    run = "logs/own/CartPole-v1_1"
    assert cli.main(["train", "--resume", run, "--until", "128", "--no-progress"]) == 0
    assert (
        sorted(path.name for path in Path(run, "bundles").glob("*.safetensors"))[-1]
        == "bundle_000000000128.safetensors"
    )
    for command in (["enjoy", *chosen, "-n", "600"], ["record", *chosen, "-n", "8"], ["plot", *chosen]):
        assert cli.main(command) == 0
    capsys.readouterr()
    assert cli.main(["package", "--run", run]) == 2
    assert "unknown algorithm 'own'" in only_error_line(capsys)


def test_the_adaptive_kl_agent_and_other_folders(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--algo", "ppo_adaptive_kl_paper", "-f", "elsewhere"]
    assert cli.main(["train", *chosen, *SHORT_TRAINING]) == 0
    assert "Next: ppo-variants enjoy|record|plot --algo ppo_adaptive_kl_paper --env CartPole-v1 -f elsewhere" in (
        capsys.readouterr().out
    )
    assert list(Path("elsewhere/tb/CartPole-v1").glob("PPOAdaptiveKLPaper_*/events.out.tfevents.*"))
    assert cli.main(["enjoy", *chosen, "-n", "600"]) == 0
    assert "Mean reward: " in capsys.readouterr().out
    assert cli.main(["plot", *chosen, "-o", "pictures/curve.png"]) == 0
    assert Path("pictures/curve.png").is_file()
    assert not Path("logs").exists()


def test_a_plot_of_a_task_with_a_slash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path("logs/ppo_clip_paper/Own-Env-v0_1")
    run.mkdir(parents=True)
    (run / "0.monitor.csv").write_text('#{"t_start": 0.0, "env_id": "Own/Env-v0"}\nr,l,t\n1.0,5,0.1\n2.0,5,0.2\n')
    gym.register("Own/Env-v0", "gymnasium.envs.classic_control:CartPoleEnv")
    try:
        assert cli.main(["plot", "--env", "Own/Env-v0"]) == 0
    finally:
        gym.registry.pop("Own/Env-v0")
    assert Path("logs/ppo_clip_paper/Own-Env-v0_curve.png").is_file()
    assert "(1 run)" in capsys.readouterr().out


def test_a_run_takes_no_folder_that_another_has_taken_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Path("logs/ppo_clip_paper/CartPole-v1_1")
    create = zoo._OurExperiments.create_log_folder

    def late(self: Any) -> None:
        taken.mkdir(parents=True)
        (taken / "0.monitor.csv").write_text("mine")
        create(self)

    monkeypatch.setattr(zoo._OurExperiments, "create_log_folder", late)
    assert cli.main(["train", *SHORT_TRAINING]) == 0
    assert [path.name for path in taken.iterdir()] == ["0.monitor.csv"]
    assert (taken / "0.monitor.csv").read_text() == "mine"
    assert {"CartPole-v1.zip", "run.json"} <= {path.name for path in Path(f"{taken}"[:-1] + "2").iterdir()}


def test_a_setup_that_fails_leaves_the_run_of_another_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Path("logs/ppo_clip_paper/CartPole-v1_1")

    def fails(*_: Any) -> None:
        taken.mkdir(parents=True)
        raise ValueError("clip_range must be a number")

    monkeypatch.setattr(zoo._OurExperiments, "_preprocess_hyperparams", fails)
    assert cli.main(["train", *SHORT_TRAINING]) == 2
    assert taken.is_dir()


@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type:UserWarning")
def test_an_evaluation_of_ones_own_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Path("my_callbacks.py").write_text(
        "import gymnasium as gym\n"
        "from stable_baselines3.common.callbacks import EvalCallback\n"
        "class Mine(EvalCallback):\n"
        "    def __init__(self):\n"
        "        super().__init__(gym.make('CartPole-v1'), eval_freq=10**6)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        flags = ["-n", "128", "-params", "n_steps:64", "n_envs:2", "batch_size:64", "normalize:true"]
        assert cli.main(["train", *flags, "callback:my_callbacks.Mine", *QUIET]) == 0
    finally:
        sys.modules.pop("my_callbacks", None)


def test_the_best_models_statistics_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from stable_baselines3.common import callbacks

    returns = iter([10.0, 1.0])
    monkeypatch.setattr(callbacks, "evaluate_policy", lambda *_, **__: ([next(returns)], [5]))
    short = ["-n", "128", "-params", "n_steps:64", "n_envs:1", "batch_size:64", "normalize:True", *QUIET[2:]]
    assert cli.main(["train", *short, "--eval-freq", "64", "--n-eval-envs", "1"]) == 0
    settings = Path("logs/ppo_clip_paper/CartPole-v1_1/CartPole-v1")
    files = [settings / "best" / "vecnormalize.pkl", settings / "vecnormalize.pkl"]
    counts = [pickle.loads(file.read_bytes()).obs_rms.count for file in files]
    assert counts == [pytest.approx(65, abs=1), pytest.approx(129, abs=1)]


def test_a_plot_shows_a_short_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["train", *SHORT_TRAINING]) == 0
    from matplotlib import pyplot as plt

    curves: list[int] = []
    monkeypatch.setattr(plt, "close", lambda *_args: curves.append(len(plt.gca().get_lines())))
    assert cli.main(["plot"]) == 0
    assert curves == [1]


@pytest.mark.parametrize(("flags", "shown"), [([], True), (["--no-progress"], False)])
def test_the_progress_bar_is_on_unless_refused(flags: list[str], shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[list[str]] = []
    monkeypatch.setattr(zoo, "train", lambda _program, arguments, _options: handed.append(arguments))
    assert cli.main(["train", *flags]) == 0
    assert ("--progress" in handed[0]) == shown
    assert "--no-progress" not in handed[0]


@pytest.mark.parametrize(("display", "renders"), [("", False), (":0", True)])
def test_enjoy_renders_where_there_is_a_display(display: str, renders: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[list[str]] = []
    monkeypatch.setattr(zoo, "enjoy", lambda _program, arguments: handed.append(arguments))
    monkeypatch.setenv("DISPLAY", display)
    Path("logs/ppo_clip_paper/CartPole-v1_1").mkdir(parents=True)  # a run, or there would be none to enjoy
    assert cli.main(["enjoy"]) == 0
    assert ("--no-render" not in handed[0]) == renders


def test_what_the_user_asks_for_wins_over_our_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["train", "--algo", "a2c", "-tb", "events", "-n", "256", *QUIET]) == 0
    assert Path("logs/a2c/CartPole-v1_1/CartPole-v1.zip").is_file()
    assert Path("events/CartPole-v1").is_dir()
    assert not Path("logs/tb").exists()


def test_ctrl_c_saves_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(_self: PPOClipPaper) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PPOClipPaper, "train", train)
    assert cli.main(["train", *SHORT_TRAINING]) == 0
    assert Path("logs/ppo_clip_paper/CartPole-v1_1/CartPole-v1.zip").is_file()


RUN = "logs/ppo_clip_paper/CartPole-v1_1"


def rows(name: str) -> list[str]:
    return Path(RUN, name).read_text().splitlines()


def test_a_killed_run_is_resumed_and_extended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if it had not been: the monitors' files and `progress.csv` are those of an unbroken run."""
    flags = ["--env", "CartPole-v1", "--seed", "3", "--eval-freq", "-1", "--no-progress"]
    assert cli.main(["train", *flags, "-n", "3072"]) == 0
    unbroken = {path.name: path.read_text().splitlines()[2:] for path in Path(RUN).glob("*monitor.csv")}
    unbroken_returns = {name: [row.split(",")[:2] for row in each] for name, each in unbroken.items()}
    shutil.rmtree("logs")

    train = PPOClipPaper.train

    def dies_in_the_third_iteration(self: PPOClipPaper) -> None:
        if self.n_iterations == 2:
            raise MemoryError("no memory")
        train(self)

    with monkeypatch.context() as patch:
        patch.setattr(PPOClipPaper, "train", dies_in_the_third_iteration)
        with pytest.raises(MemoryError):
            cli.main(["train", *flags, "-n", "3072"])
    assert f"To go on: ppo-variants train --resume {RUN}" in capsys.readouterr().out

    assert cli.main(["train", "--resume", RUN, "--no-progress"]) == 0
    assert "Resumed at 2048 of 3072 timesteps" in capsys.readouterr().out
    assert [path.name for path in Path("logs/ppo_clip_paper").iterdir()] == ["CartPole-v1_1"]
    assert len(rows("progress.csv")) == 1 + 3
    # CartPole's episodes do not end with the rollouts: those under way began again, the ones before are the same.
    for name, returns in unbroken_returns.items():
        resumed = [row.split(",")[:2] for row in rows(name)[2:]]
        total = sum(int(length) for _, length in resumed)
        assert total <= 3072 // 8
        ends = itertools.accumulate(int(length) for _, length in returns)
        before = [pair for pair, end in zip(returns, ends, strict=True) if end <= 2048 // 8]
        assert resumed[: len(before)] == before

    flags = ["--until", "4096", "--no-progress", "-params", "n_epochs:2"]
    with pytest.warns(BundleWarning, match="n_epochs was 10 and is 2"):
        assert cli.main(["train", "--resume", RUN, *flags]) == 0
    assert "Resumed at 3072 of 4096 timesteps" in capsys.readouterr().out
    assert len(rows("progress.csv")) == 1 + 4
    assert Path(RUN, "CartPole-v1.zip").is_file()
    # What was asked for once, and nothing twice.
    kept = json.loads(Path(RUN, "run.json").read_text())
    assert kept["arguments"].count("--seed") == kept["arguments"].count("-n") == 1
    assert kept["arguments"][-2:] == ["-n", "4096"]
    assert kept["settings"]["n_epochs"] == 2

    for path in Path(RUN, "bundles").glob("*.safetensors"):
        path.write_bytes(b"nothing")
    assert cli.main(["train", "--resume", RUN]) == 2
    output = capsys.readouterr()
    assert "no resume bundle in" in output.err
    assert "Traceback" not in output.err
    assert "To go on" not in output.out
    assert len(rows("progress.csv")) == 1 + 4


@pytest.mark.parametrize("rescaled", [False, True])
def test_a_run_starts_from_an_agent_and_so_does_its_resumption(
    rescaled: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = ["train", *SHORT_TRAINING, "-params", "normalize:true"]
    assert cli.main([*training, "--seed", "1"]) == 0
    assert cli.main(["export", "--env", "CartPole-v1", "-o", "agent"]) == 0
    expected = load_policy("agent").policy.state_dict()
    begun_with: list[dict[str, th.Tensor]] = []
    statistics: list[tuple[Any, Any]] = []
    train = PPOClipPaper.train

    def notes(self: PPOClipPaper) -> None:
        begun_with.append({name: tensor.clone() for name, tensor in self.policy.state_dict().items()})
        running: Any = self.get_vec_normalize_env().obs_rms  # type: ignore[union-attr]
        statistics.append((running.mean.copy(), running.var.copy()))
        if len(begun_with) == 1:
            raise MemoryError("no memory")
        train(self)

    monkeypatch.setattr(PPOClipPaper, "train", notes)
    begin = ["--start-from", "agent", "--start-statistics", "2:3:4", "0:-2:0.5", *(["--start-rescaled"] * rescaled)]
    with pytest.raises(MemoryError):
        cli.main([*training, "--seed", "2", *begin])
    assert "Starting from the agent in agent" in capsys.readouterr().out
    # Killed before its first update, it begins anew.
    for path in Path("logs/ppo_clip_paper/CartPole-v1_2/bundles").glob("*"):
        path.unlink()
    assert cli.main(["train", "--resume", "logs/ppo_clip_paper/CartPole-v1_2"]) == 0
    for begun in begun_with[:2]:
        changed = {name.rsplit(".", 1)[0] for name, tensor in begun.items() if not th.equal(tensor, expected[name])}
        first_layers = {f"mlp_extractor.{network}_net.0" for network in ("policy", "value")}
        assert changed == (first_layers if rescaled else set())
    for mean, variance in statistics[:2]:  # which have moved by a rollout since, of a million observations
        assert (mean[2], mean[0]) == pytest.approx((3, -2), rel=0.05)
        assert (variance[2], variance[0]) == pytest.approx((4, 0.5), rel=0.05)
        assert max(abs(mean[1]), abs(mean[3])) < 1
    kept = json.loads(Path("logs/ppo_clip_paper/CartPole-v1_2/run.json").read_text())["arguments"]
    assert kept.count("--start-from") == 1
    assert kept[kept.index("--start-statistics") + 1 :][:2] == ["2:3:4", "0:-2:0.5"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--start-from", "nowhere"], "nowhere"),
        (["--start-statistics", "1:0:1"], "--start-statistics goes with --start-from"),
        (["--start-from", "a", "--start-rescaled"], "--start-rescaled goes with --start-statistics"),
        (["--resume", "run", "--start-rescaled"], "--start-rescaled cannot be given with --resume"),
        (["--start-from", "a", "--start-statistics", "1:0"], "--start-statistics must be INDEX:MEAN:VARIANCE ..."),
        (["--start-from", "a", "--start-statistics", "x:0:1"], "--start-statistics must be INDEX:MEAN:VARIANCE ..."),
        (["--start-from", "a", "--start-statistics", "1:0:1", "1:0:2"], "--start-statistics must have each index once"),
        (["--start-from", "a", "--start-statistics", "1:nan:1"], "with a finite mean and a variance > 0; got 1:nan:1"),
        (["--start-from", "a", "--start-statistics", "1:0:0"], "with a finite mean and a variance > 0; got 1:0:0"),
        (["--resume", "run", "--start-statistics", "1:0:1"], "--start-statistics cannot be given with --resume"),
        (["--resume", "run", "--start-from", "agent"], "--start-from cannot be given with --resume"),
        (["--resume", "nowhere"], "--resume must name the folder of a run, which has a run.json; got nowhere"),
        (["--until", "5"], "--until goes with --resume"),
        (["--resume", "run", "--recipe", "paper"], "--recipe cannot be given with --resume"),
        (["--stretch-schedules"], "--stretch-schedules goes with --resume"),
        (["--resume", "run", "--until", "0"], "--until must be an integer >= 1"),
        (["--bundle-interval", "-1"], "--bundle-interval must be a number of seconds >= 0"),
        (["--resume", "run", "--seed", "3"], "--seed cannot be given with --resume"),
        (["--resume", "torn"], "torn/run.json cannot be read"),
        (["--resume", "foreign"], "foreign/run.json is none of a sb3-ppo-variants run, version 1"),
        (["--resume", "odd"], "'arguments' in odd/run.json must be a list of strings"),
    ],
)
def test_what_cannot_be_resumed_is_said(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    known = {"format": "sb3-ppo-variants run", "version": 1, "arguments": [], "settings": None}
    contents = {
        "run": json.dumps(known),
        "torn": json.dumps(known)[:20],
        "foreign": json.dumps({"format": "another"}),
        "odd": json.dumps({**known, "arguments": [3]}),
    }
    for name, text in contents.items():
        Path(name).mkdir()
        Path(name, "run.json").write_text(text)
    assert cli.main(["train", *flags]) == 2
    assert message in only_error_line(capsys)


def test_params_may_be_written_as_in_a_config() -> None:
    as_in_yaml = ["normalize:true", "clip_actions:false", "target_kl:null", "vec_env:{name: dummy}", "n_steps:64"]
    lines = ["policy_kwargs:{net_arch: [8, 8]}", "batch_size:64", "n_envs:2"]
    assert cli.main(["train", "-n", "128", "-params", *as_in_yaml, *lines, *QUIET]) == 0
    settings = json.loads(Path("logs/ppo_clip_paper/CartPole-v1_1/run.json").read_text())["settings"]
    assert [settings[name] for name in ("normalize", "clip_actions", "target_kl")] == [True, False, None]
    assert settings["vec_env"] == {"name": "dummy"}
    assert settings["policy_kwargs"] == {"net_arch": [8, 8]}


@pytest.mark.parametrize("flags", [["--gym-packages", "my_tasks", "--env", "My-v0"], ["--env", "my_tasks:My-v0"]])
def test_tasks_of_ones_own(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my_tasks.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('My-v0', 'gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=8)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert cli.main(["train", *flags, *SHORT_TRAINING]) == 0
        if "my_tasks:My-v0" in flags:
            assert "plot --algo ppo_clip_paper --env my_tasks:My-v0\n" in capsys.readouterr().out
        else:
            assert "--env My-v0 --gym-packages my_tasks\n" in capsys.readouterr().out
        for command in (["enjoy", "-n", "8"], ["plot"], ["record", "-n", "8"]):
            assert cli.main([command[0], *flags, *command[1:]]) == 0, command
        for unknown in ("my_tasks", "My-v0"):  # as in another process
            (sys.modules if unknown == "my_tasks" else gym.registry).pop(unknown)
        run = "logs/ppo_clip_paper/My-v0_1"
        assert cli.main(["package", "--run", run, "--episodes", "2", "--workers", "2", "--no-film"]) == 0
        card = Path("trained_agents/My-v0/README.md").read_text()
        assert "\nimport my_tasks\n" in card
        assert "--gym-packages my_tasks" in card
    finally:
        sys.modules.pop("my_tasks", None)
        gym.registry.pop("My-v0", None)


def test_a_recipe_of_another_folder_and_its_name_in_curves(capsys: pytest.CaptureFixture[str]) -> None:
    task = "RoboschoolHumanoid-v1"
    few = ["-n", "64", "-params", "n_envs:2", "n_steps:32", "batch_size:64", "vec_env:'dummy'", *QUIET]
    assert cli.main(["train", "--env", task, "--recipe", "paper", *few]) == 0
    run = f"logs/ppo_clip_paper/{task}_1"
    kept = json.loads(Path(run, "run.json").read_text())
    assert (kept["settings"]["n_epochs"], kept["settings"]["batch_size"]) == (15, 64)  # of the recipe, of the command
    assert cli.main(["train", "--resume", run, "--until", "128"]) == 0
    for recipe in ([], ["--recipe", "another"]):
        assert cli.main(["package", "--run", run, "--curve-only", *recipe]) == 0
    kept["settings"] = zoo.shipped_settings("ppo_clip_paper", task, "paper")  # as without -params
    Path(run, "run.json").write_text(json.dumps(kept))
    assert cli.main(["package", "--run", run, "--curve-only"]) == 0
    recipes = [curve.recipe for curve in read_curves(Path("trained_agents", task))]
    assert recipes == ["custom", "another", "paper"]
    assert cli.main(["list"]) == 0
    assert f"paper  ppo_clip_paper  {task}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--recipe", "papre"],
            "recipe of ppo_clip_paper 'papre', did you mean 'paper'? (allowed: ours, paper)",
        ),
        (["--recipe", "paper"], "--recipe paper of ppo_clip_paper has settings for RoboschoolHumanoid-v1, Roboschool"),
        (
            ["--recipe", "paper", "--algo", "vanilla_pg_paper"],
            "recipe of vanilla_pg_paper 'paper' (allowed: ours)",
        ),
        (["--recipe", "paper", "-conf", "my.yml"], "--recipe and --conf-file both name a file of settings"),
    ],
)
def test_recipes_that_there_are_not(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *flags, *SHORT_TRAINING]) == 2
    assert message in only_error_line(capsys)
    assert not Path("logs").exists()


def test_ctrl_c_elsewhere_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "show_list", interrupted)
    assert cli.main(["list"]) == 130
    assert "interrupted" in only_error_line(capsys)
