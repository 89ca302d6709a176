"""`nimway sandbox ...`: the sandbox at the terminal.

Owns options, words and exit codes (2 for what the user can put right). It starts nothing itself.
"""

import functools
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import ParamSpec, TypeVar

import click

from nimway.sandbox import launcher
from nimway.sandbox.errors import SandboxError

P = ParamSpec("P")
T = TypeVar("T")


def _sentences(function: Callable[P, T]) -> Callable[P, T]:
    """Turn the sandbox's errors into one sentence and exit code 2."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except SandboxError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(2)

    return wrapped


_name = click.option(
    "--name", default=launcher.DEFAULT_NAME, show_default=True, help="Which sandbox."
)


@click.group()
def sandbox() -> None:
    """Run a real Kubernetes control plane on this machine, without containers."""


@sandbox.command()
@_name
@click.option("--detach", is_flag=True, help="Leave it running in the background.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the API server [free one].")
@click.option("--nodes", type=click.IntRange(0, 100), default=2, show_default=True)
@click.option("--gpus-per-node", type=click.IntRange(0, 1000), default=8, show_default=True)
@click.option("--backoff", type=float, default=10.0, show_default=True, metavar="SECONDS")
@click.option("--pretend", is_flag=True, help="Pods get ready without running anything.")
@_sentences
def up(
    *,
    name: str,
    detach: bool,
    port: int | None,
    nodes: int,
    gpus_per_node: int,
    backoff: float,
    pretend: bool,
) -> None:
    """Start a sandbox: GPU nodes with 8 GPUs each and one node without."""
    began = time.monotonic()

    def progress(text: str) -> None:
        click.echo(f"{time.monotonic() - began:6.1f} s  {text}", err=True)

    options = launcher.Options(
        name=name,
        detach=detach,
        port=port,
        gpu_nodes=nodes,
        gpus_per_node=gpus_per_node,
        backoff_initial_s=backoff,
        pretend=pretend,
    )
    with _interruptible():
        started = launcher.launch(options, progress)
        progress(f"sandbox {name} is up")
        click.echo(f"export KUBECONFIG={started.kubeconfig}")
        if detach:
            return
        click.echo("Ctrl-C ends it.", err=True)
        try:
            while started.is_running():
                time.sleep(0.5)
            raise SandboxError(f"the sandbox ended by itself, see {started.config.logs}")
        except KeyboardInterrupt:
            started.stop()


class _interruptible:  # noqa: N801 - reads as the statement it is
    """Treat SIGTERM and SIGHUP as Ctrl-C, and end quietly on either."""

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._interrupt)

    @staticmethod
    def _interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> bool:
        del rest
        return kind is KeyboardInterrupt


@sandbox.command()
@_sentences
def status() -> None:
    """List the sandboxes that run."""
    names = launcher.running()
    if not names:
        click.echo("no sandbox is running")
    for name in names:
        found = launcher.attach(name)
        click.echo(f"{name}\thttps://127.0.0.1:{found.port}\tKUBECONFIG={found.kubeconfig}")


@sandbox.command()
@_name
@_sentences
def down(name: str) -> None:
    """Stop a sandbox; nothing of it is left."""
    launcher.attach(name).stop()
    click.echo(f"sandbox {name} is gone")


# Everything from the first word on is kubectl's, its own `--` included.
_PASS_ON = {
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
    "help_option_names": [],
}


@sandbox.command(context_settings=_PASS_ON)
@_name
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@_sentences
def kubectl(name: str, arguments: tuple[str, ...]) -> None:
    """Run kubectl against a sandbox (give --name first)."""
    sys.exit(launcher.run_kubectl(launcher.attach(name), arguments))


@sandbox.command(context_settings=_PASS_ON)
@_name
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="POD [-n NAMESPACE] [-f]")
@_sentences
def logs(name: str, arguments: tuple[str, ...]) -> None:
    """Print a pod's output, as kubectl logs does (give --name first)."""
    sys.exit(launcher.run_kubectl(launcher.attach(name), ["logs", *arguments]))
