"""A run of ours as the folder of an agent: exported, scored, filmed, and written in one go."""

from __future__ import annotations

import json
import shlex
import tempfile
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from sb3_ppo_variants.agents.card import model_card
from sb3_ppo_variants.agents.curves import CURVES_FILE, PROGRESS_FILE, curve_of_run, curves_jsonl, read_curves
from sb3_ppo_variants.agents.folder import (
    AGENT_FILE,
    CARD_FILE,
    CONFIG_FILE,
    EPISODES_FILE,
    FILM_FILE,
    PLAYED_FILES,
    WRAPPING_KEYS,
    Agent,
    agent_json,
    check_wrappers,
)
from sb3_ppo_variants.agents.scoring import (
    EPISODES,
    FIRST_SEED,
    Episode,
    Player,
    episodes_csv,
    play,
    summarized,
)
from sb3_ppo_variants.arguments import check_names
from sb3_ppo_variants.export_command import ALGORITHM_CLASSES, export_run
from sb3_ppo_variants.files import atomic_write, atomic_write_all, folder_name
from sb3_ppo_variants.runs import RUN_FILE, begun_with, modules_of, read_run, start_flags, without_places
from sb3_ppo_variants.safe_yaml import load_run_yaml
from sb3_ppo_variants.zoo import VEC_ENV_KEY, shipped_settings, without_training_wrappers

FILM_SECONDS = 10.0
CUSTOM_RECIPE = "custom"
"""what settings are called that no recipe has"""
_OF_THE_RUN = {"n_timesteps": None, VEC_ENV_KEY: None}
"""settings that are no recipe's: its length, and which processes step the environments, with the same results"""
SCORED_WITH = ("sb3-ppo-variants", "stable_baselines3", "torch", "numpy", "gymnasium", "pybullet")
TRAINED_WITH = ("Python", "Stable-Baselines3", "PyTorch", "Numpy", "Gymnasium")
"""of the lines that SB3 writes into a model's zip"""


class RunToPackage(NamedTuple):
    """What a run's folder tells, without opening its zip's pickles."""

    folder: Path
    name: str
    """of the task, in names of files"""
    env_id: str
    env_kwargs: dict[str, Any]
    algo: str
    settings: dict[str, Any]
    """of the task, in the form of ``zoo_configs``"""
    arguments: list[str] | None

    @property
    def recipe(self) -> str:
        """What its settings are called: those of a recipe that ships by its name, but for length and workers."""
        recipe, start = begun_with(self.arguments or [])
        shipped = shipped_settings(self.algo, self.env_id, recipe)
        if shipped is None or {**shipped, **_OF_THE_RUN} != {**self.settings, **_OF_THE_RUN}:
            recipe = CUSTOM_RECIPE
        return recipe if start is None else f"{recipe}, from {start.name}"

    @property
    def described(self) -> Path:
        """The folder with ``config.yml`` and the normaliser's statistics."""
        return self.folder / self.name


class Trained(NamedTuple):
    """What a model's zip tells."""

    path: Path
    seed: int | None
    timesteps: int
    versions: dict[str, str]


def wrapping_to_play(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a run's settings that its agent needs to see the task as it did."""
    wrapping = {key: settings[key] for key in WRAPPING_KEYS if settings.get(key) is not None}
    return {key: value for key, value in without_training_wrappers(wrapping).items() if value != []}


def package(
    run: Path,
    agents: Path,
    *,
    recipe: str | None = None,
    load_best: bool = False,
    episodes: int = EPISODES,
    workers: int = 1,
    with_film: bool = True,
) -> Agent:
    """Export a run's agent, score it, film it, and write or replace its folder.

    Nothing in the folder changes before all is there; then all files are replaced or, after a failure, none. The
    curves of other runs that the folder holds stay. Opens the run's zip and pickle, which run what code they hold.

    :param run: the run's folder, ``<logs>/<algo>/<task>_<number>``
    :param agents: the folder of agents
    :param recipe: what the run's settings are called in curves; None: the recipe that has them, or ``"custom"``, and
        the agent that the run began with
    :param load_best: take the best model of the evaluations, not the last
    :param episodes: of the score
    :param workers: processes that score
    :param with_film: False: without, and a film that is there is removed
    :raises ValueError: for a run that cannot be packaged; says what it lacks
    """
    known = read_run_to_package(run)
    wrapping = wrapping_to_play(known.settings)
    check_wrappers(wrapping)
    recipe = recipe or known.recipe
    trained = _read_zip(run / ("best_model.zip" if load_best else f"{known.name}.zip"))
    folder = agents / folder_name(known.env_id)
    curve = None
    if (run / PROGRESS_FILE).is_file():  # of the runs of SB3's own algorithms there is none
        curve = curve_of_run(run, known.env_id, recipe, trained.seed, known.algo, trained.timesteps)
    before = read_curves(folder)
    with tempfile.TemporaryDirectory() as staged:
        export_run(known.algo, trained.path, known.described, Path(staged), best=load_best)
        contents = {name: Path(staged, name).read_bytes() for name in PLAYED_FILES if name != CONFIG_FILE}
        player = Player(Path(staged), known.env_id, known.env_kwargs, wrapping, modules_of(known.arguments or []))
        played = play(player, episodes, workers)
        if with_film:
            contents[FILM_FILE] = _filmed(player, Path(staged, FILM_FILE))
    agent = Agent(
        folder=folder,
        env_id=known.env_id,
        env_kwargs=known.env_kwargs,
        wrapping=wrapping,
        algo=known.algo,
        algorithm=ALGORITHM_CLASSES[known.algo].rpartition(".")[2],
        recipe=recipe,
        seed=trained.seed,
        timesteps=trained.timesteps,
        wall_clock=None if curve is None else curve.wall_clock,
        arguments=None if known.arguments is None else without_places(known.arguments),
        trained_with=trained.versions,
        score=summarized(played),
        scored_with=_installed(),
    )
    contents[CONFIG_FILE] = _config(known, trained)
    if curve is not None:
        contents[CURVES_FILE] = curves_jsonl(before, curve)
    _write(agent, contents, played)
    return agent


def add_curve(run: Path, agents: Path, *, recipe: str | None = None) -> Path:
    """Keep a run's learning curve among those of its task, without packaging its agent.

    :param run: the run's folder; one that still trains will do
    :param agents: the folder of agents
    :param recipe: as of :func:`package`; a curve of the same recipe, algorithm and seed is replaced
    :return: the file with the curves
    :raises ValueError: for a run that has none
    """
    known = read_run_to_package(run)
    args = load_run_yaml(known.described / "args.yml", {"seed"})
    curve = curve_of_run(run, known.env_id, recipe or known.recipe, args["seed"], known.algo)
    folder = agents / folder_name(known.env_id)
    content = curves_jsonl(read_curves(folder), curve)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / CURVES_FILE, content)
    return folder / CURVES_FILE


