"""An export acts as its model does, runs nothing when it is loaded, and is refused when anything in it was changed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pickle
import re
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch as th
import yaml
from gymnasium import spaces
from safetensors.numpy import load as read_tensors
from safetensors.numpy import save as write_tensors
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize, unwrap_vec_normalize
from torch import nn

import sb3_ppo_variants
from sb3_ppo_variants import ExportedPolicy, ExportError, cli, export, export_policy, load_policy
from sb3_ppo_variants.export_format import tensor_shapes
from tests.export_cases import ACTION, BOX, CASES, IMAGE, Case, make_env, make_model, observations

every_case = pytest.mark.parametrize("name", CASES)
# Exporting to ONNX takes seconds: the cases with most kinds of input, output and normalisation, the rest are slow.
QUICK_ONNX = ("multidiscrete", "normalized dict")


def seen_by(model: Any, raw: Any) -> Any:
    """What the model's VecNormalize makes of raw observations."""
    vec_normalize = unwrap_vec_normalize(model.get_env())
    return raw if vec_normalize is None else vec_normalize.normalize_obs(raw)


def inputs_of_graph(exported: ExportedPolicy, raw: Any) -> list[np.ndarray]:
    """Raw observations as the graphs take them: in the order of keys, channel first, of the space's type."""
    space: Any = exported.observation_space
    parts = (
        {key: (part, space.spaces[key]) for key, part in raw.items()} if isinstance(raw, dict) else {"": (raw, space)}
    )
    pairs = [parts[key] for key in (space.spaces if isinstance(raw, dict) else parts)]
    return [(part if part.shape[1:] == of.shape else np.moveaxis(part, -1, 1)).astype(of.dtype) for part, of in pairs]


