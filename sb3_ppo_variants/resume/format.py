"""What a resume bundle looks like on disk: a safetensors file, of which one tensor holds the rest as JSON.

Its metadata have a checksum over all of it. Reading one runs nothing that is in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch as th

from sb3_ppo_variants.resume.names import BundleError

FORMAT = "sb3-ppo-variants resume bundle"
VERSION = "1"

# safetensors begins with the length of its JSON header, eight bytes, little-endian.
LENGTH_BYTES = 8
DIGEST_MARK = b'"sha256":"'
DIGEST_DIGITS = 64
BLANK_DIGEST = b"0" * DIGEST_DIGITS

# The tensor, of bytes, that holds the state as JSON; arrays and tensors are numbered.
STATE = "state"

# A mapping with a single key of these stands for what JSON does not have.
_TENSOR, _ARRAY, _SCALAR, _TUPLE, _ITEMS = "$tensor", "$array", "$scalar", "$tuple", "$items"

# More values than these in one attribute are not kept: they would be copied after every iteration.
MAX_VALUES = 100_000

Tree = Any
"""None, bool, int, float, str, numbers and arrays of NumPy, tensors; lists, tuples and dicts of such"""


def to_bytes(tree: Mapping[str, Tree]) -> bytes:
    """A bundle's bytes.

    :raises TypeError: for what a :data:`Tree` cannot hold; names where it is
    """
    tensors: dict[str, th.Tensor] = {}
    state = json.dumps(encode(dict(tree), tensors)).encode()
    tensors[STATE] = th.frombuffer(bytearray(state), dtype=th.uint8)
    metadata = {"format": FORMAT, "version": VERSION, "sha256": BLANK_DIGEST.decode()}
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
    tensors = safetensors.torch.load(data)
    tree = decode(json.loads(tensors.pop(STATE).numpy().tobytes()), tensors)
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
    """Where the checksum's digits begin."""
    found = _header_bytes(data).find(DIGEST_MARK)
    if found < 0:
        raise BundleError("it has no checksum: no resume bundle of this package")
    return LENGTH_BYTES + found + len(DIGEST_MARK)


def _digest(blank: bytes) -> bytes:
    return hashlib.sha256(blank).hexdigest().encode()


def _is_plain_dtype(dtype: np.dtype) -> bool:
    return dtype.kind in "biuf" and dtype.itemsize <= 8 and dtype.isnative


def _is_leaf(value: Any) -> bool:
    """Whether a bundle holds a value as it is. Subclasses would come back as another type."""
    if value is None or type(value) in (bool, int, float, str):
        return True
    if type(value) is np.ndarray or isinstance(value, np.generic):
        return _is_plain_dtype(value.dtype)
    return type(value) is th.Tensor and value.layout is th.strided and value.device.type != "meta"


def _children(value: Any) -> list[Any] | None:
    """What a list, tuple or dict holds; None for anything else."""
    if type(value) is dict:
        return [*value, *value.values()]
    return list(value) if type(value) in (list, tuple) else None


def n_values(value: Any) -> int | None:
    """How many values a :data:`Tree` has, counted to just above ``MAX_VALUES``; None for what is no such tree."""
    count, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        count += 1
        if count > MAX_VALUES:
            return count
        children = _children(item)
        if children is None and not _is_leaf(item):
            return None
        waiting += children or []
    return count


def is_tree(value: Any) -> bool:
    """Whether a bundle can hold a value."""
    count = n_values(value)
    return count is not None and count <= MAX_VALUES


def copied(value: Tree) -> Tree:
    """A copy that later changes leave alone."""
    if isinstance(value, th.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {copied(key): copied(item) for key, item in value.items()}
    return type(value)(map(copied, value)) if type(value) in (list, tuple) else value


def encode(tree: Tree, tensors: dict[str, th.Tensor], where: str = "state") -> Any:
    """A tree as JSON takes it; arrays and tensors go into ``tensors``.

    :param where: the tree's place, for the message
    :raises TypeError: for what a :data:`Tree` cannot hold
    """
    if type(tree) is dict:
        return _encode_dict(tree, tensors, where)
    if type(tree) in (list, tuple):
        items = [encode(item, tensors, f"{where}[{index}]") for index, item in enumerate(tree)]
        return items if type(tree) is list else {_TUPLE: items}
    if not _is_leaf(tree):
        raise TypeError(f"a bundle cannot hold {where}, a {type(tree).__name__}")
    if isinstance(tree, np.generic):
        return {_SCALAR: [tree.dtype.name, tree.item()]}
    if isinstance(tree, (th.Tensor, np.ndarray)):
        name = str(len(tensors))
        # Copies: safetensors refuses memory that is shared, or not in the order of the dimensions.
        if isinstance(tree, np.ndarray):
            tensors[name] = th.from_numpy(np.array(tree, order="C"))
            return {_ARRAY: name}
        tensors[name] = tree.detach().cpu().clone().contiguous()
        return {_TENSOR: name}
    return tree


def _encode_dict(tree: dict[Any, Tree], tensors: dict[str, th.Tensor], where: str) -> Any:
    values = {key: encode(value, tensors, f"{where}[{key!r}]") for key, value in tree.items()}
    if all(type(key) is str and not key.startswith("$") for key in values):
        return values
    return {_ITEMS: [[encode(key, tensors, f"a key of {where}"), value] for key, value in values.items()]}


def decode(value: Any, tensors: Mapping[str, th.Tensor]) -> Tree:
    """The reverse of :func:`encode`."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((mark, content),) = value.items()
        if mark in (_TENSOR, _ARRAY):
            return tensors[content] if mark == _TENSOR else tensors[content].numpy()
        if mark == _SCALAR:
            return _scalar(*content)
        if mark == _TUPLE:
            return tuple(decode(item, tensors) for item in content)
        if mark == _ITEMS:
            return {decode(key, tensors): decode(item, tensors) for key, item in content}
    return {key: decode(item, tensors) for key, item in value.items()}


def _scalar(dtype: str, value: Any) -> Any:
    kind = np.dtype(dtype)
    if not _is_plain_dtype(kind) or not isinstance(value, (bool, int, float)):
        raise ValueError(f"no number of NumPy: {dtype!r}")
    return kind.type(value)
