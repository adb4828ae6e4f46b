"""One test host: a network namespace with a name, an address, a shaped link and an sshd."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError

PREFIX = "harnesslab"
"""Of everything that a lab adds to the machine: by it all of it is found again."""
STATE = Path("/run") / PREFIX
"""Keys, sshd configurations and logs; for root alone, gone with the lab."""
NAMESPACES = Path("/run/netns")
FILES = Path("/etc/netns")
"""What lies here under a namespace's name stands in /etc for its processes, and only there."""
SWITCH = f"{PREFIX}-switch"
"""Namespace of the bridge or relay: the machine's own network sees neither it nor the hosts'
addresses."""
NETWORK = "10.77.0"
START_SECONDS = 20.0
GONE_SECONDS = 10.0
QUEUE_SECONDS = 0.5
"""What waits longer at a shaped end is dropped."""
BURST_SECONDS = 0.02
SMALLEST_BURST_BYTES = 16_384
RATE = re.compile(r"(\d+(?:\.\d+)?)([kmg])bit", re.IGNORECASE)

CLIENT = """\
Host *
  User root
  IdentityFile {state}/key
  IdentitiesOnly yes
  UserKnownHostsFile /dev/null
  GlobalKnownHostsFile {state}/known_hosts
  StrictHostKeyChecking yes
  BatchMode yes
  LogLevel ERROR
"""
SERVER = """\
ListenAddress {address}
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {state}/key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
MaxStartups 512
MaxSessions 512
LogLevel ERROR
"""


@dataclass(frozen=True)
class LabHost:
    """One of the lab's hosts, by its number from 1."""

    number: int
    slots: int
    """Ranks it takes."""
    cores: tuple[int, ...]
    """Of this machine, all that its processes run on."""

    @property
    def name(self) -> str:
        return f"h{self.number}"

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}"

    @property
    def namespace(self) -> str:
        return f"{PREFIX}-{self.name}"

    @property
    def folder(self) -> Path:
        return STATE / self.name


def tool(*command: str) -> str:
    """Output of one of the system's programs. Raises UserError with its last word if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"the lab's `{shlex.join(command)}` failed: {said}")
    return done.stdout


def processes(namespace: str) -> list[int]:
    return [int(pid) for pid in tool("ip", "netns", "pids", namespace).split()]


def end_processes(namespaces: Sequence[str]) -> None:
    """Kills all that run there until nothing does."""
    end = time.monotonic() + GONE_SECONDS
    while True:
        left = set()
        for name in namespaces:
            with suppress(UserError):  # a file whose namespace was never made
                left |= set(processes(name))
        if not left:
            return
        if time.monotonic() > end:
            raise UserError(f"processes of the lab do not end: {sorted(left)}; try again")
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def connect(host: LabHost) -> None:
    """Makes the host's namespace and the cable from its eth0 to the switch."""
    inside, port = host.namespace, host.name
    tool("ip", "netns", "add", inside)
    ends = ["eth0", "netns", inside, "type", "veth", "peer", "name", port, "netns", SWITCH]
    tool("ip", "link", "add", *ends)
    # Without an address even of version 6: the switch itself says nothing.
    tool("ip", "-n", SWITCH, "link", "set", port, "addrgenmode", "none", "up")
    tool("ip", "-n", inside, "link", "set", "lo", "up")
    tool("ip", "-n", inside, "addr", "add", f"{host.address}/24", "dev", "eth0")
    tool("ip", "-n", inside, "link", "set", "eth0", "up")