def assert_same_actions(actions: np.ndarray, expected: np.ndarray) -> None:
    assert actions.dtype == expected.dtype
    assert actions.shape == expected.shape
    np.testing.assert_allclose(actions, expected, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------ the same actions


@every_case
def test_an_export_acts_as_its_model(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = make_model(case)
    export_policy(model, tmp_path, formats=("safetensors", "torchscript"))
    exported = load_policy(tmp_path, "cpu")
    shapes = tensor_shapes(exported._description)  # they follow from the description alone
    numbers = sum(np.prod(shape) for tensor, (_, shape) in shapes.items() if tensor.startswith("policy."))
    assert numbers == sum(parameter.numel() for parameter in model.policy.parameters())
    raw = observations(case.observations, 64)
    expected = model.predict(seen_by(model, raw), deterministic=True)[0]
    actions, state = exported.predict(raw, deterministic=True)
    assert state is None
    assert_same_actions(actions, expected)
    assert len(np.unique(actions)) > 1

    # One observation at a time, and drawn with the same random numbers (gSDE draws its noise when it is loaded).
    one = {key: value[0] for key, value in raw.items()} if isinstance(raw, dict) else raw[0]
    assert_same_actions(exported.predict(one, deterministic=True)[0], expected[0])
    drawn = []
    for policy, seen in ((model, seen_by(model, raw)), (exported, raw)):
        th.manual_seed(3)
        if case.arguments.get("use_sde"):
            policy.policy.reset_noise()
        drawn.append(policy.predict(seen)[0])
    assert_same_actions(drawn[1], drawn[0])

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated", DeprecationWarning)
        script = th.jit.load(tmp_path / "policy.pt")
    assert str(Path(export.__file__).parent).encode() not in (tmp_path / "policy.pt").read_bytes()
    assert b"site-packages" not in (tmp_path / "policy.pt").read_bytes()
    for count in (1, 64):
        parts = [th.as_tensor(part[:count]) for part in inputs_of_graph(exported, raw)]
        assert_same_actions(script(*parts).detach().numpy(), expected[:count])


@pytest.mark.parametrize(
    "name", [name if name in QUICK_ONNX else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_onnx_acts_as_the_model(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = make_model(case)
    export_policy(model, tmp_path, formats=["onnx"])
    data = (tmp_path / "policy.onnx").read_bytes()
    assert b".py" not in data  # the exporter notes the files of its code
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    raw = observations(case.observations, 64)
    expected = model.predict(seen_by(model, raw), deterministic=True)[0]
    names = [entry.name for entry in session.get_inputs()]
    keys = (
        [f"observation.{key}" for key in model.observation_space.spaces] if isinstance(raw, dict) else ["observation"]
    )
    assert names == keys
    assert [entry.name for entry in session.get_outputs()] == ["action"]
    for count in (1, 64):
        parts = [part[:count] for part in inputs_of_graph(load_policy(tmp_path), raw)]
        actions = session.run(None, dict(zip(names, parts, strict=True)))[0]
        assert_same_actions(np.asarray(actions), expected[:count])


def test_images_are_taken_channel_first_and_last(tmp_path: Path) -> None:
    model = make_model(CASES["image, two extractors"])
    export_policy(model, tmp_path)
    exported = load_policy(tmp_path)
    last = observations(IMAGE, 4)
    first = np.moveaxis(last, -1, 1)
    assert exported.observation_space.shape == (3, 36, 40)
    for images in (last, first, last[0], first[0]):
        assert_same_actions(
            exported.predict(images, deterministic=True)[0], model.predict(images, deterministic=True)[0]
        )


@pytest.mark.parametrize("name", ["box", "normalized", "gsde squashed", "dict", "from discrete"])
def test_evaluate_policy_scores_an_export_as_its_model(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = make_model(case)
    export_policy(model, tmp_path)
    scores = []
    policies: list[Any] = [model, load_policy(tmp_path)]
    for policy in policies:
        env = make_env(case._replace(normalize=None))  # an export takes what the environment itself gives
        if policy is model and case.normalize is not None:
            env = VecNormalize(env, training=False, norm_reward=False, **case.normalize)
            env.obs_rms = model.env.obs_rms
        scores.append(evaluate_policy(policy, env, n_eval_episodes=4, return_episode_rewards=True))
    assert scores[0][1] == scores[1][1]
    np.testing.assert_allclose(scores[0][0], scores[1][0], atol=1e-5)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_sb3s_own_models_can_be_exported(algorithm: Any, tmp_path: Path) -> None:
    arguments = {"batch_size": 16} if algorithm is PPO else {}
    model = algorithm("MlpPolicy", make_env(Case()), n_steps=8, device="cpu", **arguments)
    export_policy(model, tmp_path)
    exported = load_policy(tmp_path)
    raw = observations(BOX, 16)
    assert_same_actions(exported.predict(raw, deterministic=True)[0], model.predict(raw, deterministic=True)[0])
    assert exported.algorithm == algorithm.__name__


@pytest.mark.parametrize("algorithm", sb3_ppo_variants.ALGORITHMS.values())
def test_every_algorithm_of_ours_can_be_exported(algorithm: str, tmp_path: Path) -> None:
    kind = getattr(sb3_ppo_variants, algorithm)
    export_policy(kind("MlpPolicy", make_env(Case()), n_steps=8, batch_size=16, device="cpu"), tmp_path)
    assert load_policy(tmp_path).algorithm == algorithm


def test_statistics_may_be_given(tmp_path: Path) -> None:
    normalized = make_model(CASES["normalized"])
    env = normalized.env
    normalized.env = None
    export_policy(normalized, tmp_path, vec_normalize=env)
    raw = observations(BOX, 8)
    expected = normalized.predict(env.normalize_obs(raw), deterministic=True)[0]
    assert_same_actions(load_policy(tmp_path).predict(raw, deterministic=True)[0], expected)


# ------------------------------------------------------------------ a new training from a loaded policy


def with_other_weights(case: Case) -> Any:
    model = make_model(case)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.mul_(-0.5)
    return model


@pytest.mark.parametrize("name", ["box", "normalized", "normalized dict"])
def test_a_new_model_starts_as_the_policy(name: str, tmp_path: Path) -> None:
    trained, fresh = make_model(CASES[name]), with_other_weights(CASES[name])
    export_policy(trained, tmp_path)
    raw = observations(CASES[name].observations, 8)
    expected = trained.predict(seen_by(trained, raw), deterministic=True)[0]
    load_policy(tmp_path).start(fresh, count=100.0)
    assert_same_actions(fresh.predict(seen_by(fresh, raw), deterministic=True)[0], expected)
    for one, other in zip(fresh.policy.parameters(), trained.policy.parameters(), strict=True):
        assert th.equal(one, other)
    normalizer = unwrap_vec_normalize(fresh.get_env())
    if normalizer is not None:
        statistics: Any = normalizer.obs_rms
        counts = [each.count for each in statistics.values()] if isinstance(statistics, dict) else [statistics.count]
        assert counts == [100.0]
        assert normalizer.ret_rms.count == pytest.approx(40, abs=0.01)  # its own


def test_a_new_model_takes_other_statistics_of_some_components(tmp_path: Path) -> None:
    trained, fresh = make_model(CASES["normalized"]), with_other_weights(CASES["normalized"])
    export_policy(trained, tmp_path)
    load_policy(tmp_path).start(fresh, statistics={2: (30.0, 4.0)})
    before: Any = unwrap_vec_normalize(trained.get_env())
    after: Any = unwrap_vec_normalize(fresh.get_env())
    assert (after.obs_rms.mean[2], after.obs_rms.var[2]) == (30.0, 4.0)
    np.testing.assert_allclose(np.delete(after.obs_rms.mean, 2), np.delete(before.obs_rms.mean, 2))
    np.testing.assert_allclose(np.delete(after.obs_rms.var, 2), np.delete(before.obs_rms.var, 2))


@pytest.mark.parametrize(
    ("net_arch", "use_sde"), [([16, 8], False), ([], False), ({"pi": [4], "vf": []}, False), ([16, 8], True)]
)
def test_weights_that_follow_other_statistics_act_as_before(net_arch: Any, use_sde: bool, tmp_path: Path) -> None:
    case = Case(normalize={"clip_obs": 50.0}, policy_kwargs={"net_arch": net_arch}, arguments={"use_sde": use_sde})
    export_policy(make_model(case), tmp_path)
    exported = load_policy(tmp_path)
    exported.policy.get_distribution(th.zeros(1, 3))  # remembers tensors that cannot be copied
    before = {name: tensor.clone() for name, tensor in exported.policy.state_dict().items()}
    statistics = {0: (0.3, 2.0), 2: (-1.0, 0.2)}
    raw = observations(case.observations, 64)
    outputs = []
    for arguments in ({}, {"statistics": statistics}, {"statistics": statistics, "rescale": True}):
        model = with_other_weights(case)
        exported.start(model, **arguments)
        seen = th.as_tensor(seen_by(model, raw), dtype=th.float32)
        with th.no_grad():
            given = model.policy.get_distribution(seen)
            spread = given.distribution.stddev
            outputs.append((given.mode(), model.policy.predict_values(seen), *([spread] if use_sde else [])))
    for own, replaced, rescaled in zip(*outputs, strict=True):
        assert not th.allclose(own, replaced, atol=1e-2)
        th.testing.assert_close(own, rescaled, atol=1e-4, rtol=1e-4)
    normalizer: Any = unwrap_vec_normalize(model.get_env())
    assert {i: (normalizer.obs_rms.mean[i], normalizer.obs_rms.var[i]) for i in statistics} == statistics
    assert all(th.equal(tensor, before[name]) for name, tensor in exported.policy.state_dict().items())


def test_weights_that_cannot_follow_statistics_are_told(tmp_path: Path) -> None:
    export_policy(make_model(CASES["normalized"]), tmp_path)
    with pytest.raises(ValueError, match="rescale=True goes with statistics"):
        load_policy(tmp_path).start(make_model(CASES["normalized"]), rescale=True)
    case = CASES["normalized"]._replace(policy_kwargs={"net_arch": []}, arguments={"use_sde": True})
    export_policy(make_model(case), tmp_path)
    with pytest.raises(ValueError, match="rescale must be False for gSDE without hidden layers"):
        load_policy(tmp_path).start(make_model(case), statistics={0: (0.0, 1.0)}, rescale=True)


@pytest.mark.parametrize(
    ("name", "statistics", "message"),
    [
        ("normalized", {3: (0.0, 1.0)}, "an index of statistics must be an integer from 0 to 2; got 3"),
        ("normalized", {-1: (0.0, 1.0)}, "an index of statistics must be an integer from 0 to 2; got -1"),
        ("normalized", {0: (float("inf"), 1.0)}, r"the mean of statistics\[0\] must be a finite number; got inf"),
        ("normalized", {0: (0.0, 0.0)}, r"the variance of statistics\[0\] must be a number > 0; got 0.0"),
        ("normalized", {0: 5.0}, r"statistics\[0\] must be a mean and a variance; got 5.0"),
        ("normalized", {0: (0.0, 1.0, 2.0)}, r"statistics\[0\] must be a mean and a variance; got \(0.0, 1.0, 2.0\)"),
        ("box", {0: (0.0, 1.0)}, "statistics are for a policy whose observations have one axis and are normalised"),
        ("normalized dict", {0: (0.0, 1.0)}, "statistics are for a policy whose observations have one axis"),
    ],
)
def test_statistics_that_do_not_fit_change_nothing(name: str, statistics: Any, message: str, tmp_path: Path) -> None:
    export_policy(make_model(CASES[name]), tmp_path)
    model = with_other_weights(CASES[name])
    normalizer = unwrap_vec_normalize(model.get_env())
    rms = normalizer.obs_rms if normalizer is not None else None
    seen = {key: deepcopy(vars(each)) for key, each in (rms if isinstance(rms, dict) else {"": rms}).items() if each}
    before = [parameter.clone() for parameter in model.policy.parameters()]
    with pytest.raises(ValueError, match=message):
        load_policy(tmp_path).start(model, statistics=statistics)
    for key, values in seen.items():
        after: Any = rms[key] if isinstance(rms, dict) else rms
        for attribute, value in values.items():
            np.testing.assert_array_equal(getattr(after, attribute), value)
    assert all(th.equal(*pair) for pair in zip(model.policy.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case(observations=spaces.Box(-1, 1, (4,))), "model must have an observation_space as the policy's"),
        (Case(actions=spaces.Discrete(2)), "model must have an action_space as the policy's"),
        (Case(normalize={}), "as they are, by its VecNormalize or none"),
        (Case(policy_kwargs={"net_arch": [5]}), "model must have networks as the policy's"),
        (Case(policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [5]}}), "model must have networks as the policy's"),
    ],
)
def test_another_model_is_left_as_it_was(case: Case, message: str, tmp_path: Path) -> None:
    export_policy(make_model(CASES["box"]), tmp_path)
    model = with_other_weights(case)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    with pytest.raises(ValueError, match=message):
        load_policy(tmp_path).start(model)
    assert all(th.equal(*pair) for pair in zip(model.policy.parameters(), before, strict=True))


def test_another_normaliser_is_refused(tmp_path: Path) -> None:
    export_policy(make_model(CASES["normalized"]), tmp_path)
    model = make_model(CASES["normalized"])
    model.env.clip_obs = 7.5
    before = model.env.obs_rms.count
    with pytest.raises(ValueError, match=r"model's VecNormalize must have clip_obs=\S+, as the policy's; it has 7.5"):
        load_policy(tmp_path).start(model)
    assert model.env.obs_rms.count == before


# ------------------------------------------------------------------ what a loaded policy offers


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, not to be changed."""
    folder = tmp_path_factory.mktemp("export")
    export_policy(make_model(CASES["normalized"]), folder)
    return folder


def test_sb3s_api_on_the_loaded_policy(original: Path, tmp_path: Path) -> None:
    exported = load_policy(str(original), device="cpu")
    assert type(exported.policy) is ActorCriticPolicy
    assert (exported.observation_space, exported.action_space) == (BOX, ACTION)
    assert exported.device == th.device("cpu")
    assert exported.versions["stable_baselines3"]
    assert repr(exported).startswith("ExportedPolicy(PPOClipPaper, observation_space=Box(")
    assert not exported.policy.training
    state, start = (np.zeros(2),), np.ones(1, bool)
    assert exported.predict(np.zeros(3), state, start, deterministic=True)[1] is state
    with pytest.raises(ValueError, match="mixing Gym API"):
        exported.predict((np.zeros(3), {}))  # type: ignore[arg-type]

    raw = observations(BOX, 5)
    tensor, batched = exported.policy.obs_to_tensor(exported.normalize_obs(raw))
    assert batched
    assert exported.policy.predict_values(tensor).shape == (5, 1)
    actions = exported.policy.get_distribution(tensor).get_actions(deterministic=True)
    values, log_prob, entropy = exported.policy.evaluate_actions(tensor, actions)
    assert values.shape == (5, 1)
    assert log_prob.shape == (5,)
    assert entropy is not None
    exported.policy.save(str(tmp_path / "policy.pth"))
    again = ActorCriticPolicy.load(str(tmp_path / "policy.pth"), device="cpu")
    assert_same_actions(
        again.predict(exported.normalize_obs(raw), deterministic=True)[0], exported.predict(raw, deterministic=True)[0]
    )


@pytest.mark.parametrize("name", ["image", "gsde"])
def test_exporting_and_loading_draw_no_random_numbers_and_change_no_model(name: str, tmp_path: Path) -> None:
    model = make_model(CASES[name])
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    numpy_state = model.observation_space.np_random.bit_generator.state
    th.manual_seed(0)
    expected = th.rand(3)
    th.manual_seed(0)
    export_policy(model, tmp_path, formats=["torchscript"])
    load_policy(tmp_path).graph()
    assert th.equal(th.rand(3), expected)
    assert model.observation_space.np_random.bit_generator.state == numpy_state
    assert all(th.equal(before[name], value) for name, value in model.policy.state_dict().items())


def test_an_exported_policy_can_be_exported_from_a_model_that_learned(tmp_path: Path) -> None:
    model = make_model(CASES["gsde"]).learn(16)
    export_policy(model, tmp_path)
    model.learn(16)
    export_policy(model, tmp_path)
    raw = observations(BOX, 8)
    assert_same_actions(
        load_policy(tmp_path).predict(raw, deterministic=True)[0], model.predict(raw, deterministic=True)[0]
    )


# ------------------------------------------------------------------ what cannot be exported


class OwnPolicy(ActorCriticPolicy):
    pass


class OwnExtractor(FlattenExtractor):
    pass


class OwnActivation(nn.Tanh):
    pass


@pytest.mark.parametrize(
    ("policy", "kwargs", "message"),
    [
        (OwnPolicy, {}, r"the policy class OwnPolicy cannot be exported, only ActorCriticPolicy, .*use one of these"),
        ("MlpPolicy", {"features_extractor_class": OwnExtractor}, "the features extractor OwnExtractor cannot be"),
        ("MlpPolicy", {"activation_fn": OwnActivation}, "the activation function OwnActivation cannot .*model.save"),
        ("MlpPolicy", {"activation_fn": nn.PReLU}, "the activation function PReLU cannot be exported, only Tanh, ReLU"),
    ],
)
def test_code_of_the_users_own_is_refused_by_name(policy: Any, kwargs: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        export_policy(make_model(Case(policy=policy, policy_kwargs=kwargs)), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def spoil_distribution(model: Any) -> None:
    model.policy.action_dist = object()


def replace_layer(model: Any) -> None:
    model.policy.action_net = nn.Linear(8, 2)


def replace_activation(model: Any) -> None:
    model.policy.mlp_extractor.policy_net[1] = nn.Identity()


def use_double_precision(model: Any) -> None:
    model.policy.double()


def diverge(model: Any) -> None:
    model.policy.action_net.bias.data[0] = np.nan


def wear_a_wrapper(model: Any) -> None:
    model.action_space = spaces.Tuple([spaces.Discrete(2)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil_distribution, "the action distribution object cannot be exported, only DiagGaussianDistribution"),
        (replace_layer, "policy.action_net.weight is not as SB3's own policy"),
        (replace_activation, r"acts otherwise than the model, by up to \d"),
        (use_double_precision, "is not as SB3's own policy with these arguments has it .single precision"),
        (diverge, "policy.action_net.bias must be finite"),
        (wear_a_wrapper, "action_space must be of Box, Discrete, MultiDiscrete, MultiBinary.*got Tuple"),
    ],
)
def test_models_that_were_changed_are_refused(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    model = make_model(Case())
    change(model)
    with pytest.raises(ExportError, match=message):
        export_policy(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the policy class DQNPolicy cannot be exported"):
        export_policy(DQN("MlpPolicy", "CartPole-v1", buffer_size=10, device="cpu"), tmp_path)
    with pytest.raises(ExportError, match="model must be a model of this package or of SB3; got int"):
        export_policy(3, tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("formats", ["onnx", ["safetensor"], [1], None])
def test_formats_are_checked(formats: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"formats must be a sequence of 'safetensors', 'onnx', 'torchscript'; got"):
        export_policy(make_model(Case()), tmp_path, formats=formats)


def test_a_wrapper_between_the_statistics_and_the_model_is_named(tmp_path: Path) -> None:
    env = VecFrameStack(VecNormalize(make_env(Case())), 2)
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=16, device="cpu")
    with pytest.raises(ExportError, match="between VecNormalize and the model lies VecFrameStack"):
        export_policy(model, tmp_path)
    with pytest.raises(ExportError, match=r"shape \(3,\), the model sees Box\(.*VecFrameStack"):
        export_policy(model, tmp_path, vec_normalize=env.venv)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="vec_normalize must be a VecNormalize or None; got VecFrameStack"):
        export_policy(model, tmp_path, vec_normalize=env)  # type: ignore[arg-type]
    above = PPO("MlpPolicy", VecNormalize(VecFrameStack(make_env(Case()), 2)), n_steps=8, batch_size=16, device="cpu")
    export_policy(above, tmp_path)
    assert load_policy(tmp_path).predict(np.zeros(6))[0].shape == (2,)


def test_onnx_names_the_extra_that_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ExportError, match=r'pip install "sb3-ppo-variants\[onnx\]"'):
        export_policy(make_model(Case()), tmp_path, formats=["onnx"])
    assert not list(tmp_path.iterdir())


def without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "onnxruntime" else real(name, *more)
    )


def other_tensors(tensors: dict[str, Any]) -> bytes:
    return write_tensors({name: np.zeros_like(value) for name, value in tensors.items()})


def half_a_file(tensors: dict[str, Any]) -> bytes:
    return write_tensors(tensors)[:-8]


@pytest.mark.parametrize(
    ("writer", "message"),
    [(other_tensors, "acts otherwise than the model"), (half_a_file, "is not a safetensors file")],
)
def test_what_is_written_is_what_is_checked(
    writer: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "serialize", writer)
    with pytest.raises(ExportError, match=message):
        export_policy(make_model(CASES["box"]), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("writer", "name"),
    [
        ("to_torchscript", "box"),
        ("to_torchscript", "discrete"),
        ("to_onnx", "box"),
        pytest.param("to_onnx", "discrete", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("runtime", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_graphs_are_run_before_they_are_written(
    writer: str, name: str, runtime: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(export, writer)
    if not runtime:
        without_onnxruntime(monkeypatch)

    def broken(graph: Any) -> bytes:
        with th.no_grad():
            for parameter in graph.action_net.parameters():
                parameter *= -1
        return real(graph)

    monkeypatch.setattr(export, writer, broken)
    suffix, form = ("pt", "torchscript") if writer == "to_torchscript" else ("onnx", "onnx")
    with pytest.raises(ExportError, match=rf"policy\.{suffix} would act otherwise than the model"):
        export_policy(make_model(CASES[name]), tmp_path, formats=[form])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@every_case
def test_onnx_is_checked_without_onnxruntime(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_onnxruntime(monkeypatch)
    export_policy(make_model(CASES[name]), tmp_path, formats=["onnx"])
    assert (tmp_path / "policy.onnx").exists()


# ------------------------------------------------------------------ files that were changed


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of an export, to be changed."""
    for path in original.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def replace_weights(folder: Path, data: bytes) -> None:
    """Put other bytes in the place of the weights, and their checksum into the description."""
    (folder / "policy.safetensors").write_bytes(data)
    description = json.loads((folder / "policy.json").read_text())
    description["sha256"]["policy.safetensors"] = hashlib.sha256(data).hexdigest()
    (folder / "policy.json").write_text(json.dumps(description))


def test_every_flipped_byte_of_the_weights_is_seen(folder: Path) -> None:
    path = folder / "policy.safetensors"
    data = path.read_bytes()
    for position in (0, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(ExportError, match=r"is not the file that policy.json belongs to \(sha256\)"):
            load_policy(folder)


@pytest.mark.parametrize("length", [0, 1, 8, 200, -1])
def test_truncated_weights_are_refused(length: int, folder: Path) -> None:
    path = folder / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ExportError, match=r"must have \d+ to \d+ bytes; it has \d+|\(sha256\)"):
        load_policy(folder)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def test_a_pickle_in_place_of_the_weights_is_not_run(folder: Path) -> None:
    size = (folder / "policy.safetensors").stat().st_size
    sign = folder / "it ran"
    replace_weights(folder, pickle.dumps(Bomb(sign)).ljust(size, b"."))
    with pytest.raises(ExportError, match=r"policy.safetensors is not a safetensors file"):
        load_policy(folder)
    th.save({"policy": Bomb(sign)}, folder / "zip")
    replace_weights(folder, (folder / "zip").read_bytes().ljust(size, b"."))
    with pytest.raises(ExportError, match=r"policy.safetensors is not a safetensors file"):
        load_policy(folder)
    (folder / "policy.json").write_bytes(pickle.dumps(Bomb(sign)))
    with pytest.raises(ExportError, match=r"policy.json is not JSON"):
        load_policy(folder)
    assert not sign.exists()


def cut_tensor(tensors: dict[str, Any]) -> None:
    tensors["policy.value_net.weight"] = tensors["policy.value_net.weight"].T.copy()


def other_type(tensors: dict[str, Any]) -> None:
    tensors["policy.log_std"] = tensors["policy.log_std"].view(np.int32)


def poison(tensors: dict[str, Any]) -> None:
    tensors["policy.log_std"] = np.full_like(tensors["policy.log_std"], np.inf)


def negative_variance(tensors: dict[str, Any]) -> None:
    tensors["normalizer.var"] = -tensors["normalizer.var"]


def rename(tensors: dict[str, Any]) -> None:
    tensors["policy.log_std2"] = tensors.pop("policy.log_std")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            cut_tensor,
            r"policy.value_net.weight in policy.safetensors must be \('F32', \(1, 7\)\); got \('F32', \(7, 1\)",
        ),
        (other_type, r"policy.log_std in policy.safetensors must be \('F32', \(2,\)\); got \('I32'"),
        (poison, "policy.log_std must be finite"),
        (negative_variance, "normalizer.var must be >= 0"),
        (rename, "policy.safetensors lacks 'policy.log_std'"),
        (lambda tensors: tensors.update(more=np.zeros(1)), "policy.safetensors has an unknown tensor 'more'"),
    ],
)
def test_other_tensors_are_refused_by_name(change: Callable[[Any], None], message: str, folder: Path) -> None:
    tensors = read_tensors((folder / "policy.safetensors").read_bytes())
    change(tensors)
    replace_weights(folder, write_tensors(tensors))
    with pytest.raises(ExportError, match=message):
        load_policy(folder)


