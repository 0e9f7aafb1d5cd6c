"""The settings of the paper's experiments as data, each value with its source.

A preset is a mapping of keyword arguments::

    from sb3_ppo_variants import PPOClipPaper, presets

    preset = presets.ROBOSCHOOL_LOCOMOTION
    model = PPOClipPaper("MlpPolicy", "RoboschoolHumanoid-v1", **preset)
    model.learn(preset.run["n_timesteps"])

and ``{**preset, "gamma": 0.98}`` is one with another discount. What the constructor does not take (number of actors,
timesteps, wrappers, normalisation) is in :attr:`Preset.run`, under the names that rl_zoo3's configs give it.

ε is not among the MuJoCo and Roboschool settings: Table 1 varies it, and not every surrogate has one. The algorithms'
own defaults are Table 1's best. Where the paper is silent and a preset says nothing, the constructor's default holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from types import MappingProxyType
from typing import Any

from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from sb3_ppo_variants.arguments import require

Sourced = tuple[Any, str]


class Preset(Mapping[str, Any]):
    """Keyword arguments of an algorithm's constructor, and what else its experiment needs; it cannot be changed.

    :param settings: name of each constructor argument → its value and the source of that value
    :param run: the same for what belongs to the run: ``policy`` (the constructor's first argument), ``n_envs`` (N,
        environments), ``n_timesteps`` (over all environments) and, where used, ``normalize`` (arguments of
        ``VecNormalize``), ``env_wrapper``, ``frame_stack`` and ``env_kwargs``
    """

    __slots__ = ("_run", "_settings")

    def __init__(self, settings: Mapping[str, Sourced], run: Mapping[str, Sourced]):
        self._settings = dict(settings)
        self._run = dict(run)

    def __getitem__(self, name: str) -> Any:
        return deepcopy(self._settings[name][0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)

    def __repr__(self) -> str:
        return f"Preset({dict(self)!r}, run={self.run!r})"

    @property
    def run(self) -> dict[str, Any]:
        """What the constructor does not take, as a copy."""
        return {name: deepcopy(value) for name, (value, _) in self._run.items()}

    @property
    def sources(self) -> dict[str, str]:
        """Where each value is from, the run's included, as a copy."""
        return {name: source for name, (_, source) in {**self._settings, **self._run}.items()}

    def extended(
        self, settings: Mapping[str, Sourced] | None = None, run: Mapping[str, Sourced] | None = None
    ) -> Preset:
        """A preset with these values added, in place of its own where it has one.

        :param settings: as the constructor's
        :param run: as the constructor's
        """
        return Preset({**self._settings, **(settings or {})}, {**self._run, **(run or {})})


def _two_layers(units: int, source: str) -> Sourced:
    """An MLP of two tanh layers for the policy, and one like it, apart from it, for the value function."""
    layers = [units, units]
    return {"net_arch": {"pi": layers, "vf": layers}, "activation_fn": nn.Tanh}, source


def _annealed(start: float, source: str) -> Sourced:
    """α times ``start``, with α falling linearly from 1 to 0 over the training."""
    return LinearSchedule(start, 0.0, 1.0), source


# The authors' code. The paper came out in July 2017; that month's revision held stepsize and ε constant on MuJoCo and
# clipped the value function. This one, of 27 August, is the first that has all of what is cited here.
_PPO1 = "openai/baselines ppo1 (d9f194f)"
_A2C = "openai/baselines a2c; the paper gives no value"
_TRPO = "openai/baselines trpo_mpi; the paper gives no value"
_UNCLIPPED = (False, f"{_PPO1}: actions reach the environment as sampled")

MUJOCO = Preset(
    settings={
        "learning_rate": (3e-4, "Table 3: Adam stepsize"),
        "n_steps": (2048, "Table 3: horizon T"),
        "batch_size": (64, "Table 3: minibatch size M"),
        "n_epochs": (10, "Table 3: epochs K"),
        "gamma": (0.99, "Table 3: discount γ"),
        "gae_lambda": (0.95, "Table 3: λ of GAE"),
        "ent_coef": (0.0, "§6.1: no entropy bonus"),
        "policy_kwargs": _two_layers(64, "§6.1: two hidden layers of 64 tanh units, the value function apart"),
    },
    run={
        "policy": ("MlpPolicy", "§6.1: a fully-connected MLP"),
        "n_envs": (1, "Table 3 names no number of actors: one"),
        "n_timesteps": (1_000_000, "§6.1: one million timesteps"),
    },
)
"""Table 3: MuJoCo, 1M timesteps. For every algorithm of ours; ε is the algorithm's."""

TABLE_1 = MUJOCO.extended({"clip_actions": _UNCLIPPED})
"""Table 3 as the experiments of Table 1 need it: clipped actions would hide the harm of unclipped surrogates."""

