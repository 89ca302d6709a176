"""Every limit and wait of the proxy, by name: one frozen value, made once and handed down.

Owns names, units and defaults (the table "Defaults" of the HTTP contract). It reads no
environment: `command.py` and `environment.py` do, and changed values go on to the workers.
"""

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits of one proxy worker; a time is in seconds, a size in bytes, `0` never means none."""

    # Heads (RFC 9112 section 3 and 5): refused with 431 above the size, 408 above the time.
    head_line_bytes_max: int = 16 * KIB
    head_fields_max: int = 100
    head_bytes_max: int = 64 * KIB
    timeout_head_s: float = 10.0

    # Bodies of requests are read whole, because `model` may stand at their end.
    body_bytes_max: int = 64 * MIB
    bodies_bytes_max: int = 256 * MIB
    timeout_body_idle_s: float = 30.0

    # Connections of clients.
    connections_max: int = 10_000
    backlog: int = 2048
    timeout_client_idle_s: float = 75.0
    pipelined_bytes_max: int = 64 * KIB
    linger_s: float = 2.0
    linger_bytes_max: int = 64 * MIB
    discard_bytes_max: int = 64 * KIB

    # Connections to model servers.
    timeout_connect_s: float = 2.0
    timeout_first_byte_s: float = 600.0
    timeout_idle_s: float = 300.0
    timeout_total_s: float = 3600.0
    timeout_upstream_idle_s: float = 3.0
    upstream_idle_max: int = 256
    interim_responses_max: int = 8
    write_buffer_bytes: int = 4 * KIB
    allow_loopback: bool = False
    pass_authorization: bool = False

    # Retry and passive ejection.
    retry_budget_ratio: float = 0.2
    retry_budget_floor: int = 10
    retry_after_s: int = 5
    ejection_failures: int = 3
    ejection_base_s: float = 5.0
    ejection_max_s: float = 300.0

    # Waiting for a model: for an endpoint, or a place at one; requests count over all workers of
    # this pod. Of those who wait, so many go to an endpoint in one step.
    queue_requests_max: int = 1000
    queue_bytes_max: int = 64 * MIB
    held_bytes_max: int = 128 * MIB
    queue_wait_max_s: float = 50.0
    release_burst: int = 32
    release_step_s: float = 0.01

    # Housekeeping.
    sweep_period_s: float = 0.25
    report_delay_s: float = 0.02
    access_log_sample: float = 1.0
    access_log_buffer_bytes: int = 64 * KIB
    drain_s: float = 600.0
    propagation_delay_s: float = 5.0