INFINITE = {"type": "Box", "shape": [2], "dtype": "float32", "low": "-inf", "high": "inf"}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "other", "policy.json is not the description of a policy"),
        ("version", 2, "version in policy.json must be 1, the one that this package reads; got 2"),
        ("version", True, "version in policy.json must be 1"),
        ("code", "print(1)", "the object in policy.json has an unknown field 'code'"),
        ("policy.activation_fn", "eval", "policy.activation_fn in policy.json must be one of Tanh, ReLU"),
        ("policy.class", ["MlpPolicy"], "policy.class in policy.json must be one of MlpPolicy"),
        ("policy.features_extractor.class", "os.system", "must be one of FlattenExtractor, NatureCNN"),
        ("policy.features_extractor.class", "CombinedExtractor", "must be CombinedExtractor for a Dict, else another"),
        ("policy.features_extractor.class", "NatureCNN", "observation_space in policy.json must be an image"),
        ("policy.features_extractor.kwargs.x", 1, "has an unknown field 'x'"),
        ("policy.net_arch.pi", [8, 0], r"policy.net_arch.pi\[1\] in policy.json must be an integer from 1"),
        ("policy.net_arch.pi", [8, 6.0], r"policy.net_arch.pi\[1\] in policy.json must be an integer from 1"),
        ("policy.net_arch.pi", [1] * 257, "policy.net_arch.pi in policy.json must be a list of 0 to 256 integers"),
        ("policy.net_arch.pi", [2**40, 2**40], r"weights of \d{20,} bytes; max_bytes is 1073741824"),
        ("policy.net_arch.pi", [10**400], "got an integer of 1329 bits"),
        ("policy.net_arch.pi", [2000, 6], r"policy.safetensors must have \d+ to \d+ bytes; it has"),
        ("policy.log_std_init", 10**400, "policy.log_std_init in policy.json must be a finite number"),
        ("policy.ortho_init", 1, "policy.ortho_init in policy.json must be true or false; got 1"),
        ("policy.squash_output", True, "policy.squash_output in policy.json must be false unless use_sde is true"),
        ("clip_actions", None, "clip_actions in policy.json must be true or false"),
        ("normalizer.epsilon", 0, "normalizer.epsilon in policy.json must be a number > 0"),
        ("normalizer.clip_obs", "-inf", "normalizer.clip_obs in policy.json must be a number > 0"),
        ("normalizer.norm_obs_keys", ["a"], "normalizer.norm_obs_keys in policy.json must be a list for a Dict"),
        ("observation_space.type", "Tuple", "observation_space.type in policy.json must be one of Box"),
        ("observation_space.shape", [3, 2**30], r"observation_space.shape\[1\] in policy.json must be an integer from"),
        ("observation_space.shape", [2**11] * 2, "must be a shape of at most 1048576 numbers; got 4194304"),
        ("observation_space.shape", [], "must be a list of 1 to 8 integers"),
        ("observation_space.dtype", "object", "observation_space.dtype in policy.json must be one of float32"),
        ("observation_space.low", [0, 1], "observation_space.low in policy.json must be a number or a list of 3"),
        ("observation_space.low", "nan", "observation_space.low in policy.json must be a finite number"),
        ("observation_space.low", 1e39, "observation_space.low in policy.json must be a float32 number"),
        ("observation_space.high", "-inf", "observation_space in policy.json must hold numbers: low below inf"),
        ("observation_space.low", "inf", "observation_space in policy.json must hold numbers: low below inf"),
        ("action_space", {**INFINITE, "low": "inf"}, "action_space in policy.json must hold numbers"),
        ("action_space", {**INFINITE, "high": "-inf"}, "action_space in policy.json must hold numbers"),
        ("action_space", INFINITE, None),
        ("action_space.low", 99, "action_space.low in policy.json must be at most action_space.high everywhere"),
        ("action_space", {"type": "Discrete", "n": 2**62, "start": 0}, "action_space.n in policy.json must be"),
        ("action_space", {"type": "Dict", "spaces": []}, "action_space.type in policy.json must be one of Box"),
        ("sha256", {"policy.safetensors": "0" * 64}, "is not the file that policy.json belongs to"),
        ("sha256", {"../other": "0" * 64}, "sha256 in policy.json has an unknown field '../other'"),
        ("versions.torch", "", "versions.torch in policy.json must be a string"),
        ("algorithm", "__import__('os')", "algorithm in policy.json must be a string"),
    ],
)
def test_another_description_is_refused_by_its_field(field: str, value: Any, message: str | None, folder: Path) -> None:
    description = json.loads((folder / "policy.json").read_text())
    *parents, name = field.split(".")
    part = description
    for parent in parents:
        part = part[parent]
    part[name] = value
    (folder / "policy.json").write_text(json.dumps(description))
    if message is None:  # odd, and harmless
        assert load_policy(folder).predict(np.zeros(3))[0].shape == (2,)
        return
    with pytest.raises(ExportError, match=message):
        load_policy(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "must have 1 to 1048576 bytes; it has 0"),
        (b"[" * 500_000, "policy.json is nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "policy.json is nested too deeply"),
        (b" " * (1 << 20) + b"{}", "must have 1 to 1048576 bytes"),
        (b"NaN", "policy.json holds NaN"),
        (b'{"format": Infinity}', "policy.json holds Infinity"),
        (b"1" * 5000, "policy.json is not JSON: Exceeds the limit"),
        (b'{"format": 1, "format": 2}', "policy.json repeats the field 'format'"),
        (json.dumps({str(n): n for n in range(50_000)}).encode()[:-1] + b', "49999": 0}', "repeats the field '49999'"),
        (b'{"format": "\xff"}', "policy.json is not JSON: 'utf-8'"),
        (b"null", "policy.json is not the description of a policy"),
        (b"[]", "policy.json is not the description of a policy"),
        (b'{"format": "sb3-ppo-variants policy", "version": 1}', "the object in policy.json lacks the field"),
    ],
)
def test_hostile_json_is_refused(text: bytes, message: str, folder: Path) -> None:
    (folder / "policy.json").write_bytes(text)
    with pytest.raises(ExportError, match=message):
        load_policy(folder)


