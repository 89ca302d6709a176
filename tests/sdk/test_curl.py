"""The user's own curl, as written in the documentation, run by bash."""

import hashlib
import json
import shutil
import subprocess

import httpx
import pytest

from tests.sdk.names import LLAMA, Inference
from tests.support.sdk import DATA

COMPLETION = (DATA / "completion.sh").read_text(encoding="utf-8")
MODELS = (DATA / "models.sh").read_text(encoding="utf-8")


def bash(script: str, base_url: str) -> str:
    """Run `script` with the base URL in the environment; without jq on this machine, without it."""
    if shutil.which("jq") is None:
        script = script.replace("| jq", "")
    done = subprocess.run(
        ["bash", "-c", "set -euo pipefail\n" + script],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "NIM_PROXY_BASE_URL": base_url},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_documented_completion_works_as_written(inference: Inference) -> None:
    answer = json.loads(bash(COMPLETION, inference.base_url))
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", LLAMA)
    assert answer["choices"][0]["text"].strip()
    assert set(answer["usage"]) >= {"prompt_tokens", "completion_tokens", "total_tokens"}


def test_the_body_arrives_byte_for_byte_and_with_the_request_id_of_the_answer(
    inference: Inference,
) -> None:
    body = b'{ "prompt" : "caf\\u00e9 \xc3\xa9",\t"model":"meta/llama-3.1-8b-instruct" , "n":1}'
    answer = httpx.post(
        f"{inference.base_url}/v1/completions", content=body, headers={"x-request-id": "mine"}
    )
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-nimsim-body-sha256"] == hashlib.sha256(body).hexdigest()
    requests = [httpx.get(f"{nim.control_url}/requests").json() for nim in inference.llamas]
    assert [one["path"] for seen in requests for one in seen if one["request_id"] == "mine"] == [
        "/v1/completions"
    ]


def test_the_documented_list_of_models_works_as_written(inference: Inference) -> None:
    answer = json.loads(bash(MODELS, inference.base_url))
    assert [model["id"] for model in answer["data"]] == inference.models


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1"])
def test_a_stream_arrives_whole_over_either_version_of_http(
    inference: Inference, version: str
) -> None:
    script = COMPLETION.replace("| jq", "").replace("curl ", f"curl -sN {version} ")
    text = bash(script.replace('"max_tokens"', '"stream": true, "max_tokens"'), inference.base_url)
    assert text.count("data: ") > 2
    assert text.endswith("data: [DONE]\n\n")
