"""Agents in folders: packaged from tiny runs, scored, played, continued, and drawn."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_variants import ALGORITHMS, PPOAdaptiveKLPaper, PPOClipPaper, cli, demo, load_policy, zoo
from sb3_ppo_variants.agents import curves, folder, package, scoring
from sb3_ppo_variants.envs import wrappers
from sb3_ppo_variants.envs.wrappers import EpisodePerFlag
from sb3_ppo_variants.files import folder_name
from sb3_ppo_variants.reproduce import figure4, figure5

TRAIN = ["train", "--eval-freq", "-1", "--verbose", "0", "--no-progress", "-n", "512"]
TINY = ["-params", "n_steps:64", "n_envs:2", "batch_size:64"]
FLAGRUN = "RoboschoolHumanoidFlagrun-v1"
HARDER = "RoboschoolHumanoidFlagrunHarder-v1"
PENDULUM = "logs/ppo_adaptive_kl_paper/Pendulum-v1_1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with runs in ``logs`` and their agents in ``trained_agents``."""
    room = tmp_path_factory.mktemp("agents")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(room)
        patch.delenv("DISPLAY", raising=False)
        patch.delenv("WAYLAND_DISPLAY", raising=False)
        normalized = ["--algo", "ppo_adaptive_kl_paper", "--env", "Pendulum-v1", *TINY, "normalize:True"]
        assert cli.main([*TRAIN, "--seed", "3", *normalized]) == 0
        # Wherever a flag is, it is reached at once.
        kwargs = ["--env-kwargs", "flag_radius:100.0", "max_episode_steps:8"]
        assert cli.main([*TRAIN, "--seed", "4", "--env", FLAGRUN, *TINY, "vec_env:dummy", *kwargs]) == 0
        assert cli.main(["package", "--run", PENDULUM, "--episodes", "2", "--no-film", "--recipe", "mine"]) == 0
        patch.setattr(package, "FILM_SECONDS", 0.1)
        assert cli.main(["package", "--run", f"logs/ppo_clip_paper/{FLAGRUN}_1", "--episodes", "3"]) == 0
        yield room


