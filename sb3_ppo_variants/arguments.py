"""Checks of arguments: each failure is one sentence that names the argument, the allowed values and what came."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

# A message is one sentence: what it quotes ends here.
MAX_SHOWN = 200


def shown(value: object) -> str:
    """A value as a message quotes it: its ``repr``, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of more than 4,300 digits
        return f"<{type(value).__name__} with an integer of too many digits>"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def require(
    name: str,
    value: Any,
    allowed: str,
    is_allowed: Callable[[Any], bool] = lambda _: True,
    *,
    integer: bool = False,
    optional: bool = False,
    schedule: bool = False,
) -> None:
    """Check a numeric argument.

    :param allowed: the allowed values in words, for the message
    :param is_allowed: tells of a number that is not NaN whether it is allowed
    :param integer: whether it must be an integer
    :param optional: whether None is allowed
    :param schedule: whether a schedule (a callable) is; its values are checked where they are used
    :raises ValueError: if the value is not allowed
    """
    if (optional and value is None) or (schedule and callable(value)):
        return
    kind = numbers.Integral if integer else numbers.Real
    try:
        fits = type(value) is not bool and isinstance(value, kind) and not math.isnan(value) and is_allowed(value)
    except OverflowError:  # an integer beyond the largest float
        fits = False
    if not fits:
        raise ValueError(f"{name} must be {allowed}; got {shown(value)}")


def require_bounds(name: str, value: Any) -> None:
    """Check a pair (smallest, largest) of positive numbers.

    :raises ValueError: if it is none
    """
    is_pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    pair: Any = [number for number in value if isinstance(number, numbers.Real)] if is_pair else []
    if len(pair) < 2 or not 0 < pair[0] <= pair[1] < math.inf:
        raise ValueError(f"{name} must be a pair 0 < smallest <= largest < inf; got {shown(value)}")


def require_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Check an argument that takes one of a few values.

    :raises ValueError: if it is none of ``choices``; suggests the nearest where one is near
    """
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return
    strings = [choice for choice in choices if isinstance(choice, str)]
    nearest = difflib.get_close_matches(value if isinstance(value, str) else shown(value), strings, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {shown(value)}{hint}")


def is_number(value: object) -> bool:
    """Whether it is a finite number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_names(what: str, names: Iterable[object], allowed: Collection[str], *, list_allowed: bool = True) -> None:
    """Check that every name is an allowed one.

    :param what: what the names are, for the message
    :param list_allowed: whether the message lists the allowed names besides the nearest one
    :raises ValueError: for the first name that is not
    """
    for name in names:
        if name in allowed:
            continue
        nearest = difflib.get_close_matches(name if isinstance(name, str) else shown(name), allowed, n=1)
        hint = f", did you mean {nearest[0]!r}?" if nearest else ""
        choices = f" (allowed: {', '.join(sorted(allowed)) or 'none'})" if list_allowed else ""
        raise ValueError(f"unknown {what} {shown(name)}{hint}{choices}")


def extend_signature(parent: inspect.Signature, constructor: Callable[..., None]) -> inspect.Signature:
    """The arguments of a constructor that hands ``**kwargs`` to its parent's, all by name.

    :param parent: the signature of the parent class
    :param constructor: the subclass's ``__init__``: its own defaults replace the parent's, its new arguments
        are added as keyword-only
    :return: ``parent`` and ``constructor`` merged; the constructor's own where it takes no ``**kwargs``
    """
    own = list(inspect.signature(constructor).parameters.values())[1:]
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
        return parent.replace(parameters=own)
    merged = dict(parent.parameters)
    for parameter in own:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        kind = merged[parameter.name].kind if parameter.name in merged else parameter.KEYWORD_ONLY
        merged[parameter.name] = parameter.replace(kind=kind)
    return parent.replace(parameters=list(merged.values()))