def test_what_is_no_file_is_refused_without_waiting(folder: Path) -> None:
    for name in ("policy.safetensors", "policy.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(ExportError, match=f"{name} is not a file"):
            load_policy(folder)
        (folder / name).unlink()
        with pytest.raises(ExportError, match=rf"{name} cannot be read: .*No such file"):
            load_policy(folder)
        (folder / name).symlink_to("/dev/zero")
        with pytest.raises(ExportError, match=f"{name} is not a file"):
            load_policy(folder)


def test_folders_in_the_place_of_files_are_refused_and_closed(folder: Path) -> None:
    descriptors = len([*Path("/proc/self/fd").iterdir()])
    for name in ("policy.safetensors", "policy.json"):
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(ExportError, match=f"{name} is not a file$"):
            load_policy(folder)
    assert len([*Path("/proc/self/fd").iterdir()]) == descriptors


def test_a_header_that_lies_is_refused(folder: Path) -> None:
    data = (folder / "policy.safetensors").read_bytes()
    for length in (2**63, len(data), 2):
        replace_weights(folder, struct.pack("<Q", length) + data[8:])
        with pytest.raises(ExportError, match="is not a safetensors file"):
            load_policy(folder)


def test_the_size_can_be_limited(original: Path) -> None:
    with pytest.raises(ExportError, match=r"describes weights of .* bytes; max_bytes is 100"):
        load_policy(original, max_bytes=100)
    with pytest.raises(ValueError, match="max_bytes must be an integer >= 1; got 0"):
        load_policy(original, max_bytes=0)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("a.b", "keys without a dot"),
        ("keys", "keys without a dot"),
        ("", "must be a string"),
        ("a\x1b[2J", r"'a\\x1b\[2J'$"),
    ],
)
def test_keys_that_no_extractor_has_are_refused(key: str, message: str, tmp_path: Path) -> None:
    export_policy(make_model(CASES["dict"]), tmp_path)
    description = json.loads((tmp_path / "policy.json").read_text())
    description["observation_space"]["spaces"][0][0] = key
    (tmp_path / "policy.json").write_text(json.dumps(description))
    with pytest.raises(ExportError, match=message):
        load_policy(tmp_path)


