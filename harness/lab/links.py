"""The lab's links, made through netlink: cables between network namespaces, a bridge, rates."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from harness.errors import UserError
from harness.lab.host import NAMESPACES, SWITCH, LabHost
from harness.lab.namespaces import NETWORK, network, networks, unshare

BRIDGE = "bridge"
ROOT = 0xFFFFFFFF
"""TC_H_ROOT of Linux' pkt_sched.h: the parent of a card's outermost queue."""
NO_ADDRESS = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]}
"""Attributes that keep the kernel from giving a port an IPv6 address: the switch sends nothing of
its own."""
QUEUE_SECONDS = 0.5
"""Longest time that a packet waits at a shaped end; later ones are dropped."""
BURST_SECONDS = 0.002
"""Depth of the token bucket: what passes at once after a pause, in seconds at the link's rate. A
real link lets nothing pass for free. With both cores busy, 2 ms still carry the whole rate; 20 ms
made a transfer of 20 ms cost nothing."""
SMALLEST_BURST_BYTES = 4096
"""More than a packet, which could never pass otherwise."""


def make_bridge() -> None:
    """Makes the switch's bridge, without ports."""
    with _netlink_in(SWITCH) as links:
        links.link("add", ifname=BRIDGE, kind="bridge")
        links.link("set", index=_index(links, BRIDGE), state="up")


def connect(host: LabHost) -> None:
    """Connects the host's eth0 with the switch, by a veth pair."""
    inside = NAMESPACES / host.namespace
    with inside.open("rb", buffering=0) as file, _netlink_in(SWITCH) as links:
        peer = {"ifname": "eth0", "net_ns_fd": file.fileno()}
        links.link("add", ifname=host.name, kind="veth", peer=peer)
        port = _index(links, host.name)
        links.link("set", index=port, IFLA_AF_SPEC=NO_ADDRESS, state="up")
    with _netlink_in(host.namespace) as links:
        links.link("set", index=_index(links, "lo"), state="up")
        card = _index(links, "eth0")
        links.addr("add", index=card, address=host.address, prefixlen=24)
        links.link("set", index=card, state="up")


def put_on_bridge(ports: Iterable[str], on: bool) -> None:
    """Attaches these ports of the switch to the bridge, or detaches them."""
    with _netlink_in(SWITCH) as links:
        master = _index(links, BRIDGE) if on else 0
        for port in ports:
            links.link("set", index=_index(links, port), master=master)


def shape(host: LabHost, bits_per_second: float | None) -> None:
    """Limits the host's link in both directions; None lifts the limit."""
    for namespace, device in ((host.namespace, "eth0"), (SWITCH, host.name)):
        with _netlink_in(namespace) as links:
            card = _index(links, device)
            if bits_per_second is not None:
                _limit(links, card, bits_per_second / 8)
            elif _limit_of(links, card) is not None:
                links.tc("del", index=card, parent=ROOT)


def shaped_to(host: LabHost) -> float | None:
    """Bits per second to which the kernel limits the host's link; None: no limit."""
    with _netlink_in(host.namespace) as links:
        limit = _limit_of(links, _index(links, "eth0"))
        return None if limit is None else 8 * limit


def try_links() -> None:
    """Raises UserError if this process may not make shaped links; leaves nothing behind."""
    with networks(), _as_user_error("a namespace of its own"):
        unshare(NETWORK)
        with _netlink() as links:
            links.link("add", ifname=BRIDGE, kind="bridge")
            _limit(links, _index(links, BRIDGE), 125_000)


def _limit(links: Any, card: int, bytes_per_second: float) -> None:
    # A token bucket of `burst` bytes; the queue before it holds what passes in QUEUE_SECONDS.
    burst = max(SMALLEST_BURST_BYTES, int(bytes_per_second * BURST_SECONDS))
    limit = burst + int(bytes_per_second * QUEUE_SECONDS)
    law = {"rate": int(bytes_per_second), "burst": burst, "limit": limit}
    links.tc("replace", "tbf", index=card, **law)


def _limit_of(links: Any, card: int) -> int | None:
    """Bytes per second to which the card is limited; None: no limit."""
    for queue in links.get_qdiscs(index=card):
        if queue.get_attr("TCA_KIND") == "tbf":
            rate: int = queue.get_nested("TCA_OPTIONS", "TCA_TBF_PARMS")["rate"]
            return rate
    return None


def _index(links: Any, name: str) -> int:
    (index,) = links.link_lookup(ifname=name)
    return int(index)


@contextmanager
def _netlink_in(namespace: str) -> Iterator[Any]:
    """A netlink connection about the links in that namespace."""
    with _as_user_error(namespace), network(NAMESPACES / namespace), _netlink() as links:
        yield links


def _netlink() -> Any:
    # Imported here because it takes a third of a second, which other commands need not spend.
    from pyroute2 import IPRoute

    return IPRoute()


@contextmanager
def _as_user_error(where: str) -> Iterator[None]:
    from pyroute2 import NetlinkError

    try:
        yield
    except NetlinkError as error:
        raise UserError(f"the lab's links in {where}: {os.strerror(error.code)}") from error
    except OSError as error:
        raise UserError(f"the lab's links in {where}: {error.strerror}") from error
