"""An export's files: their names, reading them within limits, and replacing them without touching anyone else's.

Without torch, so that the command line can offer the formats without loading it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sb3_ppo_variants.files import atomic_write_all

FORMAT = "sb3-ppo-variants policy"
DESCRIPTION_FILE = "policy.json"
WEIGHTS_FILE = "policy.safetensors"
# Each optional format and its file.
OPTIONAL_FILES = {"onnx": "policy.onnx", "torchscript": "policy.pt"}
FORMATS = ("safetensors", *OPTIONAL_FILES)
FILES = (DESCRIPTION_FILE, WEIGHTS_FILE, *OPTIONAL_FILES.values())

# Far above what a description needs.
MAX_JSON_BYTES = 1 << 20


class ExportError(ValueError):
    """A policy that cannot be exported, or an export that cannot be loaded; the message says what and why."""


def read_file(path: Path, smallest: int, largest: int) -> bytes:
    """A file's bytes, if it is a file and of a size within the limits.

    :raises ExportError: if it is not, or cannot be read
    """
    try:
        # Opening a pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            return _read(descriptor, path, smallest, largest)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"{path} cannot be read: {error}") from None


def _read(descriptor: int, path: Path, smallest: int, largest: int) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ExportError(f"{path} is not a file")
    if not smallest <= status.st_size <= largest:
        raise ExportError(f"{path} must have {smallest} to {largest} bytes; it has {status.st_size}")
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(largest)


def write_export(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write all files or none, then remove those that an earlier export wrote and this one does not.

    :param folder: made if it is missing
    :param contents: by the names of the files
    :raises ExportError: if a file of another origin has one of the names
    :raises OSError: if a file cannot be written
    """
    earlier = _files_of_export(folder)
    for name in FILES:
        if name in contents and name not in earlier and os.path.lexists(folder / name):
            raise ExportError(
                f"{folder / name} is not as an export wrote it, by the checksums of a {DESCRIPTION_FILE} beside it, "
                "and is not overwritten: move it away, or export into another folder"
            )
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_all({folder / name: data for name, data in contents.items()})
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise
    for name in earlier - contents.keys():
        (folder / name).unlink(missing_ok=True)


def _files_of_export(folder: Path) -> set[str]:
    """The names of the files in a folder that an export wrote, and nobody changed since."""
    try:
        description: Any = json.loads(read_file(folder / DESCRIPTION_FILE, 1, MAX_JSON_BYTES))
    except (ValueError, RecursionError):  # none, or somebody else's
        return set()
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        return set()
    sums = description.get("sha256")
    own = sums if isinstance(sums, dict) else {}
    others = [name for name in FILES if name != DESCRIPTION_FILE and name in own]
    return {DESCRIPTION_FILE, *(name for name in others if _sha256(folder / name) == own[name])}


def _sha256(path: Path) -> str | None:
    """The checksum of a file; None where it is none, or cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    except OSError:
        return None