def test_bounds_that_numpy_cannot_sample_are_refused(tmp_path: Path) -> None:
    export_policy(make_model(CASES["image, not divided"]), tmp_path)
    description = json.loads((tmp_path / "policy.json").read_text())
    description["observation_space"] |= {"dtype": "float64", "low": -1.7e308, "high": 1.7e308}
    (tmp_path / "policy.json").write_text(json.dumps(description))
    with pytest.raises(ExportError, match=r"no policy can be built from policy.json: Range exceeds"):
        load_policy(tmp_path)


def test_text_of_strangers_is_not_printed_as_it_is(folder: Path) -> None:
    header = b'{"policy.log_std":{"dtype":"\\u001b[2J","shape":[2],"data_offsets":[0,8]}}'
    data = struct.pack("<Q", len(header)) + header
    replace_weights(folder, data.ljust((folder / "policy.safetensors").stat().st_size, b"."))
    with pytest.raises(ExportError, match="is not a safetensors file") as caught:
        load_policy(folder)
    assert str(caught.value).isprintable()


def test_small_images_are_refused(tmp_path: Path) -> None:
    export_policy(make_model(CASES["image"]), tmp_path)
    description = json.loads((tmp_path / "policy.json").read_text())
    description["observation_space"]["shape"] = [3, 36, 35]
    (tmp_path / "policy.json").write_text(json.dumps(description))
    with pytest.raises(ExportError, match="must be an image of at least 36 x 36"):
        load_policy(tmp_path)


