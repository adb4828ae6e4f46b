"""The doctor's checks, as one rank runs them; every method is collective."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from harness.config import Config
from harness.doctor.compute import Speed, best_speeds, judge_compute, measure_speed, slow_ranks
from harness.doctor.finding import Finding
from harness.doctor.links import (
    Link,
    better,
    judge_between,
    judge_clocks,
    judge_within,
    pairs_between,
    pairs_within,
    slow_pairs,
)
from harness.doctor.meeting import Meeting, own_address
from harness.doctor.messages import short_reason
from harness.doctor.names import NameFacts, hosts_of, machines_of
from harness.doctor.need import Need
from harness.doctor.probe import Answerer, measure, name_behind
from harness.doctor.reading import image_flops, judge_reading, measure_reading, reads_files
from harness.doctor.seat import Seat
from harness.doctor.static import judge_static, static_facts
from harness.errors import UserError

ROUNDS, ROUND_SECONDS = 5, 0.3
"""Rounds of matrix products, and their length: several periods (0.1 s) of a processor limit."""
ATTEMPTS = 3
"""A rank counts as slow if it is slow in all rounds of this number of attempts."""
WAY_SECONDS, ALL_WAYS_SECONDS = 0.5, 60.0
"""Time for one direction between two hosts, and for all together: with many hosts, each direction
gets less."""


class Examination:
    """Runs the checks; all facts are gathered on all ranks, which therefore decide alike."""

    def __init__(self, config: Config, meeting: Meeting, answerer: Answerer) -> None:
        self._config = config
        self._meeting = meeting
        seat = meeting.seat
        own = [seat.model_dump(mode="json"), own_address(seat), answerer.port]
        gathered = meeting.gather(own, "seats")
        self.seats = [Seat.model_validate(each[0]) for each in gathered]
        self._places = [(str(address), int(port)) for _, address, port in gathered]

    def static(self, device: torch.device, need: Need | None) -> list[Finding]:
        """Checks software, names, memory and disk. `need`: given on the first rank. Collective."""
        seats, seat = self.seats, self._meeting.seat
        facts = static_facts(self._config, seats, seat, device, need)
        if facts.names is not None:
            reached = facts.names.model_copy(update={"unreached": self._unreached(facts.names)})
            facts = facts.model_copy(update={"names": reached})
        return judge_static(seats, self._gather(facts, "facts"), need)

    def _unreached(self, names: NameFacts) -> dict[str, str]:
        """Host -> why it was not reached at the address that this host has for it.

        Either nobody answers there, or another host does.
        """
        leaders = {seat.host: seat for seat in self.seats if seat.is_host_leader}
        unreached = {}
        for host, address in names.addresses.items():
            port = self._places[leaders[host].rank][1]
            try:
                if address is not None:
                    found = name_behind(address, port, self._meeting.token)
                    if found != leaders[host].machine:
                        unreached[host] = f"{found} answers there"
            except (OSError, ValueError) as error:
                unreached[host] = short_reason(error)
        return unreached

    def compute(self, device: torch.device) -> tuple[list[Finding], list[Speed]]:
        """Times matrix products of all ranks at the same time, again if a rank is slow.

        Collective.
        """
        rounds: list[Sequence[Speed]] = []
        best: list[Speed] = []
        for _ in range(ATTEMPTS):
            for _ in range(ROUNDS):
                rounds.append(self._gather(measure_speed(device, ROUND_SECONDS), "speed"))
            best = best_speeds(rounds)
            if not slow_ranks(best):
                break
        return judge_compute(self.seats, best), best

    def reading(self, speeds: Sequence[Speed]) -> list[Finding]:
        """Reads images on all ranks at the same time, if they come from files. Collective."""
        config, seats = self._config, self.seats
        if not reads_files(config):
            return []
        readings = self._gather(measure_reading(config, self._meeting.seat), "reading")
        nodes = len(hosts_of(seats))
        try:
            flops = image_flops(config, nodes, max(1, len(seats) // nodes))
        except UserError:
            return []  # `config` says so
        return [judge_reading(seats, readings, speeds, flops)]

    def links(self) -> tuple[list[Finding], list[Link]]:
        """Measures all pairs of hosts, one at a time, slow ones twice; then links inside hosts.

        Collective.
        """
        pairs = pairs_between(self.seats)
        links = [self._link(*pair, len(pairs)) for pair in pairs]
        again = slow_pairs(self.seats, links)
        if len(machines_of(self.seats)) > 1:
            links = [
                better(link, self._link(link.source, link.target, len(pairs)))
                if (link.source, link.target) in again
                else link
                for link in links
            ]
        inside = pairs_within(self.seats)
        within = [self._link(*pair, len(inside)) for pair in inside]
        findings = judge_between(self.seats, links) + judge_within(self.seats, within)
        return findings + judge_clocks(self.seats, links), links + within

    def _link(self, source: int, target: int, pairs: int) -> Link:
        measured = None
        if self._meeting.seat.rank == source:
            seconds = min(WAY_SECONDS, ALL_WAYS_SECONDS / pairs)
            place, token = self._places[target], self._meeting.token
            measured = measure(source, target, place, token, seconds).model_dump(mode="json")
        gathered = self._meeting.gather(measured, f"link {source} {target}")
        return Link.model_validate(gathered[source])

    def _gather(self, facts: Any, name: str) -> list[Any]:
        kind: Callable[[Any], Any] = type(facts).model_validate
        return [kind(each) for each in self._meeting.gather(facts.model_dump(mode="json"), name)]
