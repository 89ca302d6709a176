"""A pod's volumes on disk: fetching what they are made of, writing it, keeping it fresh.

Owns the folders of one pod's volumes and the service account tokens in them. What a volume
contains is `volumes`' decision.
"""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from nimway.sandbox.client import ApiError
from nimway.sandbox.node import volumes
from nimway.sandbox.node.context import Context
from nimway.sandbox.node.environment import ConfigError
from nimway.sandbox.node.fields import FieldError
from nimway.sandbox.node.timing import now, parse
from nimway.tasks import spawn

MEMORY_FOLDER: Final = Path("/.memory")
"""On the sandbox's root, a tmpfs; emptyDir volumes with medium Memory live here."""
_REFRESH_EVERY_S: Final = 30.0
_RENEW_AT: Final = 0.8
_TOKEN_LIFETIME_S: Final = 3600


class VolumeSet:
    """The volumes of one pod."""

    def __init__(
        self,
        context: Context,
        pod: Callable[[], dict[str, Any]],
        downward: Callable[[str | None], volumes.Downward],
    ) -> None:
        self._context = context
        self._pod = pod
        self._downward = downward
        self._uid: str = pod()["metadata"]["uid"]
        self._tokens: dict[tuple[str, str], tuple[str, float]] = {}
        self._refreshing: asyncio.Task[None] | None = None

    @property
    def _folder(self) -> Path:
        return self._context.config.pods / f"volumes-{self._uid}"

    @property
    def _memory(self) -> Path:
        return MEMORY_FOLDER / self._uid

    def detach(self) -> None:
        """Leave the volumes of claims to pods on other nodes."""
        self._context.attachments.release(self._uid)

    def folders_to_remove(self) -> Iterator[Path]:
        """Return what is of no use once the pod has gone."""
        yield self._folder
        yield self._memory

    async def prepare(self) -> dict[str, Path]:
        """Make every volume; return each one's folder by name.

        Raises:
            ConfigError: an object that a volume shows does not exist (yet), a claim's volume is
                on another node, or the kind of volume is not supported.
        """
        found = self._pod()["spec"].get("volumes") or []
        folders = await asyncio.gather(*(self._prepare(volume) for volume in found))
        return {volume["name"]: folder for volume, folder in zip(found, folders, strict=True)}

    def begin_refreshing(self, name: str) -> None:
        """Follow changes of the objects, and renew tokens, until `end_refreshing`."""
        self._refreshing = spawn(self._refresh(), name=f"volumes-{name}")

    def end_refreshing(self) -> None:
        """Stop following."""
        if self._refreshing is not None:
            self._refreshing.cancel()

    async def _refresh(self) -> None:
        rendered = [
            each for each in self._pod()["spec"].get("volumes") or [] if volumes.is_rendered(each)
        ]
        while rendered:
            await asyncio.sleep(_REFRESH_EVERY_S)
            for volume in rendered:
                try:
                    await self._prepare(volume)
                except (ConfigError, FieldError, ApiError):
                    continue

    async def _prepare(self, volume: dict[str, Any]) -> Path:
        name = str(volume["name"])
        folder = self._folder / name
        if volumes.is_rendered(volume):
            await self._write(volume, folder)
            return folder
        if "emptyDir" in volume:
            if (volume["emptyDir"] or {}).get("medium") == "Memory":
                folder = self._memory / name
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o777)
            return folder
        if "persistentVolumeClaim" in volume:
            return await self._claimed(volume["persistentVolumeClaim"]["claimName"])
        if "hostPath" in volume:
            return Path(str(volume["hostPath"]["path"]))
        kind = next((key for key in volume if key != "name"), "none")
        raise ConfigError(f"volume {name!r}: the sandbox has no volumes of kind {kind}")

    async def _write(self, volume: dict[str, Any], folder: Path) -> None:
        namespace = self._pod()["metadata"]["namespace"]
        objects = {
            (kind, name): await self._context.find(kind, namespace, name)
            for kind, name in volumes.references(volume)
        }
        tokens = {
            request["path"]: await self._token(request, volume["name"])
            for request in volumes.token_requests(volume)
        }
        files = volumes.render(volume, namespace, objects, tokens, self._downward(None))
        volumes.write(folder, files)

    async def _token(self, request: dict[str, Any], volume: str) -> str:
        """Return a token bound to the pod, a new one when four fifths of its life are over."""
        key = (volume, request["path"])
        seconds = now().timestamp()
        if key in self._tokens and seconds < self._tokens[key][1]:
            return self._tokens[key][0]
        metadata = self._pod()["metadata"]
        account = self._pod()["spec"].get("serviceAccountName", "default")
        lifetime = request.get("expirationSeconds") or _TOKEN_LIFETIME_S
        body = {
            "spec": {
                "audiences": [request["audience"]] if request.get("audience") else [],
                "expirationSeconds": lifetime,
                "boundObjectRef": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                },
            }
        }
        path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token"
        answer = (await self._context.client.create(path, body))["status"]
        expires = parse(answer["expirationTimestamp"]).timestamp()
        self._tokens[key] = (answer["token"], seconds + _RENEW_AT * (expires - seconds))
        return str(answer["token"])

    async def _claimed(self, claim: str) -> Path:
        """Return the folder behind a bound claim, which is attached to the pod's node."""
        namespace = self._pod()["metadata"]["namespace"]
        path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}"
        volume_name = (await self._context.client.get(path))["spec"].get("volumeName")
        if not volume_name:
            raise ConfigError(f'persistentvolumeclaim "{claim}" is not bound')
        volume = await self._context.client.get(f"/api/v1/persistentvolumes/{volume_name}")
        host_path = volume["spec"].get("hostPath")
        if host_path is None:
            raise ConfigError(f"persistent volume {volume_name} is not a directory")
        self._context.attachments.attach(volume, self._pod())
        return Path(host_path["path"])
