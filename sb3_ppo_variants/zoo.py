"""Registers the algorithms with rl_zoo3 from outside, and runs its scripts: the only file that knows rl_zoo3.

rl_zoo3 and torch load inside the functions, so that the command line can list and explain without them.
"""

from __future__ import annotations

import argparse
import builtins
import importlib
import importlib.util
import inspect
import io
import re
import runpy
import shutil
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import sb3_ppo_variants
from sb3_ppo_variants import ALGORITHMS, schema
from sb3_ppo_variants.arguments import check_names, shown
from sb3_ppo_variants.files import folder_name
from sb3_ppo_variants.resume.names import BundleError, bundle_paths
from sb3_ppo_variants.runs import OUR_RECIPE, RunOptions, write_run
from sb3_ppo_variants.safe_yaml import WRAPPER_KEYS, load_yaml, parse_yaml, read_expression

if TYPE_CHECKING:
    import optuna
    from rl_zoo3.exp_manager import ExperimentManager
    from stable_baselines3.common.vec_env import VecEnv
else:
    ExperimentManager = object

# What rl_zoo3 itself reads from a config, before the rest goes to the algorithm's constructor.
ZOO_KEYS = frozenset(
    {
        "callback",
        "env_kwargs",
        "env_wrapper",
        "frame_stack",
        "monitor_kwargs",
        "n_envs",
        "n_timesteps",
        "normalize",
        "vec_env_wrapper",
    }
)
# What rl_zoo3 reads besides for the algorithms with action noise.
NOISE_KEYS = frozenset({"noise_type", "noise_std"})
# Algorithms of SB3 and sb3-contrib that the paper compares with: with our settings for the tasks of its Fig. 3.
PEERS = {"a2c": "stable_baselines3.A2C", "trpo": "sb3_contrib.TRPO"}
# Ours: how the environments are vectorised, a name or {name: …, <its arguments>}. `--vec-env` on the command line wins.
VEC_ENV_KEY = "vec_env"
VEC_ENVS = ("dummy", "subproc", "shared_memory", "ray")
# In the folder of a run's settings: the normaliser as it was with the best model of the evaluations.
BEST_FOLDER = "best"
NORMALISER = "vecnormalize.pkl"
# An agent plays, and is evaluated, without them: they change its training's rewards, starts, flags and ends.
TRAINING_WRAPPERS = tuple(
    f"sb3_ppo_variants.envs.wrappers.{name}"
    for name in ("EpisodePerFlag", "FlagCurriculum", "HardStarts", "LiftCurriculum", "StrideReward")
)
# Constructor arguments that rl_zoo3 fills from the command line: in a config they would be given twice.
COMMAND_LINE_KEYS = frozenset({"env", "tensorboard_log", "seed", "verbose", "device", "_init_setup_model"})
# rl_zoo3 cannot do without these.
REQUIRED_KEYS = ("policy", "n_timesteps")

# Activation functions by the names that rl_zoo3's own samplers use → their names in torch.nn.
ACTIVATIONS = {"tanh": "Tanh", "relu": "ReLU", "elu": "ELU", "leaky_relu": "LeakyReLU"}

# Policy arguments that the algorithm fills.
POLICY_KEYS_OF_SB3 = frozenset({"observation_space", "action_space", "lr_schedule", "use_sde"})

SCHEDULE_FORMS = "a number, lin_<start> (down to 0) or {schedule: linear, start: …, end: …, end_fraction: 1.0}"


