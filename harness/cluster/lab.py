"""Many machines on one: test hosts on a switch, made, changed and taken down without a trace."""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.cluster.cpu_limit import Groups, find_groups, groups_here
from harness.cluster.impairment import Impairment
from harness.cluster.switch import impairments_of, join, make_switch
from harness.cluster.testhost import (
    FILES,
    NAMESPACES,
    PREFIX,
    STATE,
    LabHost,
    bits_per_second,
    connect,
    end_processes,
    make_login_key,
    shape,
    start_sshd,
    tool,
    wait_for_sshd,
    write_files,
)
from harness.errors import UserError
from harness.parallel.slices import slice_of

MOST_HOSTS = 99
TOOLS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
    "taskset": "util-linux",
    "hostname": "hostname",
}
"""Program -> the package that has it on Debian."""
PRIVILEGE_FOLDER = Path("/run/sshd")
"""sshd insists on it; a machine whose own sshd runs has it."""
TURN_SECONDS = 60.0
PROBE = (
    "ip link add name probe type bridge && "
    "tc qdisc add dev probe root tbf rate 1mbit burst 9kb limit 9kb"
)


def obstacle(search: str | None = None) -> str | None:
    """Why no lab can be made here, in a line; None where one can. `search` stands for PATH."""
    if os.geteuid() != 0:
        return "needs root, because it makes network namespaces; run it with sudo"
    path = search or os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [name for name in TOOLS if not shutil.which(name, path=path)]
    if missing:
        packages = " ".join(dict.fromkeys(TOOLS[name] for name in missing))
        return f"misses {', '.join(missing)}; install e.g. {packages}"
    try:
        tool("unshare", "--net", "sh", "-c", PROBE)
    except UserError as error:
        return f"is not allowed to make shaped links in namespaces here: {error}"
    return None


def check_possible() -> None:
    found = obstacle()
    if found is not None:
        raise UserError(f"harness lab {found}")


def up(
    count: int,
    slots: int,
    rate: str | None,
    shares: Mapping[str, float | None],
    impairment: Impairment,
) -> None:
    """Makes the hosts h1, h2, ... anew, each with so many slots and such a link.

    Takes down what is left of an earlier lab. When anything fails, nothing is left of this one.
    """
    if not 1 <= count <= MOST_HOSTS or slots < 1:
        raise UserError(
            f"found --hosts {count} --slots {slots}; take 1 to {MOST_HOSTS} hosts of 1 slot or more"
        )
    hosts = _hosts(count, slots, sorted(os.sched_getaffinity(0)))
    unknown = sorted(shares.keys() - {host.name for host in hosts})
    if unknown:
        raise UserError(f"--share names {', '.join(unknown)}, the hosts are h1 to h{count}")
    if rate is not None:
        bits_per_second(rate)
    check_possible()
    with _turn():
        _remove()
        try:
            _make(hosts, rate, impairment)
            for name, cores in shares.items():
                _limit(name, cores)
        except BaseException:
            _remove()
            raise


def down() -> None:
    """Ends every process of the lab and removes all of it, also of one that came up halfway."""
    check_possible()
    with _turn():
        _remove()


def running() -> tuple[LabHost, ...]:
    """The hosts of the lab. Raises UserError where none is up."""
    check_possible()
    try:
        made = json.loads((STATE / "hosts.json").read_text())
    except FileNotFoundError as error:
        raise UserError("no lab is up; start one with: harness lab up --hosts 2") from error
    return tuple(
        LabHost(number, each["slots"], tuple(each["cores"]))
        for number, each in enumerate(made, start=1)
    )


def _hosts(count: int, slots: int, cores: Sequence[int]) -> tuple[LabHost, ...]:
    """Each with cores of its own, as machines have them; with more hosts than cores, some share."""

    def own(place: int) -> tuple[int, ...]:
        if count > len(cores):
            return (cores[place % len(cores)],)
        share = slice_of(len(cores), count, place)
        return tuple(cores[share.start : share.stop])

    return tuple(LabHost(place + 1, slots, own(place)) for place in range(count))


def host_named(name: str) -> LabHost:
    hosts = {host.name: host for host in running()}
    if name not in hosts:
        raise UserError(f"the lab has no host {name!r}; name one of {', '.join(hosts)}")
    return hosts[name]


