"""Where a run's resume bundles lie, and what is wrong with them; without torch, for the command line."""

from __future__ import annotations

import re
from pathlib import Path

BUNDLES = "bundles"
"""name of the subfolder of a run's folder"""
_NAME = re.compile(r"bundle_(\d+)\.safetensors")


class BundleError(ValueError):
    """A resume bundle that is torn, foreign, or of another run."""


def bundle_name(num_timesteps: int) -> str:
    """The name of the bundle of a run that stands at ``num_timesteps``."""
    return f"bundle_{num_timesteps:012d}.safetensors"


def bundle_paths(run_folder: Path) -> list[Path]:
    """The files of a run's bundles, the newest first."""
    folder = run_folder / BUNDLES
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]
