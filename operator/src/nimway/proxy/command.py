"""`nimway proxy`: reads the environment and the flags, and runs the parent process.

Owns names and checks of what a user can set; a wrong value is one sentence and exit code 2.
"""

import os
import re
from typing import TYPE_CHECKING

import click

from nimway.proxy import environment
from nimway.proxy.settings import Settings

if TYPE_CHECKING:
    from nimway.proxy.parent import ParentConfig

_NAME_FORM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class _UsageError(click.ClickException):
    """Wrong input: one sentence, exit code 2."""

    exit_code = 2


@click.command()
@click.option(
    "--namespace",
    envvar="POD_NAMESPACE",
    help="Namespace of the routing ConfigMap [POD_NAMESPACE].",
)
@click.option(
    "--routes-configmap",
    envvar="NIMWAY_ROUTES_CONFIGMAP",
    help="Name of the routing ConfigMap [NIMWAY_ROUTES_CONFIGMAP].",
)
@click.option(
    "--workers",
    envvar="NIMWAY_WORKERS",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Worker processes [NIMWAY_WORKERS].",
)
@click.option(
    "--drain-seconds",
    envvar="NIMWAY_DRAIN_S",
    type=click.FloatRange(0, 86_400),
    default=Settings().drain_s,
    show_default=True,
    help="How long streams may take to finish after SIGTERM [NIMWAY_DRAIN_S].",
)
@click.option(
    "--propagation-delay-seconds",
    envvar="NIMWAY_PROPAGATION_DELAY_S",
    type=click.FloatRange(0, 600),
    default=Settings().propagation_delay_s,
    show_default=True,
    help="How long to accept connections after SIGTERM [NIMWAY_PROPAGATION_DELAY_S].",
)
@click.option("--host", default="0.0.0.0", show_default=True, help="Address to listen on.")  # noqa: S104 # a pod's own network
@click.option(
    "--port", type=click.IntRange(1, 65_535), default=8000, show_default=True, help="Public port."
)
@click.option(
    "--admin-port",
    type=click.IntRange(1, 65_535),
    default=8001,
    show_default=True,
    help="Port of metrics, health and state.",
)
@click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False),
    help="Outside a pod: the kubeconfig to use.",
)
@click.option(
    "--access-log-sample",
    envvar="NIMWAY_ACCESS_LOG_SAMPLE",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Share of requests that get a log line [NIMWAY_ACCESS_LOG_SAMPLE].",
)
@click.option(
    "--allow-loopback",
    is_flag=True,
    help="Accept endpoints on loopback addresses (for tests; a pod must not).",
)
def proxy(  # noqa: PLR0913 # one parameter per option, as click calls it
    *,
    namespace: str | None,
    routes_configmap: str | None,
    workers: int,
    drain_seconds: float,
    propagation_delay_seconds: float,
    host: str,
    port: int,
    admin_port: int,
    kubeconfig: str | None,
    access_log_sample: float,
    allow_loopback: bool,
) -> None:
    """Serve the models of one NIMProxy on one address.

    Limits and timeouts are read from the environment, see docs/http.md.
    """
    from nimway.proxy.parent import ParentConfig  # noqa: PLC0415 # --help needs no client

    try:
        given = environment.read(os.environ)
    except ValueError as error:
        raise _UsageError(str(error)) from error
    settings = Settings(
        **given,
        drain_s=drain_seconds,
        propagation_delay_s=propagation_delay_seconds,
        access_log_sample=access_log_sample,
        allow_loopback=allow_loopback,
    )
    _run(
        ParentConfig(
            namespace=_check_name(namespace, "POD_NAMESPACE"),
            configmap=_check_name(routes_configmap, "NIMWAY_ROUTES_CONFIGMAP"),
            workers=workers,
            host=host,
            port=port,
            admin_port=admin_port,
            kubeconfig=kubeconfig,
            settings=settings,
        )
    )


def _check_name(value: str | None, variable: str) -> str:
    if not value:
        raise _UsageError(f"{variable} is not set.")
    if not _NAME_FORM.fullmatch(value):
        raise _UsageError(f"{variable}: {value!r} is not a Kubernetes name.")
    return value


def _run(config: "ParentConfig") -> None:
    import uvloop  # noqa: PLC0415 # as above

    from nimway.proxy.kube import KubeError  # noqa: PLC0415 # as above
    from nimway.proxy.logs import set_up_logging  # noqa: PLC0415 # as above
    from nimway.proxy.parent import Parent  # noqa: PLC0415 # as above

    async def serve() -> None:
        await Parent(config).run()

    set_up_logging()
    try:
        uvloop.run(serve())
    except (KubeError, OSError) as error:
        raise _UsageError(f"the proxy cannot start: {error}") from error
