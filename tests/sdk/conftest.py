"""Where the client libraries' tests send their requests: straight to a simulated NIM."""

from collections.abc import Iterator

import pytest

from tests.sdk.names import EMBEDDER, LLAMA
from tests.support.background import in_background
from tests.support.nim import running_nim


@pytest.fixture(scope="session")
def inference_base_url() -> Iterator[str]:
    """The base URL that a user would put into an SDK, without a path."""
    with in_background(running_nim(LLAMA, EMBEDDER)) as nim:
        yield nim.url
