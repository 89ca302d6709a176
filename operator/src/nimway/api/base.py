"""The base of all API types, and the scalar types with their limits.

Names are snake_case in Python and camelCase on the wire, unknown fields are refused, values are
frozen. Every string, list and map has a maximum, or the API server would refuse the CEL rules over
it on cost.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict

QUANTITY = (
    r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)"
    r"([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
)
"""A non-negative Kubernetes quantity (apimachinery, resource.Quantity)."""

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
LABEL_KEY = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
IMAGE = r"^[A-Za-z0-9][A-Za-z0-9._/:-]*(@sha256:[a-f0-9]{64})?$"
PERCENT = r"^(100|[1-9]?[0-9])%$"
LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"


class ApiModel(BaseModel):
    """Base of all API types."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
    )


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """Return the schema extension for CEL rules, each given as (expression, message)."""
    return {
        "x-kubernetes-validations": [
            {"rule": expression, "message": message} for expression, message in pairs
        ]
    }


def keyed_by(*keys: str) -> dict[str, Any]:
    """Return the schema extension of a list whose items are told apart by `keys`."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


SET: JsonDict = {"x-kubernetes-list-type": "set"}
ATOMIC: JsonDict = {"x-kubernetes-list-type": "atomic"}
ATOMIC_MAP: JsonDict = {"x-kubernetes-map-type": "atomic"}

LabelKey = Annotated[str, Field(min_length=1, max_length=317, pattern=LABEL_KEY)]
LabelValue = Annotated[str, Field(max_length=63, pattern=LABEL_VALUE)]
Namespace = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN)]
Port = Annotated[int, Field(ge=1, le=65535)]
QuantityString = Annotated[str, Field(min_length=1, max_length=32, pattern=QUANTITY)]
Quantity = Annotated[
    Annotated[int, Field(ge=0)] | QuantityString,
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 32,
            "pattern": QUANTITY,
            "x-kubernetes-int-or-string": True,
        }
    ),
]
CountOrPercent = Annotated[
    Annotated[int, Field(ge=0, le=1000)] | Annotated[str, Field(max_length=4, pattern=PERCENT)],
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maximum": 1000,
            "maxLength": 4,
            "minimum": 0,
            "pattern": PERCENT,
            "x-kubernetes-int-or-string": True,
        }
    ),
]
UnixId = Annotated[int, Field(ge=1, le=2147483647)]
"""A user or group id; 0 is refused, since the pods run as non-root."""

KEY_RULE = (
    f"self.all(key, key.size() <= 317 && key.matches('{LABEL_KEY}'))",
    "each key must be a qualified name such as example.com/team",
)
Labels = Annotated[
    dict[str, LabelValue],
    Field(max_length=32, json_schema_extra=rules(KEY_RULE)),
]
Annotations = Annotated[
    dict[str, Annotated[str, Field(max_length=4096)]],
    Field(max_length=32, json_schema_extra=rules(KEY_RULE)),
]
ImagePullPolicy = Literal["Always", "IfNotPresent", "Never"]
ImageReference = Annotated[
    str,
    Field(
        min_length=1,
        max_length=512,
        pattern=IMAGE,
    ),
]
