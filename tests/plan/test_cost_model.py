"""The cost model against windows added up by hand, its limits, and laws that must hold."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UserError
from harness.measure.phase import Phase
from harness.plan.cost_model import (
    Port,
    exposed,
    largest_normal,
    phases,
    predict,
    with_chosen_pieces,
)
from harness.plan.machines import Late, Line, Link
from harness.plan.step_times import Pieces, pieces_of
from harness.plan.transfers import Launch, Transfer
from harness.plan.workload import workload_of
from tests.plan.clusters import cluster, exchanging

PLAIN = Pieces(
    passes=2,
    steps=1,
    delay=0,
    lands_first=False,
    data=0.1,
    forward=1.0,
    backward=2.0,
    backbone_backward=1.5,
    overhead=0.0,
    slice_wait=0.25,
    gathers=(),
    node=0.5,
    optimizer=0.125,
    encode=0.0,
    buckets=(),
    exchange=Transfer(),
    disturbance=0.0,
    jitter=0.0,
    shares_cores=False,
)
WORK = workload_of(exchanging("synchronous"), 2, 2)
BUSY = 2 * (0.1 + 1.0 + 2.0 + 0.25) + 0.5 + 0.125
TRANSFER = Transfer(start=0.5, wire=3.0, own=1.0)


def window(pieces: Pieces) -> float:
    return sum(phases(pieces, WORK).values())


def test_nodes_that_do_not_meet_only_compute() -> None:
    assert window(PLAIN) == pytest.approx(BUSY)


def test_a_blocking_exchange_adds_all_of_itself() -> None:
    assert window(replace(PLAIN, exchange=TRANSFER)) == pytest.approx(BUSY + 3.5)


def test_a_rested_port_saves_its_burst() -> None:
    given = replace(TRANSFER, burst=1.0)
    assert window(replace(PLAIN, exchange=given)) == pytest.approx(BUSY + 2.5)


def test_a_port_that_never_rests_saves_nothing() -> None:
    """All the bytes of a window cannot take less than the port's lasting rate."""
    given = Transfer(wire=100.0, burst=50.0)
    assert window(replace(PLAIN, exchange=given)) == pytest.approx(100.0)


def test_delay_hides_a_transfer_until_it_exceeds_the_compute() -> None:
    short = Transfer(wire=BUSY)
    assert window(replace(PLAIN, delay=1, exchange=short)) == pytest.approx(BUSY)
    long = Transfer(wire=BUSY + 2)
    assert window(replace(PLAIN, delay=1, exchange=long)) == pytest.approx(BUSY + 2)
    begun_late = Transfer(start=BUSY, wire=2.0)  # ends in the next window but one
    assert window(replace(PLAIN, delay=1, exchange=begun_late)) == pytest.approx(BUSY + 1)
    assert window(replace(PLAIN, delay=2, exchange=begun_late)) == pytest.approx(BUSY)
    landing_first = replace(PLAIN, delay=1, exchange=begun_late, lands_first=True)
    assert window(landing_first) == pytest.approx(BUSY + 2)


def test_what_a_late_transfer_takes_of_the_cores_is_not_hidden() -> None:
    given = replace(PLAIN, delay=1, exchange=Transfer(wire=1.0), disturbance=0.75)
    assert window(given) == pytest.approx(BUSY + 0.75)


def test_buckets_go_out_during_the_backward_pass_one_after_the_other() -> None:
    buckets = (Launch(0.0, Transfer(wire=1.0)), Launch(1.0, Transfer(wire=0.5)))
    assert window(replace(PLAIN, buckets=buckets)) == pytest.approx(BUSY + 0.5)
    first_is_long = (Launch(0.0, Transfer(wire=2.0)), Launch(1.0, Transfer(wire=0.5)))
    # 1.5 of it while the backbone's gradients are computed.
    assert window(replace(PLAIN, buckets=first_is_long)) == pytest.approx(BUSY + 1.0)


