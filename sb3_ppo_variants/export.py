"""Policies as files that run no code: ``policy.json`` and ``policy.safetensors``, besides ONNX and TorchScript.

SB3's zips, and VecNormalize's pickles, run whatever code is in them when they are opened. An exported policy is
numbers and names alone, and :func:`load_policy` checks each before it uses it.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as serialize
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)
from torch import nn

import sb3_ppo_variants
from sb3_ppo_variants import export_format as layout
from sb3_ppo_variants.arguments import require, shown
from sb3_ppo_variants.distributions import FAMILIES
from sb3_ppo_variants.export_files import (
    DESCRIPTION_FILE,
    FORMATS,
    MAX_JSON_BYTES,
    OPTIONAL_FILES,
    WEIGHTS_FILE,
    ExportError,
    read_file,
    write_export,
)
from sb3_ppo_variants.export_format import Description, NormalizerSettings, PolicySettings
from sb3_ppo_variants.export_graph import ActionGraph, run_onnx, run_torchscript, to_onnx, to_torchscript
from sb3_ppo_variants.symmetry import MirrorSymmetry, symmetrize_statistics

__all__ = ["FORMATS", "ExportError", "ExportedPolicy", "export_policy", "load_policy"]

_POLICIES: dict[str, type[ActorCriticPolicy]] = {
    "MlpPolicy": ActorCriticPolicy,
    "CnnPolicy": ActorCriticCnnPolicy,
    "MultiInputPolicy": MultiInputActorCriticPolicy,
}
_EXTRACTORS: dict[str, type[Any]] = {kind.__name__: kind for kind in (FlattenExtractor, NatureCNN, CombinedExtractor)}
# Wrappers between VecNormalize and the model that leave observations alone, or that `predict` itself stands for.
_TRANSPARENT = (VecTransposeImage, VecMonitor, VecCheckNan, VecVideoRecorder)
_NUMPY_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
_INSTEAD = "save the model with model.save(), a zip that runs code when it is opened"
# The header of the weights' file takes at most so many bytes, and so many more for each tensor.
_HEADER_BYTES, _HEADER_BYTES_PER_TENSOR = 1 << 14, 1 << 11
# Observations by which an export is compared with its model.
_CHECKED_OBSERVATIONS = 8


class ExportedPolicy:
    """A policy loaded by :func:`load_policy`: what is needed to act, and nothing to train with.

    :ivar policy: SB3's policy; it takes normalised observations
    :ivar observation_space: as the model had it: images channel first
    :ivar action_space: the environment's
    :ivar algorithm: the class that trained it, a name only
    :ivar versions: of the packages that wrote the export, by name
    """

    def __init__(self, policy: ActorCriticPolicy, description: Description, statistics: dict[str, np.ndarray]):
        self.policy = policy
        self.observation_space = description.observation_space
        self.action_space = description.action_space
        self.algorithm = description.algorithm
        self.versions = description.versions
        self._description = description
        self._statistics: dict[str, tuple[np.ndarray, np.ndarray, float]] = {}
        normalizer = description.normalizer
        for suffix in description.normalized if normalizer else ():
            assert normalizer is not None
            mean, variance = (statistics[f"normalizer.{name}{suffix}"] for name in ("mean", "var"))
            self._statistics[suffix[1:]] = (mean, variance + normalizer.epsilon, normalizer.clip_obs)

    @property
    def device(self) -> th.device:
        """Where the policy computes."""
        return self.policy.device

    def normalize_obs(self, observation: Any) -> Any:
        """What the policy sees of the environment's observation: normalised where the model had a VecNormalize."""
        if "" in self._statistics and not isinstance(observation, tuple):  # a tuple is refused by `predict`
            return _normalize(observation, *self._statistics[""])
        if self._statistics and isinstance(observation, dict):
            own = {key: _normalize(observation[key], *values) for key, values in self._statistics.items()}
            return {**observation, **own}
        return observation

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """The action for an observation or a batch of them, as SB3's ``predict``.

        :param observation: as the environment gives it, not normalised: ``(*shape)`` or ``(B, *shape)``, or a dict
            of such; images channel first or last, those that are normalised in the order of the statistics, which
            is channel first
        :param state: SB3's recurrent state; returned as it is
        :param episode_start: ignored, as no policy here is recurrent
        :param deterministic: whether to take the most likely action instead of sampling
        :return: the action, ``(*action_shape)`` or ``(B, *action_shape)``, and ``state``
        """
        return self.policy.predict(self.normalize_obs(observation), state, episode_start, deterministic)

    def vec_normalize(self, venv: VecEnv, count: float) -> VecNormalize:
        """Environments normalised as this policy's were, to train it further.

        :param venv: of the model's observation space
        :param count: how many observations the statistics stand for, which an export does not hold: the more, the
            slower they move; the timesteps of the training will do
        :return: a VecNormalize that learns on; the statistics of the returns begin anew
        :raises ValueError: if the model had no normaliser, or the count is not allowed
        """
        settings = self._description.normalizer
        if settings is None or not settings.norm_obs:
            raise ValueError("the policy was trained on observations as they are: it needs no VecNormalize")
        require("count", count, "a number > 0", lambda value: 0 < value < math.inf)
        keys = None if settings.norm_obs_keys is None else list(settings.norm_obs_keys)
        made = VecNormalize(venv, clip_obs=settings.clip_obs, epsilon=settings.epsilon, norm_obs_keys=keys)
        self._hand_on_statistics(made, count)
        return made

    def start(
        self,
        model: BaseAlgorithm,
        count: float = 1e6,
        statistics: Mapping[int, tuple[float, float]] | None = None,
        rescale: bool = False,
    ) -> None:
        """Let a new model begin with this policy's weights and with the statistics of its observations.

        Its optimiser, schedules and statistics of returns begin anew.

        :param model: with networks and spaces as this policy's, and a ``VecNormalize`` of observations if it had one
        :param count: as of :meth:`vec_normalize`
        :param statistics: mean and variance for some components of an observation of one axis, by index, in place of
            the policy's own: for those that vary more on the new task, and that would saturate the networks otherwise
        :param rescale: whether the first layers' weights follow those statistics, so that actions and values stay what
            they were, but for observations that are clipped before or after
        :raises ValueError: if the model is not such, or count, statistics or rescale are not allowed; the model is then
            as it was
        """
        require("count", count, "a number > 0", lambda value: 0 < value < math.inf)
        self._require_statistics(statistics or {}, rescale)
        for name in ("observation_space", "action_space"):
            ours, theirs = getattr(self, name), getattr(model, name)
            if ours.shape != theirs.shape or type(ours) is not type(theirs):
                raise ValueError(f"model must have an {name} as the policy's, {ours}; it has {theirs}")
        normalizer = model.get_vec_normalize_env()
        normalizes = normalizer is not None and normalizer.norm_obs
        if normalizes != bool(self._statistics):
            seen = "normalised" if self._statistics else "as they are"
            raise ValueError(f"model must take observations as the policy does, {seen}, by its VecNormalize or none")
        if normalizer is not None and normalizes:
            self._require_same_normalizer(normalizer)
        before: Any = deepcopy(model.get_parameters())
        policy = self._rescaled(statistics or {}, model) if rescale else self.policy
        wanted: Any = {**before, "policy": policy.state_dict()}
        try:
            model.set_parameters(wanted, device=model.device)
        except (RuntimeError, ValueError) as error:  # of which a part has been loaded
            model.set_parameters(before, device=model.device)
            raise ValueError(f"model must have networks as the policy's: {error}") from None
        if normalizer is not None and normalizes:
            self._hand_on_statistics(normalizer, count)
            running: Any = normalizer.obs_rms
            for index, (mean, variance) in (statistics or {}).items():
                running.mean[index], running.var[index] = mean, variance

    def _require_statistics(self, statistics: Mapping[int, tuple[float, float]], rescale: bool) -> None:
        """Check what is to replace the policy's own statistics, and whether weights can follow it.

        :raises ValueError: if it cannot
        """
        if rescale and not statistics:
            raise ValueError("rescale=True goes with statistics, which the weights follow")
        if not statistics:
            return
        shape = self.observation_space.shape
        if "" not in self._statistics or shape is None or len(shape) != 1:
            raise ValueError("statistics are for a policy whose observations have one axis and are normalised")
        for index, pair in statistics.items():
            allowed = f"an integer from 0 to {shape[0] - 1}"
            require("an index of statistics", index, allowed, lambda value: 0 <= value < shape[0], integer=True)
            if not isinstance(pair, Sequence) or len(pair) != 2:
                raise ValueError(f"statistics[{index}] must be a mean and a variance; got {shown(pair)}")
            require(f"the mean of statistics[{index}]", pair[0], "a finite number", math.isfinite)
            name = f"the variance of statistics[{index}]"
            require(name, pair[1], "a number > 0", lambda value: 0 < value < math.inf)

    def _rescaled(self, statistics: Mapping[int, tuple[float, float]], model: Any) -> ActorCriticPolicy:
        """A copy that computes from observations normalised with these statistics what the policy does from its own.

        :raises ValueError: if there can be none, or none that is as symmetric as the model is to be
        """
        own, other = RunningMeanStd(), RunningMeanStd()
        own.mean, own.var = (values.copy() for values in self._statistics[""][:2])
        other.mean, other.var = own.mean.copy(), own.var.copy()
        for index, (mean, variance) in statistics.items():
            other.mean[index], other.var[index] = mean, variance + self._epsilon
        mirror = getattr(model, "mirror_symmetry", None)
        if isinstance(mirror, MirrorSymmetry):  # the model will have them so too
            given = other.copy()
            for each in (own, other):
                symmetrize_statistics(each, mirror.observation)
            places = list(statistics)
            if not np.allclose([other.mean[places], other.var[places]], [given.mean[places], given.var[places]]):
                raise ValueError("statistics must be symmetric under the task's mirror image, as the model's will be")
        rescaled = _rebuild(self._description, self.policy.state_dict())
        networks = rescaled.mlp_extractor
        if rescaled.use_sde and not len(networks.policy_net):
            raise ValueError("rescale must be False for gSDE without hidden layers: its noise is of the observations")
        scale = th.as_tensor(np.sqrt(other.var / own.var))
        shift = th.as_tensor((other.mean - own.mean) / np.sqrt(own.var))
        heads = ((networks.policy_net, rescaled.action_net), (networks.value_net, rescaled.value_net))
        for body, head in heads:
            layer: Any = body[0] if len(body) else head
            weight = layer.weight.data.double()
            layer.bias.data += (weight @ shift).float()
            layer.weight.data.copy_(weight * scale)
        return rescaled

    def _require_same_normalizer(self, normalizer: VecNormalize) -> None:
        settings: Any = self._description.normalizer
        for name in ("clip_obs", "epsilon", "norm_obs_keys"):
            ours, theirs = getattr(settings, name), getattr(normalizer, name)
            if sorted(ours or []) != sorted(theirs or []) if name == "norm_obs_keys" else ours != theirs:
                raise ValueError(f"model's VecNormalize must have {name}={ours!r}, as the policy's; it has {theirs!r}")

    @property
    def _epsilon(self) -> float:
        assert self._description.normalizer is not None
        return self._description.normalizer.epsilon

    def _hand_on_statistics(self, normalizer: VecNormalize, count: float) -> None:
        for key, (mean, variance, _) in self._statistics.items():
            running = normalizer.obs_rms[key] if isinstance(normalizer.obs_rms, dict) else normalizer.obs_rms
            running.mean, running.var, running.count = mean.copy(), variance - self._epsilon, count

    def graph(self) -> ActionGraph:
        """:meth:`predict` with ``deterministic=True`` as a graph of tensors, for tracers of your own; on the CPU."""
        policy = _rebuild(self._description, self.policy.state_dict())
        graph = ActionGraph(policy, self.action_space, self._description.clip_actions, self._statistics)
        return graph.eval()

    def __repr__(self) -> str:
        spaces_ = f"observation_space={self.observation_space}, action_space={self.action_space}"
        return f"{type(self).__name__}({self.algorithm}, {spaces_}, device={self.device})"


