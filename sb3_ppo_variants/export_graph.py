"""A policy's deterministic action as one graph of tensors, and that graph as ONNX and as TorchScript.

The graph takes what the environment gives and returns what ``predict(…, deterministic=True)`` returns, in its types.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

from sb3_ppo_variants.export_files import ExportError


class ActionGraph(nn.Module):
    """Raw observations to deterministic actions: normalisation, preprocessing, networks, clipping or unscaling.

    :param policy: the policy, on the CPU
    :param action_space: the environment's
    :param clip_actions: whether Box actions that are not squashed are clipped to it
    :param statistics: mean, variance plus ε, and the limit of the normalised observations, by the observation
        space's keys (``""`` where it is no Dict)
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        action_space: spaces.Space,
        clip_actions: bool,
        statistics: dict[str, tuple[np.ndarray, np.ndarray, float]],
    ):
        super().__init__()
        self.features = policy.pi_features_extractor
        self.latent = policy.mlp_extractor.policy_net
        self.action_net = policy.action_net
        space: Any = policy.observation_space
        self.keys = list(space.spaces) if isinstance(space, spaces.Dict) else None
        parts = [space] if self.keys is None else list(space.spaces.values())
        self.inputs = nn.ModuleList(
            _Input(part, policy.normalize_images, statistics.get(key))
            for key, part in zip(self.keys or [""], parts, strict=True)
        )
        self.output = _output(policy, action_space, clip_actions)

    def forward(self, *observations: th.Tensor) -> th.Tensor:
        """The actions ``(B, *action_shape)``.

        :param observations: ``(B, *shape)`` of each part of the observation space, in the order of its keys
        """
        parts = [read(part) for read, part in zip(self.inputs, observations, strict=True)]
        features = self.features(parts[0] if self.keys is None else dict(zip(self.keys, parts, strict=True)))
        return self.output(self.action_net(self.latent(features)))

    def names(self) -> list[str]:
        """The names of the inputs: ``observation``, or the keys of a Dict."""
        return ["observation"] if self.keys is None else [f"observation.{key}" for key in self.keys]

    def examples(self) -> tuple[th.Tensor, ...]:
        """Inputs of the right types and shapes: two observations of zeros."""
        return tuple(read.example() for read in self.inputs)  # type: ignore[operator]


class _Input(nn.Module):
    """One part of an observation, as VecNormalize and SB3's ``preprocess_obs`` hand it to the features extractor."""

    mean: th.Tensor
    deviation: th.Tensor

    def __init__(
        self, space: Any, normalize_images: bool, statistics: tuple[np.ndarray, np.ndarray, float] | None
    ) -> None:
        super().__init__()
        self.space = space
        self.is_normalized = statistics is not None
        self.is_image = normalize_images and is_image_space(space)
        sizes = _category_sizes(space)
        self.categories = [(f"categories_{number}", number) for number in range(len(sizes))]
        for (name, _), size in zip(self.categories, sizes, strict=True):
            self.register_buffer(name, th.arange(size))
        if statistics is not None:
            mean, variance, limit = statistics
            self.register_buffer("mean", th.as_tensor(mean, dtype=th.float64))
            self.register_buffer("deviation", th.as_tensor(np.sqrt(variance), dtype=th.float64))
            self.limit = limit

    def example(self) -> th.Tensor:
        return th.zeros((2, *self.space.shape), dtype=getattr(th, str(self.space.dtype)))

    def forward(self, observation: th.Tensor) -> th.Tensor:
        if self.categories:
            columns = observation.long().reshape(-1, len(self.categories))
            one_hot = [
                columns[:, number : number + 1] == self.get_buffer(name).unsqueeze(0)
                for name, number in self.categories
            ]
            return th.cat(one_hot, dim=1).float()
        if self.is_normalized:  # in double precision, as NumPy has it
            normalized = (observation.double() - self.mean) / self.deviation
            return th.clamp(normalized, -self.limit, self.limit).float()
        return observation.float() / 255.0 if self.is_image else observation.float()