def data_folder(name: str) -> Path:
    """A data folder of the project: inside the package where it is installed, at the top of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / name
    return installed if installed.is_dir() else package.parent / name


def config_path(algo: str, recipe: str = OUR_RECIPE) -> Path:
    """The settings that ship for an algorithm, one entry per task.

    :param recipe: the folder of ``zoo_configs`` that has them; those of :data:`OUR_RECIPE` lie in no folder
    """
    folder = data_folder("zoo_configs")
    return (folder if recipe == OUR_RECIPE else folder / recipe) / f"{algo}.yml"


def config_text(algo: str, recipe: str = OUR_RECIPE) -> str:
    """The text of :func:`config_path`; empty where we ship none."""
    path = config_path(algo, recipe)
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def configured_tasks(algo: str, recipe: str = OUR_RECIPE) -> list[str]:
    """The tasks that a shipped config has an entry for: its top-level keys, read without a YAML parser.

    ``default`` among them stands for every other task, ``atari`` for every Atari game.
    """
    return re.findall(r"^([\w./-]+):", config_text(algo, recipe), re.MULTILINE)


def recipes_of(algo: str) -> list[str]:
    """The recipes that ship for an algorithm, :data:`OUR_RECIPE` first."""
    others = sorted(path.parent.name for path in data_folder("zoo_configs").glob(f"*/{algo}.yml"))
    return [OUR_RECIPE, *others]


def shipped_settings(algo: str, env_id: str, recipe: str = OUR_RECIPE) -> dict[str, Any] | None:
    """What a recipe has for a task; None where it has nothing, or ships no settings for the algorithm."""
    path = config_path(algo, recipe)
    content = load_yaml(path) if path.is_file() else {}
    atari = ["atari"] if env_id.startswith("ALE/") else []
    found: dict[str, Any] | None = next((content[key] for key in (env_id, *atari, "default") if key in content), None)
    return found


def require_recipe(algo: str, env_id: str, recipe: str) -> Path:
    """The file of a recipe that has an entry for the task.

    :raises ValueError: if there is no such recipe, or none with an entry for the task; names those that there are
    """
    check_names(f"recipe of {algo}", [recipe], recipes_of(algo))
    tasks = configured_tasks(algo, recipe)
    if env_id not in tasks:
        raise ValueError(f"--recipe {recipe} of {algo} has settings for {', '.join(tasks)}; got {env_id}")
    return config_path(algo, recipe)


# ------------------------------------------------------------------ settings: what a config may say


def read_hyperparams(algorithm: type, hyperparams: Mapping[str, Any]) -> dict[str, Any]:
    """Check the settings of one task against an algorithm's constructor and turn YAML forms into objects.

    :param algorithm: the algorithm's class
    :param hyperparams: keys of the constructor and of rl_zoo3, as read from YAML or given with ``-params``
    :return: a copy in which schedules and activation functions are objects
    :raises ValueError: for an unknown or a missing key, a form that cannot be read, or a value of a wrong type or out
        of its range; names it
    """
    parameters = inspect.signature(algorithm).parameters
    check_names("config key", hyperparams, {*parameters, *ZOO_KEYS, VEC_ENV_KEY} - COMMAND_LINE_KEYS)
    _check_required(hyperparams)
    settings = {name: _read_setting(name, deepcopy(value), parameters) for name, value in hyperparams.items()}
    settings = schema.read_zoo_settings(settings, expressions=False)
    schema.check_policy(algorithm, settings["policy"])
    if settings.get("policy_kwargs") is not None:
        settings["policy_kwargs"] = read_policy_kwargs(algorithm, settings["policy"], settings["policy_kwargs"])
    schema.check_algorithm_settings(algorithm, settings)
    return settings


def read_settings_of_others(algorithm: Any, hyperparams: Mapping[str, Any]) -> dict[str, Any]:
    """Check the settings of one task for one of rl_zoo3's own algorithms, and read the text in them as data.

    :param algorithm: the algorithm's class
    :param hyperparams: keys of the constructor and of rl_zoo3
    :return: a copy in which rl_zoo3 finds nothing to evaluate
    :raises ValueError: as :func:`read_hyperparams`, but the constructor's own arguments go unchecked
    """
    allowed = {*inspect.signature(algorithm).parameters, *ZOO_KEYS, *NOISE_KEYS} - COMMAND_LINE_KEYS
    check_names("config key", hyperparams, allowed)
    _check_required(hyperparams)
    settings = schema.read_zoo_settings(deepcopy(dict(hyperparams)), expressions=True)
    schema.check_policy(algorithm, settings["policy"])
    return settings


def _check_required(hyperparams: Mapping[str, Any]) -> None:
    for key in REQUIRED_KEYS:
        if key not in hyperparams:
            raise ValueError(f"the settings lack {key!r}; rl_zoo3 needs {' and '.join(REQUIRED_KEYS)}")


def _read_setting(name: str, value: Any, parameters: Mapping[str, inspect.Parameter]) -> Any:
    if name in parameters and _takes_schedule(parameters[name]):
        return read_schedule(name, value)
    if isinstance(value, Mapping) and "schedule" in value:
        scheduled = [key for key, parameter in parameters.items() if _takes_schedule(parameter)]
        raise ValueError(f"{name} takes no schedule; those that do: {', '.join(scheduled)}")
    if isinstance(value, str) and "float" in _annotation(parameters.get(name)):
        with suppress(ValueError):  # no number: the constructor says what it wants
            return float(value)  # YAML 1.1 reads `1e-3`, without a dot, as a string
    return value


def _annotation(parameter: inspect.Parameter | None) -> str:
    return "" if parameter is None else str(parameter.annotation)


def _takes_schedule(parameter: inspect.Parameter) -> bool:
    return any(word in _annotation(parameter) for word in ("Schedule", "Callable"))


def read_schedule(name: str, value: Any) -> Any:
    """A schedule as a config writes it: see ``SCHEDULE_FORMS``. What is no string or mapping is returned as it is.

    :raises ValueError: for a string or mapping that is none of the forms; names the setting
    """
    from stable_baselines3.common.utils import LinearSchedule

    try:
        if isinstance(value, str):
            return LinearSchedule(float(value[4:]), 0.0, 1.0) if value.startswith("lin_") else float(value)
        if isinstance(value, Mapping):
            line = {"end_fraction": 1.0, **value}
            if line.pop("schedule", None) != "linear" or set(line) != {"start", "end", "end_fraction"}:
                raise ValueError
            numbers = {key: float(number) for key, number in line.items()}
            if not 0 < numbers["end_fraction"] <= 1:
                raise ValueError
            return LinearSchedule(**numbers)
    except (OverflowError, TypeError, ValueError):
        raise ValueError(f"{name} must be {SCHEDULE_FORMS}; got {shown(value)}") from None
    return value


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def read_policy_kwargs(algorithm: Any, policy: Any, policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Check the policy's arguments and replace the name of an activation function by its class.

    :param algorithm: the algorithm's class, which knows the policies' aliases
    :param policy: an alias, or the dotted name of a policy of the user's, whose arguments go unchecked
    :raises ValueError: for an unknown argument or activation function
    """
    from torch import nn

    arguments = dict(policy_kwargs)
    activation = arguments.get("activation_fn")
    if isinstance(activation, str):
        check_names("activation_fn", [activation], ACTIVATIONS)
        arguments["activation_fn"] = getattr(nn, ACTIVATIONS[activation])
    if policy in algorithm.policy_aliases:
        if "net_arch" in arguments:
            arguments["net_arch"] = _without_list(arguments["net_arch"])
        schema.check_arguments("policy_kwargs", arguments, algorithm.policy_aliases[policy], POLICY_KEYS_OF_SB3)
    return arguments


