"""Which hosts an http(s) input may come from: the public internet, unless the user opens the private one.

Without this rule a line in somebody's list of shards could make a worker fetch the credentials of its own machine
(server-side request forgery; clouds hand them out at 169.254.169.254). A look at the URL is not enough: names resolve
to private addresses, servers redirect to them, a name may resolve differently the second time, and one address has many
spellings. So the address itself is looked at, on its way into `connect(2)`.
"""

import errno
import ipaddress
import socket
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import aiohttp

# A public address, but no host of the internet: there Azure answers its own machines.
_METADATA: Final = frozenset((ipaddress.ip_address("168.63.129.16"),))
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_LOCAL_NAT64: Final = ipaddress.ip_network("64:ff9b:1::/48")  # RFC 8215: for a site's own use


class PrivateAddress(OSError):
    """A connection to an address that is not public was not made."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, also where it wraps an IPv4 address.

    Args:
        address: IPv4 or IPv6, with or without a zone (`fe80::1%eth0`).

    Raises:
        ValueError: it is no IP address.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _LOCAL_NAT64 or ip.is_site_local:
            return False
        inner = _wrapped(ip)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and ip not in _METADATA


def _wrapped(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a mapped, 6to4, Teredo or NAT64 address leads to."""
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)


def _public_socket(connection: "aiohttp.AddrInfoType") -> socket.socket:
    """The socket for one resolved address, which is then connected to exactly this address.

    Raises:
        PrivateAddress: it is not public. The text is always the same: aiohttp joins the texts of several addresses.
    """
    family, kind, protocol, _, address = connection
    if not is_public(str(address[0])):
        raise PrivateAddress(errno.EACCES, "the address is private")
    return socket.socket(family, kind, protocol)


async def public_session(**options: Any) -> "aiohttp.ClientSession":
    """An HTTP session that connects to public addresses only, redirects included; for fsspec's `get_client`."""
    import aiohttp  # slow to import, and rarely needed

    return aiohttp.ClientSession(**options, connector=aiohttp.TCPConnector(socket_factory=_public_socket))
