"""`nimway operator` on the command line: what keeps it from starting is one sentence."""

import json
from pathlib import Path

import pytest

from tests.control.process import start_operator
from tests.support.ports import free_port

NOWHERE = {"name": "nowhere"}
KUBECONFIG = {
    "clusters": [NOWHERE | {"cluster": {"server": f"http://127.0.0.1:{free_port()}"}}],
    "users": [NOWHERE | {"user": {}}],
    "contexts": [NOWHERE | {"context": {"cluster": "nowhere", "user": "nowhere"}}],
    "current-context": "nowhere",
}
"""It is whole, but nobody listens there."""


@pytest.mark.parametrize(
    "content",
    [None, "nothing", "a: [\nb", json.dumps(KUBECONFIG | {"current-context": "elsewhere"})],
    ids=["missing", "no mapping", "broken", "no such context"],
)
def test_a_kubeconfig_that_cannot_be_used_ends_with_2(tmp_path: Path, content: str | None) -> None:
    code, said = _fail_to_start(tmp_path, content)
    assert code == 2
    *logged, sentence = said.splitlines()
    assert sentence.startswith("Error: the operator cannot start: no cluster configuration: ")
    # The client library logs which file is missing.
    assert ["Config not found" in line for line in logged] == ([] if content else [True])


def test_an_option_that_is_wrong_ends_with_2(tmp_path: Path) -> None:
    code, said = _fail_to_start(tmp_path, json.dumps(KUBECONFIG), "--health-port=0")
    assert code == 2
    assert "0 is not in the range 1<=x<=65535" in said
    assert "Traceback" not in said


def test_an_api_server_that_does_not_answer_ends_with_1(tmp_path: Path) -> None:
    code, said = _fail_to_start(tmp_path, json.dumps(KUBECONFIG))
    assert code == 1
    assert said.startswith("Error: the operator cannot start: ")
    assert "\n" not in said


def _fail_to_start(folder: Path, content: str | None, *arguments: str) -> tuple[int, str]:
    """Return the exit code of an operator with this kubeconfig, and what it wrote."""
    kubeconfig = folder / "kubeconfig"
    if content is not None:
        kubeconfig.write_text(content)
    operator = start_operator(kubeconfig, "nimway-system", folder / "log", *arguments)
    code = operator.process.wait(timeout=30)
    return code, operator.log.read_text(encoding="utf-8").strip()