def _without_list(net_arch: Any) -> Any:
    """``[{pi: […], vf: […]}]``, the form of old configs, as its mapping, which SB3 takes without a warning."""
    is_one = isinstance(net_arch, (list, tuple)) and len(net_arch) == 1 and isinstance(net_arch[0], Mapping)
    return net_arch[0] if is_one else net_arch


# ------------------------------------------------------------------ rl_zoo3, extended from outside


class _OurExperiments(ExperimentManager):
    """What rl_zoo3's ``ExperimentManager`` lacks for our algorithms; :func:`register` mixes it in."""

    run_options: ClassVar[RunOptions | None] = None
    """what the command line says of resuming; None: no resume bundles, as in rl_zoo3"""
    chooses_vec_env: ClassVar[bool] = False
    """whether the command line has ``--vec-env``: rl_zoo3's parser does not tell its default from what was asked for"""

    def __init__(self, args: argparse.Namespace, algo: str, *rest: Any, **kwargs: Any):
        env_id = rest[0] if rest else kwargs["env_id"]
        options = self.run_options
        if options is not None and options.recipe not in (None, OUR_RECIPE) and options.settings is None:
            kwargs["config"] = str(require_recipe(algo, env_id, options.recipe))
        elif kwargs.get("config") is None and (algo in ALGORITHMS or env_id in configured_tasks(algo)):
            kwargs["config"] = str(config_path(algo))
        super().__init__(args, algo, *rest, **kwargs)
        self._opened: list[VecEnv] = []
        self._vec_env = ""  # the one of VEC_ENVS that the settings choose
        self._evaluation_wrapper: Any = None
        self._shows_bar = self._goes_on = self._claimed = False
        if options is not None and options.folder is not None:
            self.save_path = str(options.folder)
            self.params_path = f"{self.save_path}/{self.env_name}"
            # A run that was killed before its first bundle begins anew.
            self._goes_on = bool(bundle_paths(options.folder))

    @property
    def _keeps_bundles(self) -> bool:
        return self.run_options is not None and is_ours(self.algo) and not self.optimize_hyperparameters

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """As rl_zoo3's; remembers the environments, to close them if the setup fails.

        Where workers are replaced when they are lost, this process writes the monitor's file: their replacements would
        begin it anew. Both have the same wrappers of vectorised environments, which SB3's evaluation relies on; what
        :data:`TRAINING_WRAPPERS` names is not evaluated with. Where the training takes the CPUs of a Ray cluster,
        evaluation stays in this process.
        """
        from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

        chosen, arguments, wrapper = self.vec_env_class, self.vec_env_kwargs, self.env_wrapper
        if eval_env:
            self.env_wrapper = self._evaluation_wrapper
        if chosen is SubprocVecEnv:  # of whose environments a resume bundle would otherwise know nothing
            self.env_wrapper = partial(_recorded, self.env_wrapper)
        if self._goes_on:
            self.monitor_kwargs = {**self.monitor_kwargs, "override_existing": False}
        if eval_env:  # with its own number of environments, which the training's number of workers may not suit
            self.vec_env_kwargs = {name: value for name, value in arguments.items() if name != "n_workers"}
        if eval_env and self._vec_env == "ray":
            self.vec_env_class, self.vec_env_kwargs = DummyVecEnv, {}
        replaces = self._vec_env in ("ray", "shared_memory")
        if replaces:
            path = None if eval_env or no_log else Path(self.save_path, "0.monitor.csv")
            monitored: Any = partial(self._monitored, self.vec_env_class, path)
            self.vec_env_class = monitored
        try:
            self._opened.append(super().create_envs(n_envs, eval_env, no_log or replaces))
        finally:
            self.vec_env_class, self.vec_env_kwargs, self.env_wrapper = chosen, arguments, wrapper
        return self._opened[-1]

    def _monitored(self, inner: Any, path: Path | None, env_fns: list[Callable[[], Any]], **arguments: Any) -> VecEnv:
        """Called by rl_zoo3 in place of the class, so that the monitor is inside of normalisation."""
        from sb3_ppo_variants.vec_env import WorkersMonitor

        keywords = [self.monitor_kwargs.get(name, ()) for name in ("reset_keywords", "info_keywords")]
        names = [*keywords[0], *keywords[1]]
        return WorkersMonitor(inner(env_fns, **arguments), path, names, override_existing=not self._goes_on)

    def setup_experiment(self) -> Any:
        """As rl_zoo3's, but a setup that fails leaves no run behind: ``enjoy`` would take it for the latest."""
        options = self.run_options
        is_new = options is not None and options.folder is not None and not options.folder.exists()
        try:
            made = super().setup_experiment()
            self._start_from_agent(made)
            return made
        except Exception:
            for env in self._opened:
                env.close()
            if is_new or self._claimed:
                shutil.rmtree(self.save_path, ignore_errors=True)
            raise

    def create_log_folder(self) -> None:
        """As rl_zoo3's, but a new run's folder is nobody else's: of two that have begun at once, one goes on to the
        next number."""
        options = self.run_options
        while not self._claimed and (options is None or options.folder is None):
            try:
                Path(self.save_path).mkdir(parents=True)
                self._claimed = True
            except FileExistsError:
                base = f"{self.log_path}{self.env_name}_"
                numbered = self.save_path.removeprefix(base)  # with rl_zoo3's uuid, where it is asked for one
                self.save_path = base + re.sub(r"\d+", lambda number: str(int(number[0]) + 1), numbered, count=1)
                self.params_path = f"{self.save_path}/{self.env_name}"
        super().create_log_folder()

    def _start_from_agent(self, made: Any) -> None:
        """Give a new run's model the weights of the agent that ``--start-from`` names."""
        options = self.run_options
        if made is None or options is None or options.start_from is None or self._goes_on:
            return
        from sb3_ppo_variants.export import load_policy

        if not is_ours(self.algo):
            raise ValueError(f"--start-from is for our algorithms ({', '.join(ALGORITHMS)}); got {self.algo}")
        agent = load_policy(options.start_from, "cpu")
        agent.start(made[0], statistics=options.start_statistics, rescale=options.start_rescaled)
        print(f"Starting from the agent in {options.start_from}")

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """As rl_zoo3's, but ``--trial-id 0`` is a trial too: rl_zoo3 tests whether the number is true.

        A run that is resumed has the settings that it began with, whatever the config says by now.
        """
        options = self.run_options
        if options is not None and options.settings is not None:
            self._settings = {**deepcopy(options.settings), **(self.custom_hyperparams or {})}
            return deepcopy(self._settings), OrderedDict(sorted(self._settings.items()))
        if not Path(self.config).is_file() and not _is_module(self.config):
            raise ValueError(f"there is no config file {self.config}")
        if self.config.endswith((".yml", ".yaml")):
            schema.check_settings_file(Path(self.config))
        if self.storage and self.study_name and self.trial_id == 0:
            trial = self.load_trial(self.storage, self.study_name, self.trial_id)
            self.custom_hyperparams = {**trial, **(self.custom_hyperparams or {})}
        self._settings, saved = super().read_hyperparameters()
        return deepcopy(self._settings), saved

    def create_callbacks(self) -> None:
        """As rl_zoo3's; the progress bar of a run that can be resumed is its own.

        The normaliser's statistics of the best model are kept apart too: rl_zoo3's own file ends as that of the last.
        """
        from rl_zoo3.callbacks import SaveVecNormalizeCallback
        from stable_baselines3.common.callbacks import CallbackList, EvalCallback

        if self._keeps_bundles:
            self._shows_bar, self.show_progress = self.show_progress, False
        super().create_callbacks()
        for callback in self.callbacks:
            if not self.normalize or not isinstance(callback, EvalCallback):
                continue
            saves = callback.callback_on_new_best
            # Any other is the user's own.
            if isinstance(saves, SaveVecNormalizeCallback) and saves.save_path == self.params_path:
                best = SaveVecNormalizeCallback(save_freq=1, save_path=str(Path(self.params_path, BEST_FOLDER)))
                callback.callback_on_new_best = CallbackList([saves, best])
                callback.callback_on_new_best.parent = callback

    def learn(self, model: Any) -> None:
        """As rl_zoo3's, with resume bundles for our algorithms; says how to go on where the training does not end."""
        options = self.run_options
        if options is None or not self._keeps_bundles:
            super().learn(model)
            return
        arguments: dict[str, Any] = {}
        if self.log_interval != -1:
            arguments["log_interval"] = self.log_interval if self.log_interval > -1 else None
        if options.bundle_interval is not None:
            arguments["bundle_interval"] = options.bundle_interval
        try:
            model.learn(
                self.n_timesteps,
                callback=[*self.callbacks, self._run_writer(options)],
                progress_bar=self._shows_bar,
                run_folder=self.save_path,
                resume=self._goes_on,
                stretch_schedules=options.stretch_schedules,
                **arguments,
            )
        except BundleError:
            raise
        except BaseException as error:
            smaller = " -params learning_rate:…" if isinstance(error, FloatingPointError) else ""
            command = f"ppo-variants train --resume {self.save_path}{smaller}"
            print(f"Stopped at {model.num_timesteps} timesteps. To go on: {command}")
            if not isinstance(error, KeyboardInterrupt):  # after which rl_zoo3 saves the model
                raise
        finally:
            with suppress(EOFError):
                model.env.close()

    def _run_writer(self, options: RunOptions) -> Any:
        """A callback that keeps what the run began with, once its beginning, or its resumption, has succeeded."""
        from stable_baselines3.common.callbacks import BaseCallback

        folder, seed, settings = Path(self.save_path), self.seed, self._settings

        class RunWriter(BaseCallback):
            def _on_training_start(self) -> None:
                write_run(folder, options, seed, settings)

            def _on_step(self) -> bool:
                return True

        return RunWriter()

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        """As rl_zoo3's, with every key checked, nothing left to evaluate, and for our algorithms the forms of ours."""
        import rl_zoo3
        from rl_zoo3.utils import get_wrapper_class

        algorithm = rl_zoo3.ALGOS[self.algo]
        read = read_hyperparams if is_ours(self.algo) else read_settings_of_others
        settings = read(algorithm, hyperparams)
        schema.check_classes(settings)
        self._evaluation_wrapper = get_wrapper_class(without_training_wrappers(settings))
        if not is_ours(self.algo):
            return super()._preprocess_hyperparams(settings)
        self._choose_vec_env(settings.pop(VEC_ENV_KEY, None))
        # rl_zoo3 refuses `null` and mappings where it expects a schedule, and wraps plain numbers, whose
        # range the constructor could then no longer check: it does not get to see them.
        scheduled = {
            name: settings.pop(name)
            for name, parameter in inspect.signature(algorithm).parameters.items()
            if name in settings and _takes_schedule(parameter)
        }
        processed, *others = super()._preprocess_hyperparams(settings)
        return {**processed, **scheduled}, *others

    def _choose_vec_env(self, choice: str | Mapping[str, Any] | None) -> None:
        if choice is None:
            return
        name, arguments = read_vec_env(choice)
        if self.default_vec_env_cls is None and not self.chooses_vec_env:
            self.vec_env_class, self.vec_env_kwargs, self._vec_env = _vec_env_class(name), arguments, name
            allowed = set(inspect.signature(self.vec_env_class).parameters) - {"env_fns"}
            check_names(f"argument of {VEC_ENV_KEY}: {name},", arguments, allowed)

    def objective(self, trial: optuna.Trial) -> float:
        """As rl_zoo3's, but it prunes only what diverged: there every ValueError and AssertionError is pruned."""
        import optuna

        try:
            return super().objective(trial)
        except FloatingPointError as error:
            print(f"Trial {trial.number} diverged: {error}")
            raise optuna.TrialPruned from error
        except optuna.TrialPruned as pruned:
            cause = pruned.__cause__
            # torch's distributions say "invalid values" of NaN parameters; everything else is a bug.
            if cause is None or "invalid values" in str(cause):
                raise
            raise cause from None


