"""What Table 1 and Fig. 3 compare, and on which tasks."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from sb3_ppo_variants.arguments import check_names, require, shown
from sb3_ppo_variants.presets import FIG3_A2C, FIG3_VANILLA_PG, TABLE_1, Preset, fig3_trpo

TASKS = (
    "HalfCheetah-v5",
    "Hopper-v5",
    "InvertedDoublePendulum-v5",
    "InvertedPendulum-v5",
    "Reacher-v5",
    "Swimmer-v5",
    "Walker2d-v5",
)
"""the seven of §6.1, in the order of Fig. 3; there Gym's "-v1" """

# Those that take longest per timestep first, so that no process is left with one of them in the end.
_LONGEST_FIRST = (
    "RoboschoolHumanoid-v1",
    "Walker2d-v5",
    "HalfCheetah-v5",
    "Hopper-v5",
    "Swimmer-v5",
    "InvertedDoublePendulum-v5",
    "Reacher-v5",
    "InvertedPendulum-v5",
)


_OURS = "sb3_ppo_variants"
# Arguments of constructors without influence on what is learned, or told elsewhere in a result.
_NOT_OF_A_RUN = ("seed", "device", "verbose", "tensorboard_log", "stats_window_size", "_init_setup_model")


@dataclass(frozen=True)
class Setting:
    """An algorithm with its settings.

    :param name: in files and on the command line
    :param label: in tables and pictures
    :param algorithm: where its class is, ``<module>.<class>``
    :param preset: of a task
    :param own: arguments of the constructor beside the preset's
    :param stack: a name: :func:`~sb3_ppo_variants.many.training.train_many` trains the runs of a task whose settings
        share it at once. None: each run is trained alone
    :param unbounded: whether it is shown a task's actions without bounds, being an algorithm that clips to them
    """

    name: str
    label: str
    algorithm: str
    preset: Callable[[str], Preset]
    own: tuple[tuple[str, Any], ...] = ()
    stack: str | None = "PPO"
    unbounded: bool = False

    @property
    def algorithm_class(self) -> Any:
        """The class itself."""
        module, _, name = self.algorithm.rpartition(".")
        return getattr(importlib.import_module(module), name)

    def arguments(self, task: str) -> dict[str, Any]:
        """Arguments of the algorithm's constructor on a task."""
        return {**self.preset(task), **dict(self.own)}

    def n_envs(self, task: str) -> int:
        """Environments of one run."""
        n_envs: int = self.preset(task).run["n_envs"]
        return n_envs

    def described(self, task: str) -> dict[str, Any]:
        """All that a run of it depends on beside task, seed and timesteps, as JSON has it."""
        how: dict[str, Any] = {"n_envs": self.n_envs(task)}
        if self.unbounded:
            how["clip_actions"] = False  # as PPO's own argument is named
        arguments = {**self.defaults(), **self.arguments(task)}
        return {**how, **{name: _plain(value) for name, value in arguments.items()}}

    def defaults(self) -> dict[str, Any]:
        """The constructor's defaults, where the algorithm is the package's own; of others, their version tells."""
        if not self.algorithm.startswith(f"{_OURS}."):
            return {}
        parameters = inspect.signature(self.algorithm_class).parameters.values()
        return {
            each.name: each.default
            for each in parameters
            if each.default is not each.empty and each.name not in _NOT_OF_A_RUN
        }


