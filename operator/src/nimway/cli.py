"""The command line: composition root of both programs and of the sandbox.

Each command lives in its own half and is imported only when it is called, so that a proxy does not
pay for the operator's libraries. Wrong input ends with one sentence and exit code 2.
"""

import importlib
from typing import cast

import click

import nimway

_COMMANDS = {
    "operator": "nimway.control.command:operator",
    "proxy": "nimway.proxy.command:proxy",
    "crds": "nimway.api.command:crds",
    "nim": "nimway.sandbox.nim.command:nim",
    "sandbox": "nimway.sandbox.command:sandbox",
}


class _LazyGroup(click.Group):
    """A click group whose subcommands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        return cast("click.Command", getattr(importlib.import_module(module), attribute))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(nimway.__version__, prog_name="nimway")
def main() -> None:
    """Run NVIDIA NIM microservices on Kubernetes behind one address."""
