"""Reads YAML, and the Python expressions that rl_zoo3's settings hold, as data: nothing that is read can run code.

YAML and torch load inside the functions, so that the command line can list and explain without them.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Collection, Hashable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_ppo_variants.arguments import MAX_SHOWN, shown

if TYPE_CHECKING:
    import yaml

# Far above any real file (rl_zoo3's largest has 20 kB, 5 levels and 2,000 nodes), below what takes seconds to read:
# PyYAML composes some 10,000 values a second on a slow machine.
MAX_BYTES = 200_000
MAX_DEPTH = 32
MAX_NODES = 10_000
# Digits are cheap, but `1:1:1:…` is a number of base 60, which takes time quadratic in its length.
MAX_NUMBER_LENGTH = 100
MAX_EXPRESSION_LENGTH = 10_000

YAML_TAG = "tag:yaml.org,2002:"
SCALARS = ("null", "bool", "int", "float", "str")
ALLOWED_TAGS = ", ".join(f"!!{name}" for name in (*SCALARS, "seq", "map"))
SCHEDULES = ("ConstantSchedule", "FloatSchedule", "LinearSchedule")
ACTIVATIONS_MODULE = "torch.nn.modules.activation"
# What PyYAML's dumper writes of objects that plain YAML has not.
DUMPED_TAGS = tuple(f"{YAML_TAG}{kind}" for kind in ("python/", "binary", "set", "timestamp"))
NAME_TAG = f"{YAML_TAG}python/name:"
# Settings of a run in which a class stands for its dotted name.
WRAPPER_KEYS = ("env_wrapper", "vec_env_wrapper")

EXPRESSION_FORMS = "literals, lists, tuples, dicts, dict(...) and nn.<activation>"


def load_yaml(path: Path, named_levels: int = 3) -> Any:
    """Read a file of settings: tasks, their settings, and the arguments of those.

    Stricter than ``yaml.safe_load``: duplicate keys, every tag beyond ``ALLOWED_TAGS`` and dates are refused, and so
    is what would grow beyond ``MAX_NODES`` nodes by its aliases. Each alias gives an object of its own.

    :param named_levels: how many levels of mappings, from the top, must have strings as keys
    :raises ValueError: for a file that is no such YAML; names the file, the line and what is allowed
    """
    return parse_yaml(_read(path), str(path), named_levels=named_levels)


def load_run_yaml(path: Path, used_keys: Collection[str]) -> Any:
    """Read ``config.yml`` or ``args.yml`` of a run, as rl_zoo3 writes them.

    Knows beside plain YAML the tags of an ``OrderedDict``, which becomes a dict, of a tuple, of torch's activation
    functions, and of SB3's schedules, which become dicts of their numbers. A class that is named as a wrapper becomes
    its dotted name. Nothing is imported.

    :param used_keys: the settings that are read; in the others, an object that Python wrote becomes the text of its tag
    :raises ValueError: as :func:`load_yaml`
    """
    return parse_yaml(_read(path), str(path), named_levels=1, used_keys=used_keys)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ValueError(f"{path} cannot be read: {error}") from error


def parse_yaml(data: bytes, name: str, *, named_levels: int = 3, used_keys: Collection[str] | None = None) -> Any:
    """As :func:`load_yaml` and, with ``used_keys``, :func:`load_run_yaml`, of a file's content.

    :param name: of the file, for messages
    :raises ValueError: as :func:`load_yaml`
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"{name} must have at most {MAX_BYTES:,} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} must be UTF-8 text; byte {error.start} is none") from None
    root = _compose(text, name)
    return None if root is None else _Builder(name, named_levels, used_keys).build(root, 1)


