"""What a resume bundle looks like on disk: a safetensors file whose metadata hold the rest as JSON, with a checksum.

Reading one runs nothing that is in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch as th

FORMAT = "sb3-ppo-variants resume bundle"
VERSION = "1"

# safetensors begins with the length of its JSON header, eight bytes, little-endian.
LENGTH_BYTES = 8
DIGEST_MARK = b'"sha256":"'
DIGEST_DIGITS = 64
BLANK_DIGEST = b"0" * DIGEST_DIGITS

# A mapping with a single key of these stands for what JSON does not have.
_TENSOR, _ARRAY, _TUPLE, _ITEMS = "$tensor", "$array", "$tuple", "$items"

Tree = Any
"""None, bool, int, float, str, arrays and tensors; lists, tuples and mappings of such"""


class BundleError(ValueError):
    """A resume bundle that is torn, foreign, or of another run."""


def to_bytes(tree: Mapping[str, Tree]) -> bytes:
    """A bundle's bytes.

    :raises TypeError: for what a :data:`Tree` cannot hold
    """
    tensors: dict[str, th.Tensor] = {}
    state = json.dumps(encode(tree, tensors))
    metadata = {"format": FORMAT, "version": VERSION, "sha256": BLANK_DIGEST.decode(), "state": state}
    blank = safetensors.torch.save(tensors, metadata)
    start = _digest_position(blank)
    return blank[:start] + _digest(blank) + blank[start + DIGEST_DIGITS :]


def from_bytes(data: bytes) -> dict[str, Tree]:
    """What a bundle holds.

    :raises BundleError: for one that is torn, or not ours
    """
    try:
        return _read(data)
    except BundleError:
        raise
    # Whatever bytes do to a parser: too deep, too large, of another type.
    except (ArithmeticError, LookupError, MemoryError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise BundleError(f"it cannot be read ({type(error).__name__}: {error})") from error
    except safetensors.SafetensorError as error:
        raise BundleError(f"it is no safetensors file ({error})") from error


def _read(data: bytes) -> dict[str, Tree]:
    start = _digest_position(data)
    blank = data[:start] + BLANK_DIGEST + data[start + DIGEST_DIGITS :]
    if _digest(blank) != data[start : start + DIGEST_DIGITS]:
        raise BundleError("its checksum does not match what it holds")
    metadata = _header(data)["__metadata__"]
    if (metadata["format"], metadata["version"]) != (FORMAT, VERSION):
        raise BundleError(f"its format is {metadata['format']!r}, version {metadata['version']!r}; known: {VERSION!r}")
    tree = decode(json.loads(metadata["state"]), safetensors.torch.load(data))
    if not isinstance(tree, dict):
        raise BundleError("it holds no state")
    return tree


def _header_bytes(data: bytes) -> bytes:
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if len(data) < LENGTH_BYTES or length > len(data) - LENGTH_BYTES:
        raise BundleError("its header is cut off")
    return data[LENGTH_BYTES : LENGTH_BYTES + length]


def _header(data: bytes) -> dict[str, Any]:
    header = json.loads(_header_bytes(data))
    if not isinstance(header, dict):
        raise BundleError("its header is no mapping")
    return header


def _digest_position(data: bytes) -> int:
    """Where the checksum's digits begin. Quotes within the state are escaped, so the mark occurs once."""
    found = _header_bytes(data).find(DIGEST_MARK)
    if found < 0:
        raise BundleError("it has no checksum: no resume bundle of this package")
    return LENGTH_BYTES + found + len(DIGEST_MARK)


def _digest(blank: bytes) -> bytes:
    return hashlib.sha256(blank).hexdigest().encode()


def encode(tree: Tree, tensors: dict[str, th.Tensor]) -> Any:
    """A tree as JSON takes it; arrays and tensors go into ``tensors``.

    :raises TypeError: for what a :data:`Tree` cannot hold
    """
    if tree is None or type(tree) in (bool, int, float, str):
        return tree
    if isinstance(tree, (th.Tensor, np.ndarray, np.generic)):
        name = str(len(tensors))
        is_tensor = isinstance(tree, th.Tensor)
        # A copy: safetensors refuses memory that tensors share.
        tensors[name] = tree.detach().cpu().clone().contiguous() if is_tensor else th.tensor(np.asarray(tree))  # type: ignore[union-attr]
        return {_TENSOR if is_tensor else _ARRAY: name}
    if type(tree) in (list, tuple):  # not a NamedTuple, which would come back as another type
        items = [encode(item, tensors) for item in tree]
        return items if type(tree) is list else {_TUPLE: items}
    if isinstance(tree, Mapping):
        return _encode_mapping(tree, tensors)
    raise TypeError(f"cannot keep a {type(tree).__name__}")


def _encode_mapping(tree: Mapping[Any, Tree], tensors: dict[str, th.Tensor]) -> Any:
    if all(type(key) is str and not key.startswith("$") for key in tree):
        return {key: encode(value, tensors) for key, value in tree.items()}
    return {_ITEMS: [[encode(key, tensors), encode(value, tensors)] for key, value in tree.items()]}


def decode(value: Any, tensors: Mapping[str, th.Tensor]) -> Tree:
    """The reverse of :func:`encode`."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((mark, content),) = value.items()
        if mark == _TENSOR:
            return tensors[content]
        if mark == _ARRAY:
            return tensors[content].numpy()[()]  # without dimensions: a scalar
        if mark == _TUPLE:
            return tuple(decode(item, tensors) for item in content)
        if mark == _ITEMS:
            return {decode(key, tensors): decode(item, tensors) for key, item in content}
    return {key: decode(item, tensors) for key, item in value.items()}


def is_tree(value: Any) -> bool:
    """Whether a bundle can hold a value."""
    if value is None or type(value) in (bool, int, float, str):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    if isinstance(value, (th.Tensor, np.generic)):
        return True
    if type(value) in (list, tuple):
        return all(map(is_tree, value))
    return isinstance(value, Mapping) and all(is_tree(key) and is_tree(item) for key, item in value.items())
