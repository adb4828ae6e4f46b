"""Connects the lab's hosts: by a bridge, or by the relay if a link has latency, jitter or loss."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict

from harness.errors import UserError
from harness.lab.host import (
    NAMESPACES,
    PACKAGE,
    STATE,
    SWITCH,
    LabHost,
    end_processes,
    processes,
)
from harness.lab.impairment import Impairment
from harness.lab.links import make_bridge, put_on_bridge
from harness.lab.namespaces import make_network, network
from harness.lab.relay import FIGURES, READY, read_impairments

LOG = STATE / "relay.log"
RELAY_IS_GONE = "the relay between the lab's hosts has ended, so they cannot reach each other"


def make_switch() -> None:
    """Makes the switch's namespace and its bridge."""
    make_network(NAMESPACES / SWITCH)
    make_bridge()


def impairments_of(hosts: Iterable[LabHost]) -> dict[str, Impairment]:
    """The impairment of each host's link, by host name; none if none was ever set."""
    with suppress(FileNotFoundError):
        return read_impairments(STATE)
    return {host.name: Impairment() for host in hosts}


def relay_is_gone() -> bool:
    """Whether the lab needs a relay and it has ended; False if no lab is up."""
    try:
        return any(read_impairments(STATE).values()) and not _relay()
    except FileNotFoundError:
        return False


def join(impairments: Mapping[str, Impairment]) -> None:
    """Connects the hosts; `impairments`: the impairment of each one's link, by host name.

    Updates a running relay, starts one if it is needed, and ends one that is not needed any more.
    """
    beside = STATE / f"{FIGURES}.new"
    beside.write_text(json.dumps({name: asdict(each) for name, each in impairments.items()}))
    beside.rename(STATE / FIGURES)
    impaired = any(impairments.values())
    if impaired and (running := _relay()):
        for pid in running:
            os.kill(pid, signal.SIGHUP)
        return
    if not impaired:
        end_processes([SWITCH])
    # With ports still on the bridge, every frame would pass twice: by the bridge and by the relay.
    put_on_bridge(impairments, not impaired)
    if impaired:
        _start_relay(list(impairments))


def _relay() -> list[int]:
    """The relay's process; nothing else runs in the switch's namespace."""
    return processes(SWITCH)


def _start_relay(hosts: list[str]) -> None:
    relay = [sys.executable, "-m", "harness.lab.relay", str(STATE), *hosts]
    with LOG.open("wb") as log, network(NAMESPACES / SWITCH):
        process = subprocess.Popen(
            relay,
            cwd=PACKAGE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert process.stdout is not None
    with process.stdout:
        if process.stdout.readline() != READY:
            reason = LOG.read_text().strip().splitlines()[-1:]
            raise UserError(f"the lab's relay does not start: {' '.join(reason) or 'no output'}")