def test_buckets_take_of_cores_that_are_busy_and_gradients_come_later() -> None:
    buckets = (
        Launch(0.0, Transfer(wire=1.0, taken=0.75)),
        Launch(1.0, Transfer(wire=0.5, taken=0.25)),
    )
    given = replace(PLAIN, buckets=buckets)
    assert window(given) == pytest.approx(BUSY + 0.75 + 0.5)
    assert phases(given, WORK)[Phase.BACKWARD] == pytest.approx(2 * 2.0 + 0.75)
    # The link is the limit: what comes later still finds it taken.
    slow = (Launch(0.0, Transfer(wire=3.0, taken=0.75)), buckets[1])
    assert window(replace(PLAIN, buckets=slow)) == pytest.approx(BUSY - 1.5 + 3.0 + 0.5)


def test_only_busy_cores_lose_to_transfers() -> None:
    link = Link(bytes_per_second=1e6, cpu_seconds=1e-3, cpu_seconds_per_byte=1e-9)
    work = workload_of(exchanging("synchronous", "replicated", bucket_mb=0.1), 2, 2)

    def stretch(cores: float | None) -> float:
        return pieces_of(cluster(link=link, cores_per_node=cores), work).stretch

    assert stretch(None) == stretch(4.0) == 0.0
    own = stretch(2.0)
    first = work.buckets[:-1]
    sent = sum(bucket.elements for bucket in first) * 4 * 2 * 3 / 4
    assert own == pytest.approx(1e-3 * len(first) + 1e-9 * sent)
    assert stretch(1.0) == pytest.approx(2 * own)


def test_a_late_exchange_takes_of_the_cores_for_itself_and_for_its_bytes() -> None:
    late = Late(start_seconds=0.0, cpu_seconds=1e-3, cpu_seconds_per_byte=1e-8)
    work = workload_of(exchanging("delayed", delay=1), 2, 2)

    def taken(cores: float | None) -> float:
        return pieces_of(cluster(late=late, cores_per_node=cores), work).disturbance

    assert taken(2.0) == pytest.approx(1e-3 + 1e-8 * work.exchanged)
    assert taken(1.0) == pytest.approx(2 * taken(2.0))
    # An idle core, or a card's host, does it beside.
    assert taken(4.0) == taken(None) == 0.0


def test_a_card_s_exchange_goes_through_host_memory() -> None:
    late = Late(start_seconds=0.5, copy_bytes_per_second=1e6)
    link = Link(bytes_per_second=1e9, step_seconds=0.0)
    there = cluster(late=late, link=link)
    of_late, of_waiting = (
        pieces_of(there, workload_of(exchanging(kind, **how), 2, 2))
        for kind, how in (("delayed", {"delay": 1}), ("synchronous", {}))
    )
    # A rank of two nodes sends what it owns once: 2 (M-1)/M is 1. What waits goes through NCCL.
    own = ((WORK.shared + WORK.shared % 2) / 2 + 50 * 257) * 4
    assert of_late.exchange.start == pytest.approx(0.5 + own / 1e6)
    assert of_late.disturbance == pytest.approx(own / 1e6)
    assert of_waiting.exchange == Transfer()
    assert {each.transfer.start for each in of_waiting.buckets} == {0.0}
    assert of_waiting.disturbance == 0.0


def test_a_late_exchange_has_steps_of_its_own() -> None:
    link = Link(bytes_per_second=1e9, step_seconds=1e-5)
    work = workload_of(exchanging("delayed", delay=1), 4, 2)

    def start(**late: float) -> float:
        there = cluster(link=link, late=Late(start_seconds=0.0, **late))
        return pieces_of(there, work).exchange.start

    assert start() == pytest.approx(2 * 3 * 1e-5)
    assert start(step_seconds=6e-5) == pytest.approx(2 * 3 * 6e-5)
    assert start(step_seconds=0.0) == 0.0


def test_a_late_exchange_by_torch_pays_nothing_of_horovods() -> None:
    """It is the transfer of an exchange that is waited for, used later."""
    there = cluster(late=Late(start_seconds=0.5, step_seconds=0.1, cpu_seconds=1.0))
    late, on_time = (
        pieces_of(there, workload_of(exchanging("delayed", delay=delay, carrier="torch"), 2, 2))
        for delay in (1, 0)
    )
    assert late.exchange == on_time.exchange
    assert late.exchange.start < 0.1
    assert late.disturbance == late.exchange.taken


