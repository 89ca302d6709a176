"""How a simulated NIM is configured: the environment of its pod, read once and checked whole.

Owns the names, ranges and defaults of `NIM_*` (as a NIM knows them) and `NIMSIM_*` (the
simulation's own), and the texts that explain them. `Behaviour` and `Fault` can change at run time;
the control path checks its input with the same types. Nothing here opens a file or a socket.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

PREFIX = "NIMSIM_"
LOG_LEVELS = ("DEFAULT", "TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
CONTROL_PORT_DEFAULT = 8002

Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Count = Annotated[int, Meta(ge=0, le=10_000_000)]
Port = Annotated[int, Meta(ge=0, le=65_535)]
S = TypeVar("S", bound=msgspec.Struct)


class SettingsError(ValueError):
    """A setting cannot be used; the text is one sentence that names it."""


class Behaviour(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the simulation behaves. Each field is `NIMSIM_<FIELD>` at start, and settable later."""

    load_s: Annotated[Seconds, Meta(description="Seconds from start until ready.")] = 1.0
    ttft_s: Annotated[Seconds, Meta(description="Seconds to the first token.")] = 0.05
    token_s: Annotated[Seconds, Meta(description="Seconds per further token.")] = 0.01
    prefill_token_s: Annotated[
        Seconds, Meta(description="Seconds added to the first token per uncached prompt token.")
    ] = 0.0
    prefix_cache_blocks: Annotated[
        Count, Meta(description="Blocks of 16 prompt tokens remembered as cached; 0 is no cache.")
    ] = 4096
    concurrency_max: Annotated[
        Count, Meta(description="Requests that run at once, more of them wait; 0 is no limit.")
    ] = 256
    queue_max: Annotated[Count, Meta(description="Requests that may wait; more get 503.")] = 10_000
    context_tokens_max: Annotated[
        Count, Meta(description="Prompt and answer together; more gets 400.")
    ] = 131_072
    kv_tokens: Annotated[
        int, Meta(ge=1, description="Tokens at which gpu_cache_usage_perc is 1.")
    ] = 1_048_576
    dimensions: Annotated[int, Meta(ge=1, le=16_384, description="Length of an embedding.")] = 1024
    early_head: Annotated[
        bool, Meta(description="A stream's head is sent at once, not with the first token.")
    ] = True
    sigterm: Annotated[
        Literal["finish", "cut"],
        Meta(description="On SIGTERM, finish running answers or cut them."),
    ] = "finish"
    grace_s: Annotated[
        Seconds, Meta(description="How long `finish` waits before it cuts after all.")
    ] = 600.0
    generation: Annotated[
        Literal[1, 2],
        Meta(description="NIM generation: 2 names metrics `vllm:…` and nests errors."),
    ] = 1


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that goes wrong. Without `path` it hits every POST, with it that path alone.

    `refuse` closes the listener. `status` answers `status`. `delay` waits `delay_s` before the
    head. `reset` runs the request and resets the connection before the head; `garbage` sends a
    malformed head instead. `reset_mid_stream`, `fin_mid_stream` and `stall` act after
    `after_chunks` chunks: TCP reset, FIN without the last chunk, silence for `delay_s`. `slow`
    waits `delay_s` before each chunk.
    """

    kind: Literal[
        "refuse",
        "status",
        "delay",
        "reset",
        "garbage",
        "reset_mid_stream",
        "fin_mid_stream",
        "stall",
        "slow",
    ]
    status: Annotated[int, Meta(ge=400, le=599)] = 503
    retry_after_s: Count | None = None
    delay_s: Seconds = 1.0
    after_chunks: Count = 2
    times: Annotated[int, Meta(ge=1)] | None = None
    path: str | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is fixed when the process starts. The NGC key itself is never kept."""

    served_model_names: tuple[str, ...] = ("simulated/nim",)
    host: str = "0.0.0.0"  # noqa: S104 - a NIM's pod is reached from outside
    port: Port = 8000
    control_port: Port | None = CONTROL_PORT_DEFAULT
    control_port_required: bool = False
    model_profile: str = ""
    cache_path: str = ""
    log_level: str = "INFO"
    jsonl_logging: bool = False
    ngc_api_key_given: bool = False
    peft_source: str = ""
    peft_refresh_s: Seconds | None = None
    keepalive_s: Seconds = 5.0
    behaviour: Behaviour = Behaviour()
    faults: tuple[Fault, ...] = ()


ENVIRONMENT_HELP = {
    "NIM_SERVED_MODEL_NAME": "Comma list of the model ids it answers to. [simulated/nim]",
    "NIM_SERVER_PORT": "Port of the API; else NIM_HTTP_API_PORT. [8000]",
    "NIM_HTTP_API_PORT": "Port of the API where NIM_SERVER_PORT is not set.",
    "NIM_MODEL_PROFILE": "Shown in /v1/metadata.",
    "NIM_CACHE_PATH": "Must be a writable folder, or a warning says so.",
    "NIM_LOG_LEVEL": "One of " + ", ".join(LOG_LEVELS) + ". [INFO]",
    "NIM_JSONL_LOGGING": "1: one JSON object per log line. [0]",
    "NGC_API_KEY": "Only whether it is set is looked at, and logged.",
    "NIM_PEFT_SOURCE": "Folder of LoRA adapters: each subfolder's name is served as a model.",
    "NIM_PEFT_REFRESH_INTERVAL": "Seconds after which that folder is read again. [never]",
    "NIMSIM_HOST": "Address of both listeners. [0.0.0.0]",
    "NIMSIM_CONTROL_PORT": f"Port of the control path, or `off`. [{CONTROL_PORT_DEFAULT} if free]",
    "NIMSIM_KEEPALIVE_S": "Idle connections are closed after this. [5]",
    "NIMSIM_FAULTS": 'JSON list of faults, e.g. [{"kind": "status", "status": 500, "times": 1}].',
}


