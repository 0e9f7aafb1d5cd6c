"""Who trains agents an iteration at a time may look at them in between, and stop whenever."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.env_util import make_vec_env

from sb3_ppo_variants import BundleError, PPOClipPaper, PPOUnclippedPaper, train_many
from sb3_ppo_variants.many.agent import Agent
from sb3_ppo_variants.many.training import begun, close, iterations
from sb3_ppo_variants.resume.folder import RunFolder
from sb3_ppo_variants.resume.names import bundle_name, bundle_paths
from tests.many.cases import distance
from tests.resume.runs import RandomWalk

# An iteration is two episodes.
SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 8, "n_epochs": 2}


def agents_on(env: Any, algorithms: list[Any]) -> list[Agent]:
    return [
        Agent(kind("MlpPolicy", make_vec_env(env), seed=seed, device="cpu", **SMALL, **own), f"{seed}")
        for seed, (kind, own) in enumerate(algorithms)
    ]


def use(folder: Path) -> None:
    """Own a folder for a moment."""
    with RunFolder(folder).owned():
        pass


def steps(agents: list[Agent]) -> list[int]:
    return [agent.model.num_timesteps for agent in agents]


def test_one_looks_before_the_first_iteration_and_after_each() -> None:
    agents = agents_on(RandomWalk, [(PPOClipPaper, {})] * 2)
    with begun(agents, [None, None], 48) as runs, closing(iterations(agents, runs)) as training:
        assert [(steps(agents), failed) for failed in training] == [([n, n], []) for n in (0, 16, 32, 48)]
    for agent, expected in zip(agents, train_many(PPOClipPaper, RandomWalk, 48, seeds=[0, 1], **SMALL), strict=True):
        assert distance(agent.model, expected) == 0.0
        expected.env.close()
    close(agents)


def test_an_agent_that_diverges_is_told_of_once() -> None:
    agents = agents_on("Pendulum-v1", [(PPOClipPaper, {}), (PPOUnclippedPaper, {"learning_rate": 1e38})])
    with begun(agents, [None, None], 48) as runs, closing(iterations(agents, runs)) as training:
        assert list(training) == [[], [agents[1]], [], []]
    assert "the training has diverged" in str(agents[1].error)
    close(agents)


@pytest.mark.parametrize("how", [None, OSError])
def test_one_who_stops_leaves_what_was_reached(how: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By closing, or by an exception of one's own."""
    monkeypatch.setattr("sb3_ppo_variants.resume.folder.LOCK_PATIENCE", 0.0)
    closed: list[Any] = []
    agents = agents_on(RandomWalk, [(PPOClipPaper, {})] * 2)
    for agent in agents:
        monkeypatch.setattr(agent.model.env, "close", lambda env=agent.model.env: closed.append(env))
    folders = [tmp_path / "a", tmp_path / "b"]

    def train() -> Any:
        with begun(agents, folders, 64) as runs, closing(iterations(agents, runs)) as training:
            for _ in training:
                if steps(agents) == [32, 32]:
                    with pytest.raises(BundleError, match="another process"):
                        use(folders[1])
                    if how is not None:
                        raise how
                    yield
        pytest.fail("it went on")

    running = train()
    if how is None:
        next(running)
        running.close()
    else:
        with pytest.raises(how):
            next(running)
    assert closed == [agent.model.env for agent in agents]
    assert [bundle_paths(folder)[0].name for folder in folders] == [bundle_name(32)] * 2
    use(folders[1])  # it is free again
