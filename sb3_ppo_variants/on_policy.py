"""The one update driver: SB3's ``OnPolicyAlgorithm`` with the paper's Algorithm 1, and hooks for what differs.

A variant subclasses :class:`PaperOnPolicyAlgorithm` and writes ``objective``; nothing else is needed.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import EllipsisType
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.type_aliases import (
    GymEnv,
    PyTorchObs,
    RolloutBufferSamples,
    Schedule,
)
from stable_baselines3.common.utils import FloatSchedule, explained_variance, obs_as_tensor, update_learning_rate
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_ppo_variants import losses
from sb3_ppo_variants.arguments import extend_signature, require, require_bounds, require_choice
from sb3_ppo_variants.compilation import CompilationError, CompiledLoss, Terms, compiler_problem, warn_uncompiled
from sb3_ppo_variants.controllers import adapt_stepsize
from sb3_ppo_variants.distributions import ActionDistribution, from_sb3, has_exact_kl
from sb3_ppo_variants.evaluation import CalledPolicy, Evaluation, StockPolicy, evaluator_of
from sb3_ppo_variants.finite import describe_non_finite, is_finite, undone_on_divergence
from sb3_ppo_variants.initialization import normc_
from sb3_ppo_variants.metrics import MeanMetrics
from sb3_ppo_variants.optimizer import OptimizerSteps, is_fused, prefer_fused, steps_of
from sb3_ppo_variants.resume.learning import ResumableAlgorithm
from sb3_ppo_variants.rollout_data import CustomRollout, Rollout, StoredRollout, has_stock_reader, samples_of
from sb3_ppo_variants.symmetry import (
    MirrorSymmetry,
    SymmetricNetworks,
    check_policy,
    read_symmetry,
    symmetrize_statistics,
    symmetry_of,
)
from sb3_ppo_variants.vec_env import ChunkedVecEnv

# Keeps a standardised advantage finite where all advantages are equal (as SB3).
ADVANTAGE_EPSILON = 1e-8
# SB3's meaning of `target_kl`: an update stops early above 1.5 times it.
EARLY_STOPPING_FACTOR = 1.5


# A number; under `compile=True` a scalar tensor.
Coefficient = float | th.Tensor


# Every coefficient that may be a schedule of the remaining progress, 1 → 0, beside the learning rate.
_SCHEDULES = ("clip_range", "clip_range_vf", "ent_coef", "vf_coef", "log_std_schedule")


class Minibatch(NamedTuple):
    """A minibatch already evaluated under the current policy: all that a surrogate needs. ``M`` samples.

    Tensors are ``(M,)`` unless said otherwise; those under the current policy carry gradients.
    """

    observations: PyTorchObs
    """``(M, *obs_shape)``, or a dict of such tensors"""
    actions: th.Tensor
    """``(M, *action_shape)`` as the policy sampled them"""
    advantages: th.Tensor
    """Â, standardised as ``normalize_advantage`` says"""
    returns: th.Tensor
    """V_targ, the λ-return"""
    old_values: th.Tensor
    """V_old(s)"""
    old_log_prob: th.Tensor
    """log π_old(a|s)"""
    values: th.Tensor
    """V_θ(s)"""
    log_prob: th.Tensor
    """log π_θ(a|s)"""
    entropy: th.Tensor | None
    """S[π_θ](s) in nats; None where it has no closed form"""
    ratio: th.Tensor
    """r(θ) = π_θ(a|s) / π_old(a|s)"""
    kl: th.Tensor | None
    """Exact KL[π_old, π_θ](s) in nats; None unless the algorithm sets ``needs_kl``"""
    clip_range: Coefficient | None
    """ε of this update; None where nothing is clipped"""
    coefficients: Mapping[str, Coefficient]
    """what :meth:`PaperOnPolicyAlgorithm.coefficients` gave for this update"""


class UpdateConstants(NamedTuple):
    """What stays the same throughout one update."""

    clip_range: Coefficient | None
    clip_range_vf: Coefficient | None
    ent_coef: Coefficient
    vf_coef: Coefficient
    coefficients: Mapping[str, Coefficient]

    def as_tensors(self, device: th.device) -> UpdateConstants:
        """As scalar tensors, which compiled code takes without being compiled again for each value.

        What is None or exactly 0 stays: a term that is off costs nothing.
        """

        def convert(value: Any) -> Any:
            return value if value is None or value == 0 else th.tensor(value, dtype=th.float32, device=device)

        *others, coefficients = self
        scalars = {name: convert(value) for name, value in coefficients.items()}
        return type(self)(*map(convert, others), scalars)  # type: ignore[call-arg]


class PaperOnPolicyAlgorithm(ResumableAlgorithm):
    """Proximal policy optimisation as the paper's Algorithm 1 runs it, with the surrogate left open.

    Takes every argument of SB3's ``PPO``, in the same order and with the same meaning. While a ``SubprocVecEnv``,
    ``SharedMemoryVecEnv`` or ``RayVecEnv`` steps the environments, torch keeps to one thread; updates use all.
    The defaults are those of the paper's Table 3 (MuJoCo, 1M timesteps) and, where the paper is silent, of the authors'
    code for the standardisation of advantages, the weight of the value loss and the absence of gradient clipping.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"``, or a policy class
    :param env: a gymnasium environment, a ``VecEnv``, or an id
    :param learning_rate: Adam's stepsize, or a schedule of it (Table 3: 3e-4)
    :param n_steps: horizon T, timesteps per environment and update (Table 3: 2048)
    :param batch_size: minibatch size M, in timesteps (Table 3: 64)
    :param n_epochs: epochs K per update (Table 3: 10)
    :param gamma: discount γ (Table 3: 0.99)
    :param gae_lambda: λ of GAE, eqs. 10–12 (Table 3: 0.95)
    :param clip_range: ε of eq. 7, or a schedule of it; None: nothing is clipped; left out: the variant's default
        (Table 1's best: 0.2)
    :param clip_range_vf: how far V may move in an update, in units of the return; None (default): as far as it likes
    :param normalize_advantage: ``"batch"`` (default) standardises advantages over the whole batch, as the
        authors' code did (and with its population standard deviation); True over each minibatch, as SB3 does
        (with the sample one); False not at all
    :param ent_coef: c2 of eq. 9 (Table 3: 0), or a schedule of it
    :param vf_coef: c1 of eq. 9 (the authors' code: 1; without effect on the policy unless parameters are shared),
        or a schedule of it
    :param max_grad_norm: largest norm of the gradient; None (default) leaves the gradient alone
    :param use_sde: generalised state-dependent exploration, as SB3
    :param sde_sample_freq: timesteps between new gSDE noise; -1: once per rollout
    :param rollout_buffer_class: a buffer class of your own
    :param rollout_buffer_kwargs: its keyword arguments
    :param target_kl: SB3's early stopping: an update ends once a minibatch's ``approx_kl`` exceeds 1.5 times this
    :param stats_window_size: episodes over which the logged return and length are averaged
    :param tensorboard_log: folder for TensorBoard; None: none
    :param policy_kwargs: arguments of the policy
    :param verbose: 0 nothing, 1 information, 2 debugging
    :param seed: seed of all pseudo-random generators
    :param device: ``"cpu"``, ``"cuda"``, … or ``"auto"``
    :param clip_actions: whether Gaussian actions are clipped to the action space before the environment sees
        them, in rollouts and in ``predict`` (True, as SB3; the authors' code handed them over unclipped)
    :param bootstrap_on_timeout: whether an episode cut by a time limit is credited with γ V(last observation)
        (True, as SB3; the authors' code took time limits as terminal)
    :param stepsize_kl_target: a target for KL[π_old, π_new] > 0, in nats, to which Adam's stepsize adapts (Table 4,
        whose value the paper does not give; footnote 3's code): after each update it is divided by 1.5 above twice
        the target, multiplied by 1.5 below half of it. The live ``stepsize_factor`` multiplies ``learning_rate``,
        schedule or not, and is saved with the model. None (default): no adaptation
    :param stepsize_bounds: the smallest and the largest stepsize that the adaptation leads to
    :param log_std_schedule: the log standard deviation of Gaussian actions, or a schedule of it over the remaining
        progress 1 → 0 (Table 4: ``LinearSchedule(-0.7, -1.6, 1.0)``), set before each rollout and not learned. None
        (default): learned, as §6.1
    :param weight_init: ``"orthogonal"`` (SB3's) or ``"normc"`` (the authors' code's, July 2017)
    :param mirror_symmetry: True keeps the networks symmetric under the task's mirror image, which the environment tells
        as its attribute ``mirror_symmetry`` (the humanoids do): π(a|s) = π(M a|M s) and V(s) = V(M s), exactly, with
        half the free weights and at no cost; also ``{"observation": (indices, signs), "action": (indices, signs)}``,
        component i of the image being ``signs[i] * x[indices[i]]``. ``VecNormalize``'s statistics of observations
        become those of all that was seen together with its mirror image. False (default): nothing of it
    :param compile: compile the loss and its gradient with ``torch.compile``: SB3's stock policies only, gSDE aside.
        The first update takes some ten seconds longer. Equal to the plain path up to rounding; an ``objective`` of
        your own may then depend on the policy only through the minibatch
    :raises ValueError: for an argument outside its range, named in the message
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }

    needs_kl: ClassVar[bool] = False
    """Set it to True in a variant whose ``objective`` reads ``batch.kl``."""

    default_clip_range: ClassVar[float | None] = 0.2
    """The constructor's default for ``clip_range``."""

    clipping: ClassVar[Literal["required", "optional", "never"]] = "optional"
    """Whether a variant can do without a ``clip_range``, or with one. A zip is loaded with one in any case, as rl_zoo3
    hands one to every model."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # help() and completion show all arguments, also those that a variant hands through.
        parent = next(base for base in cls.__mro__[1:] if issubclass(base, PaperOnPolicyAlgorithm))
        signature = extend_signature(inspect.signature(parent), cls.__init__)
        parameters = dict(signature.parameters)
        if "clip_range" in parameters:
            parameters["clip_range"] = parameters["clip_range"].replace(default=cls.default_clip_range)
        cls.__signature__ = signature.replace(parameters=list(parameters.values()))  # type: ignore[attr-defined]

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule | EllipsisType | None = ...,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool | Literal["batch"] = "batch",
        ent_coef: float | Schedule = 0.0,
        vf_coef: float | Schedule = 1.0,
        max_grad_norm: float | None = None,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        clip_actions: bool = True,
        bootstrap_on_timeout: bool = True,
        stepsize_kl_target: float | None = None,
        stepsize_bounds: tuple[float, float] = (1e-5, 1e-2),
        log_std_schedule: float | Schedule | None = None,
        weight_init: Literal["orthogonal", "normc"] = "orthogonal",
        mirror_symmetry: bool | Mapping[str, Any] | MirrorSymmetry = False,
        compile: bool = False,  # noqa: A002  # torch's own word for it
    ):
        if clip_range is ...:
            clip_range = self.default_clip_range
        if self.clipping == "never" and clip_range is not None:
            name = type(self).__name__
            raise ValueError(f"clip_range must be None: {name} clips nothing (PPOClipPaper does); got {clip_range!r}")
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,  # type: ignore[arg-type]  # schedules are ours
            vf_coef=vf_coef,  # type: ignore[arg-type]
            max_grad_norm=max_grad_norm,  # type: ignore[arg-type]  # None is ours: no gradient clipping
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
        )
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.clip_actions = clip_actions
        self.bootstrap_on_timeout = bootstrap_on_timeout
        self.stepsize_kl_target = stepsize_kl_target
        self.stepsize_bounds = stepsize_bounds
        self.stepsize_factor = 1.0
        self.log_std_schedule = log_std_schedule
        self.weight_init = weight_init
        self.mirror_symmetry = mirror_symmetry
        self.compile = compile
        self.n_iterations = 0
        self._compiled: CompiledLoss | None = None
        self._cannot_compile = False
        if _init_setup_model:
            self._setup_model()
            self._check_rollout_size()
            self._warn_of_a_truncated_minibatch()

    # ---------------------------------------------------------------- hooks

    def objective(self, batch: Minibatch) -> th.Tensor:
        """The surrogate objective that the policy maximises, computed from the minibatch's tensors.

        They carry gradients, but need not lead back to the weights by autograd: see :class:`StockMlp`.

        :param batch: a minibatch of ``M`` samples
        :return: the objective of each sample, shape ``(M,)``
        """
        raise NotImplementedError(f"{type(self).__name__} defines no objective")

    def coefficients(self) -> dict[str, float]:
        """Numbers that the objective reads and that change between updates, by name.

        Evaluated before each update, logged as ``train/<name>``, and found in ``batch.coefficients``. Under
        ``compile=True``, each new value of any other attribute that the objective reads compiles it anew; after eight
        values updates go on uncompiled, with a warning.
        """
        return {}

    def minibatch_metrics(self, batch: Minibatch) -> dict[str, th.Tensor]:
        """What to log as ``train/<name>``: a scalar each, averaged over the minibatches of the update.

        Computed without gradients; by default ``clip_fraction``, the share of samples whose ratio lies outside
        1 ± ε, where there is an ε.
        """
        if batch.clip_range is None:
            return {}
        return {"clip_fraction": (th.abs(batch.ratio - 1) > batch.clip_range).float().mean()}

    def after_update(self, kl: float) -> None:
        """Called once per update, after the last epoch: the place for rules that prepare the next update.

        :param kl: exact E[KL[π_old, π_new]] over the whole batch, in nats; NaN where it is not known
        """

    # ---------------------------------------------------------------- set-up

    def _setup_model(self) -> None:
        self._check_arguments()
        super()._setup_model()
        for name in _SCHEDULES:
            value = getattr(self, name)
            if (name.startswith("clip_range") and value is not None) or callable(value):
                setattr(self, name, FloatSchedule(value))
        if self.weight_init == "normc":
            normc_(self.policy)
        self._set_up_symmetry()
        if isinstance(self.action_space, spaces.Box) and not (self.clip_actions or self.policy.squash_output):
            # SB3's `predict` clips to the policy's action space.
            self.policy.action_space = spaces.Box(-np.inf, np.inf, self.action_space.shape)
        prefer_fused(self.policy.optimizer)
        self._set_up_log_std()
        self._set_up_kl()

    def _set_up_symmetry(self) -> None:
        self._symmetric_networks: SymmetricNetworks | None = None
        if self.mirror_symmetry is False:
            return
        check_policy(self.policy)
        normalizer = self._vec_normalize_env
        if normalizer is not None and normalizer.observation_space.shape != self.observation_space.shape:
            raise ValueError("mirror_symmetry must be False where VecNormalize has observations of another shape")
        if self.mirror_symmetry is True:  # from a zip it comes as it was read
            self.mirror_symmetry = symmetry_of(self.env)
        self.mirror_symmetry = read_symmetry(self.mirror_symmetry, self.observation_space, self.action_space)
        self._symmetric_networks = SymmetricNetworks(self.policy, self.mirror_symmetry)
        self._symmetric_networks.begin()

    def _symmetric(self) -> SymmetricNetworks | None:
        """What keeps the networks symmetric, of the policy as it is now; None where nothing does.

        :raises ValueError: if a callback has replaced the policy by one that is not symmetric
        """
        if not isinstance(self.mirror_symmetry, MirrorSymmetry):
            return None
        if self._symmetric_networks is None or self._symmetric_networks.policy is not self.policy:
            self._symmetric_networks = SymmetricNetworks(self.policy, self.mirror_symmetry)
            self._symmetric_networks.require_symmetric()
        return self._symmetric_networks

    def set_parameters(self, *arguments: Any, **keywords: Any) -> None:
        """As SB3's.

        :raises ValueError: also for weights that are not symmetric, where ``mirror_symmetry`` asks for such
        """
        super().set_parameters(*arguments, **keywords)
        if (symmetric := self._symmetric()) is not None:
            symmetric.require_symmetric()

    def _set_up_log_std(self) -> None:
        if self.log_std_schedule is None:
            return
        if type(getattr(self.policy, "action_dist", None)) is not DiagGaussianDistribution:
            raise ValueError(
                f"log_std_schedule must be None unless actions are Gaussian (a Box action space, use_sde=False); "
                f"got {self.log_std_schedule!r} with {self.action_space} and use_sde={self.use_sde}"
            )
        self.policy.log_std.requires_grad_(False)
        self._set_log_std(self._current_progress_remaining)

    def _set_up_kl(self) -> None:
        distribution: Any = getattr(self.policy, "action_dist", None)
        self._knows_kl = has_exact_kl(distribution)
        if self._steers_by_kl and not self._knows_kl:
            from_sb3(distribution)  # raises, and names the distribution

    @property
    def _steers_by_kl(self) -> bool:
        """Whether anything depends on the exact KL, so that an update cannot do without it."""
        return self.needs_kl or self.stepsize_kl_target is not None

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_compiled", "_cannot_compile", "_symmetric_networks"]

    def _check_arguments(self) -> None:
        """Raise a ValueError that names the first argument outside its range; also runs when a zip is loaded."""
        for name in ("n_steps", "batch_size", "n_epochs"):
            require(name, getattr(self, name), "an integer >= 1", lambda value: value >= 1, integer=True)
        for name in ("gamma", "gae_lambda"):
            require(name, getattr(self, name), "a number in [0, 1]", lambda value: 0 <= value <= 1)
        for name in ("ent_coef", "vf_coef"):
            require(name, getattr(self, name), "a finite number or a schedule", math.isfinite, schedule=True)
        for name in ("max_grad_norm", "target_kl"):
            require(name, getattr(self, name), "a number >= 0 or None", lambda value: value >= 0, optional=True)
        require(
            "learning_rate", self.learning_rate, "a number >= 0 or a schedule", lambda value: value >= 0, schedule=True
        )
        optional = self.clipping != "required"
        allowed = "a number >= 0, a schedule or None" if optional else "a number >= 0 or a schedule"
        require("clip_range", self.clip_range, allowed, lambda value: value >= 0, schedule=True, optional=optional)
        allowed = "a number > 0, a schedule or None"
        require("clip_range_vf", self.clip_range_vf, allowed, lambda value: value > 0, schedule=True, optional=True)
        require_choice("normalize_advantage", self.normalize_advantage, (True, False, "batch"))
        require_choice("clip_actions", self.clip_actions, (True, False))
        require_choice("bootstrap_on_timeout", self.bootstrap_on_timeout, (True, False))
        require_choice("weight_init", self.weight_init, ("orthogonal", "normc"))
        require_choice("compile", self.compile, (True, False))
        allowed = "a finite number > 0 or None"
        target = self.stepsize_kl_target
        require("stepsize_kl_target", target, allowed, lambda value: 0 < value < math.inf, optional=True)
        require_bounds("stepsize_bounds", self.stepsize_bounds)
        allowed = "a finite number, a schedule or None"
        require("log_std_schedule", self.log_std_schedule, allowed, math.isfinite, schedule=True, optional=True)

    def _check_rollout_size(self) -> None:
        """Raise a ValueError if the rollouts of this environment are too small to standardise advantages."""
        rollout_size = self.n_steps * self.n_envs
        if self.normalize_advantage == "batch" and rollout_size < 2:
            raise ValueError(
                f"normalize_advantage='batch' needs n_steps * n_envs >= 2 samples to standardise; "
                f"got n_steps={self.n_steps} and n_envs={self.n_envs}"
            )
        if self.normalize_advantage is True and min(self.batch_size, rollout_size) < 2:
            raise ValueError(
                f"normalize_advantage=True needs batch_size >= 2 and n_steps * n_envs >= 2; "
                f"got batch_size={self.batch_size}, n_steps={self.n_steps} and n_envs={self.n_envs}"
            )

    def _warn_of_a_truncated_minibatch(self) -> None:
        rollout_size = self.n_steps * self.n_envs
        if rollout_size % self.batch_size > 0:
            # SB3's first words, so that its users' warning filters fit.
            warnings.warn(
                f"You have specified a mini-batch size of {self.batch_size}, which does not divide the rollout of "
                f"n_steps * n_envs = {rollout_size} samples: each epoch ends with a minibatch of "
                f"{rollout_size % self.batch_size}",
                stacklevel=4,  # the caller of a variant's constructor
            )

    # ---------------------------------------------------------------- acting

    def _to_environment(self, actions: np.ndarray) -> np.ndarray:
        """The sampled actions as the environment is to see them."""
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.policy.squash_output:
            return self.policy.unscale_action(actions)
        if not self.clip_actions:
            return actions
        return np.minimum(np.maximum(actions, self.action_space.low), self.action_space.high)

    def _set_log_std(self, progress_remaining: float) -> None:
        """Set the log standard deviation that the schedule gives, where there is one."""
        schedule: Any = self.log_std_schedule
        if schedule is None:
            return
        value = schedule(progress_remaining) if callable(schedule) else schedule
        if not math.isfinite(value):
            raise ValueError(f"log_std_schedule must stay finite; it gave {value} at {self._position()}")
        with th.no_grad():
            self.policy.log_std.fill_(value)

    def _act(self, evaluator: CalledPolicy, observations: PyTorchObs) -> tuple[np.ndarray, th.Tensor, th.Tensor]:
        """Sample actions, with V(s) and log π(a|s).

        :raises FloatingPointError: for observations or weights that are not finite, so that no action could be drawn
        """
        try:
            with th.no_grad():
                actions, values, log_probs = evaluator.act(observations)
            sampled = actions.cpu().numpy()
            if sampled.dtype.kind == "f" and math.isnan(sampled.sum()):
                raise ValueError("the policy gave an action that is NaN")
        except (RuntimeError, ValueError) as error:
            parts = observations.values() if isinstance(observations, dict) else [observations]
            if not all(bool(part.isfinite().all()) for part in parts):
                raise FloatingPointError(f"an observation is not finite at {self._position()}") from error
            if not self._has_finite_weights():
                raise self._divergence("a weight of the policy is not finite") from error
            raise
        return sampled, values, log_probs

    def _has_finite_weights(self) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in self.policy.state_dict().values())

    def _sample_noise(self, n_envs: int, step: int) -> None:
        """Draw a new gSDE noise matrix where one is due before ``step`` of the rollout."""
        if self.use_sde and self.sde_sample_freq > 0 and step % self.sde_sample_freq == 0:
            self.policy.reset_noise(n_envs)

    def _credit_timeouts(self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """Add γ V(last observation) to the last reward of each episode that a time limit cut, in place."""
        for idx in np.flatnonzero(dones) if dones.any() else ():
            last_observation = infos[idx].get("terminal_observation")
            if last_observation is None or not infos[idx].get("TimeLimit.truncated", False):
                continue
            observation = self.policy.obs_to_tensor(last_observation)[0]
            with th.no_grad():
                rewards[idx] += self.gamma * self.policy.predict_values(observation)[0]
            if not math.isfinite(rewards[idx]):
                raise FloatingPointError(
                    f"environment {idx} gave a terminal_observation whose value is not finite at {self._position()}"
                )

    def _require_finite(self, rewards: np.ndarray, observations: Any) -> None:
        """Check what the environments gave before anything is learned from it.

        :raises FloatingPointError: for a reward or an observation that is NaN or infinite; names the environment
        """
        normalizer = self._vec_normalize_env
        if normalizer is not None:  # which clips infinity, and spreads NaN over all environments
            observations = getattr(normalizer, "old_obs", observations)
            if self.num_timesteps > self._num_timesteps_at_start:  # before the first step there is no reward
                rewards = normalizer.old_reward
        if is_finite(rewards) and is_finite(observations):
            return
        counted = "" if normalizer is None else ", but VecNormalize has counted it: go on with saved statistics"
        raise FloatingPointError(
            f"{describe_non_finite(rewards, observations)} at {self._position()}; the weights have learned nothing "
            f"from it{counted}"
        )

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Fill the buffer with ``n_rollout_steps`` timesteps of each environment.

        As SB3's, with ``clip_actions`` and ``bootstrap_on_timeout``. Callbacks find the same names in
        ``locals``: ``actions``, ``clipped_actions`` (what the environment was given), ``values``,
        ``log_probs``, ``new_obs``, ``rewards``, ``dones``, ``infos``, ``n_steps``, … Torch keeps to one thread
        while the worker processes of a ``SubprocVecEnv``, ``SharedMemoryVecEnv`` or ``RayVecEnv`` step, as they
        would fight over the cores.

        :return: False if a callback ended the training
        """
        threads = th.get_num_threads()
        if isinstance(env.unwrapped, (SubprocVecEnv, ChunkedVecEnv)):
            th.set_num_threads(1)
        try:
            return self._collect(env, callback, rollout_buffer, n_rollout_steps)
        finally:
            th.set_num_threads(threads)

    def _collect(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        assert self._last_obs is not None, "collect_rollouts needs the observation that learn() sets up"
        self.policy.set_training_mode(False)
        self._set_log_std(self._progress_remaining())
        n_steps = 0
        rollout_buffer.reset()
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        callback.on_rollout_start()
        evaluator = self._evaluator()
        self._require_finite(np.zeros(env.num_envs), self._last_obs)

        while n_steps < n_rollout_steps:
            self._sample_noise(env.num_envs, n_steps)
            if evaluator.policy is not self.policy:  # replaced by a callback
                evaluator = self._evaluator()
            obs_tensor = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
            actions, values, log_probs = self._act(evaluator, obs_tensor)
            clipped_actions = self._to_environment(actions)
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs
            self._require_finite(rewards, new_obs)

            callback.update_locals(locals())
            if not callback.on_step():
                return False

            self._update_info_buffer(infos, dones)
            n_steps += 1
            if isinstance(self.action_space, spaces.Discrete):
                actions = actions.reshape(-1, 1)
            if self.bootstrap_on_timeout:
                self._credit_timeouts(rewards, dones, infos)
            rollout_buffer.add(
                self._last_obs,  # type: ignore[arg-type]
                actions,
                rewards,
                self._last_episode_starts,  # type: ignore[arg-type]
                values,
                log_probs,
            )
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones

        with th.no_grad():
            values = self.policy.predict_values(obs_as_tensor(new_obs, self.device))  # type: ignore[arg-type]
        rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
        self._symmetrize_normalizer()
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _symmetrize_normalizer(self) -> None:
        """Let observations be normalised symmetrically, where the networks are symmetric."""
        normalizer, symmetry = self._vec_normalize_env, self.mirror_symmetry
        if not isinstance(symmetry, MirrorSymmetry) or normalizer is None:
            return
        if not (normalizer.norm_obs and normalizer.training):
            return
        seen: Any = normalizer.get_original_obs()
        is_as_normalized = np.array_equal(normalizer.normalize_obs(seen), self._last_obs)  # type: ignore[arg-type]
        symmetrize_statistics(normalizer.obs_rms, symmetry.observation)  # type: ignore[arg-type]
        if is_as_normalized:  # what the next rollout begins with, as where the run is resumed here
            self._last_obs = normalizer.normalize_obs(seen)

    # ---------------------------------------------------------------- learning

    def train(self) -> None:
        """One update (Algorithm 1): K epochs of minibatch steps on the rollout, then the rules between updates.

        :raises FloatingPointError: if the training has diverged; names the iteration
        """
        self.n_iterations += 1
        self.policy.set_training_mode(False)
        prefer_fused(self.policy.optimizer)
        evaluator = self._evaluator()
        rollout = self._read_rollout(evaluator)
        if rollout is None:
            return
        self._standardize(rollout)
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        constants = self._update_constants()
        metrics = MeanMetrics()

        with undone_on_divergence(self.policy), self._naming_divergence():
            self._run_epochs(evaluator, rollout, constants, metrics)
            self.policy.set_training_mode(False)
            if (symmetric := self._symmetric()) is not None:
                symmetric.project_weights()
            kl = rollout.mean_kl(evaluator) if rollout.has_reference else math.nan
            means = metrics.means()
            self._check_for_divergence(means, kl)
        self._log_update(means, kl, constants, rollout)
        self._adapt_stepsize(kl)
        self.after_update(kl)

    def _standardize(self, rollout: Rollout) -> None:
        """Standardise the advantages of the whole batch, where that is asked for."""
        if self.normalize_advantage == "batch":
            rollout.standardize_advantages(ADVANTAGE_EPSILON)

    def _read_rollout(self, evaluator: CalledPolicy) -> Rollout | None:
        """What to learn from in this update: the rollout; None where there is nothing yet.

        By the fast path where the buffer is read by SB3's own methods.
        A buffer with methods of its own costs a copy of the policy for the KL: only where the algorithm needs it.
        """
        if has_stock_reader(self.rollout_buffer):
            return StoredRollout(samples_of(self.rollout_buffer), evaluator, with_reference=self._knows_kl)
        return CustomRollout(self.rollout_buffer, evaluator, with_reference=self._steers_by_kl)

    def _update_constants(self) -> UpdateConstants:
        """The coefficients of this update, from their schedules."""
        return UpdateConstants(
            clip_range=None if self.clipping == "never" else self._current_value("clip_range", self.clip_range),
            clip_range_vf=self._current_value("clip_range_vf", self.clip_range_vf),
            ent_coef=self._current_value("ent_coef", self.ent_coef, smallest=-math.inf),
            vf_coef=self._current_value("vf_coef", self.vf_coef, smallest=-math.inf),
            coefficients=self.coefficients(),
        )

    def _run_epochs(
        self, evaluator: CalledPolicy, rollout: Rollout, constants: UpdateConstants, metrics: MeanMetrics
    ) -> None:
        compiled = self._compiled_loss(evaluator)
        steps = steps_of(self.policy.optimizer)
        try:
            for epoch in range(self.n_epochs):
                finished = self._run_epoch(evaluator, compiled, rollout, constants, steps, metrics)
                self._n_updates += 1
                if not finished:
                    if self.verbose >= 1:
                        print(f"Stopped the update in epoch {epoch}: approx_kl exceeds 1.5 * target_kl")
                    break
        finally:
            steps.finish()

    def _run_epoch(
        self,
        evaluator: CalledPolicy,
        compiled: CompiledLoss | None,
        rollout: Rollout,
        constants: UpdateConstants,
        steps: OptimizerSteps,
        metrics: MeanMetrics,
    ) -> bool:
        """One pass through the rollout; False if ``target_kl`` ended it."""
        tensors = None if compiled is None else constants.as_tensors(self.device)
        for samples, old_distribution in rollout.minibatches(self.batch_size, with_reference=self.needs_kl):
            steps.zero_grad()
            samples = self._prepare(samples)
            terms = None
            if compiled is not None and not self._cannot_compile:
                try:
                    terms = compiled.differentiate(samples, old_distribution, tensors)
                except CompilationError as error:
                    self._give_up_compiling(str(error))
            if terms is None:
                terms = self._differentiate(evaluator, samples, old_distribution, constants)
            metrics.add(terms)
            if not self._step(steps, terms["approx_kl"]):
                return False
        return True

    def _evaluator(self) -> CalledPolicy:
        """The way to evaluate the policy; with SB3's very rounding where Adam is as SB3's, not fused."""
        return evaluator_of(self.policy, exact_rounding=not is_fused(self.policy.optimizer))

    def _compiled_loss(self, evaluator: CalledPolicy) -> CompiledLoss | None:
        """The compiled loss, kept from update to update; None where there is none to use."""
        if not self.compile or self._cannot_compile:
            return None
        if self._compiled is not None and self._compiled.serves(evaluator):
            return self._compiled
        if not isinstance(evaluator, StockPolicy) or self.use_sde:
            self._give_up_compiling("it covers SB3's own policies without gSDE, which this policy is not")
            return None
        if (problem := compiler_problem()) is not None:
            self._give_up_compiling(problem)
            return None
        self._compiled = CompiledLoss(evaluator, self._loss_terms)
        return self._compiled

    def _give_up_compiling(self, reason: str) -> None:
        warn_uncompiled(reason)
        self._cannot_compile = True

    def _current_value(self, name: str, schedule: Any, smallest: float = 0.0) -> Any:
        """A coefficient's value in this update: a number, or what its schedule gives; None for None.

        :raises ValueError: if the schedule gives a number that is not allowed
        """
        if not callable(schedule):
            return schedule
        # The last rollout may end beyond the training's end; a line down to 0 is not to become negative there. (SB3's
        # learning rate does, and ours with it.)
        value = schedule(max(0.0, self._current_progress_remaining))
        if not smallest <= value < math.inf or math.isnan(value):
            allowed = "finite" if smallest == -math.inf else f"finite and >= {smallest:g}"
            raise ValueError(f"{name} must be {allowed} throughout; its schedule gave {value} at {self._position()}")
        return value

    def _with_flat_actions(self, samples: RolloutBufferSamples) -> RolloutBufferSamples:
        if not isinstance(self.action_space, spaces.Discrete):
            return samples
        return samples._replace(actions=samples.actions.long().flatten())

    def _prepare(self, samples: RolloutBufferSamples) -> RolloutBufferSamples:
        """A minibatch's samples as the loss takes them."""
        samples = self._with_flat_actions(samples)
        # A last, truncated minibatch of one sample has no deviation; SB3 leaves it as it is.
        if self.normalize_advantage is True and len(samples.advantages) > 1:
            advantages = samples.advantages
            advantages = (advantages - advantages.mean()) / (advantages.std() + ADVANTAGE_EPSILON)
            samples = samples._replace(advantages=advantages)
        return samples

    def _differentiate(
        self,
        evaluator: CalledPolicy,
        samples: RolloutBufferSamples,
        old_distribution: ActionDistribution | None,
        constants: UpdateConstants,
    ) -> Terms:
        """Put the gradient of a minibatch's loss into the parameters' ``grad``; return the terms of the loss."""
        evaluation = evaluator.evaluate(samples.observations, samples.actions, self.needs_kl)
        terms = self._loss_terms(evaluation, samples, old_distribution, constants)
        evaluator.backward(terms["loss"])
        return terms

    def _loss_terms(
        self,
        evaluation: Evaluation,
        samples: RolloutBufferSamples,
        old_distribution: ActionDistribution | None,
        constants: UpdateConstants,
    ) -> Terms:
        """The loss ``−objective − c2 S + c1 L^VF`` (eq. 9), its terms and what else is logged: scalars by name."""
        batch = self._minibatch(evaluation, samples, old_distribution, constants)
        policy_loss = -self.objective(batch).mean()
        value_loss = self._value_loss(batch.values, samples, constants)
        # Without a closed form, the negative log-probability of the taken actions estimates the entropy.
        entropy_loss = -th.mean(-batch.log_prob if batch.entropy is None else batch.entropy)
        loss = policy_loss
        if not _is(0, constants.ent_coef):
            loss = loss + constants.ent_coef * entropy_loss
        if not _is(0, constants.vf_coef):
            loss = loss + (value_loss if _is(1, constants.vf_coef) else constants.vf_coef * value_loss)
        with th.no_grad():
            return {
                **self.minibatch_metrics(batch),
                "policy_gradient_loss": policy_loss,
                "value_loss": value_loss,
                "entropy_loss": entropy_loss,
                "approx_kl": losses.approximate_kl(batch.log_prob - batch.old_log_prob),
                "loss": loss,
            }

    def _value_loss(self, values: th.Tensor, samples: RolloutBufferSamples, constants: UpdateConstants) -> th.Tensor:
        if constants.clip_range_vf is not None:
            values = losses.clipped_values(values, samples.old_values, constants.clip_range_vf)
        return losses.value_loss(values, samples.returns)

    def _minibatch(
        self,
        evaluation: Evaluation,
        samples: RolloutBufferSamples,
        old_distribution: ActionDistribution | None,
        constants: UpdateConstants,
    ) -> Minibatch:
        kl = None
        if self.needs_kl and old_distribution is not None and evaluation.distribution is not None:
            kl = old_distribution.kl(evaluation.distribution)  # type: ignore[arg-type]  # both are of one kind
        return Minibatch(
            observations=samples.observations,
            actions=samples.actions,
            advantages=samples.advantages,
            returns=samples.returns,
            old_values=samples.old_values,
            old_log_prob=samples.old_log_prob,
            values=evaluation.values,
            log_prob=evaluation.log_prob,
            entropy=evaluation.entropy,
            ratio=losses.probability_ratio(evaluation.log_prob, samples.old_log_prob),
            kl=kl,
            clip_range=constants.clip_range,
            coefficients=constants.coefficients,
        )

    def _step(self, steps: OptimizerSteps, approx_kl: th.Tensor) -> bool:
        """One step of the optimiser; False, and none, if ``target_kl`` forbids it."""
        if self.target_kl is not None and approx_kl.item() > EARLY_STOPPING_FACTOR * self.target_kl:
            return False
        self._clip_and_step(steps)
        return True

    def _clip_and_step(self, steps: OptimizerSteps) -> None:
        if (symmetric := self._symmetric()) is not None:
            symmetric.project_gradients()
        if self.max_grad_norm is not None:
            th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        steps.step()

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        """Set and log Adam's stepsize: the schedule's value times ``stepsize_factor``."""
        stepsize = self._stepsize()
        self.logger.record("train/learning_rate", stepsize)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            update_learning_rate(optimizer, stepsize)

    def _stepsize(self) -> float:
        scheduled = self.lr_schedule(self._current_progress_remaining)
        if self.stepsize_kl_target is None:
            return scheduled
        smallest, largest = self.stepsize_bounds  # which a schedule may leave, but no factor
        return min(max(scheduled * self.stepsize_factor, min(smallest, scheduled)), max(largest, scheduled))

    def _adapt_stepsize(self, kl: float) -> None:
        """Set the ``stepsize_factor`` of the next update from this one's KL (Table 4, footnote 3)."""
        scheduled = self.lr_schedule(self._current_progress_remaining)
        if self.stepsize_kl_target is None or scheduled == 0:
            return
        adapted = adapt_stepsize(self._stepsize(), kl, self.stepsize_kl_target, self.stepsize_bounds)
        self.stepsize_factor = adapted / scheduled

    def _check_for_divergence(self, means: Mapping[str, float], kl: float) -> None:
        """Raise a FloatingPointError if the update left the finite numbers."""
        if not math.isfinite(means["loss"]):
            raise self._divergence(f"the loss is {means['loss']}")
        if self._steers_by_kl and not math.isfinite(kl):
            raise self._divergence(f"KL[π_old, π_new] is {kl}")
        if not self._has_finite_weights():
            raise self._divergence("a weight of the policy is not finite")

    def _position(self) -> str:
        """Where the training stands, for messages."""
        return f"iteration {self.n_iterations} ({self.num_timesteps} timesteps)"

    @contextmanager
    def _naming_divergence(self) -> Iterator[None]:
        """Turn torch's complaint about a distribution's parameters into one that says what happened and when."""
        try:
            yield
        except ValueError as error:
            if "to satisfy the constraint" not in str(error):
                raise
            raise self._divergence("the policy's distribution has parameters outside their range") from error

    def _divergence(self, what: str) -> FloatingPointError:
        return FloatingPointError(
            f"{what} at {self._position()}: the training has diverged, and the weights are those before this update; "
            f"go on with a smaller learning_rate or fewer n_epochs"
        )

    def _log_update(self, means: dict[str, float], kl: float, constants: UpdateConstants, rollout: Rollout) -> None:
        """Log the update under SB3's names: means over all its minibatches, and the exact KL after it."""
        for name, value in means.items():
            self.logger.record(f"train/{name}", value)
        if not math.isnan(kl):
            self.logger.record("train/kl", kl)
        if "value_loss" in means:
            self.logger.record("train/explained_variance", explained_variance(*rollout.values_and_returns()))
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, coefficient in self._in_force(constants).items():
            self.logger.record(f"train/{name}", coefficient)

    def _in_force(self, constants: UpdateConstants) -> dict[str, Coefficient]:
        """The coefficients of an update that are logged: limits where there are any, weights where they change."""
        values: dict[str, Any] = {"clip_range": constants.clip_range, "clip_range_vf": constants.clip_range_vf}
        for name in ("ent_coef", "vf_coef"):
            if callable(getattr(self, name)):
                values[name] = getattr(constants, name)
        values.update(constants.coefficients)
        return {name: value for name, value in values.items() if value is not None}


def _is(number: int, coefficient: Coefficient) -> bool:
    """Whether a coefficient is just this number: a term times 0 or 1 costs nothing then."""
    return not isinstance(coefficient, th.Tensor) and coefficient == number
