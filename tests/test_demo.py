"""The walk-through, shortened: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sb3_ppo_variants import PPOClipPaper, demo


def test_score_by_hand() -> None:
    # Ten returns of 1 and ten of 3: mean 2, sample deviation √(20/19), so the margin is 2.093 · √(20/19) / √20.
    score = demo.Score.of([1.0, 3.0] * 10)
    assert score.mean == 2.0
    assert score.margin == pytest.approx(2.093 / math.sqrt(19))


@pytest.mark.slow
def test_the_demo_writes_its_results_and_runs_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "N_ENVS", 2)
    monkeypatch.setattr(demo, "FILM_SECONDS", 0.2)
    for _ in range(2):
        assert demo.main(["--timesteps", "256", "--out", str(tmp_path)]) == 0
        said = capsys.readouterr().out
        assert said.count("Mean return") == 3
        assert "The intervals" in said
        for name in ("curve.png", "film.mp4", "model.zip", "vecnormalize.pkl"):
            assert str(tmp_path / name) in said
            assert (tmp_path / name).stat().st_size > 1000
    assert PPOClipPaper.load(tmp_path / "model.zip").num_timesteps == 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--timesteps", "0"], "--timesteps must be >= 1; got 0"),
        (["--seed", "-1"], r"--seed must be in \[0, 2\*\*32\); got -1"),
        (["--out", __file__], "--out must be a folder"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        demo.main(arguments)
    assert message.replace("\\", "") in capsys.readouterr().err
