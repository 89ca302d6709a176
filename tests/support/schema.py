"""Walk a CRD's schema: which fields exist, and which values each of them must refuse."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CRDS = Path(__file__).parents[2] / "crds"
ITEM = "[]"
KEY = "{}"

Schema = dict[str, Any]
Steps = tuple[str, ...]


@dataclass(frozen=True)
class BadValue:
    """A value that one keyword of the schema refuses, at `path` (dotted, `[]` for an item)."""

    path: str
    keyword: str
    spec: Any

    def __str__(self) -> str:
        return f"{self.path}:{self.keyword}"


def load_crd(name: str) -> Any:
    return yaml.safe_load((CRDS / name).read_text(encoding="utf-8"))


def spec_schema(crd: Any) -> Schema:
    version = crd["spec"]["versions"][0]
    schema: Schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


def children(schema: Schema) -> Iterator[tuple[str, Schema]]:
    yield from schema.get("properties", {}).items()
    if "items" in schema:
        yield ITEM, schema["items"]
    if "additionalProperties" in schema:
        yield KEY, schema["additionalProperties"]


def walk(schema: Schema, steps: Steps = ()) -> Iterator[tuple[Steps, Schema]]:
    """Every field below `schema`, itself included, with the steps that lead to it."""
    yield steps, schema
    for name, child in children(schema):
        yield from walk(child, (*steps, name))


def dotted(steps: Steps) -> str:
    return ".".join(("spec", *steps)).replace("." + ITEM, ITEM).replace("." + KEY, KEY)


def present(value: Any, schema: Schema, steps: Steps = ()) -> Iterator[Steps]:
    """The fields of `schema` that `value` sets."""
    yield steps
    for name, child in children(schema):
        if name == ITEM:
            nested = value
        elif name == KEY:
            nested = list(value.values())
        else:
            nested = [value[name]] if isinstance(value, dict) and name in value else []
        for each in nested:
            yield from present(each, child, (*steps, name))


def rules(schema: Schema) -> Iterator[tuple[str, str]]:
    """Every CEL rule below `schema`: the field's dotted path and the rule's message."""
    for steps, field in walk(schema):
        for rule in field.get("x-kubernetes-validations", []):
            yield dotted(steps), rule["message"]


_WRONG_TYPE: dict[str, Any] = {
    "string": 7,
    "integer": "x",
    "boolean": "x",
    "array": {"a": 1},
    "object": "text",
}


def refused(schema: Schema) -> Iterator[tuple[str, Any]]:
    """Values that each keyword of one field refuses, with the keyword."""
    if (kind := schema.get("type")) in _WRONG_TYPE:
        yield "type", _WRONG_TYPE[kind]
    if kind == "object" and "additionalProperties" not in schema:
        yield "unknown field", {"noSuchField": 1}
    makers: dict[str, Callable[[Any], Any]] = {
        "enum": lambda _: "NoSuchValue",
        "minimum": lambda limit: limit - 1,
        "maximum": lambda limit: limit + 1,
        "pattern": lambda _: "\n$("[: schema.get("maxLength", 3)],
        "maxLength": lambda limit: "1" * (limit + 1),
        "minLength": lambda _: "",
        "minItems": lambda _: [],
        "maxItems": lambda limit: limit + 1,
        "maxProperties": lambda limit: limit + 1,
    }
    for keyword, make in makers.items():
        if keyword in schema:
            yield keyword, make(schema[keyword])


def bad_values(schema: Schema, good: list[Any]) -> Iterator[BadValue]:
    """For every field and keyword: a good spec that sets the field, with a refused value there."""
    for steps, field in walk(schema):
        if not steps:
            continue
        base = next((each for each in good if steps in set(present(each, schema))), None)
        if base is None:
            continue
        for keyword, value in refused(field):
            spec = copy.deepcopy(base)
            _put(spec, steps, value, keyword)
            yield BadValue(dotted(steps), keyword, spec)


def variants(spec: Any, steps: Steps, field: Schema) -> Iterator[Any]:
    """`spec` without its first value at `steps`, and with others there; some may be refused."""
    without = copy.deepcopy(spec)
    holder, key = next(_places(without, steps))
    value = holder.pop(key)
    yield without
    for other in _others(value, field):
        changed = copy.deepcopy(spec)
        holder, key = next(_places(changed, steps))
        holder[key] = other
        yield changed


def _others(value: Any, field: Schema) -> Iterator[Any]:
    if "enum" in field:
        yield from (each for each in field["enum"] if each != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1)
    elif isinstance(value, str):
        yield from (f"{value}x", f"1{value}")


def _put(spec: Any, steps: Steps, value: Any, keyword: str) -> None:
    """Replace the first value at `steps`, or multiply it where the keyword counts elements."""
    holder, key = next(_places(spec, steps))
    if keyword == "maxItems":
        holder[key] = [copy.deepcopy(holder[key][0]) for _ in range(value)]
    elif keyword == "maxProperties":
        sample = next(iter(holder[key].values()))
        holder[key] = {f"key-{index}": sample for index in range(value)}
    elif keyword == "unknown field":
        holder[key] = {**holder[key], **value}
    else:
        holder[key] = value


def _places(holder: Any, steps: Steps) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in `holder` that `steps` lead to."""
    step, *rest = steps
    if step == ITEM:
        keys: Any = range(len(holder))
    elif step == KEY:
        keys = list(holder)
    else:
        keys = [step] if step in holder else []
    for key in keys:
        if rest:
            yield from _places(holder[key], tuple(rest))
        else:
            yield holder, key