def behaviour_help() -> dict[str, str]:
    """Return the environment name of each field of `Behaviour` and what it does."""
    info = msgspec.inspect.type_info(Behaviour)
    texts: dict[str, str] = {}
    for field in getattr(info, "fields", ()):
        text = (field.type.extra_json_schema or {}).get("description", "")
        texts[PREFIX + field.name.upper()] = f"{text} [{field.default}]"
    return texts


def checked(raw: Mapping[str, Any], kind: type[S], *, prefix: str = "", strict: bool = True) -> S:
    """Return `raw` as a `kind`; unknown, mistyped and out-of-range fields are errors.

    Raises:
        SettingsError: one sentence; `prefix` goes before the field's name.
    """
    try:
        return msgspec.convert(raw, kind, strict=strict)
    except msgspec.ValidationError as error:
        text = str(error)
    where = re.search(r" - at `\$\.?([^`]*)`", text)
    what = text[: where.start()] if where else text
    name = where.group(1) if where else ""
    if prefix and name:
        name = prefix + name.upper()
    raise SettingsError(f"{name}: {what[:1].lower()}{what[1:]}" if name else what) from None


def settings_from_environment(environ: Mapping[str, str]) -> Settings:
    """Read the pod's environment; an empty value counts as not set, as in a Helm template.

    Raises:
        SettingsError: a value is unusable, or a `NIMSIM_` name means nothing.
    """
    env = {name: value.strip() for name, value in environ.items() if value.strip()}
    fixed: dict[str, Any] = {
        "port": env.get("NIM_SERVER_PORT", env.get("NIM_HTTP_API_PORT", "8000")),
        "peft_refresh_s": env.get("NIM_PEFT_REFRESH_INTERVAL"),
        "host": env.pop(PREFIX + "HOST", "0.0.0.0"),  # noqa: S104 - as in Settings
        "keepalive_s": env.pop(PREFIX + "KEEPALIVE_S", "5"),
        "control_port_required": PREFIX + "CONTROL_PORT" in env,
        "control_port": _control_port(env.pop(PREFIX + "CONTROL_PORT", "")),
        "faults": _faults(env.pop(PREFIX + "FAULTS", "[]")),
        "behaviour": _behaviour(env),
        "model_profile": env.get("NIM_MODEL_PROFILE", ""),
        "cache_path": env.get("NIM_CACHE_PATH", ""),
        "log_level": _log_level(env.get("NIM_LOG_LEVEL", "INFO")),
        "jsonl_logging": env.get("NIM_JSONL_LOGGING", "0").lower() in {"1", "true"},
        "ngc_api_key_given": "NGC_API_KEY" in env,
        "peft_source": env.get("NIM_PEFT_SOURCE", ""),
        "served_model_names": _names(env.get("NIM_SERVED_MODEL_NAME", "simulated/nim")),
    }
    spelled = {
        "port": "NIM_SERVER_PORT" if "NIM_SERVER_PORT" in env else "NIM_HTTP_API_PORT",
        "peft_refresh_s": "NIM_PEFT_REFRESH_INTERVAL",
        "control_port": PREFIX + "CONTROL_PORT",
        "keepalive_s": PREFIX + "KEEPALIVE_S",
    }
    try:
        return checked(fixed, Settings, strict=False)
    except SettingsError as error:
        field, _, rest = str(error).partition(": ")
        raise SettingsError(f"{spelled.get(field, field)}: {rest}") from None


def _behaviour(env: Mapping[str, str]) -> Behaviour:
    """Every `NIMSIM_` name left over must be a field of `Behaviour`."""
    raw: dict[str, Any] = {}
    for name, value in env.items():
        field = name.removeprefix(PREFIX)
        if field == name or _is_service_link(field, value):
            continue
        if field.lower() not in Behaviour.__struct_fields__ or not field.isupper():
            raise SettingsError(f"{name} is not a setting of the simulated NIM.")
        raw[field.lower()] = value
    return checked(raw, Behaviour, prefix=PREFIX, strict=False)


def _is_service_link(field: str, value: str) -> bool:
    """Whether Kubernetes set this name because a Service happens to be called `nimsim…`."""
    return "SERVICE_" in field or "PORT_" in field or value.startswith("tcp://")


def _control_port(text: str) -> str | int | None:
    if not text:
        return CONTROL_PORT_DEFAULT
    return None if text.lower() == "off" else text


def _faults(text: str) -> tuple[Fault, ...]:
    try:
        return msgspec.json.decode(text, type=tuple[Fault, ...])
    except (msgspec.DecodeError, RecursionError) as error:
        raise SettingsError(f"{PREFIX}FAULTS is not a JSON list of faults: {error}") from None


def _log_level(text: str) -> str:
    if text.upper() not in LOG_LEVELS:
        raise SettingsError(f"NIM_LOG_LEVEL: {text!r} is none of {', '.join(LOG_LEVELS)}.")
    return text.upper()


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise SettingsError("NIM_SERVED_MODEL_NAME: it names no model.")
    return names
