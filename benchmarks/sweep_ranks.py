"""The program that `benchmarks.sweep` launches: all ranks train the points of a list in turn.

`horovodrun ... python -m benchmarks.sweep_ranks POINTS.json RESULTS.jsonl`. A training that
diverges leaves exchanges in flight, so the launch ends with it, and the sweep launches the rest
again.
"""

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.sweep_points import Point, Result
from harness.config import load
from harness.data.open import open_dataset
from harness.errors import Diverged
from harness.measure.clock import clock_for
from harness.measure.summary import RunSummary
from harness.measure.traffic import Traffic
from harness.parallel.cores import cores_of
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology, open_ranks
from harness.parallel.world import Links, choose_device, link
from harness.train.ledger import NullJournal
from harness.train.step import make_step
from harness.train.training import Training


def train(point: Point, links: Links, number: int) -> RunSummary:
    """Collective over the world. Raises Diverged on all ranks."""
    config = load(point.experiment, point.overrides)
    world = links.world(config.classifier.layout, user=f"{number}.")
    torch.set_num_threads(cores_of(world).threads(config.train.threads))
    with tempfile.TemporaryDirectory() as folder:
        step = make_step(config, open_dataset(config.data), world)
        return Training(step, Path(folder)).run(NullJournal())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep_ranks", description=__doc__)
    parser.add_argument("points", type=Path)
    parser.add_argument("results", type=Path)
    chosen = parser.parse_args()
    points = [Point.model_validate(each) for each in json.loads(chosen.points.read_text())]
    topology = launched_topology()
    with ExitStack() as opened:
        ranks = opened.enter_context(open_ranks(topology))
        device, _ = choose_device("auto", ranks)
        meters = Meters(clock_for(device), Traffic())
        links = opened.enter_context(link(ranks, device, meters))
        for number, point in enumerate(points):
            try:
                result = Result.of(point, train(point, links, number))
            except Diverged:
                result = Result(point=point)
            if topology.rank == 0:
                with chosen.results.open("a") as file:
                    file.write(result.model_dump_json() + "\n")
                print(result.line(), flush=True)
            if not result.curve:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
