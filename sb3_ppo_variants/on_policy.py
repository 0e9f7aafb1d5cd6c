"""The one update driver: SB3's ``OnPolicyAlgorithm`` with the paper's Algorithm 1, and hooks for what differs.

A variant subclasses :class:`PaperOnPolicyAlgorithm` and writes ``objective``; nothing else is needed.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    PyTorchObs,
    RolloutBufferSamples,
    Schedule,
)
from stable_baselines3.common.utils import FloatSchedule, explained_variance, obs_as_tensor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_ppo_variants import losses
from sb3_ppo_variants.arguments import extend_signature, require, require_choice
from sb3_ppo_variants.distributions import ActionDistribution, family_of
from sb3_ppo_variants.metrics import MeanMetrics
from sb3_ppo_variants.rollout_data import CustomRollout, Rollout, StoredRollout, has_stock_reader, policy_distribution

SelfAlgorithm = TypeVar("SelfAlgorithm", bound="PaperOnPolicyAlgorithm")

# Keeps a standardised advantage finite where all advantages are equal (as SB3).
ADVANTAGE_EPSILON = 1e-8
# SB3's meaning of `target_kl`: an update stops early above 1.5 times it.
EARLY_STOPPING_FACTOR = 1.5


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
    clip_range: float | None
    """ε of this update; None where nothing is clipped"""


class _UpdateConstants(NamedTuple):
    """What stays the same throughout one update."""

    clip_range: float | None
    clip_range_vf: float | None
    advantage_mean: float
    advantage_std: float


class PaperOnPolicyAlgorithm(OnPolicyAlgorithm):
    """Proximal policy optimisation as the paper's Algorithm 1 runs it, with the surrogate left open.

    Takes every argument of SB3's ``PPO``, in the same order and with the same meaning. While a
    ``SubprocVecEnv`` steps the environments, torch keeps to one thread; updates use all. The defaults are those
    of the paper's Table 3 (MuJoCo, 1M timesteps) and, where the paper is silent, of the authors' code for the
    standardisation of advantages, the weight of the value loss and the absence of gradient clipping.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"``, or a policy class
    :param env: a gymnasium environment, a ``VecEnv``, or an id
    :param learning_rate: Adam's stepsize, or a schedule of it (Table 3: 3e-4)
    :param n_steps: horizon T, timesteps per environment and update (Table 3: 2048)
    :param batch_size: minibatch size M, in timesteps (Table 3: 64)
    :param n_epochs: epochs K per update (Table 3: 10)
    :param gamma: discount γ (Table 3: 0.99)
    :param gae_lambda: λ of GAE, eqs. 10–12 (Table 3: 0.95)
    :param clip_range: ε of eq. 7, or a schedule of it (Table 1's best: 0.2); None: nothing is clipped
    :param clip_range_vf: how far V may move in an update, in units of the return; None (default): as far as it likes
    :param normalize_advantage: ``"batch"`` (default) standardises advantages over the whole batch, as the
        authors' code did (and with its population standard deviation); True over each minibatch, as SB3 does
        (with the sample one); False not at all
    :param ent_coef: c2 of eq. 9 (Table 3: 0)
    :param vf_coef: c1 of eq. 9 (the authors' code: 1; without effect on the policy unless parameters are shared)
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
    :raises ValueError: for an argument outside its range, named in the message
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }

    needs_kl: ClassVar[bool] = False
    """Set it to True in a variant whose ``objective`` reads ``batch.kl``."""

    clip_range_is_optional: ClassVar[bool] = True
    """Set it to False in a variant that cannot do without a ``clip_range``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # help() and completion show all arguments, also those that a variant hands through.
        cls.__signature__ = extend_signature(inspect.signature(cls.__base__), cls.__init__)  # type: ignore[attr-defined, arg-type]

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
        clip_range: float | Schedule | None = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool | Literal["batch"] = "batch",
        ent_coef: float = 0.0,
        vf_coef: float = 1.0,
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
    ):
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
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
        self.n_iterations = 0
        if _init_setup_model:
            self._setup_model()
            self._check_rollout_size()
            self._warn_of_a_truncated_minibatch()

    # ---------------------------------------------------------------- hooks

    def objective(self, batch: Minibatch) -> th.Tensor:
        """The surrogate objective that the policy maximises.

        :param batch: a minibatch of ``M`` samples
        :return: the objective of each sample, shape ``(M,)``
        """
        raise NotImplementedError(f"{type(self).__name__} defines no objective")

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
        if self.clip_range is not None:
            self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)
        if isinstance(self.action_space, spaces.Box) and not (self.clip_actions or self.policy.squash_output):
            # SB3's `predict` clips to the policy's action space.
            self.policy.action_space = spaces.Box(-np.inf, np.inf, self.action_space.shape)
        distribution: Any = getattr(self.policy, "action_dist", None)
        self._knows_kl = family_of(distribution) is not None
        if self.needs_kl and not self._knows_kl:
            ActionDistribution.from_sb3(distribution)  # raises, and names the distribution

    def _check_arguments(self) -> None:
        """Raise a ValueError that names the first argument outside its range; also runs when a zip is loaded."""
        for name in ("n_steps", "batch_size", "n_epochs"):
            require(name, getattr(self, name), "an integer >= 1", lambda value: value >= 1, integer=True)
        for name in ("gamma", "gae_lambda"):
            require(name, getattr(self, name), "a number in [0, 1]", lambda value: 0 <= value <= 1)
        for name in ("ent_coef", "vf_coef"):
            require(name, getattr(self, name), "a finite number", math.isfinite)
        for name in ("max_grad_norm", "target_kl"):
            require(name, getattr(self, name), "a number >= 0 or None", lambda value: value >= 0, optional=True)
        require(
            "learning_rate", self.learning_rate, "a number >= 0 or a schedule", lambda value: value >= 0, schedule=True
        )
        allowed = "a number >= 0, a schedule or None" if self.clip_range_is_optional else "a number >= 0 or a schedule"
        optional = self.clip_range_is_optional
        require("clip_range", self.clip_range, allowed, lambda value: value >= 0, schedule=True, optional=optional)
        allowed = "a number > 0, a schedule or None"
        require("clip_range_vf", self.clip_range_vf, allowed, lambda value: value > 0, schedule=True, optional=True)
        require_choice("normalize_advantage", self.normalize_advantage, (True, False, "batch"))
        require_choice("clip_actions", self.clip_actions, (True, False))
        require_choice("bootstrap_on_timeout", self.bootstrap_on_timeout, (True, False))

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
        return np.clip(actions, self.action_space.low, self.action_space.high)

    def _sample_noise(self, n_envs: int, step: int) -> None:
        """Draw a new gSDE noise matrix where one is due before ``step`` of the rollout."""
        if self.use_sde and self.sde_sample_freq > 0 and step % self.sde_sample_freq == 0:
            self.policy.reset_noise(n_envs)

    def _credit_timeouts(self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """Add γ V(last observation) to the last reward of each episode that a time limit cut, in place."""
        for idx in np.flatnonzero(dones):
            last_observation = infos[idx].get("terminal_observation")
            if last_observation is None or not infos[idx].get("TimeLimit.truncated", False):
                continue
            observation = self.policy.obs_to_tensor(last_observation)[0]
            with th.no_grad():
                rewards[idx] += self.gamma * self.policy.predict_values(observation)[0]

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
        while the worker processes of a ``SubprocVecEnv`` step, as they would fight over the cores.

        :return: False if a callback ended the training
        """
        threads = th.get_num_threads()
        if isinstance(env.unwrapped, SubprocVecEnv):
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
        n_steps = 0
        rollout_buffer.reset()
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        callback.on_rollout_start()

        while n_steps < n_rollout_steps:
            self._sample_noise(env.num_envs, n_steps)
            with th.no_grad():
                obs_tensor = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
                actions, values, log_probs = self.policy(obs_tensor)
            actions = actions.cpu().numpy()
            clipped_actions = self._to_environment(actions)
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs

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
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    # ---------------------------------------------------------------- learning

    def train(self) -> None:
        """One update (Algorithm 1): K epochs of minibatch steps on the rollout, then the rules between updates.

        :raises FloatingPointError: if the training has diverged; names the iteration
        """
        self.n_iterations += 1
        self.policy.set_training_mode(False)
        rollout = self._read_rollout()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        constants = _UpdateConstants(
            clip_range=self._current_value("clip_range", self.clip_range),
            clip_range_vf=self._current_value("clip_range_vf", self.clip_range_vf),
            advantage_mean=float(self.rollout_buffer.advantages.mean()),
            advantage_std=float(self.rollout_buffer.advantages.std()),
        )
        metrics = MeanMetrics()

        with self._naming_divergence():
            self._run_epochs(rollout, constants, metrics)
            self.policy.set_training_mode(False)
            kl = rollout.mean_kl(self.policy) if rollout.has_reference else math.nan
        means = metrics.means()
        if not math.isfinite(means["loss"]):
            raise self._divergence(f"the loss is {means['loss']}")
        self._log_update(means, kl, constants)
        self.after_update(kl)

    def _read_rollout(self) -> Rollout:
        """The rollout, by the fast path where the buffer is read by SB3's own methods.

        A buffer with methods of its own costs a copy of the policy for the KL: only where the algorithm needs it.
        """
        if has_stock_reader(self.rollout_buffer):
            return StoredRollout(self.rollout_buffer, self.policy, with_reference=self._knows_kl)
        return CustomRollout(self.rollout_buffer, self.policy, with_reference=self.needs_kl)

    def _run_epochs(self, rollout: Rollout, constants: _UpdateConstants, metrics: MeanMetrics) -> None:
        for epoch in range(self.n_epochs):
            finished = True
            for samples, old_distribution in rollout.minibatches(self.batch_size):
                batch = self._evaluate(samples, old_distribution, constants)
                finished = self._minibatch_step(batch, constants.clip_range_vf, metrics)
                if not finished:
                    break
            self._n_updates += 1
            if not finished:
                if self.verbose >= 1:
                    print(f"Stopped the update in epoch {epoch}: approx_kl exceeds 1.5 * target_kl")
                break

    def _current_value(self, name: str, schedule: Any) -> float | None:
        """A coefficient's value in this update, from its schedule."""
        if schedule is None:
            return None
        value = schedule(self._current_progress_remaining)
        if not value >= 0:
            raise ValueError(f"{name} must be >= 0 throughout; its schedule gave {value} at {self._position()}")
        return value

    def _evaluate(
        self, samples: RolloutBufferSamples, old_distribution: ActionDistribution | None, constants: _UpdateConstants
    ) -> Minibatch:
        """Evaluate a minibatch under the current policy."""
        actions = samples.actions
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        values, log_prob, entropy = self.policy.evaluate_actions(samples.observations, actions)
        kl = None
        if self.needs_kl and old_distribution is not None:
            kl = old_distribution.kl(self._just_evaluated(samples.observations))
        return Minibatch(
            observations=samples.observations,
            actions=actions,
            advantages=self._standardise(samples.advantages, constants),
            returns=samples.returns,
            old_values=samples.old_values,
            old_log_prob=samples.old_log_prob,
            values=values.flatten(),
            log_prob=log_prob,
            entropy=entropy,
            ratio=losses.probability_ratio(log_prob, samples.old_log_prob),
            kl=kl,
            clip_range=constants.clip_range,
        )

    def _just_evaluated(self, observations: PyTorchObs) -> ActionDistribution:
        """π_θ at the observations that ``evaluate_actions`` has just seen, with gradients.

        SB3's own ``evaluate_actions`` leaves it in ``policy.action_dist``; a user's may not.
        """
        policy = getattr(self.policy, "_orig_mod", self.policy)  # what torch.compile wraps
        if type(policy).evaluate_actions is ActorCriticPolicy.evaluate_actions:
            return ActionDistribution.from_sb3(self.policy.action_dist)
        return policy_distribution(self.policy, observations)

    def _standardise(self, advantages: th.Tensor, constants: _UpdateConstants) -> th.Tensor:
        if self.normalize_advantage == "batch":
            return (advantages - constants.advantage_mean) / (constants.advantage_std + ADVANTAGE_EPSILON)
        # A last, truncated minibatch of one sample has no deviation; SB3 leaves it as it is.
        if self.normalize_advantage and len(advantages) > 1:
            return (advantages - advantages.mean()) / (advantages.std() + ADVANTAGE_EPSILON)
        return advantages

    def _minibatch_step(self, batch: Minibatch, clip_range_vf: float | None, metrics: MeanMetrics) -> bool:
        """One gradient step on ``−objective − c2 S + c1 L^VF`` (eq. 9); False if ``target_kl`` forbids it."""
        policy_loss = -self.objective(batch).mean()
        values = batch.values
        if clip_range_vf is not None:
            values = losses.clipped_values(values, batch.old_values, clip_range_vf)
        value_loss = losses.value_loss(values, batch.returns)
        # Without a closed form, the negative log-probability of the taken actions estimates the entropy.
        entropy_loss = -th.mean(-batch.log_prob if batch.entropy is None else batch.entropy)
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss

        with th.no_grad():
            approx_kl = losses.approximate_kl(batch.log_prob - batch.old_log_prob)
            measured = {
                "policy_gradient_loss": policy_loss,
                "value_loss": value_loss,
                "entropy_loss": entropy_loss,
                "loss": loss,
                "approx_kl": approx_kl,
            }
            metrics.add({**self.minibatch_metrics(batch), **measured})
        if self.target_kl is not None and approx_kl.item() > EARLY_STOPPING_FACTOR * self.target_kl:
            return False

        self.policy.optimizer.zero_grad()
        loss.backward()
        if self.max_grad_norm is not None:
            th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        return True

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
            f"{what} at {self._position()}: the training has diverged; go back to the last saved model, with a "
            f"smaller learning_rate or fewer n_epochs"
        )

    def _log_update(self, means: dict[str, float], kl: float, constants: _UpdateConstants) -> None:
        """Log the update under SB3's names: means over all its minibatches, and the exact KL after it."""
        for name, value in means.items():
            self.logger.record(f"train/{name}", value)
        if not math.isnan(kl):
            self.logger.record("train/kl", kl)
        buffer = self.rollout_buffer
        explained = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        self.logger.record("train/explained_variance", explained)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, limit in (("clip_range", constants.clip_range), ("clip_range_vf", constants.clip_range_vf)):
            if limit is not None:
                self.logger.record(f"train/{name}", limit)

    def learn(
        self: SelfAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfAlgorithm:
        """Train for ``total_timesteps``, as SB3's ``learn``.

        :param tb_log_name: name of the TensorBoard run; None: the algorithm's name
        :return: the algorithm itself
        :raises ValueError: if the rollouts are too small to standardise advantages
        """
        self._check_rollout_size()
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name or type(self).__name__,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )
