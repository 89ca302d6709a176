"""The openai SDK, 1.x and 3.x: what its users call first, and the errors they catch."""

from typing import Any

import pytest

from tests.sdk.names import EMBEDDER, LLAMA, Inference
from tests.support.sdk import installed

pytestmark = pytest.mark.timeout(600)  # the first run installs the SDKs


@pytest.fixture(scope="session", params=["openai1", "openai3"])
def openai(request: pytest.FixtureRequest, inference: Inference) -> Any:
    """What each step of use_openai.py brought, with either SDK."""
    return installed(request.param).run("use_openai.py", inference.base_url, LLAMA, EMBEDDER)


def test_models_are_listed_with_all_their_fields(openai: Any, inference: Inference) -> None:
    assert [model["id"] for model in openai["models"]] == inference.models
    assert {model["object"] for model in openai["models"]} == {"model"}
    assert all(model["created"] > 1_600_000_000 and model["by"] for model in openai["models"])


def test_a_model_with_a_slash_in_its_name_is_retrieved(openai: Any) -> None:
    assert openai["model"] == LLAMA


def test_a_completion_is_answered(openai: Any) -> None:
    answer = openai["completion"]
    assert answer["object"] == "text_completion"
    assert answer["text"].strip()
    assert 0 < answer["tokens"] <= 64


def test_a_streamed_completion_brings_the_same_text(openai: Any) -> None:
    assert openai["completion_stream"] == openai["completion"]["text"]


def test_a_chat_stream_brings_the_same_text_word_by_word_and_the_usage(openai: Any) -> None:
    answer = openai["chat_stream"]
    assert answer["text"] == openai["chat"] == openai["async_chat_stream"]
    assert answer["finish_reason"] == "stop"
    assert answer["words"] == answer["tokens"] > 1


def test_embeddings_are_the_same_packed_and_plain(openai: Any) -> None:
    assert openai["embeddings"]["lengths"] == [1024, 1024]
    assert openai["embeddings"]["difference"] < 1e-6


@pytest.mark.parametrize("step", ["unknown_model", "unknown_model_retrieved"])
def test_an_unknown_model_is_not_found(openai: Any, step: str) -> None:
    assert (openai[step]["raised"], openai[step]["status"]) == ("NotFoundError", 404)


@pytest.mark.parametrize(
    ("step", "param"), [("wrong_model", "model"), ("wrong_limit", "max_tokens")]
)
def test_a_bad_body_is_a_bad_request_that_names_the_field(
    openai: Any, step: str, param: str
) -> None:
    error = openai[step]
    assert (error["raised"], error["status"]) == ("BadRequestError", 400)
    assert error["param"] == param
