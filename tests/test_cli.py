import subprocess
import sys


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


def test_crds_are_printed_for_kubectl() -> None:
    done = _nimway("crds")
    assert done.stdout.count("kind: CustomResourceDefinition") == 2


def test_crds_go_to_an_existing_folder_only() -> None:
    done = _nimway("crds", "--write", "/no/such/folder")
    assert done.returncode == 2
    assert "/no/such/folder" in done.stderr