def _recorded(wrapper: Callable[[Any], Any] | None, env: Any) -> Any:
    from sb3_ppo_variants.vec_env import record_episodes

    return record_episodes(env if wrapper is None else wrapper(env))


def read_vec_env(choice: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """How environments are vectorised, as a config writes it: a name, or a mapping of ``name`` and arguments.

    :return: one of ``VEC_ENVS``, and its arguments
    :raises ValueError: for an unknown name, or a mapping without one
    """
    arguments = dict(choice) if isinstance(choice, Mapping) else {"name": choice}
    if "name" not in arguments:
        raise ValueError(f"{VEC_ENV_KEY} must be a name or a mapping with a name; got {shown(choice)}")
    name = arguments.pop("name")
    check_names(VEC_ENV_KEY, [name], VEC_ENVS)
    return name, arguments


def _vec_env_class(name: str) -> type[VecEnv]:
    """The class that one of ``VEC_ENVS`` stands for.

    :raises ValueError: for one whose extra is not installed
    """
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    from sb3_ppo_variants import vec_env

    if name == "ray":
        try:
            return vec_env.RayVecEnv
        except ImportError as error:
            raise ValueError(f"{VEC_ENV_KEY}: ray cannot be used: {error}") from error
    classes: dict[str, type[VecEnv]] = {
        "dummy": DummyVecEnv,
        "subproc": SubprocVecEnv,
        "shared_memory": vec_env.SharedMemoryVecEnv,
    }
    return classes[name]


class _WordsAndLiterals(argparse.Action):
    """``key:value`` pairs whose values are Python literals, plain words, or as in YAML (``true``, ``{name: dummy}``).

    rl_zoo3's own action evaluates them as code, on which a plain word (``surrogate:log_clip``) fails.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        pairs = {}
        for pair in values:
            key, colon, value = pair.partition(":")
            if not colon:
                parser.error(f"argument {option_string}: expected key:value, got {pair!r}")
            is_yaml = value in ("true", "false", "null") or re.match(r"\s*\{\s*[A-Za-z_]\w*\s*:", value)
            pairs[key] = parse_yaml(value.encode(), key, named_levels=1) if is_yaml else read_literal(value, key)
        setattr(namespace, self.dest, pairs)


def read_literal(text: str, name: str = "a value") -> Any:
    """What a text stands for that :func:`read_expression` knows (a number, list, ``dict(…)``, …), or a plain word.

    :param name: of the setting, for messages
    :raises ValueError: for what looks like code and is not known
    """
    try:
        value = read_expression(name, text)
    except ValueError:
        if "(" in text or text.lstrip().startswith(("[", "{")):
            raise
        return text
    return text if isinstance(value, type) else value  # the name of a class is a word too


def _search_of(name: str) -> tuple[Callable[..., dict[str, Any]], Callable[..., dict[str, Any]]]:
    """What rl_zoo3's search samples for an algorithm, and how it reads a trial of it.

    That is rl_zoo3's space for PPO, without ε where clipping is off by default, and what is the variant's own.
    """
    from rl_zoo3 import hyperparams_opt

    from sb3_ppo_variants.tuning.spaces import OF_VARIANT, suggest

    sample_ppo: Any = hyperparams_opt.HYPERPARAMS_SAMPLER["ppo"]
    read_ppo: Any = hyperparams_opt.HYPERPARAMS_CONVERTER["ppo"]
    algorithm = getattr(sb3_ppo_variants, ALGORITHMS[name])
    left_out = set()
    if inspect.signature(algorithm).parameters["clip_range"].default is None:
        left_out = {"clip_range"}
    own = tuple(parameter for parameter in OF_VARIANT[name] if parameter.name != "clip_range")

    def fitting(settings: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in settings.items() if key not in left_out}

    class Fitting:
        """A trial that is not asked for what is left out."""

        def __init__(self, trial: Any):
            self._trial = trial

        def __getattr__(self, name: str) -> Any:
            return getattr(self._trial, name)

        def suggest_categorical(self, name: str, choices: Any) -> Any:
            return choices[0] if name in left_out else self._trial.suggest_categorical(name, choices)

    def sample(trial: Any, *arguments: Any) -> dict[str, Any]:
        return {**fitting(sample_ppo(Fitting(trial), *arguments)), **suggest(own, trial)}

    def read(params: Mapping[str, Any]) -> dict[str, Any]:
        return fitting(read_ppo(params))

    return sample, read


def register() -> None:
    """Make our algorithms, their configs and their search spaces known to rl_zoo3 in this process."""
    import rl_zoo3.enjoy
    import rl_zoo3.exp_manager
    import rl_zoo3.train
    import rl_zoo3.utils
    from rl_zoo3 import hyperparams_opt

    for name, class_name in ALGORITHMS.items():
        rl_zoo3.ALGOS[name] = getattr(sb3_ppo_variants, class_name)
        sample, read = _search_of(name)
        hyperparams_opt.HYPERPARAMS_SAMPLER[name], hyperparams_opt.HYPERPARAMS_CONVERTER[name] = sample, read
    manager = type("OurExperimentManager", (_OurExperiments, rl_zoo3.exp_manager.ExperimentManager), {})
    # Each script has its own reference to what it imported by name.
    for script in (rl_zoo3.train, rl_zoo3.enjoy):
        vars(script).update(ExperimentManager=manager, StoreDict=_WordsAndLiterals)
    vars(rl_zoo3.utils).update(StoreDict=_WordsAndLiterals)  # where record_video will find it
    for script in (rl_zoo3.enjoy, rl_zoo3.exp_manager, rl_zoo3.utils):
        vars(script).update(yaml=_SafeYaml())


class _SafeYaml:
    """Takes the place of the module ``yaml`` in rl_zoo3: all that is PyYAML's, but files are read as data."""

    def __init__(self) -> None:
        import yaml

        self._pyyaml = yaml

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pyyaml, name)

    def load(self, stream: Any, Loader: Any) -> Any:  # noqa: N803  # PyYAML's name
        """As PyYAML's; rl_zoo3 names the unsafe loader, and only for the files of a run."""
        if Loader is self._pyyaml.UnsafeLoader:
            return schema.read_run_file(Path(stream.name))
        return self._pyyaml.load(stream, Loader=Loader)

    @staticmethod
    def safe_load(stream: Any) -> Any:
        """As PyYAML's, which rl_zoo3 reads configs with; duplicate keys and the like are refused."""
        return load_yaml(Path(stream.name))


