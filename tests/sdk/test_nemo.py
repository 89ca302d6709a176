"""nemo-microservices 1.5.0, as NVIDIA's documentation uses it."""

from typing import Any

import pytest

from tests.sdk.names import EMBEDDER, LLAMA, Inference
from tests.support.sdk import installed

pytestmark = pytest.mark.timeout(600)  # the first run installs the SDK


@pytest.fixture(scope="session")
def nemo(inference: Inference) -> Any:
    """What each step of use_nemo.py brought."""
    return installed("nemo").run("use_nemo.py", inference.base_url, LLAMA, EMBEDDER)


def test_models_are_listed(nemo: Any, inference: Inference) -> None:
    assert nemo["models"] == inference.models


def test_the_documented_completion_works_as_written(nemo: Any) -> None:
    answer = nemo["completion"]
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", LLAMA)
    assert answer["text"].strip()
    assert answer["finish_reason"] in ("stop", "length")
    assert 0 < answer["completion_tokens"] <= 100


def test_a_streamed_completion_brings_the_same_text_piece_by_piece(nemo: Any) -> None:
    answer = nemo["completion_stream"]
    assert answer["text"] == nemo["completion"]["text"]
    assert answer["chunks"] == nemo["completion"]["completion_tokens"]
    assert answer["finish_reason"] == nemo["completion"]["finish_reason"]


def test_chat_brings_the_same_text_streamed_or_not(nemo: Any) -> None:
    assert nemo["chat"].strip()
    assert nemo["chat_stream"] == nemo["chat"]


def test_embeddings_have_their_length(nemo: Any) -> None:
    assert nemo["embeddings"] == [1024, 1024]


def test_classify_answers(nemo: Any) -> None:
    assert nemo["classify"] == "list"


def test_an_unknown_model_is_not_found(nemo: Any) -> None:
    assert (nemo["unknown_model"]["raised"], nemo["unknown_model"]["status"]) == (
        "NotFoundError",
        404,
    )


@pytest.mark.parametrize(
    ("step", "param"), [("wrong_model", "model"), ("wrong_limit", "max_tokens")]
)
def test_a_bad_body_is_a_bad_request_that_names_the_field(nemo: Any, step: str, param: str) -> None:
    error = nemo[step]
    assert (error["raised"], error["status"]) == ("BadRequestError", 400)
    about = error["body"].get("error", error["body"])
    assert about["param"] == param
