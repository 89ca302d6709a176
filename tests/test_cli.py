import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from nimway.api.command import crds
from nimway.cli import main
from nimway.control.command import operator
from nimway.proxy.command import proxy
from nimway.sandbox import launcher
from nimway.sandbox.command import sandbox


def _nimway(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nimway", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def test_help_lists_every_command() -> None:
    done = _nimway("--help")
    assert done.returncode == 0
    for command in ("operator", "proxy", "crds", "nim", "sandbox"):
        assert f"\n  {command} " in done.stdout


def test_an_unknown_command_ends_with_one_sentence_and_exit_code_2() -> None:
    done = _nimway("oparator")
    assert done.returncode == 2
    assert "No such command 'oparator'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [operator, proxy, crds, *sandbox.commands.values()])
def test_every_option_says_what_it_does(command: click.Command) -> None:
    options = [each for each in command.params if isinstance(each, click.Option)]
    assert [each.opts for each in options if not each.help] == []


@pytest.mark.parametrize("command", sandbox.commands)
def test_the_help_of_a_sandbox_command_needs_no_sandbox(command: str) -> None:
    done = CliRunner().invoke(main, ["sandbox", command, "--help"])
    assert done.exit_code == 0
    assert done.output.startswith(f"Usage: main sandbox {command} ")


def test_what_follows_kubectls_first_word_is_kubectls(monkeypatch: pytest.MonkeyPatch) -> None:
    passed_on: list[tuple[str, ...]] = []
    monkeypatch.setattr(launcher, "attach", lambda _: None)
    monkeypatch.setattr(launcher, "run_kubectl", lambda _, arguments: passed_on.append(arguments))
    CliRunner().invoke(main, ["sandbox", "kubectl", "-n", "x", "get", "pods", "--help"])
    assert passed_on == [("-n", "x", "get", "pods", "--help")]


def test_an_operator_without_an_image_names_option_and_variable() -> None:
    done = _nimway("operator")
    assert done.returncode == 2
    assert "--proxy-image" in done.stderr
    assert "NIMWAY_PROXY_IMAGE" in done.stderr


def test_crds_are_printed_for_kubectl() -> None:
    done = _nimway("crds")
    assert done.stdout.count("kind: CustomResourceDefinition") == 2


def test_crds_go_to_an_existing_folder_only() -> None:
    done = _nimway("crds", "--write", "/no/such/folder")
    assert done.returncode == 2
    assert "/no/such/folder" in done.stderr
