"""`nimway sandbox ...`: the sandbox at the terminal.

Owns options, words and exit codes (2 for what the user can put right, 1 for a step that failed). It
starts nothing itself.
"""

import functools
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Final, ParamSpec, TypeVar

import click

from nimway.sandbox import binaries as programs
from nimway.sandbox import launcher
from nimway.sandbox.errors import FailedError, SandboxError

P = ParamSpec("P")
T = TypeVar("T")

_EXIT_INTERRUPTED: Final = 130


def _sentences(function: Callable[P, T]) -> Callable[P, T]:
    """Turn the sandbox's errors into one sentence and their exit code."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except SandboxError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(error.exit_code)

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
@click.option(
    "--nodes",
    type=click.IntRange(0, 100),
    default=2,
    show_default=True,
    help="GPU nodes; one node without GPUs comes on top.",
)
@click.option(
    "--gpus-per-node",
    type=click.IntRange(0, 1000),
    default=8,
    show_default=True,
    help="GPUs that each of them claims to have.",
)
@click.option(
    "--backoff",
    type=click.FloatRange(0.1, 300.0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Until a crashed container starts again, the first time.",
)
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
    """Start a sandbox: nodes with GPUs and one without."""
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
            _stay_until_interrupted(started)
        finally:
            started.stop()


class _interruptible:  # noqa: N801 - reads as the statement it is
    """Treat SIGTERM and SIGHUP as Ctrl-C, and end quietly with 130 on any of them.

    SIGINT is taken too: a shell without a terminal has its background jobs ignore it.
    """

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._interrupt)

    @staticmethod
    def _interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        del rest
        if kind is KeyboardInterrupt:
            sys.exit(_EXIT_INTERRUPTED)


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


# Everything from the first word on is kubectl's, its own `--` and `--help` included.
_PASS_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@sandbox.command(context_settings=_PASS_ON)
@_name
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="VERB ...")
@_sentences
def kubectl(name: str, arguments: tuple[str, ...]) -> None:
    """Run kubectl against a sandbox; all from its first word on is kubectl's, --help too."""
    sys.exit(launcher.run_kubectl(launcher.attach(name), arguments))


@sandbox.command(context_settings=_PASS_ON)
@_name
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="POD [-n NAMESPACE] [-f]")
@_sentences
def logs(name: str, arguments: tuple[str, ...]) -> None:
    """Print a pod's output, as kubectl logs does; options of ours come first."""
    sys.exit(launcher.run_kubectl(launcher.attach(name), ["logs", *arguments]))


@sandbox.command()
@_sentences
def binaries() -> None:
    """Build or fetch what the sandbox needs, and print where it is; nothing to do the next time."""
    for path in programs.everything(lambda text: click.echo(text, err=True)):
        click.echo(path)


@sandbox.command()
@_name
@click.option(
    *("-n", "--namespace"), default="default", show_default=True, help="The Service's namespace."
)
@click.option("--port-name", default="http", show_default=True, help="Name of the Service's port.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port on 127.0.0.1 [free one].")
@click.argument("service")
@_sentences
def forward(*, name: str, namespace: str, port_name: str, port: int | None, service: str) -> None:
    """Join a port of 127.0.0.1 to a Service's ready pods for as long as the sandbox runs."""
    listener = launcher.listen_on_loopback(port or 0)
    found = launcher.attach(name).forward_service(namespace, service, port_name, listener)
    click.echo(f"http://127.0.0.1:{found}")


@sandbox.command()
@click.option("--name", default="demo", show_default=True, help="The sandbox's name.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8080,
    show_default=True,
    help="The proxy's port on 127.0.0.1.",
)
@click.option("--once", is_flag=True, help="End after the answers: with 0, or 1 if a step failed.")
@_sentences
def demo(*, name: str, port: int, once: bool) -> None:
    """Show everything: a cluster, four models, and answers through the proxy."""
    # Imported here: the other commands need not wait for an HTTP client.
    from nimway.sandbox.demo import Demo  # noqa: PLC0415

    run = Demo(launcher.Options(name=name), launcher.listen_on_loopback(port), click.echo)
    with _interruptible():
        try:
            run.run()
            if once:
                return
            click.echo(run.next_steps())
            _stay_until_interrupted(run.sandbox)
        finally:
            if run.sandbox is not None:
                run.sandbox.stop()


def _stay_until_interrupted(started: launcher.Sandbox | None) -> None:
    """Return at Ctrl-C, the way in which a sandbox is meant to end."""
    try:
        while started is not None and started.is_running():
            time.sleep(0.5)
    except KeyboardInterrupt:
        return
    raise FailedError("the sandbox ended by itself")
