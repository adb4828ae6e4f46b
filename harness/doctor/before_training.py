"""The doctor's cheap checks before a training: a fault ends the run, a warning is printed once."""

import sys
from pathlib import Path

from harness.config import Config
from harness.doctor.finding import Finding, worst
from harness.doctor.need import Need, exponentials_of, need_of, products_of
from harness.doctor.seat import launched_seat
from harness.doctor.static import judge_static, static_facts
from harness.errors import UserError
from harness.model.flops import PRODUCTS
from harness.parallel.world import World


def check_before_training(config: Config, world: World, folder: Path | None = None) -> None:
    """Raises UserError for a fault on any host, on the first rank. `folder`: the run's own, if it
    was given. Collective over the world."""
    if not config.doctor.before_training:
        return
    seat = launched_seat()
    seats = world.gather_objects(seat, "doctor seats")
    need: Need | None = None
    with world.together():
        if world.is_first:
            given = config, world.topology.nodes, world.topology.ranks_per_node
            cards = world.device.type == "cuda"
            need = need_of(*given, cards)
            if products_of(*given, cards) > PRODUCTS:
                way = f"classifier: {exponentials_of(*given, cards)}; fewer images avoid this"
                print(way, file=sys.stderr, flush=True)
    facts = static_facts(config, seats, seat, world.device, need, folder)
    gathered = world.gather_objects(facts, "doctor facts")
    with world.together():
        if world.is_first:
            findings = judge_static(seats, gathered, need)
            _report(findings)


def _report(findings: list[Finding]) -> None:
    faults = [finding for finding in findings if finding.level == "fail"]
    for finding in findings:
        if finding.level == "warn":
            print(f"harness doctor: {finding.line()}", file=sys.stderr, flush=True)
    if worst(findings) == "fail":
        causes = " | ".join(f"{each.check}: {each.found}; {each.advice}" for each in faults)
        raise UserError(f"{causes} (to train anyway, set doctor.before_training=false)")
