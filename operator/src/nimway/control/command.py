"""`nimway operator`: the command line of the operator.

Owns options and exit codes: 2 for what cannot be used as it is given, 1 for an API server that does
not answer or refuses, and for an operator that must not go on.
"""

import asyncio
import logging
import os
import platform
import sys

import click
import uvloop

from nimway.control.client import ApiError, ConfigurationError
from nimway.control.desired.proxy import ProxySettings
from nimway.control.runtime import run
from nimway.control.settings import Settings

_LEVELS = ("debug", "info", "warning", "error")


class _UsageError(click.ClickException):
    """Wrong input: one sentence, exit code 2."""

    exit_code = 2


def _names(text: str | None) -> frozenset[str]:
    return frozenset(part.strip() for part in (text or "").split(",") if part.strip())


@click.command()
@click.option(
    "--namespace",
    "namespaces",
    multiple=True,
    help="Namespace to watch; may be repeated. All namespaces if absent.",
)
@click.option(
    "--pod-namespace",
    envvar="POD_NAMESPACE",
    show_envvar=True,
    default="nimway-system",
    show_default=True,
    help="Namespace of this operator, of its Lease and of NIMProxies that may serve others.",
)
@click.option(
    "--identity",
    envvar="POD_NAME",
    show_envvar=True,
    default=None,
    help="Name in the Lease; the host's if absent.",
)
@click.option(
    "--trusted-proxy-namespaces",
    envvar="NIMWAY_TRUSTED_PROXY_NAMESPACES",
    show_envvar=True,
    default="",
    help="Further namespaces whose NIMProxies may serve other namespaces, comma-separated.",
)
@click.option(
    "--proxy-image",
    envvar="NIMWAY_PROXY_IMAGE",
    show_envvar=True,
    required=True,
    help="Image of the proxies.",
)
@click.option(
    "--proxy-routes-role",
    envvar="NIMWAY_PROXY_ROUTES_ROLE",
    show_envvar=True,
    default="nimway-proxy-routes",
    show_default=True,
    help="ClusterRole that lets a proxy read its table.",
)
@click.option(
    "--proxy-endpoints-role",
    envvar="NIMWAY_PROXY_ENDPOINTS_ROLE",
    show_envvar=True,
    default="nimway-proxy-endpoints",
    show_default=True,
    help="ClusterRole that lets a proxy see which model pods are ready.",
)
@click.option(
    "--health-port",
    envvar="NIMWAY_HEALTH_PORT",
    show_envvar=True,
    type=click.IntRange(1, 65535),
    default=8081,
    show_default=True,
    help="Port of /healthz, /readyz and /metrics.",
)
@click.option(
    "--log-level",
    envvar="NIMWAY_LOG_LEVEL",
    show_envvar=True,
    type=click.Choice(_LEVELS, case_sensitive=False),
    default="info",
    show_default=True,
    help="Least that is logged.",
)
def operator(
    namespaces: tuple[str, ...],
    pod_namespace: str,
    identity: str | None,
    trusted_proxy_namespaces: str,
    *,
    proxy_image: str,
    proxy_routes_role: str,
    proxy_endpoints_role: str,
    health_port: int,
    log_level: str,
) -> None:
    """Keep NIMModels and NIMProxies running as declared."""
    _configure_logging(log_level)
    settings = Settings(
        namespace=pod_namespace,
        identity=identity or f"{platform.node()}-{os.getpid()}",
        namespaces=frozenset(namespaces) or None,
        trusted=_names(trusted_proxy_namespaces) | {pod_namespace},
        proxy=ProxySettings(
            image=proxy_image,
            routes_role=proxy_routes_role,
            endpoints_role=proxy_endpoints_role,
        ),
        health_port=health_port,
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(run(settings))
    except (ConfigurationError, OSError) as error:
        raise _UsageError(f"the operator cannot start: {error}") from error
    except ApiError as error:
        raise click.ClickException(f"the operator cannot start: {error}") from error
    sys.exit(code)


def _configure_logging(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    # Kopf tells of every event at these levels; what it means is logged by us.
    for name in ("kopf", "aiohttp"):
        logging.getLogger(name).setLevel(
            logging.DEBUG if level.lower() == "debug" else logging.WARNING
        )