def _normalize(observation: np.ndarray, mean: np.ndarray, variance: np.ndarray, limit: float) -> np.ndarray:
    """As VecNormalize's arithmetic, bit for bit."""
    return np.clip((observation - mean) / np.sqrt(variance), -limit, limit).astype(np.float32)


# ------------------------------------------------------------------ export


def export_policy(
    model: BaseAlgorithm,
    folder: str | Path,
    *,
    formats: Sequence[str] = ("safetensors",),
    vec_normalize: VecNormalize | None = None,
) -> None:
    """Write a trained policy into a folder, as files that :func:`load_policy` reads without running anything.

    ``policy.json`` and ``policy.safetensors`` are always written. The policy is built anew from the bytes of the files,
    the graphs are run from theirs, and all are compared with the model before the first file is replaced; a failure
    leaves the folder as it was.

    :param model: a model of this package or of SB3 with one of SB3's own actor-critic policies
    :param folder: where to; made if it is missing. Files of an earlier export are replaced, and those of formats
        that are not asked for are removed; files of the same names that no export wrote are never touched
    :param formats: ``"safetensors"``; ``"onnx"`` for ``policy.onnx`` (needs the ``[onnx]`` extra);
        ``"torchscript"`` for ``policy.pt``, by an interface that torch deprecates
    :param vec_normalize: the statistics by which observations are normalised; None: those of the model's environment,
        if it has any
    :raises ExportError: if something of the model cannot be exported, or a file is in the way; names it
    :raises OSError: if a file cannot be written
    """
    _check_formats(formats)
    description, tensors, vec_normalize = _describe(model, vec_normalize)
    contents = {WEIGHTS_FILE: serialize(tensors)}
    exported = _check_written(model, vec_normalize, description, contents)
    if "onnx" in formats:
        contents[OPTIONAL_FILES["onnx"]] = to_onnx(exported.graph())
    if "torchscript" in formats:
        contents[OPTIONAL_FILES["torchscript"]] = to_torchscript(exported.graph())
    if len(contents) > 2:
        _check_written(model, vec_normalize, description, contents)
    write_export(Path(folder), contents)


