"""``train_many``: several agents of one shape, trained at once in one process."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_ppo_variants.arguments import require, require_choice, shown
from sb3_ppo_variants.many.agent import Agent
from sb3_ppo_variants.many.groups import group_key
from sb3_ppo_variants.many.hooks import is_users
from sb3_ppo_variants.many.policy_gradient import PolicyGradientUpdate
from sb3_ppo_variants.many.rollout import Collector
from sb3_ppo_variants.many.runs import AgentRun, Resume, UnkeptRun, kept_run
from sb3_ppo_variants.many.shapes import require_stackable
from sb3_ppo_variants.many.stack import Stack
from sb3_ppo_variants.many.update import Update
from sb3_ppo_variants.on_policy import PaperOnPolicyAlgorithm
from sb3_ppo_variants.resume.folder import RunFolder
from sb3_ppo_variants.resume.learning import BUNDLE_INTERVAL, require_resumable
from sb3_ppo_variants.resume.names import bundle_paths
from sb3_ppo_variants.vanilla_pg import VanillaPGPaper

AgentSpec = tuple[type[PaperOnPolicyAlgorithm], Mapping[str, Any], int]
"""an agent's algorithm, its settings beside those that all share, and its seed"""


class DivergenceWarning(RuntimeWarning):
    """An agent's training has come to an early end; the others go on."""


def train_many(
    agents: type[PaperOnPolicyAlgorithm] | Sequence[AgentSpec],
    env: str | Callable[[], Any],
    total_timesteps: int,
    *,
    seeds: Iterable[int] | None = None,
    policy: str = "MlpPolicy",
    n_envs: int = 1,
    folder: str | Path | None = None,
    resume: Resume = False,
    bundle_interval: float = BUNDLE_INTERVAL,
    **settings: Any,
) -> list[Any]:
    """Train agents of one shape at once, each as it would train alone.

    Their networks are stacked, so that one batched product serves all; environments are stepped one after another in
    this process, on one thread of torch. Each agent draws from generators of its own what it would draw alone, so that
    its first updates are those of ``algorithm(policy, env, seed=seed, **settings).learn(total_timesteps)`` up to
    rounding. For more cores, divide the agents among processes.

    Agents may differ in their algorithm and in every setting that is a number, a schedule or a switch, but not in
    ``n_steps``, ``n_envs``, ``batch_size``, ``n_epochs`` and networks. Those of ``VanillaPGPaper`` (estimators
    ``"gae"`` and ``"td"``) make another update than PPO's, so they are stacked only with one another. A surrogate of
    your own is stacked too, where the algorithm defines no more than ``objective``, ``coefficients``,
    ``after_update`` and ``minibatch_metrics``. ``objective`` and ``minibatch_metrics`` must then treat each agent's
    minibatch as ``torch.func.vmap`` can, set no attribute and read neither ``policy`` nor ``rollout_buffer``; the
    others do not read ``rollout_buffer``.

    An agent whose training diverges ends there, with a :class:`DivergenceWarning`; its model is as it was before that
    update. Callbacks are not called.

    :param agents: an algorithm for all ``seeds``, or of each agent (algorithm, settings, seed)
    :param env: an id; or a function that makes an environment, or a ``VecEnv``, for each agent anew
    :param total_timesteps: of each agent
    :param seeds: one agent for each; None where ``agents`` has them
    :param policy: ``"MlpPolicy"``
    :param n_envs: environments of each agent, where ``env`` makes no ``VecEnv``
    :param folder: for resume bundles and logs, an agent's in ``agent_000`` and so on: ordinary run folders, each of
        which ``learn(…, run_folder=…, resume=True)`` can go on with alone. None: nothing is kept
    :param resume: True: go on from the newest bundles; ``"auto"``: the same, or begin where there are none; False:
        begin, in a folder without bundles
    :param bundle_interval: seconds between two bundles of an agent; 0: one after each iteration
    :param settings: further arguments of the algorithms; an agent's own take precedence
    :return: the models, in the order of ``agents`` or ``seeds``, as after ``learn``
    :raises ValueError: for an argument outside its range, and for agents that cannot be stacked; names the setting, or
        the hook and the attribute, where a hook of a class of your own reads what is not there in a stack
    :raises BundleError: if bundles cannot be read or are of another run, or another process trains in the folder
    """
    made = train_agents(
        _specs(agents, seeds),
        env,
        total_timesteps,
        settings,
        policy=policy,
        n_envs=n_envs,
        folder=folder,
        resume=resume,
        bundle_interval=bundle_interval,
    )
    return [agent.model for agent in made]