def test_a_bucket_is_agreed_on_while_the_one_before_is_sent() -> None:
    buckets = (
        Launch(0.0, Transfer(start=0.25, wire=2.0)),
        Launch(1.0, Transfer(start=0.25, wire=0.5)),
    )
    assert window(replace(PLAIN, buckets=buckets)) == pytest.approx(BUSY + 1.25)


def test_gathers_between_nodes_block_every_micro_batch() -> None:
    given = replace(PLAIN, gathers=(Transfer(start=0.25, wire=0.5), Transfer(wire=0.5)))
    assert window(given) == pytest.approx(BUSY + 2 * 1.25)


def test_a_whole_window_by_hand() -> None:
    """node, synchronous, K = 1 on 2 x 2 ranks, each figure multiplied out."""
    work = workload_of(exchanging("synchronous", bucket_mb=100.0), 2, 2)
    found = predict(cluster(), work.config)
    backbone = work.backbone_flops / 0.5e9
    classifier = 3 * 2 * 16 * 50 * 256 / 0.5e9
    assert len(work.buckets) == 2, "one of the slice, one of the backbone"
    own = work.shared + 50 * 257
    slice_seconds = 2 * 50 * 257 * 4 / 1e6
    backward = backbone * 2 / 3
    assert slice_seconds < backward, "it is through when the backbone's gradients have come"
    expected = {
        Phase.DATA: 0.0,
        Phase.FORWARD: backbone / 3 + classifier / 3,
        Phase.BACKWARD: backbone * 2 / 3 + classifier * 2 / 3,
        Phase.SLICE_WAIT: sum(gather.in_node for gather in work.gathers) / 1e9,
        Phase.NODE_WAIT: own * 4 / 1e9,
        Phase.EXCHANGE_WAIT: (work.shared + work.shared % 2) * 4 / 1e6,
        Phase.OPTIMIZER: 5 * own * 4 / 1e9,
        Phase.OTHER: 0.0,
    }
    for phase, seconds in expected.items():
        assert found.phases_ms[phase] == pytest.approx(seconds * 1e3, rel=1e-6), phase
    assert found.step_ms == pytest.approx(sum(found.phases_ms.values()))
    assert found.images_per_second == pytest.approx(32 / found.step_ms * 1e3)


KINDS = [
    exchanging("synchronous", "replicated"),
    exchanging("synchronous"),
    exchanging("synchronous", "world"),
    exchanging("synchronous", "node", route="flat"),
    exchanging("synchronous", "world", route="flat", compression="fp16"),
    exchanging("delayed", delay=1),
    exchanging("delayed", "world", delay=2, compression="fp16"),
    exchanging("averaging", delay=1, backward_passes_per_step=2, compression="int8", pieces=2),
    exchanging("ddp_powersgd", "replicated"),
    exchanging("ddp_post_local_sgd", "replicated", backward_passes_per_step=2),
]
EACH = pytest.mark.parametrize("config", KINDS, ids=lambda config: config.name)


@EACH
def test_an_endless_link_leaves_the_compute(config) -> None:  # type: ignore[no-untyped-def]
    fast = cluster(
        link=Link(bytes_per_second=1e18, step_seconds=0.0),
        node=Line(latency_seconds=0.0, bytes_per_second=1e18),
    )
    assert predict(fast, config).phases_ms["exchange_wait"] == pytest.approx(0.0, abs=1e-6)


@EACH
def test_endless_machines_leave_the_transfer(config) -> None:  # type: ignore[no-untyped-def]
    fast = cluster(
        product_flop_per_second=1e24,
        memory_bytes_per_second=1e24,
        encode_seconds=None,
        node=Line(latency_seconds=0.0, bytes_per_second=1e24),
    )
    found = predict(fast, config)
    assert found.step_ms == pytest.approx(found.cross_node_mb_per_step * 1e3, rel=1e-6)


