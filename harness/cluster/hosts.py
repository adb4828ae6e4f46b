"""The list of hosts that horovodrun takes, read before it is started."""

import os
import socket
from dataclasses import dataclass

import psutil

from harness.errors import UserError
from harness.parallel.topology import Topology, from_horovod


@dataclass(frozen=True)
class Host:
    name: str
    slots: int
    """Ranks it takes."""


def parse_hosts(text: str, ranks: int) -> tuple[Host, ...]:
    """`h1:4,h2:4` for so many ranks. Raises UserError for anything horovodrun could not use."""
    hosts = tuple(_parse_host(part.strip()) for part in text.split(","))
    found = sum(host.slots for host in hosts)
    if found < ranks:
        raise UserError(
            f"--np {ranks} needs {ranks} slots, --hosts {text} has {found}; add hosts or slots"
        )
    for host in hosts:
        try:
            socket.getaddrinfo(host.name, None)
        except OSError as error:
            raise UserError(
                f"the host name {host.name!r} of --hosts leads nowhere ({error}); correct it or "
                f"add it to /etc/hosts"
            ) from error
    return hosts


def _parse_host(text: str) -> Host:
    name, _, slots = text.rpartition(":")
    if not name or not slots.isdecimal() or int(slots) == 0:
        raise UserError(f"--hosts holds {text!r}; write NAME:SLOTS,NAME:SLOTS, e.g. h1:4,h2:4")
    return Host(name, int(slots))


def topology_of(hosts: tuple[Host, ...], ranks: int) -> Topology:
    """Of rank 0, as horovodrun fills the hosts. Raises UserError where they come out unequal."""
    sizes, left = [], ranks
    for host in hosts:
        sizes.append(min(host.slots, left))
        left -= sizes[-1]
    used = [size for size in sizes if size]
    odd = next((size for size in used if size * len(used) != ranks), used[0])
    return from_horovod(0, ranks, odd, len(used))


def most_ranks_on_a_machine(hosts: tuple[Host, ...]) -> int:
    """Names of this machine count together: emulated nodes share its cores."""
    here = sum(host.slots for host in hosts if is_here(host))
    return max(here, *(host.slots for host in hosts))


def is_here(host: Host) -> bool:
    own = {
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6)
    }
    return any(str(found[4][0]) in own for found in socket.getaddrinfo(host.name, None))


def interface_to(hosts: tuple[Host, ...]) -> str | None:
    """This machine's, through which it reaches all the others; None where that is not one."""
    own = {
        address.address: name
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
    }
    found = {own.get(_source(host)) for host in hosts if not is_here(host)}
    return found.pop() if len(found) == 1 else None


def _source(host: Host) -> str:
    """The address that packets to the host carry as their sender's; none is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host.name, 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def cores() -> int:
    return len(os.sched_getaffinity(0))