def _check_written(
    model: Any, vec_normalize: VecNormalize | None, description: Description, contents: dict[str, bytes]
) -> ExportedPolicy:
    """Add the description to the files' contents, and compare what all of them stand for with the model.

    :return: the policy that they hold, built from their bytes alone
    """
    contents.pop(DESCRIPTION_FILE, None)
    description.sha256.update({name: hashlib.sha256(data).hexdigest() for name, data in contents.items()})
    contents[DESCRIPTION_FILE] = layout.to_json(description)
    read = layout.from_json(contents[DESCRIPTION_FILE])
    exported = _from_weights(read, contents[WEIGHTS_FILE], model.device)
    raw = _some_observations(exported.observation_space)
    _check_agreement(model, vec_normalize, exported, raw)
    for name, run in (("onnx", run_onnx), ("torchscript", run_torchscript)):
        if OPTIONAL_FILES[name] in contents:
            _check_graph(OPTIONAL_FILES[name], run(contents[OPTIONAL_FILES[name]], _parts(raw)), exported, raw)
    return exported


def _check_formats(formats: Sequence[str]) -> None:
    allowed = f"a sequence of {', '.join(map(repr, FORMATS))}"
    if isinstance(formats, str) or not isinstance(formats, Sequence) or not set(formats) <= set(FORMATS):
        raise ExportError(f"formats must be {allowed}; got {formats!r}")


