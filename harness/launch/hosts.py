"""The list of hosts for horovodrun: parsed and checked before it is started."""

import os
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil

from harness.errors import UserError
from harness.parallel.machine import address_towards
from harness.parallel.topology import Topology, from_horovod

HOST = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*):([0-9]{1,9})")
MOST_SLOTS = 4096
"""Most slots of a host. No machine has as many cards or cores; a typing error may exceed it."""
WRITTEN = "write NAME:SLOTS,NAME:SLOTS, e.g. h1:4,h2:4"


@dataclass(frozen=True)
class Host:
    name: str
    slots: int
    """Ranks that the host takes."""


def parse_hosts(text: str, ranks: int) -> tuple[Host, ...]:
    """The hosts of `h1:4,h2:4`, which must have slots for `ranks` ranks and resolvable names.

    Raises UserError for anything that horovodrun could not use.
    """
    if ranks < 1:
        raise UserError(f"--np {ranks} starts no rank; give at least 1")
    hosts = read_hosts(text)
    found = _slots(hosts)
    if found < ranks:
        raise UserError(
            f"--np {ranks} needs {ranks} slots, but --hosts {hosts_option(hosts)} has {found}; add "
            f"hosts or slots"
        )
    for host in hosts:
        try:
            socket.getaddrinfo(host.name, None)
        except (OSError, UnicodeError) as error:  # UnicodeError: a label is empty or too long
            raise UserError(
                f"the host name {host.name!r} of --hosts does not resolve ({error}); correct it or "
                f"add it to /etc/hosts"
            ) from error
    return hosts


def hosts_or_local(hosts: str | None, ranks: int) -> str:
    """The hosts as they were given; without any, this machine with a slot for each rank."""
    return hosts or f"localhost:{ranks}"


def slots_of(hosts: str | None) -> int:
    """Slots of all hosts together; 1 without hosts. Raises UserError like `parse_hosts`."""
    return _slots(parse_hosts(hosts, 1)) if hosts else 1


def _slots(hosts: Iterable[Host]) -> int:
    return sum(host.slots for host in hosts)


def read_hosts(text: str) -> tuple[Host, ...]:
    """The hosts, separated by commas, blanks, semicolons or new lines; `h1 slots=4` means h1:4.

    Raises UserError for a word that is not HOST:SLOTS, and for a host that is named twice: ranks
    are numbered host by host. Does not look up names.
    """
    joined = re.sub(r"\s*:\s*|\s+slots\s*=\s*", ":", text, flags=re.ASCII)
    words = [word for word in re.split(r"[,;\s]+", joined, flags=re.ASCII) if word]
    hosts = tuple(_read_host(word) for word in words)
    if not hosts:
        raise UserError(f"--hosts {text!r} contains no host; {WRITTEN}")
    slots: dict[str, int] = {}
    for host in hosts:
        slots[host.name] = slots.get(host.name, 0) + host.slots
    if len(slots) < len(hosts):
        twice = next(name for name in slots if sum(host.name == name for host in hosts) > 1)
        once = hosts_option(tuple(Host(name, count) for name, count in slots.items()))
        raise UserError(f"--hosts names {twice} more than once; write --hosts {once}")
    return hosts


def hosts_option(hosts: tuple[Host, ...]) -> str:
    """The hosts in horovodrun's form, `h1:4,h2:4`."""
    return ",".join(f"{host.name}:{host.slots}" for host in hosts)


def _read_host(word: str) -> Host:
    found = HOST.fullmatch(word)
    if found is None and word.count(":") > 1:
        raise UserError(
            f"--hosts contains {word!r}, but horovodrun takes only host names and IPv4 addresses; "
            f"{WRITTEN}"
        )
    if found is None or not 1 <= int(found[2]) <= MOST_SLOTS:
        raise UserError(f"--hosts contains {word!r}; {WRITTEN}, each with 1 to {MOST_SLOTS} slots")
    return Host(found[1], int(found[2]))


def filled(hosts: Sequence[Host], ranks: int) -> tuple[Host, ...]:
    """The hosts that get a rank when horovodrun fills them in order, each with as many slots as it
    gets ranks."""
    found, left = [], ranks
    for host in hosts:
        if left:
            found.append(Host(host.name, min(host.slots, left)))
            left -= found[-1].slots
    return tuple(found)


def topology_of(hosts: tuple[Host, ...], ranks: int) -> Topology:
    """Topology of rank 0 when horovodrun fills the hosts in order.

    Raises UserError if hosts get different numbers of ranks.
    """
    used = [host.slots for host in filled(hosts, ranks)]
    # `from_horovod` refuses a host whose ranks times the hosts are not all ranks: give it such a
    # host if there is one.
    odd = next((size for size in used if size * len(used) != ranks), used[0])
    return from_horovod(0, ranks, odd, len(used))


def host_of_each_rank(hosts: tuple[Host, ...], ranks: int) -> tuple[str, ...]:
    """Host name of every rank when horovodrun fills the hosts in order."""
    return tuple(host.name for host in hosts for _ in range(host.slots))[:ranks]


def ranks_here(hosts: tuple[Host, ...], ranks: int) -> int:
    """Ranks that start on this machine, under whatever names: they share its cores."""
    return _slots(host for host in filled(hosts, ranks) if is_here(host))


def is_here(host: Host) -> bool:
    """Whether the host's name leads to an address of this machine."""
    own = {
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6)
    }
    return any(str(found[4][0]) in own for found in socket.getaddrinfo(host.name, None))


def interface_to(hosts: tuple[Host, ...]) -> str | None:
    """This machine's interface to all other hosts; None unless it is the same one for all."""
    own = {
        address.address: name
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
    }
    found = {own.get(_source(host)) for host in hosts if not is_here(host)}
    return found.pop() if len(found) == 1 else None


def _source(host: Host) -> str:
    """This machine's address in packets to the host; empty without a route."""
    try:
        return address_towards(host.name)
    except OSError:
        return ""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
