"""Every kind of exchange does on real ranks what its traits say, and nobody asks for its name."""

import ast
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path as File
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from harness.config import Config
from harness.config.mistakes import validated
from harness.exchange.exchange import MAKERS, Exchange, make_exchange
from harness.exchange.flat import RankParameters
from harness.exchange.floats import Floats
from harness.exchange.kinds import KINDS, KindName
from harness.exchange.parts import Part
from harness.exchange.torch_ddp import PowerSgd, through_ddp
from harness.measure.phase import Phase
from harness.measure.traffic import Bytes
from harness.model.network import Network
from harness.parallel.group import Group
from harness.parallel.pending import Pending
from harness.parallel.world import World
from harness.train.assembly import Assembly, assemble
from harness.train.optimizer import make_optimizer
from tests.alone import meters
from tests.grid import world_of_ranks
from tests.measured_need import noise
from tests.ranks import run_on_ranks

ROOT = File(__file__).resolve().parents[2]
MAY_COMPARE = ("harness/exchange/", "harness/config/sections/")
NAMES = pytest.mark.parametrize("name", KINDS)
RANKS, RANKS_PER_NODE, PASSES, WINDOWS = 4, 2, 2, 4
HELD_SECONDS, SLOW_SECONDS = 6.0, 0.4
"""How long rank 1 waits for rank 0 to leave its backward pass, and keeps it waiting then."""


# Names.


