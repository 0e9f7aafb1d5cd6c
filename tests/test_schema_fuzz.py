"""Random files near the real ones: reading answers with settings or with a ValueError, and nothing runs."""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sb3_ppo_variants import PPOClipPaper, VanillaPGPaper, schema, zoo
from sb3_ppo_variants.safe_yaml import parse_yaml, read_expression

FEW = settings(max_examples=60, derandomize=True, deadline=None, database=None)
MANY = settings(
    max_examples=4000, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
Body = Callable[[Any], None]

# ------------------------------------------------------------------ random settings

TEXTS = [
    "MlpPolicy",
    "lin_0.1",
    "lin_",
    "1e-3",
    "batch",
    "dict(a=1)",
    "0x" + "f" * 9000,
    "1" * 400,
    "dict(net_arch=[4], activation_fn=nn.Tanh)",
    "__import__('os').system('touch ran')",
    "os.system",
    "{'norm_obs': True}",
    "",
    "\0",
    "é",
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 200),
    st.integers(),
    st.floats(),
    st.sampled_from(TEXTS),
    st.text(max_size=8),
)
ARGUMENTS = [
    "net_arch",
    "activation_fn",
    "norm_obs",
    "clip_obs",
    "info_keywords",
    "schedule",
    "start",
    "end",
    "name",
    "pi",
]
# Beyond what a float holds, and beyond what Python writes: only a Python config has these.
HUGE = st.sampled_from([1332, 36_000]).map(lambda bits: 1 << bits)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from(ARGUMENTS), st.text(max_size=4), st.integers(0, 3)), inner, max_size=3
        ),
        st.fixed_dictionaries(
            {"schedule": st.just("linear"), "start": inner, "end": inner}, optional={"end_fraction": inner}
        ),
    ),
    max_leaves=6,
)
KEYS = sorted(
    {"policy", "gamma", "n_steps", "learning_rate", "clip_range", "policy_kwargs", "n_step", "vec_env"} | zoo.ZOO_KEYS
)
VALID: dict[str, list[Any]] = {
    "n_envs": [1, 4],
    "gamma": [0.9, "9e-1"],
    "n_steps": [64],
    "learning_rate": [1e-3, "lin_0.1", {"schedule": "linear", "start": 1, "end": 0}],
    "normalize": [True, {"norm_obs": False}],
    "policy_kwargs": [{"net_arch": [4]}, {"activation_fn": "relu"}],
    "monitor_kwargs": [{"info_keywords": ["a"]}],
    "env_wrapper": ["gymnasium.wrappers.TimeAwareObservation"],
    "vec_env": ["dummy", {"name": "shared_memory", "n_workers": 2}],
}
SETTINGS = st.builds(
    lambda valid, random: {"policy": "MlpPolicy", "n_timesteps": 100, **valid, **random},
    st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in VALID.items()}),
    st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=4)), VALUES | HUGE, max_size=2),
)

# ------------------------------------------------------------------ random files

TAGS = [
    "!!python/object/apply:os.system",
    "!!python/object/new:os.system",
    "!!python/object:os.system",
    "!!python/name:os.system",
    "!!python/name:torch.nn.modules.activation.Tanh",
    "!!python/module:os",
    "!!python/tuple",
    "!!python/object/apply:collections.OrderedDict",
    "!!float",
    "!!int",
    "!!bool",
    "!!null",
    "!!binary",
    "!!timestamp",
    "!!set",
    "!!omap",
    "!!map",
    "!!seq",
    "!<tag:yaml.org,2002:python/name:os.system>",
    "!x",
]
PIECES = [
    *TAGS,
    "&a",
    "*a",
    "<<: ",
    "[",
    "]",
    "{",
    "}",
    ": ",
    "- ",
    "? ",
    "\n",
    "\n  ",
    "|\n",
    ">\n",
    "'",
    '"',
    "# ",
    "%YAML 1.1\n",
    "---",
]
PIECES += [
    "'touch ran'",
    '"\\ud800"',
    '"\\UFFFFFFFF"',
    "2020-01-01",
    "2020-99-99",
    "1:1:1",
    "0x",
    "=",
    "~",
    "CartPole-v1",
    *TEXTS,
]
PLAIN = st.builds(lambda value, flow: yaml.safe_dump(value, default_flow_style=flow), VALUES, st.booleans())
SHIPPED = zoo.config_text("ppo_clip_paper")[:1500]


@st.composite
def mutated(draw: st.DrawFn, text: str) -> str:
    """A text with a few pieces put in, or in place of some characters."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from(PIECES)) + text[at + draw(st.integers(0, 3)) :]
    return text


FILES = st.one_of(
    st.binary(max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=12).map(lambda pieces: " ".join(pieces).encode()),
    PLAIN.flatmap(mutated).map(str.encode),
    mutated(SHIPPED).map(str.encode),
    VALUES.map(lambda value: yaml.dump({"normalize": value, "env_kwargs": (value,)}).encode()),
)
EXPRESSIONS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(TEXTS).flatmap(mutated),
    st.lists(
        st.sampled_from(
            [
                "dict(",
                ")",
                "a=",
                "[",
                "]",
                "{",
                "}",
                "'b': ",
                ", ",
                "nn.Tanh",
                "-",
                "1",
                "os.system('touch ran')",
                "**",
                "lambda: ",
            ]
        ),
        max_size=10,
    ).map("".join),
)

# ------------------------------------------------------------------ what must hold


@pytest.fixture(autouse=True)
def _nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(*_args: Any, **_kwargs: Any) -> NoReturn:
        pytest.fail("a command ran")

    for module, name in ((os, "system"), (os, "popen"), (subprocess, "Popen")):
        monkeypatch.setattr(module, name, run)
    monkeypatch.chdir(tmp_path)


def refuses_or(read: Callable[[], Any]) -> None:
    """Call it: it may raise a ValueError with one line of text, and nothing else."""
    try:
        read()
        return
    except ValueError as error:
        refusal = error
    assert type(refusal) is ValueError  # no UnicodeError, which is one that nobody raised on purpose
    assert str(refusal)


def check_files(data: bytes) -> None:
    for keys in (None, ["normalize", "env_wrapper"]):
        refuses_or(lambda keys=keys: parse_yaml(data, "s.yml", used_keys=keys))  # type: ignore[misc]
    path = Path("config.yml")
    path.write_bytes(data)
    refuses_or(lambda: schema.check_settings_file(path))
    refuses_or(lambda: schema.read_run_file(path))
    assert [entry.name for entry in Path().iterdir()] == ["config.yml"]


def check_settings(drawn: dict[str, Any]) -> None:
    from stable_baselines3 import PPO

    def checked(read: Callable[..., dict[str, Any]], algorithm: type) -> None:
        schema.check_classes(read(algorithm, drawn))

    refuses_or(lambda: checked(zoo.read_hyperparams, PPOClipPaper))
    refuses_or(lambda: checked(zoo.read_hyperparams, VanillaPGPaper))
    refuses_or(lambda: checked(zoo.read_settings_of_others, PPO))
    assert not list(Path().iterdir())


def check_expression(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's own, of escapes in the text
        refuses_or(lambda: read_expression("normalize", text))
        refuses_or(lambda: zoo.read_literal(text))


@given(FILES)
@FEW
def test_files(data: bytes) -> None:
    check_files(data)


@given(SETTINGS)
@FEW
def test_settings(drawn: dict[str, Any]) -> None:
    check_settings(drawn)


@given(EXPRESSIONS)
@FEW
def test_expressions(text: str) -> None:
    check_expression(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drawn", "body"), [(FILES, check_files), (SETTINGS, check_settings), (EXPRESSIONS, check_expression)]
)
def test_many(drawn: st.SearchStrategy[Any], body: Body) -> None:
    MANY(given(drawn)(body))()
