"""The pod network: a bridge in the sandbox's namespace and one veth pair for each pod.

Owns netlink (pyroute2). A pod's end of the pair gets its address from the pod's first process. No
Service addresses: nothing plays kube-proxy, and no DNS; what runs here talks to pod addresses.
"""

import ipaddress
from collections import deque
from typing import Final

from pyroute2 import AsyncIPRoute

from nimway.sandbox.config import BRIDGE_ADDRESS, POD_NETWORK_BITS

_BRIDGE: Final = "br0"
_FIRST: Final = "10.244.1.1"
_LAST: Final = "10.244.255.254"


class Network:
    """The bridge, and the addresses that are free."""

    def __init__(self) -> None:
        first, last = (int(ipaddress.IPv4Address(text)) for text in (_FIRST, _LAST))
        # First in, first out: an address comes back as late as possible, for stale connections.
        self._free = deque(range(first, last + 1))
        self._bridge = 0
        self._serial = 0

    async def create_bridge(self) -> None:
        """Create the bridge with the sandbox's own address."""
        async with AsyncIPRoute() as netlink:
            await netlink.link("add", ifname=_BRIDGE, kind="bridge")
            [self._bridge] = await netlink.link_lookup(ifname=_BRIDGE)
            await netlink.addr(
                "add", index=self._bridge, address=BRIDGE_ADDRESS, prefixlen=POD_NETWORK_BITS
            )
            await netlink.link("set", index=self._bridge, state="up")

    async def connect(self, namespace: int) -> None:
        """Put one end of a new veth pair into the namespace (an open descriptor) as `eth0`."""
        self._serial += 1
        async with AsyncIPRoute() as netlink:
            await netlink.link(
                "add",
                ifname=f"veth{self._serial}",
                kind="veth",
                peer={"ifname": "eth0", "net_ns_fd": namespace},
                master=self._bridge,
                state="up",
            )

    def take_address(self) -> str:
        """Return a free pod address."""
        return str(ipaddress.IPv4Address(self._free.popleft()))

    def give_back(self, address: str) -> None:
        """Say that nobody uses the address any more."""
        self._free.append(int(ipaddress.IPv4Address(address)))