def bits_per_second(rate: str) -> float:
    """Of `200mbit`. Raises UserError for what is no rate."""
    found = RATE.fullmatch(rate)
    if not found or float(found[1]) == 0:
        raise UserError(f"{rate!r} is no rate; write e.g. 200mbit, 1.5gbit, 500kbit, or none")
    return float(found[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[found[2].lower()]


def shape(host: LabHost, rate: str | None) -> None:
    """Limits the host's link in both directions; None lifts the limit."""
    ends = [(host.namespace, "eth0"), (SWITCH, host.name)]
    for namespace, device in ends:
        queue = ["tc", "-n", namespace, "qdisc"]
        if rate is not None:
            bits = bits_per_second(rate)
            burst = max(SMALLEST_BURST_BYTES, int(bits / 8 * BURST_SECONDS))
            limit = burst + int(bits / 8 * QUEUE_SECONDS)
            law = ["tbf", "rate", f"{bits:.0f}bit", "burst", f"{burst}b", "limit", f"{limit}b"]
            tool(*queue, "replace", "dev", device, "root", *law)
        elif _rate_at(namespace, device) is not None:
            tool(*queue, "del", "dev", device, "root")


def shaped_rate(host: LabHost) -> str | None:
    """As the kernel has it, e.g. 200Mbit."""
    return _rate_at(host.namespace, "eth0")


def _rate_at(namespace: str, device: str) -> str | None:
    shown = tool("tc", "-n", namespace, "qdisc", "show", "dev", device)
    found = re.search(r"\btbf .*\brate (\S+)", shown)
    return found[1] if found else None


def write_files(host: LabHost, hosts: tuple[LabHost, ...]) -> None:
    """The host's /etc/hosts, ssh configuration and keys; those of the lab must be there."""
    host.folder.mkdir()
    _make_key(host.folder / "host_key")
    own = FILES / host.namespace
    (own / "ssh").mkdir(parents=True)
    names = "".join(f"{each.address} {each.name}\n" for each in hosts)
    # What torch asks for, and warns of where nobody answers.
    names += "".join(f"::ffff:{each.address} {each.name}.{PREFIX}\n" for each in hosts)
    (own / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    (own / "ssh" / "ssh_config").write_text(CLIENT.format(state=STATE))
    # sshd without PAM refuses an account whose password is locked, as root's is on some systems.
    (own / "shadow").write_text("root:*:19000:0:99999:7:::\n")
    (own / "shadow").chmod(0o600)
    # bash reads root's start-up files for every command of ssh; a host's end cuts them short:
    # pyenv's then leave a lock behind, for which every later command waits a minute.
    accounts = Path("/etc/passwd").read_text(encoding="utf-8")
    (own / "passwd").write_text(re.sub(r"(?m)^(root:.*:).*$", r"\1/bin/sh", accounts))
    server = SERVER.format(address=host.address, folder=host.folder, state=STATE)
    (host.folder / "sshd_config").write_text(server)
    public = (host.folder / "host_key.pub").read_text()
    with (STATE / "known_hosts").open("a") as known:
        known.write(f"{host.name},{host.address} {public}")


def make_login_key() -> None:
    _make_key(STATE / "key")


def _make_key(path: Path) -> None:
    tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", PREFIX, "-f", str(path))


def start_sshd(host: LabHost, group: Path | None) -> "subprocess.Popen[bytes]":
    """Boots the host: its sshd is the first process of a process namespace of its own.

    So the host sees its own processes alone, and when sshd is killed all of them are. `group`: a
    file that takes the process into the host's control group.
    """
    sshd = shutil.which("sshd", path="/usr/sbin:/sbin:/usr/local/sbin") or "sshd"
    config = str(host.folder / "sshd_config")
    boot = f"hostname {host.name} && exec {sshd} -D -e -f {config}"
    enter = ["taskset", "--cpu-list", ",".join(map(str, host.cores))]
    enter += ["ip", "netns", "exec", host.namespace]
    enter += ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
    join = f"echo $$ > {group} && " if group else ""
    with (host.folder / "sshd.log").open("wb") as log:
        return subprocess.Popen(
            ["sh", "-c", f'{join}exec "$@"', "sh", *enter, "sh", "-c", boot],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def wait_for_sshd(host: LabHost, sshd: "subprocess.Popen[bytes]") -> None:
    """Until it listens on the host's address."""
    octets = [int(octet) for octet in host.address.split(".")]
    listening = bytes(reversed(octets)).hex().upper() + ":0016 00000000:0000 0A"
    sockets = Path(f"/proc/{sshd.pid}/net/tcp")
    end = time.monotonic() + START_SECONDS
    while sshd.poll() is None and time.monotonic() < end:
        if listening in sockets.read_text():
            return
        time.sleep(0.01)
    said = (host.folder / "sshd.log").read_text().strip().splitlines()
    raise UserError(f"sshd of {host.name} does not start: {' '.join(said[-3:]) or 'no word'}")
