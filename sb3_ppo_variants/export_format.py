"""What ``policy.json`` may say: a policy's description, written, read strictly, and weighed before it is built.

Nothing here builds a network: the shapes of all weights follow from the description by arithmetic on Python's
integers, so that a file which declares a giant network is refused before any memory is taken for it.
"""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

from sb3_ppo_variants.export_files import (
    DESCRIPTION_FILE,
    FORMAT,
    MAX_JSON_BYTES,
    OPTIONAL_FILES,
    WEIGHTS_FILE,
    ExportError,
)

VERSION = 1

# Limits, far above what policies need: an observation's numbers, a space's dimensions, a net's layers.
MAX_ELEMENTS = 1 << 20
MAX_DIMENSIONS = 8
MAX_LAYERS = 256
MAX_INT64 = 2**63 - 1

# Activation functions without weights or randomness; the description says their names.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid),
        *(nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.ReLU6, nn.Identity),
    )
}
# SB3's features extractors and their own arguments: those of 1 or more units, and those that are true or false.
EXTRACTORS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "FlattenExtractor": ((), ()),
    "NatureCNN": (("features_dim",), ("normalized_image",)),
    "CombinedExtractor": (("cnn_output_dim",), ("normalized_image",)),
}
POLICIES = ("MlpPolicy", "CnnPolicy", "MultiInputPolicy")
BOX_DTYPES = ("float32", "float64", "uint8", "int8", "int16", "int32", "int64")
VERSIONS = ("gymnasium", "numpy", "python", "sb3_ppo_variants", "stable_baselines3", "torch")

_BOOLEANS = (
    "ortho_init",
    "use_sde",
    "full_std",
    "use_expln",
    "squash_output",
    "share_features_extractor",
    "normalize_images",
)
# The features extractor for a Dict keeps its parts in one of these, under the Dict's keys.
_MODULE_DICT = nn.ModuleDict()

Shape = tuple[int, ...]


@dataclass(frozen=True)
class PolicySettings:
    """The arguments of one of SB3's actor-critic policies, by names and numbers alone."""

    policy: str
    """one of ``POLICIES``"""
    net_arch: dict[str, list[int]]
    """units of each layer, under ``pi`` and ``vf``"""
    activation_fn: str
    """one of ``ACTIVATIONS``"""
    log_std_init: float
    extractor: str
    """one of ``EXTRACTORS``"""
    extractor_kwargs: dict[str, Any]
    ortho_init: bool
    use_sde: bool
    full_std: bool
    use_expln: bool
    squash_output: bool
    share_features_extractor: bool
    normalize_images: bool


@dataclass(frozen=True)
class NormalizerSettings:
    """VecNormalize's settings for observations."""

    norm_obs: bool
    norm_obs_keys: list[str] | None
    clip_obs: float
    """in standard deviations; may be infinite"""
    epsilon: float
    """added to the variance"""


@dataclass(frozen=True)
class Description:
    """All that ``policy.json`` says."""

    algorithm: str
    observation_space: spaces.Space
    action_space: spaces.Space
    settings: PolicySettings
    clip_actions: bool
    """whether ``predict`` clips Box actions to their space"""
    normalizer: NormalizerSettings | None
    versions: dict[str, str]
    sha256: dict[str, str]
    """by the names of the files"""

    @property
    def normalized(self) -> dict[str, Any]:
        """The Box spaces whose observations are normalised, by the ends of their statistics' names."""
        if self.normalizer is None or not self.normalizer.norm_obs:
            return {}
        space: Any = self.observation_space
        if not isinstance(space, spaces.Dict):
            return {"": space}
        return {f".{key}": space.spaces[key] for key in self.normalizer.norm_obs_keys or ()}


# ------------------------------------------------------------------ writing


