"""Which addresses a model server may have: the last gate before a connection (pure).

An EndpointSlice is written by whoever may write Services. It must not lead the proxy to itself, to
its node or to a cloud's metadata service.
"""

import ipaddress

_METADATA = frozenset(
    ipaddress.ip_address(address)
    for address in ("169.254.169.254", "100.100.100.200", "192.0.0.192", "fd00:ec2::254")
)
"""AWS, GCP and Azure; Alibaba Cloud; Oracle Cloud; AWS over IPv6."""


def is_allowed(address: str, *, allow_loopback: bool) -> bool:
    """Return whether a connection to `address` may be made; a name is no address."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback:
        return allow_loopback
    return ip not in _METADATA and not (
        ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved
    )


def format_authority(address: str, port: int) -> str:
    """Return `address:port` as it stands in a URL (RFC 3986 section 3.2.2)."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
