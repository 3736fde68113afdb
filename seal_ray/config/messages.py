"""Checking plain values against pydantic models, and saying in a user's words what is wrong with them.

Numbers are strict: text or a boolean is no number, 3.5 is no whole one. Python callers get pydantic's own
ValidationError; `parse` turns it into a ConfigError that names the place of every problem.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic.fields import FieldInfo
from pydantic_core import (
    CoreSchema,
    ErrorDetails,
    InitErrorDetails,
    PydanticCustomError,
    PydanticKnownError,
    core_schema,
    to_json,
)

from seal_ray.config.document import Document, Keys, at, dotted
from seal_ray.errors import ConfigError
from seal_ray.storage.paths import storage_path, with_home

ModelClass = TypeVar("ModelClass", bound=BaseModel)

STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

SYNONYMS = {
    "amp": "precision",
    "architecture": "arch",
    "batch": "batch_size",
    "bs": "batch_size",
    "dataset": "data",
    "grad_clip": "clip_norm",
    "learning_rate": "lr",
    "network": "model",
    "num_workers": "workers",
    "warmup": "warmup_share",
    "wd": "weight_decay",
    "world_size": "workers",
}
"""What other tools call a field of ours."""

BOOLEANS = {"yes": True, "on": True, "no": False, "off": False}
"""Words that are text in YAML 1.2."""

KINDS = {
    "bool_type": "true or false",
    "dataclass_type": "a mapping",
    "dict_type": "a mapping of fields",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_type": "a mapping",
    "string_type": "text",
    "string_unicode": "text in UTF-8",
    "tuple_type": "a list",
}
"""What a value should have been, by pydantic's error for a value of the wrong kind."""

RANGES = {
    "finite_number": "a finite number",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_too_short": "not empty",
}
"""What a value should have been, by pydantic's error for one of the right kind but out of range."""


def parse(document: Document, model: type[ModelClass]) -> ModelClass:
    """The document as a `model`; ConfigError with a line `place: path: what is wrong` for each problem.

    Where a boolean is wanted, the words of YAML 1.1 for one are one.
    """
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        meant = _with_booleans(error, document)
        if meant is None:
            raise ConfigError("\n".join(_explain(error, model, document))) from None
    return parse(meant, model)


def _with_booleans(error: ValidationError, document: Document) -> Document | None:
    """The document with booleans in place of the words that an error is about, if it is about any."""
    value: Any = copy.deepcopy(document.value)
    paths = [_path(details, value) for details in error.errors() if details["type"] == "bool_type"]
    words = [path for path in paths if str(at(value, path)).lower() in BOOLEANS]
    for path in words:
        at(value, path[:-1])[path[-1]] = BOOLEANS[at(value, path).lower()]
    return dataclasses.replace(document, value=value) if words else None


def refuse(title: str, problems: Sequence[str]) -> None:
    """For validators: a ValidationError at the right fields if any `field.path: what is wrong` is given."""
    if not problems:
        return
    errors = []
    for problem in problems:
        field, _, text = problem.partition(": ")
        errors.append(InitErrorDetails(type=_custom(text), loc=tuple(field.split(".")), input=None))
    raise ValidationError.from_exception_data(title, errors)


def _custom(text: str) -> PydanticCustomError:
    return PydanticCustomError("config", "{text}", {"text": text})


def _as_json(value: object) -> bytes:
    return to_json(value, inf_nan_mode="constants", serialize_unknown=True)


