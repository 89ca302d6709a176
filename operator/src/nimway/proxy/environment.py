"""Settings that a NIMProxy's user can change, as the environment of the proxy's container.

Owns the names and bounds of these variables. `NIMWAY_` and the setting's name in capitals is the
variable's; what is not set stays as it is by default. Options of the command line are not here.
"""

from collections.abc import Mapping
from typing import Any, Final

from nimway.proxy.settings import KIB, Settings

PREFIX: Final = "NIMWAY_"
_LEAST: Final[Mapping[str, int]] = {
    "connections_max": 1,
    "body_bytes_max": KIB,
    "bodies_bytes_max": KIB,
    "head_bytes_max": KIB,
    "head_line_bytes_max": KIB,
    "head_fields_max": 10,
    "queue_requests_max": 0,
    "queue_wait_max_s": 0,
    "timeout_head_s": 1,
    "timeout_client_idle_s": 1,
    "timeout_connect_s": 1,
    "timeout_first_byte_s": 1,
    "timeout_idle_s": 1,
    "timeout_total_s": 1,
    "pass_authorization": 0,
}
"""The least value of each setting that has a variable."""

_FLAGS: Final[Mapping[str, bool]] = {"true": True, "false": False}


def variable(setting: str) -> str:
    """Return the name of a setting's variable."""
    return PREFIX + setting.upper()


def read(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that `environment` changes, by name.

    Raises:
        ValueError: a value is not of its setting's type or too small; one sentence.
    """
    found = {
        name: _parse(name, environment[variable(name)])
        for name in _LEAST
        if variable(name) in environment
    }
    largest = found.get("body_bytes_max", 0)
    for name in ("queue_bytes_max", "held_bytes_max"):
        if largest > getattr(Settings(), name):
            found[name] = largest  # what is taken must be able to wait
    return found


def _parse(name: str, text: str) -> Any:
    default = getattr(Settings(), name)
    if isinstance(default, bool):
        if text not in _FLAGS:
            raise ValueError(f"{variable(name)}: {text!r} is neither true nor false.")
        return _FLAGS[text]
    least = _LEAST[name]
    if not (text.isascii() and text.isdecimal() and int(text) >= least):
        raise ValueError(f"{variable(name)}: {text!r} is not a whole number of at least {least}.")
    return type(default)(text)