@pytest.fixture
def room(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to be in and to change."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(of: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in of.iterdir()}


# ------------------------------------------------------------------ what a folder holds


def test_a_folder_tells_where_its_agent_comes_from(room: Path) -> None:
    agent = folder.require_agent("Pendulum-v1", Path("trained_agents"))
    assert (agent.algo, agent.algorithm, agent.recipe, agent.seed, agent.timesteps) == (
        "ppo_adaptive_kl_paper",
        "PPOAdaptiveKLPaper",
        "mine",
        3,
        512,
    )
    assert agent.arguments is not None
    assert agent.arguments[agent.arguments.index("--seed") + 1] == "3"
    assert {"PyTorch", "Gymnasium"} <= set(agent.trained_with)
    others = {"agent.json", "README.md", "episodes.csv", "curves.jsonl"}
    assert set(contents(agent.folder)) == {*folder.PLAYED_FILES, *others}
    # The settings train the same run again.
    settings = yaml.safe_load((agent.folder / "config.yml").read_text())["Pendulum-v1"]
    assert (settings["n_timesteps"], settings["n_steps"], settings["normalize"]) == (512, 64, True)
    again = ["--algo", agent.algo, "--env", agent.env_id, "--seed", "3", "-f", "again"]
    assert cli.main([*TRAIN[:-2], *again, "--conf-file", str(agent.folder / "config.yml")]) == 0
    paths = [Path(PENDULUM.replace("logs", logs), "Pendulum-v1.zip") for logs in ("logs", "again")]
    first, second = (PPOAdaptiveKLPaper.load(path, device="cpu").policy.state_dict() for path in paths)
    assert all((first[name] == second[name]).all() for name in first)


def test_the_score_is_that_of_the_export_on_the_bare_task(room: Path) -> None:
    agent = folder.require_agent("Pendulum-v1", Path("trained_agents"))
    policy = load_policy(agent.folder, "cpu")
    returns = []
    for seed in (1000, 1001):
        env = gym.make("Pendulum-v1")
        observation, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action, _ = policy.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    assert agent.score["mean"] == pytest.approx(np.mean(returns), abs=0.01)
    assert agent.score["std"] == pytest.approx(np.std(returns), abs=0.01)
    assert (agent.score["terminated"], agent.score["mean_length"], agent.score["first_seed"]) == (0, 200, 1000)
    assert "flags_reached" not in agent.score
    rows = (agent.folder / "episodes.csv").read_text().splitlines()
    assert rows[1] == f"1000,{round(returns[0], 6)},200,0,,,"


def test_the_card_has_the_hubs_front_matter(room: Path) -> None:
    card = Path("trained_agents", FLAGRUN, "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["library_name"] == "stable-baselines3"
    (result,) = data["model-index"][0]["results"]
    agent = folder.require_agent(FLAGRUN, Path("trained_agents"))
    assert result["dataset"]["type"] == FLAGRUN
    assert result["metrics"][0]["value"] == f"{agent.score['mean']:.2f} +/- {agent.score['std']:.2f}"
    assert "| flags reached per episode | 9.00 |" in text
    assert "| falls (episodes that ended before their limit) | 0 of 3 |" in text
    assert "flag_radius=100.0" in text
    assert "[A film](film.mp4)" in text
    assert Path("trained_agents", FLAGRUN, "film.mp4").read_bytes()[4:8] == b"ftyp"


def test_an_interrupted_packaging_changes_nothing(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(room / "trained_agents" / "Pendulum-v1")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    for module, name in ((package, "play"), (package, "model_card")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupted)
            assert cli.main(["package", "--run", PENDULUM, "--episodes", "1", "--no-film"]) == 130
        assert contents(room / "trained_agents" / "Pendulum-v1") == before


def test_packaged_anew_it_keeps_the_curves_of_other_runs(room: Path) -> None:
    path = room / "trained_agents" / "Pendulum-v1" / "curves.jsonl"
    for recipe, expected in (("theirs", ["mine", "theirs"]), ("mine", ["mine", "theirs"])):
        assert cli.main(["package", "--run", PENDULUM, "--recipe", recipe, "--curve-only"]) == 0
        assert [curve.recipe for curve in curves.read_curves(path.parent)] == expected
    assert cli.main(["package", "--run", PENDULUM, "--episodes", "1", "--no-film"]) == 0
    assert [(curve.recipe, curve.seed) for curve in curves.read_curves(path.parent)] == [
        ("mine", 3),
        ("theirs", 3),
        ("custom", 3),
    ]
    assert folder.require_agent("Pendulum-v1", room / "trained_agents").score["episodes"] == 1


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("policy.safetensors", "policy.safetensors is not the file that agent.json belongs to"),
        ("config.yml", "config.yml is not the file that agent.json belongs to"),
        ("agent.json", "agent.json is none of a sb3-ppo-variants agent, version 1"),
    ],
)
def test_damage_is_named(file: str, message: str, room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("trained_agents/Pendulum-v1", file).write_text("{}")
    assert cli.main(["enjoy", "--env", "Pendulum-v1", "--shipped", "trained_agents"]) == 2
    assert message in capsys.readouterr().err


def edit(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text())
    for name, value in fields.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"wrapping": {"env_wrapper": "foreign.Wrapper"}},
            "must be of one of the packages gymnasium, rl_zoo3",
        ),
        ({"wrapping": {"env_wrapper": ["gymnasium.wrappers.NormalizeReward", "foreign.W"]}}, "got 'foreign.W'"),
        ({"wrapping": {"vec_env_wrapper": [{"foreign.W": {"n": 1}}]}}, "an agent's vec_env_wrapper must be of one of"),
        ({"wrapping": {"env_wrapper": "gymnasium_foreign.W"}}, "got 'gymnasium_foreign.W'"),
        (
            {"wrapping": {"env_wrapper": [{"sb3_ppo_variants.distillation.Handover": {"agent": "other"}}]}},
            "env_wrapper must not be sb3_ppo_variants.distillation.Handover, which plays with another agent's folder",
        ),
        ({"env_id": "foreign:Pendulum-v1"}, "must be the id of a task alone; got 'foreign:Pendulum-v1'"),
        ({"env_id": "CartPole-v1"}, "is of an agent for CartPole-v1, and must lie in a folder of that name"),
        ({"score": {"mean": None}}, "must have a number as 'mean'; got None"),
        ({"score": {"episodes": True}}, "must have a number as 'episodes'; got True"),
    ],
)
def test_a_folder_of_somebody_elses_is_not_trusted(
    fields: dict[str, Any],
    message: str,
    room: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("foreign.py").write_text("raise SystemExit('foreign code runs')")
    monkeypatch.syspath_prepend(str(room))
    edit(Path("trained_agents/Pendulum-v1/agent.json"), **fields)
    assert cli.main(["enjoy", "--env", "Pendulum-v1", "--shipped", "trained_agents"]) == 2
    assert message in capsys.readouterr().err


def test_no_folder_is_said(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["enjoy", "--env", "Pendulum-v1", "--shipped", "nowhere"]) == 2
    assert "there is no folder nowhere" in capsys.readouterr().err


def test_all_our_wrappers_are_for_training_alone() -> None:
    ours = {
        f"{wrappers.__name__}.{name}"
        for name, value in vars(wrappers).items()
        if isinstance(value, type) and issubclass(value, gym.Wrapper)
    }
    assert ours == set(zoo.TRAINING_WRAPPERS)


def test_wrappers_of_training_alone_are_not_played_with() -> None:
    per_flag, other = f"{EpisodePerFlag.__module__}.{EpisodePerFlag.__qualname__}", "gymnasium.wrappers.NormalizeReward"
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"env_wrapper": per_flag}, {}),
        ({"env_wrapper": [{per_flag: {}}], "frame_stack": 2}, {"frame_stack": 2}),
        ({"env_wrapper": [other, per_flag]}, {"env_wrapper": [other]}),
        ({"env_wrapper": [other, EpisodePerFlag]}, {"env_wrapper": [other]}),
        ({"env_wrapper": {EpisodePerFlag: {}}}, {}),
        ({"env_wrapper": {other: {"gamma": 0.9}}, "n_steps": 8}, {"env_wrapper": {other: {"gamma": 0.9}}}),
        ({"env_wrapper": None, "vec_env_wrapper": []}, {}),
    ]
    for settings, expected in cases:
        assert package.wrapping_to_play(settings) == expected


