"""PX-10 on a real control plane: proxies and models end, die and come back under load.

Also the share of `maxConcurrency` that each of two proxies takes, and SEC-2. A rolling restart of
the proxies under load is in `test_path.py`.
"""

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

from nimway.sandbox.launcher import Sandbox
from tests.control.process import connect as connect_to_api
from tests.support.faults import FULL
from tests.support.installed import NAMESPACE, Installed, eventually
from tests.support.proxy_wire import connect, post

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

STREAMS = 500 if FULL else 50
TOKENS, TOKEN_S = (16, 1.0) if FULL else (20, 0.5)
CHURN_S, CHURN_PER_S = (60.0 if FULL else 8.0), 10
END = b"data: [DONE]\n\n\r\n0\r\n\r\n"
PROXIES = "app.kubernetes.io/component=proxy"


def environment(**values: str) -> list[dict[str, str]]:
    return [{"name": f"NIMSIM_{name}", "value": value} for name, value in values.items()]


SLOW = environment(TOKEN_S=str(TOKEN_S), CONCURRENCY_MAX="0")


@dataclass
class Clients:
    """What clients in a thread of their own saw: streams that began and ended, and requests."""

    begun: int = 0
    whole: int = 0
    cut: int = 0
    answered: int = 0
    failed: list[tuple[float, str]] = field(default_factory=list)
    stop: bool = False

    async def stream(self, port: int, body: bytes) -> None:
        async with connect(port) as client:
            await client.send(post(body, fields="Connection: close\r\n"))
            data = b""
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                data = await client.reader.readuntil(b"data: ")
                self.begun += 1
                while piece := await client.reader.read(65536):
                    data += piece
        if data.startswith(b"HTTP/1.1 200 ") and data.endswith(END) and b"event: error" not in data:
            self.whole += 1
        else:
            self.cut += 1

    async def load(self, port: int, body: bytes) -> None:
        """One request after the other, each on a connection of its own, as a careless client."""
        while not self.stop:
            try:
                async with connect(port) as client:
                    answer = await client.ask(post(body))
                outcome = "" if answer.clean and answer.status == 200 else str(answer.status)
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                outcome = repr(error)
            self.answered += not outcome
            if outcome:
                self.failed.append((time.monotonic(), outcome))

    @property
    def ended(self) -> int:
        return self.whole + self.cut


@contextmanager
def clients(
    model: str, *, streams: dict[int, int] | None = None, loads: dict[int, int] | None = None
) -> Iterator[Clients]:
    """Open so many streams and loads on each port, and yield once all streams have begun.

    The block's end waits for the streams' ends.
    """
    seen = Clients()
    short = {"model": model, "prompt": "x", "max_tokens": 1}
    long = {**short, "max_tokens": TOKENS, "stream": True, "ignore_eos": True}
    bodies = [json.dumps(body).encode() for body in (short, long)]

    async def run() -> None:
        work = [
            do(port, body)
            for do, ports, body in (
                (seen.load, loads, bodies[0]),
                (seen.stream, streams, bodies[1]),
            )
            for port, count in (ports or {}).items()
            for _ in range(count)
        ]
        await asyncio.gather(*work)

    thread = threading.Thread(target=lambda: uvloop.run(run()), name="clients")
    thread.start()
    count = sum((streams or {}).values())
    try:
        eventually(lambda: seen.begun + seen.cut >= count, 60, "all streams have begun")
        assert seen.ended == 0, "the streams are too short for this machine"
        yield seen
        eventually(lambda: seen.ended == count, TOKENS * TOKEN_S + 60, "all streams have ended")
    finally:
        seen.stop = True
        thread.join(60)


@pytest.fixture
def sandbox(installed: Installed) -> Sandbox:
    if installed.cluster.sandbox is None:
        pytest.skip("needs a way to each pod, and its processes")
    return installed.cluster.sandbox


def port_of(installed: Installed) -> int:
    return int(installed.base_url.rpartition(":")[2])


def proxy_pods(installed: Installed) -> dict[str, str]:
    """Return names and addresses of the proxy pods that are ready and stay."""
    return {
        pod["metadata"]["name"]: pod["status"]["podIP"]
        for pod in installed.list(NAMESPACE, "pods", PROXIES)
        if "deletionTimestamp" not in pod["metadata"] and is_ready(pod)
    }


def is_ready(pod: Any) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def model_pods(installed: Installed, namespace: str, name: str) -> list[Any]:
    return installed.list(namespace, "pods", f"app.kubernetes.io/instance={name}")


def serve(installed: Installed, namespace: str, name: str, **spec: Any) -> str:
    model = f"org/{namespace}-{name}"
    installed.apply_model(namespace, name, model, **spec)
    installed.wait_ready(namespace, name)
    return model


def metric(port: int, name: str, labels: str) -> float:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=10).text
    lines = (line.rpartition(" ") for line in text.splitlines())
    return next((float(value) for key, _, value in lines if key == name + labels), 0.0)


