"""The documentation: its programs run, its links resolve, and what the fidelity table names exists."""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

import sb3_ppo_variants
from sb3_ppo_variants import PPOClipPaper, envs, presets
from sb3_ppo_variants.envs import bullet
from sb3_ppo_variants.envs.flagrun import RoboschoolHumanoidFlagrun, RoboschoolHumanoidFlagrunHarder
from sb3_ppo_variants.envs.tasks import RoboschoolHumanoid
from sb3_ppo_variants.evaluation import FEW_ELEMENTS, Perceptron

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
ALGORITHMS = [getattr(sb3_ppo_variants, name) for name in sb3_ppo_variants.ALGORITHMS.values()]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


# ------------------------------------------------------------------ programs

# A block of Python with this on the line before it is run: a page's blocks, one after the other, are one program.
MARK = "<!-- runnable -->"


class Block(NamedTuple):
    first_line: int
    """The number of its first line of code, from 1."""
    code: str
    runnable: bool


def python_blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    starts = [number for number, line in enumerate(lines) if line.strip() == "```python"]
    for start in starts:
        end = next(number for number in range(start + 1, len(lines)) if lines[number].strip() == "```")
        code = "\n".join(lines[start + 1 : end])
        yield Block(start + 2, code, runnable=start > 0 and lines[start - 1].strip() == MARK)


def program(page: Path) -> str:
    """A page's program, every line at its number in the page, so that a traceback points there."""
    text = ""
    for block in python_blocks(page):
        if block.runnable:
            text += "\n" * (block.first_line - 1 - text.count("\n")) + block.code + "\n"
    return text


@every_page
def test_every_block_is_python(page: Path) -> None:
    for block in python_blocks(page):
        ast.parse(block.code)
    marks = page.read_text(encoding="utf-8").splitlines().count(MARK)
    assert marks == sum(block.runnable for block in python_blocks(page))  # each mark is before a block


# They train for long; CI runs them too.
SLOW_PAGES = ("your-own-surrogate.md", "reinforce-to-ppo.md")
PROGRAMS = [
    pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in SLOW_PAGES else [])
    for page in PAGES
    if program(page)
]


@pytest.mark.parametrize("page", PROGRAMS)
def test_programs_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"{page.stem}.py"
    path.write_text(program(page), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path))


def test_the_surrogate_is_written_in_ten_lines_and_every_field_is_explained() -> None:
    page = DOCS / "your-own-surrogate.md"
    classes = [node for node in ast.parse(program(page)).body if isinstance(node, ast.ClassDef)]
    assert [node.name for node in classes] == ["SPO", "SteeredSPO"]
    sources = [ast.unparse(node).splitlines() for node in classes]
    assert [len([line for line in source if line.strip()]) for source in sources] == [5, 9]
    text = page.read_text(encoding="utf-8")
    for field in sb3_ppo_variants.Minibatch._fields:
        assert f"`{field}`" in text, field


