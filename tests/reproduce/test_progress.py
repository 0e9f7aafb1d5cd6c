"""What a long training says of how far it is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sb3_ppo_variants.reproduce.blocks import run_blocks
from sb3_ppo_variants.reproduce.progress import Progress, shown
from sb3_ppo_variants.reproduce.results import Results, Row
from sb3_ppo_variants.reproduce.settings import TABLE_1_SETTINGS, selected
from tests.reproduce.pretended import pretend


def test_a_line_at_most_in_each_interval(capsys: pytest.CaptureFixture[str]) -> None:
    now = 1000.0
    progress = Progress("Hopper-v5", 1_000_000, interval=60.0, clock=lambda: now)
    lines = []
    for seconds, timesteps in [(0, 400_000), (59, 410_000), (61, 420_000), (100, 430_000), (130, 430_000)]:
        now = 1000.0 + seconds
        progress.reached(timesteps)
        lines.append(capsys.readouterr().out)
    # 20,000 in 61 s are 29 min 29 s for 580,000, whatever had been done before.
    assert lines == [
        "",
        "",
        "Hopper-v5: 420,000 of 1,000,000 timesteps, 29 min to go\n",
        "",
        "Hopper-v5: 430,000 of 1,000,000 timesteps, 41 min to go\n",
    ]


def test_no_guess_from_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 70.0, 140.0])
    progress = Progress("Hopper-v5", 100, clock=lambda: next(times))
    progress.reached(20)
    progress.reached(20)
    assert capsys.readouterr().out == "Hopper-v5: 20 of 100 timesteps\n" * 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "less than a minute"), (29, "less than a minute"), (31, "1 min"), (3560, "59 min"), (3580, "1 h 00 min")],
)
def test_a_time_as_text(seconds: float, text: str) -> None:
    assert shown(seconds) == text


def test_a_block_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sb3_ppo_variants.reproduce.blocks.Progress", partial(Progress, interval=0.0))

    def train(runs: Any, timesteps: int, folder: Path, reached: Any) -> list[Row]:
        reached(timesteps // 2)
        return pretend(runs, timesteps, folder, reached)

    selection = selected(TABLE_1_SETTINGS, ["Hopper-v5"], ["clip_0.2"], [0], 5000)
    run_blocks("table1", selection, Results(tmp_path, 5000), train=train)
    assert capsys.readouterr().out.splitlines() == [
        "[table1] 1 run of 5,000 timesteps to do, in 1 block",
        "[table1] block 1 of 1, Hopper-v5, clip_0.2, seed 0: 2,500 of 5,000 timesteps",
        "[table1] block 1 of 1 is done: Hopper-v5, clip_0.2, seed 0",
    ]