def read_run_to_package(run: Path) -> RunToPackage:
    """What a run's folder tells of how it was made, read as data.

    :raises ValueError: for a folder that is none of ``ppo-variants train``
    """
    name = run.resolve().name.rpartition("_")[0]
    described = run / name
    if not name or not (described / "args.yml").is_file():
        raise ValueError(
            "--run must name the folder of a run of ppo-variants train, <logs>/<algo>/<task>_<number>, with an "
            f"args.yml in a folder of the task's name; got {run}"
        )
    args = load_run_yaml(described / "args.yml", {"algo", "env", "env_kwargs", "n_timesteps", "seed"})
    config = load_run_yaml(described / "config.yml", {"normalize", *WRAPPING_KEYS})
    if not isinstance(args, dict) or not isinstance(config, dict):
        raise ValueError(f"args.yml and config.yml in {described} must be mappings")
    check_names("algorithm", [args.get("algo")], ALGORITHM_CLASSES)
    has_run = (run / RUN_FILE).is_file()
    kept = read_run(run) if has_run else None
    settings = dict(config if kept is None or kept.settings is None else kept.settings)
    if isinstance(args.get("n_timesteps"), int) and args["n_timesteps"] > 0:
        settings["n_timesteps"] = args["n_timesteps"]
    env_kwargs = {**(settings.get("env_kwargs") or {}), **(args.get("env_kwargs") or {})}
    arguments = None if kept is None else kept.arguments
    return RunToPackage(run, name, args["env"], env_kwargs, args["algo"], settings, arguments)


def _read_zip(path: Path) -> Trained:
    """What a model's zip tells in plain JSON and text; nothing is unpickled."""
    if not path.is_file():
        raise ValueError(f"there is no {path}: the run has not ended, or keeps no such model")
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
            lines = archive.read("system_info.txt").decode().splitlines()
        seed, timesteps = data["seed"], int(data["num_timesteps"])
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no model that SB3 saved: {error}") from None
    told = dict(line.removeprefix("- ").split(": ", 1) for line in lines if ": " in line)
    return Trained(path, seed, timesteps, {name: told[name] for name in TRAINED_WITH if name in told})


def _installed() -> dict[str, str]:
    return {name: metadata.version(name) for name in SCORED_WITH}


def _config(known: RunToPackage, trained: Trained) -> bytes:
    import yaml

    words = ["ppo-variants", "train", "--algo", known.algo, "--env", known.env_id, "--conf-file", CONFIG_FILE]
    words += [] if trained.seed is None else ["--seed", str(trained.seed)]
    command = shlex.join([*words, *start_flags(known.arguments or [])])
    entry = yaml.safe_dump({known.env_id: _plain(known.settings)}, sort_keys=False)
    return f"# The settings that this agent's run ended with. To train with them: {command}\n{entry}".encode()


def _plain(value: Any) -> Any:
    """Settings without the tuples that YAML has no form for."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _filmed(player: Player, path: Path) -> bytes:
    from sb3_ppo_variants.film import film

    with player.opened(render_mode="rgb_array") as (policy, env):
        film(policy, env, path, FILM_SECONDS, FIRST_SEED)
    return path.read_bytes()


def _write(agent: Agent, contents: dict[str, bytes], played: list[Episode]) -> None:
    """Write all files or none; ``agent.json``, without which there is no agent, last."""
    contents[EPISODES_FILE] = episodes_csv(played)
    contents[CARD_FILE] = model_card(agent, FILM_FILE in contents)
    contents[AGENT_FILE] = agent_json(agent, contents)
    agent.folder.mkdir(parents=True, exist_ok=True)
    atomic_write_all({agent.folder / name: data for name, data in contents.items()})
    if FILM_FILE not in contents:
        (agent.folder / FILM_FILE).unlink(missing_ok=True)