def test_a_proxy_that_is_told_to_end_cuts_no_stream(
    installed: Installed, sandbox: Sandbox, models: str
) -> None:
    model = serve(installed, models, "long", env=SLOW)
    before = proxy_pods(installed)
    victim, address = min(before.items())
    admin = sandbox.forward_address(address, 8001)
    port = port_of(installed)
    with clients(model, streams={port: STREAMS}, loads={port: 2}) as seen:
        in_flight = metric(admin, "nimway_proxy_requests_in_flight", f'{{model="{model}"}}')
        assert in_flight >= STREAMS * 0.3
        installed.kubectl("delete", "pod", "-n", NAMESPACE, victim, "--wait=false")
    eventually(lambda: installed.get(NAMESPACE, "pod", victim) is None, 60)
    sys.stdout.write(
        f"SIGTERM with {in_flight:.0f} of {STREAMS} streams: {seen.cut} cut; "
        f"{seen.answered} requests, {len(seen.failed)} failed\n"
    )
    assert (seen.whole, seen.cut, seen.failed) == (STREAMS, 0, [])
    assert seen.answered > 20
    eventually(lambda: len(proxy_pods(installed)) == len(before), 60)


@pytest.fixture
def three_proxies(installed: Installed) -> Iterator[dict[str, str]]:
    def scale(replicas: int) -> None:
        patch = json.dumps({"spec": {"replicas": replicas}})
        installed.kubectl("patch", "-n", NAMESPACE, "nimproxy/default", "--type=merge", "-p", patch)
        eventually(lambda: len(proxy_pods(installed)) == replicas, 60)

    scale(3)
    yield proxy_pods(installed)
    scale(2)


def test_a_proxy_that_is_killed_takes_only_its_own_streams_along(
    installed: Installed, sandbox: Sandbox, three_proxies: dict[str, str], models: str
) -> None:
    model = serve(installed, models, "long", env=SLOW)
    each = STREAMS // 3
    victim, *others = sorted(three_proxies)
    ports = {name: sandbox.forward_address(three_proxies[name], 8000) for name in three_proxies}
    through = port_of(installed)
    with (
        clients(model, streams={ports[victim]: each}) as lost,
        clients(
            model,
            streams={ports[name]: each for name in others},
            loads={ports[name]: 2 for name in others},
        ) as kept,
        clients(model, loads={through: 2}) as service,
    ):
        os.kill(pid_with(f"POD_NAME={victim}\0"), signal.SIGKILL)
        killed = time.monotonic()
        eventually(lambda: lost.cut == each, 10, "its own streams are cut")
        eventually(lambda: len(proxy_pods(installed)) == 3, 60, "it is back")
        answered = service.answered
        eventually(lambda: service.answered > answered + 20, 30, "the Service serves")
    last_s = max((at - killed for at, _ in service.failed), default=0.0)
    sys.stdout.write(
        f"SIGKILL: {lost.cut} of its own {each} streams cut, {kept.cut} of the others' {2 * each}; "
        f"others' requests {kept.answered}, {len(kept.failed)} failed; through the Service "
        f"{service.answered}, {len(service.failed)} failed, the last {last_s:.1f} s after it\n"
    )
    assert (lost.whole, lost.cut) == (0, each)
    assert (kept.whole, kept.cut, kept.failed) == (2 * each, 0, [])
    assert kept.answered > 20
    assert last_s < 5
    admin = sandbox.forward_address(three_proxies[others[0]], 8001)
    labels = f'{{model="{model}"}}'
    eventually(lambda: metric(admin, "nimway_proxy_requests_in_flight", labels) == 0)


