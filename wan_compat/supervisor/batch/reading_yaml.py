"""Reads a batch in YAML: plain values only, with the line of each item, and anchors that cannot grow without bound.

The events of the parser are counted before anything is built of them: depth, number, aliases. What is built after that
is walked with a second count, of values as they are used: an anchor that is used a thousand times counts so often.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from wan_compat.policies.batch.items import MAX_FIELDS
from wan_compat.protocol.errors import clean_text

if TYPE_CHECKING:
    from wan_compat.supervisor.batch.reading import _Found

# libyaml's, where PyYAML was built with it: ten times as fast. Both make plain values only.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_DEPTH = 8
MAX_EVENTS = 400_000
MAX_ALIASES = 1000
MAX_VALUES = 400_000

_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null")}
# What only looks like a date, or like YAML's own signs, is text to us.
_TEXTS = {f"tag:yaml.org,2002:{name}" for name in ("timestamp", "merge", "value")}
_MERGE = "tag:yaml.org,2002:merge"


class _Wrong(Exception):
    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line, self.why = line, why


def read_yaml(text: str, found: _Found) -> None:
    """Take the items of a YAML document."""
    from wan_compat.supervisor.batch.reading import take_defaults

    try:
        _count(text)
        loader = _LOADER(text)
        try:
            root = loader.get_single_node()
            walk = _Walk(loader)
            if root is None:
                return
            items = root
            if isinstance(root, yaml.MappingNode):
                parts = dict(walk.pairs(root))
                for name, (line, _) in parts.items():
                    if name not in ("defaults", "items"):
                        found.wrong(line, "is unknown here; a batch has `defaults:` and `items:`", clean_text(name, 60))
                if "defaults" in parts:
                    line, node = parts["defaults"]
                    take_defaults(found, line, walk.value(node))
                if "items" not in parts:
                    found.wrong(_line(root), "is missing", "items")
                    return
                items = parts["items"][1]
            if not isinstance(items, yaml.SequenceNode):
                raise _Wrong(_line(items), "must be a list of items")
            for node in items.value:
                if found.full:
                    return
                _take(node, walk, found)
        finally:
            loader.dispose()
    except _Wrong as wrong:
        found.wrong(wrong.line, wrong.why)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = clean_text(error.problem or str(error), 200)
        found.wrong(mark.line + 1 if mark is not None else 0, f"is not valid YAML: {why}")
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a number of too many digits
        found.wrong(0, f"is not valid YAML: {clean_text(str(error), 200)}")


def _take(node: Any, walk: _Walk, found: _Found) -> None:
    line = _line(node)
    try:
        value = walk.value(node)
    except _Wrong as wrong:
        found.wrong(wrong.line, wrong.why)
        return
    if isinstance(value, str):
        found.add(line, {"prompt": value})
    elif isinstance(value, dict):
        found.add(line, value)
    else:
        found.wrong(line, "must be a prompt, or an object of fields")


def _count(text: str) -> None:
    """Refuse what would become too much, before it does."""
    depth = aliases = 0
    for number, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
        if depth > MAX_DEPTH or aliases > MAX_ALIASES or number > MAX_EVENTS:
            what = "values in each other" if depth > MAX_DEPTH else "aliases" if aliases > MAX_ALIASES else "values"
            line = event.start_mark.line + 1 if event.start_mark is not None else 0
            raise _Wrong(line, f"has more {what} than a batch needs")


class _Walk:
    """Turns nodes into plain values, and counts them."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._values = 0

    def value(self, node: Any, depth: int = 0) -> Any:
        self._values += 1
        if depth > MAX_DEPTH or self._values > MAX_VALUES:  # an anchor within itself is deeper than any
            raise _Wrong(_line(node), "uses its anchors too often")
        if isinstance(node, yaml.ScalarNode):
            if node.tag in _PLAIN:
                return self._loader.construct_object(node)
            if node.tag in _TEXTS:
                return node.value
            raise _Wrong(_line(node), f"has the tag {clean_text(node.tag, 60)}; plain values are known")
        if isinstance(node, yaml.SequenceNode):
            if len(node.value) > 10_000:
                raise _Wrong(_line(node), "has a list of more than 10000 values")
            return [self.value(each, depth + 1) for each in node.value]
        return {name: self.value(each, depth + 1) for name, (_, each) in self.pairs(node).items()}

    def pairs(self, node: Any, depth: int = 0) -> dict[str, tuple[int, Any]]:
        """Return name -> (line, node) of a mapping, what is merged in with `<<` under what is said itself."""
        if not isinstance(node, yaml.MappingNode) or len(node.value) > MAX_FIELDS or depth > MAX_DEPTH:
            raise _Wrong(_line(node), f"must be an object of at most {MAX_FIELDS} fields")
        merged: dict[str, tuple[int, Any]] = {}
        own: dict[str, tuple[int, Any]] = {}
        for key, value in node.value:
            self._values += 1
            if self._values > MAX_VALUES:
                raise _Wrong(_line(key), "uses its anchors too often")
            if not isinstance(key, yaml.ScalarNode):
                raise _Wrong(_line(key), "has a name that is no text")
            if key.tag == _MERGE:
                for each in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    merged = self.pairs(each, depth + 1) | merged
            elif key.value in own:
                raise _Wrong(_line(key), f"has {clean_text(key.value, 60)!r} twice")
            else:
                own[key.value] = (_line(key), value)
        return merged | own


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1
