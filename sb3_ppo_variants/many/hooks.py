"""The hooks of users' classes in a stack: each reads what it would read alone, or is refused.

While agents learn at once, their weights are the stack's and their samples are not in SB3's buffers: within an epoch a
model's ``policy`` is that of before the update, and its ``rollout_buffer`` is empty all the time. So while a hook runs,
its model is of a class that looks at each access to an attribute; the package's own classes need none of this.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import Any, NoReturn

import torch as th
from gymnasium import spaces

WITHIN_EPOCHS = frozenset({"objective", "minibatch_metrics"})
"""Hooks that are called for a minibatch; those between epochs are called with weights that are as alone."""
# What the stack has read of its models for good.
_FIXED = frozenset({"action_space", "env", "n_envs", "n_steps", "observation_space", "policy", "rollout_buffer"})
# Values of which two are the same where they are equal; others where they are one object.
_COMPARED = (bool, int, float, str, th.device, spaces.Space)

_PACKAGE = __name__.partition(".")[0]


class NeedsOwnCallError(Exception):
    """A hook that is called for several agents with one's model reads what is another's for each of them."""


def is_users(kind: type) -> bool:
    """Whether a class is not the package's own."""
    return not kind.__module__.startswith(f"{_PACKAGE}.")


def refusal(kind: type, hook: str, what: str) -> ValueError:
    """The error for a hook that does what a stack cannot follow.

    :param what: it does, as ``"reads self.policy"``
    """
    return ValueError(
        f"train_many cannot stack {kind.__name__}: its {hook} {what}, which is not as where an agent learns alone; "
        f"train agents of this class one by one, with learn"
    )


def guarded(models: Sequence[Any], hook: str, own: Collection[str] = ()) -> AbstractContextManager[Any]:
    """A context for calls of a hook with the first of some models; it can be entered again and again.

    :param models: those for which it is called
    :param own: names of attributes that may differ between them
    :raises ValueError: in the context, and again at its end, if the hook reads or sets what a stack cannot follow
    :raises NeedsOwnCallError: likewise, if it reads an attribute of ``own`` that does differ
    """
    return _Guard(models, hook, own) if is_users(type(models[0])) else nullcontext()


class _Guard:
    """See :func:`guarded`."""

    def __init__(self, models: Sequence[Any], hook: str, own: Collection[str]):
        self._models, self._hook, self._own = models, hook, own
        self._kind: Any = type(models[0])
        self._within_epochs = hook in WITHIN_EPOCHS
        model = models[0]
        stale = [model.rollout_buffer]
        if self._within_epochs:
            stale += [*model.policy.modules(), *model.policy.parameters(), model.policy.optimizer]
        self._stale = {id(each): each for each in stale}
        self._error: Exception | None = None

    def __enter__(self) -> None:
        self._error = None
        model = self._models[0]
        _running[id(model)] = self
        object.__setattr__(model, "__class__", _guarded_class(self._kind))

    def __exit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        model = self._models[0]
        object.__setattr__(model, "__class__", self._kind)
        del _running[id(model)]
        if error is None and self._error is not None:  # the hook has caught it
            raise self._error

    def read(self, name: str, value: Any) -> None:
        """Look at what the hook reads."""
        if self._is_stale(value):
            self._refuse(refusal(self._kind, self._hook, f"reads self.{name}"))
        if name in self._own and not _agree([getattr(model, name) for model in self._models[1:]], value):
            self._refuse(NeedsOwnCallError(name))

    def write(self, name: str) -> None:
        """Look at what the hook sets."""
        if self._within_epochs or name in _FIXED:
            self._refuse(refusal(self._kind, self._hook, f"sets self.{name}"))

    def _refuse(self, error: Exception) -> NoReturn:
        self._error = error
        raise error

    def _is_stale(self, value: Any) -> bool:
        """Whether a value is of what is not up to date, by whatever name: itself, a method, or in a container."""
        if isinstance(value, MethodType):
            value = value.__self__
        if isinstance(value, dict):
            value = list(value.values())
        each = value if isinstance(value, (list, tuple, set, frozenset)) else (value,)
        return any(id(one) in self._stale for one in each)


_running: dict[int, _Guard] = {}


class _Guarded:
    """Put before a user's class while one of its hooks runs: tells the guard of each access."""

    __slots__ = ()

    def __init_subclass__(cls, **_: Any) -> None:
        """Nothing: a user's ``__init_subclass__`` is not to hear of it."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        guard = None if name.startswith("__") else _running.get(id(self))
        if guard is not None:  # a copy that the hook has made of its model has none
            guard.read(name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if (guard := _running.get(id(self))) is not None:
            guard.write(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if (guard := _running.get(id(self))) is not None:
            guard.write(name)
        super().__delattr__(name)


@functools.cache  # a hook is called for each minibatch
def _guarded_class(kind: Any) -> Any:
    """A subclass that looks at accesses: its instances and those of ``kind`` can become one another."""
    body = {name: getattr(kind, name) for name in ("__doc__", "__module__", "__qualname__")}
    # A second base would change the instances' layout in memory; so it is only put into the order of resolution.
    metaclass = type("_GuardedMeta", (type(kind),), {"mro": lambda cls: [cls, _Guarded, *kind.__mro__]})
    return metaclass(kind.__name__, (kind,), {"__slots__": (), **body})


def _agree(others: Sequence[Any], value: Any) -> bool:
    return all(other is value or (isinstance(value, _COMPARED) and other == value) for other in others)