def is_ours(algo: str) -> bool:
    """Whether an algorithm in rl_zoo3's registry is one of the package's, or one that a user has derived of them."""
    import rl_zoo3

    return issubclass(rl_zoo3.ALGOS[algo], sb3_ppo_variants.PaperOnPolicyAlgorithm)


def algorithm_names() -> list[str]:
    """All algorithms that can be trained: ours first, then rl_zoo3's own."""
    import rl_zoo3

    return list(dict.fromkeys([*ALGORITHMS, *rl_zoo3.ALGOS]))


# ------------------------------------------------------------------ rl_zoo3's scripts


@contextmanager
def _command_line(program: str, arguments: list[str]) -> Iterator[None]:
    """rl_zoo3's scripts read ``sys.argv``."""
    before = sys.argv
    sys.argv = [program, *arguments]
    try:
        yield
    finally:
        sys.argv = before


def train(program: str, arguments: list[str], options: RunOptions | None = None) -> None:
    """Run ``rl_zoo3.train`` with these arguments.

    :param options: of a run that can be resumed; None: without resume bundles
    """
    _OurExperiments.run_options = options
    _OurExperiments.chooses_vec_env = any(argument.startswith("--vec") for argument in arguments)
    try:
        with _command_line(program, arguments):
            importlib.import_module("rl_zoo3.train").train()
    finally:
        _OurExperiments.run_options, _OurExperiments.chooses_vec_env = None, False