def compared_names(source: str) -> list[str]:
    """Where a source decides by the name of a kind: `line: code`."""
    found = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        decides: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            decides = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            decides = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.match_case):
            decides = [each.value for each in ast.walk(node) if isinstance(each, ast.MatchValue)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            # `kind.startswith("ddp")`, `TABLE.get("delayed")`
            is_test = node.func.attr in ("startswith", "endswith", "get", "index", "count")
            decides = list(node.args) if is_test else []
        if any(constants(each) & KINDS.keys() for each in decides):
            found.append(f"{decides[0].lineno}: {ast.unparse(node)}")
    for node in tree.body:
        # A constant that holds nothing but kinds is made to be asked for what it holds.
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(
            node.value, ast.Set | ast.Tuple | ast.List | ast.Call
        ):
            names = constants(node.value)
            if names and names <= KINDS.keys():
                found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def constants(expression: ast.AST) -> set[Any]:
    return {each.value for each in ast.walk(expression) if isinstance(each, ast.Constant)}


def test_nobody_else_decides_by_the_name_of_a_kind() -> None:
    found = {}
    for file in sorted((ROOT / "harness").rglob("*.py")):
        place = file.relative_to(ROOT).as_posix()
        if not place.startswith(MAY_COMPARE) and (
            lines := compared_names(file.read_text(encoding="utf-8"))
        ):
            found[place] = lines
    assert found == {}, "ask the traits in harness/exchange/kinds.py"


@pytest.mark.parametrize(
    "source",
    [
        "late = exchange.kind == 'delayed'",
        "if 'isolated' != kind: pass",
        "alone = kind in ('averaging', 'isolated')",
        "alone = kind in {'averaging'}",
        "if (layout, kind) != ('world', 'averaging'): pass",
        "slots = {'delayed': 2, 'averaging': 3}.get(kind, 1)",
        "match kind:\n    case 'synchronous' | 'ddp':\n        pass",
        "torchs = kind.startswith('ddp')",
        "LATE = ('delayed', 'averaging')",
        "LATE: frozenset[str] = frozenset({'delayed', 'averaging'})",
    ],
)
def test_such_a_decision_is_found(source: str) -> None:
    assert len(compared_names(source)) >= 1


@pytest.mark.parametrize(
    "source",
    [
        "alone = config.exchanging(kind='isolated', pieces=1)",
        "exchange = {'kind': 'isolated', 'route': 'auto'}",
        "late = exchange.traits.late",
        "kind = 'averaging' if averages else 'synchronous'",
        "if kernels == 'ddp_twin': pass",
    ],
)
def test_to_choose_a_kind_is_no_decision_by_its_name(source: str) -> None:
    assert compared_names(source) == []


def test_each_kind_has_a_name_traits_and_a_maker() -> None:
    assert get_args(KindName) == tuple(KINDS) == tuple(MAKERS)


# Traits.


def config_of(name: str, **changes: object) -> Config:
    """Replicated: torch's kinds have no other layout. One window late where that can be."""
    exchange: dict[str, object] = {"kind": name, "bucket_mb": 0.05}
    if KINDS[name].late:
        exchange["delay"] = 1
    if KINDS[name].local_steps or not KINDS[name].is_torchs:
        exchange["backward_passes_per_step"] = PASSES
    values = {
        "data": {"dataset": "synthetic", "num_classes": 1000, "image_size": 8},
        "backbone": {"feature_dim": 64, "norm": "group"},
        "exchange": exchange | changes,
        "train": {"batch_size": 4, "steps": WINDOWS, "precision": "fp64"},
        "optimizer": {"lr": 0.01},
    }
    return validated(Config, values, "test")


@dataclass
class Rig:
    """What trains a window as the trainer does."""

    config: Config
    world: World
    model: Assembly
    exchange: Exchange
    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    steps: int = 0

    def step(self) -> None:
        self.optimizer.step()
        self.steps += 1

    def window(self, left_backward: Callable[[], None] = lambda: None) -> None:
        clock, passes = self.world.meters.clock, self.config.exchange.backward_passes_per_step
        model = self.model
        with clock.window():
            for number in range(passes):
                if number % self.exchange.passes_per_step == 0:
                    model.shared.grads.zero_()
                    model.classifier.gradients_are_stale = True
                images, labels = model.data.train.read(
                    torch.arange(4) + 7 * model.world.topology.rank
                )
                with clock.phase(Phase.FORWARD):
                    scores = self.network(images.double() / 255, labels)
                with clock.phase(Phase.BACKWARD):
                    (scores.loss / self.exchange.passes_per_step).backward()
                left_backward()
                if self.exchange.gradients_ready(number == passes - 1):
                    self.step()
                    self.exchange.after_step()


def world_with_peers() -> World:
    """The world of the ranks that run this; a group of torch's takes the part of Horovod's."""
    world = world_of_ranks(RANKS_PER_NODE, counted=meters())
    topology = world.topology
    peers = topology.peer_groups[topology.local_rank]
    process_group = world.beside(peers, "peers").process_group
    over = Group(
        peers, topology.rank, topology.nodes, process_group, world.meters, Phase.EXCHANGE_WAIT
    )
    return replace(world, peers=world.reducing(over, "peers"))  # type: ignore[arg-type]


def rig(config: Config) -> Rig:
    world = world_with_peers()
    model = assemble(config, noise(config), world)
    return around(model, make_optimizer(config.optimizer, (model.shared, model.sliced)))


def around(model: Assembly, optimizer: torch.optim.Optimizer) -> Rig:
    """The exchange, and DDP, of this model."""
    config, world = model.config, model.world
    network = Network(model.backbone, model.classifier)
    images = model.shared.values.new_zeros(2, 3, 8, 8)
    through = through_ddp(config.exchange, network, world, model.shared, images, 0)
    model.classifier.in_place = not config.exchange.is_torchs
    exchange = make_exchange(
        config.exchange,
        RankParameters(model.shared, model.sliced, config.classifier.layout),
        world,
        errors=through.errors,
    )
    return Rig(config, world, model, exchange, through.network, optimizer)


@dataclass(frozen=True)
class Seen:
    """What one kind did on one rank in some windows."""

    sent: Bytes
    """Counted in the last window."""
    formula: Bytes
    steps: float
    """The optimizer's, in a window."""
    in_flight: int
    """Collectives that were launched and not waited for when the last window ended."""
    order: str
    """What happened between nodes in the last window: launches L and waits W."""
    late: float
    """Windows from when something was launched until it was used, on the mean."""
    differing: float
    """How far this rank's values are from the mean of all, at the most."""
    copies: float
    """Memory that stays, over that of what the rank exchanges; wires left out."""
    filters_lie_together: bool
    unsent: int
    """Elements that a lossy message left out."""
    held_in_backward: bool
    """Rank 0 did not leave its backward pass before rank 1 came, which waited for it to do so."""
    waited_ms: float
    """Spent in the phases of waiting of that window."""


def seen(name: str) -> Seen:
    """Collective over the ranks that run this."""
    given = rig(config_of(name))
    world, traffic = given.world, given.world.meters.traffic
    with watched(world.peers) as events, pending() as outstanding:
        before, order = traffic.total, 0
        for _ in range(WINDOWS):
            before, order = traffic.total, len(events)
            given.window()
        in_flight, last = len(outstanding), "".join(events[order:])
    sent, steps = traffic.total - before, given.steps / WINDOWS
    own = given.model.shared.values
    differing = float((own - world.average(own)).abs().max())
    late, given.steps = given.exchange.lateness(), 0
    given.exchange.drain(given.step)
    held, waited_ms = slowed(given, name)
    filters = next(each for each in given.model.backbone.parameters() if each.dim() == 4)
    return Seen(
        sent,
        given.model.expected_bytes(),
        steps,
        in_flight,
        last,
        late.windows / max(1, late.landings),
        differing,
        copies(name),
        filters.is_contiguous(),
        sum(len(strip.tensor) for strip in lossy(name).exchange.carried()),
        held,
        waited_ms,
    )


def slowed(given: Rig, name: str) -> tuple[bool, float]:
    """A window in which rank 1 begins only when rank 0 of its node has left a backward pass, or
    has been held in it for some seconds; and what rank 0's clock saw of the waiting."""
    rank, clock = given.world.topology.rank, given.world.meters.clock
    store, key, held = dist.distributed_c10d._get_default_store(), f"{name} left backward", False
    clock.read()
    if rank == 1:
        end = time.monotonic() + HELD_SECONDS
        while not store.check([key]) and not held:
            time.sleep(0.01)
            held = time.monotonic() > end
        time.sleep(SLOW_SECONDS)
    given.window(lambda: store.set(key, "yes") if rank == 0 else None)
    given.exchange.drain(given.step)
    (times,) = clock.read()
    return held, sum(times.get(phase, 0.0) for phase in (Phase.NODE_WAIT, Phase.EXCHANGE_WAIT))


def lossy(name: str) -> Rig:
    """After some windows over the narrowest wire that this kind takes."""
    narrowest = KINDS[name].compressions[-1]
    changes = {"backward_passes_per_step": 1} if KINDS[name].is_torchs else {}
    given = rig(config_of(name, compression=narrowest, powersgd_rank=1, **changes))
    for _ in range(WINDOWS):
        given.window()
    given.exchange.drain(given.step)
    given.exchange.agree_on([])
    return given


def copies(name: str) -> float:
    """Memory that the exchange keeps, over the size of what it exchanges; its wires left out.

    The flat route is taken, on which buckets are averaged in place. The optimizer's state, and what
    the first pass allocates, are there before the measuring begins.
    """
    traits, changes = KINDS[name], {"powersgd_rank": 1}
    config = config_of(name, **changes | ({"route": "flat"} if traits.has_routes else {}))
    world = world_with_peers()
    model = assemble(config, noise(config), world)
    optimizer = make_optimizer(config.optimizer, (model.shared, model.sliced))
    optimizer.step()
    images, labels = model.data.train.read(torch.arange(4))
    Network(model.backbone, model.classifier)(images.double(), labels).loss.backward()
    before = tensors()  # held, or their addresses could be given to others
    with reducers_buckets() as buckets:
        given = around(model, optimizer)
        for _ in range(WINDOWS):
            buckets.clear()
            given.window()
        found = bytes_of(tensors()) | buckets
        kept = sum(found[address] for address in found.keys() - bytes_of(before).keys())
    given.exchange.drain(given.step)
    part = Part(model.shared, model.sliced, False, world.peers)
    if traits.steps_chunks and traits.meets:
        slots = config.exchange.delay + 1
        wire = part.wire("none", slots, "wire", keeps_own=not traits.error_feedback)
        assert isinstance(wire, Floats)
        kept -= sum(each.nbytes for each in (*wire._totals, *wire._owns))
    if isinstance(given.exchange, PowerSgd):
        kept -= given.exchange._errors.owed.nbytes  # on the host, and for checkpoints alone
    return kept / (8 * part.elements)


def tensors() -> list[Tensor]:
    """All that Python knows of. The profiler would not see what Gloo's threads give back."""
    gc.collect()
    return [each for each in gc.get_objects() if issubclass(type(each), Tensor)]


def bytes_of(given: list[Tensor]) -> dict[int, int]:
    """Bytes of each storage by its address."""
    storages = (each.untyped_storage() for each in given)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


@contextmanager
def reducers_buckets() -> Iterator[dict[int, int]]:
    """Bytes of the buckets that torch's DDP gives to its hooks, by address."""
    register, found = DistributedDataParallel.register_comm_hook, dict[int, int]()

    def registered(parallel: Any, state: object, hook: Any) -> None:
        def noting(state, bucket):  # type: ignore[no-untyped-def]
            found[bucket.buffer().data_ptr()] = bucket.buffer().nbytes
            return hook(state, bucket)

        register(parallel, state, noting)

    DistributedDataParallel.register_comm_hook = registered
    try:
        yield found
    finally:
        DistributedDataParallel.register_comm_hook = register


@contextmanager
def pending() -> Iterator[dict[int, dist.Work]]:
    """Collectives of torch's that were launched and not waited for."""
    launched, waited = Pending.__init__, Pending.wait
    found: dict[int, dist.Work] = {}

    def launch(self: Pending, work: dist.Work | None, *args: Any, **named: Any) -> None:
        launched(self, work, *args, **named)
        if work is not None:
            found[id(self)] = work

    def wait(self: Pending) -> Tensor:
        found.pop(id(self), None)
        return waited(self)

    Pending.__init__, Pending.wait = launch, wait  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Pending.__init__, Pending.wait = launched, waited  # type: ignore[method-assign]


@contextmanager
def watched(peers: Any) -> Iterator[list[str]]:
    """L and W for what is launched between nodes and waited for, in order."""
    launched, found = peers.launch_sum, list[str]()

    class Waited:
        def __init__(self, under_way: Pending) -> None:
            self._under_way = under_way

        def wait(self) -> Tensor:
            found.append("W")
            return self._under_way.wait()

    def launch(buffer: Tensor, name: str = "") -> Waited:
        found.append("L")
        return Waited(launched(buffer, name))

    peers.launch_sum = launch
    yield found


def all_seen() -> dict[str, Seen]:
    return {name: seen(name) for name in KINDS}


@cache
def on_ranks() -> list[dict[str, Seen]]:
    return run_on_ranks(all_seen, RANKS, timeout=500.0)


@NAMES
def test_counted_bytes_equal_the_formula(name: str) -> None:
    """The mean over a node's ranks is taken, because each sends its own share."""
    found = [each[name] for each in on_ranks()]
    for node in (found[:RANKS_PER_NODE], found[RANKS_PER_NODE:]):
        sent = sum((each.sent for each in node), Bytes()) * (1 / RANKS_PER_NODE)
        formula = node[0].formula
        assert sent.in_node == pytest.approx(formula.in_node, rel=1e-12)
        assert sent.cross_node == pytest.approx(formula.cross_node, rel=1e-12)


@NAMES
def test_something_crosses_between_nodes_where_they_meet(name: str) -> None:
    for each in on_ranks():
        assert (each[name].sent.cross_node > 0) == KINDS[name].meets


@NAMES
def test_what_is_late_is_under_way_when_a_window_ends(name: str) -> None:
    for each in on_ranks():
        assert (each[name].in_flight > 0) == KINDS[name].late
        assert each[name].late == (1.0 if KINDS[name].late else 0.0)


@NAMES
def test_what_lands_first(name: str) -> None:
    order = on_ranks()[0][name].order
    if KINDS[name].late:
        assert order == ("WL" if KINDS[name].lands_first else "LW")


@NAMES
def test_nodes_that_step_on_their_own_differ(name: str) -> None:
    traits = KINDS[name]
    for each in on_ranks():
        passes = config_of(name).exchange.backward_passes_per_step
        expected = passes if traits.local_steps else 1
        # A late gradient is stepped with in every window but the first.
        missing = traits.late and not traits.local_steps
        assert each[name].steps == pytest.approx(expected - missing / WINDOWS)
        assert (each[name].differing > 1e-12) == traits.local_steps


@NAMES
def test_copies_are_what_memory_holds(name: str) -> None:
    for each in on_ranks():
        assert each[name].copies == pytest.approx(kept_copies(name), abs=0.05)


def kept_copies(name: str) -> int:
    windows = config_of(name).exchange.delay + 1
    return KINDS[name].copies + windows * KINDS[name].copies_of_window


@NAMES
def test_how_filters_lie(name: str) -> None:
    for each in on_ranks():
        assert each[name].filters_lie_together == (not KINDS[name].channels_last)


@NAMES
def test_what_a_message_leaves_out_is_kept(name: str) -> None:
    assert (sum(each[name].unsent for each in on_ranks()) > 0) == KINDS[name].error_feedback


@NAMES
def test_whether_a_clock_sees_the_waits(name: str) -> None:
    first, slow, *_ = (each[name] for each in on_ranks())
    assert slow.held_in_backward == KINDS[name].waits_in_backward
    if not KINDS[name].waits_in_backward:
        assert first.waited_ms > 0.5e3 * SLOW_SECONDS
