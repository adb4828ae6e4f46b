"""Started by horovodrun, two nodes of a rank each: the same trainings on the processor and on one
card that both nodes share. Prints how far apart their parameters end."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.measure.clock import clock_for
from harness.measure.traffic import Traffic
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology, open_ranks
from harness.parallel.world import World, link
from harness.train.ledger import NullJournal
from harness.train.step import make_step
from harness.train.training import Training
from tests.laws.cases import Case
from tests.laws.task import dataset


def over(compression: str) -> tuple[tuple[str, object], ...]:
    return (("exchange__compression", compression),)


EXACT = [
    Case("replicated", "synchronous", 1, 0, "flat"),
    Case("node", "synchronous", 2, 0, "hierarchical"),
    Case("node", "delayed", 1, 1),
    Case("node", "delayed", 1, 2),
    Case("node", "averaging", 2, 1),
    Case("node", "averaging", 1, 1, changes=(("exchange__pieces", 2),)),
    Case("node", "averaging", 2, 1, changes=(("exchange__outer_momentum", 0.9),)),
    Case("node", "isolated", 2, 0),
    Case("replicated", "ddp", 1, 0),
    Case("replicated", "ddp_post_local_sgd", 1, 0),
    Case("world", "synchronous", 1, 0, "flat"),
    Case("world", "delayed", 1, 1),
]
LOSSY = [
    *(Case("node", "averaging", 2, 1, changes=over(each)) for each in ("fp16", "int8", "sign")),
    Case("node", "averaging", 1, 2, changes=over("int4")),
    *(Case("node", "delayed", 1, 1, changes=over(each)) for each in ("fp16", "int8")),
    Case("replicated", "synchronous", 1, 0, "hierarchical", over("int8")),
    Case("replicated", "synchronous", 2, 0, "hierarchical", over("int4")),
]


def ended(case: Case, world: World) -> list[Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        step = make_step(case.config(), dataset(), world)
        Training(step, Path(folder)).run(NullJournal())
    return [flat.values.detach().cpu().clone() for flat in step.model.flats]


def over_gloo(backend: str, **options: Any) -> None:
    """NCCL refuses two ranks on one card; Gloo takes a card's tensors as well."""
    init_process_group(backend.replace("nccl", "gloo"), **options)


def main() -> None:
    torch.set_num_threads(1)
    topology, rows = launched_topology(), dict[str, float]()
    found: dict[str, dict[str, list[Tensor]]] = {}
    with open_ranks(topology) as ranks:
        for name in ("cpu", "cuda:0"):
            device = torch.device(name)
            with link(ranks, device, Meters(clock_for(device), Traffic())) as links:
                for case in EXACT + LOSSY:
                    own = ended(case, links.world(case.layout))
                    found.setdefault(case.name, {})[name] = own
            dist.destroy_process_group()
        for case, own in found.items():
            pairs = zip(own["cpu"], own["cuda:0"], strict=True)
            rows[case] = max(float((a - b).abs().max()) for a, b in pairs if a.numel())
        apart = ranks.gather_objects(rows, "apart")
    if topology.rank == 0:
        print(json.dumps({case: max(each[case] for each in apart) for case in rows}))


init_process_group = dist.init_process_group
dist.init_process_group = over_gloo

if __name__ == "__main__":
    main()
