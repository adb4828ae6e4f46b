"""Does every host name resolve, on every host, to an address that the other hosts reach?"""

import ipaddress
import socket
from collections.abc import Sequence

import psutil
from pydantic import Field

from harness.doctor.finding import Facts, Finding, limit_lines, listed
from harness.doctor.seat import Seat

CHECK = "names"


class NameFacts(Facts):
    """What the names of all hosts resolve to on one of them."""

    addresses: dict[str, str | None]
    """Host -> address; None: the name does not resolve."""
    own_address: str | None
    """Address of the name that the machine gives itself; None: it does not resolve."""
    interface_address: str | None = None
    """Address of the launcher's network interface; None if this host does not have it."""
    unreached: dict[str, str] = Field(default_factory=dict)
    """Hosts that did not answer at their address -> why."""


def name_facts(seats: Sequence[Seat], seat: Seat) -> NameFacts:
    """Looks up all names on this host."""
    return NameFacts(
        addresses={host: address_of(host) for host in hosts_of(seats)},
        own_address=address_of(seat.machine),
        interface_address=interface_address(seat.interface),
    )


def hosts_of(seats: Sequence[Seat]) -> list[str]:
    """Host names, in the order of ranks."""
    return list(dict.fromkeys(seat.host for seat in seats))


def machines_of(seats: Sequence[Seat]) -> set[tuple[str, str]]:
    """Machines by (name, boot id); fewer than hosts if nodes are emulated on one machine."""
    return {(seat.machine, seat.boot) for seat in seats}


def address_of(name: str) -> str | None:
    """The first address of a name, IPv4 before others, as Horovod looks it up; None if unknown."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return None
    found.sort(key=lambda each: each[0] != socket.AF_INET)
    return str(found[0][4][0])


def interface_address(interface: str | None) -> str | None:
    """The IPv4 address of this host's network interface; None without one."""
    addresses = psutil.net_if_addrs().get(interface or "", [])
    return next((each.address for each in addresses if each.family == socket.AF_INET), None)


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def judge_names(
    seats: Sequence[Seat], facts: Sequence[NameFacts | None], mended: bool
) -> list[Finding]:
    """Judges all names; `facts` has one entry per rank, None except on a host's first rank.

    `mended`: whether all hosts have the mended Horovod, see `versions.Build.mended`.
    """
    several = len(machines_of(seats)) > 1
    faults = []
    for seat, fact in zip(seats, facts, strict=True):
        if fact is not None:
            faults += _names_there(seat, fact, several)
            faults += _own_name(seat, fact, mended) if several else []
            faults += _interface(seat, fact) if several else []
    ranks, hosts = len(seats), len(hosts_of(seats))
    shape = f"{ranks} rank{'s'[: ranks > 1]} on {hosts} host{'s'[: hosts > 1]}"
    if several:
        well = f"{shape}, each name resolves to its host: {_addresses(seats, facts)}"
    else:
        well = f"{shape}, all on this machine, {seats[0].machine}"
    return limit_lines(faults + _uneven(seats), Finding(check=CHECK, level="ok", found=well))


def _addresses(seats: Sequence[Seat], facts: Sequence[NameFacts | None]) -> str:
    first = next(fact for fact in facts if fact is not None)
    return listed(f"{host} {first.addresses[host]}" for host in hosts_of(seats))


def _names_there(seat: Seat, fact: NameFacts, several: bool) -> list[Finding]:
    faults = []
    for host, address in fact.addresses.items():
        if address is None and not several:
            continue  # no other machine has to find this one
        if address is None:
            found = f"the name {host} does not resolve on {seat.host}"
            advice = f"add it to /etc/hosts on {seat.host}, or to its name server"
        elif is_loopback(address) and several:
            found = f"the name {host} is {address} on {seat.host}, which other hosts cannot reach"
            advice = f"give {host} its routable address in /etc/hosts on {seat.host}"
        elif is_loopback(address) and not _is_this_machine(host, seat):
            found = f"the name {host} is {address} on {seat.host}; its ranks run on {seat.machine}"
            advice = f"give {host} its routable address in /etc/hosts on {seat.host}"
        elif host in fact.unreached and several:
            reason = fact.unreached[host]
            found = f"{seat.host} cannot reach {host} at {address} ({reason})"
            advice = f"correct the address on {seat.host}, or allow all ports in the firewall"
        else:
            continue
        faults.append(Finding(check=CHECK, level="fail", found=found, advice=advice))
    return faults


def _is_this_machine(host: str, seat: Seat) -> bool:
    """Whether the name is meant for this machine, so that it may resolve to a loopback address."""
    if host == "localhost" or host.startswith("localhost."):
        return True
    try:
        return is_loopback(host)
    except ValueError:
        return host.partition(".")[0] == seat.machine.partition(".")[0]


def _own_name(seat: Seat, fact: NameFacts, mended: bool) -> list[Finding]:
    """A fault if the machine's own name is of no use: stock Horovod listens at its address."""
    address = fact.own_address
    if seat.machine in fact.addresses or (address is not None and not is_loopback(address)):
        return []
    leads = "does not resolve" if address is None else f"is {address}"
    harmless = mended and fact.interface_address is not None
    return [
        Finding(
            check=CHECK,
            level="warn" if harmless else "fail",
            found=f"{seat.host} calls itself {seat.machine}, which {leads} there",
            advice=f"give {seat.machine} its routable address in /etc/hosts on {seat.host}",
        )
    ]


def _interface(seat: Seat, fact: NameFacts) -> list[Finding]:
    if seat.interface is None:
        return []
    if fact.interface_address is None:
        found = f"{seat.host} has no address on the network interface {seat.interface}"
    elif is_loopback(fact.interface_address):
        found = f"the launcher chose the interface {seat.interface}, which reaches no other host"
    else:
        return []
    advice = "choose one that all hosts have with horovodrun --network-interfaces"
    return [Finding(check=CHECK, level="fail", found=found, advice=advice)]


def _uneven(seats: Sequence[Seat]) -> list[Finding]:
    counts = {host: sum(seat.host == host for seat in seats) for host in hosts_of(seats)}
    if len(set(counts.values())) == 1:
        return []
    found = "hosts have different numbers of ranks: " + listed(
        f"{host} {count}" for host, count in counts.items()
    )
    return [
        Finding(
            check=CHECK, level="fail", found=found, advice="give all hosts of -H the same slots"
        )
    ]
