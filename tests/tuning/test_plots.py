"""``ppo-variants tune plot``: figures that can be read, of studies that are hard to draw too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from sb3_ppo_variants.tuning import Job, SharedStudy, plot
from sb3_ppo_variants.tuning.plots import FIGURES, PAGE, _see
from sb3_ppo_variants.tuning.study import NOT_RUN
from tests.tuning.studies import job_in

RATE = optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True)
LAMBDA = optuna.distributions.FloatDistribution(0.8, 1.0)
BONUS = optuna.distributions.FloatDistribution(1e-5, 0.05, log=True)
SURROGATE = optuna.distributions.CategoricalDistribution(("clip", "log_clip"))


def study_of(job: Job, trials: list[tuple[TrialState, Mapping[str, Any]]]) -> None:
    """Write trials down as if they had been run: return 100 per factor of ten of the stepsize above its least."""
    kinds = {"learning_rate": RATE, "gae_lambda": LAMBDA, "ent_coef": BONUS, "surrogate": SURROGATE}
    study = SharedStudy(job).study
    for state, params in trials:
        value = 100 * float(params["learning_rate"]) ** 0.5
        study.add_trial(
            create_trial(
                state=state,
                value=value if state is TrialState.COMPLETE else None,
                params=dict(params),
                distributions={name: kinds[name] for name in params},
                intermediate_values={} if state is TrialState.FAIL else {10_000: value / 2, 20_000: value},
                user_attrs={NOT_RUN: "trial 0 has the same parameters"} if state is TrialState.FAIL else {},
            )
        )


def params(index: int, **others: Any) -> dict[str, Any]:
    return {"learning_rate": 1e-4 * (index + 1), "gae_lambda": 0.8 + 0.19 * (index * 7 % 10) / 10, **others}


def typical(job: Job) -> None:
    complete = [(TrialState.COMPLETE, params(index, surrogate="clip")) for index in range(8)]
    rare = [(TrialState.COMPLETE, params(index, surrogate="log_clip", ent_coef=1e-3)) for index in range(8, 10)]
    others = [(TrialState.PRUNED, params(11)), (TrialState.FAIL, params(0))]
    study_of(job, [*complete, *rare, *others])


@pytest.mark.slow
def test_a_page_that_needs_no_network_and_a_png_of_each_figure(tmp_path: Path) -> None:
    job = job_in(tmp_path, 6)
    typical(job)
    files = plot(job, tmp_path / "new" / "plots")
    assert [path.name for path in files] == [*(f"{name}.png" for name in FIGURES), PAGE]
    assert all(path.stat().st_size > 5000 for path in files)
    page = files[-1].read_text()
    assert "maximised: mean return of the last 10 episodes, mean over 2 seeds" in page
    assert "10 complete trials, 1 pruned</p>" in page  # the trial that was never run is no failure
    assert "too rare to tell: ent_coef (in 2 of 10)" in page
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="http', page)
    assert page.count("plotly.js v") == 1  # plotly's own code


def test_importances_are_those_of_what_was_made_important(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    typical(job)
    seen = _see(job)
    assert next(iter(seen.importances)) == "learning_rate"
    assert set(seen.importances) == {"learning_rate", "gae_lambda", "surrogate"}
    assert seen.n_best == 5
    assert seen.parameters == ["ent_coef", "gae_lambda", "learning_rate", "surrogate"]


@pytest.mark.parametrize(
    "trials",
    [
        [(TrialState.COMPLETE, params(0)), (TrialState.COMPLETE, params(1))],
        [(TrialState.COMPLETE, params(0)), (TrialState.COMPLETE, params(0))],
        [(TrialState.COMPLETE, {"learning_rate": 1e-4 * index}) for index in (1, 2, 3)],
        [(TrialState.COMPLETE, params(index, surrogate="clip")) for index in range(3)],
        [
            (TrialState.COMPLETE, params(0, ent_coef=1e-4)),
            (TrialState.COMPLETE, params(1, surrogate="clip")),
            *((TrialState.PRUNED, params(index)) for index in range(2, 7)),
        ],
    ],
    ids=["two trials", "all the same", "one parameter", "a choice that nobody makes", "all pruned but two"],
)
@pytest.mark.slow
def test_hard_studies_are_drawn(trials: list[tuple[TrialState, Mapping[str, Any]]], tmp_path: Path) -> None:
    job = job_in(tmp_path)
    study_of(job, trials)
    names = {path.name for path in plot(job, tmp_path / "plots")}
    has_pair = len({name for _, each in trials for name in each}) > 1
    assert names == {PAGE, *(f"{name}.png" for name in FIGURES if has_pair or name != "rank")}


def test_one_complete_trial_is_too_few(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    study_of(job, [(TrialState.COMPLETE, params(0)), (TrialState.PRUNED, params(1))])
    with pytest.raises(ValueError, match="'tiny' must have two complete trials to be drawn"):
        plot(job, tmp_path / "plots")
    assert not (tmp_path / "plots").exists()


@pytest.mark.slow
def test_style_and_backend_are_left_alone(tmp_path: Path) -> None:
    import matplotlib

    job = job_in(tmp_path)
    study_of(job, [(TrialState.COMPLETE, {"learning_rate": 1e-4 * index}) for index in (1, 2)])
    before = dict(matplotlib.rcParams)
    plot(job, tmp_path / "plots")
    assert dict(matplotlib.rcParams) == before


def test_without_plotly_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_ppo_variants.tuning.plots.MODULES", ("no_such_module",))
    with pytest.raises(ValueError, match=r'pip install "sb3-ppo-variants\[tune\]"; there is no no_such_module'):
        plot(job_in(tmp_path), tmp_path)