@pytest.mark.slow
def test_the_surrogate_is_trained_from_the_command_line(tmp_path: Path) -> None:
    page = DOCS / "your-own-surrogate.md"
    blocks = [block.code for block in python_blocks(page)]
    (command,) = (code for code in blocks if "cli.main()" in code)
    (config,) = re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "spo.py").write_text(blocks[0])
    (tmp_path / "my_ppo.py").write_text(command)
    (tmp_path / "spo.yml").write_text(config)

    def run(*arguments: str) -> str:
        line = [sys.executable, "my_ppo.py", *arguments]
        return subprocess.run(line, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    chosen = ["--algo", "spo", "--env", "CartPole-v1"]
    run("train", *chosen, "-conf", "spo.yml", "-n", "2048", "--no-progress")
    assert "Episode Reward" in run("enjoy", *chosen, "--no-render", "-n", "600")
    trained = run("train", "--resume", "logs/spo/CartPole-v1_1", "--until", "4_096", "--no-progress")
    assert re.search(r"total_timesteps +\| 4096", trained)


def ppo_variants_calls(page: Path) -> list[list[str]]:
    """The arguments of each call of `ppo-variants` in a page's shell blocks, as a shell reads them."""
    calls = []
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        stand_ins = """ppo-variants() { printf '%s\\0' "$@"; printf '\\1'; }\nhf() { :; }\n"""
        shell = subprocess.run(
            ["/bin/bash", "-c", stand_ins + block], env={"PATH": ""}, check=True, capture_output=True, text=True
        )
        calls += [call.split("\0")[:-1] for call in shell.stdout.split("\1")[:-1]]
    return calls


def test_the_settings_in_the_recipes_commands_are_accepted() -> None:
    pytest.importorskip("rl_zoo3")
    from sb3_ppo_variants import zoo

    found = 0
    for call in ppo_variants_calls(DOCS / "agents.md"):
        parser = argparse.ArgumentParser()
        parser.add_argument("-params", nargs="+", action=zoo._WordsAndLiterals, default={})
        given = [argument for argument in call if argument != "…"]
        settings = parser.parse_known_args(given)[0].params
        found += len(settings)
        algorithm = zoo.read_hyperparams(PPOClipPaper, {"policy": "MlpPolicy", "n_timesteps": 1, **settings})
        assert settings.keys() <= algorithm.keys()
    assert found > 20


# ------------------------------------------------------------------ links

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = HEADING.findall(re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_resolve(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"\w+:", target):  # to another site
            assert target.startswith("https://"), target
            continue
        path, _, anchor = unquote(target).partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_the_index_lists_every_page() -> None:
    listed = set(LINK.findall((DOCS / "README.md").read_text(encoding="utf-8")))
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} <= listed


# ------------------------------------------------------------------ the fidelity table

CODE = re.compile(r"`([^`]+)`")


class Row(NamedTuple):
    section: str
    choice: str
    paper: str
    authors: str
    sb3: str
    ours: str
    argument: str
    test: str


def rows() -> list[Row]:
    found, section = [], ""
    for line in (DOCS / "fidelity.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("| ") and not line.startswith("| Choice "):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert len(cells) == 7, line
            found.append(Row(section, *cells))
    return found


ROWS = rows()
TASKS = {
    "Tasks": RoboschoolHumanoid,
    "Tasks: Flagrun": RoboschoolHumanoidFlagrun,
    "Tasks: FlagrunHarder": RoboschoolHumanoidFlagrunHarder,
}


def ours_in(row: Row) -> list[Any]:
    """The classes whose arguments a row is about."""
    return [TASKS[row.section]] if row.section in TASKS else ALGORITHMS


def parameters_of(classes: list[Any]) -> dict[str, list[Any]]:
    """The arguments of all the classes, each with its defaults."""
    defaults: dict[str, list[Any]] = {}
    for cls in classes:
        for name, parameter in inspect.signature(cls).parameters.items():
            defaults.setdefault(name, []).append(parameter.default)
    return defaults


@functools.cache
def functions_in(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_the_table_is_read() -> None:
    assert len(ROWS) > 70
    assert len({(row.section, row.choice) for row in ROWS}) == len(ROWS)
    assert all(all(row) for row in ROWS)  # no empty cell


def require_test(name: str) -> None:
    """Check that a test that a page names is there."""
    file, _, function = name.partition("::")
    assert (ROOT / file).is_file(), name
    assert function.startswith("test_"), name
    assert function in functions_in(ROOT / file), name


def test_the_tests_of_the_table_exist() -> None:
    for row in ROWS:
        named = CODE.findall(row.test)
        assert named, row.choice
        for name in named:
            require_test(name)


def test_every_promise_of_reliability_has_its_test() -> None:
    page = (DOCS / "reliability.md").read_text(encoding="utf-8")
    lines = page.partition("| promise | test |")[2].splitlines()[2:]
    promises = [line.strip("|").rsplit("|", 1) for line in lines if line.startswith("|")]
    assert len(promises) > 30
    for _, test in promises:
        (name,) = CODE.findall(test)
        require_test(name)


def test_the_arguments_of_the_table_exist() -> None:
    for row in ROWS:
        for name in CODE.findall(row.argument):
            assert name in parameters_of(ours_in(row)) or hasattr(presets, name), (row.choice, name)


def test_the_defaults_of_the_table_hold() -> None:
    for row in ROWS:
        theirs = [] if row.section in TASKS else [PPO]
        for cell, classes in ((row.sb3, theirs), (row.ours, ours_in(row))):
            for token in CODE.findall(cell):
                if re.fullmatch(r"\w+=.*", token):
                    name, value = token.split("=", 1)
                    assert ast.literal_eval(value) in parameters_of(classes)[name], (row.choice, token)


def test_every_argument_of_ours_is_in_the_table() -> None:
    # Those beyond SB3's, and those whose default is not SB3's.
    theirs = parameters_of([PPO])
    ours = parameters_of(ALGORITHMS)
    differing = {
        name for name, defaults in ours.items() if any(default not in theirs.get(name, []) for default in defaults)
    }
    assert differing <= {name for row in ROWS for name in CODE.findall(row.argument)}


def test_every_keyword_of_the_tasks_is_in_the_table() -> None:
    named: set[str] = set()
    for section, task in TASKS.items():  # each adds to what the one before has
        named |= {name for row in ROWS if row.section == section for name in CODE.findall(row.argument)}
        pictures = {"render_mode", "width", "height", "renderer"}
        assert set(inspect.signature(task).parameters) - pictures <= named, section


# ------------------------------------------------------------------ what the table says and no other module holds


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_adams_epsilon(algorithm: Any) -> None:
    def epsilon(**kwargs: Any) -> float:
        model = algorithm("MlpPolicy", "CartPole-v1", policy_kwargs=kwargs, device="cpu")
        return model.policy.optimizer.param_groups[0]["eps"]

    assert epsilon() == 1e-5
    assert epsilon(optimizer_kwargs={"fused": False}) == 1e-8
    assert epsilon(optimizer_kwargs={"fused": False, "eps": 1e-5}) == 1e-5


def test_the_fast_tanh_is_within_2e_7() -> None:
    x = th.linspace(-20, 20, 2_000_001)
    fast, exact = (Perceptron([nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1)], rounding) for rounding in (False, True))
    assert (fast._activate(True, x.clone()) - x.tanh()).abs().max() < 2e-7
    assert not th.equal(fast._activate(True, x.clone()), x.tanh())
    assert th.equal(exact._activate(True, x.clone()), x.tanh())
    few = x[: FEW_ELEMENTS - 1]
    assert th.equal(fast._activate(True, few.clone()), few.tanh())


def test_the_default_networks() -> None:
    model: Any = PPOClipPaper("MlpPolicy", "Pendulum-v1", device="cpu", seed=0)
    extractor: Any = model.policy.mlp_extractor
    for tower, head, gain in (
        (extractor.policy_net, model.policy.action_net, 0.01),
        (extractor.value_net, model.policy.value_net, 1.0),
    ):
        assert [type(module) for module in tower] == [nn.Linear, nn.Tanh] * 2
        first, second = tower[0].weight, tower[2].weight
        assert (first.shape, second.shape) == ((64, 3), (64, 64))
        # Orthogonal with gain √2: WᵀW = 2.
        th.testing.assert_close(first.T @ first, 2 * th.eye(3), rtol=0, atol=1e-5)
        th.testing.assert_close(second.T @ second, 2 * th.eye(64), rtol=0, atol=1e-5)
        assert head.weight.norm().item() == pytest.approx(gain, rel=1e-5)
        assert not head.bias.any()
    shared = {id(parameter) for parameter in extractor.policy_net.parameters()}
    assert not shared & {id(parameter) for parameter in extractor.value_net.parameters()}
    assert model.policy.log_std.tolist() == [0.0]
    assert model.policy.log_std.requires_grad
    # On pictures the two share all but their last layer.
    pictures = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    policy = model.policy_aliases["CnnPolicy"](pictures, spaces.Discrete(4), lambda _: 1e-3)
    assert isinstance(policy, ActorCriticPolicy)
    assert policy.share_features_extractor
    assert not list(policy.mlp_extractor.parameters())


def test_the_readmes_table_of_tasks_is_the_register_table() -> None:
    rows = re.findall(r"^\| `(\S+-v\d)` \|.*\| (\d+) steps, (\S+) \|$", (ROOT / "README.md").read_text("utf-8"), re.M)
    told = {env_id: (int(limit), None if solved == "–" else float(solved)) for env_id, limit, solved in rows}
    assert told == {env_id: (task.max_episode_steps, task.reward_threshold) for env_id, task in envs.TASKS.items()}


def test_the_physics_are_roboschools(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    original = bullet.pybullet.setPhysicsEngineParameter

    def spy(**kwargs: Any) -> None:
        calls.append(kwargs)
        original(**kwargs)

    monkeypatch.setattr(bullet.pybullet, "setPhysicsEngineParameter", spy)
    env = RoboschoolHumanoid()
    env.reset(seed=0)
    env.close()
    settings = {name: value for call in calls for name, value in call.items()}  # as the last call left each
    assert settings["fixedTimeStep"] == 0.0165
    assert settings["numSubSteps"] == 4
    assert settings["numSolverIterations"] == 5
    assert settings["enableConeFriction"] == 0