_ROBOSCHOOL = {
    "learning_rate": (3e-4, "our choice, as Table 3: the paper does not say where the adapted stepsize starts"),
    "stepsize_kl_target": (0.01, "Table 4: stepsize adapted to the KL; the target is our choice, the paper gives none"),
    "n_steps": (512, "Table 4: horizon T"),
    "batch_size": (4096, "Table 4: minibatch size M"),
    "n_epochs": (15, "Table 4: epochs K"),
    "gamma": (0.99, "Table 4: discount γ"),
    "gae_lambda": (0.95, "Table 4: λ of GAE"),
    "log_std_schedule": (LinearSchedule(-0.7, -1.6, 1.0), "Table 4: LinearAnneal(−0.7, −1.6), not learned"),
    "clip_actions": _UNCLIPPED,
}

ROBOSCHOOL_LOCOMOTION = Preset(
    settings=_ROBOSCHOOL,
    run={
        "policy": ("MlpPolicy", "as §6.1; Table 4 names no network"),
        "n_envs": (32, "Table 4: actors, locomotion"),
        "n_timesteps": (50_000_000, "Fig. 4: RoboschoolHumanoid, end of the axis"),
    },
)
"""Table 4 for the humanoid that runs straight ahead."""

ROBOSCHOOL_FLAGRUN = ROBOSCHOOL_LOCOMOTION.extended(
    run={
        "n_envs": (128, "Table 4: actors, flagrun"),
        "n_timesteps": (100_000_000, "Fig. 4: HumanoidFlagrun and HumanoidFlagrunHarder, end of the axes"),
    }
)
"""Table 4 for the humanoid that runs to a flag, on flat ground or under attack."""

ATARI = Preset(
    settings={
        "learning_rate": _annealed(2.5e-4, "Table 5: Adam stepsize 2.5e-4 α"),
        "clip_range": _annealed(0.1, "Table 5: ε = 0.1 α"),
        "n_steps": (128, "Table 5: horizon T"),
        "batch_size": (256, "Table 5: minibatch size M = 32 × 8"),
        "n_epochs": (3, "Table 5: epochs K"),
        "gamma": (0.99, "Table 5: discount γ"),
        "gae_lambda": (0.95, "Table 5: λ of GAE"),
        "vf_coef": (1.0, "Table 5: c1"),
        "ent_coef": (0.01, "Table 5: c2"),
    },
    run={
        "policy": ("CnnPolicy", "SB3's convolutional network; §6.4 names that of A3C, which is smaller"),
        "n_envs": (8, "Table 5: actors N"),
        "n_timesteps": (10_000_000, "Tables 2 and 6: 40M frames, 4 to a timestep"),
        "env_wrapper": (
            ["stable_baselines3.common.atari_wrappers.AtariWrapper"],
            f"{_PPO1}, run_atari: DeepMind's preprocessing, episodes of one life, rewards clipped to their sign",
        ),
        "frame_stack": (4, f"{_PPO1}, run_atari: FrameStack"),
        "env_kwargs": (
            {"frameskip": 1, "repeat_action_probability": 0.0},
            f"{_PPO1}, run_atari: NoFrameskip-v4, which ALE/…-v5 is with these; the wrapper skips frames itself",
        ),
    },
)
"""Table 5: Atari, 40M frames. For the clipped surrogate."""

AUTHORS_CODE = MUJOCO.extended(
    {
        "learning_rate": _annealed(3e-4, f"{_PPO1}, run_mujoco: optim_stepsize, schedule='linear'"),
        "clip_range": _annealed(0.2, f"{_PPO1}, run_mujoco: clip_param, annealed by the same factor"),
        "clip_range_vf": (None, f"{_PPO1}: the value function is not clipped"),
        "vf_coef": (1.0, f"{_PPO1}: the mean squared error on the λ-return, unweighted"),
        "max_grad_norm": (None, f"{_PPO1}: gradients are not clipped"),
        "normalize_advantage": ("batch", f"{_PPO1}: standardised over the whole batch"),
        "weight_init": ("normc", f"{_PPO1}, mlp_policy: normc_initializer"),
        "bootstrap_on_timeout": (False, f"{_PPO1}: the end of an episode is taken as terminal, whatever its cause"),
        "clip_actions": _UNCLIPPED,
    },
    run={
        "normalize": (
            {"norm_obs": True, "norm_reward": False, "clip_obs": 5.0},
            f"{_PPO1}, mlp_policy: running mean and std, clipped to ±5 (updated once per rollout there, "
            "at every step by VecNormalize)",
        ),
    },
)
"""The authors' published code on MuJoCo, with what the paper leaves unsaid. For the clipped surrogate."""

