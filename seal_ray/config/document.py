"""YAML that remembers its lines, so that a complaint about a value can name the place it came from.

A path is the tuple of keys and list positions that leads to a value. A place is `file:line`, or the
`--set path=value` that gave the value. Only plain YAML 1.2 is read: text, numbers, booleans, nulls, lists and
mappings with text keys. Anchors, aliases and merge keys work; tags do not, and dates are text.
"""

from __future__ import annotations

import difflib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.representer import SafeRepresenter

from seal_ray.errors import ConfigError
from seal_ray.storage.paths import AnyPath, storage_path

Keys = tuple[str | int, ...]

TAG = "tag:yaml.org,2002:"
SURROGATE = re.compile(r"[\ud800-\udfff]")
UNQUOTABLE = re.compile(r"^[?:]|\x85")
"""Text that the library writes without quotes and then does not read back."""
MAX_VALUES = 10_000
"""Values in one file, aliases expanded: far above any use, far below what exhausts memory."""


@dataclass(frozen=True)
class Document:
    """What was read from YAML, and the place of every path in it, in the order of the file."""

    value: Any  # a mapping, in a whole file
    places: Mapping[Keys, str]

    def given(self, path: Keys) -> Keys:
        """The longest beginning of `path` that was written somewhere."""
        return next(path[:n] for n in range(len(path), -1, -1) if path[:n] in self.places)


def read(path: str | AnyPath) -> Document:
    """The mapping in a YAML file. ConfigError when the file cannot be read or is not a plain mapping."""
    reader = _Reader(str(path), numbered=True)
    value = reader.read(_text(path))
    if not isinstance(value, dict):
        what = "is empty" if value is None else f"holds a {type(value).__name__}"
        raise ConfigError(f"{path}:1: {what}; write a mapping of fields, one `name: value` a line")
    return Document(value, reader.places)


TAKEN_BY = {
    "evaluation": "seal-ray transfer|fewshot SWEEP.yaml --evaluation",
    "sweep": "seal-ray sweep",
    "run": "seal-ray train",
}
"""What takes a file of each kind; `validate` takes all."""


OF_SWEEPS = (
    *("axes", "search", "mode", "samples", "sample_seed", "exclude", "seeds", "baseline"),
    *("after_generations", "early_stopping"),
)
"""Fields that a sweep has and a run has not."""
MEANT = ("axis", "grid", "matrix", "parameters", "space", "sweep", "values")
"""What other tools call axes."""


def check_kind(document: Document, path: str | AnyPath, wanted: str) -> None:
    """ConfigError for a file that is clearly of another kind: says of which, and what takes it.

    And for a run's file over a base that has what else only sweeps have: says what it would need to be one.
    """
    marks = {"evaluation": "kind", "sweep": "axes", "run": "recipe"}
    found = next((kind for kind, key in marks.items() if key in document.value), wanted)
    if found == "run" and "base" in document.value:
        for key in document.value:
            if key in OF_SWEEPS:
                what = "is a field of sweeps, which need `axes` as well"
            elif difflib.get_close_matches(key.lower(), [*MEANT, "axes", "search"], n=1, cutoff=0.75):
                what = "is no field of a run; those of a sweep are called `axes`"
            else:
                continue
            form = "axes: {method: [normal, seal]}"
            remedy = f"for a sweep over this base write `{form}`, for a run over it remove {key}"
            raise ConfigError(f"{document.places[(key,)]}: {key}: {what}; {remedy}")
    if found != wanted:
        has = f"has {marks[found]}" if wanted == "run" else f"has no {marks[wanted]} but {marks[found]}"
        place = document.places[(marks[found],)]
        what = f"{'an' if found == 'evaluation' else 'a'} {found}, not a {wanted}"
        raise ConfigError(f"{place}: {has}, so it is {what}; run `{TAKEN_BY[found]} {path}`")


class _Representer(SafeRepresenter):
    def represent_str(self, data: str) -> Any:
        """Text in quotes also where the library leaves them out and cannot read it back, as `?0`."""
        return self.represent_scalar(f"{TAG}str", data, style='"' if UNQUOTABLE.search(data) else None)


_Representer.add_representer(str, _Representer.represent_str)


