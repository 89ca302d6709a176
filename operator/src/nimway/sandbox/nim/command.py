"""`nimway nim`: the simulated NIM as a process, configured by its environment as a NIM's pod is.

Owns exit codes and signals. SIGTERM and SIGINT stop it as NIMSIM_SIGTERM says; a second one ends it
at once.
"""

import asyncio
import logging
import os
import signal

import click
import uvloop

from nimway.sandbox.nim.logs import configure
from nimway.sandbox.nim.server import ListenError, NimServer, check_cache
from nimway.sandbox.nim.settings import (
    ENVIRONMENT_HELP,
    Settings,
    SettingsError,
    behaviour_help,
    settings_from_environment,
)

_log = logging.getLogger("nimway.nim")


class _EnvironmentHelp(click.Command):
    """A command whose help lists the environment it reads."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the two tables below the options."""
        del ctx
        with formatter.section("Environment, as a NIM has it"):
            formatter.write_dl(
                [item for item in ENVIRONMENT_HELP.items() if not item[0].startswith("NIMSIM_")]
            )
        with formatter.section("Environment of the simulation"):
            own = [item for item in ENVIRONMENT_HELP.items() if item[0].startswith("NIMSIM_")]
            formatter.write_dl([*own, *behaviour_help().items()])


@click.command(cls=_EnvironmentHelp)
def nim() -> None:
    """Serve NIM's HTTP API without a model: a simulation for the sandbox and for tests.

    It answers /v1/models, completions, chat, embeddings, ranking and NIM's other paths with text
    drawn at random from a small chain of words, the same text for the same prompt and seed, in the
    time you set. It needs no GPU and no key, and says in every answer that it is simulated. All
    settings come from the environment; GET / on the control port shows what can be changed while it
    runs.
    """
    try:
        settings = settings_from_environment(os.environ)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    configure(settings.log_level, jsonl=settings.jsonl_logging)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_serve(settings))
        except ListenError as error:
            raise click.UsageError(str(error)) from None


async def _serve(settings: Settings) -> None:
    check_cache(settings)
    server = NimServer(settings)
    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            os._exit(1)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await server.start()
    fields = {
        "port": server.port,
        "control_port": server.control_port,
        "models": ",".join(settings.served_model_names),
        "ngc_api_key_given": settings.ngc_api_key_given,
    }
    _log.info("listening; the answers will be simulated", extra={"fields": fields})
    await stopping.wait()
    await server.stop()
