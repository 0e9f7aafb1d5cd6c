"""The walk from REINFORCE to PPO: its script draws, what it calls exact is exact, and every algorithm arrives."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import sb3_ppo_variants
from sb3_ppo_variants.envs.gridworld import GridWorld

pytest.importorskip("sb3_contrib")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "docs" / "reinforce_to_ppo.py"
PLOTS = ("learning-curves.png", "policy-and-values.png", "gradient-noise.png", "large-stepsize.png")


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reinforce_to_ppo", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


walk: Any = load()
UNIFORM = np.full((25, 4), 0.25)


@pytest.mark.slow
def test_the_script_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    walk.main(["--seeds", "1", "--timesteps", "600", "--batches", "5", "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == set(PLOTS)
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 150_000
    printed = capsys.readouterr().out
    assert all(step.name in printed for step in walk.STEPS)


def test_the_page_shows_every_plot_and_names_every_algorithm() -> None:
    page = (ROOT / "docs" / "reinforce-to-ppo.md").read_text(encoding="utf-8")
    assert all(f"(images/{name})" in page for name in PLOTS)
    assert all(f"{step.algorithm.__name__}(" in page for step in walk.STEPS)
    for name in PLOTS:
        assert (ROOT / "docs" / "images" / name).stat().st_size < 150_000


def test_the_walk_has_every_algorithm() -> None:
    ours = {getattr(sb3_ppo_variants, name) for name in sb3_ppo_variants.ALGORITHMS.values()}
    assert ours == {step.algorithm for step in walk.STEPS} - {walk.TRPO}


def test_the_exact_numbers_are_those_of_the_sampled_episodes() -> None:
    env, generator, gamma = GridWorld(), np.random.default_rng(0), walk.GAMMA
    returns, discounted, visited = [], [], np.zeros(25)
    for _ in range(3000):
        observation, total, value, done, n_steps = env.reset()[0], 0.0, 0.0, False, 0
        while not done and n_steps < 100:
            visited[observation] += 1
            observation, reward, done, *_ = env.step(generator.integers(4))
            total, value, n_steps = total + reward, value + gamma**n_steps * reward, n_steps + 1
        returns.append(total)
        discounted.append(value)
    for sample, exact in ((returns, walk.expected_return(UNIFORM)), (discounted, walk.exact_values(UNIFORM)[0])):
        assert abs(np.mean(sample) - exact) < 4 * np.std(sample) / np.sqrt(len(sample))
    np.testing.assert_allclose(visited / visited.sum(), walk.visits(UNIFORM), atol=0.01)


def test_the_detour_returns_one() -> None:
    detour = {0: 3, 1: 3, 2: 3, 3: 1, 8: 1, 13: 2}  # cell → action
    probs = UNIFORM.copy()
    for cell, action in detour.items():
        probs[cell] = np.eye(4)[action]
    assert walk.expected_return(probs) == 1.0
    assert walk.exact_values(probs)[0] == pytest.approx(walk.GAMMA**5)
    assert walk.visits(probs).nonzero()[0].tolist() == sorted(detour)
    assert walk.kl(probs, UNIFORM) == pytest.approx(np.log(4))
    assert walk.expected_return(walk.greedy(probs)) == 1.0


@pytest.mark.slow
def test_the_monte_carlo_gradients_scatter_around_the_true_one() -> None:
    model = walk.build(walk.STEPS[0], seed=0)
    reinforce, baseline = (walk.measure_noise(step, model.policy, 60) for step in walk.STEPS[:2])
    for noise in (reinforce, baseline):
        # The bias is measured up to the noise of the mean of 60 gradients.
        assert noise.squared_bias < 3 * noise.variance / 60
        assert noise.cosine > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("step", walk.STEPS, ids=lambda step: step.name)
@pytest.mark.parametrize("seed", range(3))
def test_every_algorithm_solves_the_grid_world(step: Any, seed: int) -> None:
    run = walk.train(step, seed, 20_000)
    assert run.is_solved()
    assert run.returns()[-1] > 0.95