def _compose(text: str, name: str) -> yaml.Node | None:
    """The nodes of the only document; None where there is none."""
    import yaml

    try:
        return _loader()(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{name} is not YAML: {line}{error.problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: of a character such as "\UFFFFFFFF"
        raise ValueError(f"{name} is not YAML: {' '.join(str(error).split())}") from None


@functools.cache
def _loader() -> Callable[[str], Any]:
    import yaml

    class ShallowLoader(yaml.SafeLoader):
        """Composes nodes down to ``MAX_DEPTH`` levels, as PyYAML recurses and Python's stack ends, and few enough."""

        depth = nodes = 0

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            self.depth += 1
            self.nodes += 1
            if self.depth > MAX_DEPTH or self.nodes > MAX_NODES:
                limit = f"{MAX_DEPTH} levels" if self.depth > MAX_DEPTH else f"{MAX_NODES:,} values"
                mark = self.peek_event().start_mark
                raise yaml.MarkedYAMLError(problem=f"it must have at most {limit}", problem_mark=mark)
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    return ShallowLoader


class _Builder:
    """Builds objects from nodes.

    :param name: of the file, for messages
    :param named_levels: how many levels of mappings must have strings as keys
    :param used_keys: of a run, whose tags are known then: the settings at the top that are read; None: of no run
    """

    def __init__(self, name: str, named_levels: int, used_keys: Collection[str] | None):
        import yaml

        self.name = name
        self.named_levels = named_levels
        self.used_keys = used_keys
        self.is_unused = False  # what is being built
        self.nodes = 0
        scalars = yaml.constructor.SafeConstructor()
        self.readers: dict[tuple[str, str], Callable[[Any, int], Any]] = {
            ("sequence", f"{YAML_TAG}seq"): self._items,
            ("mapping", f"{YAML_TAG}map"): self._mapping,
            **{
                ("scalar", YAML_TAG + kind): functools.partial(self._scalar, getattr(scalars, f"construct_yaml_{kind}"))
                for kind in SCALARS
            },
        }
        if used_keys is not None:
            python = f"{YAML_TAG}python/"
            self.readers["sequence", f"{python}tuple"] = lambda node, depth: tuple(self._items(node, depth))
            self.readers["sequence", f"{python}object/apply:collections.OrderedDict"] = self._ordered
            for schedule in SCHEDULES:  # as the mapping of its attributes: who loads an agent does not use it
                self.readers["mapping", f"{python}object:stable_baselines3.common.utils.{schedule}"] = self._mapping
            for name_, activation in activations().items():
                reader = functools.partial(lambda found, *_: found, activation)
                self.readers["scalar", f"{python}name:{ACTIVATIONS_MODULE}.{name_}"] = reader

    def error(self, node: yaml.Node, problem: str) -> ValueError:
        return ValueError(f"{self.name}, line {node.start_mark.line + 1}: {problem}")

    def build(self, node: Any, depth: int) -> Any:
        """The object that a node stands for.

        :param depth: its level, the top being 1
        """
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.error(node, f"the file must have at most {MAX_NODES:,} values with its aliases written out")
        if depth > MAX_DEPTH:
            raise self.error(node, f"the file must have at most {MAX_DEPTH} levels with its aliases written out")
        reader = self.readers.get((node.id, node.tag))
        if reader is not None:
            return reader(node, depth)
        if self.is_unused and node.tag.startswith(DUMPED_TAGS):
            return f"!!{node.tag.removeprefix(YAML_TAG)}"
        raise self.error(node, self._refusal(node))

    def _value(self, key: Any, node: Any, level: int, depth: int) -> Any:
        """What a key of a mapping stands for.

        :param level: of the mapping
        :param depth: of the node
        """
        if self.used_keys is None or level > 1:
            return self.build(node, depth)
        self.is_unused = key not in self.used_keys
        try:
            return self.build(_with_names(node) if key in WRAPPER_KEYS else node, depth)
        finally:
            self.is_unused = False

    @staticmethod
    def _refusal(node: Any) -> str:
        kind = node.tag.removeprefix(YAML_TAG)
        if node.id == "scalar" and kind in ("timestamp", "value", "merge"):
            return f"{node.value!r} means more than its text to YAML, and must be in quotes to be a string"
        tag = f"!!{kind}" if kind != node.tag else node.tag
        tag = tag if len(tag) <= MAX_SHOWN else f"{tag[:MAX_SHOWN]}..."
        return (
            f"the tag {tag} is refused, as a file is data and runs no code: "
            f"write a number, string, list or mapping (allowed tags: {ALLOWED_TAGS})"
        )

    def _scalar(self, read: Callable[[Any], Any], node: Any, _depth: int) -> Any:
        kind = node.tag.removeprefix(YAML_TAG)
        try:
            if kind in ("int", "float") and len(node.value) > MAX_NUMBER_LENGTH:
                raise ValueError
            node.value.encode("utf-8")  # "\ud800" is half a character, which cannot be printed
            return read(node)
        except (ValueError, KeyError, IndexError, OverflowError):
            raise self.error(node, f"{_shortened(node.value)} cannot be read as !!{kind}") from None

    def _items(self, node: Any, depth: int) -> list[Any]:
        return [self.build(item, depth + 1) for item in node.value]

    def _mapping(self, node: Any, depth: int) -> dict[Any, Any]:
        merged: dict[Any, Any] = {}
        own: dict[Any, Any] = {}
        has_merged = False
        for key_node, value_node in node.value:
            if key_node.tag == f"{YAML_TAG}merge":
                if has_merged:
                    raise self.error(key_node, "the key '<<' is given twice; one `<<: [*first, *second]` merges both")
                has_merged = True
                merged = self._merged(value_node, depth)
                continue
            key = self._key(key_node, depth)
            if key in own:
                raise self.error(key_node, f"the key {key!r} is given twice in one mapping; only one can hold")
            own[key] = self._value(key, value_node, depth, depth + 1)
        return {**merged, **own}

    def _merged(self, node: Any, depth: int) -> dict[Any, Any]:
        """What ``<<`` stands for: a mapping, or a list of mappings of which the first wins."""
        value = self.build(node, depth)
        mappings = value if isinstance(value, list) else [value]
        if not all(isinstance(mapping, dict) for mapping in mappings):
            raise self.error(node, "'<<' must be an alias of a mapping, or a list of such")
        return {key: item for mapping in reversed(mappings) for key, item in mapping.items()}

    def _key(self, node: Any, depth: int) -> Hashable:
        key = self.build(node, depth + 1)
        if isinstance(key, str):
            return key
        if depth <= self.named_levels or isinstance(key, (list, dict, tuple)):
            raise self.error(node, f"a key must be a string, in quotes where YAML reads another kind; got {shown(key)}")
        return key

    def _ordered(self, node: Any, depth: int) -> dict[Any, Any]:
        """``!!python/object/apply:collections.OrderedDict`` of one argument, the list of its pairs."""
        pairs: list[Any] = node.value[0].value if len(node.value) == 1 and _is_list(node.value[0]) else [None]
        if not all(_is_list(pair) and len(pair.value) == 2 for pair in pairs):
            raise self.error(node, "an OrderedDict must be written as a list of one list of pairs")
        ordered: dict[str, Any] = {}
        for key_node, value_node in (pair.value for pair in pairs):
            key = self.build(key_node, depth + 3)
            if not isinstance(key, str):
                raise self.error(key_node, "an OrderedDict must have strings as keys")
            if key in ordered:
                raise self.error(key_node, f"the key {key!r} is given twice")
            ordered[key] = self._value(key, value_node, depth, depth + 3)
        return ordered


def _is_list(node: Any) -> bool:
    return node is not None and (node.id, node.tag) == ("sequence", f"{YAML_TAG}seq")


def _with_names(node: Any) -> Any:
    """The node of a wrapper or a list of them, in which each class is the string of its dotted name."""
    if not _is_list(node):
        return _with_name(node)
    return type(node)(node.tag, [_with_name(item) for item in node.value], node.start_mark)


def _with_name(node: Any) -> Any:
    if node.id == "mapping":
        return type(node)(node.tag, [(_as_name(key), value) for key, value in node.value], node.start_mark)
    return _as_name(node)


def _as_name(node: Any) -> Any:
    if node.id != "scalar" or node.value or not node.tag.startswith(NAME_TAG):
        return node
    return type(node)(f"{YAML_TAG}str", node.tag.removeprefix(NAME_TAG), node.start_mark)


def _refuse_twice(keys: Iterable[Any], error: Callable[[Any], ValueError]) -> None:
    seen = set()
    for key in keys:
        if key in seen:
            raise error(key)
        seen.add(key)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


@functools.cache
def activations() -> dict[str, type]:
    """Torch's activation functions by name, such as ``Tanh``."""
    from torch.nn.modules import activation

    return {name: getattr(activation, name) for name in activation.__all__}


# ------------------------------------------------------------------ expressions


def read_expression(name: str, text: str) -> Any:
    """Read a string that rl_zoo3 would evaluate, such as ``dict(net_arch=[64], activation_fn=nn.Tanh)``.

    Only ``EXPRESSION_FORMS`` and the classes that rl_zoo3's own settings name are known.

    :param name: of the setting, for messages
    :raises ValueError: for every other expression; names the setting and the forms
    """
    try:
        if len(text) > MAX_EXPRESSION_LENGTH:
            raise ValueError
        return _evaluate(ast.parse(text.strip(), mode="eval").body, 1)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise ValueError(
            f"{name} must be a mapping such as {{key: value}}, or text of {EXPRESSION_FORMS} only, which is read and "
            f"never run; got {_shortened(text)}"
        ) from None


def _evaluate(node: ast.expr, depth: int) -> Any:
    """The value of a node of the syntax tree.

    :raises ValueError: for a node that stands for anything but data
    :raises TypeError: for a key that is a list or a dict
    """
    reader = _EXPRESSIONS.get(type(node))
    if reader is None or depth > MAX_DEPTH:
        raise ValueError
    return reader(node, depth + 1)


def _evaluate_constant(node: Any, _depth: int) -> Any:
    if not isinstance(node.value, (str, int, float, bool, type(None))):  # no bytes, complex numbers or `...`
        raise ValueError
    if isinstance(node.value, int) and node.value >= 10**MAX_NUMBER_LENGTH:
        raise ValueError
    return node.value


def _evaluate_sign(node: Any, depth: int) -> Any:
    number = _evaluate(node.operand, depth)
    if type(number) not in (int, float) or not isinstance(node.op, (ast.USub, ast.UAdd)):
        raise ValueError
    return -number if isinstance(node.op, ast.USub) else number


def _evaluate_dict(node: Any, depth: int) -> dict[Any, Any]:
    keys = [_evaluate(key, depth) for key in node.keys]  # the key of `**other` is None, which no reader knows
    _refuse_twice(keys, lambda key: ValueError(key))
    return {key: _evaluate(value, depth) for key, value in zip(keys, node.values, strict=True)}


def _evaluate_call(node: Any, depth: int) -> dict[str, Any]:
    names = [keyword.arg for keyword in node.keywords]
    if not (isinstance(node.func, ast.Name) and node.func.id == "dict") or node.args or None in names:
        raise ValueError
    _refuse_twice(names, lambda key: ValueError(key))
    return {keyword.arg: _evaluate(keyword.value, depth) for keyword in node.keywords}


def _evaluate_attribute(node: Any, _depth: int) -> type:
    if not (isinstance(node.value, ast.Name) and node.value.id == "nn") or node.attr not in activations():
        raise ValueError
    return activations()[node.attr]


def _evaluate_name(node: Any, _depth: int) -> type:
    from stable_baselines3 import HerReplayBuffer
    from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

    classes = {"HerReplayBuffer": HerReplayBuffer, "RMSpropTFLike": RMSpropTFLike}
    if node.id not in classes:
        raise ValueError
    return classes[node.id]


_EXPRESSIONS: dict[type[ast.expr], Callable[[Any, int], Any]] = {
    ast.Constant: _evaluate_constant,
    ast.UnaryOp: _evaluate_sign,
    ast.List: lambda node, depth: [_evaluate(item, depth) for item in node.elts],
    ast.Tuple: lambda node, depth: tuple(_evaluate(item, depth) for item in node.elts),
    ast.Dict: _evaluate_dict,
    ast.Call: _evaluate_call,
    ast.Attribute: _evaluate_attribute,
    ast.Name: _evaluate_name,
}
