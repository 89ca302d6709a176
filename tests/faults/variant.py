"""The operator with other constants or another pod, as the environment says.

Stands in for another version of the operator, so that the product needs no switch for tests.
`NIMWAY_TEST_RESYNC_S` is the time between fresh lists, `NIMWAY_TEST_POD_ENV` the name of a variable
that this "version" adds to every model's container. `NIMWAY_TEST_SHARD_BYTES` makes few models a
large table, `NIMWAY_TEST_TABLE_BYTES` one that is too large. `NIMWAY_TEST_LEASE_S` is how long a
Lease lasts; all times of the election shrink with it. After `NIMWAY_TEST_BLIND_S` without a list it
is not alive.
"""

import functools
import os
from typing import Any

from nimway import routes
from nimway.cli import main
from nimway.control import command, election, health
from nimway.control.desired import model, pod
from nimway.control.resolve import ResolvedModel
from nimway.control.settings import Settings


def _vary() -> None:
    vary = functools.partial(setattr, routes)
    if resync_s := os.environ.get("NIMWAY_TEST_RESYNC_S"):
        varied: Any = functools.partial(Settings, resync_s=float(resync_s))
        setattr(command, "Settings", varied)  # noqa: B010 - not a name that the module exports
    if blind_s := os.environ.get("NIMWAY_TEST_BLIND_S"):
        health.BLIND_S = float(blind_s)
    if shard_bytes := os.environ.get("NIMWAY_TEST_SHARD_BYTES"):
        vary("READABLE_BYTES_MAX", int(shard_bytes))
        vary("SHARD_BYTES_MIN", int(shard_bytes))
        vary("_CUTS", 2)
    if table_bytes := os.environ.get("NIMWAY_TEST_TABLE_BYTES"):
        vary("TABLE_BYTES_MAX", int(table_bytes))
    if name := os.environ.get("NIMWAY_TEST_POD_ENV"):
        build = pod.build_template

        def build_template(resolved: ResolvedModel) -> Any:
            template = build(resolved)
            template["spec"]["containers"][0]["env"].append({"name": name, "value": "new"})
            return template

        setattr(model, "build_template", build_template)  # noqa: B010 - as above


def _shrink_lease(lease_s: float) -> None:
    share = lease_s / election.LEASE_S
    for name in ("LEASE_S", "RENEW_DEADLINE_S", "RENEW_PERIOD_S", "RETRY_PERIOD_S"):
        setattr(election, name, getattr(election, name) * share)


def run() -> None:
    """Be that operator, as `nimway` with the arguments of this process."""
    _vary()
    if lease_s := os.environ.get("NIMWAY_TEST_LEASE_S"):
        _shrink_lease(float(lease_s))
    main()