def make_model(
    algo: str, env_id: str, settings: Mapping[str, Any], folder: Path, seed: int, device: str = "auto"
) -> Any:
    """A model on its environments, as ``ppo-variants train`` makes them; nothing is trained yet.

    :param algo: a key of ``ALGORITHMS``
    :param settings: of the task, in the form of ``zoo_configs``
    :param folder: of the run; where it has resume bundles, ``learn(…, resume="auto")`` will go on with them
    :param seed: of weights, environments and whatever is drawn
    :return: the model; its environments are the caller's to close
    :raises ValueError: for settings that are not allowed; names the first
    """
    import rl_zoo3.train

    register()
    # With them `ppo-variants train --resume <folder>` makes the same run.
    arguments = ["--algo", algo, "--env", env_id, "--num-threads", "1"]
    options = RunOptions(folder, None, False, None, dict(settings), arguments)
    _OurExperiments.run_options = options
    try:
        # The manager tells what it reads, for which a study of hundreds of runs has no use.
        with redirect_stdout(io.StringIO()):
            manager = rl_zoo3.train.ExperimentManager(
                argparse.Namespace(algo=algo, env=env_id, seed=seed),
                algo,
                env_id,
                str(folder.parent),
                eval_freq=-1,
                log_interval=-1,
                seed=seed,
                verbose=0,
                device=device,
            )
            made = manager.setup_experiment()
    finally:
        _OurExperiments.run_options = None
    assert made is not None  # only where rl_zoo3 itself is to search
    return made[0]


