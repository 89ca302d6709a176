"""What the client libraries' tests ask for, and whom."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.support.nim import RunningNim

LLAMA = "meta/llama-3.1-8b-instruct"
EMBEDDER = "nvidia/nv-embedqa-e5-v5"
NOT_READY = "meta/not-ready"


@dataclass(frozen=True, slots=True)
class Inference:
    """An address for SDKs. `models` are listed there; `llamas` are the NIMs behind `LLAMA`."""

    base_url: str
    models: Sequence[str]
    llamas: Sequence[RunningNim]