def test_a_run_with_a_training_wrapper_plays_whole_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    task = "RoboschoolHumanoidFlagrun-v1"
    wrapper = f"{EpisodePerFlag.__module__}.{EpisodePerFlag.__qualname__}"
    settings = [f"env_wrapper:['{wrapper}']", "n_envs:1", "vec_env:dummy", "n_steps:64", "batch_size:64", "n_epochs:1"]
    episodes = ["--env-kwargs", "max_episode_steps:60", "flag_timeout:20", "minimum_height:0.0"]
    training = ["train", "--env", task, "-n", "64", "--no-progress", *episodes, "-params", *settings]
    assert cli.main(training) == 0
    capsys.readouterr()
    assert cli.main(["enjoy", "--env", task, "-f", "logs", "-n", "60", "--no-render"]) == 0
    assert "Episode Length 60" in capsys.readouterr().out
    made: list[Any] = []
    stopped = RuntimeError("environment made")

    def make(*_: Any, hyperparams: dict[str, Any], **__: Any) -> Any:
        made.append(hyperparams["env_wrapper"])
        raise stopped

    for command in (["record"], ["push-to-hub", "-orga", "somebody", "--no-render"]):
        with monkeypatch.context() as patch:
            patch.setattr("rl_zoo3.utils.create_test_env", make)
            with pytest.raises(RuntimeError, match="environment made"):
                cli.main([*command, "--algo", "ppo_clip_paper", "--env", task, "-f", "logs"])
    assert made == [[], []]
    run = f"logs/ppo_clip_paper/{task}_1"
    assert cli.main(["package", "--run", run, "-o", "agents", "--episodes", "1", "--no-film"]) == 0
    agent = folder.require_agent(task, Path("agents"))
    assert agent.wrapping == {}
    assert wrapper in (agent.folder / "config.yml").read_text()


