"""What goes into a bundle comes out of it, and nothing else does."""

from __future__ import annotations

import collections
import hashlib
import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch as th
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sb3_ppo_variants.resume import format as bundle
from sb3_ppo_variants.resume.format import BundleError, from_bytes, to_bytes

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.text()
    | arrays.arrays(st.sampled_from(["f4", "f8", "i4", "i8", "u4", "u1", "?"]), arrays.array_shapes(min_side=0))
    | st.builds(lambda numbers: th.tensor(numbers), st.lists(st.floats(width=32), max_size=3))
)
KEYS = st.text() | st.integers(0, 9) | st.sampled_from(["$tensor", "$array", "$scalar", "$tuple", "$items"])
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEYS, inner),
    max_leaves=12,
)
QUICK = {"derandomize": True, "deadline": None, "database": None}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return type(other) is dict and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, th.Tensor):
        return isinstance(other, th.Tensor) and one.dtype == other.dtype and same(one.numpy(), other.numpy())
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, float):
        return type(other) is float and str(one) == str(other)
    return type(one) is type(other) and one == other


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], **QUICK)  # type: ignore[arg-type]
@given(st.dictionaries(KEYS, TREES))
def test_what_goes_in_comes_out(tree: dict[Any, Any]) -> None:
    assert same(tree, from_bytes(to_bytes(tree)))


def test_scalars_of_numpy_keep_their_type() -> None:
    value = from_bytes(to_bytes({"a": np.float64(0.1), "b": np.int32(3)}))
    assert (type(value["a"]), value["a"]) == (np.float64, 0.1)
    assert (type(value["b"]), value["b"]) == (np.int32, 3)


class Pair(NamedTuple):
    a: int


OTHERS = [
    object(),
    {3, 4},
    b"bytes",
    Pair(1),
    collections.defaultdict(int),
    collections.OrderedDict(),
    np.array([object()]),
    np.array(["text"]),
    np.str_("text"),
    np.datetime64("2020-01-01"),
    np.longdouble(1),
    np.arange(3, dtype=">f4"),
    np.ma.masked_array([1.0]),
    th.nn.Parameter(th.zeros(2)),
    th.zeros(2, 2).to_sparse(),
    th.zeros(2, device="meta"),
    1j,
    len,
]


@pytest.mark.parametrize("value", OTHERS, ids=lambda value: type(value).__name__)
def test_other_objects_are_refused_and_named(value: Any) -> None:
    assert not bundle.is_tree({"a": [value]})
    with pytest.raises(TypeError, match=rf"a bundle cannot hold state\['a'\]\[0\], a {type(value).__name__}"):
        to_bytes({"a": [value]})


@pytest.mark.parametrize(
    "value",
    [np.zeros((4, 5, 3)).transpose(2, 0, 1), np.arange(9)[::-2], th.zeros(3, 4).T, th.ones(2, requires_grad=True) * 2],
)
def test_memory_in_any_order_is_kept(value: Any) -> None:
    kept = from_bytes(to_bytes({"a": bundle.copied(value)}))["a"]
    assert kept.shape == value.shape
    assert bool((kept == value).all())


def test_what_is_large_is_counted_only_so_far() -> None:
    assert not bundle.is_tree([0] * (bundle.MAX_VALUES + 1))
    assert bundle.is_tree(np.zeros(bundle.MAX_VALUES + 1))


def test_every_bit_counts() -> None:
    data = to_bytes({"weights": th.arange(4.0), "counter": 3})
    for position in range(len(data)):
        for bit in (1, 128):
            changed = data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :]
            with pytest.raises(BundleError):
                from_bytes(changed)


def test_every_length_counts() -> None:
    data = to_bytes({"weights": th.arange(4.0), "counter": 3})
    for length in range(len(data)):
        with pytest.raises(BundleError):
            from_bytes(data[:length])
    with pytest.raises(BundleError):
        from_bytes(data + b"0")


def forged(state: str, metadata: dict[str, str] | None = None) -> bytes:
    """A bundle with a valid checksum around any text."""
    fields = {"format": bundle.FORMAT, "version": bundle.VERSION, "sha256": "0" * 64}
    text = th.frombuffer(bytearray(state.encode() or b" "), dtype=th.uint8)
    blank = safetensors.torch.save({"0": th.zeros(2), "state": text}, {**fields, **(metadata or {})})
    digest = hashlib.sha256(blank).hexdigest().encode()
    return blank.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + digest)


def header_of_a_list() -> bytes:
    """A header that has a checksum, the right one, in a list."""
    header = json.dumps([{"sha256": "0" * 64}], separators=(",", ":")).encode()
    blank = len(header).to_bytes(8, "little") + header
    return blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (forged("[]"), "it holds no state"),
        (forged("not JSON"), "it cannot be read"),
        (forged("[" * 100_000 + "]" * 100_000), "it cannot be read"),
        (forged('{"a": {"$tensor": "7"}}'), "it cannot be read"),
        (forged('{"a": {"$tensor": []}}'), "it cannot be read"),
        (forged('{"a": {"$items": [[[], 1]]}}'), "it cannot be read"),
        (forged('{"a": {"$items": 3}}'), "it cannot be read"),
        (forged('{"a": ' + "9" * 5000 + "}"), "it cannot be read"),
        (forged("{}", {"version": "7"}), "its format is .*, version '7'"),
        (forged("{}", {"format": "another"}), "its format is 'another'"),
        (safetensors.torch.save({"0": th.zeros(2)}), "it has no checksum"),
        (b"", "its header is cut off"),
        (header_of_a_list(), "its header is no mapping"),
        (b"\xff" * 100, "its header is cut off"),
    ],
)
def test_foreign_files_are_refused_in_words(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        from_bytes(data)


def test_json_is_the_state(tmp_path: Any) -> None:
    """Without this package a bundle can still be read: any safetensors reader, and JSON."""
    data = to_bytes({"counter": 3, "weights": th.arange(4.0)})
    (tmp_path / "bundle.safetensors").write_bytes(data)
    with safetensors.safe_open(tmp_path / "bundle.safetensors", "pt") as file:
        state = json.loads(file.get_tensor("state").numpy().tobytes())
        assert state == {"counter": 3, "weights": {"$tensor": "0"}}
        assert file.get_tensor("0").tolist() == [0, 1, 2, 3]


def check_mutations(n_examples: int) -> None:
    good = to_bytes({"weights": th.arange(40.0), "counter": 3, "list": [1, (2, None)], "deep": {"a": {1: "b"}}})
    state = json.loads(safetensors.torch.load(good)["state"].numpy().tobytes())

    @settings(max_examples=n_examples, suppress_health_check=list(HealthCheck), **QUICK)  # type: ignore[arg-type]
    @given(
        st.binary(max_size=400)
        | st.builds(
            lambda start, size, other: good[:start] + other + good[start + size :],
            st.integers(0, len(good)),
            st.integers(0, 40),
            st.binary(max_size=40),
        )
        | st.builds(
            lambda key, value: forged(json.dumps({**state, key: value})),
            st.sampled_from([*state, "other", "$tensor", "$items"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["a", "$tensor", "$tuple"]), inner),
            ),
        )
        | st.builds(lambda text: forged(text), st.text())
    )
    def check(data: bytes) -> None:
        try:
            assert isinstance(from_bytes(data), dict)
        except BundleError:
            return

    check()


def test_random_files_give_a_state_or_an_error_in_words() -> None:
    check_mutations(200)


@pytest.mark.slow
def test_many_random_files() -> None:
    check_mutations(4000)
