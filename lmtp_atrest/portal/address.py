"""Where the portal is, as browsers see it."""

from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of `portal.url`: origin as browsers write it, and path without a slash at the end.

    `secure` says that browsers come by https, so that a cookie may be sent so only.
    """

    origin: str
    path: str
    secure: bool

    @classmethod
    def of(cls, url: str) -> Self:
        """From an address that the configuration has found well-formed."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        port = f":{parts.port}" if parts.port not in (None, DEFAULT_PORTS[parts.scheme]) else ""
        origin = f"{parts.scheme}://{host}{port}"
        return cls(origin, parts.path.rstrip("/"), parts.scheme == "https")
