"""Exports changed at random: loaded or refused by an ExportError, in bounded time and memory, and nothing else."""

from __future__ import annotations

import hashlib
import json
import struct
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sb3_ppo_variants import ExportError, export_policy, load_policy
from tests.export_cases import CASES, Case, make_model

KINDS = ("normalized", "gsde squashed", "normalized dict", "image", "image, not divided")
FILES = ("policy.json", "policy.safetensors")
SECONDS = 5  # of the processor, for one file
MEGABYTES = 200  # above what the process had before

Export = dict[str, bytes]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> list[Export]:
    """The files of a few exports."""
    folders = [tmp_path_factory.mktemp("export") for _ in KINDS]
    for kind, folder in zip(KINDS, folders, strict=True):
        export_policy(make_model(CASES[kind]), folder)
    return [{name: (folder / name).read_bytes() for name in FILES} for folder in folders]


# ------------------------------------------------------------------ mutations

HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 7, 2**20, 2**31, 2**63 - 1, 2**63, 10**400, -(10**400)),
    *(0.5, -0.0, 1e-320, 1e38, 1e39, 1e308, "", "inf", "-inf", "nan", "a" * 1000, "\0", "ü\ud800", "../x", "0" * 64),
    *([], {}, [[]], [1] * 1000, [2**40] * 3, [2**20], [1024, 1024], [1] * 9, [0], [-1], [[1, 2]], ["a", "a"]),
    *("Box", "Discrete", "MultiDiscrete", "MultiBinary", "Dict", "Tuple", "float64", "uint8", "int8", "object"),
    *("MlpPolicy", "CnnPolicy", "MultiInputPolicy", "FlattenExtractor", "NatureCNN", "CombinedExtractor", "PReLU"),
    {"type": "Box", "shape": [2**20], "dtype": "float64", "low": "-inf", "high": "inf"},
    {"type": "Box", "shape": [1024, 32, 32], "dtype": "uint8", "low": 0, "high": 255},
    {"type": "Box", "shape": [3, 36, 36], "dtype": "float64", "low": -1.7e308, "high": 1.7e308},
    {"type": "Box", "shape": [3], "dtype": "float32", "low": "inf", "high": "inf"},
    {"type": "Discrete", "n": 2**20, "start": -5},
    {"type": "MultiDiscrete", "nvec": [1000] * 1000, "start": [0] * 1000},
    {"type": "MultiBinary", "shape": [8, 8]},
    {"type": "Dict", "spaces": [["a", {"type": "Discrete", "n": 2, "start": 0}]] * 2},
    {"type": "Dict", "spaces": [[f"k{i}", {"type": "MultiBinary", "shape": [2**20]}] for i in range(200)]},
    {"class": "NatureCNN", "kwargs": {"features_dim": 2**40}},
    {"pi": [2**62], "vf": [2**62] * 200},
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in JSON."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def change_json(draw: Callable[..., Any], value: Any) -> Any:
    """Replace, remove, add, copy or nest one value."""
    path = draw(st.sampled_from(list(places(value))))
    if not path:
        return deepcopy(draw(st.sampled_from(HOSTILE)))
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    last = path[-1]
    action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "copy", "nest", "nudge"]))
    other = deepcopy(draw(st.sampled_from(HOSTILE)))  # it may be changed in turn
    if action == "remove":
        del parent[last]
    elif action == "nest":
        parent[last] = [parent[last]]
    elif action == "copy":
        parent[last] = json.loads(json.dumps(parent[draw(st.sampled_from(list(dict(places_of(parent)))))]))
    elif action == "nudge" and type(parent[last]) in (int, float):
        parent[last] += draw(st.sampled_from([-1, 1, 1000]))
    elif action == "add" and isinstance(parent, dict):
        parent[draw(st.sampled_from(["more", "type", "class", "dtype", "__metadata__"]))] = other
    else:
        parent[last] = other
    return value


def places_of(parent: Any) -> list[tuple[Any, Any]]:
    return list(parent.items()) if isinstance(parent, dict) else list(enumerate(parent))


def change_bytes(draw: Callable[..., Any], data: bytes) -> bytes:
    """Flip, cut, insert, repeat or replace bytes."""
    action = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "random", "nest"]))
    position = draw(st.integers(0, max(0, len(data) - 1)))
    if action == "flip" and data:
        return data[:position] + bytes([data[position] ^ draw(st.integers(1, 255))]) + data[position + 1 :]
    if action == "cut":
        return data[:position]
    if action == "insert":
        return data[:position] + draw(st.binary(max_size=64)) + data[position:]
    if action == "repeat":
        return data[:position] + data
    if action == "nest":
        return data[:position] + draw(st.sampled_from([b"[", b'{"a":', b"{", b"9", b'"'])) * draw(
            st.integers(1, 200_000)
        )
    return draw(st.binary(max_size=2000))