def set_link(
    rate: str | None, name: str | None = None, figures: Mapping[str, float] | None = None
) -> None:
    """Shapes the links of a running lab anew, or one host's; of its impairment, those figures."""
    if rate is not None:
        bits_per_second(rate)
    hosts = running()
    changed = hosts if name is None else [host_named(name)]
    with _turn():
        impairments = impairments_of(hosts)
        for host in changed:
            impairments[host.name] = impairments[host.name].changed(figures or {})
        join(impairments)
        for host in changed:
            shape(host, rate)


def set_share(name: str, cores: float | None) -> None:
    """Limits the host's processes, all together, to so much of one core; None lifts it."""
    _limit(host_named(name).name, cores)


def _limit(name: str, cores: float | None) -> None:
    groups = groups_here()
    if not groups.entrance(name).exists():
        raise UserError(
            f"the cores of {name} cannot be limited: this machine lets no control group be made "
            f"in {groups.mount}; leave the share out"
        )
    groups.limit(name, cores)


@contextmanager
def _turn() -> Iterator[None]:
    """One command at a time changes the lab; a killed one leaves the turn to the next."""
    with socket.socket(socket.AF_UNIX) as turn:
        end = time.monotonic() + TURN_SECONDS
        while True:
            try:
                turn.bind(f"\0{PREFIX}")
                break
            except OSError as error:
                if time.monotonic() > end:
                    raise UserError("another `harness lab` is at work; try again") from error
                time.sleep(0.1)
        yield


def _make(hosts: tuple[LabHost, ...], rate: str | None, impairment: Impairment) -> None:
    _note_what_is_missing()
    for folder in (FILES, PRIVILEGE_FOLDER):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    make_login_key()
    groups = _make_groups(hosts)
    make_switch()
    for host in hosts:
        connect(host)
        write_files(host, hosts)
        shape(host, rate)
    join({host.name: impairment for host in hosts})
    entrances = [groups.entrance(host.name) if groups else None for host in hosts]
    servers = [start_sshd(*each) for each in zip(hosts, entrances, strict=True)]
    for host, server in zip(hosts, servers, strict=True):
        wait_for_sshd(host, server)
    # Written last: a lab without it is broken, and nobody works in it.
    made = [{"slots": host.slots, "cores": host.cores} for host in hosts]
    (STATE / "hosts.json").write_text(json.dumps(made))


def _note_what_is_missing() -> None:
    """Keeps in mind, before any of it is made, what this machine did not have."""
    folders = [path for path in (NAMESPACES, FILES, PRIVILEGE_FOLDER) if not path.exists()]
    groups = find_groups(Path("/proc/mounts").read_text())
    controller = groups is not None and groups.lacks_controller()
    note = {"folders": [str(path) for path in folders], "controller": controller}
    STATE.mkdir(mode=0o700)
    (STATE / "missing.json").write_text(json.dumps(note))


def _make_groups(hosts: tuple[LabHost, ...]) -> Groups | None:
    """None where the machine lets nobody limit cores: a lab is of use without."""
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
    """Finds everything by its prefix: whoever made it may have been killed in the middle."""
    names = [path.name for path in NAMESPACES.glob(f"{PREFIX}-*")]
    end_processes(names)
    for name in names:
        tool("ip", "netns", "delete", name)
    for folder in FILES.glob(f"{PREFIX}-*"):
        shutil.rmtree(folder)
    groups = find_groups(Path("/proc/mounts").read_text())
    if groups is not None:
        groups.remove()
    _take_back(groups)
    shutil.rmtree(STATE, ignore_errors=True)


def _take_back(groups: Groups | None) -> None:
    """Removes what this machine did not have before the lab, unless others use it by now."""
    try:
        note = json.loads((STATE / "missing.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return
    if note["controller"] and groups is not None:
        groups.take_back_controller()
    for folder in (Path(text) for text in note["folders"]):
        if not folder.exists() or any(folder.iterdir()):
            continue
        if f" {folder} " in Path("/proc/self/mounts").read_text():  # by `ip netns add`
            tool("umount", "--no-mtab", str(folder))
        folder.rmdir()
