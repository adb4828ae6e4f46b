"""Starts a training again after a failure, from its newest good checkpoint, on hosts that work."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.config import Config
from harness.errors import UserError
from harness.launch.fitness import Checked, check_hosts
from harness.launch.hosts import Host, filled, hosts_option, hosts_or_local, read_hosts, topology_of
from harness.launch.launch import Outcome
from harness.launch.training import launch_training, train_command
from harness.launch.warned import WARNINGS
from harness.parallel.topology import check_classes
from harness.signals import handled, interrupt
from harness.tracking.folders import new_file
from harness.tracking.run_folder import RunFolder

STANDING_STILL = 2
"""Failures in a row without a newer good checkpoint after which a run is given up."""


@dataclass(frozen=True)
class Policy:
    """How far a run that fails is started again."""

    restarts: int = 0
    spares: tuple[Host, ...] = ()
    """Hosts that replace those that fail."""
    same_ranks: bool = False
    """Whether a run ends that would go on with other ranks, as in a comparison."""


@dataclass(frozen=True)
class Training:
    """One training and where it runs."""

    experiment: Path
    overrides: tuple[str, ...]
    config: Config
    folder: Path
    ranks: int
    hosts: str | None

    def command(self, goes_on: bool = False) -> list[str]:
        """Program and arguments of each rank."""
        return train_command(self.experiment, self.overrides, self.folder, goes_on)


def supervise(training: Training, policy: Policy, log: Path, goes_on: bool = False) -> Outcome:
    """Runs a training on all ranks; after a failure it goes on up to `policy.restarts` times.

    `goes_on`: it does from the beginning, if its folder holds the run.

    A mistake of the user and a stop end it at once. The output of restart N goes to `log` with a
    number. Call it from the main thread.
    """
    with handled(WARNINGS, interrupt):
        outcome, best, still = _run(training, goes_on, log), -1, 0
        for number in range(1, policy.restarts + 1):
            if outcome.exit_code != 1 or outcome.stopped:
                return outcome
            try:
                reached = newest_window(training.folder)
                still = 0 if reached > best else still + 1
                best = max(best, reached)
                if still >= STANDING_STILL:
                    why = f"no checkpoint was written between {still + 1} failures"
                    return _given_up(outcome, why)
                _say(f"{outcome.reason}\noutput of all ranks: {outcome.log}")
                training = placed(training, policy)
                _announce(number, policy, training, reached)
                outcome = _run(training, True, new_file(log))
            except UserError as error:
                return _given_up(outcome, str(error))
            except KeyboardInterrupt:
                return replace(outcome, reason="stopped by the user", stopped=True)
        return outcome


def _announce(number: int, policy: Policy, training: Training, reached: int) -> None:
    source = f"the checkpoint after {reached} windows" if reached else "the first window"
    _say(
        f"harness: restart {number} of {policy.restarts} from {source}, with {training.ranks} "
        f"ranks on {hosts_or_local(training.hosts, training.ranks)}"
    )


def newest_window(folder: Path) -> int:
    """Windows of the newest checkpoint of a run that may be good; 0 without one."""
    return max(RunFolder(folder).checkpoints(), default=0)


def _run(training: Training, goes_on: bool, log: Path) -> Outcome:
    return launch_training(
        training.command(goes_on),
        training.config,
        training.folder,
        training.ranks,
        training.hosts,
        log,
    )


def placed(training: Training, policy: Policy) -> Training:
    """The training on the hosts that passed their checks, with spares for those that did not.

    Raises UserError if it cannot go on there.
    """
    config = training.config
    given = read_hosts(hosts_or_local(training.hosts, training.ranks))
    used = filled(given, training.ranks)
    names = {host.name for host in used}
    spares = [host for host in policy.spares if host.name not in names]
    device = RunFolder(training.folder).device or config.train.device
    checked = check_hosts([*used, *spares], training.folder, device == "cuda")
    for each in checked:
        if each.fault:
            _say(f"harness: {each.host.name} is left out: {each.fault}")
    rest = replaced(checked[: len(used)], checked[len(used) :])
    if not rest:
        raise UserError("no host passed its quick checks")
    if rest == used:
        return training
    ranks = min(training.ranks, sum(host.slots for host in rest))
    if policy.same_ranks and ranks != training.ranks:
        raise UserError("a comparison needs the same ranks to the end, and hosts have failed")
    check_classes(topology_of(rest, ranks), config.classifier.layout, config.data.num_classes)
    return replace(training, ranks=ranks, hosts=hosts_option(rest))


def replaced(used: Sequence[Checked], spares: Sequence[Checked]) -> tuple[Host, ...]:
    """The hosts that passed, in their order; a spare that passed and has as many slots takes the
    place of one that did not."""
    free = [each.host for each in spares if not each.fault]
    found = []
    for each in used:
        host: Host | None = each.host
        if each.fault:
            host = next((spare for spare in free if spare.slots >= each.host.slots), None)
            if host is not None:
                free.remove(host)
                host = Host(host.name, each.host.slots)
        if host is not None:
            found.append(host)
    return tuple(found)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _given_up(outcome: Outcome, why: str) -> Outcome:
    return replace(outcome, reason=f"{outcome.reason}\nharness: not started again: {why}")