def train_agents(
    specs: Sequence[AgentSpec],
    env: str | Callable[[], Any],
    total_timesteps: int,
    settings: Mapping[str, Any] | None = None,
    *,
    policy: str = "MlpPolicy",
    n_envs: int = 1,
    folder: str | Path | None = None,
    resume: Resume = False,
    bundle_interval: float = BUNDLE_INTERVAL,
    reached: Callable[[int], object] | None = None,
) -> list[Agent]:
    """What :func:`train_many` does, for callers that must know whose training has diverged, or how far it is.

    :param specs: as :func:`train_many`'s ``agents``, each with its seed
    :param settings: of all; None: none
    :param reached: called before the first iteration and after each, with the timesteps that the agents have reached
    :return: the agents: ``model`` as after ``learn``, and ``error``, None where the training came to its end
    :raises ValueError: as there
    :raises BundleError: as there
    """
    require("total_timesteps", total_timesteps, "an integer >= 1", lambda value: value >= 1, integer=True)
    require("n_envs", n_envs, "an integer >= 1", lambda value: value >= 1, integer=True)
    require("bundle_interval", bundle_interval, "a finite number >= 0", lambda value: 0 <= value < math.inf)
    require_choice("resume", resume, (True, False, "auto"))
    if resume and folder is None:
        raise ValueError("folder must name the folder of the runs that are to be resumed; got None")
    folders = [None if folder is None else Path(folder) / f"agent_{index:03}" for index in range(len(specs))]
    for each in folders:
        if each is not None:
            require_resumable(each, resume)
    made = _made(specs, env, policy, n_envs, folders, settings or {})
    with (
        begun(made, folders, total_timesteps, resume, bundle_interval) as runs,
        runs[0].on_termination(),
        closing(iterations(made, runs)) as training,
    ):
        for failed in training:
            for agent in failed:
                warnings.warn(f"{agent.name} ends: {agent.error}", DivergenceWarning, stacklevel=3)
            if reached is not None:
                reached(max(agent.model.num_timesteps for agent in made))
    return made


def _specs(agents: Any, seeds: Iterable[int] | None) -> list[AgentSpec]:
    """Each agent's algorithm, settings and seed."""
    if isinstance(agents, type):
        if seeds is None:
            raise ValueError("seeds must name the agents' seeds where agents is one algorithm; got None")
        specs: list[AgentSpec] = [(agents, {}, seed) for seed in seeds]
    elif seeds is not None:
        raise ValueError("seeds must be None where agents is a list: each agent's seed is in it")
    else:
        specs = list(agents)
    if not specs:
        raise ValueError("seeds must name at least one" if seeds is not None else "agents must be at least one")
    for spec in specs:
        if not isinstance(spec, tuple) or len(spec) != 3 or not isinstance(spec[1], Mapping):
            raise ValueError(f"agents must be (algorithm, settings, seed) each; got {shown(spec)}")
        require("seed", spec[2], "an integer >= 0", lambda value: value >= 0, integer=True)
        if not isinstance(spec[0], type) or not issubclass(spec[0], PaperOnPolicyAlgorithm):
            raise ValueError(f"agents must be of the package's algorithms or variants of them; got {shown(spec[0])}")
    return specs


def _made(
    specs: Sequence[AgentSpec],
    env: Any,
    policy: str,
    n_envs: int,
    folders: Sequence[Path | None],
    settings: Mapping[str, Any],
) -> list[Agent]:
    """The agents, their models untrained."""
    made: list[Agent] = []
    try:
        for index, (algorithm, own, seed) in enumerate(specs):
            vec_env = _environments(env, n_envs, folders[index])
            try:
                model = algorithm(policy, vec_env, seed=seed, **{"device": "cpu", **settings, **own})
            except BaseException:
                vec_env.close()
                raise
            made.append(Agent(model, f"agent {index} ({algorithm.__name__}, seed {seed})"))
    except BaseException:
        close(made)
        raise
    return made


def _environments(env: Any, n_envs: int, folder: Path | None) -> VecEnv:
    """One agent's environments; their episodes are logged in its folder."""
    first = None if isinstance(env, str) else env()
    if isinstance(first, VecEnv):
        return first
    waiting = [] if first is None else [first]

    def make() -> Any:
        return waiting.pop() if waiting else env()

    goes_on = folder is not None and bool(bundle_paths(folder))
    return make_vec_env(
        env if isinstance(env, str) else make,
        n_envs=n_envs,
        monitor_dir=None if folder is None else str(folder),
        monitor_kwargs={"override_existing": not goes_on},
    )