def pid_with(text: str) -> int:
    """Return the oldest process, as this machine sees them, with this in its environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text in (folder / "environ").read_text(errors="replace"):
                found.append(int(folder.name))
        except OSError:
            continue
    assert found, text
    return min(found)


async def test_endpoints_that_come_and_go_ten_times_a_second_cost_no_request(
    installed: Installed, models: str
) -> None:
    """Readiness flaps on the real API server; pods serve on, as a flapping probe's do."""
    model = await asyncio.to_thread(serve, installed, models, "churned", replicas=3, env=SLOW)
    names = [pod["metadata"]["name"] for pod in model_pods(installed, models, "churned")]
    before = _changes(installed, models)
    port = port_of(installed)
    entered = clients(model, streams={port: STREAMS // 5}, loads={port: 3})
    async with connect_to_api(installed.cluster.kubeconfig) as api:

        async def mark(name: str, status: str) -> None:
            await api.request(
                "PATCH",
                f"/api/v1/namespaces/{models}/pods/{name}/status",
                body={"status": {"conditions": [{"type": "Ready", "status": status}]}},
                content_type="application/strategic-merge-patch+json",
            )

        seen = await asyncio.to_thread(entered.__enter__)
        start = time.monotonic()
        turn = 0
        while (now := time.monotonic() - start) < CHURN_S:
            name = names[turn // 2 % len(names)]
            await mark(name, "True" if turn % 2 else "False")
            turn += 1
            await asyncio.sleep(max(0.0, turn / CHURN_PER_S - now))  # the pace is the fault
        for name in names:
            await mark(name, "True")
        changes = _changes(installed, models) - before
        await asyncio.to_thread(entered.__exit__, None, None, None)
    sys.stdout.write(
        f"churn: {changes} changes of EndpointSlices in {CHURN_S:g} s; {seen.answered} requests, "
        f"{len(seen.failed)} failed; {seen.whole} streams, {seen.cut} cut\n"
    )
    assert changes >= CHURN_S * CHURN_PER_S * 0.5
    assert (seen.failed, seen.cut) == ([], 0)
    assert seen.answered > 20


def _changes(installed: Installed, namespace: str) -> int:
    slices = installed.list(namespace, "endpointslices")
    return sum(each["metadata"]["generation"] for each in slices)


def test_a_rollout_of_a_model_that_cuts_its_streams_on_sigterm_cuts_none(
    installed: Installed, models: str
) -> None:
    """The pod's drain waits until its own metrics show no request, and only then SIGTERM comes."""
    cutting = [*SLOW, *environment(SIGTERM="cut")]
    model = serve(installed, models, "cutting", env=cutting, drain={"seconds": 120})
    (old,) = model_pods(installed, models, "cutting")
    port = port_of(installed)
    with clients(model, streams={port: 50}, loads={port: 2}) as seen:
        changed = [*cutting, {"name": "CHANGED", "value": "1"}]
        installed.apply_model(models, "cutting", model, env=changed, drain={"seconds": 120})
        eventually(partial(_is_leaving, installed, models, old), 60, "the old pod leaves")
    eventually(lambda: not _finds(installed, models, old), 60, "the old pod is gone")
    eventually(lambda: seen.answered > 20, 30)
    sys.stdout.write(
        f"rollout: {seen.whole} streams, {seen.cut} cut; {seen.answered} requests, "
        f"{len(seen.failed)} failed\n"
    )
    assert (seen.whole, seen.cut, seen.failed) == (50, 0, [])
    (new,) = model_pods(installed, models, "cutting")
    assert new["metadata"]["uid"] != old["metadata"]["uid"]


def _finds(installed: Installed, namespace: str, pod: Any) -> Any:
    found = installed.get(namespace, "pod", pod["metadata"]["name"])
    return found if found and found["metadata"]["uid"] == pod["metadata"]["uid"] else None


def _is_leaving(installed: Installed, namespace: str, pod: Any) -> bool:
    found = _finds(installed, namespace, pod)
    return found is None or "deletionTimestamp" in found["metadata"]


def test_max_concurrency_is_shared_among_the_proxies(
    installed: Installed, sandbox: Sandbox, models: str
) -> None:
    """Five places over two workers: two each, rounded down; the pod never runs more than four."""
    eventually(lambda: len(proxy_pods(installed)) == 2, 60)
    slow = environment(TTFT_S="0.1")
    model = serve(installed, models, "narrow", env=slow, routing={"maxConcurrency": 5})
    (pod,) = model_pods(installed, models, "narrow")
    control = sandbox.forward_address(pod["status"]["podIP"], 8002)
    with clients(model, loads={port_of(installed): 16}) as seen:
        eventually(lambda: _most(control, 1.0) == 4, 20, "each proxy knows of the other")
        assert _most(control, 2.0) == 4
        answered = seen.answered
        eventually(lambda: seen.answered > answered + 20, 30)
    assert seen.failed == []


def _most(control: int, seconds: float) -> int:
    """Return the most requests that the model server was seen to have at a time, queued or not."""
    end, most = time.monotonic() + seconds, 0
    with httpx.Client(trust_env=False, timeout=10) as client:
        while time.monotonic() < end:
            engine = client.get(f"http://127.0.0.1:{control}/engine").json()
            most = max(most, engine["running"] + engine["waiting"])
    return most


def test_what_a_user_writes_reaches_the_process_as_it_is_written(
    installed: Installed, sandbox: Sandbox, models: str
) -> None:
    """SEC-2: no shell, no template and no expansion reads it; a name is plain from the start."""
    assert sandbox.is_running()
    nasty = "-- $(reboot) `id` ;&| \"quoted\" 'single' \\ {{ .Values }} %s\nsecond: line"
    for number, refused in enumerate(("-x", "a$(HOME)", "a\nb", 'a"b', "a b", "a,b", "")):
        with pytest.raises(AssertionError, match=r"spec\.model"):
            installed.apply_model(models, f"refused-{number}", refused)
    model = f"org/{models}-nasty"
    installed.apply_model(models, "nasty", model, env=[{"name": "NASTY", "value": nasty}])
    installed.wait_ready(models, "nasty")
    assert installed.complete(model).status_code == 200
    pid = pid_with(f"NIM_SERVED_MODEL_NAME={model}\0")
    environ = Path(f"/proc/{pid}/environ").read_text().split("\0")
    assert f"NASTY={nasty}" in environ