# ------------------------------------------------------------------ all files or none


@pytest.mark.parametrize("failing", range(3))
def test_a_failing_write_leaves_the_old_export(failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "export"
    export_policy(make_model(CASES["box"]), folder, formats=["torchscript"])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    real, calls = os.replace, iter(range(9))

    def replace(*arguments: Any) -> None:
        if next(calls) == failing:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="No space left"):
        export_policy(make_model(CASES["discrete"]), folder, formats=["torchscript"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert load_policy(folder).action_space == ACTION
    calls = iter(range(failing, 9))
    with pytest.raises(OSError, match="No space left"):
        export_policy(make_model(CASES["box"]), tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


def test_files_of_other_formats_do_not_outlive_their_policy(tmp_path: Path) -> None:
    export_policy(make_model(CASES["box"]), tmp_path, formats=["torchscript"])
    (tmp_path / "notes.txt").write_text("mine")
    export_policy(make_model(CASES["discrete"]), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"policy.json", "policy.safetensors", "notes.txt"}
    assert list(json.loads((tmp_path / "policy.json").read_text())["sha256"]) == ["policy.safetensors"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors", "policy.pt", "policy.onnx"])
def test_a_file_that_no_export_wrote_is_not_touched(name: str, tmp_path: Path) -> None:
    """Neither beside no export at all, nor in the place of an export's file."""
    model = make_model(CASES["box"])
    formats = ["torchscript"] if name == "policy.pt" else []
    (tmp_path / name).write_bytes(b"mine")
    if name == "policy.onnx":  # nothing is to be written there
        export_policy(model, tmp_path, formats=formats)
        assert contents(tmp_path)[name] == b"mine"
        return
    for _ in range(2):
        before = contents(tmp_path)
        with pytest.raises(ExportError, match=rf"{name} is not as an export wrote it.* export into another folder"):
            export_policy(model, tmp_path, formats=formats)
        assert contents(tmp_path) == before
        for path in tmp_path.iterdir():
            path.unlink()
        export_policy(model, tmp_path, formats=["torchscript"])
        (tmp_path / name).write_bytes(b"mine")


def test_a_file_that_was_changed_since_its_export_outlives_it(tmp_path: Path) -> None:
    model = make_model(CASES["box"])
    export_policy(model, tmp_path, formats=["torchscript"])
    (tmp_path / "policy.pt").write_bytes(b"mine")
    export_policy(model, tmp_path)
    assert (tmp_path / "policy.pt").read_bytes() == b"mine"


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"format": "sb3-ppo-variants policy", "sha256": 3}', "\xff"])
def test_a_description_that_is_none_owns_no_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(text, encoding="latin-1")
    (tmp_path / "policy.safetensors").write_bytes(b"mine")
    before = contents(tmp_path)
    with pytest.raises(ExportError, match="is not as an export wrote it"):
        export_policy(make_model(CASES["box"]), tmp_path)
    assert contents(tmp_path) == before


def test_a_description_that_would_not_be_read_is_not_written(tmp_path: Path) -> None:
    low = np.linspace(-2, -1, 60_000).astype(np.float32)
    case = Case(spaces.Box(low, 1.0), policy_kwargs={"net_arch": [1]})
    with pytest.raises(ExportError, match=r"policy.json would take \d+ bytes, at most 1048576 are read"):
        export_policy(make_model(case), tmp_path)


# ------------------------------------------------------------------ the command line


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs in rl_zoo3's folders, the second with statistics."""
    monkeypatch.chdir(tmp_path)
    for number, name in ((9, "box"), (10, "normalized")):
        run = Path(f"logs/ppo_clip_paper/Own-Env-v0_{number}")
        (run / "Own-Env-v0").mkdir(parents=True)
        model = make_model(CASES[name])
        model.save(run / "Own-Env-v0.zip")
    model.save(run / "best_model.zip")
    model.env.save(str(run / "Own-Env-v0" / "vecnormalize.pkl"))
    settings = OrderedDict(n_envs=2, normalize=True, policy_kwargs="dict(net_arch=[8])")
    (run / "Own-Env-v0" / "config.yml").write_text(yaml.dump(settings))
    return run


OWN = ["export", "--env", "Own/Env-v0"]


def test_a_run_is_exported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*OWN, "--formats", "safetensors", "torchscript"]) == 0
    assert capsys.readouterr().out == f"Export: {run}/export (policy.json, policy.pt, policy.safetensors)\n"
    model = make_model(CASES["normalized"])
    raw = observations(BOX, 8)
    expected = model.predict(seen_by(model, raw), deterministic=True)[0]
    assert_same_actions(load_policy(run / "export").predict(raw, deterministic=True)[0], expected)
    assert cli.main([*OWN, "--exp-id", "9", "-o", "mine"]) == 0
    assert load_policy("mine").normalize_obs(raw) is raw
    # The best model's statistics are those of its time: by now the run has seen more.
    (run / "Own-Env-v0" / "best").mkdir()
    (run / "Own-Env-v0" / "vecnormalize.pkl").rename(run / "Own-Env-v0" / "best" / "vecnormalize.pkl")
    model.env.obs_rms.mean += 1.0
    model.env.save(str(run / "Own-Env-v0" / "vecnormalize.pkl"))
    assert cli.main([*OWN, "--load-best", "-o", "best", "-f", "logs"]) == 0
    assert_same_actions(load_policy("best").predict(raw, deterministic=True)[0], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--exp-id", "3"], r"no model found for ppo_clip_paper on Own/Env-v0: there is no run 3 in logs"),
        (["--exp-id", "-2"], "--exp-id must be -1, 0 or the number of a run; got -2"),
        (["--exp-id", "-1"], r"there is no logs/ppo_clip_paper/Own-Env-v0\.zip"),
        (["--exp-id", "9", "--load-best"], r"there is no .*best_model\.zip"),
        (["--algo", "ppo_clip"], "unknown algorithm 'ppo_clip', did you mean 'ppo_clip_paper'"),
        (["--algo", "a2c"], "no model found for a2c on Own/Env-v0: there is no run in logs/a2c"),
    ],
)
def test_runs_that_are_not_there(
    arguments: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*OWN, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)


