"""Whose request it is: the address that the limits count by."""

import ipaddress
import os


def address_of(scope) -> str:
    """A visitor's address as one text; of IPv6 the /64 network, which is what one subscriber has. "" if unknown.

    A proxy notes the address it was called from at the right end of X-Forwarded-For; what stands to the left of it
    came with the request and may be invented. So the visitor's is the right-most public one, and it counts only in a
    request that a proxy brings: from this machine, or on a Space, which nobody reaches but through its proxies.
    """
    peer = _parsed((scope.get("client") or ("",))[0])
    if peer is None or not (peer.is_loopback or (peer.is_private and os.environ.get("SPACE_ID"))):
        return _network(peer)
    for name, value in reversed(scope["headers"]):
        if name == b"x-forwarded-for":
            for entry in reversed(value.decode("latin-1").split(",")[-20:]):
                address = _parsed(entry)
                if address is not None and address.is_global:
                    return _network(address)
    return _network(peer)


def _parsed(text: str):
    text = text.strip()
    if text.startswith("["):  # [address]:port
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _network(address) -> str:
    if address is None:
        return ""
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((int(address), 64), strict=False))