def test_an_agent_with_wrappers_of_ones_own_is_not_packaged(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(room / "trained_agents" / "Pendulum-v1")
    edit(Path(PENDULUM, "run.json"), settings={"env_wrapper": "foreign.Wrapper"})
    assert cli.main(["package", "--run", PENDULUM]) == 2
    assert "an agent's env_wrapper must be of one of the packages" in capsys.readouterr().err
    assert contents(room / "trained_agents" / "Pendulum-v1") == before


def test_a_card_tells_no_places_and_how_to_wrap(room: Path) -> None:
    edit(Path(PENDULUM, "run.json"), settings={"env_wrapper": "gymnasium.wrappers.NormalizeReward"})
    arguments = json.loads(Path(PENDULUM, "run.json").read_text())["arguments"]
    places = ["-f", str(room / "logs"), "--start-from", str(room / "agents" / "Other-v1"), "--env-kwargs", "g:9 .8"]
    places += ["--start-statistics", "0:0:0.5", "1:0:0.5", "--start-rescaled"]
    edit(Path(PENDULUM, "run.json"), arguments=[*arguments, *places])
    assert cli.main(["package", "--run", PENDULUM, "--episodes", "1", "--no-film"]) == 0
    agent = folder.require_agent("Pendulum-v1", Path("trained_agents"))
    card = (agent.folder / "README.md").read_text()
    assert str(room) not in card + (agent.folder / "agent.json").read_text()
    start = "--start-from Other-v1 --start-statistics 0:0:0.5 1:0:0.5 --start-rescaled"
    assert f"--env-kwargs 'g:9 .8' {start}` (" in card
    assert f" --seed 3 {start}\n" in (agent.folder / "config.yml").read_text()
    assert agent.recipe == "custom, from Other-v1"
    program = card.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    os.chdir(agent.folder.parent)
    exec(program, names)
    assert names["actions"].shape == (1, 1)
    names["env"].close()


def test_what_is_no_run_is_named(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (room / PENDULUM / "Pendulum-v1.zip").unlink()
    for run, message in (
        ("nowhere", "--run must name the folder of a run of ppo-variants train"),
        ("logs/tb", "--run must name the folder of a run of ppo-variants train"),
        (PENDULUM, "the run has not ended, or keeps no such model"),
    ):
        assert cli.main(["package", "--run", run]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["package", "--run", f"logs/ppo_clip_paper/{FLAGRUN}_1", "--episodes", "0"]) == 2
    assert "episodes must be an integer >= 1; got 0" in capsys.readouterr().err


# ------------------------------------------------------------------ curves


def test_a_curve_has_its_recipes_name_only_with_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for flags in (["-params", "vec_env:dummy"], ["-params", "gamma:0.9"], ["--algo", "ppo_unclipped_paper"]):
        assert cli.main([*TRAIN, "--seed", "1", "--env", "GridWorld-v0", *flags]) == 0
    for run in ("ppo_clip_paper/GridWorld-v0_1", "ppo_clip_paper/GridWorld-v0_2", "ppo_unclipped_paper/GridWorld-v0_1"):
        assert cli.main(["package", "--run", f"logs/{run}", "--curve-only"]) == 0
    kept = [(curve.recipe, curve.algo) for curve in curves.read_curves(Path("trained_agents/GridWorld-v0"))]
    assert kept == [("ours", "ppo_clip_paper"), ("custom", "ppo_clip_paper"), ("ours", "ppo_unclipped_paper")]
    path = Path("trained_agents/GridWorld-v0/curves.jsonl")
    path.write_text(path.read_text().replace("]]", "], [1, null, 2]]", 1))
    with pytest.raises(folder.AgentError, match=r"line 1 of .* is no curve: its points are not triples of numbers"):
        curves.read_curves(path.parent)


def test_a_curve_is_the_runs_progress(tmp_path: Path) -> None:
    header = "rollout/ep_rew_mean,time/time_elapsed,time/total_timesteps"
    rows = [f"{'' if step == 0 else step / 8},{step},{10 * (step + 1)}" for step in range(1000)]
    (tmp_path / "progress.csv").write_text("\n".join([header, *rows]))
    curve = curves.curve_of_run(tmp_path, "CartPole-v1", "ours", 0, "ppo_clip_paper")
    assert len(curve.curve) == curves.POINTS
    assert curve.curve[0] == [50, 0.5, 4]  # the last of the five rows of its part
    assert curve.curve[-1] == [10_000, 124.875, 999]
    assert (curve.timesteps, curve.mean_return, curve.wall_clock) == (10_000, 124.875, 999)
    until = curves.curve_of_run(tmp_path, "CartPole-v1", "ours", 0, "ppo_clip_paper", until=30)
    assert [point[0] for point in until.curve] == [20, 30]  # in the first row no episode had ended
    with pytest.raises(ValueError, match="no episode ended"):
        curves.curve_of_run(tmp_path, "CartPole-v1", "ours", 0, "ppo_clip_paper", until=10)


# ------------------------------------------------------------------ the humanoids' own numbers


@pytest.mark.parametrize(
    ("pose", "minimum_height", "got_up"),
    [("roll_over", 0.8, False), ("roll_over", 0.0, True), ("walk", 0.0, None)],
)
def test_a_get_up_is_a_time_off_the_ground(
    pose: str, minimum_height: float, got_up: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "UPRIGHT_STEPS", 5)
    chosen = tuple(float(pose == name) for name in ("walk", "stand_up", "roll_over"))
    kwargs = {"pose_probabilities": chosen, "minimum_height": minimum_height, "max_episode_steps": 7}

    class Still:
        @staticmethod
        def predict(_observations: Any, deterministic: bool) -> Any:
            assert deterministic
            return np.zeros((1, 17), np.float32), None

    env = zoo.make_played_env(HARDER, kwargs, {})
    episode = scoring._play_one(Still(), env, 1000)
    env.close()
    assert (episode.pose, episode.got_up, episode.length, episode.terminated) == (pose, got_up, 7, False)


def test_falls_flags_and_get_ups_are_counted() -> None:
    episodes = [
        scoring.Episode(1000, 10.0, 100, True, 1, "walk", None),
        scoring.Episode(1001, 20.0, 1000, False, 4, "roll_over", True),
        scoring.Episode(1002, 60.0, 170, True, 1, "stand_up", False),
    ]
    assert scoring.summarized(episodes) == {
        "episodes": 3,
        "first_seed": 1000,
        "deterministic": True,
        "mean": 30.0,
        "std": 21.6,  # √((20² + 10² + 30²) / 3)
        "min": 10.0,
        "max": 60.0,
        "mean_length": 423.33,
        "terminated": 2,
        "flags_reached": 2.0,
        "began_on_ground": 2,
        "got_up": 1,
    }


@pytest.mark.slow
def test_processes_score_as_one_does(room: Path) -> None:
    agent = folder.require_agent(FLAGRUN, Path("trained_agents"))
    player = scoring.Player(agent.folder, agent.env_id, agent.env_kwargs, agent.wrapping)
    assert scoring.play(player, 7, workers=2) == scoring.play(player, 7)


# ------------------------------------------------------------------ playing


def test_enjoy_and_record_play_what_ships_where_there_is_no_run(
    room: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zoo, "data_folder", lambda name: room / name)
    monkeypatch.setattr(folder, "data_folder", lambda name: room / name)
    assert cli.main(["list"]) == 0
    assert f"  {FLAGRUN}  ppo_clip_paper         mean return" in capsys.readouterr().out
    own = ["enjoy", "--env", FLAGRUN, "-n", "16"]
    assert cli.main(own) == 0  # a run of one's own comes first
    assert "Playing" not in capsys.readouterr().out
    assert cli.main([*own, "--shipped"]) == 0
    shown = capsys.readouterr().out
    assert f"Playing {FLAGRUN}: ppo_clip_paper, recipe 'custom', 512 timesteps; mean return" in shown
    assert "2 Episodes" in shown  # of eight steps: the run's env_kwargs hold
    shutil.rmtree("logs")
    assert cli.main([*own, "--stochastic", "--seed", "5"]) == 0
    shown = capsys.readouterr().out
    assert f"No run of ppo_clip_paper on {FLAGRUN} in logs: an agent that ships plays." in shown
    assert cli.main(["record", "--env", "Pendulum-v1", "-n", "5"]) == 0
    film = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("Film: "))
    assert film.parent == Path("videos")
    assert film.read_bytes()[4:8] == b"ftyp"
    for words in (["--env", "CartPole-v1"], ["--env", FLAGRUN, "--algo", "trpo"], ["--env", FLAGRUN, "--exp-id", "1"]):
        assert cli.main(["enjoy", *words]) == 2  # what is not there, or names a run
    error = capsys.readouterr().err
    assert f"none ships: there are agents for Pendulum-v1, {FLAGRUN}" in error
    import rl_zoo3

    assert rl_zoo3.ALGOS["ppo_clip_paper"] is PPOClipPaper  # as before


def test_an_agent_trains_on(room: Path) -> None:
    agent = folder.require_agent("Pendulum-v1", Path("trained_agents"))
    policy = load_policy(agent.folder, "cpu")
    env: Any = policy.vec_normalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), agent.timesteps)
    observation: Any = np.array([[0.3, -0.9, 2.0]])
    assert np.array_equal(env.normalize_obs(observation), policy.normalize_obs(observation))
    model = PPOClipPaper("MlpPolicy", env, n_steps=32, batch_size=32, device="cpu")
    model.policy.load_state_dict(policy.policy.state_dict())
    played = model.predict(env.normalize_obs(observation), deterministic=True)[0]
    assert np.array_equal(played, policy.predict(observation, deterministic=True)[0])
    model.learn(32)
    assert env.obs_rms.count == pytest.approx(agent.timesteps + 33)
    with pytest.raises(ValueError, match="count must be a number > 0; got 0"):
        policy.vec_normalize(env.venv, 0)


