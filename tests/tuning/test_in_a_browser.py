"""The dashboard and the page of plots as a browser shows them, where playwright and chromium are installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sb3_ppo_variants.tuning import plot, run_worker
from tests.tuning.studies import job_in, pretend
from tests.tuning.test_dashboard import served

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Plotly's drawings that a study of this kind has: on the dashboard's page history, importances, timeline and
# intermediate values.
DASHBOARD_FIGURES = 4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
    pytest.mark.filterwarnings("ignore:Some regimes"),  # optuna, of parameters that exist in few trials
]


def test_both_are_drawn_without_errors_and_without_a_network(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    job = job_in(tmp_path, trials=6)
    run_worker(job, "a", pretend)
    page_file = plot(job, tmp_path / "plots")[-1]
    errors: list[str] = []
    asked: list[str] = []
    with served(job) as server, playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        page.wait_for_function("document.querySelectorAll('.main-svg').length >= 8", timeout=60_000)
        page.goto(server.address)
        page.wait_for_function(
            f"document.querySelectorAll('.js-plotly-plot').length >= {DASHBOARD_FIGURES}", timeout=60_000
        )
        assert "Best Trial" in page.inner_text("body")
        browser.close()
        here = (server.address.partition("/dashboard")[0], "file:", "data:", "blob:")
    assert errors == []
    assert [url for url in asked if not url.startswith(here)] == []
