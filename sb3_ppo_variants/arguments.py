"""Checks of arguments: each failure is one sentence that names the argument, the allowed values and what came."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any


def require(name: str, value: Any, allowed: str, is_allowed: Callable[[Any], bool]) -> None:
    """Check a numeric argument. Schedules (callables) and None pass: their values are checked where they are used.

    :param allowed: the allowed values in words, for the message
    :param is_allowed: tells of a number whether it is allowed; NaN fails every comparison
    :raises ValueError: if the value is not allowed or not a number
    """
    if callable(value) or (value is None and "None" in allowed):
        return
    try:
        valid = bool(is_allowed(value))
    except TypeError:  # not comparable with a number
        valid = False
    if not valid:
        raise ValueError(f"{name} must be {allowed}; got {value!r}")


def require_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Check an argument that takes one of a few values.

    :raises ValueError: if it is none of ``choices``; suggests the nearest where one is near
    """
    if any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        return
    strings = [choice for choice in choices if isinstance(choice, str)]
    nearest = difflib.get_close_matches(str(value), strings, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}{hint}")


def extend_signature(parent: inspect.Signature, constructor: Callable[..., None]) -> inspect.Signature:
    """The arguments of a constructor that hands ``*args`` and ``**kwargs`` to its parent's, all by name.

    :param parent: the signature of the parent class
    :param constructor: the subclass's ``__init__``: its own defaults replace the parent's, its new arguments
        are added as keyword-only
    """
    named = [
        parameter
        for parameter in list(inspect.signature(constructor).parameters.values())[1:]
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    merged = dict(parent.parameters)
    for parameter in named:
        kind = merged[parameter.name].kind if parameter.name in merged else parameter.KEYWORD_ONLY
        merged[parameter.name] = parameter.replace(kind=kind)
    return parent.replace(parameters=list(merged.values()))
