"""Files and settings are data: what is refused, by which words, and that nothing ran or was created."""

from __future__ import annotations

import importlib
import re
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from gymnasium.wrappers import TimeAwareObservation
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecMonitor
from torch import nn

import sb3_ppo_variants
from sb3_ppo_variants import ALGORITHMS, PPOClipPaper, cli, schema, zoo
from sb3_ppo_variants.safe_yaml import MAX_BYTES, MAX_DEPTH, load_yaml, parse_yaml, read_expression

NEEDED: dict[str, Any] = {"policy": "MlpPolicy", "n_timesteps": 100}
NO_NAMES: list[Any] = ["name", 5, [[]], "a b.c", {}, {"a.B": None}, {"a.B": {}, "a.C": {}}]
QUIET = ["--eval-freq", "-1", "--verbose", "0", "--no-progress", "-tb", ""]
# Each would create a file named `ran`.
COMMAND = "__import__('os').system('touch ran')"
COMMAND_TAG = "!!python/object/apply:os.system ['touch ran']"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 10)}]\n" for below, name in zip("abcdef", "bcdefg", strict=True)
)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    zoo.register()


def only_error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


# ------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"a: {COMMAND_TAG}",
            r"s.yml, line 1: the tag !!python/object/apply:os.system is refused.*allowed tags: .*!!str",
        ),
        ("a: 1\nb: !!python/name:os.system ''", r"line 2: the tag !!python/name:os.system is refused"),
        ("a: !!python/tuple [1, 2]", "the tag !!python/tuple is refused"),
        ("a: !<tag:yaml.org,2002:python/module:os> ''", "the tag !!python/module:os is refused"),
        ("a: !mine 1", "the tag !mine is refused"),
        ("a: !!set {b}", "the tag !!set is refused"),
        ("a: !!binary aGk=", "the tag !!binary is refused"),
        ("!!python/name:os.system '': 1", "the tag !!python/name:os.system is refused"),
        ("a: !!map text", "the tag !!map is refused"),
        ("a: 2020-01-01", "line 1: '2020-01-01' means more than its text to YAML, and must be in quotes"),
        ("a: =", "'=' means more than its text"),
        ("a: 1\nb: {c: 2, c: 3}", "s.yml, line 2: the key 'c' is given twice in one mapping"),
        ("a: 1\na: 1", "line 2: the key 'a' is given twice"),
        ("a: &x {b: 1}\nc: {<<: *x, <<: *x}", "line 2: the key '<<' is given twice"),
        ("a: {<<: 1}", "'<<' must be an alias of a mapping, or a list of such"),
        ("on: 1", "line 1: a key must be a string, in quotes where YAML reads another kind; got True"),
        ("a: {b: {1: 2}}", "a key must be a string.* got 1$"),
        ("? [a]\n: 1", r"a key must be a string.* got \['a'\]"),
        ("a: !!int x", "line 1: 'x' cannot be read as !!int"),
        ("a: !!int ''", "'' cannot be read as !!int"),
        ("a: !!bool x", "'x' cannot be read as !!bool"),
        (f"a: {'1' * 5000}", r"line 1: '1{77}\.\.\.' cannot be read as !!int"),
        ('a: "\\ud800"', "cannot be read as !!str"),
        ('a: "\\UFFFFFFFF"', "s.yml is not YAML: "),
        ("a: [", "s.yml is not YAML: line 1: "),
        ("a: *b", "s.yml is not YAML: line 1: found undefined alias"),
        ("a: 1\n---\nb: 2", "s.yml is not YAML: line 2: but found another document"),
        ("a: \x00", "s.yml is not YAML: "),
        (BOMB, "s.yml, line .*: the file must have at most 10,000 values with its aliases written out"),
        ("a: &a [*a]", "the file must have at most 32 levels with its aliases written out"),
        ("[" * 50_000, f"s.yml is not YAML: line 1: it must have at most {MAX_DEPTH} levels"),
        ("- " * 50_000, f"it must have at most {MAX_DEPTH} levels"),
        (f"a: [{'a,' * 90_000}]", "s.yml is not YAML: line 1: it must have at most 10,000 values"),
        ("".join(f"k{number}: 1\n" for number in range(10_000)), "it must have at most 10,000 values"),
    ],
)
def test_a_file_that_is_refused_is_so_by_name_and_line(text: str, message: str) -> None:
    Path("s.yml").write_bytes(text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        load_yaml(Path("s.yml"))
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a: \xff", "s.yml must be UTF-8 text; byte 3 is none"),
        (b"#" * (MAX_BYTES + 1), "s.yml must have at most 200,000 bytes"),
    ],
)
def test_bytes_that_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_yaml(data, "s.yml")