def _describe(
    model: Any, vec_normalize: VecNormalize | None
) -> tuple[Description, dict[str, np.ndarray], VecNormalize | None]:
    """The description of a model's policy, all its tensors, and the normaliser that it is used with."""
    if not isinstance(model, BaseAlgorithm):
        raise ExportError(f"model must be a model of this package or of SB3; got {type(model).__name__}")
    settings = _settings_of(model.policy)
    vec_normalize = _normalizer_of(model, vec_normalize)
    description = Description(
        algorithm=type(model).__name__,
        observation_space=_known_space("observation_space", model.observation_space),
        action_space=_known_space("action_space", model.action_space),
        settings=settings,
        clip_actions=getattr(model, "clip_actions", True),
        normalizer=None if vec_normalize is None else _normalizer_settings(vec_normalize, model.observation_space),
        versions=_versions(),
        sha256={},
    )
    layout.check(description)
    return description, _tensors_of(model.policy, description, vec_normalize), vec_normalize


def _known_space(name: str, space: spaces.Space) -> spaces.Space:
    parts = space.spaces.values() if isinstance(space, spaces.Dict) and name == "observation_space" else [space]
    for part in parts:
        if type(part) not in (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary):
            raise ExportError(
                f"{name} must be of Box, Discrete, MultiDiscrete, MultiBinary, or for observations a Dict of these; "
                f"got {part}: flatten it in a wrapper, or {_INSTEAD}"
            )
    return deepcopy(space)  # building a network for images draws from its generator


