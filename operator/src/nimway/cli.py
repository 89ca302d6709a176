"""The command line: composition root of both programs and of the sandbox.

Each command lives in its own half and is imported only when it is called, so that a proxy does not
pay for the operator's libraries. Wrong input ends with one sentence and exit code 2.
"""

import importlib
from typing import cast

import click

import nimway

_COMMANDS = {
    "operator": ("nimway.control.command:operator", "Run the operator (in its pod)."),
    "proxy": ("nimway.proxy.command:proxy", "Run the proxy (in its pod)."),
    "crds": ("nimway.api.command:crds", "Print the CustomResourceDefinitions."),
    "nim": ("nimway.sandbox.nim.command:nim", "Run a simulated NIM."),
    "sandbox": ("nimway.sandbox.command:sandbox", "A real control plane on this machine."),
}
"""Commands: where each is found, and what the list of commands says about it."""


class _LazyGroup(click.Group):
    """A click group whose subcommands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        return cast("click.Command", getattr(importlib.import_module(module), attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(nimway.__version__, prog_name="nimway")
def main() -> None:
    """Run NVIDIA NIM microservices on Kubernetes behind one address."""
