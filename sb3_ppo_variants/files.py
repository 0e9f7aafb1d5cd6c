"""Files that are either the old ones or the new ones, whatever happens in between, and tasks in their names."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path


def folder_name(env_id: str) -> str:
    """The name of a task's folder, as rl_zoo3 names files."""
    return env_id.rpartition(":")[2].replace("/", "-")


def atomic_write(path: str | Path, data: bytes) -> None:
    """Write a file so that it is complete or, after a failure or a power cut, as it was before.

    The bytes go into a temporary file in the same folder, reach the disk, and take the name in one step. A symbolic
    link is followed: the file that it leads to is replaced, and the link stays.

    :param path: the file, in a folder that exists; its permissions are kept, new ones are those of ``open()``
    :param data: its new content
    :raises OSError: if it cannot be written; nothing is left behind then
    """
    atomic_write_all({Path(path): data})


def atomic_write_all(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together: after a failure all are as they were before.

    Each is written as by :func:`atomic_write`, in the order given, all of them to the disk before the first takes its
    name. Only a power cut between two names can leave new files beside old ones.

    :param files: the files, in folders that exist, and their new contents
    :raises OSError: if one cannot be written; nothing is left behind then
    """
    with contextlib.ExitStack() as leftovers:
        staged = [_stage(Path(os.path.realpath(path)), data, leftovers) for path, data in files.items()]
        # A single file needs no way back: its one step happens or does not.
        backups = [_back_up(target, leftovers) if len(staged) > 1 else None for target, _ in staged]
        begun: list[tuple[Path, Path | None]] = []
        try:
            for (target, temporary), backup in zip(staged, backups, strict=True):
                begun += [(target, backup)] if len(staged) > 1 else []
                os.replace(temporary, target)  # noqa: PTH105  # the one step; tests make it fail by this name
        except BaseException:
            for target, backup in begun:
                _put_back(target, backup)
            raise
    for folder in {target.parent for target, _ in staged}:
        _sync_folder(folder)


def _temporary(target: Path, leftovers: contextlib.ExitStack) -> Path:
    """A name beside the target that no other writer has; its file is removed in the end, if it is still there."""
    # Cut, as the name of a file has at most 255 bytes.
    path = target.with_name(f".{target.name[:50]}.{secrets.token_hex(8)}.tmp")
    leftovers.callback(_remove, path)
    return path


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _stage(target: Path, data: bytes, leftovers: contextlib.ExitStack) -> tuple[Path, Path]:
    """The target, and its new content on the disk under a temporary name."""
    path = _temporary(target, leftovers)
    with open(path, "xb") as file:
        if target.exists():
            os.fchmod(file.fileno(), target.stat().st_mode & 0o7777)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return target, path


def _back_up(target: Path, leftovers: contextlib.ExitStack) -> Path | None:
    """A second name for the old file; None where there is none."""
    if not target.exists():
        return None
    path = _temporary(target, leftovers)
    try:
        os.link(target, path)
    except OSError:  # a file system without links
        shutil.copy2(target, path)
    return path


def _put_back(target: Path, backup: Path | None) -> None:
    if backup is None:
        target.unlink(missing_ok=True)
    else:
        os.rename(backup, target)  # noqa: PTH104  # `replace` is what may just have failed


def _sync_folder(folder: Path) -> None:
    """Bring the new name itself to the disk; some file systems (of networks) cannot, and need not fail for it."""
    with contextlib.suppress(OSError):  # also for a folder that may be written and not read: all is in place by now
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
