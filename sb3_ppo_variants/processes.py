"""Processes that work side by side, and how Ctrl-C and SIGTERM reach what they do."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sb3_ppo_variants.resume.learning import TERMINATED

FAILED = 1
"""exit code of a process that ended by an error"""
SECONDS_TO_HEAR = 2.0
"""for which processes may notice a Ctrl-C by themselves"""


class WorkerError(RuntimeError):
    """A worker process did not end well; its own words are on standard error."""


def in_processes(
    name: str,
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    told: tuple[type[Exception], ...] = (),
) -> int:
    """Call a function side by side, in a process for each set of arguments, with one torch thread each.

    :param name: of the work, for messages
    :param function: of a module
    :param arguments: one tuple per process
    :param told: errors that are told in a sentence, without a traceback
    :return: 0, or the exit code of the first process that did not end well
    """
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_work, args=(name, function, each, told), name=f"worker {index}")
        for index, each in enumerate(arguments)
    ]
    try:
        with Signals() as signals, signals.heard():
            for process in processes:
                process.start()
            for process in processes:
                process.join()
    except (KeyboardInterrupt, SystemExit):
        _end(processes)
        raise
    failed = [process for process in processes if process.exitcode]
    for process in failed:
        code = process.exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        print(f"[{name}] {process.name} {how}", file=sys.stderr)
    return (failed[0].exitcode or FAILED) if failed else 0


def _end(processes: Sequence[Any]) -> None:
    """Have processes leave their work in order, and wait for them."""
    started = [process for process in processes if process.pid is not None]
    with _undisturbed():
        for process in started:  # Ctrl-C in a terminal has reached them, a signal to this process alone has not
            process.join(SECONDS_TO_HEAR)
            process.terminate()
        for process in started:
            process.join()


def _work(
    name: str, function: Callable[..., Any], arguments: tuple[Any, ...], told: tuple[type[Exception], ...]
) -> None:
    """What runs in a process of its own."""
    import torch as th

    th.set_num_threads(1)  # networks this small lose by more, and the processes share the cores
    try:
        function(*arguments)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except told as error:
        print(f"[{name}] {error}", file=sys.stderr)
        sys.exit(FAILED)


class Signals:
    """Ctrl-C and SIGTERM, which are heard only where work can be left in order, and kept until then.

    In a thread other than the main one, which gets none, nothing changes.
    """

    def __init__(self) -> None:
        self._kept: BaseException | None = None
        self._are_heard = self._raised = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None and self._kept is not None:
            raise self._kept

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self._raised:  # what it asks for is under way
            return
        again = self._kept is not None
        self._kept = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(TERMINATED)
        if self._are_heard or again:  # one who asks twice does not want to wait for a storage that is away
            self._raise()

    def _raise(self) -> None:
        error, self._kept, self._raised = self._kept, None, True
        assert error is not None
        raise error

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Let them end what runs inside, by an exception."""
        self._are_heard = True
        try:
            if self._kept is not None:
                self._raise()
            yield
        finally:
            self._are_heard = False


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM: what they ask for is under way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
