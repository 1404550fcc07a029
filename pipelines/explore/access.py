"""Who may use the explorer: which requests are refused, the token, the host names, the headers of every answer.

There is no cookie. Browsers keep cookies by host and not by port, so a cookie for 127.0.0.1 goes to every server on
this machine, and any of them could use it. The token stands in the fragment of the printed address, which a browser
never sends; the page keeps it in the storage of its own origin (scheme, host and port) and sends it in a header.
"""

import hmac
import secrets
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Access:
    """The token of one server, new at every start, and the host names by which browsers may reach it."""

    def __init__(self, host: str, port: int, allowed_hosts: Iterable[str] = ()) -> None:
        self.token = secrets.token_urlsafe(32)
        own = {"localhost", "127.0.0.1", "::1", host}
        self.hosts = {f"{_in_address(name)}:{port}".lower() for name in own}
        for name in allowed_hosts:
            self.hosts |= {name.lower(), f"{name}:{port}".lower()}

    def refusal(self, path: str, headers: Mapping[str, str]) -> str:
        """Return why a request is refused; "" where it is answered.

        The page itself holds no data and needs no token, since a browser cannot send one before it has the page.
        """
        if not self.allows_host(headers.get("host", "")):
            return "this host name is not allowed; see explore.allowed_hosts"
        if not path.startswith("/api/"):
            return ""
        if not self.allows_token(headers.get("authorization", "")):
            return "open the address with the token that firnline explore has printed"
        if not self.allows_origin(headers.get("origin")):
            return "only the explorer's own page may use it"
        return ""

    def allows_host(self, host: str) -> bool:
        """Whether a request's Host header names this server, so that a name which points here does not help."""
        return host.lower() in self.hosts

    def allows_origin(self, origin: str | None) -> bool:
        """Whether a request's Origin header, where there is one, names this server."""
        return origin is None or urlsplit(origin).netloc.lower() in self.hosts

    def allows_token(self, authorization: str) -> bool:
        """Whether a request's Authorization header holds the token."""
        return hmac.compare_digest(authorization.encode(), f"Bearer {self.token}".encode())


def address(host: str, port: int, token: str) -> str:
    """Return the address to open in a browser."""
    name = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    return f"http://{_in_address(name)}:{port}/#token={token}"


def is_loopback(host: str) -> bool:
    """Whether a listening address can be reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_address(host: str) -> str:
    """Return a host as it stands in an address: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
