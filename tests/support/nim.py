"""A simulated NIM inside the test's own event loop, on loopback and on free ports.

`async with running_nim("meta/llama") as nim:` yields its addresses and the server itself; settings
are fields of `Behaviour`. Load and token times are 0 unless a test wants them.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from nimway.sandbox.nim.server import NimServer
from nimway.sandbox.nim.settings import Behaviour, Fault, Settings

QUICK = Behaviour(load_s=0, ttft_s=0, token_s=0, grace_s=5)


@dataclass(frozen=True, slots=True)
class RunningNim:
    """`url` is the API's base (no path), `control_url` the control path's."""

    url: str
    control_url: str
    server: NimServer


@asynccontextmanager
async def running_nim(
    *models: str, faults: Sequence[Fault] = (), settings: Settings | None = None, **behaviour: Any
) -> AsyncIterator[RunningNim]:
    """Serve `models` until the block ends."""
    base = settings or Settings()
    server = NimServer(
        msgspec.structs.replace(
            base,
            host="127.0.0.1",
            port=0,
            control_port=0,
            served_model_names=models or base.served_model_names,
            behaviour=msgspec.structs.replace(QUICK, **behaviour),
            faults=tuple(faults),
        )
    )
    await server.start()
    try:
        yield RunningNim(
            f"http://127.0.0.1:{server.port}", f"http://127.0.0.1:{server.control_port}", server
        )
    finally:
        await server.stop()
