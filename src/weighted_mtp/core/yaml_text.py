"""YAML that someone else wrote, as strictly as JSON is read (core/input_files.py)."""

from __future__ import annotations

import re
from typing import Any

import yaml

from weighted_mtp.core.errors import one_line
from weighted_mtp.core.input_files import InvalidTextError, decoded

_MAX_DEPTH = 50
_MAX_NODES = 100_000
"""Of a document once its aliases are written out."""
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool")}
_TAGS |= {"tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"}


class _StrictLoader(yaml.SafeLoader):
    """YAML of mappings with unique text keys, lists, text, numbers, true, false and null."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # PyYAML's name
        if self.flow_level >= _MAX_DEPTH:  # the scanner takes quadratic time
            raise InvalidTextError("lists and mappings are nested too deeply")
        super().fetch_flow_collection_start(TokenClass)

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _expanded_size(node, {})
        return node


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
"""Dates stay text: nothing here takes a date, and directories have such names."""
_StrictLoader.add_implicit_resolver(  # YAML 1.1 takes 1e-3 for text
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+"),
    list("-+.0123456789"),
)


def _expanded_size(node: Any, sizes: dict[int, int | None]) -> int:
    """Count the nodes of a document whose aliases are written out; refuse what is not plain."""
    known = sizes.get(id(node), -1)
    if known is None:
        raise InvalidTextError(f"{_line(node)}: an alias contains itself")
    if known > 0:
        return known
    if node.tag not in _TAGS:
        shown = node.tag.removeprefix("tag:yaml.org,2002:")
        raise InvalidTextError(f"{_line(node)}: the tag {shown:.60} is not supported; remove it")
    sizes[id(node)] = None
    size = 1
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        size += sum(
            _expanded_size(key, sizes) + _expanded_size(value, sizes) for key, value in node.value
        )
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_expanded_size(value, sizes) for value in node.value)
    if size > _MAX_NODES:
        raise InvalidTextError(
            f"{_line(node)}: more than {_MAX_NODES:,} values once the aliases are written out"
        )
    sizes[id(node)] = size
    return size


def _check_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag not in (
            "tag:yaml.org,2002:str",
            "tag:yaml.org,2002:merge",
        ):
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise InvalidTextError(f"{_line(key)}: the key {shown:.60} is not text; quote it")
        if key.value in seen:
            raise InvalidTextError(f"{_line(key)}: the key {key.value!r:.60} is given twice")
        seen.add(key.value)


def _line(node: Any) -> str:
    return f"line {node.start_mark.line + 1}"


def parse_yaml(text: str | bytes) -> Any:
    """Parse one YAML document.

    Raises:
        InvalidTextError: not YAML, a key given twice or not text, a tag, an alias that contains
            itself or grows beyond measure, a number that cannot be read, nesting too deep.
    """
    try:
        return yaml.load(decoded(text), Loader=_StrictLoader)  # a SafeLoader
    except RecursionError as error:
        raise InvalidTextError("lists and mappings are nested too deeply") from error
    except InvalidTextError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, AttributeError) as error:
        raise InvalidTextError(one_line(error, 200)) from error
