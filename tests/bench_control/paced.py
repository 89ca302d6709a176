"""One object at a time: from a client's call to what it causes, in milliseconds.

Every time begins just before the client's call and so contains the call itself.
"""

import asyncio
import time
from collections.abc import Awaitable, Iterable
from functools import partial
from typing import Any

from nimway.tasks import spawn
from tests.bench_control import floor
from tests.bench_control.audit import OPERATOR, AuditLog, Request, count
from tests.bench_control.bench import ROUTES, Bench, models_path, pause, say, summary
from tests.bench_control.proxies import Upstream
from tests.bench_control.watching import Manifest, Watch, is_named, is_successor, spec_holds
from tests.support.installed import NAMESPACE

_WAIT_S = 20.0


async def measure(bench: Bench) -> None:
    """Measure everything that takes one model at a time."""
    count = 12 if bench.quick else 100
    namespace = await bench.create_namespace("paced")
    deployments = await bench.watch_deployments(namespace)
    names = [f"m-{number}" for number in range(count)]
    for step in (_create, _change, _replace):
        say(f"{step.__name__.strip('_')}: {count} times")
        bench.audit.mark()
        await step(bench, namespace, deployments, names)
    deployments.stop()
    template = await floor.Template.read(bench, namespace)
    say(f"routes: {count} times")
    await _list_and_delete(bench, namespace, count)
    say(f"first request: {count} times")
    await _first_request(bench, namespace, count)
    await bench.delete_models(namespace)
    say(f"change and replace without an operator: {count} times")
    await floor.measure_paced(bench, count, template)


async def _create(bench: Bench, namespace: str, watch: Watch, names: list[str]) -> None:
    times = []
    for name in names:
        arrived = watch.expect(partial(is_named, name))
        began_s = time.perf_counter()
        await bench.create_model(namespace, name)
        times.append(1000 * ((await asyncio.wait_for(arrived, _WAIT_S))[0] - began_s))
        await pause(0.15, 0.35)
    bench.found["create"] = summary(times)
    bench.found["create_split"] = _split(bench.audit, names, times, ("create", "nimmodels"))


async def _change(bench: Bench, namespace: str, watch: Watch, names: list[str]) -> None:
    times = []
    for name in names:
        wanted = f"changed-{name}"
        arrived = watch.expect(partial(spec_holds, wanted))
        began_s = time.perf_counter()
        await bench.client.patch(
            models_path(namespace, name),
            {"spec": {"env": [{"name": "BENCH", "value": wanted}]}},
        )
        times.append(1000 * ((await asyncio.wait_for(arrived, _WAIT_S))[0] - began_s))
        await pause(0.15, 0.35)
    bench.found["change"] = summary(times)
    bench.found["change_split"] = _split(bench.audit, names, times, ("patch", "nimmodels"))


async def _replace(bench: Bench, namespace: str, watch: Watch, names: list[str]) -> None:
    times = []
    for name in names:
        uid = watch.objects[namespace, name]["metadata"]["uid"]
        arrived = watch.expect(partial(is_successor, name, uid))
        began_s = time.perf_counter()
        await bench.client.delete(
            f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}",
            {"propagationPolicy": "Background"},
        )
        times.append(1000 * ((await asyncio.wait_for(arrived, _WAIT_S))[0] - began_s))
        await pause(0.15, 0.35)
    bench.found["replace"] = summary(times)
    bench.found["replace_split"] = _split(bench.audit, names, times, ("delete", "deployments"))


def _split(
    audit: AuditLog, names: list[str], times: list[float], cause: tuple[str, str]
) -> dict[str, Any]:
    """Say who spent the time from the client's request to the Deployment, by the server's clock.

    server: in the two requests; operator: from the answer to the client until the last apply
    arrives, which holds the watch event's way; rest: the client, and the event's way back to it.
    """
    asked: dict[str, Request] = {}
    applied: dict[str, Request] = {}
    for each in audit.requests():
        name = each.key.partition("/")[2]
        if (each.verb, each.resource) == cause and each.user != OPERATOR:
            asked.setdefault(name, each)
        elif each.resource == "deployments" and each.user == OPERATOR and each.code < 300:
            applied.setdefault(name, each)
    rows: dict[str, list[float]] = {"server": [], "operator": [], "rest": []}
    for name, total_ms in zip(names, times, strict=True):
        first, second = asked[name], applied[name]
        in_server = first.answered_s - first.received_s + second.answered_s - second.received_s
        rows["server"].append(1000 * in_server)
        rows["operator"].append(1000 * (second.received_s - first.answered_s))
        rows["rest"].append(total_ms - 1000 * (second.answered_s - first.received_s))
    return {
        **{who: summary(values) for who, values in rows.items()},
        "writes": count(audit.writes()),
    }


