"""Whose request it is, and by which name the server was called: what a request says of that may be invented."""

import functools
import ipaddress
import os

from ddpm_hf.errors import UserError

RENAMING = (b"forwarded", b"x-forwarded-host", b"x-forwarded-proto", b"x-gradio-server", b"x-direct-url")
KNOWN_SCHEMES = ((b"x-forwarded-proto", b"http"), (b"x-forwarded-proto", b"https"))


def trusted_proxies() -> tuple:
    """The addresses and networks of $TRUSTED_PROXIES, separated by commas.

    Raises:
        UserError: for what is neither.
    """
    return _networks(os.environ.get("TRUSTED_PROXIES", ""))


@functools.cache
def _networks(text: str) -> tuple:
    try:
        return tuple(ipaddress.ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(
            "TRUSTED_PROXIES must be addresses or networks separated by commas, such as 10.0.0.0/8."
        ) from None


def address_of(scope) -> str:
    """A visitor's address as one text; of IPv6 the /64 network, which is what one subscriber has. "" if unknown.

    A proxy notes the address it was called from at the right end of X-Forwarded-For; what stands to the left of it
    came with the request and may be invented. So the visitor's is the right-most one that is not of a proxy, and it
    counts only in a request that a proxy brings. Proxies are those of $TRUSTED_PROXIES and of this machine. Without
    that setting they are, on a Space, all private addresses: nobody reaches it but through its own.
    """
    peer = _parsed((scope.get("client") or ("",))[0])
    trusted = trusted_proxies()
    is_named = peer is not None and any(peer in network for network in trusted)
    on_space = bool(os.environ.get("SPACE_ID")) and not trusted
    if peer is None or not (peer.is_loopback or is_named or (on_space and peer.is_private)):
        return _network(peer)
    for name, value in reversed(scope["headers"]):
        if name == b"x-forwarded-for":
            for entry in reversed(value.decode("latin-1").split(",")[-20:]):
                address = _parsed(entry)
                if address is None:
                    continue
                if any(address in network for network in trusted) if trusted else not address.is_global:
                    continue
                return _network(address)
    return _network(peer)


def checked_headers(scope) -> list[tuple[bytes, bytes]]:
    """The request's headers without those that tell the server another name for itself.

    Gradio writes them into the page, as the address that the page's script calls. Behind a proxy that changes the Host
    header, GRADIO_ROOT_PATH gives the page's address; a Space has it in SPACE_HOST.
    """
    headers = [(name, value) for name, value in scope["headers"] if name not in RENAMING]
    if space := os.environ.get("SPACE_HOST"):
        headers += [(b"x-forwarded-host", space.encode()), (b"x-forwarded-proto", b"https")]
    else:
        headers += [header for header in scope["headers"] if header in KNOWN_SCHEMES]
    return headers


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
