"""The folder of a trained agent: its files, and reading what tells of it. Without torch, for the command line.

``<agents>/<task>/`` holds an export (``policy.json`` and ``policy.safetensors``) and beside it ``agent.json`` (where it
comes from, its score, checksums), ``config.yml``, ``episodes.csv``, ``README.md``, ``film.mp4``, and ``curves.jsonl``:
the learning curves of all runs on the task that were kept, the agent's own among them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sb3_ppo_variants.arguments import is_number
from sb3_ppo_variants.export_files import DESCRIPTION_FILE, MAX_JSON_BYTES, WEIGHTS_FILE, read_file
from sb3_ppo_variants.files import folder_name
from sb3_ppo_variants.safe_yaml import WRAPPER_KEYS
from sb3_ppo_variants.schema import names_in
from sb3_ppo_variants.zoo import data_folder

AGENTS = "trained_agents"
"""name of the folder of those that ship, and of the one that ``ppo-variants package`` writes to"""
AGENT_FILE = "agent.json"
CONFIG_FILE = "config.yml"
EPISODES_FILE = "episodes.csv"
CARD_FILE = "README.md"
FILM_FILE = "film.mp4"
PLAYED_FILES = (DESCRIPTION_FILE, WEIGHTS_FILE, CONFIG_FILE)
"""what is played depends on these: ``agent.json`` has their checksums"""
WRAPPING_KEYS = (*WRAPPER_KEYS, "frame_stack")
"""settings of a run that an agent needs to see the task as it did"""

WRAPPERS_OF = ("gymnasium", "rl_zoo3", "sb3_contrib", "sb3_ppo_variants", "stable_baselines3")
"""packages whose wrappers an agent may name: a folder may be anybody's, and no other code is imported for it"""
HANDOVER = "sb3_ppo_variants.distillation.Handover"
"""a wrapper of ours that an agent may not name: it plays with another agent"""

FORMAT = "sb3-ppo-variants agent"
VERSION = 1


class AgentError(ValueError):
    """A folder that is no agent's, or not a complete one; the message says which file and why."""


class Agent(NamedTuple):
    """What ``agent.json`` tells; its fields in this order, but for the folder."""

    folder: Path
    env_id: str
    env_kwargs: dict[str, Any]
    wrapping: dict[str, Any]
    """those of the run's settings that are in ``WRAPPING_KEYS``"""
    algo: str
    """the algorithm's name on the command line"""
    algorithm: str
    """its class"""
    recipe: str
    """what its settings are called in curves"""
    seed: int | None
    """of the training; None: there was none"""
    timesteps: int
    """of the training"""
    wall_clock: float | None
    """of the training, s; None: the run has no ``progress.csv``"""
    arguments: list[str] | None
    """of ``ppo-variants train``, without settings and folders; None: the run has no ``run.json``"""
    trained_with: dict[str, str]
    """versions, as the model's zip has them"""
    score: dict[str, Any]
    """of :func:`~sb3_ppo_variants.agents.scoring.summarized`"""
    scored_with: dict[str, str]
    """versions of the packages that the score was measured with"""

    def described(self) -> str:
        """In one line: what it is, and what it scores."""
        score = self.score
        return (
            f"{self.env_id}: {self.algo}, recipe {self.recipe!r}, {self.timesteps:,} timesteps; mean return "
            f"{score['mean']:.0f} ± {score['std']:.0f} over {score['episodes']} episodes"
        )


def shipped_agents() -> Path:
    """The folder of the agents that come with the package."""
    return data_folder(AGENTS)


def find_agent(env_id: str, agents: Path | None = None) -> Agent | None:
    """A task's agent; None where there is none.

    :param agents: the folder to look in; None: that of those that ship
    :raises AgentError: if there is one, but it cannot be used
    """
    folder = (agents or shipped_agents()) / folder_name(env_id)
    return read_agent(folder) if (folder / AGENT_FILE).exists() else None


def require_agent(env_id: str, agents: Path | None = None) -> Agent:
    """A task's agent.

    :param agents: as for :func:`find_agent`
    :raises AgentError: if there is none; says for which tasks there are
    """
    if agents is not None and not agents.is_dir():
        raise AgentError(f"there is no folder {agents}")
    agent = find_agent(env_id, agents)
    if agent is None:
        raise AgentError(f"there is no agent for {env_id} in {agents or shipped_agents()}; {told_of(agents)}")
    return agent


