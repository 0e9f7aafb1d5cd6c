"""Where results are read and written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sb3_ppo_variants.reproduce.results import Results

OUTPUT = "reproduction"
"""folder for tables and pictures, and for new results where no other is given"""


class Places(NamedTuple):
    """Folders of results."""

    folder: Path
    """where new ones are written"""
    shipped: Path | None
    """from where more are read"""

    @classmethod
    def of(cls, results: str | Path | None) -> Places:
        """The folder that was asked for, alone; None: the results that ship, and new ones in ``reproduction``."""
        if results is None:
            return cls(Path(OUTPUT) / "results", shipped_results())
        return cls(Path(results), None)

    def results(self, timesteps: int) -> Results:
        """The results of runs of some length."""
        from sb3_ppo_variants.reproduce.results import Results  # the command line reads OUTPUT without the extra

        return Results(self.folder, timesteps, self.shipped)


def shipped_results() -> Path:
    """The results that come with the package: inside it where it is installed, at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "results"
    return installed if installed.is_dir() else package.parent / "results"