@pytest.mark.parametrize("name", ["nowhere.yml", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be read: "):
        load_yaml(Path(name))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: {b: [1, 0x1F, 1_000, 1.5, .inf, -1.0e-3, 1e-3, true, null, ~, text, 'quoted', \"\\u00e9\"]}",
        "a: [!!float 1e6, !!int '3', !!str 1, !!bool yes, !!null '', !!seq [1], !!map {b: 1}]",
        "a: &x {b: 1, c: 2}\nd: {c: 3, <<: *x}\ne: *x",
        "a: &x {b: 1}\nc: &y {b: 2, d: 4}\ne: {<<: [*x, *y], d: 5}",
        "a: {b: {c: {1: 2}}}",
        "é: |\n  two\n  lines\n",
    ],
)
def test_plain_yaml_is_read_as_pyyaml_reads_it(text: str) -> None:
    assert parse_yaml(text.encode(), "s.yml") == yaml.safe_load(text)


def test_aliases_are_copies() -> None:
    config = parse_yaml(b"a: &x {b: [1]}\nc: *x", "s.yml")
    config["a"]["b"].append(2)
    assert config["c"] == {"b": [1]}


@pytest.mark.parametrize("algo", [*ALGORITHMS, *zoo.PEERS])
def test_the_shipped_configs_fit_the_schema(algo: str) -> None:
    import rl_zoo3

    path = zoo.config_path(algo)
    schema.check_settings_file(path)
    config = load_yaml(path)
    assert config == yaml.safe_load(path.read_text())
    read = zoo.read_hyperparams if algo in ALGORITHMS else zoo.read_settings_of_others
    for settings in config.values():
        read(rl_zoo3.ALGOS[algo], settings)


def test_the_configs_of_rl_zoo3_fit_the_schema_and_leave_nothing_to_evaluate() -> None:
    import rl_zoo3

    folder = Path(rl_zoo3.__file__).parent / "hyperparams"
    for algo in set(rl_zoo3.ALGOS) - set(ALGORITHMS):
        path = folder / f"{algo}.yml"
        config = load_yaml(path)
        assert config == yaml.safe_load(path.read_text())
        for settings in config.values():
            # One entry of ppo_lstm names a policy that this algorithm has not.
            policy = next(iter(rl_zoo3.ALGOS[algo].policy_aliases))
            read = zoo.read_settings_of_others(rl_zoo3.ALGOS[algo], {**settings, "policy": policy})
            assert not any(isinstance(read.get(key), str) for key in schema.EVALUATED_KEYS)


# ------------------------------------------------------------------ expressions


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (
            "dict(log_std_init=-2, net_arch=dict(pi=[64], vf=[]), activation_fn=nn.ReLU)",
            {"log_std_init": -2, "net_arch": {"pi": [64], "vf": []}, "activation_fn": nn.ReLU},
        ),
        ("  {'norm_obs': True, 'clip': (1, +2.5), 'none': None}\n", {"norm_obs": True, "clip": (1, 2.5), "none": None}),
        ("dict(a='text', b=1e-5)", {"a": "text", "b": 1e-5}),
        ("dict()", {}),
    ],
)
def test_expressions_of_rl_zoo3(text: str, value: Any) -> None:
    assert read_expression("policy_kwargs", text) == value


