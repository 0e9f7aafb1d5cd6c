"""Studies of hyperparameters with optuna (``[tune]`` extra) that survive, spread and can be trusted.

::

    from sb3_ppo_variants.tuning import best, export, load_job, run_workers

    if __name__ == "__main__":  # workers are new processes, which import this file
        job = load_job("pendulum_five_minutes")  # or a YAML file of your own
        run_workers(job, workers=2)
        export(job, best(job, workers=2)[0], "tuned.yml")

Jobs and spaces need no optuna; what does loads on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_ppo_variants.tuning.dashboard import serve_dashboard as serve_dashboard
    from sb3_ppo_variants.tuning.job import Job as Job
    from sb3_ppo_variants.tuning.job import load_job as load_job
    from sb3_ppo_variants.tuning.job import read_job as read_job
    from sb3_ppo_variants.tuning.plots import plot as plot
    from sb3_ppo_variants.tuning.results import best as best
    from sb3_ppo_variants.tuning.results import describe_best as describe_best
    from sb3_ppo_variants.tuning.results import describe_status as describe_status
    from sb3_ppo_variants.tuning.results import export as export
    from sb3_ppo_variants.tuning.results import status as status
    from sb3_ppo_variants.tuning.storage import StorageError as StorageError
    from sb3_ppo_variants.tuning.study import SharedStudy as SharedStudy
    from sb3_ppo_variants.tuning.worker import run_worker as run_worker
    from sb3_ppo_variants.tuning.worker import run_workers as run_workers

_MODULE_OF = {
    "Job": "job",
    "SharedStudy": "study",
    "StorageError": "storage",
    "best": "results",
    "describe_best": "results",
    "describe_status": "results",
    "export": "results",
    "load_job": "job",
    "plot": "plots",
    "read_job": "job",
    "run_worker": "worker",
    "run_workers": "worker",
    "serve_dashboard": "dashboard",
    "status": "results",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