def change_description(draw: Callable[..., Any], files: Export) -> Export:
    value = json.loads(files["policy.json"])
    for _ in range(draw(st.integers(1, 3))):
        value = change_json(draw, value)
    return {**files, "policy.json": json.dumps(value).encode()}


def change_header(draw: Callable[..., Any], files: Export) -> Export:
    """Another header of the weights, with the checksum that belongs to it."""
    data = files["policy.safetensors"]
    (length,) = struct.unpack("<Q", data[:8])
    header = change_json(draw, json.loads(data[8 : 8 + length]))
    text = json.dumps(header).encode()
    length = draw(st.sampled_from([len(text), len(text), len(text), len(text) + 1, 0, 2**40, 2**64 - 1]))
    return with_checksum({**files, "policy.safetensors": struct.pack("<Q", length) + text + data[8 + length :]})


def change_weights(draw: Callable[..., Any], files: Export) -> Export:
    changed = {**files, "policy.safetensors": change_bytes(draw, files["policy.safetensors"])}
    return with_checksum(changed) if draw(st.booleans()) else changed


def change_text(draw: Callable[..., Any], files: Export) -> Export:
    return {**files, "policy.json": change_bytes(draw, files["policy.json"])}


def with_checksum(files: Export) -> Export:
    value = json.loads(files["policy.json"])
    value["sha256"]["policy.safetensors"] = hashlib.sha256(files["policy.safetensors"]).hexdigest()
    return {**files, "policy.json": json.dumps(value).encode()}


MUTATIONS = [change_description, change_description, change_header, change_weights, change_text]


# ------------------------------------------------------------------ loading


def memory(field: str) -> float:
    """A figure of this process's memory, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) / 1024


def load(files: Export, folder: Path) -> bool:
    """Load an export, in bounded time; whether it was accepted."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    start = time.process_time()
    try:
        load_policy(folder, "cpu")
    except ExportError:
        return False
    finally:
        assert time.process_time() - start < SECONDS
    return True


def fuzz(examples: int, exports: list[Export], folder: Path) -> dict[bool, int]:
    """Load so many mutated exports; counts those accepted and refused."""
    counts = {True: 0, False: 0}

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        files = data.draw(st.sampled_from(exports))
        counts[load(data.draw(st.sampled_from(MUTATIONS))(data.draw, files), folder)] += 1

    load(exports[0], folder)  # what the first one allocates for good is not its own
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory("VmRSS")
    run()
    assert memory("VmHWM") - before < MEGABYTES
    return counts


def test_mutated_exports_are_refused_or_harmless(exports: list[Export], tmp_path: Path) -> None:
    counts = fuzz(60, exports, tmp_path)
    assert counts[False] > 30


@pytest.mark.slow
def test_thousands_of_mutated_exports_are_refused_or_harmless(exports: list[Export], tmp_path: Path) -> None:
    counts = fuzz(4000, exports, tmp_path)
    assert sum(counts.values()) >= 4000
    assert counts[False] > 2000


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"type": "Box", "shape": [2**20], "dtype": "float64", "low": "-inf", "high": "inf"}, "must be an image"),
        ({"type": "Box", "shape": [16, 256, 256], "dtype": "uint8", "low": 0, "high": 255}, r"bytes; it has \d+"),
        (
            {"type": "Dict", "spaces": [[f"k{i}", {"type": "MultiBinary", "shape": [2**20]}] for i in range(999)]},
            "must be spaces of at most 1048576 numbers together",
        ),
        ({"type": "MultiDiscrete", "nvec": [1] * 170_000, "start": [0] * 170_000}, "must be an image"),
    ],
)
def test_the_largest_spaces_take_little_memory(space: Any, message: str, exports: list[Export], tmp_path: Path) -> None:
    value = json.loads(exports[3]["policy.json"])
    load(exports[3], tmp_path)
    value["observation_space"] = space
    (tmp_path / "policy.json").write_text(json.dumps(value, separators=(",", ":")))
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    with pytest.raises(ExportError, match=message):
        load_policy(tmp_path, "cpu")
    assert memory("VmHWM") - before < MEGABYTES


def test_the_largest_policy_that_is_accepted_takes_little_memory(exports: list[Export], tmp_path: Path) -> None:
    load(exports[0], tmp_path)
    case = Case(spaces.Box(-1, 1, (2**20,)), policy_kwargs={"net_arch": [1]}, arguments={"n_steps": 1, "batch_size": 2})
    export_policy(make_model(case), tmp_path / "large")
    assert (tmp_path / "large" / "policy.safetensors").stat().st_size > 2**23
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    policy = load_policy(tmp_path / "large", "cpu")
    assert memory("VmHWM") - before < MEGABYTES
    assert policy.predict(np.zeros(2**20, np.float32))[0].shape == (2,)