def test_the_demo_shows_what_ships(
    room: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "FILM_SECONDS", 0.1)
    monkeypatch.setattr(demo, "find_agent", lambda _task: None)
    demo.show_shipped(room / "film.mp4")
    assert capsys.readouterr().out == ""
    agent = folder.require_agent(FLAGRUN, Path("trained_agents"))
    monkeypatch.setattr(demo, "find_agent", lambda _task: agent)
    demo.show_shipped(room / "film.mp4")
    assert "the agent that ships: RoboschoolHumanoidFlagrun-v1" in capsys.readouterr().out
    assert (room / "film.mp4").read_bytes()[4:8] == b"ftyp"


# ------------------------------------------------------------------ the Hub


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_push_to_hub_knows_our_algorithms(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["push-to-hub", "--algo", algo, "--env", "CartPole-v1", "-f", "logs", "-orga", "somebody"]
    assert cli.main(command) == 2
    assert f"The logs/{algo} folder was not found" in capsys.readouterr().err


def test_push_to_hub_takes_the_best_models_normaliser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rl_zoo3

    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "vecnormalize.pkl").touch()
    wrapper = f"{EpisodePerFlag.__module__}.{EpisodePerFlag.__qualname__}"
    (tmp_path / "config.yml").write_text(f"normalize: true\nenv_wrapper: {wrapper}\n")
    found: list[str | None] = []

    def script(*_: Any) -> None:  # its own import is `from rl_zoo3 import get_saved_hyperparams`
        hyperparams, normaliser = rl_zoo3.get_saved_hyperparams(str(tmp_path))
        assert hyperparams["env_wrapper"] == wrapper  # for the card
        found.append(normaliser)

    monkeypatch.setattr(zoo, "_run_script", script)
    for flags in ([], ["--load-best"], []):
        assert cli.main(["push-to-hub", *flags]) == 0
    assert found == [str(tmp_path), str(tmp_path / "best"), str(tmp_path)]


