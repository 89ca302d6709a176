"""What users of each SDK see when a model is not there or dies: an error, and no second run."""

from typing import Any

import httpx
import pytest

from tests.sdk.names import EMBEDDER, LLAMA, Inference
from tests.support.sdk import installed

pytestmark = [
    pytest.mark.timeout(600),  # the first run installs the SDKs
    pytest.mark.parametrize("name", ["nemo", "openai1", "openai3"]),
]


def attempt(name: str, proxied: Inference, step: str) -> Any:
    script = "use_nemo.py" if name == "nemo" else "use_openai.py"
    return installed(name).run(script, proxied.base_url, LLAMA, EMBEDDER, step)[step]


def break_llamas(proxied: Inference, **fault: Any) -> None:
    for nim in proxied.llamas:
        assert httpx.put(f"{nim.control_url}/faults", json=[fault]).status_code == 200


def executions(proxied: Inference) -> int:
    counts = [httpx.get(f"{nim.control_url}/executions").json() for nim in proxied.llamas]
    return sum(count["executed"] for count in counts)


def test_a_model_without_a_ready_replica_is_unavailable_and_says_when_to_retry(
    name: str, proxied: Inference
) -> None:
    error = attempt(name, proxied, "not_ready")
    assert (error["raised"], error["status"]) == ("InternalServerError", 503)
    assert 0 < int(error["headers"]["retry-after"]) <= 60


def test_the_comments_of_a_held_stream_are_no_events_and_its_end_is_an_error(
    name: str, proxied: Inference
) -> None:
    error = attempt(name, proxied, "held_stream")
    assert error["raised"] in ("APIError", "APIStatusError")
    about = error["body"]["error"] if name == "nemo" else error
    assert about["code"] == "model_not_ready"


def test_a_request_that_ran_and_got_no_answer_is_not_run_again(
    name: str, proxied: Inference
) -> None:
    break_llamas(proxied, kind="reset")
    error = attempt(name, proxied, "broken_answer")
    assert (error["raised"], error["status"]) == ("InternalServerError", 502)
    assert executions(proxied) == 1


@pytest.mark.parametrize("kind", ["fin_mid_stream", "reset_mid_stream"])
def test_a_stream_whose_model_dies_ends_with_an_error(
    name: str, proxied: Inference, kind: str
) -> None:
    break_llamas(proxied, kind=kind, after_chunks=3)
    error = attempt(name, proxied, "broken_stream")
    assert error["raised"] in ("APIError", "APIStatusError")
    about = error["body"]["error"] if name == "nemo" else error
    assert about["code"] == "upstream_failed"
    assert executions(proxied) == 1
