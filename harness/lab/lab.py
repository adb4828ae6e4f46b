"""Many hosts on one machine: makes, changes and removes test hosts on a switch."""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.errors import UserError, one_line
from harness.lab.cpu_limit import Groups, find_groups, groups_here
from harness.lab.entry import PRIVILEGE_FOLDER, entry_of
from harness.lab.host import (
    NAMESPACES,
    NO_LAB,
    PREFIX,
    STATE,
    LabHost,
    boot,
    end_processes,
    first_process,
    last_log_lines,
    write_files,
)
from harness.lab.impairment import Impairment
from harness.lab.links import connect, shape, try_links
from harness.lab.namespaces import make_network, remove_network
from harness.lab.rate import bits_per_second
from harness.lab.switch import impairments_of, join, make_switch
from harness.lab.turn import turn
from harness.parallel.slices import slice_of

MOST_HOSTS = 99
"""Host numbers have two digits."""
START_SECONDS = 20.0
"""Time for hosts to accept connections."""
HOSTS = STATE / "hosts.json"
"""The hosts of a complete lab."""
MISSING = STATE / "missing.json"
"""What this machine did not have before the lab, to be removed with it."""


@dataclass(frozen=True)
class Plan:
    """A lab that is to be made."""

    hosts: tuple[LabHost, ...]
    rate: str | None
    """Rate of each host's link, e.g. 200mbit; None: no limit."""
    shares: Mapping[str, float | None]
    """Host name -> cores that its processes may use together; None: no limit."""
    impairment: Impairment
    """Latency, jitter and loss of each host's link."""


def plan(
    count: int,
    slots: int,
    direct: bool,
    rate: str | None,
    shares: Mapping[str, float | None],
    impairment: Impairment,
) -> Plan:
    """A lab of `count` hosts h1, h2, ..., each with `slots` slots and the same kind of link.

    Raises UserError for values out of range and for shares of unknown hosts.
    """
    if not 1 <= count <= MOST_HOSTS or slots < 1:
        raise UserError(
            f"--hosts {count} --slots {slots} is out of range; give 1 to {MOST_HOSTS} hosts of at "
            f"least 1 slot"
        )
    hosts = _hosts(count, slots, direct, sorted(os.sched_getaffinity(0)))
    unknown = sorted(shares.keys() - {host.name for host in hosts})
    if unknown:
        raise UserError(f"--share names {', '.join(unknown)}, but the hosts are h1 to h{count}")
    if rate is not None:
        bits_per_second(rate)
    return Plan(hosts, rate, shares, impairment)


def obstacle() -> str | None:
    """Why no lab can be made in this process's namespaces, in one line; None if one can."""
    try:
        try_links()
    except UserError as error:
        return f"is not allowed to make shaped links in namespaces here: {error}"
    return None


def up(wanted: Plan) -> None:
    """Makes the lab, after taking down what is left of an earlier one.

    If anything fails, nothing is left of this one. Raises UserError if labs are not allowed here.
    """
    against = obstacle()
    if against is not None:
        raise UserError(f"harness lab {against}")
    with turn():
        _remove()
        try:
            _make(wanted)
            for name, cores in wanted.shares.items():
                _limit(name, cores)
        except OSError as error:  # mounting is forbidden, or /run cannot be written
            _remove()
            raise UserError(f"harness lab cannot be made here: {one_line(error)}") from error
        except BaseException:
            _remove()
            raise


def down() -> None:
    """Ends every process of the lab and removes all of it, also if it was only partly made."""
    with turn():
        _remove()


def running() -> tuple[LabHost, ...]:
    """The hosts of the lab. Raises UserError if none is up."""
    try:
        made = json.loads(HOSTS.read_text())
    except FileNotFoundError as error:
        raise UserError(NO_LAB) from error
    return tuple(map(LabHost.of, made))


def _hosts(count: int, slots: int, direct: bool, cores: Sequence[int]) -> tuple[LabHost, ...]:
    """The hosts, each with its own cores, as machines have them; they share if cores are fewer."""

    def own(place: int) -> tuple[int, ...]:
        if count > len(cores):
            return (cores[place % len(cores)],)
        share = slice_of(len(cores), count, place)
        return tuple(cores[share.start : share.stop])

    return tuple(LabHost(place + 1, slots, own(place), direct) for place in range(count))


def host_named(name: str) -> LabHost:
    """The host of that name. Raises UserError if the lab has none, or if no lab is up."""
    hosts = {host.name: host for host in running()}
    if name not in hosts:
        raise UserError(f"the lab has no host {name!r}; name one of {', '.join(hosts)}")
    return hosts[name]