def list_agents(agents: Path | None = None) -> list[Agent]:
    """All agents of a folder, by their names.

    :param agents: as for :func:`find_agent`
    :raises AgentError: if one of them cannot be used
    """
    return [read_agent(path.parent) for path in _agent_files(agents)]


def told_of(agents: Path | None = None) -> str:
    """For messages: the tasks that have an agent."""
    names = [path.parent.name for path in _agent_files(agents)]
    return f"there are agents for {', '.join(names)}" if names else "there are agents for no task yet"


def _agent_files(agents: Path | None) -> list[Path]:
    return sorted((agents or shipped_agents()).glob(f"*/{AGENT_FILE}"))


def read_agent(folder: Path) -> Agent:
    """Read ``agent.json``, and hold the files that are played to its checksums.

    :raises AgentError: if it is none, or one of those files is not the one it belongs to
    """
    path = folder / AGENT_FILE
    try:
        content: Any = json.loads(read_file(path, 1, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise AgentError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise AgentError(f"{path} is none of a {FORMAT}, version {VERSION}")
    agent = Agent(folder, **{name: _field(content, name, path) for name in Agent._fields[1:]})
    _check(agent, path)
    for name in PLAYED_FILES:
        if _field(content, "sha256", path).get(name) != _sha256(folder / name):
            raise AgentError(f"{folder / name} is not the file that {AGENT_FILE} belongs to (sha256): package it anew")
    return agent


def _check(agent: Agent, path: Path) -> None:
    if ":" in agent.env_id:  # gymnasium would import the module before it
        raise AgentError(f"'env_id' in {path} must be the id of a task alone; got {agent.env_id!r:.80}")
    if folder_name(agent.env_id) != agent.folder.resolve().name:
        raise AgentError(f"{path} is of an agent for {agent.env_id}, and must lie in a folder of that name")
    wrong = [name for name in SCORE_FIELDS if not is_number(agent.score.get(name))]
    if wrong:
        raise AgentError(f"'score' in {path} must have a number as {wrong[0]!r}; got {agent.score.get(wrong[0])!r:.80}")
    try:
        check_wrappers(agent.wrapping)
    except ValueError as error:
        raise AgentError(f"{path}: {error}") from None


def check_wrappers(wrapping: Mapping[str, Any]) -> None:
    """Check that an agent needs no code but that of ``WRAPPERS_OF``, and no other agent.

    :param wrapping: settings of ``WRAPPING_KEYS``
    :raises ValueError: if it does; names the wrapper
    """
    for key in WRAPPER_KEYS:
        for name in names_in(wrapping.get(key)):
            if name is not None and (not isinstance(name, str) or name.partition(".")[0] not in WRAPPERS_OF):
                packages = ", ".join(WRAPPERS_OF)
                raise ValueError(f"an agent's {key} must be of one of the packages {packages}; got {name!r:.80}")
            if name == HANDOVER:
                raise ValueError(
                    f"an agent's {key} must not be {name}, which plays with another agent's folder: go on without it "
                    "for an update, to play the learner alone"
                )


SCORE_FIELDS = ("mean", "std", "min", "max", "mean_length", "terminated", "episodes", "first_seed")
"""of a score, what every task's has"""

_TYPES: dict[str, tuple[type, ...]] = {
    "env_id": (str,),
    "env_kwargs": (dict,),
    "wrapping": (dict,),
    "algo": (str,),
    "algorithm": (str,),
    "recipe": (str,),
    "seed": (int, type(None)),
    "timesteps": (int,),
    "wall_clock": (int, float, type(None)),
    "arguments": (list, type(None)),
    "trained_with": (dict,),
    "score": (dict,),
    "scored_with": (dict,),
    "sha256": (dict,),
}


def _field(content: Mapping[str, Any], name: str, path: Path) -> Any:
    if name not in content or not isinstance(content[name], _TYPES[name]):
        kinds = " or ".join("null" if kind is type(None) else kind.__name__ for kind in _TYPES[name])
        raise AgentError(f"{name!r} in {path} must be {kinds}; got {content.get(name)!r:.80}")
    return content[name]


def agent_json(agent: Agent, played: Mapping[str, bytes]) -> bytes:
    """The content of ``agent.json``.

    :param played: the contents of ``PLAYED_FILES``
    """
    sums = {name: hashlib.sha256(played[name]).hexdigest() for name in PLAYED_FILES}
    fields = {name: value for name, value in agent._asdict().items() if name != "folder"}
    content = {"format": FORMAT, "version": VERSION, **fields, "sha256": sums}
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
