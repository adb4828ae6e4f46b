"""The groups of ranks through which an exchange goes: its route, and what carries its parts."""

from harness.config import ExchangeConfig
from harness.exchange.flat import Flat
from harness.exchange.kinds import Path
from harness.exchange.ways import Stops, Way, direct, through_nodes
from harness.exchange.wire import Carrier
from harness.parallel.group import Group
from harness.parallel.world import World


def route_of(exchange: ExchangeConfig, nodes: int, ranks_per_node: int) -> str:
    """The route, `flat` or `hierarchical`, by which the gradients that all ranks hold are averaged.

    If `auto` has not been measured and both routes exist, it is hierarchical, which sends the
    fewest bytes.
    """
    if exchange.traits.path is not Path.BUCKETS:
        return "flat" if exchange.is_torchs else "hierarchical"
    if not differing_routes(exchange, nodes, ranks_per_node):
        return "flat"
    return "hierarchical" if exchange.route == "auto" else exchange.route


def differing_routes(exchange: ExchangeConfig, nodes: int, ranks_per_node: int) -> bool:
    """Whether the two routes differ. With one node, or one rank per node, they are the same."""
    return exchange.traits.has_routes and nodes > 1 and ranks_per_node > 1


def way_of_shared(exchange: ExchangeConfig, shared: Flat, world: World) -> Way:
    """The averaging of gradients that all ranks hold, on the chosen route. Collective over the
    world."""
    topology = world.topology
    if route_of(exchange, topology.nodes, topology.ranks_per_node) == "flat":
        everyone = over(world.everyone, exchange, world, "shared")
        return direct(shared, everyone, exchange.compression)
    peers = topology.peer_groups[topology.local_rank]
    stops = Stops(
        node=world.beside(world.node.ranks, "node"),
        across=over(world.beside(peers, "across"), exchange, world, "across"),
        spread=world.beside(world.node.ranks, "spread"),
        to_across=world.line("across"),
        to_spread=world.line("spread"),
        waiting=world.everyone.waiting,
    )
    return through_nodes(shared, stops, exchange.compression)


def carrier_of(exchange: ExchangeConfig, world: World) -> Carrier:
    """What carries a rank's part to its peers on the other nodes. Collective over the world.

    Late results come through Horovod, whose ranks agree in the background on what to send, unless
    `carrier` is torch. A window that waits for its own result would wait for these messages, too,
    so torch.distributed carries it, as it does in the synchronous exchange.
    """
    if exchange.by_horovod:
        return world.peers
    if exchange.delay:
        return over(world.late(), exchange, world, "late", late=True)
    return over(world.across, exchange, world, "peers")


def over(
    group: Group, exchange: ExchangeConfig, world: World, purpose: str, late: bool = False
) -> Group:
    """The group, prepared for the wire: lossy wires need `launch_reduce`. Collective over the
    world."""
    return group if exchange.compression == "none" else world.reducing(group, purpose, late)
