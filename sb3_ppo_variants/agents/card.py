"""An agent's model card: a README with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from sb3_ppo_variants.agents.folder import CONFIG_FILE, EPISODES_FILE, FILM_FILE, Agent
from sb3_ppo_variants.files import folder_name
from sb3_ppo_variants.runs import modules_of


def model_card(agent: Agent, has_film: bool) -> bytes:
    """The card's content.

    Its metadata are those of rl_zoo3's ``push_to_hub``: the Hub lists the mean return among the results of the task.
    """
    from huggingface_hub import EvalResult, ModelCardData

    score = agent.score
    kind = "reinforcement-learning"
    result = EvalResult(
        task_type=kind,
        task_name=kind,
        dataset_type=agent.env_id,
        dataset_name=agent.env_id,
        metric_type="mean_reward",
        metric_name="mean_reward",
        metric_value=f"{score['mean']:.2f} +/- {score['std']:.2f}",
        verified=False,
    )
    metadata = ModelCardData(
        library_name="stable-baselines3",
        tags=[agent.env_id, "deep-reinforcement-learning", kind, "stable-baselines3", "sb3-ppo-variants"],
        model_name=agent.algorithm,
        eval_results=[result],
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{_text(agent, has_film)}".encode()


def _text(agent: Agent, has_film: bool) -> str:
    score = agent.score
    last_seed = score["first_seed"] + score["episodes"] - 1
    rows = "\n".join(f"| {name} | {value} |" for name, value in _rows(agent).items())
    film = f"\n[A film]({FILM_FILE}) of it.\n" if has_film else ""
    name = folder_name(agent.env_id)
    modules = modules_of(agent.arguments or [])
    packages = f" --gym-packages {' '.join(modules)}" if modules else ""
    trained = ""
    if agent.arguments is not None:
        command = f"ppo-variants train {shlex.join(agent.arguments)}"
        trained = (
            f"Begun with: `{command}` (`-n` is the last `--until`'s, if there was one; what else changed on the way is "
            "in `config.yml` as it was in the end)."
        )
    return f"""\
# {agent.algorithm} on {agent.env_id}

An agent of sb3-ppo-variants. Its policy is `policy.json` and `policy.safetensors`, which hold numbers and names alone:
nothing is run when they are loaded. The normaliser of its observations is among them.
{film}
## Score

Deterministic actions, one episode from each of the seeds {score["first_seed"]} to {last_seed}, measured on this export
and not on the model that it was made of; `{EPISODES_FILE}` has every episode.

| | |
|---|---|
{rows}

## Use

With `sb3-ppo-variants[zoo]` installed:

```sh
ppo-variants enjoy --env {agent.env_id} --shipped FOLDER{packages}   # the folder that holds the folder {name}
```

{_in_python(agent, name)}
## Training

{agent.timesteps:,} timesteps{_duration(agent.wall_clock)}, seed {agent.seed}; its last settings are in `{CONFIG_FILE}`.
{trained}
Trained with {_versions(agent.trained_with)}.
Scored with {_versions(agent.scored_with)}.
"""


def _in_python(agent: Agent, name: str) -> str:
    """How to play it from Python; where its task is wrapped, SB3's shapes are those of ``make_played_env``."""
    kwargs = "".join(f", {key}={value!r}" for key, value in agent.env_kwargs.items())
    own = "".join(f"import {module}\n" for module in modules_of(agent.arguments or []))
    if not agent.wrapping:
        return f"""\
```python
import gymnasium as gym

{own}import sb3_ppo_variants
from sb3_ppo_variants import load_policy

policy = load_policy("{name}")
env = gym.make("{agent.env_id}"{kwargs})
observation, _ = env.reset(seed={agent.score["first_seed"]})
action, _ = policy.predict(observation, deterministic=True)
```
"""
    return f"""\
```python
{own}from sb3_ppo_variants import load_policy
from sb3_ppo_variants.zoo import make_played_env

policy = load_policy("{name}")
env = make_played_env("{agent.env_id}", {agent.env_kwargs!r}, {agent.wrapping!r})  # a VecEnv, wrapped as in training
env.seed({agent.score["first_seed"]})
actions, _ = policy.predict(env.reset(), deterministic=True)
```
"""


def _rows(agent: Agent) -> dict[str, str]:
    score = agent.score
    is_humanoid = "RoboschoolHumanoid" in agent.env_id
    ended = (
        "falls (episodes that ended before their limit)" if is_humanoid else "episodes that ended before their limit"
    )
    rows = {
        "mean return": f"{score['mean']:.1f} ± {score['std']:.1f} (standard deviation)",
        "smallest, largest return": f"{score['min']:.1f}, {score['max']:.1f}",
        "mean length, steps": f"{score['mean_length']:.1f}",
        ended: f"{score['terminated']} of {score['episodes']}",
    }
    if "flags_reached" in score:
        rows["flags reached per episode"] = f"{score['flags_reached']:.2f}"
    if "got_up" in score:
        rows["got up, of those that began on the ground"] = f"{score['got_up']} of {score['began_on_ground']}"
    return rows


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f" in {seconds / 3600:.1f} hours" if seconds >= 3600 else f" in {seconds / 60:.1f} minutes"


def _versions(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