@pytest.mark.parametrize(
    "text",
    [
        COMMAND,
        f"dict(a={COMMAND})",
        f"[{COMMAND}]",
        f"{{'a': {COMMAND}}}",
        f"{{{COMMAND}: 1}}",
        "dict(activation_fn=nn.Linear)",
        "dict(activation_fn=nn.modules.activation.Tanh)",
        "dict(activation_fn=th.nn.Tanh)",
        "nn.__class__",
        "().__class__",
        "dict(**{'a': 1})",
        "{**{'a': 1}}",
        "dict([('a', 1)])",
        "dict(a=1, a=2)",
        "{'a': 1, 'a': 2}",
        "{[]: 1}",
        "[x for x in (1,)]",
        "lambda: 1",
        "f'{1}'",
        "2 ** 99999999",
        "-True",
        "not 1",
        "...",
        "b'a'",
        "1j",
        "os",
        "a = 1",
        "",
        "\0",
        "(" * 5000,
        "-" * 5000 + "1",
        "[" * 50 + "]" * 50,
        "1" * 20_000,
        f"[{'1' * 101}]",
        f"0x{'f' * 9000}",
    ],
)
def test_expressions_that_are_no_data_are_refused_and_never_run(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"policy_kwargs must be a mapping .*literals.*nn\.<activation>.*got"
    ) as caught:
        read_expression("policy_kwargs", text)
    assert len(str(caught.value)) < 400
    assert not Path("ran").exists()


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_timesteps", "many", "n_timesteps must be a finite number >= 1; got 'many'"),
        ("n_timesteps", float("inf"), "n_timesteps must be a finite number >= 1; got inf"),
        ("n_timesteps", True, "n_timesteps must be a finite number >= 1; got True"),
        ("n_envs", 0, "n_envs must be an integer >= 1; got 0"),
        ("n_envs", 2.0, r"n_envs must be an integer >= 1; got 2\.0"),
        ("n_envs", "2", "n_envs must be an integer >= 1; got '2'"),
        ("frame_stack", 0, "frame_stack must be an integer >= 1 or null; got 0"),
        ("normalize", "{'norm_reward': False}", r"normalize must be true, .*\{norm_obs: true.*, not text to evaluate"),
        ("normalize", "true", "normalize must be true, false or a mapping"),
        ("normalize", 1, "normalize must be true, false or a mapping such as .*; got 1"),
        ("normalize", {"norm_ob": True}, "unknown normalize key 'norm_ob', did you mean 'norm_obs'.*clip_obs"),
        ("normalize", {"venv": 1}, "unknown normalize key 'venv'"),
        ("normalize", {"norm_obs": "yes"}, "normalize: norm_obs must be one of True, False; got 'yes'"),
        ("normalize", {"clip_obs": 0}, "normalize: clip_obs must be a number > 0; got 0"),
        ("normalize", {"gamma": 2}, r"normalize: gamma must be a number in \[0, 1\]; got 2"),
        ("normalize", {"norm_obs_keys": "a"}, "normalize: norm_obs_keys must be a list of strings; got 'a'"),
        (
            "env_kwargs",
            "dict(a=1)",
            r"env_kwargs must be a mapping such as \{max_episode_steps.*, not text to evaluate",
        ),
        ("env_kwargs", [1], r"env_kwargs must be a mapping such as .*; got \[1\]"),
        ("monitor_kwargs", "dict()", "monitor_kwargs must be a mapping such as .*, not text to evaluate"),
        ("monitor_kwargs", {"filename": "a"}, "unknown monitor_kwargs key 'filename'"),
        ("monitor_kwargs", {"info_keywords": "a"}, "monitor_kwargs: info_keywords must be a list of strings"),
        ("policy_kwargs", "dict(net_arch=[64])", r"policy_kwargs must be a mapping such as \{net_arch: \[64, 64\]"),
        ("policy_kwargs", COMMAND, "policy_kwargs must be a mapping .*, not text to evaluate"),
        ("policy_kwargs", {"net_arch": 64}, "policy_kwargs: net_arch must be a list of integers >= 1, or a mapping"),
        ("policy_kwargs", {"net_arch": [0]}, r"policy_kwargs: net_arch must be .*; got \[0\]"),
        ("policy_kwargs", {"net_arch": {"qf": [4]}}, "policy_kwargs: net_arch must be .*pi"),
        ("policy_kwargs", {"ortho_init": 1}, "policy_kwargs: ortho_init must be one of True, False; got 1"),
        ("policy_kwargs", {"log_std_init": "a"}, "policy_kwargs: log_std_init must be a finite number"),
        ("policy_kwargs", {"optimizer_kwargs": "dict()"}, "optimizer_kwargs must be a mapping such as .*eps"),
        ("policy_kwargs", {"optimizer_class": "torch.optim.SGD"}, "policy_kwargs: optimizer_class must be a class"),
        ("policy_kwargs", {"activation_fn": 3}, "policy_kwargs: activation_fn must be a class"),
        ("rollout_buffer_kwargs", "dict()", "rollout_buffer_kwargs must be a mapping such as .*, not text to evaluate"),
        ("rollout_buffer_class", "a.B", "rollout_buffer_class must be a class, which only a Python config can give"),
        ("policy", 3, "policy must be one of 'MlpPolicy', .* or the dotted name of a class; got 3"),
        ("policy", "..", "policy must be one of 'MlpPolicy', .* or the dotted name of a class; got '..'"),
        ("policy", ["MlpPolicy"], "policy must be one of 'MlpPolicy'"),
        ("policy", "MlpPolic", "policy must be one of 'MlpPolicy', 'CnnPolicy'.*did you mean 'MlpPolicy'"),
        ("use_sde", "yes", "use_sde must be one of True, False; got 'yes'"),
        ("sde_sample_freq", -2, "sde_sample_freq must be an integer >= -1; got -2"),
        ("stats_window_size", 0, "stats_window_size must be an integer >= 1; got 0"),
        ("n_steps", 1e3, r"n_steps must be an integer >= 1; got 1000\.0"),
        ("n_steps", {"a": 1}, "n_steps must be an integer >= 1"),
        ("n_epochs", "ten", "n_epochs must be an integer >= 1; got 'ten'"),
        ("gamma", 1.5, r"gamma must be a number in \[0, 1\]; got 1\.5"),
        ("gamma", "high", r"gamma must be a number in \[0, 1\]; got 'high'"),
        ("gamma", [0.9], r"gamma must be a number in \[0, 1\]; got \[0\.9\]"),
        ("learning_rate", "lin_-1", r"learning_rate must be a number >= 0 or a schedule; got -1\.0"),
        (
            "learning_rate",
            {"schedule": "linear", "start": 1, "end": -1},
            r"learning_rate must be a number >= 0 or a schedule; got -1\.0",
        ),
        ("clip_range", True, "clip_range must be a number >= 0 or a schedule; got True"),
        ("clip_range_vf", 0, "clip_range_vf must be a number > 0, a schedule or None; got 0"),
        ("n_envs", 10**400, r"n_envs must be an integer >= 1; got 1(0{100,})\.\.\."),
        ("n_envs", [16**9000], "n_envs must be an integer >= 1; got <list with an integer of too many digits>"),
        ("policy_kwargs", {"log_std_init": 10**400}, "log_std_init must be a finite number; got 10"),
        ("policy_kwargs", {"net_arch": [{"pi": [0]}]}, "policy_kwargs: net_arch must be"),
        ("stepsize_bounds", [1], r"stepsize_bounds must be a pair .*; got \[1\]"),
        ("weight_init", "norm", "weight_init must be one of 'orthogonal', 'normc'; got 'norm'"),
        ("vec_env", 5, "unknown vec_env 5"),
        *[
            (key, value, f"{key} must be a dotted name such as package.module.Name, .*or a list of those; got")
            for key in ("callback", "env_wrapper", "vec_env_wrapper")
            for value in NO_NAMES
        ],
    ],
)
def test_a_setting_that_is_refused_is_so_by_name(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.read_vec_env(zoo.read_hyperparams(PPOClipPaper, {**NEEDED, key: value}).get(zoo.VEC_ENV_KEY, "dummy"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_envs", 0, "n_envs must be an integer >= 1; got 0"),
        ("policy_kwargs", COMMAND, "policy_kwargs must be a mapping .*, not text to evaluate"),
        ("gamma", 1.5, r"gamma must be a number in \[0, 1\]; got 1\.5"),
        ("vec_env", 5, "unknown vec_env 5"),
        ("callback", "name", "callback must be a dotted name such as package.module.Name"),
    ],
)
def test_a_setting_is_refused_before_anything_is_created(
    key: str, value: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("s.yml").write_text(yaml.safe_dump({"CartPole-v1": {**NEEDED, key: value}}))
    assert cli.main(["train", "--conf-file", "s.yml", *QUIET]) == 2
    assert re.search(message, only_error_line(capsys))
    assert [path.name for path in Path().iterdir()] == ["s.yml"]


@pytest.mark.parametrize("given", ["1" * 400, f"0x{'f' * 9000}"])
def test_a_number_of_too_many_digits_on_the_command_line(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "-params", f"n_envs:{given}", *QUIET]) == 2
    error = only_error_line(capsys)
    assert "n_envs must be an integer >= 1; got" in error
    assert len(error) < 300


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_timesteps", "1e6"),
        ("normalize", None),
        ("normalize", {"norm_obs": True, "clip_obs": 5, "norm_obs_keys": ["a"]}),
        ("env_kwargs", None),
        ("env_kwargs", {"render_mode": None, "deep": {1: 2}}),
        ("monitor_kwargs", {"info_keywords": ["is_success"]}),
        ("policy_kwargs", {"net_arch": {"pi": [], "vf": [8]}, "optimizer_kwargs": {"eps": 1e-5}}),
        ("policy_kwargs", {"net_arch": None, "activation_fn": nn.Mish}),
        ("policy_kwargs", {"net_arch": [{"pi": [4], "vf": [4]}]}),
        ("clip_range_vf", "lin_0.2"),
        ("ent_coef", {"schedule": "linear", "start": 1, "end": -1}),
        ("callback", ["a.B", {"a.C": {"d": 1}}]),
        ("env_wrapper", None),
        ("policy", "a.B"),
    ],
)
def test_settings_that_are_allowed(key: str, value: Any) -> None:
    assert key in zoo.read_hyperparams(PPOClipPaper, {**NEEDED, key: value})


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_checks_its_own_ranges_early(algo: str) -> None:
    algorithm = getattr(sb3_ppo_variants, ALGORITHMS[algo])
    with pytest.raises(ValueError, match=r"gae_lambda must be a number in \[0, 1\]; got 2"):
        zoo.read_hyperparams(algorithm, {**NEEDED, "gae_lambda": 2})