def _settings_of(policy: Any) -> PolicySettings:
    """A policy's own account of itself.

    :raises ExportError: for any class in it that is not one of SB3's or torch's own; names it
    """
    alias = _name_of("policy class", type(policy), _POLICIES)
    extractor = _name_of("features extractor", policy.features_extractor_class, _EXTRACTORS)
    if type(policy.action_dist) not in FAMILIES:
        raise _unknown("action distribution", type(policy.action_dist), [kind.__name__ for kind in FAMILIES])
    of_sde = policy.dist_kwargs or {"full_std": True, "use_expln": False, "squash_output": False}
    return PolicySettings(
        policy=alias,
        net_arch=_net_arch(policy.net_arch),
        activation_fn=_name_of("activation function", policy.activation_fn, layout.ACTIVATIONS),
        log_std_init=float(policy.log_std_init),
        extractor=extractor,
        extractor_kwargs=_extractor_kwargs(extractor, policy.features_extractor_kwargs),
        ortho_init=bool(policy.ortho_init),
        use_sde=bool(policy.use_sde),
        full_std=bool(of_sde["full_std"]),
        use_expln=bool(of_sde["use_expln"]),
        squash_output=bool(of_sde["squash_output"]),
        share_features_extractor=bool(policy.share_features_extractor),
        normalize_images=bool(policy.normalize_images),
    )


def _name_of(what: str, kind: type, known: dict[str, type[Any]]) -> str:
    for name, each in known.items():
        if kind is each:
            return name
    raise _unknown(what, kind, [each.__name__ for each in known.values()])


def _unknown(what: str, kind: Any, known: Sequence[str]) -> ExportError:
    name = getattr(kind, "__name__", repr(kind))
    return ExportError(
        f"the {what} {name} cannot be exported, only {', '.join(known)}: use one of these, or {_INSTEAD}"
    )


def _net_arch(net_arch: Any) -> dict[str, list[int]]:
    """SB3's two forms as one."""
    nets = net_arch if isinstance(net_arch, dict) else {"pi": net_arch, "vf": net_arch}
    return {part: [int(units) for units in nets.get(part, [])] for part in ("pi", "vf")}