def dump(value: object) -> str:
    """Plain data as YAML 1.2 that `read` reads back: inner lists and mappings on one line, keys in order."""
    yaml, text = YAML(typ="safe", pure=True), io.StringIO()
    yaml.width, yaml.Representer = 110, _Representer
    yaml.representer.default_flow_style = None
    yaml.representer.sort_base_mapping_type_on_output = False
    yaml.dump(value, text)
    return text.getvalue()


def stored_in(storage: str | None) -> list[str]:
    """The assignments that put runs into another storage; none for None."""
    return [] if storage is None else [f"placement.storage={json.dumps(storage)}"]


def override(document: Document, assignments: Sequence[str]) -> Document:
    """The document after each `path.to.field=VALUE`, in order; VALUE is YAML.

    What the path held is replaced, its neighbours stay. A bare name on the way stands for {name: it}.
    ConfigError lists every assignment that is not of that form.
    """
    problems = []
    for assignment in assignments:
        try:
            document = _assign(document, assignment)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return document


def put(document: Document, path: Keys, source: Document, held: Keys) -> Document:
    """The document with what `source` has at `held` as its value at `path`, places and all."""
    value = _replaced(document.value, path, at(source.value, held))
    places = {old: place for old, place in document.places.items() if old[: len(path)] != path}
    for n in range(1, len(path)):
        if not isinstance(at(document.value, path[:n]), dict):
            places[path[:n]] = source.places[held]
    moved = {
        path + inner[len(held) :]: place
        for inner, place in source.places.items()
        if inner[: len(held)] == held
    }
    return Document(value, places | moved)


def put_over(base: Document, over: Document, held: Keys, path: Keys | None = None) -> Document:
    """`base` with what `over` has at `held` at `path`, field by field; a choice that is named as a whole."""
    path = path or held
    ours, theirs = at(base.value, path), at(over.value, held)
    named = path in {("recipe", "method"), ("recipe", "optimizer"), ("recipe", "loss")}
    if not isinstance(theirs, dict) or ("name" in theirs if named else not isinstance(ours, dict)):
        return put(base, path, over, held)
    for key in theirs:
        base = put_over(base, over, (*held, key), (*path, key))
    return base


def dotted(path: Keys) -> str:
    """The path as people write it, odd keys quoted."""
    return ".".join(str(key) if re.fullmatch(r"[\w-]{1,40}", str(key)) else repr(key)[:40] for key in path)


def _assign(document: Document, assignment: str) -> Document:
    source = f"--set {assignment}"
    keys, _, text = assignment.partition("=")
    most = 1 if keys.strip().startswith("axes.") else -1  # an axis is called as the field, dots and all
    path: Keys = tuple(keys.strip().split(".", most))
    if not text.strip() or "" in path:
        raise ConfigError(f"{source}: is not path.to.field=VALUE, such as recipe.budget.epochs=12")
    reader = _Reader(source, numbered=False)
    return put(document, path, Document(reader.read(text), reader.places), ())


def _replaced(held: object, path: Keys, value: object) -> Any:
    """`held` with `value` at `path`, mappings made on the way where there are none."""
    if not path:
        return value
    mapping = held if isinstance(held, dict) else {"name": held} if isinstance(held, str) else {}
    return mapping | {path[0]: _replaced(mapping.get(path[0]), path[1:], value)}


def at(value: Any, path: Keys) -> Any:
    """What `path` leads to; None when it leads nowhere."""
    key: Any
    for key in path:
        if isinstance(value, dict):
            value = value.get(key)
        else:
            value = value[key] if isinstance(value, list) and isinstance(key, int) else None
    return value


def _text(path: str | AnyPath) -> str:
    """The text of a UTF-8 file."""
    try:
        data = storage_path(path).read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; give the path of a YAML file in it") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text; save the file as UTF-8") from None


