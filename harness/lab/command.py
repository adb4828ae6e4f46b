"""The command line of the lab: its options, and what its state looks like."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from harness.arguments import MOST_RANKS, add_command, count
from harness.errors import UserError
from harness.lab import cell, lab
from harness.lab.cpu_limit import groups_here
from harness.lab.entry import DIRECT, REAL, is_direct
from harness.lab.host import LabHost, processes
from harness.lab.impairment import OPTIONS, Impairment, figures
from harness.lab.links import shaped_to
from harness.lab.rate import format_rate
from harness.lab.run import parse_stutter, run_in_lab
from harness.lab.switch import RELAY_IS_GONE, impairments_of, relay_is_gone

Commands = Any
"""argparse's _SubParsersAction, which is a private name."""
Command = Callable[[argparse.Namespace], int]
ABOUT = (
    "Make test hosts on this machine, with slow links.\n\n"
    "With root, they are made in the machine's own namespaces and entered by ssh if sshd is "
    "installed. Without root, they are made in a user namespace and entered directly; `ssh` is "
    "then a program of the lab that works inside the hosts. If namespaces are forbidden, `up` "
    "reports what forbids them."
)


def add_lab(commands: Commands) -> None:
    """`harness lab up | run | status | rate | share | down`."""
    parser = add_command(commands, "lab", ABOUT, "harness lab up --hosts 2 --rate 100mbit")
    of_lab = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_up(of_lab)
    _add_others(of_lab)


def _add_up(of_lab: Commands) -> None:
    up = of_lab.add_parser("up", help="make the hosts h1, h2, ...; replaces an earlier lab")
    up.add_argument("--hosts", type=count(lab.MOST_HOSTS), default=2, help="number of hosts")
    up.add_argument("--slots", type=count(MOST_RANKS), default=4, help="ranks per host")
    up.add_argument("--rate", default="none", help="rate of each host's link, e.g. 200mbit or none")
    _add_impairment(up)
    up.add_argument(
        "--share",
        action="append",
        default=[],
        metavar="HOST=FRACTION",
        help="limit a host to a share of one core",
    )
    up.add_argument(
        "--ssh",
        choices=(REAL, DIRECT),
        help="how hosts are entered: real = by sshd (default if it can run), direct = without sshd",
    )
    up.set_defaults(command=_up)


def _add_others(of_lab: Commands) -> None:
    run = of_lab.add_parser("run", help="run a command in the first host")
    run.add_argument("--stutter", action="append", default=[], metavar="HOST:SLOW/EVERY[:SHARE]")
    run.add_argument("arguments", nargs="+", metavar="-- CMD")
    run.set_defaults(command=_inside(_run))
    status = of_lab.add_parser("status", help="show the hosts, their links and processes")
    status.add_argument("--hosts", action="store_true", help="print the list for horovodrun -H")
    status.set_defaults(command=_inside(_status))
    rate = of_lab.add_parser("rate", help="change the links of a running lab")
    rate.add_argument("rate", help="e.g. 200mbit or none")
    rate.add_argument("host", nargs="?", help="host to change (default: all)")
    _add_impairment(rate)
    rate.set_defaults(command=_inside(_rate))
    share = of_lab.add_parser("share", help="limit a host's processes to a share of one core")
    share.add_argument("host")
    share.add_argument("share", metavar="FRACTION", help="e.g. 0.3; 1 or none: no limit")
    share.set_defaults(command=_inside(_share))
    down = of_lab.add_parser("down", help="end the lab's processes and remove the lab")
    down.set_defaults(command=_down)


def _inside(command: Command) -> Command:
    """The command, run in the namespaces in which this user's lab is."""

    def run(parsed: argparse.Namespace) -> int:
        if cell.is_needed():
            return cell.found().run(partial(command, parsed))
        return command(parsed)

    return run


def _add_impairment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--latency", help="one-way delay (half a ping), e.g. 20ms or none")
    parser.add_argument("--jitter", help="variation of the latency up and down, e.g. 5ms or none")
    parser.add_argument("--loss", help="share of packets lost, one way, e.g. 0.1%% or none")


def _figures(parsed: argparse.Namespace) -> dict[str, float]:
    return figures({name: getattr(parsed, name) for name in OPTIONS})


def _up(parsed: argparse.Namespace) -> int:
    shares = dict(_host_and_share(text) for text in parsed.share)
    impairment, rate = Impairment(**_figures(parsed)), _rate_or_none(parsed.rate)
    direct = is_direct(parsed.ssh)
    plan = lab.plan(parsed.hosts, parsed.slots, direct, rate, shares, impairment)

    def make() -> int:
        lab.up(plan)
        return _status(argparse.Namespace(hosts=False))

    return cell.run_in_new(make) if cell.is_needed() else make()


def _run(parsed: argparse.Namespace) -> int:
    return run_in_lab(parsed.arguments, [parse_stutter(text) for text in parsed.stutter])


def _status(parsed: argparse.Namespace) -> int:
    hosts = lab.running()
    if parsed.hosts:
        print(",".join(f"{host.name}:{host.slots}" for host in hosts))
        return 0
    entered = "directly" if hosts[0].direct else "by ssh"
    print(f"made {cell.place()}; hosts are entered {entered}", file=sys.stderr)
    impairments = impairments_of(hosts)
    for host in hosts:
        print(_line(host, impairments[host.name]))
    if relay_is_gone():
        print(f"{RELAY_IS_GONE}; restart it with: harness lab rate RATE")
        return 1
    return 0


def _rate(parsed: argparse.Namespace) -> int:
    lab.set_link(_rate_or_none(parsed.rate), parsed.host, _figures(parsed))
    return 0


def _share(parsed: argparse.Namespace) -> int:
    lab.set_share(parsed.host, _cores(parsed.share))
    return 0


def _down(_: argparse.Namespace) -> int:
    return cell.end_after(_take_down) if cell.is_needed() else _take_down()


def _take_down() -> int:
    if relay_is_gone():
        print(f"{RELAY_IS_GONE}; the rest is taken down", file=sys.stderr)
    lab.down()
    return 0


def _line(host: LabHost, impairment: Impairment) -> str:
    try:
        limit = groups_here().limit_of(host.name)
    except (UserError, OSError):
        limit = None
    share = f"cores {','.join(map(str, host.cores))}"
    if limit is not None:
        share += f", {limit:g} of a core"
    rate = shaped_to(host)
    link = f"link {'unshaped' if rate is None else format_rate(rate)}"
    if impairment:
        link += f", {impairment}"
    count = len(processes(host.namespace))
    return f"{host.name}  {host.address}  {host.slots} slots  {link}  {share}  {count} processes"


def _rate_or_none(text: str) -> str | None:
    return None if text == "none" else text


def _host_and_share(text: str) -> tuple[str, float | None]:
    name, _, share = text.partition("=")
    return name, _cores(share)


def _cores(text: str) -> float | None:
    if text == "none":
        return None
    try:
        cores = float(text)
    except ValueError:
        cores = 0.0
    if not 0 < cores <= 1:
        raise UserError(f"{text!r} is not a share of a core; give e.g. 0.3, or none for no limit")
    return None if cores == 1 else cores
