"""Which pods go first when a model gets fewer: those with the fewest requests.

Owns asking the model servers for their own counts (NIM's metrics, the same that their preStop
reads) and turning them into `controller.kubernetes.io/pod-deletion-cost`, which the ReplicaSet
controller obeys (KEP-2255). Who writes the annotation is the autoscaler. Best effort: a server that
does not answer counts as the busiest, and where none answers Kubernetes chooses.
"""

import asyncio
from collections.abc import Mapping

import aiohttp

COST_ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
METRICS_PATH = "/v1/metrics"
TIMEOUT_S = 1.0
ANSWER_BYTES_MAX = 4 * 1024 * 1024
AT_ONCE_MAX = 64

_COUNTED = frozenset({"num_requests_running", "num_requests_waiting"})


def requests_in(text: str) -> int:
    """Return the running and waiting requests in NIM's metrics, 1.x or 2.x.

    Raises:
        ValueError: they are not there.
    """
    found, total = False, 0.0
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0].rpartition(":")[2]
        if name in _COUNTED:
            found, total = True, total + float(line.rpartition("}")[2].split()[-1])
    if not found:
        raise ValueError("no num_requests_running in the metrics")
    return round(total)


def costs(requests: Mapping[str, int | None]) -> dict[str, int]:
    """Return the deletion cost of each pod by its requests, None for one that did not answer."""
    known = [count for count in requests.values() if count is not None]
    if not known:
        return {}
    most = max(known) + 1
    return {pod: most if count is None else count for pod, count in requests.items()}


async def count_requests(addresses: Mapping[str, str], port: int) -> dict[str, int | None]:
    """Ask the model servers at `addresses` (pod to IP); None for one that does not answer."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=AT_ONCE_MAX)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        found = await asyncio.gather(
            *(_ask(session, address, port) for address in addresses.values())
        )
    return dict(zip(addresses, found, strict=True))


async def _ask(session: aiohttp.ClientSession, address: str, port: int) -> int | None:
    host = f"[{address}]" if ":" in address else address
    try:
        url = f"http://{host}:{port}{METRICS_PATH}"
        async with session.get(url, allow_redirects=False) as answer:
            answer.raise_for_status()
            content = await answer.content.read(ANSWER_BYTES_MAX)
            while not answer.content.at_eof() and len(content) < ANSWER_BYTES_MAX:
                content += await answer.content.read(ANSWER_BYTES_MAX - len(content))
        return requests_in(content.decode(errors="replace"))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None