class _Reader:
    """Turns one YAML text into a plain value, noting the place of every path and every problem."""

    def __init__(self, source: str, *, numbered: bool) -> None:
        self.source = source
        self.numbered = numbered
        self.places: dict[Keys, str] = {}
        self.problems: list[tuple[int, str]] = []  # with their lines
        self.visits = 0
        self.yaml = YAML(typ="safe", pure=True)
        self.yaml.composer.warn_double_anchors = False

    def read(self, text: str) -> Any:
        """The value of `text`. ConfigError lists every problem when it has none."""
        try:
            node = self.yaml.compose(text)
            value = None if node is None else self.value(node, ())
        except MarkedYAMLError as error:
            raise ConfigError(self.syntax(error)) from None
        except ReaderError as error:
            line = text.count("\n", 0, error.position)
            raise ConfigError(f"{self.line(line)}: holds U+{error.character:04X}; remove it") from None
        except RecursionError:
            raise ConfigError(f"{self.source}: is nested too deeply, or an alias holds itself") from None
        except (ValueError, OverflowError) as error:  # an escape such as "\UFFFFFFFF"
            raise ConfigError(f"{self.source}: is not valid YAML: {error}") from None
        if self.problems:
            raise ConfigError("\n".join(text for _, text in sorted(self.problems)))
        return value

    def line(self, line: int) -> str:
        """The place of a 0-based line."""
        return f"{self.source}:{line + 1}" if self.numbered else self.source

    def syntax(self, error: MarkedYAMLError) -> str:
        """What is wrong with text that is not YAML, and where."""
        mark = error.problem_mark or error.context_mark
        place = self.source if mark is None else self.line(mark.line)
        column = f":{mark.column + 1}" if mark and self.numbered else ""
        tab = "'\\t'" in str(error.problem)
        remedy = "use spaces, not tabs" if tab else "check indentation, colons, brackets and quotes"
        return f"{place}{column}: is not valid YAML: {error.problem or error.context}; {remedy}"

    def problem(self, node: Node, path: Keys, text: str) -> None:
        """Note what is wrong with a node."""
        line = node.start_mark.line
        self.problems.append((line, f"{self.line(line)}: {dotted(path)}: {text}"))

    def value(self, node: Node, path: Keys) -> Any:
        """The value of a node."""
        self.places.setdefault(path, self.line(node.start_mark.line))
        if isinstance(node, ScalarNode):
            self.count()
            return self.scalar(node, path)
        if node.tag not in (f"{TAG}map", f"{TAG}seq"):
            self.problem(node, path, f"the tag {node.tag!r} is not allowed; write plain YAML")
        if isinstance(node, SequenceNode):
            self.count()
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        values = {}
        assert isinstance(node, MappingNode)
        for name, (key, value) in self.fields(node, path).items():
            self.places[*path, name] = self.line(key.start_mark.line)
            values[name] = self.value(value, (*path, name))
        return values

    def count(self) -> None:
        """Count a value, each time that an alias repeats it."""
        self.visits += 1
        if self.visits > MAX_VALUES:
            raise ConfigError(f"{self.source}: holds more than {MAX_VALUES} values; use fewer aliases")

    def scalar(self, node: ScalarNode, path: Keys) -> Any:
        """Text, unless it is plain and reads as a number, a boolean or null."""
        plain = self.yaml.resolver.resolve(ScalarNode, node.value, (True, False))
        tag = str(node.tag).removeprefix(TAG)
        if node.tag not in (str(plain), f"{TAG}str"):
            self.problem(node, path, f"the tag {node.tag!r} is not allowed; write plain YAML")
        elif tag in ("null", "bool", "int", "float"):
            try:
                return getattr(self.yaml.constructor, f"construct_yaml_{tag}")(node)
            except ValueError:
                self.problem(node, path, f"{node.value[:40]!r} is not a number; quote it if it is text")
        elif SURROGATE.search(node.value):
            self.problem(node, path, f"{node.value[:40]!r} is not Unicode text")
        else:
            return node.value
        return None

    def fields(self, node: MappingNode, path: Keys) -> dict[str, tuple[Node, Node]]:
        """Key and value of the fields of a mapping: those it merges, earlier ones first, then its own."""
        self.count()
        merged: dict[str, tuple[Node, Node]] = {}
        own: dict[str, tuple[Node, Node]] = {}
        for key, value in node.value:
            if key.tag == f"{TAG}merge":
                for source in value.value if isinstance(value, SequenceNode) else [value]:
                    if isinstance(source, MappingNode):
                        merged = self.fields(source, path) | merged
                    else:
                        self.problem(source, path, "<< takes a mapping, or a list of mappings")
            elif key.tag != f"{TAG}str" or SURROGATE.search(key.value):
                name = f", not {key.value[:40]}" if isinstance(key, ScalarNode) else ""
                self.problem(key, path, f"a field name must be text{name}; quote it")
            elif key.value in own:
                first = own[key.value][0].start_mark.line + 1
                self.problem(key, (*path, key.value), f"is given twice, first on line {first}; keep one")
            else:
                own[key.value] = (key, value)
        return merged | own