def _extractor_kwargs(kind: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    units, flags = layout.EXTRACTORS[kind]
    known = {**{name: int(kwargs[name]) for name in units if name in kwargs}}
    return {**known, **{name: bool(kwargs[name]) for name in flags if name in kwargs}}


def _normalizer_of(model: BaseAlgorithm, given: Any) -> VecNormalize | None:
    """The VecNormalize of the model's environment, or the one given."""
    if given is not None:
        if not isinstance(given, VecNormalize):
            raise ExportError(f"vec_normalize must be a VecNormalize or None; got {type(given).__name__}")
        return given
    above: list[str] = []
    found: VecNormalize | None = None
    env: Any = model.get_env()
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize) and env.norm_obs:
            if found is not None or above:
                between = "another VecNormalize" if found is not None else ", ".join(above)
                raise ExportError(
                    f"between VecNormalize and the model lies {between}, which an export cannot stand for: "
                    "put VecNormalize above it, so that it sees what the model sees"
                )
            found = env
        elif type(env) not in (*_TRANSPARENT, VecNormalize) and found is None:
            above.append(type(env).__name__)
        env = env.venv
    return found


def _normalizer_settings(vec_normalize: Any, space: Any) -> NormalizerSettings:
    keys = vec_normalize.norm_obs_keys
    settings = NormalizerSettings(
        norm_obs=bool(vec_normalize.norm_obs),
        norm_obs_keys=None if keys is None else list(keys),
        clip_obs=float(vec_normalize.clip_obs),
        epsilon=float(vec_normalize.epsilon),
    )
    if settings.norm_obs:
        pairs = [(vec_normalize.obs_rms, space)]
        if keys is not None:
            pairs = [(vec_normalize.obs_rms[key], space[key] if key in space.spaces else None) for key in keys]
        for statistics, part in pairs:
            if part is None or statistics.mean.shape != part.shape:
                raise ExportError(
                    f"vec_normalize normalises observations of shape {statistics.mean.shape}, the model sees {part}: "
                    "a wrapper (VecFrameStack?) lies between them, which an export cannot stand for; put VecNormalize "
                    "above it"
                )
    return settings


def _versions() -> dict[str, str]:
    known = {"python": platform.python_version(), "sb3_ppo_variants": sb3_ppo_variants.__version__}
    return {name: known[name] if name in known else version(name) for name in layout.VERSIONS}


def _tensors_of(policy: nn.Module, description: Description, vec_normalize: Any) -> dict[str, np.ndarray]:
    """All tensors by the names, and of the types and shapes, that the description implies."""
    values = {f"policy.{name}": value.detach().cpu().numpy() for name, value in policy.state_dict().items()}
    for suffix in description.normalized:
        statistics = vec_normalize.obs_rms[suffix[1:]] if suffix else vec_normalize.obs_rms
        values[f"normalizer.mean{suffix}"] = np.asarray(statistics.mean, np.float64)
        values[f"normalizer.var{suffix}"] = np.asarray(statistics.var, np.float64)
    shapes = layout.tensor_shapes(description)
    aliases = _aliases(description)
    own = {name: value for name, value in values.items() if name not in aliases}
    for name in sorted({*own, *shapes}):
        if name not in own or name not in shapes or (_type_name(own[name]), own[name].shape) != shapes[name]:
            raise ExportError(
                f"{name} is not as SB3's own policy with these arguments has it (single precision, its shape): "
                f"networks that were changed after they were built cannot be exported; {_INSTEAD}"
            )
    tensors = {name: np.ascontiguousarray(own[name]) for name in shapes}
    _check_finite(tensors)
    return tensors


def _type_name(array: np.ndarray) -> str:
    return next((name for name, kind in _NUMPY_TYPES.items() if array.dtype == kind), "")


def _aliases(description: Description) -> dict[str, str]:
    """Second names, in the policy's ``state_dict``, of weights that are shared → their first names."""
    seconds = ["pi_features_extractor."]
    if description.settings.share_features_extractor:
        seconds.append("vf_features_extractor.")
    first = "policy.features_extractor."
    names = [name.removeprefix(first) for name in layout.tensor_shapes(description) if name.startswith(first)]
    return {f"policy.{second}{name}": first + name for second in seconds for name in names}


def _check_finite(tensors: dict[str, np.ndarray]) -> None:
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise ExportError(f"{name} must be finite; it holds NaN or infinity")
        if name.startswith("normalizer.var") and (value < 0).any():
            raise ExportError(f"{name} must be >= 0; it holds {value.min()}")