@EACH
@settings(max_examples=15, deadline=None)
@given(
    rate=st.floats(1e5, 1e10),
    factor=st.floats(1.0, 50.0),
    start=st.floats(0, 0.05),
    burst=st.floats(0, 0.05),
)
def test_faster_machines_never_take_longer(  # type: ignore[no-untyped-def]
    config, rate: float, factor: float, start: float, burst: float
) -> None:
    link = Link(bytes_per_second=rate, step_seconds=start / 10, burst_seconds=burst)
    slow = cluster(link=link, late=Late(start_seconds=start), jitter=0.05)
    step = predict(slow, config).step_ms
    limit = step * (1 + 1e-9)
    assert predict(slow.with_rate(rate * factor), config).step_ms <= limit
    product = slow.product_flop_per_second * factor
    faster = slow.model_copy(update={"product_flop_per_second": product})
    assert predict(faster, config).step_ms <= limit


@EACH
def test_bytes_are_the_formula_s(config) -> None:  # type: ignore[no-untyped-def]
    work = workload_of(config, 2, 2)
    found = predict(cluster(), config)
    assert found.cross_node_mb_per_step * 1e6 == pytest.approx(work.window.cross_node * 2)
    crossing = sum(gather.cross_node for gather in work.gathers) * work.passes
    assert crossing + work.exchanged == pytest.approx(work.window.cross_node)
    pieces = pieces_of(cluster(), work)
    wire = pieces.exchange.wire + sum(each.transfer.wire for each in pieces.buckets)
    wire += work.passes * sum(each.wire for each in pieces.gathers)
    assert wire * 1e6 == pytest.approx(work.window.cross_node * 2)


def test_collectives_of_cards_start_by_their_hops() -> None:
    """64 machines of eight: an all-reduce by a tree, a gather round the ring."""
    line, link = Line(latency_seconds=1e-6, bytes_per_second=1e12), Link(bytes_per_second=1e12)

    def found(layout: str, cores: float | None = None) -> Pieces:
        config = exchanging("synchronous", layout, route="flat", bucket_mb=1e3)
        many = config.data.model_copy(update={"num_classes": 1000})
        work = workload_of(config.model_copy(update={"data": many}), 64, 8)
        return pieces_of(cluster(node=line, link=link, cores_per_node=cores), work)

    (bucket,) = found("replicated").buckets
    assert bucket.transfer.start == pytest.approx(2 * (6 * 5e-5 + 7 * 1e-6))
    ring, tree = 64 * 5e-5 + 447 * 1e-6, 2 * (6 * 5e-5 + 7 * 1e-6)
    starts = [each.start for each in found("world").gathers]
    assert starts == pytest.approx([ring, tree, tree, ring])
    (bucket,) = found("replicated", 16.0).buckets
    assert bucket.transfer.start == pytest.approx(2 * 511 * 5e-5)


@pytest.mark.parametrize("layout", ["node", "world"])
def test_buckets_of_the_flat_route_with_slices_are_gradients_alone(layout: str) -> None:
    """Slices' gradients have come when the backbone's begin, and go to the peers that have them."""
    config = exchanging("synchronous", layout, route="flat", backward_passes_per_step=2)
    work = workload_of(config, 2, 2)
    slow = Link(bytes_per_second=1e6, step_seconds=1e-2)
    launches = pieces_of(cluster(link=slow), work).buckets
    shared = work.shared * 4 * 1.5 / 2  # 2 (N-1)/N, half of which a rank sends across
    of_slices = 50 * 257 * 4 if layout == "node" else 0
    sent = sum(each.transfer.wire for each in launches) * 1e6 / 2
    assert sent == pytest.approx(shared + of_slices)
    if layout == "node":
        assert launches[0].arrival == 0.0
        assert launches[0].transfer.wire * 1e6 == pytest.approx(2 * of_slices)
        assert launches[0].transfer.start == pytest.approx(2 * 1e-2)  # to one peer and back
    rest = launches[1:] if layout == "node" else launches
    backbone = workload_of(exchanging("synchronous", "world"), 2, 2).buckets
    assert [each.arrival for each in rest] == [bucket.arrival for bucket in backbone]


