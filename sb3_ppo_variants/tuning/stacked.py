"""The trainings of one trial, one per seed, in one stack: each is what it would be alone, up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sb3_ppo_variants.many.agent import Agent
from sb3_ppo_variants.many.shapes import reason_against
from sb3_ppo_variants.many.training import begun, close, iterations
from sb3_ppo_variants.tuning.training import Score, ScoreFile, diverged, own_generators, save_policy


def can_be_stacked(make_model: Callable[[Path], Any]) -> bool:
    """Whether ``train_many`` could take a trial's models; asked of one that is made for that alone.

    :param make_model: makes it in a folder
    """
    with own_generators(), TemporaryDirectory() as folder:
        asked = Agent(make_model(Path(folder) / "asked"), "asked")
        try:
            return reason_against(asked.model) is None
        finally:
            close([asked])


class StackedTrainings:
    """The trainings of a trial's seeds as one ``train_many``, which waits whenever all have come far enough.

    In their folders lies what :class:`~sb3_ppo_variants.tuning.training.SeedTraining` keeps there, which can go on from
    it, as this from that.

    :param make_model: makes the model of a seed in its folder; all can be stacked
    :param folders: of the runs, by seed
    :param boundaries: the timesteps that will be asked for, in order; the last one is the end
    :param bundle_interval: seconds between two bundles
    """

    def __init__(
        self,
        make_model: Callable[[int, Path], Any],
        folders: Mapping[int, Path],
        boundaries: Sequence[int],
        bundle_interval: float,
    ):
        self._make_model, self._folders, self._boundaries = make_model, folders, boundaries
        self._interval = bundle_interval
        self._scores = {seed: ScoreFile(folder) for seed, folder in folders.items()}
        self._running = self._train()

    def advance(self, timesteps: int) -> list[Score]:
        """Train each until the end of its first iteration at or after this timestep.

        What an earlier process has reached is not done again.

        :param timesteps: one of the boundaries
        :raises FloatingPointError: if one diverges; says which, and on the way to which timestep
        :raises BaseException: whatever else ends them
        """
        while any(timesteps not in scores for scores in self._scores.values()):
            next(self._running)
        return [scores[timesteps] for scores in self._scores.values()]

    def stop(self) -> None:
        """End them after their last whole iteration, with bundles; environments are closed."""
        self._running.close()

    def _train(self) -> Generator[None, None, None]:
        """The trainings from beginning to end, an iteration of all at a time."""
        agents = self._agents()
        total = self._boundaries[-1]
        with (
            begun(list(agents.values()), list(self._folders.values()), total, "auto", self._interval) as runs,
            closing(iterations(list(agents.values()), runs)) as training,
        ):
            for _ in training:
                for seed, agent in agents.items():
                    self._look_at(seed, agent)
                yield
            for seed, agent in agents.items():
                save_policy(agent.model, self._folders[seed])
        close(agents.values())
        # Told only now: whoever finds the last score relies on the policy.
        for seed, agent in agents.items():
            self._scores[seed].record(total, agent.model)
        yield

    def _agents(self) -> dict[int, Agent]:
        agents: dict[int, Agent] = {}
        with own_generators():
            try:
                for seed, folder in self._folders.items():
                    agents[seed] = Agent(self._make_model(seed, folder), f"seed {seed}")
            except BaseException:
                close(agents.values())
                raise
        return agents

    def _look_at(self, seed: int, agent: Agent) -> None:
        """Note a seed's scores at the boundaries that it has come to; one that went on from a newer bundle than the
        others comes to them before these.

        :raises FloatingPointError: if it has diverged
        """
        scores = self._scores[seed]
        missing = [timesteps for timesteps in self._boundaries if timesteps not in scores]
        if agent.error is not None:
            raise diverged(seed, missing[0], agent.error) from agent.error
        for timesteps in missing:
            if timesteps <= agent.model.num_timesteps and timesteps != self._boundaries[-1]:
                scores.record(timesteps, agent.model)
