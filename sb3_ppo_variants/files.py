"""Files that are either the old ones or the new ones, whatever happens in between."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def atomic_write(path: str | Path, data: bytes) -> None:
    """Write a file so that it is complete or, after a failure or a power cut, as it was before.

    The bytes go into a temporary file in the same folder, reach the disk, and take the name in one step. A symbolic
    link is followed: the file that it leads to is replaced, and the link stays.

    :param path: the file, in a folder that exists; its permissions are kept, new ones are those of ``open()``
    :param data: its new content
    :raises OSError: if it cannot be written; nothing is left behind then
    """
    target = Path(os.path.realpath(path))
    # A name of its own for each writer; cut, as the name of a file has at most 255 bytes.
    temporary = target.with_name(f".{target.name[:50]}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            if target.exists():
                os.fchmod(file.fileno(), target.stat().st_mode & 0o7777)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)  # noqa: PTH105  # the one step; tests make it fail by this name
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Bring the new name itself to the disk; some file systems (of networks) cannot, and need not fail for it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