def test_a_rollout_of_one_sample_is_refused_early() -> None:
    zoo.read_hyperparams(PPOClipPaper, {**NEEDED, "n_steps": 1, "n_envs": 2})
    with pytest.raises(ValueError, match=r"needs n_steps \* n_envs >= 2 samples"):
        zoo.read_hyperparams(PPOClipPaper, {**NEEDED, "n_steps": 1})


# ------------------------------------------------------------------ rl_zoo3's own algorithms


@pytest.mark.parametrize("key", sorted(schema.EVALUATED_KEYS - {"replay_buffer_class", "replay_buffer_kwargs"}))
@pytest.mark.parametrize("on_command_line", [False, True])
def test_text_that_rl_zoo3_would_evaluate_never_runs(
    key: str, on_command_line: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**NEEDED, **({} if on_command_line else {key: COMMAND})}
    Path("s.yml").write_text(yaml.safe_dump({"CartPole-v1": settings}))
    given = ["-params", f"{key}:{COMMAND}"] if on_command_line else []
    assert cli.main(["train", "--algo", "ppo", "--conf-file", "s.yml", *given, *QUIET]) == 2
    assert f"{key} must be a mapping such as {{key: value}}, or text of literals" in only_error_line(capsys)
    assert [path.name for path in Path().iterdir()] == ["s.yml"]


