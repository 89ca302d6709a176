"""What a proxy pod reports on `GET :8001/state`, the back-channel from which the operator reads.

Owns the report's type and its form on the wire: newline-delimited JSON, one whole `ProxyState` a
line. The first line comes at once, further lines within `REPORT_DELAY_MAX_S` of a change, and at
least every `REPORT_PERIOD_S` as a sign of life. The first request for a model without endpoints is
reported within `URGENT_DELAY_MAX_S`: somebody waits for it to wake. It does no IO.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as quote
from typing import Any

STATE_PATH = "/state"
STATE_PORT = 8001
REPORT_DELAY_MAX_S = 0.05
URGENT_DELAY_MAX_S = 0.005
REPORT_PERIOD_S = 5.0
LINE_BYTES_MAX = 4 * 1024 * 1024


class StateError(ValueError):
    """A line of the back-channel is not a valid report; the text names the field."""


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """Load of one model in one proxy pod, over all its workers.

    `in_flight` and `queued` are requests now, `queued` those that wait for an endpoint or for a
    place at one; `demand_total` counts every request that asked for the model since the pod
    started, refused ones included, also those that came and went between two reports.
    """

    in_flight: int = 0
    queued: int = 0
    demand_total: int = 0


@dataclass(frozen=True, slots=True)
class ProxyState:
    """One proxy pod: the table revision that *all* of its workers serve ("" before the first)."""

    revision: str
    ready: bool
    draining: bool
    models: Mapping[str, ModelLoad] = field(default_factory=dict)


def encode(state: ProxyState) -> bytes:
    """Return `state` as one line, newline included."""
    # With dataclasses.asdict and json.dumps it costs ten times as much: thousands of models, often.
    models = ",".join(
        f'{quote(key)}:{{"in_flight":{load.in_flight:d},"queued":{load.queued:d},'
        f'"demand_total":{load.demand_total:d}}}'
        for key, load in state.models.items()
    )
    facts = {"revision": state.revision, "ready": state.ready, "draining": state.draining}
    return f'{json.dumps(facts)[:-1]}, "models": {{{models}}}}}\n'.encode()


def decode(line: bytes) -> ProxyState:
    """Read one line.

    Raises:
        StateError: the line is no JSON object of this form.
    """
    try:
        raw: Any = json.loads(line)
        models = {key: ModelLoad(**load) for key, load in raw.get("models", {}).items()}
        revision, ready, draining = raw["revision"], raw["ready"], raw["draining"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StateError(f"not a proxy state: {error!r}") from error
    if not (isinstance(revision, str) and isinstance(ready, bool) and isinstance(draining, bool)):
        raise StateError("revision must be a string, ready and draining must be booleans")
    return ProxyState(revision=revision, ready=ready, draining=draining, models=models)