def close(agents: Iterable[Agent]) -> None:
    """Close the environments of agents."""
    for agent in agents:
        with suppress(EOFError, BrokenPipeError):  # worker processes that Ctrl-C has ended too
            agent.model.env.close()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: batched products of small matrices gain nothing from more."""
    threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        yield
    finally:
        th.set_num_threads(threads)


# ------------------------------------------------------------------ agents that are models already


@contextmanager
def begun(
    agents: Sequence[Agent],
    folders: Sequence[Path | None],
    total_timesteps: int,
    resume: Resume = False,
    bundle_interval: float = BUNDLE_INTERVAL,
) -> Iterator[list[AgentRun]]:
    """The agents' runs, begun or gone on with; meanwhile their folders are this process's. See :func:`train_many`.

    :param agents: each made right after its model; their environments are closed if anything is raised
    :param folders: one per agent; None: nothing is kept of it
    :raises ValueError: if the agents cannot be stacked
    :raises BundleError: if bundles cannot be read or are of another run, or another process trains in a folder
    """
    try:
        require_stackable(agents)
        with ExitStack() as stack:
            runs: list[AgentRun] = []
            for agent, path in zip(agents, folders, strict=True):
                run_folder = None if path is None else RunFolder(path)
                if run_folder is not None:
                    stack.enter_context(run_folder.owned())
                runs.append(_begin(agent, run_folder, total_timesteps, resume, bundle_interval))
            yield runs
    except BaseException:
        close(agents)
        raise


def _begin(agent: Agent, folder: RunFolder | None, total_timesteps: int, resume: Resume, interval: float) -> AgentRun:
    with agent.generators():
        if folder is None:
            return UnkeptRun(agent.model, total_timesteps)
        return kept_run(agent.model, folder, total_timesteps, resume, interval)


def iterations(agents: Sequence[Agent], runs: Sequence[AgentRun]) -> Generator[list[Agent], None, None]:
    """Train agents to the end, an iteration of all at a time, and let the caller look at them in between.

    The models may be read where it yields: before the first iteration, and after each. Whoever has seen enough closes
    the generator (``contextlib.closing``); then, as after an exception, what has been reached is kept. Signals are the
    caller's.

    :param agents: of one shape
    :param runs: theirs, of :func:`begun`
    :return: yields the agents whose training has diverged in this iteration: their ``error`` says why, and the others
        go on without them
    """
    for agent, run in zip(agents, runs, strict=True):
        with agent.generators():
            run.start()
    try:
        for run in runs:
            run.write()
        yield []
        yield from _iterate(agents, dict(zip(agents, runs, strict=True)))
    except BaseException as error:
        for run in runs:
            run.leave(error)
        raise
    for run in runs:
        run.write()
    for run in runs:
        run.end()


def _iterate(agents: Sequence[Agent], runs: Mapping[Agent, AgentRun]) -> Generator[list[Agent], None, None]:
    """Iterations in step, until each agent has come to its end."""
    stack, collector = None, None
    while training := [agent for agent in agents if agent.is_training()]:
        with _one_thread():
            if stack is None or collector is None or len(training) < len(stack.agents):
                # Neighbours of one kind are evaluated together.
                stack = Stack(sorted(training, key=lambda agent: repr(group_key(agent.model))))
                collector = Collector(stack)
            _run_iteration(stack, collector, runs)
        yield [agent for agent in stack.agents if agent.error is not None]


def _run_iteration(stack: Stack, collector: Collector, runs: Mapping[Agent, AgentRun]) -> None:
    """A rollout and an update of each agent; those that diverge get their ``error`` set."""
    samples = collector.collect()
    for agent in stack.agents:
        if agent.error is None:
            runs[agent].before_update()
    kind = PolicyGradientUpdate if isinstance(stack.agents[0].model, VanillaPGPaper) else Update
    kind(stack, samples).run()
    sound = [agent for agent in stack.agents if agent.error is None]
    if any(is_users(type(agent.model)) for agent in sound):  # a hook may have changed a setting
        require_stackable(sound)
    for agent in sound:
        with agent.generators():
            runs[agent].after_update()
