"""How a lab's hosts are entered: by real ssh, or directly if no sshd can run."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from harness.errors import UserError
from harness.lab import direct_ssh, direct_sshd
from harness.lab.host import PREFIX, STATE, LabHost

REAL, DIRECT = "real", "direct"
TOOLS = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
"""Program -> the Debian package that contains it."""
PLACES = ("/usr/sbin", "/sbin", "/usr/local/sbin")
"""Folders that may hold sshd and that a user's PATH may lack."""
PRIVILEGE_FOLDER = Path("/run/sshd")
"""Folder that sshd requires; it exists on machines that run an sshd already."""
PROGRAMS, DOORS = STATE / "bin", STATE / "doors"
KNOWN_HOSTS = STATE / "known_hosts"
CLIENT = f"""\
Host *
  User root
  IdentityFile {STATE}/key
  IdentitiesOnly yes
  UserKnownHostsFile /dev/null
  GlobalKnownHostsFile {KNOWN_HOSTS}
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


class Entry(Protocol):
    """The way into the hosts of a lab; it is the same for all of them."""

    def prepare(self) -> None:
        """Makes what all hosts share; called once for a lab, before its hosts are made."""

    def write_files(self, host: LabHost) -> None:
        """Writes the host's files for this way into its folders, which must exist."""

    def program(self, host: LabHost) -> list[str]:
        """Command of the host's first process."""

    def is_open(self, host: LabHost, first: int) -> bool:
        """Whether the host accepts connections yet; `first` is the pid of its first process."""

    def ssh(self, host: LabHost, terminal: bool, line: str) -> list[str]:
        """Command that runs a shell line in the host; start it in the host's own network."""

    def search(self, path: str) -> str:
        """PATH of commands in the hosts, made from the user's PATH."""


class RealSsh:
    """An sshd in each host and one login key for all; needs root."""

    def prepare(self) -> None:
        PRIVILEGE_FOLDER.mkdir(mode=0o755, exist_ok=True)
        _make_key(STATE / "key")

    def write_files(self, host: LabHost) -> None:
        (host.files / "ssh").mkdir()
        self._configuration(host).write_text(CLIENT)
        # sshd without PAM refuses an account whose password is locked, as root's is on some
        # systems.
        (host.files / "shadow").write_text("root:*:19000:0:99999:7:::\n")
        (host.files / "shadow").chmod(0o600)
        server = SERVER.format(address=host.address, folder=host.folder, state=STATE)
        (host.folder / "sshd_config").write_text(server)
        _make_key(host.folder / "host_key")
        public = (host.folder / "host_key.pub").read_text()
        with KNOWN_HOSTS.open("a") as known:
            known.write(f"{host.name},{host.address} {public}")

    def program(self, host: LabHost) -> list[str]:
        sshd = shutil.which("sshd", path=_search())
        assert sshd is not None, "`obstacle_to_ssh` has found it"
        return [sshd, "-D", "-e", "-f", str(host.folder / "sshd_config")]

    def is_open(self, host: LabHost, first: int) -> bool:
        # /proc/net/tcp shows an address as a native 32-bit integer, so in reversed byte order on
        # little-endian machines; 0016 is port 22, state 0A is LISTEN.
        octets = [int(octet) for octet in host.address.split(".")]
        listening = bytes(reversed(octets)).hex().upper() + ":0016 00000000:0000 0A"
        try:
            return listening in Path(f"/proc/{first}/net/tcp").read_text()
        except OSError:  # it has ended
            return False

    def ssh(self, host: LabHost, terminal: bool, line: str) -> list[str]:
        options = ["-F", str(self._configuration(host)), "-tt" if terminal else "-T"]
        return ["ssh", *options, host.address, line]

    def search(self, path: str) -> str:
        return path

    def _configuration(self, host: LabHost) -> Path:
        return host.files / "ssh" / "ssh_config"


class Direct:
    """A server in each host that runs commands it receives at a socket in the file system.

    Network namespaces do not separate such sockets, so every host reaches every other. In the hosts
    `ssh` is the client program.
    """

    def prepare(self) -> None:
        PROGRAMS.mkdir()
        DOORS.mkdir()
        words = [sys.executable, "-I", "-S", str(Path(direct_ssh.__file__)), str(DOORS)]
        (PROGRAMS / "ssh").write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (PROGRAMS / "ssh").chmod(0o755)

    def write_files(self, host: LabHost) -> None:
        (DOORS / host.address).symlink_to(host.name)

    def program(self, host: LabHost) -> list[str]:
        words = [Path(direct_sshd.__file__), DOORS / host.name, PROGRAMS]
        return [sys.executable, "-I", "-S", *map(str, words)]

    def is_open(self, host: LabHost, first: int) -> bool:
        return (DOORS / host.name).exists()

    def ssh(self, host: LabHost, terminal: bool, line: str) -> list[str]:
        return [str(PROGRAMS / "ssh"), "-tt" if terminal else "-T", host.name, line]

    def search(self, path: str) -> str:
        return os.pathsep.join([str(PROGRAMS), path])


def entry_of(host: LabHost) -> Entry:
    return Direct() if host.direct else RealSsh()


def is_direct(asked: str | None) -> bool:
    """Whether hosts are entered directly: as `asked`, else directly only if ssh cannot work.

    Raises UserError if real ssh was asked for and cannot work.
    """
    against = obstacle_to_ssh()
    if asked == REAL and against is not None:
        raise UserError(f"--ssh real {against}; or leave out --ssh, to enter the hosts directly")
    return asked == DIRECT or against is not None


def obstacle_to_ssh(search: str | None = None) -> str | None:
    """Why no sshd can run in the hosts; None if it can. `search` replaces PATH."""
    groups = Path("/proc/self/setgroups")
    if os.geteuid() != 0 or (groups.exists() and groups.read_text().strip() == "deny"):
        return "needs root, because sshd changes users and groups; run it with sudo"
    missing = [name for name in TOOLS if not shutil.which(name, path=search or _search())]
    if missing:
        packages = " ".join(dict.fromkeys(TOOLS[name] for name in missing))
        return f"needs {', '.join(missing)}; install e.g. {packages}"
    return None


def _search() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), *PLACES])


def _make_key(path: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", PREFIX, "-f", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"the lab's `{shlex.join(command)}` failed: {reason}")
