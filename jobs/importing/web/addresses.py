"""Web addresses that pictures may be downloaded from: the hosts of a setting, at public internet addresses only."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from cma_clip_core.content.pictures import PictureError
from jobs.settings import PICTURE_HOST

_WEB: Final = re.compile(r"https?://", re.IGNORECASE)
_LONGEST: Final = 4_096  # characters of an address
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}
NOT_PUBLIC: Final = "not a public internet address"
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_OTHER_REFUSED: Final = (
    ipaddress.ip_network("168.63.129.16/32"),  # Azure's metadata and DNS, a public address
    ipaddress.ip_network("192.0.0.0/24"),  # of protocols; clouds have metadata here
    ipaddress.ip_network("192.88.99.0/24"),  # relays of 6to4
    ipaddress.ip_network("64:ff9b:1::/48"),  # NAT64 of a local network
    ipaddress.ip_network("::/96"),  # IPv4 in its old IPv6 form
    ipaddress.ip_network("fec0::/10"),  # site-local
)


def is_web(name: str) -> bool:
    """Return whether `name` is an address on the web."""
    return _WEB.match(name) is not None


@dataclass(frozen=True, slots=True)
class _Entry:
    host: str  # in lower case; "*.shop.com" matches every host below shop.com
    port: int | None  # None: the default port of the scheme
    http: bool  # plain http is allowed too

    def matches(self, scheme: str, host: str, port: int) -> bool:
        if scheme == "http" and not self.http:
            return False
        if port != (self.port or _DEFAULT_PORTS[scheme]):
            return False
        return host.endswith(self.host[1:]) if self.host.startswith("*.") else host == self.host


def parse_host(text: str) -> _Entry:
    """Return the host of an entry such as ``*.shop.com``, ``shop.com:8443`` or ``http://shop.com``. Raises ValueError."""
    match = PICTURE_HOST.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"{text[:200]!r} is not a host")
    return _Entry(match["host"], int(match["port"]) if match["port"] else None, match["http"] is not None)


@dataclass(frozen=True, slots=True)
class WebAddress:
    """An address that may be asked."""

    url: str
    host: str
    private: bool  # the host may be in a private network


class AllowedHosts:
    """The hosts that pictures may be downloaded from."""

    def __init__(self, hosts: Sequence[str], private_hosts: Sequence[str] = ()) -> None:
        self._hosts = tuple(map(parse_host, hosts))
        self._private_hosts = tuple(map(parse_host, private_hosts))

    def check(self, url: str) -> WebAddress:
        """Return `url` as an address that may be asked.

        Raises:
            PictureError: forbidden or host_not_allowed.
        """
        if len(url) > _LONGEST:
            raise PictureError("forbidden", f"an address of more than {_LONGEST:,} characters")
        try:
            parts = urlsplit(url)
            scheme, host = parts.scheme.lower(), (parts.hostname or "").rstrip(".")
            port = parts.port or _DEFAULT_PORTS.get(scheme, 0)
        except ValueError as error:
            raise PictureError("forbidden", f"not a web address: {error}"[:300]) from None
        if scheme not in _DEFAULT_PORTS or not host:
            raise PictureError("forbidden", "not a web address")
        if parts.username is not None or parts.password is not None:
            raise PictureError("forbidden", "the address holds a user or a password")
        shown_host = f"[{host}]" if ":" in host else host
        private = any(entry.matches(scheme, shown_host, port) for entry in self._private_hosts)
        if not private and not any(entry.matches(scheme, shown_host, port) for entry in self._hosts):
            raise PictureError("host_not_allowed", f"{scheme}://{parts.netloc[:200]}")
        literal = _literal(host)
        if literal is not None and not may_connect(literal, private):
            raise PictureError("forbidden", f"{host} is {NOT_PUBLIC}")
        return WebAddress(url, host, private)


def _literal(host: str) -> str | None:
    """Return the internet address that `host` writes in numbers, decimal, octal or hexadecimal; None for a name."""
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return None


def may_connect(address: str, private: bool) -> bool:
    """Return whether a connection to the internet `address` is allowed.

    Args:
        address: in numbers, as the resolver returned it.
        private: allow private networks and this machine too. Link-local addresses, which include the metadata of clouds,
            stay refused.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return may_connect(str(ip.ipv4_mapped), private)
        if ip in _NAT64:
            return may_connect(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)), private)
        if ip.sixtofour is not None or ip.teredo is not None:
            return False
    if private and (ip.is_loopback or (ip.is_private and not (ip.is_link_local or ip.is_unspecified))):
        return True
    if any(ip.version == network.version and ip in network for network in _OTHER_REFUSED):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_link_local)


def checked_socket(
    address_info: tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[object, ...]],
    private: bool,
) -> socket.socket:
    """Return a socket for the resolved address that is about to be connected. Raises OSError if that is refused."""
    family, kind, protocol, _, target = address_info
    if not may_connect(str(target[0]), private):
        raise OSError(errno.EACCES, f"{target[0]} is {NOT_PUBLIC}")
    return socket.socket(family, kind, protocol)