def test_cards_of_one_machine_average_beside_the_backward_pass() -> None:
    line = Line(latency_seconds=1e-3, bytes_per_second=1e8)
    work = workload_of(exchanging("synchronous", "replicated", bucket_mb=1.0), 1, 2)
    found = pieces_of(cluster(nodes=1, node=line), work)
    assert len(found.buckets) == len(work.buckets) > 2
    end = 0.0
    for bucket in work.buckets:
        # Two ranks send each bucket once, in two steps.
        took = bucket.elements * 4 / 1e8 + 2e-3
        end = max(end, bucket.arrival * found.backbone_backward) + took
    busy = found.micro_batch + found.after
    assert predict(cluster(nodes=1, node=line), work.config).step_ms == pytest.approx(
        (busy - found.backbone_backward + end) * 1e3
    )
    on_cores = pieces_of(cluster(nodes=1, node=line, cores_per_node=2.0), work).buckets
    assert [each.arrival for each in on_cores] == [1.0]


def test_half_precision_is_packed_on_one_machine_too() -> None:
    config = exchanging("synchronous", "replicated", compression="fp16")
    work = workload_of(config, 1, 2)
    assert pieces_of(cluster(nodes=1), work).encode == pytest.approx(1e-9 * work.shared)
    assert pieces_of(cluster(nodes=1), workload_of(config, 1, 1)).encode == 0.0


def test_statistics_that_are_added_up_go_round_twice() -> None:
    """Sixteen ranks of a node: features once, their maximum and sums twice, gradients once."""
    work = workload_of(exchanging("synchronous"), 1, 16)
    assert work.rounds == (1, 2, 2, 1)
    line = Line(latency_seconds=1e-3, bytes_per_second=1e18)
    assert pieces_of(cluster(node=line), work).slice_wait == pytest.approx(6 * 15 * 1e-3)
    assert workload_of(exchanging("synchronous"), 1, 8).rounds == (1, 1, 1)


def test_a_window_is_the_larger_of_compute_and_transfer_at_least_and_their_sum_at_most() -> None:
    for rate in (1e5, 1e6, 1e7, 1e8):
        there = cluster().with_rate(rate)
        waiting = predict(there, exchanging("synchronous")).step_ms
        late = predict(there, exchanging("delayed", delay=1)).step_ms
        transfer = (
            predict(there, exchanging("delayed", delay=1)).cross_node_mb_per_step * 1e9 / rate
        )
        compute = predict(there, exchanging("isolated")).step_ms
        assert waiting / late <= (waiting / max(compute, transfer)) * (1 + 1e-9)


def test_ranks_that_share_cores_take_longer() -> None:
    alone = predict(cluster(cores_per_node=2.0), exchanging("isolated")).step_ms
    shared = predict(cluster(cores_per_node=1.0), exchanging("isolated")).step_ms
    assert shared == pytest.approx(2 * alone)
    crowded = cluster(cores_per_node=0.5, sharing_penalty=0.1)
    assert predict(crowded, exchanging("isolated")).step_ms == pytest.approx(4 * 1.2 * alone)


def test_one_rank_waits_for_nobody() -> None:
    found = predict(cluster(jitter=0.2), exchanging("synchronous"), 1, 1)
    assert found.phases_ms["exchange_wait"] == found.phases_ms["slice_wait"] == 0.0
    assert found.cross_node_mb_per_step == 0.0


def test_jitter_costs_the_mean_of_the_largest() -> None:
    jittery = replace(PLAIN, jitter=0.1, exchange=Transfer(wire=1e-9))
    deviation = 0.1 * 3.1
    mean, spread = largest_normal(2)
    expected = 2 * mean * deviation + mean * spread * deviation * math.sqrt(2)
    assert window(jittery) - window(replace(jittery, jitter=0)) == pytest.approx(expected)
    late = replace(jittery, delay=1)
    assert window(late) - window(replace(late, jitter=0)) == pytest.approx(2 * mean * deviation)