def set_link(
    rate: str | None, name: str | None = None, figures: Mapping[str, float] | None = None
) -> None:
    """Changes the rate of all links of a running lab, or of host `name`'s, and these figures."""
    bits = None if rate is None else bits_per_second(rate)
    hosts = running()
    changed = hosts if name is None else [host_named(name)]
    with turn():
        impairments = impairments_of(hosts)
        for host in changed:
            impairments[host.name] = impairments[host.name].changed(figures or {})
        join(impairments)
        for host in changed:
            shape(host, bits)


def set_share(name: str, cores: float | None) -> None:
    """Limits all processes of the host together to a share of one core; None lifts the limit."""
    _limit(host_named(name).name, cores)


def _limit(name: str, cores: float | None) -> None:
    limits_of(name).limit(name, cores)


def limits_of(name: str) -> Groups:
    """The control groups that limit the host. Raises UserError if its cores cannot be limited."""
    groups = groups_here()
    if not groups.entrance(name).exists():
        raise UserError(
            f"the cores of {name} cannot be limited: no control group could be made in "
            f"{groups.mount}; leave the share out"
        )
    return groups


def _make(wanted: Plan) -> None:
    hosts = wanted.hosts
    entry = entry_of(hosts[0])
    _note_what_is_missing()
    NAMESPACES.mkdir(mode=0o755, exist_ok=True)
    entry.prepare()
    groups = _make_groups(hosts)
    make_switch()
    bits = None if wanted.rate is None else bits_per_second(wanted.rate)
    for host in hosts:
        make_network(NAMESPACES / host.namespace)
        connect(host)
        write_files(host, hosts)
        entry.write_files(host)
        shape(host, bits)
    join({host.name: wanted.impairment for host in hosts})
    _boot(hosts, groups)
    # Written last: without this file a lab counts as not up, so nobody uses one that is incomplete.
    HOSTS.write_text(json.dumps([asdict(host) for host in hosts]))


def _boot(hosts: Sequence[LabHost], groups: Groups | None) -> None:
    """Starts all hosts in parallel; returns when every one accepts connections."""
    entry = entry_of(hosts[0])
    booting = []
    try:
        for host in hosts:
            group = groups.entrance(host.name) if groups else None
            booting.append(boot(host, entry.program(host), group))
        firsts = [first_process(*each) for each in zip(hosts, booting, strict=True)]
    except BaseException:
        for each in booting:
            each.kill()  # `_remove` finds processes by their network; these may be in none yet
        raise
    end = time.monotonic() + START_SECONDS
    for host, first in zip(hosts, firsts, strict=True):
        while not entry.is_open(host, first):
            if not Path(f"/proc/{first}").exists() or time.monotonic() > end:
                raise UserError(f"{host.name} of the lab does not start: {last_log_lines(host)}")
            time.sleep(0.01)


def _note_what_is_missing() -> None:
    """Writes down, before anything is made, what this machine does not have."""
    folders = [path for path in (NAMESPACES, PRIVILEGE_FOLDER) if not path.exists()]
    groups = find_groups(Path("/proc/mounts").read_text())
    controller = groups is not None and groups.lacks_controller()
    note = {"folders": [str(path) for path in folders], "controller": controller}
    STATE.mkdir(mode=0o700)
    MISSING.write_text(json.dumps(note))


def _make_groups(hosts: Sequence[LabHost]) -> Groups | None:
    """Control groups of the hosts; None if cores cannot be limited, which a lab does not need."""
    groups = find_groups(Path("/proc/mounts").read_text())
    if groups is None:
        return None
    try:
        groups.make([host.name for host in hosts])
    except OSError:
        groups.remove()
        return None
    return groups


def _remove() -> None:
    """Removes everything, found by its prefix: the process that made it may have been killed."""
    names = [path.name for path in NAMESPACES.glob(f"{PREFIX}-*")]
    end_processes(names)
    for name in names:
        remove_network(NAMESPACES / name)
    groups = find_groups(Path("/proc/mounts").read_text())
    if groups is not None:
        groups.remove()
    _take_back(groups)
    shutil.rmtree(STATE, ignore_errors=True)


def _take_back(groups: Groups | None) -> None:
    """Removes what this machine did not have before the lab, unless others use it now."""
    try:
        note = json.loads(MISSING.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return
    if note["controller"] and groups is not None:
        groups.take_back_controller()
    for folder in (Path(text) for text in note["folders"]):
        if folder.exists() and not folder.is_mount() and not any(folder.iterdir()):
            folder.rmdir()