@pytest.mark.slow
def test_push_to_hub_reaches_the_upload(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    uploads: list[dict[str, Any]] = []

    class Hub:
        def create_repo(self, **_: Any) -> str:
            return "https://example.org"

        def snapshot_download(self, repo_id: str, local_dir: Path) -> None:
            assert repo_id == "somebody/ppo_adaptive_kl_paper-Pendulum-v1"
            local_dir.mkdir(parents=True)

        def upload_folder(self, **arguments: Any) -> None:
            uploads.append(arguments)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    chosen = ["--algo", "ppo_adaptive_kl_paper", "--env", "Pendulum-v1", "-f", "logs", "-orga", "somebody"]
    assert cli.main(["push-to-hub", *chosen, "--no-render"]) == 0
    (upload,) = uploads
    names = {path.name for path in Path(upload["folder_path"]).iterdir()}
    assert {"README.md", "config.yml", "vec_normalize.pkl", "ppo_adaptive_kl_paper-Pendulum-v1.zip"} <= names


# ------------------------------------------------------------------ the figures


def test_figure4_tells_what_is_there_and_what_is_missing(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = f"logs/ppo_clip_paper/{FLAGRUN}_1"
    assert cli.main(["package", "--run", run, "--recipe", "paper", "--curve-only"]) == 0
    assert cli.main(["reproduce", "figure4", "--agents", "trained_agents", "-o", "out"]) == 0
    shown = capsys.readouterr().out
    assert "custom, seed 4" in shown
    assert "Table 4 as written, seed 4" in shown
    assert "its agent, deterministic, 3 episodes" in shown
    assert "No curve of RoboschoolHumanoid-v1 yet." in shown
    assert f"No curve of {FLAGRUN} yet." not in shown
    assert Path("out/figure4.svg").read_text().startswith("<?xml")
    assert Path("out/figure4.png").read_bytes().startswith(b"\x89PNG")
    found = figure4.gathered(figure4.TASKS, Path("trained_agents"))
    axes = figure4.draw(found).axes[1]
    assert axes.get_title().splitlines()[1:] == ["custom: seed 4", "Table 4 as written: seed 4"]
    (line,) = [line for line in axes.get_lines() if line.get_label() == "custom"]
    assert list(line.get_ydata()) == [point[1] for point in found.curves[FLAGRUN][0].curve]
    (mark,) = [line for line in axes.get_lines() if line.get_label() == "our agent, deterministic"]
    agent = found.agents[FLAGRUN]
    assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([agent.timesteps], [agent.score["mean"]])
    low, high = axes.get_ylim()
    assert low <= agent.score["mean"] <= high


def test_figure5_is_a_flag_that_is_reached(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure5, "OFFSETS", (-1, 0, 2))
    monkeypatch.setattr(figure5, "FRAME_SIZE", 60)
    turn, files = figure5.figure5(agents="trained_agents", episodes=1, output="out")
    assert turn.seed == 1000
    assert 1 <= turn.step <= 6
    assert [path.name for path in files] == ["figure5.png", "figure5.svg"]
    frames = figure5._frames(folder.require_agent(FLAGRUN, Path("trained_agents")), turn)
    assert [frame.shape for frame in frames] == [(60, 60, 3)] * 3
    monkeypatch.setattr(figure5, "OFFSETS", (-1, 0, 20))
    with pytest.raises(ValueError, match="reaches no flag, and runs on, in 1 episodes"):
        figure5.figure5(agents="trained_agents", episodes=1, output="out")


def test_figures_without_agents_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--agents", str(tmp_path), "-o", str(tmp_path / "out")]
    assert cli.main(["reproduce", "figure5", *where]) == 2
    assert f"there is no agent for {FLAGRUN} in {tmp_path}; there are agents for no task yet" in capsys.readouterr().err
    nothing = figure4.gathered(figure4.TASKS, tmp_path)
    assert figure4.described(nothing).count("No curve of ") == 3
    words = [text.get_text() for axes in figure4.draw(nothing).axes for text in axes.texts]
    assert words == ["no run yet"] * 3


def test_what_ships_can_be_played() -> None:
    """The agents that there are by now: they are whole, small enough, and for a task that is known."""
    shipped = folder.shipped_agents()
    assert (shipped / "README.md").is_file()
    agents = folder.list_agents()
    assert "RoboschoolHumanoid-v1" in [agent.env_id for agent in agents]
    for agent in agents:
        assert agent.folder.name == folder_name(agent.env_id)
        assert agent.env_id in gym.registry
        assert agent.score["episodes"] == 100
        load_policy(agent.folder, "cpu")
        size = sum(file.stat().st_size for file in agent.folder.iterdir() if file.suffix != ".mp4")
        assert size <= 1_000_000


@pytest.mark.parametrize("task", ["RoboschoolHumanoid-v1", FLAGRUN, HARDER])
@pytest.mark.parametrize("page", ["README.md", "docs/reproduction.md", "CHANGELOG.md"])
def test_the_score_of_what_ships_is_told_as_it_was_measured(page: str, task: str) -> None:
    agent = folder.require_agent(task)
    mean, std = round(agent.score["mean"]), round(agent.score["std"])
    text = " ".join((Path(__file__).parents[1] / page).read_text(encoding="utf-8").split())
    over = " over 100 episodes" if task == "RoboschoolHumanoid-v1" else ""
    told = {
        "README.md": f"{mean} ± {std}{over}, {agent.score['terminated']} falls",
        "docs/reproduction.md": f"its agent {mean:,} ± {std};",
        "CHANGELOG.md": f"{task}, a mean return of {mean} after {agent.timesteps / 1e6:.1f}M timesteps",
    }
    assert told[page] in text


def test_fig_4_has_the_readmes_scores_of_openais_agents() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for task, score in figure4.OPENAI_AGENTS.items():
        name, _, version = task.rpartition("-")
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{name}` |") and "±" in line)
        cell = row.split("|")[2 if version == "v1" else 4]
        assert cell.split("±")[0].strip() == str(score)
