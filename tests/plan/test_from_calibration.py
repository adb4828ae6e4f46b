"""A calibration on real ranks, and the figures made of one with round numbers."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO, cast

import pytest
import torch

from harness.calibrate.calibrate import memory_of_a_rank
from harness.calibrate.result import PRINTED, Calibration, Point
from harness.cli import main
from harness.config import load
from harness.doctor import memory
from harness.errors import UserError
from harness.launch.launch import Outcome
from harness.parallel.cores import Cores
from harness.parallel.world import World
from harness.plan import from_calibration
from harness.plan.cost_model import predict
from harness.plan.from_calibration import CalibrationFailed, calibrate, cluster_from
from harness.plan.machines import read_cluster
from harness.plan.text import cluster_lines, defaults_line
from harness.plan.workload import workload_of
from tests.plan.clusters import experiment

CORES = 1.0
SHARED = 2.0
"""Ranks on a core."""
CONFIG = experiment(classifier={"layout": "node"}, exchange={"kind": "isolated"})


def point(size: float, own_seconds: float) -> Point:
    """Work that all ranks do at once on cores that they share."""
    return Point(size=size, seconds=own_seconds * SHARED, cpu_seconds=own_seconds)


def waited(size: float, seconds: float, cpu_seconds: float) -> Point:
    return Point(size=size, seconds=seconds, cpu_seconds=cpu_seconds)


def made(**changes: object) -> Calibration:
    """2 x 2 ranks, two on a core: 1 GFLOP/s alone, a link of 1 MB/s that saves up 0.5 s."""
    work = workload_of(CONFIG, 2, 2)
    backbone, classifier = work.backbone_flops / 4e8, work.classifier_flops / 2e8
    spent = {
        "data": 8 * 1e-3,
        "forward": backbone * 0.25 + classifier / 3,
        "backward": backbone * 0.75 + classifier * 2 / 3,
        "slice_wait": 0.0,
        "node_wait": work.shared * 4 / 1e8,
        "exchange_wait": 0.0,
        "optimizer": 5 * work.owned * 4 / 1e9,
        "other": 0.0,
    }
    window = sum(spent.values())
    ring = 1.5
    values = {
        "hosts": ("a", "b"),
        "nodes": 2,
        "ranks_per_node": 2,
        "cores_per_node": CORES,
        "threads": 1,
        "device": "cpu",
        "memory_bytes": 10**9,
        "commit": None,
        "measured_at": "2026-01-01T00:00:00+00:00",
        "config": CONFIG.flattened(),
        "product": Point(size=0.5e9, seconds=1.0, cpu_seconds=0.5),
        "backbone": (point(work.backbone_flops, backbone),),
        "backbone_alone_seconds": backbone,
        "backbone_variation": 0.03,
        "classifier": (point(1e6, 1e6 / 2e8), point(4e6, 4e6 / 2e8)),
        "optimizer": (point(4e6, 5 * 4e6 / 1e9),),
        "encode": {kind: (point(1e6, 2e-3),) for kind in ("fp16", "int8", "int4")},
        "gather": (point(0, 0.0), point(1e6, 1e-3), point(2e6, 2e-3)),
        "flat": tuple(
            waited(size, size * ring / 1e6 + 0.06, 1e-3 + 1e-8 * size * ring)
            for size in (0, 1e6, 4e6)
        ),
        "flat_after_rest": (waited(4e6, 4 * ring + 0.12 - 0.5, 0.0),),
        "peers": (waited(0, 0.05, 0.0),),
        "idle": waited(0, 1.0, 0.004),
        "under_way": (waited(0, 1.0, 0.01), waited(1e6, 1.0, 0.03)),
        "window": point(8, window),
        "window_phases": {phase: seconds * SHARED for phase, seconds in spent.items()},
    }
    return Calibration.model_validate(values | changes)


def test_what_was_timed_on_shared_cores_becomes_a_rank_s_own() -> None:
    found = cluster_from(made())
    assert found.slowdown == 2.0
    assert found.product_flop_per_second == pytest.approx(1e9)
    assert found.backbone_efficiency == pytest.approx(0.4)
    assert found.classifier_efficiency == pytest.approx(0.2)
    assert found.forward_share == pytest.approx(0.25)
    assert found.image_seconds == pytest.approx(1e-3)
    assert found.memory_bytes_per_second == pytest.approx(1e9)
    assert found.node.bytes_per_second == pytest.approx(1e9)
    assert found.shared is not None
    assert found.shared.bytes_per_second == pytest.approx(1e8)
    assert found.micro_batch_seconds == pytest.approx(0.0, abs=1e-4)
    assert found.encode_seconds is not None
    assert found.encode_seconds.int8 == pytest.approx(2e-9)


def test_the_link_is_told_from_its_start_its_burst_and_the_processors() -> None:
    found = cluster_from(made())
    assert found.link.bytes_per_second == pytest.approx(1e6)
    assert found.link.step_seconds == pytest.approx(0.01)
    assert found.link.cpu_seconds_per_byte == pytest.approx(1e-8)
    assert found.link.cpu_seconds == pytest.approx(1e-3)
    # Without a rest 6.06 s, after one 5.62 s; a start of 0.06 s was made good meanwhile.
    assert found.link.burst_seconds == pytest.approx(0.5)
    assert found.late.start_seconds == pytest.approx(0.05 - 2 * 0.01)
    assert found.late.cpu_seconds_per_byte == pytest.approx(2e-8)
    assert found.late.cpu_seconds == pytest.approx(0.01 - 0.004)


def test_a_thread_slower_than_the_link_is_noticed() -> None:
    link = cluster_from(made()).link.bytes_per_second

    def late(rate: float) -> float | None:
        peers = tuple(waited(size, 0.05 + size / rate, 0.0) for size in (0, 1e6, 4e6))
        return cluster_from(made(peers=peers)).late.bytes_per_second

    # One byte in the buffer is one sent between two nodes; two ranks share the link.
    assert late(0.3 * link) == pytest.approx(0.3 * link)
    assert late(0.5 * link) is None


def on_cards(**changes: object) -> Calibration:
    """2 x 2 cards: a step of 3 ms between machines and of 1 ms inside, 1 MB/s, and as much of the
    processor as the time, which waiting for a card takes."""
    calm = made()
    alone = {name: seconds / SHARED for name, seconds in calm.window_phases.items()}

    def card(size: float, seconds: float) -> Point:
        return Point(size=size, seconds=seconds, cpu_seconds=seconds)

    flops = workload_of(CONFIG, 2, 2).classifier_flops
    values = {
        "cores_per_node": None,
        "device": "card",
        "product": card(1e9, 1.0),
        # Launches take 7 ms whatever is launched.
        "classifier": (card(flops, flops / 2e8 + 7e-3), card(4 * flops, 4 * flops / 2e8 + 7e-3)),
        "optimizer": (card(4e6, 5 * 4e6 / 1e9),),
        "encode": {kind: (card(1e6, 2e-3),) for kind in ("fp16", "int8", "int4")},
        "gather": (card(0, 1e-3), card(1e6, 2e-3), card(2e6, 3e-3)),
        # Of two machines a tree is the shorter way: twice a step across and one inside.
        "flat": tuple(card(size, size * 1.5 / 1e6 + 8e-3) for size in (0, 1e6, 4e6)),
        "flat_after_rest": (card(4e6, 6 + 8e-3),),
        "peers": tuple(card(size, size / 9e5 + 0.05) for size in (0, 1e6, 4e6)),
        "window": card(8, calm.window.seconds / SHARED),
        "window_phases": alone,
    }
    return made(**(values | changes))


def test_waiting_for_a_card_is_no_work_of_a_processor() -> None:
    found = cluster_from(on_cards())
    assert found.on_cards
    assert found.link.cpu_seconds == found.link.cpu_seconds_per_byte == 0.0
    assert found.late.cpu_seconds == found.late.cpu_seconds_per_byte == 0.0


def test_a_card_s_steps_are_told_as_they_are_predicted() -> None:
    found = cluster_from(on_cards())
    assert found.node.latency_seconds == pytest.approx(1e-3)
    assert found.link.step_seconds == pytest.approx(3e-3)
    assert found.late.start_seconds == pytest.approx(0.05 - 2 * 3e-3)


def test_horovod_s_thread_bounds_a_card_s_exchange_whatever_the_link_is() -> None:
    # 0.9 of the link, which on cores would pass for the link itself.
    assert cluster_from(on_cards()).late.bytes_per_second == pytest.approx(9e5)


def test_a_card_s_copies_are_told_from_the_thread_that_sends() -> None:
    copies = tuple(Point(size=size, seconds=1e-3 + size / 4e6, cpu_seconds=0) for size in (0, 1e6))
    late = cluster_from(on_cards(host_copy=copies)).late
    assert late.copy_bytes_per_second == pytest.approx(4e6)
    # A byte took 1 / 9e5 s, half a microsecond of which were copies.
    assert late.bytes_per_second == pytest.approx(1 / (1 / 9e5 - 2 / 4e6))
    assert cluster_from(made()).late.copy_bytes_per_second is None


def test_a_card_s_launches_do_not_count_as_its_speed() -> None:
    found = cluster_from(on_cards())
    assert found.classifier_efficiency * found.product_flop_per_second == pytest.approx(2e8)


def test_a_pass_that_is_nearly_all_classifier_says_nothing_of_the_backbone() -> None:
    flops = workload_of(CONFIG, 2, 2).classifier_flops
    phases = made().window_phases
    taken = (phases["forward"] + phases["backward"]) / SHARED
    slow = (point(flops, 0.95 * taken), point(4 * flops, 4 * 0.95 * taken))
    with pytest.raises(UserError, match="calibrate with fewer classes"):
        cluster_from(made(classifier=slow))


def test_one_node_says_nothing_of_links() -> None:
    found = cluster_from(made(nodes=1, hosts=("a",)))
    assert not found.link_known
    assert cluster_from(made()).link_known


def test_one_rank_a_node_says_nothing_of_what_ranks_of_a_node_send(tmp_path: Path) -> None:
    nothing = Point(size=0, seconds=0, cpu_seconds=0)
    cluster_from(made(ranks_per_node=1, gather=(nothing,))).write(tmp_path / "c.yaml")
    found = read_cluster(tmp_path / "c.yaml")
    assert defaults_line(found) == [
        f"defaults, not measured: node.latency_seconds={found.node.latency_seconds:g}, "
        f"node.bytes_per_second={found.node.bytes_per_second:g}"
    ]
    assert found.measured is not None
    assert found.measured["hosts"] == ["a", "b"]
    assert defaults_line(cluster_from(made())) == []


def test_other_work_on_the_cores_does_not_count_as_the_ranks_own() -> None:
    """Wall time that was nobody's processor time here was somebody else's."""
    calm = made()
    window = calm.window.model_copy(update={"seconds": calm.window.seconds * 3})
    phases = {phase: seconds * 3 for phase, seconds in calm.window_phases.items()}
    disturbed = cluster_from(made(window=window, window_phases=phases))
    assert disturbed.backbone_efficiency == pytest.approx(cluster_from(calm).backbone_efficiency)


def test_ranks_that_slow_each_other_down_by_more_than_the_core_they_share() -> None:
    calm = made()
    found = cluster_from(made(backbone_alone_seconds=calm.backbone_alone_seconds / 1.25))
    assert found.sharing_penalty == pytest.approx(0.25)
    assert found.slowdown == pytest.approx(2.5)
    # What was measured is still what is predicted for as many ranks on a core.
    assert predict(found.model_copy(update={"jitter": 0.0}), CONFIG).step_ms == pytest.approx(
        calm.window.seconds * 1e3, rel=0.01
    )


def test_threads_stay_as_they_were_measured() -> None:
    there = cluster_from(made(threads=2, cores_per_node=4.0))
    assert there.slowdown == 1.0
    assert there.cores_are_busy
    assert there.on(2, 4).slowdown == pytest.approx(2.0)
    assert "4 cores per node, 2 threads per rank whatever" in cluster_lines(there)[0]
    assert "thread" not in cluster_lines(cluster_from(made()))[0]
    assert cluster_from(on_cards(threads=2)).slowdown == 1.0


def elsewhere(*printed: str, exit_code: int = 0) -> Any:
    """A launch whose ranks are on other hosts: what they write stays there, what they print does
    not."""

    def launched(
        command: list[str], ranks: int, hosts: str | None, log: Path, screen: TextIO
    ) -> Outcome:
        log.write_text("".join(f"[0 stdout] {line}\n" for line in printed), encoding="utf-8")
        return Outcome(exit_code, "rank 0 failed" if exit_code else "", log, False)

    return launched


def test_a_calibration_comes_back_from_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    given = made()
    line = f"{PRINTED}{given.model_dump_json()}"
    monkeypatch.setattr(from_calibration, "launch", elsewhere("hello", line, "bye"))
    assert calibrate(Path("e.yaml"), [], 4, "h1:2,h2:2", 0.6) == given


@pytest.mark.parametrize(("exit_code", "why"), [(1, "rank 0 failed"), (0, "printed no result")])
def test_ranks_that_print_no_calibration(
    exit_code: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_calibration, "launch", elsewhere("hello", exit_code=exit_code))
    with pytest.raises(CalibrationFailed, match=rf"{why}\n\[0 stdout\] hello"):
        calibrate(Path("e.yaml"), [], 4, "h1:2,h2:2", 0.6)


def test_a_container_s_limit_is_the_memory_of_its_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("max", "9000"), ("current", "1500"), ("stat", "inactive_file 500\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(memory, "CONTROL_ROOT", tmp_path)
    world = cast(World, SimpleNamespace(device=torch.device("cpu")))
    cores = Cores(ranks_here=4, own=1.0, per_node=4.0, turn=0, turns=1)
    assert memory_of_a_rank(world, cores) == 2000


def test_a_calibration_on_four_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two emulated nodes; every figure is there, and what was timed comes out again."""
    monkeypatch.setenv("HOROVOD_CYCLE_TIME", "5")
    experiment_file = tmp_path / "e.yaml"
    experiment_file.write_text(
        "name: quick\ndata: {dataset: synthetic, num_classes: 64, image_size: 16}\n"
        "train: {steps: 4, batch_size: 4, threads: 1}\ntracking: {enabled: false}\n"
    )
    output = tmp_path / "here.yaml"
    hosts = ["--hosts", "localhost:2,127.0.0.1:2", "--seconds", "0.05"]
    assert main(["plan", str(experiment_file), *hosts, "--calibrate", str(output)]) == 0
    assert "its settings: classifier.layout=" in capsys.readouterr().out
    found = read_cluster(output)
    assert (found.name, found.nodes, found.ranks_per_node) == ("here", 2, 2)
    assert found.cores_per_node == pytest.approx(len(os.sched_getaffinity(0)) / 2)
    assert found.link.bytes_per_second > 1e6
    assert found.link.step_seconds > 0
    assert found.measured is not None
    assert found.measured["config"]["data.num_classes"] == 64
    assert predict(found, load(experiment_file)).step_ms > 0


def test_a_wrong_experiment_ends_with_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(tmp_path / "none.yaml"), "--hosts", "localhost:1"]) == 2
    assert "cannot read the experiment" in capsys.readouterr().err


def test_nothing_is_measured_for_a_kind_that_only_a_run_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        from_calibration, "launch", elsewhere(f"{PRINTED}{made().model_dump_json()}")
    )
    words = ["plan", "experiments/lab/data_parallel.yaml", "--hosts", "localhost:1"]
    output = tmp_path / "here.yaml"
    assert main([*words, "--calibrate", str(output), "exchange.kind=auto"]) == 2
    assert "exchange.kind=auto is chosen by times" in capsys.readouterr().err
    assert not output.exists()
    assert main([*words, "--calibrate", str(output)]) == 0
    assert output.exists()
