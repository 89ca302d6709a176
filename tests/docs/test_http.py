"""docs/http.md names every path, every error and every limit of the proxy, and no other."""

import ast
import dataclasses
import re

import pytest

from nimway.api.nimmodel import Routing
from nimway.proxy import answers, paths
from nimway.proxy.settings import Settings
from nimway.routes import STRATEGIES
from tests.docs.pages import DOCS, ROOT, table

PAGE = DOCS / "http.md"
ANSWERS = ROOT / "operator/src/nimway/proxy/answers.py"
UNSEEN = frozenset(
    (
        "allow_loopback",
        "backlog",
        "linger_s",
        "linger_bytes_max",
        "discard_bytes_max",
        "interim_responses_max",
        "write_buffer_bytes",
        "sweep_period_s",
        "report_delay_s",
        "access_log_buffer_bytes",
    )
)
"""Settings that no user meets: how connections are closed, how often clocks are looked at."""


def _shown(name: str, value: float) -> str:
    """Return a default as the page shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith(("_ratio", "_sample")):
        return f"{value * 100:g} %"
    if name.endswith("_s"):
        return f"{value:g} s"
    if "_bytes" in name:
        return f"{value / 2**20:g} MiB" if value >= 2**20 else f"{value / 2**10:g} KiB"
    return f"{value:,}"


def test_every_limit_stands_in_the_page_with_its_default() -> None:
    expected = {
        f"`{field.name}`": _shown(field.name, getattr(Settings(), field.name))
        for field in dataclasses.fields(Settings)
        if field.name not in UNSEEN
    }
    written = {row[2]: row[1] for row in table(PAGE, "Limits and timeouts")}
    assert written == expected


def test_the_settings_left_out_exist() -> None:
    assert {field.name for field in dataclasses.fields(Settings)} >= UNSEEN


def test_the_paths_are_those_of_the_allow_list() -> None:
    listed = {row[0].strip("`"): row[1] for row in table(PAGE, "Paths")}
    known = {
        **{path.decode(): operation for path, operation in paths._OPERATIONS.items()},
        "/v1/models/{id}": paths.MODEL_CARD,
    }
    plain = {path: op.allow.decode() for path, op in known.items() if "/openai" not in path}
    assert listed == plain


@pytest.mark.parametrize("path", [row[0].strip("`") for row in table(PAGE, "Paths")])
def test_all_paths_but_health_are_under_openai_too(path: str) -> None:
    found = paths.find_operation(f"/openai{path}".encode())
    assert (found is None) is ("health" in path)


def _codes() -> set[tuple[str, str]]:
    """Return (status, code) of every error that answers.py can give."""
    found = {(str(status), code) for status, code in answers._REFUSED_CODES.items()}
    for node in ast.walk(ast.parse(ANSWERS.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        status = node.args[0] if node.args else None
        for keyword in node.keywords:
            if keyword.arg != "code" or not isinstance(status, ast.Constant):
                continue
            if isinstance(keyword.value, ast.Constant):
                found.add((str(status.value), str(keyword.value.value)))
    return found | {("400", "bad_request")}


def test_the_errors_are_those_that_the_proxy_can_give() -> None:
    written = {(row[0], row[1].strip("`")) for row in table(PAGE, "Errors")}
    assert written == _codes()


def test_retry_after_and_should_retry_are_as_the_page_says() -> None:
    waiting = answers.model_not_ready("m", int(Settings().retry_after_s))
    assert waiting.fields == b"Retry-After: 5\r\nx-should-retry: true\r\n"
    for answer in (answers.BAD_GATEWAY, answers.BAD_RESPONSE, answers.GATEWAY_TIMEOUT):
        assert answer.fields == b"x-should-retry: false\r\n"


def test_the_frame_of_a_broken_stream_is_the_one_that_is_shown() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = re.search(r"```text\n(event: error\n.*?)```", text, re.DOTALL)
    assert shown is not None
    assert shown[1] + "\n" == answers.STREAM_BROKEN.decode()


def test_the_settings_of_a_model_are_those_of_the_api() -> None:
    written = {row[0].strip("`") for row in table(PAGE, "Settings of a model")}
    assert written | {"strategy"} == {field.alias for field in Routing.model_fields.values()}


def test_the_strategies_are_those_of_the_table() -> None:
    assert [row[0].strip("`") for row in table(PAGE, "Which pod")] == list(STRATEGIES)


def test_the_page_says_over_what_limits_are_divided() -> None:
    code = (ROOT / "operator/src/nimway/proxy/parent.py").read_text(encoding="utf-8")
    admitted = "*not* divided among proxy pods yet" in PAGE.read_text(encoding="utf-8")
    assert admitted is ("share_among" not in code), "docs/http.md, Settings of a model"
