"""The share of the queue that one visitor can take."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

SHARE = 4  # a visitor can take a quarter


@dataclass(eq=False)
class Place:
    """A place in the queue; released by `leave` when the handler starts.

    Attributes:
        session: session hash of the page.
        address: of the visitor, see `visitor_address`; empty: not counted.
        event_id: Gradio's id of the event, once it is known.
    """

    session: str
    address: str = ""
    event_id: str = ""
    _shares: QueueShares | None = None

    def leave(self) -> None:
        """Release the place. Only the first call counts."""
        if self._shares:
            self._shares.remove(self)


@dataclass
class QueueShares:
    """Counts the places of each visitor. A visitor is a session, and an address that is not of this machine.

    Attributes:
        queue_size: number of messages that can wait.
    """

    queue_size: int
    _places: set[Place] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def places(self) -> int:
        """Number of places that one visitor can take."""
        return max(1, self.queue_size // SHARE)

    def join(self, session: str, address: str) -> Place | None:
        """Take a place.

        Args:
            session: session hash of the page.
            address: from `visitor_address`.

        Returns:
            The place; None if the visitor has no more.
        """
        place = Place(session, address, _shares=self)
        with self._lock:
            of_session = sum(other.session == session for other in self._places)
            of_address = sum(bool(address) and other.address == address for other in self._places)
            if max(of_session, of_address) >= self.places:
                return None
            self._places.add(place)
        return place

    def remove(self, place: Place) -> None:
        """Release a place."""
        with self._lock:
            self._places.discard(place)

    def cancel(self, session: str, event_id: str = "") -> None:
        """Release the places of a session, or only that of one event."""
        with self._lock:
            self._places -= {
                place
                for place in self._places
                if place.session == session and (not event_id or place.event_id == event_id)
            }


def is_loopback(host: str) -> bool:
    """Whether a name or address is one of this machine only."""
    try:
        return host.lower() == "localhost" or _parse(host).is_loopback
    except ValueError:
        return False


def _parse(host: str) -> IPv4Address | IPv6Address:
    address = ip_address(host.partition("%")[0])
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def visitor_address(host: str | None) -> str:
    """The address that counts for a visitor: the network of 64 bits of an IPv6 address, since a host has all of it.

    Args:
        host: address of the connection, or what a proxy on this machine says in `X-Forwarded-For`.

    Returns:
        The address; empty for this machine, where all visitors behind a proxy can have the same.
    """
    try:
        address = _parse(host or "")
    except ValueError:
        return host or ""
    if address.is_loopback:
        return ""
    return str(address if address.version == 4 else ip_network((address, 64), strict=False))