def _config_error(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    try:
        return handler(value)
    except ConfigError as error:
        raise _custom(str(error).partition(": ")[2]) from None


AS_JSON = BeforeValidator(_as_json)
"""Before a `Json[dataclass]` field: lets a strict model read a dataclass from a mapping.

Strict Python input must be an instance of the dataclass, strict JSON may be an object; the numbers inside
are as strict either way.
"""

CONFIG_ERROR = WrapValidator(_config_error)
"""Around a field whose type raises ConfigError("field: what is wrong"): makes it an error of that field."""


def _as_path(text: str) -> str:
    try:
        storage_path(text)
        return with_home(text)
    except ConfigError as error:
        raise _custom(str(error)) from None


PATH = AfterValidator(_as_path)
"""Field metadata: a path, or s3://bucket/path, with the home folder in place of `~`."""


def name_in(options: Mapping[str, type]) -> AfterValidator:
    """Field metadata: the name of one of the options, which are asked for when a value is read."""

    def check(name: str) -> str:
        if name not in options:
            raise PydanticKnownError("literal_error", {"expected": _listed([repr(one) for one in options])})
        return name

    return AfterValidator(check)


@dataclasses.dataclass(frozen=True)
class Choice:
    """Field metadata: one of several frozen dataclasses or models, chosen by the field `key`.

    Read from an instance, a mapping {key: ..., its fields}, or a dataclass's bare name; written as the
    mapping. Which names there are is asked when a value is read. An instance may be of any subclass of the
    annotated type. default: the name where a mapping has none. refused: names that might be expected, and
    why they are none. An option that raises ConfigError is an error of `key`.
    """

    options: Mapping[str, type]
    key: str = "name"
    default: str | None = None
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def fields(self, value: object) -> dict[str, Any]:
        """The fields, with their types, of the mapping that `value` is or should be."""
        try:
            option = self.options.get(self.name(value) or self.default or "")
        except ConfigError:
            option = None
        return {self.key: str} | _fields(option)

    def owners(self, field: str) -> list[str]:
        """The names of the options that have `field`."""
        return [name for name, option in self.options.items() if field in _fields(option)]

    def name(self, value: object) -> str:
        """The name in a mapping, or a bare name; empty when there is none."""
        name = value.get(self.key, self.default) if isinstance(value, dict) else value
        return name if isinstance(name, str) else ""

    def __get_pydantic_core_schema__(self, source: type, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A validator that looks the option up, and the mapping as what is written."""
        if issubclass(source, BaseModel):
            return core_schema.no_info_plain_validator_function(self._read_model)

        def read(value: object) -> object:
            if isinstance(value, source):
                return _read(type(value), _dump(value))
            if self.default and not isinstance(value, dict | str):
                raise _wrong("model_type", value, class_name="")
            mapping = value if isinstance(value, dict) else {"name": value}
            if self.default:
                mapping = {"name": self.default, **mapping}
            return _read(self._option(mapping, value), mapping)

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(_dump)
        )

    def _read_model(self, value: object) -> object:
        if isinstance(value, BaseModel) and self.key in type(value).model_fields:
            return value
        if not isinstance(value, dict):
            raise _wrong("model_type", value, class_name="Choice")
        option = self._option(value, value)
        value = {key: one for key, one in value.items() if one is not None or not self._unset(key, option)}
        return option.model_validate_json(_as_json({self.key: self.default, **value}))  # type: ignore[attr-defined]

    def _unset(self, field: str, option: type) -> bool:
        """Whether a null is a field's of other options only: that is how one of a base is taken back."""
        return field not in _fields(option) and bool(self.owners(field))

    def _option(self, mapping: Mapping[str, object], value: object) -> type:
        """The class that a mapping names."""
        name = self.name(mapping)
        try:
            if name in self.options:
                return self.options[name]
        except ConfigError as error:
            raise _wrong(_custom(str(error)), value, self.key) from None
        if reason := self.refused.get(name.lower()):
            raise _wrong(_custom(f"{name}: {reason}"), value, self.key)
        if self.key in mapping:
            expected = _listed([repr(name) for name in self.options])
            raise _wrong("literal_error", value, self.key, expected=expected)
        raise _wrong("missing", value, self.key)


def _wrong(problem: str | PydanticCustomError, value: object, *path: str, **facts: str) -> ValidationError:
    details = InitErrorDetails(type=problem, loc=path, input=value, ctx=facts)
    return ValidationError.from_exception_data("Choice", [details])


def _read(kind: type, mapping: Mapping[str, object]) -> object:
    """An instance of a dataclass from the fields of a mapping, as strict as a model; see AS_JSON."""
    name = str(mapping["name"])
    fields = {key: held for key, held in mapping.items() if key != "name"}
    return _reader(kind).validate_json(_as_json({name: fields}))[name]


@functools.cache
def _reader(kind: Any) -> TypeAdapter[dict[str, Any]]:
    """Reads {name: fields of a dataclass}; a dataclass alone cannot be given the configuration."""
    return TypeAdapter(dict[str, kind], config=STRICT)


def _dump(value: Any) -> dict[str, object]:
    return {"name": value.name, **dataclasses.asdict(value)}


def _fields(kind: Any, value: object = None) -> dict[str, Any]:
    """The fields, with their types, of the mapping `kind` can be read from; none if it is no such type."""
    if choice := _choice(kind):
        return choice.fields(value)
    if isinstance(kind, FieldInfo):
        return _fields(kind.annotation)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return dict(kind.model_fields)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return {name: field for argument in get_args(kind) for name, field in _fields(argument).items()}


def _element(kind: Any, index: int) -> Any:
    """The type of an element of a list."""
    types = get_args(kind.annotation if isinstance(kind, FieldInfo) else kind)
    return types[min(index, len(types) - 1 - (types[-1:] == (...,)))] if types else None


def _choice(kind: Any) -> Choice | None:
    metadata = kind.metadata if isinstance(kind, FieldInfo) else getattr(kind, "__metadata__", ())
    return next((item for item in metadata if isinstance(item, Choice)), None)


def _paths(kind: Any, value: object, path: Keys = ()) -> Iterator[Keys]:
    """Every path there is below `kind`; of a choice, those of the option that `value` picks."""
    for name, field in _fields(kind, value).items():
        yield (*path, name)
        yield from _paths(field, value.get(name) if isinstance(value, dict) else None, (*path, name))


def _explain(error: ValidationError, model: type[BaseModel], document: Document) -> Iterator[str]:
    """One line for each problem, in the order of the file."""
    found: dict[Keys, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        found.setdefault(_path(details, document.value), []).append(details)
    order = {path: rank for rank, path in enumerate(document.places)}
    for path in sorted(found, key=lambda path: order[document.given(path)]):
        # A union reports a mismatch for each of its types; one that could be read further tells more.
        outer = any(len(other) > len(path) and other[: len(path)] == path for other in found)
        if outer and all(details["type"] in KINDS for details in found[path]):
            continue
        text = _problem(found[path], model, path, document)
        yield f"{document.places[document.given(path)]}: {dotted(path)}: {text}"


def _path(details: ErrorDetails, value: Any) -> Keys:
    """The path of an error in `value`: pydantic's location without its names for union members."""
    loc = details["loc"]
    if details["type"] == "config":
        return loc
    path: list[Any] = []
    key: Any
    for key in loc:
        if key in (
            value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        ):
            path.append(key)
            value = value[key]
    return (*path, loc[-1]) if details["type"] == "missing" else tuple(path)


def _problem(found: list[ErrorDetails], model: type[BaseModel], path: Keys, document: Document) -> str:
    """What is wrong with the value at `path`, and what it should be."""
    kind, value = _step(model, document.value, path)
    fields = ", ".join(_fields(kind, value))
    match found[0]["type"]:
        case "config":
            return found[0]["msg"]
        case "missing":
            choice = _choice(kind)
            described = kind.description if isinstance(kind, FieldInfo) else None
            described = f"one of {', '.join(choice.options)}" if choice else described
            what = f": {described}" if described else ""
            return f"missing; add it{what}" + (f" (fields: {fields})" if fields else "")
        case "extra_forbidden" | "unexpected_keyword_argument":
            return _unknown(model, path, document)
    ranges = [details for details in found if details["type"] in RANGES]
    wanted = []
    for details in ranges or found:
        if details["type"] not in KINDS | RANGES:
            return details["msg"]
        bounds = {k: f"{v:g}" if isinstance(v, float) else v for k, v in details.get("ctx", {}).items()}
        text = (KINDS | RANGES)[details["type"]].format(**bounds)
        wanted.append(f"a mapping of {fields}" if text == "a mapping" else text)
    return f"must be {_listed(wanted)}, not {_Brief().repr(value)}{_hint(found, value)}"


def _step(kind: Any, value: Any, path: Keys) -> tuple[Any, Any]:
    """The type and the value that `path` leads to."""
    key: Any
    for key in path:
        kind = _element(kind, key) if isinstance(key, int) else _fields(kind, value).get(key)
        value = dict(enumerate(value)) if isinstance(value, list) else value
        value = value.get(key) if isinstance(value, dict) else None
    return kind, value


def _unknown(model: type[BaseModel], path: Keys, document: Document) -> str:
    """What to say of a field that is not there: the likeliest meant one, and those that are."""
    kind, holder = _step(model, document.value, path[:-1])
    name = str(path[-1])
    fields = _fields(kind, holder)
    choice = _choice(kind)
    owners = choice.owners(name) if choice else []
    if choice and owners:
        known = f"(fields: {', '.join(fields)})"
        chosen = choice.name(holder)
        unset = f", or unset that of a base by `{name}: null`"
        over = unset if issubclass(choice.options[chosen], BaseModel) else ""
        return f"is a field of {_listed(owners)}, not of {chosen}; remove it{over} {known}"
    wanted = name.lower().replace("-", "_")
    wanted = SYNONYMS.get(wanted, wanted)
    elsewhere: dict[str, str] = {}
    for other in _paths(model, document.value):
        elsewhere.setdefault(str(other[-1]), dotted(other))
    near = difflib.get_close_matches(wanted, fields, n=1)
    far = difflib.get_close_matches(wanted, elsewhere, n=1, cutoff=0.8)
    if wanted in fields:
        meant = f"; did you mean {wanted!r}?"
    elif wanted in elsewhere:
        meant = f"; did you mean {elsewhere[wanted]}?"
    elif near:
        meant = f"; did you mean {near[0]!r}?"
    else:
        meant = f"; did you mean {elsewhere[far[0]]}?" if far else ""
    return f"unknown field{meant} (fields: {', '.join(fields)})"


def _hint(found: list[ErrorDetails], value: object) -> str:
    """How a value of the wrong kind was likely meant."""
    kinds = {details["type"] for details in found}
    if isinstance(value, str) and kinds & {"float_type", "int_type"}:
        return "; remove the quotes" if re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", value) else ""
    if isinstance(value, str) and "literal_error" in kinds:
        expected = " ".join(details.get("ctx", {}).get("expected", "") for details in found)
        options = re.findall(r"'(.+?)'", expected)
        near = difflib.get_close_matches(value.lower().replace("-", ""), options, n=1)
        return f"; did you mean {near[0]!r}?" if near else ""
    return "; quote it" if isinstance(value, int | float) and "string_type" in kinds else ""


def _listed(items: Sequence[str]) -> str:
    """Items as `a, b or c`."""
    return " or ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


class _Brief(reprlib.Repr):
    """Values as YAML writes them, cut short."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = 60

    def repr_bool(self, value: bool, level: int) -> str:
        return "true" if value else "false"

    def repr_NoneType(self, value: None, level: int) -> str:  # noqa: N802 - reprlib looks it up by this name
        return "null"