def _plain(value: Any) -> Any:
    """A setting as JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, type):
        return value.__name__
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def _of_table_1(_task: str) -> Preset:
    return TABLE_1


def _of_trpo(task: str) -> Preset:
    (dimensions,) = action_space_of(task).shape
    return fig3_trpo(dimensions)


NONE = Setting("none", "no clipping or penalty", f"{_OURS}.PPOUnclippedPaper", _of_table_1)
TABLE_1_SETTINGS = (
    NONE,
    *(
        Setting(
            f"clip_{value}", f"clipping, ε = {value}", f"{_OURS}.PPOClipPaper", _of_table_1, (("clip_range", value),)
        )
        for value in (0.1, 0.2, 0.3)
    ),
    *(
        Setting(
            f"adaptive_kl_{value}",
            f"adaptive KL, d_targ = {value}",
            f"{_OURS}.PPOAdaptiveKLPaper",
            _of_table_1,
            (("kl_target", value),),
        )
        for value in (0.003, 0.01, 0.03)
    ),
    *(
        Setting(
            f"fixed_kl_{value:g}",
            f"fixed KL, β = {value:g}",
            f"{_OURS}.PPOFixedKLPaper",
            _of_table_1,
            (("beta", value),),
        )
        for value in (0.3, 1.0, 3.0, 10.0)
    ),
)
"""the rows of Table 1, in its order"""

_RLLAB = "rllab (Duan et al. 2016, Schulman among them), cem.py; the paper gives no value"
FIG3_CEM = Preset(
    settings={
        "population": (40, "our choice: 25 generations of episodes of 1000 timesteps in a million"),
        "elite_fraction": (0.2, "our choice: 8 of 40"),
        "initial_std": (1.0, f"{_RLLAB}: init_std"),
        "extra_std": (1.0, f"{_RLLAB}: extra_std"),
        "extra_fraction": (0.5, "our choice: the extra noise is gone after half of the timesteps"),
    },
    run={"n_envs": (1, "one episode after another"), "n_timesteps": (1_000_000, "Fig. 3: one million timesteps")},
)


# Functions of the module, as settings are sent to worker processes.
def _of_a2c(_task: str) -> Preset:
    return FIG3_A2C


def _of_cem(_task: str) -> Preset:
    return FIG3_CEM


def _of_vanilla_pg(_task: str) -> Preset:
    return FIG3_VANILLA_PG


FIGURE_3_SETTINGS = (
    Setting("a2c", "A2C", "stable_baselines3.A2C", _of_a2c, stack=None, unbounded=True),
    Setting(
        "a2c_trust_region",
        "A2C + trust region",
        f"{_OURS}.reproduce.a2c_trust_region.A2CTrustRegion",
        _of_a2c,
        stack=None,
        unbounded=True,
    ),
    Setting("cem", "CEM", f"{_OURS}.reproduce.cem.CEM", _of_cem, stack=None),
    next(setting for setting in TABLE_1_SETTINGS if setting.name == "clip_0.2"),
    Setting(
        "vanilla_pg",
        "vanilla PG, adaptive",
        f"{_OURS}.VanillaPGPaper",
        _of_vanilla_pg,
        stack="vanilla PG",
    ),
    Setting("trpo", "TRPO", "sb3_contrib.TRPO", _of_trpo, stack=None, unbounded=True),
)
"""the curves of Fig. 3, in the order of its legend; PPO's runs are those of Table 1's ε = 0.2"""

SETTINGS = {setting.name: setting for setting in (*TABLE_1_SETTINGS, *FIGURE_3_SETTINGS)}
"""all of them by name"""


@dataclass(frozen=True)
class Run:
    """One training."""

    task: str
    setting: Setting
    seed: int


@dataclass(frozen=True)
class Selection:
    """Which runs an experiment has.

    :param settings: names of ``SETTINGS``
    :raises ValueError: for a name, seed or number that is not allowed
    """

    tasks: tuple[str, ...]
    settings: tuple[str, ...]
    seeds: tuple[int, ...]
    timesteps: int

    def __post_init__(self) -> None:
        for name in ("tasks", "settings", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be one or more, each named once; got {shown(list(values))}")
        for task in self.tasks:
            check_task(task)
        for seed in self.seeds:
            require("seeds", seed, "integers in [0, 2**32)", lambda value: 0 <= value < 2**32, integer=True)
        require("timesteps", self.timesteps, "an integer >= 1", lambda value: value >= 1, integer=True)

    def runs(self) -> list[Run]:
        """All of them: the longest tasks first, and on each task seed by seed."""
        return [
            Run(task, SETTINGS[name], seed)
            for task in sorted(self.tasks, key=_rank)
            for seed in self.seeds
            for name in self.settings
        ]


def selected(
    settings: Sequence[Setting],
    tasks: Iterable[str] | None,
    names: Iterable[str] | None,
    seeds: Iterable[int],
    timesteps: int,
) -> Selection:
    """A selection of an experiment's runs, in its own order.

    :param settings: that the experiment has
    :param tasks: None: the seven
    :param names: of settings; None: all
    :raises ValueError: for a name, seed or number that is not allowed
    """
    allowed = {setting.name: setting for setting in settings}
    chosen = list(allowed) if names is None else _listed("settings", names)
    check_names("setting", chosen, allowed)
    if len(set(chosen)) == len(chosen):
        chosen = [name for name in allowed if name in chosen]
    given = list(TASKS) if tasks is None else _listed("tasks", tasks)
    in_order = [task for task in TASKS if task in given] + [task for task in given if task not in TASKS]
    if len(set(given)) < len(given):
        in_order = given
    return Selection(tuple(in_order), tuple(chosen), tuple(seeds), timesteps)


def _listed(name: str, values: Iterable[str]) -> list[str]:
    if isinstance(values, str):  # whose letters would be taken for names
        raise ValueError(f"{name} must be a list of names; got the string {shown(values)}")
    return list(values)


def check_task(task: str) -> None:
    """Check that a task can be made, and has the one kind of action that all settings take.

    :raises ValueError: if not
    """
    module, _, name = task.rpartition(":")
    if module:
        importlib.import_module(module)
    check_names("task", [name], gym.registry, list_allowed=False)
    space = action_space_of(task)
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"tasks must have a Box of one axis as their action space; {task} has {space}")


_SPACES: dict[str, Any] = {}


def action_space_of(task: str) -> Any:
    """A task's action space."""
    if task not in _SPACES:
        env = gym.make(task)
        _SPACES[task] = env.action_space
        env.close()
    return _SPACES[task]


def _rank(task: str) -> int:
    return _LONGEST_FIRST.index(task) if task in _LONGEST_FIRST else -1
