"""YAML as people mean it: `1e-4` is a number, and a key given twice is an error, not a silent choice of the last.

A recipe may come from a stranger: plain values only, and no text that is small in the file and without end in memory.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

DEEPEST = 20  # sections within sections; a recipe needs three
MOST_VALUES = 100_000  # with every alias written out


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._values: dict[yaml.Node, int] = {}  # of each finished node, with all that it holds

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark, is_alias = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"it nests more than {DEEPEST} levels deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if is_alias and node not in self._values:
            raise yaml.composer.ComposerError(None, None, "an alias stands inside of what it names", mark)
        self._values[node] = 1 + sum(self._values[child] for child in _children(node))
        if self._values[node] > MOST_VALUES:
            what = f"with its aliases written out it holds more than {MOST_VALUES:,} values"
            raise yaml.composer.ComposerError(None, None, what, mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):  # `!!map [x]`
            what = f"expected a mapping node, but found {node.id}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError, LookupError, AttributeError):  # month 13, 5,000 digits, `!!bool x`
            raise yaml.constructor.ConstructorError(None, None, "no such value", node.start_mark) from None


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


# YAML 1.1, which PyYAML reads, asks for a dot in a number with an exponent; YAML 1.2 does not.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse(text: str) -> Any:
    """The value that a YAML text holds. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)  # a subclass of SafeLoader: plain values only