def _category_sizes(space: Any) -> list[int]:
    """The number of values of each one-hot part of an observation; none for numbers."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    return space.nvec.tolist() if isinstance(space, spaces.MultiDiscrete) else []


def _output(policy: ActorCriticPolicy, action_space: Any, clip_actions: bool) -> nn.Module:
    if isinstance(action_space, spaces.Box):
        return _BoxOutput(action_space, policy.squash_output, clip_actions)
    if isinstance(action_space, spaces.MultiBinary):
        return _BinaryOutput()
    sizes = _category_sizes(action_space)
    return _CategoryOutput(sizes, isinstance(action_space, spaces.Discrete))


class _BoxOutput(nn.Module):
    low: th.Tensor
    high: th.Tensor

    def __init__(self, space: spaces.Box, squashed: bool, clip: bool):
        super().__init__()
        self.shape = space.shape
        self.squashed = squashed
        self.clip = clip
        # The type that NumPy gives single-precision actions and these bounds.
        dtype = np.result_type(np.float32, space.dtype) if squashed or clip else np.dtype(np.float32)
        self.register_buffer("low", th.as_tensor(space.low.astype(dtype)))
        self.register_buffer("high", th.as_tensor(space.high.astype(dtype)))

    def forward(self, mean: th.Tensor) -> th.Tensor:
        if self.squashed:
            mean = th.tanh(mean)
        actions = mean.reshape(-1, *self.shape)
        if self.squashed:
            return self.low + 0.5 * (actions + 1.0) * (self.high - self.low)
        if self.clip:
            return th.minimum(th.maximum(actions.to(self.low.dtype), self.low), self.high)
        return actions


class _BinaryOutput(nn.Module):
    def forward(self, logits: th.Tensor) -> th.Tensor:
        return th.round(th.sigmoid(logits))


class _CategoryOutput(nn.Module):
    def __init__(self, sizes: Sequence[int], single: bool):
        super().__init__()
        self.sizes = list(sizes)
        self.single = single

    def forward(self, logits: th.Tensor) -> th.Tensor:
        # As torch.distributions: probabilities of normalised logits, whose rounding can make two of them equal.
        parts = [part - part.logsumexp(dim=1, keepdim=True) for part in logits.split(self.sizes, dim=1)]
        modes = [th.argmax(th.softmax(part, dim=1), dim=1) for part in parts]
        return modes[0] if self.single else th.stack(modes, dim=1)


# ------------------------------------------------------------------ formats


@contextmanager
def _without_torchs_own_warnings() -> Iterator[None]:
    """Silence what torch says about itself: that TorchScript is deprecated, and how its exporter goes about it."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # it warns that torchvision, which no policy uses, is not installed
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            # The inputs of a Dict share one number of observations, as they should.
            warnings.filterwarnings("ignore", r"# The axis name: batch will not be used", UserWarning)
            yield
    finally:
        registration.setLevel(level)


def to_torchscript(graph: ActionGraph) -> bytes:
    """The graph traced, as ``torch.jit.load`` reads it.

    torch 2.13 deprecates TorchScript and warns at every use; that warning, and no other, is silenced here.

    :param graph: on the CPU, in evaluation mode
    """
    buffer = io.BytesIO()
    with th.no_grad(), _without_torchs_own_warnings():
        th.jit.save(th.jit.trace(graph, graph.examples(), check_trace=False), buffer)
    return _without_debug_information(buffer)


def _without_debug_information(script: io.BytesIO) -> bytes:
    """The archive less its records of source lines, which hold the paths of this machine's files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(script) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                new.writestr(zipfile.ZipInfo(entry.filename), old.read(entry))
    return buffer.getvalue()


def to_onnx(graph: ActionGraph) -> bytes:
    """The graph as ONNX, with any number of observations at once; the output's name is ``action``.

    :param graph: on the CPU, in evaluation mode
    :raises ExportError: if the packages for it are missing
    """
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise ExportError('the format "onnx" needs the [onnx] extra: pip install "sb3-ppo-variants[onnx]"')
    batch = th.export.Dim("batch")
    examples = graph.examples()
    with th.no_grad(), _without_torchs_own_warnings():
        program: Any = th.onnx.export(
            graph,
            examples,
            dynamo=True,
            dynamic_shapes=(tuple({0: batch} for _ in examples),),  # one argument, *observations
            input_names=graph.names(),
            output_names=["action"],
            verbose=False,
        )
    proto = program.model_proto
    _strip(proto.graph)
    return proto.SerializeToString()


def run_torchscript(data: bytes, observations: Sequence[np.ndarray]) -> np.ndarray:
    """The actions of what :func:`to_torchscript` gave.

    :param observations: ``(B, *shape)`` of each input of the graph, of its type
    """
    with th.no_grad(), _without_torchs_own_warnings():
        script = th.jit.load(io.BytesIO(data), map_location="cpu")
        return script(*map(th.as_tensor, observations)).numpy()


def run_onnx(data: bytes, observations: Sequence[np.ndarray]) -> np.ndarray:
    """The actions of what :func:`to_onnx` gave: by onnxruntime where it is installed, else by onnx's own evaluator.

    :param observations: ``(B, *shape)`` of each input of the graph, of its type
    """
    import onnx

    model = onnx.load_from_string(data)
    inputs = dict(zip([entry.name for entry in model.graph.input], observations, strict=True))
    if importlib.util.find_spec("onnxruntime") is None:
        import onnx.reference

        evaluator: Any = onnx.reference.ReferenceEvaluator(model)
        return np.asarray(evaluator.run(None, inputs)[0])
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


def _strip(graph: Any) -> None:
    """Remove the exporter's notes, which hold the paths of this machine's files."""
    for items in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for item in items:
            del item.metadata_props[:]
            item.doc_string = ""
    del graph.metadata_props[:]
