"""Figs. 1 and 2, and Fig. 3 of pretended runs: the values of the curves, and that pictures are drawn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_ppo_variants import PPOClipPaper
from sb3_ppo_variants.presets import TABLE_1
from sb3_ppo_variants.reproduce.figure1 import figure1, term
from sb3_ppo_variants.reproduce.figure2 import figure2
from sb3_ppo_variants.reproduce.figure3 import SEEDS, TIMESTEPS, described, figure3
from sb3_ppo_variants.reproduce.places import shipped_results
from sb3_ppo_variants.reproduce.results import Results
from sb3_ppo_variants.reproduce.settings import FIGURE_3_SETTINGS, selected
from sb3_ppo_variants.reproduce.tables import markdown
from tests.reproduce.pretended import pretend


@pytest.mark.parametrize(
    ("advantage", "values"),
    [
        # min(r Â, clip(r, 0.8, 1.2) Â): for Â = 1 it is r up to 1.2, then 1.2; for Â = −1 −0.8 up to 0.8, then −r.
        (1.0, {0.0: 0.0, 0.5: 0.5, 1.0: 1.0, 1.2: 1.2, 1.5: 1.2, 1.75: 1.2}),
        (-1.0, {0.0: -0.8, 0.5: -0.8, 0.8: -0.8, 1.0: -1.0, 1.5: -1.5, 1.75: -1.75}),
    ],
)
def test_the_curves_of_figure_1(advantage: float, values: dict[float, float]) -> None:
    ratio, value = term(advantage, 0.2)
    for at, expected in values.items():
        (place,) = np.flatnonzero(np.isclose(ratio, at))
        assert value[place] == pytest.approx(expected)


def test_figure_1_is_drawn_as_the_same_files_each_time(tmp_path: Path) -> None:
    files = figure1(output=tmp_path)
    assert [path.name for path in files] == ["figure1.png", "figure1.svg"]
    before = [path.read_bytes() for path in files]
    assert before[0].startswith(b"\x89PNG")
    assert b"<svg" in before[1]
    figure1(output=tmp_path)
    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize("clip_range", [0, 0.7, -1, "0.2"])
def test_figure_1_refuses_what_it_cannot_show(clip_range: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"clip_range must be a number in \(0, 0.7\)"):
        figure1(clip_range=clip_range, output=tmp_path)


@pytest.mark.slow
def test_figure_2_of_a_real_update(tmp_path: Path) -> None:
    (computed,), files = figure2(seeds=[0], output=tmp_path)
    assert all(path.stat().st_size > 100 for path in files)
    zero, one = (int(np.argmin(abs(computed.alphas - alpha))) for alpha in (0.0, 1.0))
    # At the old policy r = 1 everywhere: all are the mean of standardised advantages, which is 0, and so is the KL.
    for values in (computed.kl, computed.cpi, computed.clipped, computed.clip):
        assert values[zero] == pytest.approx(0, abs=1e-5)
    # L^CLIP is a lower bound of both, and the update has raised it.
    assert (computed.clip <= np.minimum(computed.cpi, computed.clipped) + 1e-6).all()
    assert computed.clip[one] > 0.01
    assert (computed.kl >= -1e-6).all()
    # On either side of the old policy the KL grows.
    assert computed.kl[0] > computed.kl[zero - 1]
    assert computed.kl[-1] > computed.kl[one] > 0.001
    assert 0 < computed.best_alpha <= 2
    # The KL is the one, π_old first, that the update itself logs.
    model = PPOClipPaper("MlpPolicy", "Hopper-v5", seed=0, device="cpu", **TABLE_1).learn(2048)
    assert computed.kl_at_1 == pytest.approx(model.logger.name_to_value["train/kl"], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seeds": []}, "seeds must be at least one"),
        ({"seeds": [-1]}, "seeds must be integers in"),
        ({"task": "Hoper-v5"}, "unknown task 'Hoper-v5', did you mean"),
        ({"task": "CartPole-v1"}, "must have a Box of one axis as their action space; CartPole-v1 has Discrete"),
    ],
)
def test_figure_2_names_mistakes(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        figure2(**arguments, output=tmp_path)


def test_figure_3_of_pretended_runs(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"tasks": ["Hopper-v5", "Reacher-v5"], "timesteps": 5000, "seeds": [0, 1]}
    figure = figure3(**arguments, results=tmp_path / "results", output=tmp_path, train=pretend)
    assert [path.name for path in figure.files] == ["figure3.txt", "figure3.md", "figure3.png", "figure3.svg"]
    assert len(figure.rows) == 2 * 2 * len(FIGURE_3_SETTINGS)
    text = figure.files[0].read_text()
    assert re.search(r"the paper's PPO, about +2300 +−7\n", text)
    assert "Not the paper's experiment: 5,000 timesteps" in text


def test_the_results_of_figure_3_ship_and_are_told_as_they_are() -> None:
    selection = selected(FIGURE_3_SETTINGS, None, None, SEEDS, TIMESTEPS)
    rows = Results(shipped_results(), TIMESTEPS).rows(selection.runs())
    assert list(rows) == selection.runs()
    pages = ("docs/reproduction.md", "README.md", "CHANGELOG.md")
    page, readme, changelog = (Path(shipped_results().parent, name).read_text() for name in pages)
    count = len(rows)
    assert f"**Fig. 3**: its {count} runs, all of which ship" in _unwrapped(page)
    assert f"The {count} runs of Fig. 3 ship" in _unwrapped(readme)
    assert f"all {count} of Fig. 3 ship" in _unwrapped(changelog)
    lines = re.findall(r"^\|.*\|$", described(selection, list(rows.values()), markdown), re.MULTILINE)
    assert len(lines) == 9
    for line in lines:
        assert line in page


def _unwrapped(text: str) -> str:
    return " ".join(text.split())