def to_json(description: Description) -> bytes:
    """The text of ``policy.json``.

    :raises ExportError: if it would be longer than ``load_policy`` reads
    """
    settings = description.settings
    policy = {
        "class": settings.policy,
        "net_arch": settings.net_arch,
        "activation_fn": settings.activation_fn,
        "log_std_init": settings.log_std_init,
        "features_extractor": {"class": settings.extractor, "kwargs": settings.extractor_kwargs},
        **{name: getattr(settings, name) for name in _BOOLEANS},
    }
    normalizer = description.normalizer
    content = {
        "format": FORMAT,
        "version": VERSION,
        "algorithm": description.algorithm,
        "observation_space": _space_to_json(description.observation_space),
        "action_space": _space_to_json(description.action_space),
        "policy": policy,
        "clip_actions": description.clip_actions,
        "normalizer": normalizer
        and {
            "norm_obs": normalizer.norm_obs,
            "norm_obs_keys": normalizer.norm_obs_keys,
            "clip_obs": _number_to_json(normalizer.clip_obs),
            "epsilon": normalizer.epsilon,
        },
        "versions": description.versions,
        "sha256": description.sha256,
    }
    text = json.dumps(content, indent=2, allow_nan=False).encode()
    if len(text) > MAX_JSON_BYTES:
        raise ExportError(
            f"{DESCRIPTION_FILE} would take {len(text)} bytes, at most {MAX_JSON_BYTES} are read: give the spaces the "
            "same bounds in all dimensions, or fewer dimensions"
        )
    return text


def _space_to_json(space: Any) -> dict[str, Any]:
    if isinstance(space, spaces.Box):
        bounds = {"low": _bounds_to_json(space.low), "high": _bounds_to_json(space.high)}
        return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "shape": list(space.shape)}
    if isinstance(space, spaces.Dict):
        # A list: the extractor's weights follow the order of the keys, which an object in JSON does not have.
        return {"type": "Dict", "spaces": [[key, _space_to_json(part)] for key, part in space.spaces.items()]}
    raise ExportError(
        f"a {type(space).__name__} space cannot be exported, only Box, Discrete, MultiDiscrete, MultiBinary and a Dict "
        "of these for observations: flatten it, or save the model as a zip"
    )


def _bounds_to_json(bounds: np.ndarray) -> Any:
    """One number where all are equal, else all of them in C order."""
    flat = bounds.reshape(-1)
    if flat.size and (flat == flat[0]).all():
        return _number_to_json(flat[0].item())
    return [_number_to_json(value) for value in flat.tolist()]


def _number_to_json(value: float) -> float | str:
    """JSON has no infinity: ours is a string."""
    return str(value) if isinstance(value, float) and math.isinf(value) else value


# ------------------------------------------------------------------ reading


def parse(data: bytes) -> Any:
    """Read JSON that repeats no key and holds no number that JSON does not have.

    :raises ExportError: if it is something else
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except ExportError:
        raise
    except RecursionError:
        raise ExportError(f"{DESCRIPTION_FILE} is nested too deeply") from None
    except ValueError as error:  # not UTF-8, not JSON, or an integer of thousands of digits
        raise ExportError(f"{DESCRIPTION_FILE} is not JSON: {error}") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ExportError(f"{DESCRIPTION_FILE} repeats the field {_shown(name)}")
        content[name] = value
    return content


def _no_constant(name: str) -> None:
    raise ExportError(f"{DESCRIPTION_FILE} holds {name}, which is no number of JSON")


def _shown(value: Any) -> str:
    """A value from a file that may be hostile, short enough for a message."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) > 10**30:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse(name: str, allowed: str, value: Any) -> ExportError:
    return ExportError(f"{name} in {DESCRIPTION_FILE} must be {allowed}; got {_shown(value)}")


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise _refuse(name, f"an integer from {low} to {high}", value)
    return value


def _integers(name: str, value: Any, low: int, high: int, count: tuple[int, int]) -> list[int]:
    if type(value) is not list or not count[0] <= len(value) <= count[1]:
        raise _refuse(name, f"a list of {count[0]} to {count[1]} integers", value)
    return [_integer(f"{name}[{number}]", item, low, high) for number, item in enumerate(value)]


def _number(name: str, value: Any, infinite: bool = False) -> int | float:
    """A number; an integer stays one. ``infinite``: whether ``"inf"`` and ``"-inf"`` are allowed."""
    if infinite and value in ("inf", "-inf"):
        return float(value)
    # Larger integers than these overflow float().
    is_number = type(value) is float or (type(value) is int and abs(value) < 1 << 1000)
    if not is_number or not math.isfinite(value):
        raise _refuse(name, "a finite number" + (', "inf" or "-inf"' if infinite else ""), value)
    return value