def test_largest_normal_against_known_values() -> None:
    assert largest_normal(1) == (pytest.approx(0, abs=1e-9), pytest.approx(1))
    assert largest_normal(2)[0] == pytest.approx(1 / math.sqrt(math.pi))
    assert largest_normal(3)[0] == pytest.approx(1.5 / math.sqrt(math.pi))


def test_a_port_saves_up_no_more_than_its_burst() -> None:
    port = Port()
    assert port.sent(100.0, wire=3.0, own=0.0, burst=1.0) == 102.0
    assert port.sent(102.0, wire=3.0, own=0.0, burst=1.0) == 105.0
    assert port.sent(105.5, wire=0.2, own=0.0, burst=1.0) == 105.5
    assert port.sent(105.5, wire=0.0, own=2.0, burst=1.0) == 107.5
    assert port.sent(106.0, wire=0.0, own=2.0, burst=1.0) == 109.5


def test_pieces_are_picked_as_a_run_picks_them() -> None:
    config = exchanging("averaging", delay=1, max_pieces=16)
    picked = with_chosen_pieces(cluster(), config, 2, 2).exchange
    whole = config.exchange.model_copy(update={"max_pieces": 0})
    pieces = pieces_of(cluster(), workload_of(config.model_copy(update={"exchange": whole}), 2, 2))
    compute = pieces.micro_batch + pieces.after
    assert picked.pieces == min(16, math.ceil(pieces.exchange.seconds / 0.7 / compute))
    assert picked.pieces > 1


def exchange_of(**settings: object) -> Transfer:
    config = exchanging("averaging", delay=1, **settings)
    return pieces_of(cluster(), workload_of(config, 2, 2)).exchange


def test_a_slice_at_its_own_pace_sends_its_share_in_a_message_of_its_own() -> None:
    alike, slow = exchange_of(pieces=2), exchange_of(pieces=2, slice_pieces=4)
    work = workload_of(exchanging("averaging", delay=1, pieces=2), 2, 2)
    assert slow.start == pytest.approx(2 * alike.start)
    left = work.shared / 2 / 2 + work.sliced / 4
    assert slow.wire / alike.wire == pytest.approx(left / work.part, rel=1e-3)


@pytest.mark.parametrize("passes", [1, 2])
def test_drawn_rows_are_the_share_of_a_slice(passes: int) -> None:
    given = exchanging("averaging", delay=1, backward_passes_per_step=passes)
    sampling = given.classifier.model_copy(update={"sampling": 0.1})
    given = given.model_copy(update={"classifier": sampling})
    whole, drawn = (
        workload_of(given.exchanging(slice_rows=rows), 2, 2) for rows in ("all", "drawn")
    )
    assert drawn.part == pytest.approx(whole.part - (1 - 0.1 * passes) * whole.sliced)
    # By the formula whole rows cross: as many as are drawn.
    left = drawn.exchanged / whole.exchanged
    assert left == pytest.approx(drawn.part / whole.part, rel=0.01)


def test_drawn_rows_are_not_compressed_among_many() -> None:
    given = exchanging("averaging", compression="int8").exchanging(slice_rows="drawn")
    with pytest.raises(UserError, match="needs two nodes, there are 3"):
        workload_of(given, 3, 2)


def test_pieces_are_picked_beside_a_slice_that_has_its_own() -> None:
    config = exchanging("averaging", delay=1, max_pieces=1000)
    data = config.data.model_copy(update={"num_classes": 20_000})
    config = config.model_copy(update={"data": data})
    alone, whole, cut = (
        with_chosen_pieces(cluster(), config.exchanging(slice_pieces=each), 2, 2).exchange
        for each in (None, 1, 1000)
    )
    assert (alone.slice_pieces, whole.slice_pieces, cut.slice_pieces) == (None, 1, 1000)
    assert whole.pieces == 1000, "a whole slice leaves no time"
    assert 1 < cut.pieces < alone.pieces


def test_exposed_never_takes_time_away() -> None:
    assert exposed(replace(PLAIN, exchange=TRANSFER, delay=3), BUSY) == 0.0