def test_text_of_data_still_works_for_them() -> None:
    settings = {
        **NEEDED,
        "n_steps": 16,
        "batch_size": 16,
        "normalize": "dict(norm_obs=True, norm_reward=False)",
        "policy_kwargs": "dict(net_arch=[4], activation_fn=nn.ReLU)",
        "monitor_kwargs": "{'info_keywords': ()}",
    }
    Path("s.yml").write_text(yaml.safe_dump({"CartPole-v1": settings}))
    assert cli.main(["train", "--algo", "ppo", "--conf-file", "s.yml", "-n", "16", *QUIET]) == 0
    saved = schema.read_run_file(Path("logs/ppo/CartPole-v1_1/CartPole-v1/config.yml"))
    assert saved["normalize"] == {"norm_obs": True, "norm_reward": False}
    assert saved["policy_kwargs"] == settings["policy_kwargs"]  # as it was written
    assert cli.main(["enjoy", "--algo", "ppo", "-n", "10"]) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**NEEDED, "n_step": 5}, "unknown config key 'n_step', did you mean 'n_steps'"),
        ({"n_timesteps": 5}, "the settings lack 'policy'"),
        ({**NEEDED, "n_envs": -1}, "n_envs must be an integer >= 1; got -1"),
        ({**NEEDED, "policy": "Mlp"}, "policy must be one of 'MlpPolicy'"),
    ],
)
def test_their_settings_are_checked_too(
    settings: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("s.yml").write_text(yaml.safe_dump({"CartPole-v1": settings}))
    assert cli.main(["train", "--algo", "a2c", "--conf-file", "s.yml", *QUIET]) == 2
    assert message in only_error_line(capsys)
    assert [path.name for path in Path().iterdir()] == ["s.yml"]


# ------------------------------------------------------------------ classes by name


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "callback",
            {"os.system": {"command": "touch ran"}},
            "callback must be a class derived from SB3's BaseCallback",
        ),
        ("callback", "collections.OrderedDict", "BaseCallback; got collections.OrderedDict"),
        (
            "env_wrapper",
            ["gymnasium.wrappers.TimeAwareObservation", "os.system"],
            "env_wrapper must be .* got os.system",
        ),
        ("env_wrapper", {"timeit.timeit": {"setup": COMMAND}}, "derived from gymnasium.Wrapper.* got timeit.timeit"),
        ("vec_env_wrapper", "subprocess.run", "vec_env_wrapper must be .*VecEnvWrapper"),
        ("policy", "os.system", "policy must be a class derived from SB3's BasePolicy; got os.system"),
        ("callback", "nowhere.Callback", "callback: nowhere.Callback cannot be imported: No module named 'nowhere'"),
        ("callback", "os.nothing", "callback: os.nothing cannot be imported: module 'os' has no attribute 'nothing'"),
    ],
)
@pytest.mark.parametrize("of_a_run", [False, True])
def test_a_name_must_stand_for_what_the_setting_wants(key: str, value: Any, message: str, of_a_run: bool) -> None:
    with pytest.raises(ValueError, match=message):
        schema.check_classes({key: value}, of_a_run=of_a_run)
    assert not Path("ran").exists()


