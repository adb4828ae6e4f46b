"""The command line of launch: an experiment or any program, on all ranks of all hosts."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from harness.arguments import (
    MOST_RANKS,
    SUFFIXES,
    Arguments,
    add_command,
    add_continue,
    check_continue,
    count,
    is_override,
    path,
)
from harness.errors import UserError

MOST_RESTARTS = 10_000
"""More than a run of a year has failures."""


def add_launch(commands: Any) -> None:
    """`harness launch`."""
    parser = add_command(
        commands,
        "launch",
        "Run one training, or any program, on several hosts with horovodrun.\n\n"
        "`-- CMD` starts a program instead of an experiment.",
        "harness launch --hosts host1:4,host2:4 experiments/glyphs/hybrid_async.yaml",
    )
    parser.add_argument(
        "--np", "-np", type=count(MOST_RANKS), help="number of ranks (default: one per slot)"
    )
    parser.add_argument("--hosts", "-H", help="host:slots,host:slots (default: this machine only)")
    parser.add_argument(
        "--folder",
        type=path,
        help="folder for the run's files; the output of its ranks goes to FOLDER.log",
    )
    add_continue(parser)
    add_restarts(parser)
    parser.add_argument(
        "--spares", help="host:slots,...: hosts that replace those that fail, with --restarts"
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the command line")
    parser.add_argument("arguments", nargs="+", metavar="EXPERIMENT.yaml|key=value")
    parser.set_defaults(command=_launch)


def add_restarts(parser: argparse.ArgumentParser) -> None:
    """The option --restarts."""
    parser.add_argument(
        "--restarts",
        type=count(MOST_RESTARTS, least=0),
        help="times that a run that fails goes on from its newest good checkpoint (default: 0)",
    )


def _launch(parsed: argparse.Namespace) -> int:
    from harness.launch.hosts import slots_of
    from harness.launch.launch import launch, plan_launch
    from harness.tracking.folders import new_file, now

    ranks = parsed.np or slots_of(parsed.hosts)
    first = parsed.arguments[0]
    if first.endswith(SUFFIXES) or is_override(first):
        given = Arguments.split(parsed.arguments)
        return _train(parsed, given.only_experiment("launch"), given.overrides, ranks)
    if parsed.restarts or parsed.spares or parsed.goes_on:
        raise UserError("--restarts, --spares and --continue need an experiment's checkpoints")
    _announce(plan_launch(parsed.arguments, ranks, parsed.hosts).line())
    if parsed.dry_run:
        return 0
    log = new_file((parsed.folder or Path("runs")) / f"launch-{now()}.log")
    outcome = launch(parsed.arguments, ranks, parsed.hosts, log, sys.stdout)
    return _end(outcome.exit_code, outcome.reason, log)


def _train(
    parsed: argparse.Namespace, experiment: Path, overrides: Sequence[str], ranks: int
) -> int:
    from harness.config import load
    from harness.launch.environment import withheld
    from harness.launch.hosts import hosts_or_local, parse_hosts, read_hosts, topology_of
    from harness.launch.launch import plan_launch
    from harness.launch.supervisor import Policy, Training, supervise
    from harness.launch.training import train_command
    from harness.parallel.topology import check_classes
    from harness.tracking.ended import check_alike, ended
    from harness.tracking.folders import claimed, new_file, now

    config = load(experiment, overrides)
    topology = topology_of(parse_hosts(hosts_or_local(parsed.hosts, ranks), ranks), ranks)
    check_classes(topology, config.classifier.layout, config.data.num_classes)
    policy = Policy(parsed.restarts or 0, read_hosts(parsed.spares) if parsed.spares else ())
    if policy.spares and not policy.restarts:
        raise UserError("--spares replaces hosts when a run is started again; add --restarts N")
    if policy.restarts and not config.train.saves:
        _announce("warning: train.checkpoint_every is 0: a restart begins with the first window")
    automatic = Path(config.tracking.folder) / f"{config.name}-s{config.seed}-{now()}"
    if parsed.dry_run:
        shown = (parsed.folder or automatic).absolute()
        command = train_command(experiment, overrides, shown)
        _announce(plan_launch(command, ranks, parsed.hosts).line())
        return 0
    for line in withheld(config):
        _announce(line)
    check_continue(parsed)
    goes_on: bool = parsed.goes_on
    if goes_on and ended(config, parsed.folder):
        return 0
    if goes_on:  # what the ranks say of a run that has trained is a failure
        check_alike(config, parsed.folder)
    with nullcontext(parsed.folder) if goes_on else claimed(parsed.folder, automatic) as given:
        folder = given.absolute()
        training = Training(experiment, tuple(overrides), config, folder, ranks, parsed.hosts)
        _announce(plan_launch(training.command(goes_on), ranks, parsed.hosts).line())
        log = new_file(folder.with_name(f"{folder.name}.log"))
        outcome = supervise(training, policy, log, goes_on)
        return _end(outcome.exit_code, outcome.reason, outcome.log)


def _announce(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _end(code: int, reason: str, log: Path) -> int:
    if code == 2:
        raise UserError(reason.removeprefix("harness: "))
    if code:
        _announce(f"{reason}\noutput of all ranks: {log}")
    return code