_LAB = "code lab (DevFest 2017)"
CODE_LAB = Preset(
    settings={
        "learning_rate": (1e-4, f"{_LAB}: stepsize, constant"),
        "n_steps": (2048, f"{_LAB}: horizon T"),
        "batch_size": (64, f"{_LAB}: minibatch size M"),
        "n_epochs": (10, f"{_LAB}: epochs K"),
        "gamma": (0.99, f"{_LAB}: discount γ"),
        "gae_lambda": (0.95, f"{_LAB}: λ of GAE"),
        "clip_range": (0.2, f"{_LAB}: ε, constant"),
        "policy_kwargs": _two_layers(128, f"{_LAB}: two hidden layers of 128 tanh units"),
        "clip_actions": (False, f"{_LAB}, wooridle/DeepRL-PPO-tutorial: actions reach the environment as sampled"),
    },
    run={
        "policy": ("MlpPolicy", f"{_LAB}: a fully-connected MLP"),
        "n_envs": (1, f"{_LAB}, wooridle/DeepRL-PPO-tutorial: one environment"),
        "n_timesteps": (20_000_000, f"{_LAB}: 20M timesteps"),
    },
)
"""The code lab's: RoboschoolHumanoid-v1 with the clipped surrogate."""

FIG3_VANILLA_PG = TABLE_1.extended(
    {
        "stepsize_kl_target": (
            0.01,
            "Fig. 3: adaptive stepsize; the target is our choice, the paper gives none. The value function is fitted "
            "with the adapted stepsize too, of which the paper says nothing",
        ),
        "learning_rate": (3e-4, "as Table 3; the paper does not say where the adapted stepsize starts"),
        "batch_size": (64, "as Table 3, for the value function; the policy takes one step on the whole batch"),
        "n_epochs": (10, "as Table 3, for the value function; the policy takes one step per batch"),
    }
)
"""Fig. 3's vanilla policy gradient with adaptive stepsize, for ``VanillaPGPaper``."""

FIG3_A2C = Preset(
    settings={
        "learning_rate": (7e-4, f"{_A2C}: stepsize of RMSProp"),
        "n_steps": (5, f"{_A2C}: nsteps"),
        "gamma": (0.99, "as Table 3"),
        "gae_lambda": (1.0, "A2C's own: the n-step estimator, eq. 10"),
        "ent_coef": (0.0, "as §6.1: no entropy bonus"),
        "vf_coef": (0.5, f"{_A2C}: vf_coef"),
        "max_grad_norm": (0.5, f"{_A2C}: max_grad_norm"),
        "policy_kwargs": _two_layers(64, "as §6.1"),
    },
    run={
        "policy": ("MlpPolicy", "as §6.1"),
        "n_envs": (16, f"{_A2C}: num_env"),
        "n_timesteps": (1_000_000, "Fig. 3: one million timesteps"),
    },
)
"""Fig. 3's A2C, for SB3's ``A2C``. The paper gives none of its hyperparameters."""

# The trust region of TRPO, E[KL] ≤ δ in nats, and the damping of its Fisher matrix.
TRPO_DELTA = 0.01
TRPO_DAMPING = 0.1


def fig3_trpo(action_dim: int) -> Preset:
    """Fig. 3's TRPO, for sb3-contrib's ``TRPO``. The paper gives none of its hyperparameters.

    contrib's ``target_kl`` bounds the KL's MEAN over the dimensions of a Gaussian action, not their sum, which is
    the KL of the paper's eq. 4: δ divided by the number of dimensions makes it the sum's bound. The Fisher matrix is
    divided by that number too, and so must be what is added to it: with both, each step is that of the summed KL.

    :param action_dim: number of dimensions of the action space, a ``Box``
    :raises ValueError: for an ``action_dim`` that is not an integer of at least 1
    """
    require("action_dim", action_dim, "an integer >= 1", lambda value: value >= 1, integer=True)
    return Preset(
        settings={
            "learning_rate": (1e-3, f"{_TRPO}: vf_stepsize, of the value function"),
            "n_steps": (2048, "as Table 3: horizon T"),
            "batch_size": (64, f"{_TRPO}: minibatches of the value function"),
            "n_critic_updates": (5, f"{_TRPO}: vf_iters"),
            "gamma": (0.99, "as Table 3"),
            "gae_lambda": (0.95, "as Table 3"),
            "target_kl": (TRPO_DELTA / action_dim, f"{_TRPO}: max_kl 0.01, here per dimension of the action"),
            "cg_max_steps": (10, f"{_TRPO}: cg_iters"),
            "cg_damping": (TRPO_DAMPING / action_dim, f"{_TRPO}: cg_damping 0.1, here per dimension of the action"),
            "policy_kwargs": _two_layers(64, "as §6.1"),
        },
        run={
            "policy": ("MlpPolicy", "as §6.1"),
            "n_envs": (1, "as Table 3"),
            "n_timesteps": (1_000_000, "Fig. 3: one million timesteps"),
        },
    )


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "MUJOCO": MUJOCO,
        "TABLE_1": TABLE_1,
        "ROBOSCHOOL_LOCOMOTION": ROBOSCHOOL_LOCOMOTION,
        "ROBOSCHOOL_FLAGRUN": ROBOSCHOOL_FLAGRUN,
        "ATARI": ATARI,
        "AUTHORS_CODE": AUTHORS_CODE,
        "CODE_LAB": CODE_LAB,
        "FIG3_VANILLA_PG": FIG3_VANILLA_PG,
        "FIG3_A2C": FIG3_A2C,
    }
)
"""The presets by name; :func:`fig3_trpo` depends on the task and makes one."""