@pytest.mark.parametrize("algo", ["ppo_clip_paper", "a2c"])
def test_a_name_that_stands_for_something_else_creates_nothing(algo: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**NEEDED, "callback": {"os.system": {"command": "touch ran"}}}
    Path("s.yml").write_text(yaml.safe_dump({"CartPole-v1": settings}))
    assert cli.main(["train", "--algo", algo, "--conf-file", "s.yml", *QUIET]) == 2
    assert "callback must be a class derived from SB3's BaseCallback; got os.system" in only_error_line(capsys)
    assert [path.name for path in Path().iterdir()] == ["s.yml"]


def test_names_that_stand_for_it() -> None:
    schema.check_classes(
        {
            "callback": [{"stable_baselines3.common.callbacks.CheckpointCallback": {"save_freq": 1}}],
            "env_wrapper": ["gymnasium.wrappers.TimeAwareObservation", "rl_zoo3.utils.flatten_dict_observations"],
            "vec_env_wrapper": "stable_baselines3.common.vec_env.VecMonitor",
            "policy": "stable_baselines3.common.policies.ActorCriticPolicy",
        }
    )


@pytest.fixture
def _a_module_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`wrapping`, which reads YAML where it is imported."""
    Path("wrapping.py").write_text(
        "import functools, os, yaml\n"
        "READ = yaml.safe_load('a: 1')\n"
        "def wrap(e, **kwargs): return e\n"
        "class Wrap:\n"
        "    def __call__(self, e): return e\n"
        "part, instance = functools.partial(wrap, a=1), Wrap()\n"
        "bad, worse, run = functools.partial(os.system), functools.partial(functools.partial(eval)), os.system\n"
    )
    monkeypatch.syspath_prepend(".")
    importlib.invalidate_caches()
    yield
    sys.modules.pop("wrapping", None)


@pytest.mark.usefixtures("_a_module_of_ones_own")
@pytest.mark.parametrize("key", ["env_wrapper", "vec_env_wrapper"])
def test_any_function_of_ones_own_is_a_wrapper_in_a_training(key: str) -> None:
    schema.check_classes({key: [{"wrapping.wrap": {"a": 1}}, "wrapping.part", "wrapping.instance"]})
    with pytest.raises(ValueError, match=rf"{key} must be .*, or a function whose first argument is `\w+`; got"):
        schema.check_classes({key: "wrapping.wrap"}, of_a_run=True)
    for name in ("bad", "worse", "run", "Wrap", "READ"):
        with pytest.raises(ValueError, match=f"or a function of none of Python's own modules; got wrapping.{name}"):
            schema.check_classes({key: f"wrapping.{name}"})


# ------------------------------------------------------------------ the files of a run


def write_run(**files: str) -> Path:
    """A run with these files, whose agent is never reached."""
    folder = Path("logs/ppo_clip_paper/CartPole-v1_1/CartPole-v1")
    folder.mkdir(parents=True)
    (folder.parent / "CartPole-v1.zip").touch()
    for name, text in {"config": "policy: MlpPolicy", "args": "env_kwargs: null", **files}.items():
        (folder / f"{name}.yml").write_text(text)
    return folder


def test_what_rl_zoo3_writes_of_a_run_is_read_back() -> None:
    settings: dict[str, Any] = {
        "policy": "MlpPolicy",
        "stepsize_bounds": (1e-5, 1e-3),
        "policy_kwargs": {"activation_fn": nn.LeakyReLU, "net_arch": [4]},
        "env_kwargs": OrderedDict(a=[1], b={2: 3}),
    }
    schedule = LinearSchedule(0.1, 0.0, 1.0)  # only a Python config can hold one
    folder = write_run(
        config=yaml.dump(OrderedDict(settings, learning_rate=schedule)), args=yaml.dump(OrderedDict(env="CartPole-v1"))
    )
    assert schema.read_run_file(folder / "config.yml") == {**settings, "learning_rate": vars(schedule)}
    assert schema.read_run_file(folder / "args.yml") == {"env": "CartPole-v1", "env_kwargs": None}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"config": f"normalize: {COMMAND_TAG}"},
            "config.yml, line 1: the tag !!python/object/apply:os.system is refused",
        ),
        (
            {"args": f"env_kwargs: {COMMAND_TAG}"},
            "args.yml, line 1: the tag !!python/object/apply:os.system is refused",
        ),
        (
            {"config": "normalize: !!python/object/new:os.system ['touch ran']"},
            "tag !!python/object/new:os.system is refused",
        ),
        ({"config": "env_kwargs: {a: !!python/name:os.system ''}"}, "the tag !!python/name:os.system is refused"),
        ({"config": "a: &a !!python/name:os.system ''\nnormalize: *a"}, "the tag !!python/name:os.system is refused"),
        ({"config": "<<: {a: 1, normalize: !!python/name:os.system ''}"}, "the tag !!python/name:os.system is refused"),
        ({"config": "!!python/name:os.system '': 1"}, "the tag !!python/name:os.system is refused"),
        ({"config": "env_wrapper: !!python/name:os.system ''"}, "env_wrapper must be a class derived from gymnasium"),
        ({"config": "vec_env_wrapper: [!!python/name:os.system '']"}, "vec_env_wrapper must be a class derived from"),
        ({"config": "env_wrapper: [{a.B: {c: !!python/name:os.system ''}}]"}, "tag !!python/name:os.system is refused"),
        ({"config": f"env_wrapper: {COMMAND_TAG}"}, "the tag !!python/object/apply:os.system is refused"),
        ({"config": f'normalize: "{COMMAND}"'}, "config.yml: normalize must be a mapping such as"),
        ({"config": f'env_kwargs: "{COMMAND}"'}, "config.yml: env_kwargs must be a mapping such as"),
        ({"args": "env_kwargs: 5"}, "args.yml: env_kwargs must be a mapping such as"),
        ({"config": "frame_stack: many"}, "config.yml: frame_stack must be an integer >= 1 or null; got 'many'"),
        (
            {"config": "env_wrapper: os.system"},
            "config.yml: env_wrapper must be a class derived from gymnasium.Wrapper",
        ),
        ({"config": "[1]"}, "config.yml must be a mapping of settings"),
        (
            {"args": "!!python/object/apply:collections.OrderedDict [1, 2]"},
            "an OrderedDict must be written as a list of",
        ),
        ({"args": "!!python/object/apply:collections.OrderedDict [[[1, 2]]]"}, "must have strings as keys"),
        ({"args": "!!python/object/apply:collections.OrderedDict [[[a, 2], [a, 3]]]"}, "the key 'a' is given twice"),
    ],
)
def test_a_run_of_somebody_elses_runs_no_code(
    files: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(**files)
    assert cli.main(["enjoy"]) == 2
    error = only_error_line(capsys)
    assert error.startswith("ppo-variants enjoy: ")
    assert message in error
    assert not Path("ran").exists()


@pytest.mark.parametrize("file", ["config", "args"])
def test_a_film_of_somebody_elses_runs_no_code(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(**{file: f"env_kwargs: {COMMAND_TAG}"})
    assert cli.main(["record"]) == 2
    error = only_error_line(capsys)
    assert error.startswith("ppo-variants record: ")
    assert f"{file}.yml, line 1: the tag !!python/object/apply:os.system is refused" in error
    assert not Path("ran").exists()


@pytest.mark.parametrize("ordered", [False, True])
def test_objects_in_settings_that_are_not_used_are_the_text_of_their_tags(ordered: bool) -> None:
    lines = [
        ("policy_kwargs", f"{{a: [{COMMAND_TAG}], !!python/name:os.system '': !!python/module:nowhere ''}}"),
        ("callback", "!!python/object/new:nowhere.Class {state: !!python/object:os.system {}}"),
        ("since", "2020-01-01"),
    ]
    start = "!!python/object/apply:collections.OrderedDict [["
    pairs = ", ".join(f"[{key}, {value}]" for key, value in lines)
    text = f"{start}{pairs}]]" if ordered else "\n".join(f"{key}: {value}" for key, value in lines)
    assert schema.read_run_file(write_run(config=text) / "config.yml") == {
        "policy_kwargs": {
            "a": ["!!python/object/apply:os.system"],
            "!!python/name:os.system": "!!python/module:nowhere",
        },
        "callback": "!!python/object/new:nowhere.Class",
        "since": "!!timestamp",
    }
    assert "nowhere" not in sys.modules
    assert not Path("ran").exists()


def test_what_rl_zoo3_writes_of_classes_and_objects_is_read_back() -> None:
    wrapper, module = TimeAwareObservation, f"{TimeAwareObservation.__module__}.TimeAwareObservation"
    settings = {
        "env_wrapper": [{wrapper: {"normalize_time": True}}, wrapper],
        "vec_env_wrapper": VecMonitor,
        "policy_kwargs": {"optimizer_class": torch.optim.SGD, "activation_fn": nn.Identity},
        "replay_buffer_class": HerReplayBuffer,
        "callback": CheckpointCallback(1, "here"),
        "module": nn.Identity(),
    }
    arguments = OrderedDict(env_kwargs=None, seed=np.float64(3))
    folder = write_run(config=yaml.dump(OrderedDict(settings)), args=yaml.dump(arguments))
    read = schema.read_run_file(folder / "config.yml")
    assert read["env_wrapper"] == [{module: {"normalize_time": True}}, module]
    assert read["vec_env_wrapper"] == f"{VecMonitor.__module__}.VecMonitor"
    assert "HerReplayBuffer" in read["replay_buffer_class"]  # which `enjoy` asks
    assert schema.read_run_file(folder / "args.yml")["env_kwargs"] is None


def test_a_run_of_a_python_config_opens() -> None:
    Path("settings.py").write_text(
        "import torch\n"
        "from gymnasium.wrappers import TimeAwareObservation\n"
        "hyperparams = {'CartPole-v1': dict(policy='MlpPolicy', n_timesteps=16, n_steps=16, batch_size=16,\n"
        "    env_wrapper=[{TimeAwareObservation: {}}],\n"
        "    policy_kwargs=dict(optimizer_class=torch.optim.SGD, activation_fn=torch.nn.Identity))}\n"
    )
    for algo in ("ppo_clip_paper", "ppo"):
        assert cli.main(["train", "--algo", algo, "--conf-file", "settings.py", *QUIET]) == 0
        assert cli.main(["enjoy", "--algo", algo, "-n", "4"]) == 0


@pytest.mark.usefixtures("_a_module_of_ones_own")
def test_yaml_is_itself_for_everybody_else_during_a_film(capsys: pytest.CaptureFixture[str]) -> None:
    write_run(config="env_wrapper: wrapping.wrap")
    assert cli.main(["record"]) == 2
    assert "got wrapping.wrap" in only_error_line(capsys)
    found = sys.modules["wrapping"]
    assert (found.yaml, found.READ) == (yaml, {"a": 1})


def test_what_rl_zoo3_sees_of_yaml() -> None:
    import rl_zoo3.utils

    assert rl_zoo3.utils.yaml is not yaml
    assert rl_zoo3.utils.yaml.dump({"a": 1}) == "a: 1\n"
    assert rl_zoo3.utils.yaml.load("a: 1", Loader=yaml.SafeLoader) == {"a": 1}