def make_played_env(env_id: str, env_kwargs: Mapping[str, Any], settings: Mapping[str, Any]) -> VecEnv:
    """One environment as rl_zoo3's enjoy makes it, with raw observations and rewards, in this process.

    :param env_kwargs: of its constructor
    :param settings: of the run whose agent is to play: what wraps environments and stacks frames
    """
    from rl_zoo3.utils import create_test_env

    # Frames are stacked only where there is a folder of statistics; of ours nothing is read.
    return create_test_env(
        env_id,
        stats_path=".",
        should_render=False,
        hyperparams={"normalize": False, **schema.read_zoo_settings(settings, expressions=True)},
        env_kwargs=dict(env_kwargs),
    )


class Exported(NamedTuple):
    """An exported policy, for rl_zoo3's scripts in place of a run."""

    folder: Path
    algo: str
    env_id: str
    env_kwargs: dict[str, Any]
    settings: dict[str, Any]
    """what wraps environments and stacks frames"""


@contextmanager
def playing(exported: Exported) -> Iterator[None]:
    """Have rl_zoo3's ``enjoy`` and ``record_video`` find and load an exported policy, whatever they are asked for.

    They see a run without normalisation, which is in the policy.
    """
    import rl_zoo3.enjoy
    import rl_zoo3.utils
    import yaml

    from sb3_ppo_variants.export import load_policy

    class Loader:
        """Stands for the algorithm's class."""

        @staticmethod
        def load(path: str, device: str = "auto", **_: Any) -> Any:
            return load_policy(Path(path).parent, device)

    weights = str(exported.folder / "policy.safetensors")
    algorithm = rl_zoo3.ALGOS[exported.algo]
    with tempfile.TemporaryDirectory() as run:
        name = folder_name(exported.env_id)
        settings = Path(run, name)
        settings.mkdir()
        contents = {"config.yml": exported.settings, "args.yml": {"env_kwargs": exported.env_kwargs or None}}
        for file, content in contents.items():
            (settings / file).write_text(yaml.safe_dump(content), encoding="utf-8")
        places = [(vars(script), script.get_model_path) for script in (rl_zoo3.enjoy, rl_zoo3.utils)]
        rl_zoo3.ALGOS[exported.algo] = Loader  # type: ignore[assignment]
        for names, _ in places:
            names["get_model_path"] = lambda *_: (f"agent-{name}", weights, run)
        try:
            yield
        finally:
            rl_zoo3.ALGOS[exported.algo] = algorithm
            for names, original in places:
                names["get_model_path"] = original


def without_training_wrappers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings to play and to evaluate with: all but what :data:`TRAINING_WRAPPERS` names."""
    played = dict(settings)
    for key in played.keys() & set(WRAPPER_KEYS):
        wrappers = played[key] if isinstance(played[key], list) else [played[key]]
        kept = [wrapper for wrapper in wrappers if _full_name(schema.names_in(wrapper)[0]) not in TRAINING_WRAPPERS]
        if kept != wrappers:
            played[key] = kept
    return played


def _full_name(named: Any) -> Any:
    """The name of a class, as configs in Python give some; a name as it is."""
    return f"{named.__module__}.{named.__qualname__}" if isinstance(named, type) else named


@contextmanager
def _playing_a_run(arguments: list[str]) -> Iterator[None]:
    """Have rl_zoo3's scripts play a run as it is meant.

    Without its training wrappers, and the best model with the normaliser that was saved with it, not with the last one.
    """
    import rl_zoo3.enjoy
    import rl_zoo3.utils

    parser = argparse.ArgumentParser(add_help=False)  # abbreviations are allowed, as the scripts allow them
    for flag in ("--load-best", "--load-last-checkpoint"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--load-checkpoint")
    flags, _ = parser.parse_known_args(arguments)
    read, make = rl_zoo3.utils.get_saved_hyperparams, rl_zoo3.utils.create_test_env

    def of_the_best(stats_path: str, *rest: Any, **keywords: Any) -> Any:
        hyperparams, found = read(stats_path, *rest, **keywords)
        best = Path(stats_path, BEST_FOLDER)
        if not flags.load_best or found is None or not hyperparams.get("normalize"):
            return hyperparams, found
        if (best / NORMALISER).is_file():
            return hyperparams, str(best)
        print(f"The best model plays with the last normaliser: there is no {best / NORMALISER}")
        return hyperparams, found

    def whole_episodes(*arguments: Any, **keywords: Any) -> Any:
        keywords["hyperparams"] = without_training_wrappers(keywords["hyperparams"])
        return make(*arguments, **keywords)

    # Each script has its own reference.
    places = [vars(script) for script in (rl_zoo3, rl_zoo3.enjoy, rl_zoo3.utils)]
    for names in places:
        names.update(get_saved_hyperparams=of_the_best, create_test_env=whole_episodes)
    try:
        yield
    finally:
        for names in places:
            names.update(get_saved_hyperparams=read, create_test_env=make)


def enjoy(program: str, arguments: list[str]) -> None:
    """Run ``rl_zoo3.enjoy`` with these arguments."""
    with _command_line(program, arguments), _playing_a_run(arguments):
        importlib.import_module("rl_zoo3.enjoy").enjoy()


def record(program: str, arguments: list[str]) -> None:
    """Run ``rl_zoo3.record_video``, a script without a function, with these arguments."""
    with _playing_a_run(arguments):
        _run_script("rl_zoo3.record_video", program, arguments)


def _run_script(module: str, program: str, arguments: list[str]) -> None:
    def import_(name: str, *rest: Any, **keywords: Any) -> Any:
        return _SafeYaml() if name == "yaml" else builtins.__import__(name, *rest, **keywords)

    # The script imports PyYAML itself. Its own statements alone see this; what they import is left as it is.
    own_builtins = {**vars(builtins), "__import__": import_}
    with _command_line(program, arguments):
        runpy.run_module(module, {"__builtins__": own_builtins}, "__main__")


def push_to_hub(program: str, arguments: list[str]) -> None:
    """Run ``rl_zoo3.push_to_hub``, a script without a function, with these arguments.

    It imports ``generate_metadata`` from the Hub's integration, which since its version 3.2 calls it
    ``_generate_metadata`` and has it return an object in place of a dict.
    """
    # Of the same name as the function that the package imports from it.
    integration: Any = importlib.import_module("huggingface_sb3.push_to_hub")
    if not hasattr(integration, "generate_metadata"):

        def generate_metadata(*values: Any) -> dict[str, Any]:
            made: dict[str, Any] = integration._generate_metadata(*values).to_dict()
            return made

        integration.generate_metadata = generate_metadata
    with _playing_a_run(arguments):
        _run_script("rl_zoo3.push_to_hub", program, arguments)


def plot(program: str, arguments: list[str], picture: Path) -> None:
    """Run ``rl_zoo3.plots.plot_train`` with these arguments, into a PNG in place of a window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from rl_zoo3.plots.plot_train import plot_train

    show = plt.show
    plt.show = lambda *_args, **_kwargs: plt.savefig(picture, dpi=150)
    try:
        with _command_line(program, arguments):
            plot_train()
    finally:
        plt.show = show
        plt.close("all")