async def _list_and_delete(bench: Bench, namespace: str, count: int) -> None:
    """Create -> listed by every proxy pod; delete -> listed by none."""
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
    table = await Watch(bench.client, path, fieldSelector=f"metadata.name={ROUTES}").start()
    listed, served, gone = [], [], []
    async with bench.proxy_pods() as pods:
        for number in range(count):
            name = f"r-{number}"
            written = table.expect(partial(_table_holds, f'"bench/{name}"'))
            began_s = time.perf_counter()
            polls = [pod.until_listed(f"bench/{name}") for pod in pods]
            end_s = await _last(bench.create_model(namespace, name), polls)
            listed.append(1000 * (end_s - began_s))
            written_s = (await asyncio.wait_for(written, _WAIT_S))[0]
            served.append(1000 * max(0.0, end_s - written_s))
            await pause(0.1, 0.6)
            began_s = time.perf_counter()
            polls = [pod.until_listed(f"bench/{name}", listed=False) for pod in pods]
            end_s = await _last(bench.client.delete(models_path(namespace, name)), polls)
            gone.append(1000 * (end_s - began_s))
            await pause(0.1, 0.6)
    table.stop()
    bench.found["proxy_pods"] = len(pods)
    bench.found["listed"] = summary(listed)
    bench.found["table_served"] = summary(served)
    bench.found["gone"] = summary(gone)


async def _first_request(bench: Bench, namespace: str, count: int) -> None:
    """Pod made ready (its server, then its status) -> first completion through each proxy pod.

    One request waits in each, as a user's would: polling would take CPU from what is measured.
    """
    name = "first"
    await bench.create_model(namespace, name, queue_s=60)
    pod = await _pod(bench, namespace, name)
    pods_path = f"/api/v1/namespaces/{namespace}/pods"
    path = f"{pods_path}/{pod}/status"
    slices = await Watch(
        bench.client,
        f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
        labelSelector=f"kubernetes.io/service-name={name}",
    ).start()
    states = await Watch(bench.client, pods_path, fieldSelector=f"metadata.name={pod}").start()
    upstream = Upstream()
    await upstream.start()
    times, theirs, own = [], [], []
    async with bench.proxy_pods() as pods:
        for _ in range(count):
            upstream.ready = False
            out = slices.expect(_is_unready)
            await bench.client.patch(path, pod_status(upstream.address, ready=False))
            await asyncio.wait_for(out, _WAIT_S)
            await pause(0.3, 0.5)
            calls = [spawn(each.served(f"bench/{name}"), name="held") for each in pods]
            await pause(0.1, 0.3)
            in_slice, in_pod = slices.expect(_is_ready), states.expect(_pod_is_ready)
            began_s = time.perf_counter()
            upstream.ready = True
            patch = bench.client.patch(path, pod_status(upstream.address, ready=True))
            end_s = await _last(patch, calls)
            times.append(1000 * (end_s - began_s))
            slice_s = (await asyncio.wait_for(in_slice, _WAIT_S))[0]
            theirs.append(1000 * (slice_s - (await asyncio.wait_for(in_pod, _WAIT_S))[0]))
            own.append(1000 * max(0.0, end_s - slice_s))
            await pause(0.1, 0.3)
    slices.stop()
    states.stop()
    upstream.stop()
    bench.found["first_request"] = summary(times)
    bench.found["pod_slice"] = summary(theirs)
    bench.found["slice_served"] = summary(own)


async def _pod(bench: Bench, namespace: str, name: str) -> str:
    """Return the name of a model's pod, once it has been made ready."""
    deadline_s = time.perf_counter() + _WAIT_S
    while time.perf_counter() < deadline_s:
        for pod in await bench.pods(f"app.kubernetes.io/instance={name}", namespace):
            if _pod_is_ready("", pod):
                return str(pod["metadata"]["name"])
        await asyncio.sleep(0.2)
    raise TimeoutError(f"no pod of {name} became ready")


async def _last(cause: Awaitable[object], effects: Iterable[Awaitable[float]]) -> float:
    """Do `cause` while the effects are waited for; return the time of the last of them."""
    together = asyncio.gather(*effects)
    await cause
    return max(await together)


def _table_holds(text: str, _: str, item: Manifest) -> bool:
    return text in item["data"]["routes.json"]


def _is_ready(_: str, item: Manifest) -> bool:
    return any(each["conditions"].get("ready") for each in item.get("endpoints") or ())


def _is_unready(_: str, item: Manifest) -> bool:
    return bool(item.get("endpoints")) and not _is_ready("", item)


def _pod_is_ready(_: str, item: Manifest) -> bool:
    conditions = item.get("status", {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def pod_status(address: str, *, ready: bool) -> dict[str, Any]:
    state = "True" if ready else "False"
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    kinds = ("Initialized", "ContainersReady", "Ready", "PodScheduled")
    conditions = [
        {"type": kind, "status": state if "Ready" in kind else "True", "lastTransitionTime": stamp}
        for kind in kinds
    ]
    return {
        "status": {
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": conditions,
        }
    }
