"""On 2 x 2 ranks: the error if one of them differs, and weights that are the same on all."""

import os
import sys
from collections.abc import Callable, Iterator

import horovod.torch as hvd
import torch

from harness.config import Config, DataConfig, TrainConfig
from harness.data.images import Dataset, Part
from harness.data.open import open_dataset
from harness.doctor.agreement import agree_on_data, agree_on_settings
from harness.errors import ReportedByAnotherRank, UserError
from harness.measure.clock import clock_for
from harness.measure.traffic import Traffic
from harness.model.backbone import make_backbone
from harness.parallel.group import Meters
from harness.parallel.ranks import Ranks, launched_topology, open_ranks
from harness.parallel.world import choose_device, link
from harness.train import assembly
from harness.train.step import make_step

CPU = torch.device("cpu")
DATA = DataConfig(dataset="synthetic", num_classes=8, image_size=8, synthetic_images=64)
CONFIG = Config(data=DATA, train=TrainConfig(steps=1, batch_size=2))


class Files:
    """A source with one image per file."""

    def __init__(self, *parts: Part) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return len(self._parts)

    def read(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def parts(self) -> Iterator[Part]:
        return iter(self._parts)

    @property
    def labels(self) -> torch.Tensor:
        return torch.zeros(len(self), dtype=torch.int64)


def files(*parts: Part) -> Dataset:
    source = Files(*parts)
    same = Files(Part("a", "1.png (9 bytes)"))
    return Dataset(2, 3, 8, source, {"validation": same}, lambda images, generator: images)


A, B = Part("a", "1.png (5 bytes)"), Part("b", "2.png (5 bytes)")


def said(ranks: Ranks, act: Callable[[], None]) -> str | None:
    """The error's line, on all ranks; only rank 0 may raise it."""
    line = None
    try:
        act()
    except UserError as error:
        assert ranks.is_first
        line = str(error)
    except ReportedByAnotherRank:
        assert not ranks.is_first
        line = "another rank's"
    lines = ranks.gather_objects(line, "said")
    assert (lines[0] is None) == all(each is None for each in lines)
    assert None not in lines or set(lines) == {None}
    return str(lines[0]) if lines[0] is not None else None


def of_config(ranks: Ranks, odd: int, **changes: object) -> str | None:
    own = CONFIG
    if ranks.topology.rank == odd:
        train = CONFIG.train.model_copy(update=changes)
        own = CONFIG.model_copy(update={"train": train})
    return said(ranks, lambda: agree_on_settings(own, ranks))


def of_data(ranks: Ranks, usual: Dataset, odd: Dataset) -> str | None:
    own = odd if ranks.topology.rank == 3 else usual
    return said(ranks, lambda: agree_on_data(own, ranks))


def check_settings(ranks: Ranks) -> None:
    assert of_config(ranks, 2) is None
    assert of_config(ranks, 2, threads=3, resume=None) is None
    line = of_config(ranks, 2, batch_size=7)
    assert "train.batch_size is 7 on 127.0.0.1 (rank 2) and 2 on localhost (rank 0)" in str(line)
    line = of_config(ranks, 0, steps=5)
    assert "train.steps is 5 on localhost (rank 0) and 1 on localhost (rank 1)" in str(line)
    if ranks.topology.rank == 1:
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    line = of_config(ranks, 1)
    os.environ.pop("NVIDIA_TF32_OVERRIDE", None)
    assert "NVIDIA_TF32_OVERRIDE is 0 on localhost (rank 1) and null on" in str(line)


def check_data(ranks: Ranks) -> None:
    assert of_data(ranks, files(A, B), files(A, B)) is None
    line = of_data(ranks, files(A, B), files(A))
    assert "train set: 127.0.0.1 (rank 3) has 1, localhost (rank 0) has 2; only localhost" in str(
        line
    )
    assert "only localhost (rank 0) has b; give all hosts the same copy" in str(line)
    line = of_data(ranks, files(A, B), files(A, Part("bb", B.item)))
    assert "only localhost (rank 0) has b, only 127.0.0.1 (rank 3) has bb;" in str(line)
    line = of_data(ranks, files(A, B), files(A, Part("b", "2.png (4 bytes)")))
    assert "(rank 0) has 2.png (5 bytes) of b, only 127.0.0.1 (rank 3) has 2.png (4" in str(line)
    line = of_data(ranks, files(A, B), files(A, B, Part("b", "{3}.png")))
    assert "only 127.0.0.1 (rank 3) has {3}.png of b; give" in str(line)
    assert "their order differs" in str(of_data(ranks, files(A, B), files(B, A)))


def check_weights(ranks: Ranks) -> None:
    """One rank draws different weights, as another kind of processor may in the last bits."""
    dataset, rank = open_dataset(DATA), ranks.topology.rank

    def perturbed(*arguments: object, **named: object) -> torch.nn.Module:
        backbone = make_backbone(*arguments, **named)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.mul_(1 + 1e-6 * rank)
        return backbone

    assembly.make_backbone = perturbed  # type: ignore[assignment]
    meters = Meters(clock_for(CPU), Traffic())
    with link(ranks, CPU, meters) as links:
        made = make_step(CONFIG, dataset, links.world("node"))
        everywhere = ranks.gather_objects(made.model.shared.values.tolist(), "weights")
        assert all(values == everywhere[0] for values in everywhere)
        # Two users of one process set, with the same name under way at the same time.
        users = [links.world("node", user=user).peers for user in ("one.", "two.")]
        buffers = [torch.full((4,), float(rank + number)) for number in range(2)]
        sums = [
            peers.launch_sum(buffer, "part") for peers, buffer in zip(users, buffers, strict=True)
        ]
        for each in sums:
            each.wait()
        peers_sum = sum(ranks.topology.peer_groups[ranks.topology.local_rank])
        assert [buffer[0].item() for buffer in buffers] == [peers_sum, peers_sum + 2]


def main() -> None:
    with open_ranks(launched_topology()) as ranks:
        check_settings(ranks)
        check_data(ranks)
        assert choose_device("cpu", ranks) == (CPU, "")
        check_weights(ranks)
        hvd.barrier()
        if ranks.is_first:
            print("all as it should be", flush=True)


if __name__ == "__main__":
    sys.exit(main())