def _check_agreement(model: Any, vec_normalize: VecNormalize | None, exported: ExportedPolicy, raw: Any) -> None:
    """Compare deterministic actions: what was changed in a model without a trace in its arguments shows here."""
    seen = raw if vec_normalize is None else vec_normalize.normalize_obs(raw)
    expected, _ = model.predict(seen, deterministic=True)
    actions, _ = exported.predict(raw, deterministic=True)
    if not np.allclose(actions, expected, rtol=1e-6, atol=1e-6, equal_nan=True):
        difference = np.abs(np.subtract(actions, expected, dtype=np.float64)).max()
        raise ExportError(
            f"the exported policy acts otherwise than the model, by up to {difference:.3g}: its networks or its "
            f"predict() are not those of SB3's own policy with these arguments; {_INSTEAD}"
        )


def _check_graph(name: str, actions: np.ndarray, exported: ExportedPolicy, raw: Any) -> None:
    """Compare a graph's actions with the policy's: near enough to show a graph that is broken, not one that rounds."""
    expected, _ = exported.predict(raw, deterministic=True)
    agrees = actions.shape == expected.shape and actions.dtype == expected.dtype
    if agrees and isinstance(exported.action_space, spaces.Box):
        largest = np.abs(expected[np.isfinite(expected)]).max(initial=0)
        agrees = np.allclose(actions, expected, rtol=0, atol=1e-6 + 1e-3 * largest, equal_nan=True)
    elif agrees:  # two actions that are equally likely up to rounding may be decided otherwise
        agrees = np.mean(actions != expected) <= 0.25
    if not agrees:
        raise ExportError(f"{name} would act otherwise than the model, and nothing is written: leave out its format")


def _parts(raw: Any) -> list[np.ndarray]:
    """Observations as the graphs take them."""
    return list(raw.values()) if isinstance(raw, dict) else [raw]


def _some_observations(space: Any) -> Any:
    """A few observations, or a dict of them in the order of the space's keys."""
    rng = np.random.default_rng(0)
    if isinstance(space, spaces.Dict):
        return {key: _some_of_part(part, rng) for key, part in space.spaces.items()}
    return _some_of_part(space, rng)


