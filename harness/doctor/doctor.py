"""Checks machines, cards and links before an expensive run, with advice for every fault."""

import io
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from harness.config import Config, TrackingConfig, TrainConfig, load
from harness.doctor.examination import Examination
from harness.doctor.finding import LEVELS, Finding, worst
from harness.doctor.meeting import Meeting, open_meeting
from harness.doctor.messages import Broken
from harness.doctor.names import hosts_of
from harness.doctor.need import Need, need_of
from harness.doctor.probe import Answerer
from harness.doctor.seat import Seat, launched_seat
from harness.errors import UserError
from harness.launch.hosts import slots_of
from harness.launch.launch import launch
from harness.parallel.cards import View, place, view_of
from harness.parallel.cores import own_cores, whole_cores
from harness.tracking.connection import check_store

VERDICT = "doctor: "
"""Prefix of the last line of the output."""
ALONE = (
    "only this process on this machine was checked; to check all ranks, their hosts and the links "
    "between them, give them: harness doctor --hosts host1:4,host2:4"
)


class Report:
    """Prints findings as they come, on the first rank; as JSON, all at once at the end."""

    def __init__(self, prints: bool, as_json: bool) -> None:
        self._prints = prints
        self._as_json = as_json
        self.findings: list[Finding] = []
        self._figures: dict[str, Any] = {}

    def add(self, findings: Sequence[Finding]) -> None:
        """Takes findings, and prints them unless the output is JSON."""
        self.findings += findings
        if self._prints and not self._as_json:
            for finding in findings:
                print(finding.line(), flush=True)

    def note(self, line: str) -> None:
        """Prints a line that is no finding; JSON has none."""
        if self._prints and not self._as_json:
            print(line, flush=True)

    def figures(self, name: str, values: Sequence[Any]) -> None:
        """Takes measured values, which only the JSON output contains."""
        self._figures[name] = [value.model_dump(mode="json") for value in values]

    def conclude(self) -> None:
        """Prints how many findings have each level, or the whole report as JSON."""
        counts = [sum(each.level == level for each in self.findings) for level in LEVELS]
        if self._prints and self._as_json:
            findings = [finding.model_dump(mode="json") for finding in self.findings]
            whole = {"verdict": worst(self.findings), "findings": findings} | self._figures
            print(json.dumps(whole), flush=True)
        elif self._prints:
            by_level = ", ".join(
                f"{count} {level}" for count, level in zip(counts, LEVELS, strict=True)
            )
            print(VERDICT + by_level, flush=True)


def diagnose(experiments: Sequence[Path], overrides: Sequence[str], as_json: bool) -> int:
    """Runs all checks on this rank; returns exit code 1, on all ranks, if one fails.

    Raises UserError, the same on all ranks, for a wrong config. Collective over a launch.
    """
    given = _config(experiments, overrides)
    config = given or Config(train=TrainConfig(steps=1))
    seat = launched_seat()
    report = Report(seat.rank == 0, as_json)
    try:
        with open_meeting(seat) as meeting:
            _examine(config, given is not None, meeting, report)
            # This gather keeps all ranks until the first one has printed everything.
            verdict = meeting.gather(worst(report.findings), "verdict")[0]
    except Broken as error:
        lost = Report(True, as_json)  # on each rank that noticed: the first one may not know
        lost.add([Finding(check="meeting", level="fail", found=str(error))])
        lost.conclude()
        return 1
    return 1 if verdict == "fail" else 0


def _examine(config: Config, is_given: bool, meeting: Meeting, report: Report) -> None:
    with closing(Answerer(meeting.token, meeting.seat.machine)) as answerer:
        examination = Examination(config, meeting, answerer)
        device, on_cards = _device(config, meeting)
        first = meeting.seat.rank == 0
        cards = device.type == "cuda"
        need = _need(config, examination.seats, cards, report) if is_given and first else None
        report.add(examination.static(device, need))
        report.add(on_cards)
        torch.set_num_threads(_threads(config, examination.seats, meeting.seat))
        report.figures("seats", examination.seats)
        findings, speeds = examination.compute(device)
        report.add(findings)
        report.figures("speeds", speeds)
        if is_given:
            report.add(examination.reading(speeds))
        findings, links = examination.links()
        report.add(findings)
        report.figures("links", links)
        if first:
            report.add([_store(config.tracking)])
        if meeting.seat.rendezvous is None:
            report.note(ALONE)
        report.conclude()


def _config(experiments: Sequence[Path], overrides: Sequence[str]) -> Config | None:
    if len(experiments) > 1:
        raise UserError("harness doctor checks one experiment at a time; give only one")
    if overrides and not experiments:
        raise UserError(f"{overrides[0]} changes an experiment; give its YAML file too")
    return load(experiments[0], overrides) if experiments else None


def _device(config: Config, meeting: Meeting) -> tuple[torch.device, list[Finding]]:
    """This rank's device, and findings about the cards. Collective."""
    own = view_of(config.train.device, meeting.seat.host)
    gathered = meeting.gather([own.host, own.cards], "cards")
    views = [View(str(host), tuple(cards)) for host, cards in gathered]
    try:
        placement = place(config.train.device, views)
    except UserError as error:
        return torch.device("cpu"), [Finding(check="cards", level="fail", found=str(error))]
    warning = placement.warning
    findings = [Finding(check="cards", level="warn", found=warning)] if warning else []
    return placement.device(meeting.seat.rank), findings


def _need(config: Config, seats: Sequence[Seat], cards: bool, report: Report) -> Need | None:
    nodes = len(hosts_of(seats))
    try:
        return need_of(config, nodes, max(1, len(seats) // nodes), cards)
    except UserError as error:
        report.add([Finding(check="config", level="fail", found=str(error))])
        return None


def _threads(config: Config, seats: Sequence[Seat], seat: Seat) -> int:
    """Threads of this rank, the same number as in training."""
    places = [(f"{each.machine} {each.boot}", each.cores) for each in seats]
    return config.train.threads or whole_cores(own_cores(places, seats.index(seat)))


def _store(tracking: TrackingConfig) -> Finding:
    if not tracking.enabled:
        return Finding(check="tracking", level="ok", found="tracking.enabled=false")
    try:
        check_store(tracking)
    except UserError as error:
        return Finding(check="tracking", level="fail", found=str(error))
    return Finding(check="tracking", level="ok", found="the MLflow store answers")


def start(arguments: Sequence[str], ranks: int, hosts: str | None, as_json: bool) -> int:
    """Runs `harness doctor` on `ranks` ranks (0: one for every slot) with horovodrun."""
    ranks = ranks or slots_of(hosts)
    command = [sys.executable, "-m", "harness", "doctor", *arguments]
    command += ["--json"] if as_json else []
    with tempfile.TemporaryDirectory(prefix="harness-doctor-") as folder:
        screen = io.StringIO() if as_json else sys.stdout
        outcome = launch(command, ranks, hosts, Path(folder) / "log.txt", screen)
        verdicts = [
            line for line in outcome.log.read_text("utf-8").splitlines() if _is_verdict(line)
        ]
    if verdicts and as_json:
        # Only this line: a host's shell may print about a rank that it ended, which is not JSON.
        print(verdicts[-1].partition("] ")[2], flush=True)
    if outcome.exit_code and not verdicts:
        print(f"harness: {outcome.reason}", file=sys.stderr, flush=True)
    return outcome.exit_code


def _is_verdict(line: str) -> bool:
    return f"] {VERDICT}" in line or '] {"verdict"' in line