def _boolean(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise _refuse(name, "true or false", value)
    return value


def _text(name: str, value: Any, pattern: str = r"[^\0]{1,200}") -> str:
    if type(value) is not str or not re.fullmatch(pattern, value):
        raise _refuse(name, f"a string that matches {pattern}", value)
    return value


def _choice(name: str, value: Any, choices: Iterable[str]) -> str:
    if type(value) is not str or value not in choices:
        raise _refuse(name, f"one of {', '.join(choices)}", value)
    return value


def _fields(name: str, value: Any, allowed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """An object with exactly the ``allowed`` fields, ``optional`` ones aside."""
    if type(value) is not dict:
        raise _refuse(name, "an object", value)
    for field in value:
        if field not in (*allowed, *optional):
            raise ExportError(f"{name} in {DESCRIPTION_FILE} has an unknown field {_shown(field)}")
    for field in allowed:
        if field not in value:
            raise ExportError(f"{name} in {DESCRIPTION_FILE} lacks the field {field!r}")
    return value


def from_json(data: bytes) -> Description:
    """Read ``policy.json``.

    :raises ExportError: for whatever is not exactly as :func:`to_json` writes it; names the field
    """
    content = parse(data)
    if type(content) is not dict or content.get("format") != FORMAT:
        raise ExportError(f"{DESCRIPTION_FILE} is not the description of a policy: its format is not {FORMAT!r}")
    if type(content.get("version")) is not int or content["version"] != VERSION:
        raise _refuse("version", f"{VERSION}, the one that this package reads", content.get("version"))
    names = ("format", "version", "algorithm", "observation_space", "action_space", "policy", "clip_actions")
    content = _fields("the object", content, (*names, "normalizer", "versions", "sha256"))
    observation_space = _read_space("observation_space", content["observation_space"], nested=True)
    versions = _fields("versions", content["versions"], VERSIONS)
    sums = _fields("sha256", content["sha256"], (WEIGHTS_FILE,), tuple(OPTIONAL_FILES.values()))
    description = Description(
        algorithm=_text("algorithm", content["algorithm"], r"\w{1,100}"),
        observation_space=observation_space,
        action_space=_read_space("action_space", content["action_space"]),
        settings=_read_settings(content["policy"]),
        clip_actions=_boolean("clip_actions", content["clip_actions"]),
        normalizer=_read_normalizer(content["normalizer"], observation_space),
        versions={name: _text(f"versions.{name}", value) for name, value in versions.items()},
        sha256={name: _text(f"sha256.{name}", value, "[0-9a-f]{64}") for name, value in sums.items()},
    )
    check(description)
    return description


def _read_settings(value: Any) -> PolicySettings:
    names = ("class", "net_arch", "activation_fn", "log_std_init", "features_extractor", *_BOOLEANS)
    fields = _fields("policy", value, names)
    extractor = _fields("policy.features_extractor", fields["features_extractor"], ("class", "kwargs"))
    kind = _choice("policy.features_extractor.class", extractor["class"], EXTRACTORS)
    net_arch = _fields("policy.net_arch", fields["net_arch"], ("pi", "vf"))
    layers = (0, MAX_LAYERS)
    return PolicySettings(
        policy=_choice("policy.class", fields["class"], POLICIES),
        net_arch={
            part: _integers(f"policy.net_arch.{part}", net_arch[part], 1, MAX_INT64, layers) for part in ("pi", "vf")
        },
        activation_fn=_choice("policy.activation_fn", fields["activation_fn"], ACTIVATIONS),
        log_std_init=float(_number("policy.log_std_init", fields["log_std_init"])),
        extractor=kind,
        extractor_kwargs=_read_extractor_kwargs(kind, extractor["kwargs"]),
        **{name: _boolean(f"policy.{name}", fields[name]) for name in _BOOLEANS},
    )


def _read_extractor_kwargs(kind: str, value: Any) -> dict[str, Any]:
    name = "policy.features_extractor.kwargs"
    units, flags = EXTRACTORS[kind]
    kwargs = _fields(name, value, (), (*units, *flags))
    for field, item in kwargs.items():
        if field in units:
            _integer(f"{name}.{field}", item, 1, MAX_INT64)
        else:
            _boolean(f"{name}.{field}", item)
    return kwargs


def _read_normalizer(value: Any, observation_space: spaces.Space) -> NormalizerSettings | None:
    if value is None:
        return None
    fields = _fields("normalizer", value, ("norm_obs", "norm_obs_keys", "clip_obs", "epsilon"))
    settings = NormalizerSettings(
        norm_obs=_boolean("normalizer.norm_obs", fields["norm_obs"]),
        norm_obs_keys=_read_keys(fields["norm_obs_keys"]),
        clip_obs=float(_number("normalizer.clip_obs", fields["clip_obs"], infinite=True)),
        epsilon=float(_number("normalizer.epsilon", fields["epsilon"])),
    )
    for name in ("clip_obs", "epsilon"):
        if getattr(settings, name) <= 0:
            raise _refuse(f"normalizer.{name}", "a number > 0", getattr(settings, name))
    if settings.norm_obs:
        _check_normalized(settings.norm_obs_keys, observation_space)
    return settings


def _read_keys(value: Any) -> list[str] | None:
    if value is None:
        return None
    name = "normalizer.norm_obs_keys"
    if type(value) is not list or len({_text(name, key) for key in value}) < len(value):
        raise _refuse(name, "null or a list of keys without repetition", value)
    return value


def _check_normalized(keys: list[str] | None, space: spaces.Space) -> None:
    """Check that what is to be normalised is there, and numbers."""
    if isinstance(space, spaces.Dict) != (keys is not None):
        raise _refuse("normalizer.norm_obs_keys", "a list for a Dict observation space, else null", keys)
    parts = {"": space} if keys is None else {key: space.get(key) for key in keys}  # type: ignore[attr-defined]
    for key, part in parts.items():
        if not isinstance(part, spaces.Box):
            raise _refuse("normalizer.norm_obs_keys", "null or keys of Box spaces", key)


# ------------------------------------------------------------------ spaces


def _read_space(name: str, value: Any, nested: bool = False) -> spaces.Space:
    """A space; ``nested``: whether it may be a Dict of spaces."""
    kinds = {**_SPACES, "Dict": _read_dict} if nested else _SPACES
    kind = _choice(f"{name}.type", value.get("type") if type(value) is dict else value, kinds)
    return kinds[kind](name, value)


def _read_shape(name: str, value: Any) -> Shape:
    shape = tuple(_integers(name, value, 1, MAX_ELEMENTS, (1, MAX_DIMENSIONS)))
    if math.prod(shape) > MAX_ELEMENTS:
        raise _refuse(name, f"a shape of at most {MAX_ELEMENTS} numbers", math.prod(shape))
    return shape


def _read_box(name: str, value: Any) -> spaces.Box:
    fields = _fields(name, value, ("type", "shape", "dtype", "low", "high"))
    shape = _read_shape(f"{name}.shape", fields["shape"])
    dtype = np.dtype(_choice(f"{name}.dtype", fields["dtype"], BOX_DTYPES))
    low, high = (_read_bounds(f"{name}.{side}", fields[side], shape, dtype) for side in ("low", "high"))
    if not (low <= high).all():
        raise ExportError(f"{name}.low in {DESCRIPTION_FILE} must be at most {name}.high everywhere")
    if (low == np.inf).any() or (high == -np.inf).any():
        raise ExportError(f"{name} in {DESCRIPTION_FILE} must hold numbers: low below inf, high above -inf")
    return spaces.Box(low, high, dtype=dtype.type)


def _read_bounds(name: str, value: Any, shape: Shape, dtype: np.dtype) -> np.ndarray:
    count = math.prod(shape)
    if type(value) is not list:
        return np.full(shape, _read_bound(name, value, dtype), dtype)
    if len(value) != count:
        raise _refuse(name, f"a number or a list of {count}", value)
    return np.array([_read_bound(name, item, dtype) for item in value], dtype).reshape(shape)


def _read_bound(name: str, value: Any, dtype: np.dtype) -> int | float:
    """A number that the type holds: what it does not would become another one, or NumPy would warn."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return _integer(name, value, int(limits.min), int(limits.max))
    number = _number(name, value, infinite=True)
    if not math.isinf(number) and abs(number) > float(np.finfo(dtype).max):
        raise _refuse(name, f"a {dtype} number", value)
    return float(number)


def _read_discrete(name: str, value: Any) -> spaces.Discrete:
    fields = _fields(name, value, ("type", "n", "start"))
    n = _integer(f"{name}.n", fields["n"], 1, MAX_ELEMENTS)
    return spaces.Discrete(n, start=_integer(f"{name}.start", fields["start"], -(2**31), 2**31))


def _read_multi_discrete(name: str, value: Any) -> spaces.MultiDiscrete:
    fields = _fields(name, value, ("type", "nvec", "start"))
    nvec = _integers(f"{name}.nvec", fields["nvec"], 1, MAX_ELEMENTS, (1, MAX_ELEMENTS))
    start = _integers(f"{name}.start", fields["start"], -(2**31), 2**31, (len(nvec), len(nvec)))
    return spaces.MultiDiscrete(np.array(nvec), start=np.array(start))


def _read_multi_binary(name: str, value: Any) -> spaces.MultiBinary:
    shape = _read_shape(f"{name}.shape", _fields(name, value, ("type", "shape"))["shape"])
    return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)


def _read_dict(name: str, value: Any) -> spaces.Dict:
    pairs = _fields(name, value, ("type", "spaces"))["spaces"]
    if type(pairs) is not list or not pairs or not all(type(pair) is list and len(pair) == 2 for pair in pairs):
        raise _refuse(f"{name}.spaces", "a list of pairs [key, space]", pairs)
    parts: OrderedDict[str, spaces.Space] = OrderedDict()
    total = 0
    for key, part in pairs:
        _check_key(f"{name}.spaces", key)
        if key in parts:
            raise _refuse(f"{name}.spaces", "a list of pairs with different keys", key)
        parts[key] = _read_space(f"{name}.spaces[{key!r}]", part)
        total += flat_size(parts[key])
        if total > MAX_ELEMENTS:  # at once: a thousand spaces of the largest size would fill the memory
            raise _refuse(f"{name}.spaces", f"spaces of at most {MAX_ELEMENTS} numbers together", pairs)
    return spaces.Dict(parts)


def _check_key(name: str, key: Any) -> None:
    """Refuse a key that the extractor, an ``nn.ModuleDict``, cannot have, or that no message could show as it is."""
    _text(name, key)
    if "." in key or hasattr(_MODULE_DICT, key) or not key.isprintable():
        raise _refuse(name, "printable keys without a dot that name no attribute of torch.nn.ModuleDict", key)


_SPACES: dict[str, Callable[[str, Any], spaces.Space]] = {
    "Box": _read_box,
    "Discrete": _read_discrete,
    "MultiDiscrete": _read_multi_discrete,
    "MultiBinary": _read_multi_binary,
}


def flat_size(space: Any) -> int:
    """The number of features of an observation that SB3 preprocesses and flattens."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return sum(space.nvec.tolist())
    return math.prod(space.shape)


# ------------------------------------------------------------------ what fits together, and how large it is


def check(description: Description) -> None:
    """Check that a policy of SB3's can be built from the description, as far as its fields depend on one another.

    :raises ExportError: if none can
    """
    settings, space = description.settings, description.observation_space
    if flat_size_of_all(space) > MAX_ELEMENTS:
        raise _refuse("observation_space", f"a space of at most {MAX_ELEMENTS} features", flat_size_of_all(space))
    if (settings.extractor == "CombinedExtractor") != isinstance(space, spaces.Dict):
        raise _refuse(
            "policy.features_extractor.class", "CombinedExtractor for a Dict, else another", settings.extractor
        )
    if settings.use_sde and not isinstance(description.action_space, spaces.Box):
        raise _refuse("policy.use_sde", "false unless the action space is a Box", True)
    if settings.squash_output and not settings.use_sde:
        raise _refuse("policy.squash_output", "false unless use_sde is true", True)
    if isinstance(description.action_space, spaces.MultiBinary) and len(description.action_space.shape) > 1:
        raise _refuse("action_space.shape", "one number", list(description.action_space.shape))
    if settings.extractor == "NatureCNN" and not _is_image(settings, space):
        raise _refuse("observation_space", "an image, channel first, for NatureCNN", type(space).__name__)


def flat_size_of_all(space: spaces.Space) -> int:
    """:func:`flat_size`, summed over the spaces of a Dict."""
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    return sum(map(flat_size, parts))


def _is_image(settings: PolicySettings, space: spaces.Space) -> bool:
    normalized = settings.extractor_kwargs.get("normalized_image", False) or not settings.normalize_images
    return is_image_space(space, normalized_image=normalized)


def tensor_shapes(description: Description) -> dict[str, tuple[str, Shape]]:
    """All tensors of ``policy.safetensors``: the type (as safetensors names it) and shape of each, by name.

    The policy's weights under the names of its ``state_dict``, less those that are there twice because they are
    shared; the statistics of observations as ``normalizer.mean`` and ``normalizer.var``, or ``normalizer.mean.<key>``.

    :raises ExportError: if an image is too small for the convolutions
    """
    tensors = {f"policy.{name}": ("F32", shape) for name, shape in _parameter_shapes(description).items()}
    for suffix, space in description.normalized.items():
        for statistic in ("mean", "var"):
            tensors[f"normalizer.{statistic}{suffix}"] = ("F64", space.shape)
    return tensors


def _parameter_shapes(description: Description) -> dict[str, Shape]:
    settings = description.settings
    extractor, features = _extractor_shapes(settings, description.observation_space)
    prefixes = ["features_extractor."]
    if not settings.share_features_extractor:
        prefixes.append("vf_features_extractor.")
    shapes = {prefix + name: shape for prefix in prefixes for name, shape in extractor.items()}
    latent: dict[str, int] = {}
    for part, net in (("pi", "policy_net"), ("vf", "value_net")):
        latent[part] = features
        for layer, units in enumerate(settings.net_arch[part]):
            shapes |= _linear(f"mlp_extractor.{net}.{2 * layer}", units, latent[part])
            latent[part] = units
    outputs = flat_size(description.action_space)  # means, or the logits of all categories
    shapes |= _linear("action_net", outputs, latent["pi"])
    shapes |= _linear("value_net", 1, latent["vf"])
    if isinstance(description.action_space, spaces.Box):
        of_sde = (latent["pi"], outputs if settings.full_std else 1)
        shapes["log_std"] = of_sde if settings.use_sde else (outputs,)
    return shapes


def _linear(name: str, outputs: int, inputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _extractor_shapes(settings: PolicySettings, space: Any) -> tuple[dict[str, Shape], int]:
    """The shapes of a features extractor's weights, and the number of its features."""
    if settings.extractor == "FlattenExtractor":
        return {}, flat_size(space)
    if settings.extractor == "NatureCNN":
        return _nature_cnn_shapes(space.shape, settings.extractor_kwargs.get("features_dim", 512))
    shapes: dict[str, Shape] = {}
    features = 0
    for key, part in space.spaces.items():
        added = flat_size(part)
        if _is_image(settings, part):
            own, added = _nature_cnn_shapes(part.shape, settings.extractor_kwargs.get("cnn_output_dim", 256))
            shapes |= {f"extractors.{key}.{name}": shape for name, shape in own.items()}
        features += added
    return shapes, features


# NatureCNN's convolutions: channels, width of the kernel, stride.
_CONVOLUTIONS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))


def _nature_cnn_shapes(shape: Shape, features: int) -> tuple[dict[str, Shape], int]:
    channels, height, width = shape
    shapes: dict[str, Shape] = {}
    for number, (outputs, kernel, stride) in enumerate(_CONVOLUTIONS):
        shapes[f"cnn.{2 * number}.weight"] = (outputs, channels, kernel, kernel)
        shapes[f"cnn.{2 * number}.bias"] = (outputs,)
        if min(height, width) < kernel:
            raise _refuse("observation_space", "an image of at least 36 x 36, channel first, for NatureCNN", str(shape))
        channels, height, width = outputs, (height - kernel) // stride + 1, (width - kernel) // stride + 1
    return shapes | _linear("linear.0", features, channels * height * width), features