def _some_of_part(space: Any, rng: np.random.Generator) -> np.ndarray:
    """A few observations, ``(B, *shape)``, of moderate size where the space is unbounded."""
    shape = (_CHECKED_OBSERVATIONS, *space.shape)
    if isinstance(space, spaces.Box):
        if space.dtype.kind in "iu":
            return rng.integers(space.low, space.high, shape, space.dtype, endpoint=True)
        return np.clip(rng.standard_normal(shape), space.low, space.high).astype(space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return rng.integers(0, 2, shape).astype(space.dtype)
    return rng.integers(0, space.n if isinstance(space, spaces.Discrete) else space.nvec, shape)


# ------------------------------------------------------------------ load


def load_policy(folder: str | Path, device: th.device | str = "auto", *, max_bytes: int = 1 << 30) -> ExportedPolicy:
    """Load what :func:`export_policy` wrote, from anyone: nothing in the files is run.

    Only ``policy.json`` and ``policy.safetensors`` are read. The memory taken is in proportion to their true size.

    :param folder: the exported folder
    :param device: ``"cpu"``, ``"cuda"``, … or ``"auto"``
    :param max_bytes: the largest size of the weights that is accepted, in bytes; 1 GiB by default
    :raises ExportError: for a folder that is not a complete and untouched export, with the reason
    """
    require("max_bytes", max_bytes, "an integer >= 1", lambda value: value >= 1, integer=True)
    device = get_device(device)
    folder = Path(folder)
    description = layout.from_json(read_file(folder / DESCRIPTION_FILE, 1, MAX_JSON_BYTES))
    shapes = layout.tensor_shapes(description)
    size = sum(_NUMPY_TYPES[kind].itemsize * math.prod(shape) for kind, shape in shapes.values())
    if size > max_bytes:
        raise ExportError(f"{DESCRIPTION_FILE} describes weights of {size} bytes; max_bytes is {max_bytes}")
    data = read_file(folder / WEIGHTS_FILE, size, size + _HEADER_BYTES + _HEADER_BYTES_PER_TENSOR * len(shapes))
    return _from_weights(description, data, device)


def _from_weights(description: Description, data: bytes, device: th.device) -> ExportedPolicy:
    """The policy of a description and the bytes of the weights' file."""
    if hashlib.sha256(data).hexdigest() != description.sha256[WEIGHTS_FILE]:
        raise ExportError(f"{WEIGHTS_FILE} is not the file that {DESCRIPTION_FILE} belongs to (sha256)")
    return _build(description, _read_tensors(data, layout.tensor_shapes(description)), device)


def _read_tensors(data: bytes, shapes: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, which must be exactly those that the description implies."""
    try:
        found = dict(deserialize(data))
    except SafetensorError as error:
        raise ExportError(f"{WEIGHTS_FILE} is not a safetensors file: {str(error)[:200]!r}") from None
    for name in sorted({*found, *shapes}):
        if name not in found or name not in shapes:
            problem = "lacks" if name not in found else "has an unknown tensor"
            raise ExportError(f"{WEIGHTS_FILE} {problem} {name[:100]!r}")
        kind, shape = found[name]["dtype"], tuple(found[name]["shape"])
        if (kind, shape) != shapes[name]:
            raise ExportError(f"{name} in {WEIGHTS_FILE} must be {shapes[name]}; got {(kind, shape)}")
    tensors = {
        name: np.frombuffer(found[name]["data"], _NUMPY_TYPES[kind]).reshape(shape)
        for name, (kind, shape) in shapes.items()
    }
    _check_finite(tensors)
    return tensors


def _build(description: Description, tensors: dict[str, np.ndarray], device: th.device) -> ExportedPolicy:
    """The policy that the description and its tensors stand for; draws nothing from torch's generators."""
    weights = {name: th.from_numpy(value.copy()) for name, value in tensors.items() if name.startswith("policy.")}
    weights |= {second: weights[first] for second, first in _aliases(description).items()}
    try:
        policy = _rebuild(description, {name.removeprefix("policy."): value for name, value in weights.items()})
        policy.to(device)
        if description.settings.use_sde:
            with th.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                policy.reset_noise()  # with the deviation loaded, as SB3's own load()
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ExportError(f"no policy can be built from {DESCRIPTION_FILE}: {error}") from error
    return ExportedPolicy(policy, description, tensors)


def _rebuild(description: Description, weights: dict[str, Any]) -> ActorCriticPolicy:
    """SB3's policy with the weights given, on the CPU, in evaluation mode; draws nothing from torch's generator."""
    settings = description.settings
    of_sde = {name: getattr(settings, name) for name in ("full_std", "use_expln", "squash_output")}
    # SB3 draws an observation for an image's network, and NumPy warns of bounds too far apart before it refuses them.
    with th.random.fork_rng(devices=[]), np.errstate(over="ignore"):
        policy = _POLICIES[settings.policy](
            description.observation_space,
            description.action_space,
            ActorCriticPolicy._dummy_schedule,
            net_arch=settings.net_arch,
            activation_fn=layout.ACTIVATIONS[settings.activation_fn],
            ortho_init=False,  # the weights are replaced
            use_sde=settings.use_sde,
            log_std_init=settings.log_std_init,
            **of_sde,
            features_extractor_class=_EXTRACTORS[settings.extractor],
            features_extractor_kwargs=dict(settings.extractor_kwargs),
            share_features_extractor=settings.share_features_extractor,
            normalize_images=settings.normalize_images,
        )
    policy.ortho_init = settings.ortho_init
    policy.load_state_dict(weights)
    policy.set_training_mode(False)
    if isinstance(description.action_space, spaces.Box) and not (description.clip_actions or settings.squash_output):
        # SB3's `predict` clips to the policy's action space.
        policy.action_space = spaces.Box(-np.inf, np.inf, description.action_space.shape)
    return policy