def test_lost_statistics_are_noticed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "Own-Env-v0" / "vecnormalize.pkl").unlink()
    assert cli.main(OWN) == 2
    assert "trained with normalised observations or rewards, and there is no" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [OrderedDict(n_envs=2), OrderedDict(normalize=False), {"normalize": None}, None])
def test_runs_without_statistics_are_exported(settings: Any, run: Path) -> None:
    (run / "Own-Env-v0" / "vecnormalize.pkl").unlink()
    config = run / "Own-Env-v0" / "config.yml"
    config.unlink() if settings is None else config.write_text(yaml.dump(settings))
    assert cli.main([*OWN, "-o", "new"]) == 0


def test_settings_that_are_no_mapping_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "Own-Env-v0" / "vecnormalize.pkl").unlink()
    (run / "Own-Env-v0" / "config.yml").write_text("[normalize]")
    assert cli.main(OWN) == 2
    assert re.search(r"config\.yml must be a mapping of settings; got \['normalize'\]", capsys.readouterr().err)


@pytest.mark.parametrize(("missing", "what"), [("sb3_contrib", "--algo trpo"), ("yaml", "reading logs")])
def test_a_missing_extra_is_named(
    missing: str, what: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "Own-Env-v0" / "vecnormalize.pkl").unlink()
    algo = "trpo" if missing == "sb3_contrib" else "ppo_clip_paper"
    run.parent.rename(run.parent.with_name(algo))
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == missing else real(name, *more))
    assert cli.main([*OWN, "--algo", algo]) == 2
    error = capsys.readouterr().err
    assert what in error
    assert 'needs the [zoo] extra: pip install "sb3-ppo-variants[zoo]"' in error


def test_the_help_says_what_opening_a_zip_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", "-h"])
    assert "run whatever code is in them" in capsys.readouterr().out
