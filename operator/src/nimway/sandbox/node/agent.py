"""The node agent: follows the pods that are bound to our nodes and gives each one a life.

Owns the watch and the set of pods. One pod's life is `pod`'s.
"""

import logging
from typing import Any, Final

from nimway.sandbox.node.context import Context
from nimway.sandbox.node.nodes import keep_leases, node_names
from nimway.sandbox.node.pod import Pod
from nimway.sandbox.node.storage import provision
from nimway.tasks import spawn

_log = logging.getLogger(__name__)

_BOUND: Final = "spec.nodeName!="


class Agent:
    """Every pod on every node of the sandbox."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._nodes = set(node_names(context.config))
        self._pods: dict[str, Pod] = {}

    async def run(self) -> None:
        """Run pods for ever."""
        config, client = self._context.config, self._context.client
        spawn(keep_leases(client, config, self._returned), name="leases")
        spawn(provision(client, config.directory / "volumes"), name="storage")
        async for kind, item in client.follow("/api/v1/pods", fieldSelector=_BOUND):
            if kind == "SYNCED":
                self._synchronize(item["items"])
            else:
                self._handle(kind, item)

    def _returned(self, node: str) -> None:
        """Say of a node's pods that they are ready: who took it for lost said that they are not."""
        for pod in self._pods.values():
            if pod.manifest()["spec"]["nodeName"] == node:
                pod.report_again()

    def _synchronize(self, listed: list[dict[str, Any]]) -> None:
        present = {pod["metadata"]["uid"] for pod in listed}
        for uid in set(self._pods) - present:
            self._pods[uid].removed()
        for pod in listed:
            self._handle("ADDED", pod)

    def _handle(self, kind: str, manifest: dict[str, Any]) -> None:
        uid = manifest["metadata"]["uid"]
        known = self._pods.get(uid)
        if kind == "DELETED":
            if known is not None:
                known.removed()
        elif known is not None:
            known.update(manifest)
        elif manifest["spec"].get("nodeName") in self._nodes:
            self._pods[uid] = Pod(manifest, self._context)
            spawn(self._run(uid), name=f"run-{manifest['metadata']['name']}")

    async def _run(self, uid: str) -> None:
        pod = self._pods[uid]
        try:
            await pod.run()
        finally:
            del self._pods[uid]
            name = pod.manifest()["metadata"]["name"]
            _log.info("removed: %s", name)
