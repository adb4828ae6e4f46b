"""How much memory a rank of a run takes, computed from its config alone."""

from dataclasses import dataclass
from functools import cached_property

from harness.config import Config
from harness.doctor.activations import Activations, activations_of
from harness.doctor.finding import Facts
from harness.exchange.buckets import bucket_sizes
from harness.exchange.codecs import BLOCK, blocks_of
from harness.exchange.compression import row_length
from harness.exchange.exchange import route_of, steps_alone
from harness.exchange.kinds import Crosses, Path
from harness.exchange.rounded import piece_blocks
from harness.measure.traffic import gathers_statistics
from harness.model.anatomy import Anatomy, anatomy_of
from harness.model.flops import PRODUCTS
from harness.model.kept import place
from harness.model.sliced_classifier import tile_classes
from harness.parallel.slices import padded
from harness.train.evaluation import MET_AT_ONCE
from harness.train.stability import dynamics_of, runs_of

WEIGHT_COPIES = 5
"""Of the largest filter while its gradient is made: the gradient, and the other layouts in which
a processor's library computes in float32."""
PREDICTED = 5
"""Classes of an image that an evaluation keeps."""


class Need(Facts):
    """Bytes that one rank takes beside its libraries: always, and at the peak of each moment."""

    model: int
    """Values, gradients and the optimizer's state."""
    exchange: int
    """Buffers of what is under way between nodes."""
    training: int
    """Beside those, of a micro-batch: activations, logits, temporary gradients."""
    evaluation: int = 0
    evaluation_on_host: int = 0
    """Of `evaluation`, what a run on cards keeps in the host's memory."""
    estimate: int = 0
    """Of the curvature; 0 where the run makes none."""
    estimate_on_host: int = 0
    """The same of `estimate`."""
    saving: int = 0
    """Of a checkpoint, in the host's memory; 0 where the run writes none."""
    images: int = 0
    """A micro-batch of them."""
    read_ahead: int = 0
    """Micro-batches that wait on a card."""
    checkpoint: int = 0
    """On disk: the whole model, the optimizer's state, and what the exchange goes on from, once."""

    @property
    def certain(self) -> int:
        """Taken whatever the images and the allocator are."""
        return self.model + self.exchange

    @property
    def moments(self) -> dict[str, int]:
        """What each moment takes beside what is certain, where the run has no cards."""
        return {
            "training": self.training,
            "an evaluation": self.evaluation,
            "the curvature's estimate": self.estimate,
            "a checkpoint": self.saving,
        }

    @property
    def total(self) -> int:
        """At the highest moment, all of it in one memory: without cards, the host's."""
        return self.certain + self.images + max(self.moments.values())

    @property
    def on_card(self) -> int:
        """Of a card's memory at the highest moment."""
        evaluation = self.evaluation - self.evaluation_on_host
        peak = max(self.training, evaluation, self.estimate - self.estimate_on_host)
        return self.certain + self.images + self.read_ahead + peak

    def where_it_trains(self, on_cards: bool) -> int:
        """Of a card's memory, or of the host's where there are no cards."""
        return self.on_card if on_cards else self.total


def need_of(config: Config, nodes: int, ranks_per_node: int, cards: bool = False) -> Need:
    """The most loaded rank's need, on M `nodes` of G ranks.

    Raises UserError where the backbone cannot be trained with `train.batch_size` images.
    """
    count = _Count(config, nodes, ranks_per_node, cards)
    estimates = _estimates(config, nodes)
    saves = config.train.save or config.train.checkpoint_every > 0
    return Need(
        model=count.model,
        exchange=count.exchange,
        training=count.training,
        evaluation=count.evaluation,
        estimate=count.estimate if estimates else 0,
        evaluation_on_host=count.own_on_host,
        estimate_on_host=count.own_on_host + count.parameters if estimates else 0,
        saving=count.saving if saves else 0,
        images=count.images,
        read_ahead=count.images * config.data.prefetch,
        checkpoint=count.checkpoint,
    )


def products_of(config: Config, nodes: int, ranks_per_node: int, cards: bool = False) -> float:
    """Matrix products of the classifier a micro-batch: three, and a fourth where exponentials are
    computed again; the mean over a window."""
    return _Count(config, nodes, ranks_per_node, cards).products


def exponentials_of(config: Config, nodes: int, ranks_per_node: int, cards: bool = False) -> str:
    """Where the classifier's exponentials wait for its second pass, and what that costs."""
    return _Count(config, nodes, ranks_per_node, cards).exponentials


def _estimates(config: Config, nodes: int) -> bool:
    settings = config.staleness
    settled = max(config.optimizer.warmup_windows, config.exchange.synchronous_windows)
    late = dynamics_of(config, settled, nodes)
    once = settings.curvature_after_warmup and late is not None and late.delay > 0
    return once or settings.curvature_at_start or settings.curvature_every > 0


@dataclass(frozen=True)
class _Count:
    """Sizes of what lives at one moment or another.

    s bytes an element (4; fp64: 8), P elements that a node's ranks share, S = K (D + 1) of a slice
    of K classes with D features and a bias; replicated has S = 0, and its classes in P.
    """

    config: Config
    nodes: int
    ranks_per_node: int
    cards: bool

    @property
    def half(self) -> bool:
        return self.config.train.precision == "bf16"

    @property
    def margin(self) -> bool:
        return self.config.classifier.margin != "none"

    def _activations(self, half: bool) -> Activations:
        config = self.config
        return activations_of(
            config.backbone,
            self.anatomy.channels,
            config.data.image_size,
            min(2, config.train.batch_size),
            half,
        )

    @cached_property
    def _backbone(self) -> Activations:
        return self._activations(self.half)

    @cached_property
    def anatomy(self) -> Anatomy:
        return anatomy_of(self.config, self.nodes, self.ranks_per_node)

    @property
    def element(self) -> int:
        """s."""
        return self.anatomy.element_bytes

    @property
    def owners(self) -> int:
        """Ranks of a slice group."""
        return self.anatomy.owners

    @cached_property
    def classes(self) -> int:
        """K of the largest slice."""
        return self.anatomy.largest_slice

    @property
    def features(self) -> int:
        """D."""
        return self.anatomy.features

    @property
    def shared(self) -> int:
        """P."""
        return self.anatomy.shared_elements

    @property
    def sliced(self) -> int:
        """S."""
        return self.anatomy.sliced_elements

    @cached_property
    def chunk(self) -> int:
        """What a rank steps of P."""
        if not steps_alone(self.config.exchange):
            return self.shared
        return padded(self.shared, self.ranks_per_node) // self.ranks_per_node

    @property
    def part(self) -> int:
        """What a rank speaks for."""
        return self.chunk + self.sliced

    @property
    def states(self) -> int:
        """Of the optimizer, for each element."""
        optimizer = self.config.optimizer
        if optimizer.name == "adamw":
            return 2
        return 1 if optimizer.momentum else 0

    @property
    def parameters(self) -> int:
        return (self.shared + self.sliced) * self.element

    @property
    def model(self) -> int:
        return 2 * self.parameters + self.states * self.part * self.element

    @property
    def exchange(self) -> int:
        """Buffers that stay: the copies that the kind's traits count, the outer optimizer's
        velocity, wires, and samples of staleness."""
        exchange, s = self.config.exchange, self.element
        traits, ranks = exchange.traits, self.nodes * self.ranks_per_node
        if traits.is_torchs:
            return 0 if ranks == 1 else traits.copies * self.shared * s
        if traits.path is Path.BUCKETS:
            return self._overlapped
        if not (traits.meets and self._exchanges):
            return 0
        sent = self.part if self.config.classifier.layout == "node" else self.chunk
        slots = exchange.delay // self._pieces + 1
        under_way = exchange.delay / self._pieces
        kept = traits.copies + exchange.has_outer + slots * traits.copies_of_window
        wire = self._wire(sent, self.nodes, slots, under_way, feedback=traits.error_feedback)
        return (kept * self.part + self._sampled) * s + wire

    @property
    def _sampled(self) -> int:
        """Elements of samples that are kept until what they are compared with is known."""
        exchange, every = self.config.exchange, self.config.staleness.sample_every
        if not (exchange.delay and every):
            return 0
        if exchange.traits.crosses is Crosses.GRADIENTS:
            return -(-exchange.delay // every) * self.part
        # A piece that lands in the window in which it is sent again is compared there at once.
        return bool(exchange.delay % self._pieces) * self.part // self._pieces

    @property
    def _through_nodes(self) -> bool:
        route = route_of(self.config.exchange, self.nodes, self.ranks_per_node)
        return self.config.exchange.traits.has_routes and route == "hierarchical"

    @cached_property
    def _crossing(self) -> tuple[tuple[int, int], ...]:
        """Of gradients that are averaged beside the backward pass: elements that go over wires at
        once, and the ranks between which they do."""
        exchange, group = self.config.exchange, self.ranks_per_node
        shapes = self.anatomy.classifier(self.classes)
        slices = bucket_sizes(shapes, exchange.bucket_bytes, self.element)
        crosses = slices if self.config.classifier.layout == "node" else ()
        own = tuple((elements, self.nodes) for elements in crosses)
        if self._through_nodes:
            return own + tuple((padded(n, group) // group, self.nodes) for n in self._buckets)
        return own + tuple((elements, self.nodes * group) for elements in self._buckets)

    @cached_property
    def _buckets(self) -> tuple[int, ...]:
        """Elements of each, of P."""
        return bucket_sizes(self.anatomy.shared, self.config.exchange.bucket_bytes, self.element)

    @property
    def _overlapped(self) -> int:
        """Of buckets: wires, and on the way through a node each rank's share, and a copy in equal
        shares of what has none."""
        crossing = self._crossing if self._is_lossy else ()
        # What was received last stays until the next is sent.
        own = sum(self._wire(*each, under_way=1) for each in crossing)
        if not self._through_nodes:
            return own
        group = self.ranks_per_node
        shares = sum(padded(elements, group) // group for elements in self._buckets)
        uneven = sum(padded(elements, group) for elements in self._buckets if elements % group)
        return own + (shares + uneven) * self.element

    @property
    def _arriving(self) -> int:
        """Beside the backward pass, at the most: what a node's ranks send this one, the sum of the
        largest bucket, and what wires receive in their second hop."""
        if self.config.exchange.traits.path is not Path.BUCKETS:
            return 0
        summed = max(self._buckets) // self.ranks_per_node
        in_node = (sum(self._buckets) + summed) * self.element if self._through_nodes else 0
        crossing = self._crossing if self._is_lossy else ()
        return in_node + sum(self._landing(*each) for each in crossing)

    @property
    def _is_lossy(self) -> bool:
        return self.config.exchange.compression != "none"

    @property
    def _exchanges(self) -> bool:
        """A node that steps on its own and averages with nobody does without an exchange."""
        exchange = self.config.exchange
        return self.nodes > 1 or exchange.has_outer or not exchange.traits.local_steps

    def _wire(
        self,
        elements: int,
        ranks: int,
        slots: int = 1,
        under_way: float = 0.0,
        feedback: bool = True,
    ) -> int:
        """A wire's buffers, what arrives for those parts that are under way between windows, and
        what a lossy one has not sent."""
        compression, s = self.config.exchange.compression, self.element
        if compression == "none" or ranks == 1:
            # The sum is kept, and beside movements what this rank has sent.
            return (1 if feedback else 2) * slots * elements * s
        unsent = elements * s if feedback else 0
        row = row_length(compression, elements, ranks)
        arriving = int(under_way * ranks * row)
        if ranks == 2:  # what is sent, what arrives, and room to write and read
            return slots * row + arriving + 2 * blocks_of(elements) * BLOCK * s + unsent
        room = piece_blocks(elements, ranks) * BLOCK * s
        # The same of all pieces. Of this rank's own: the mean as it is sent, the sum, what is added
        # to it, and what it has still to add.
        return slots * (ranks + 1) * row + arriving + (2 * ranks + 3) * room + unsent

    def _landing(self, elements: int, ranks: int) -> int:
        """What a lossy wire receives in its second hop, beside what came in the first."""
        if ranks <= 2:  # two ranks need one hop
            return 0
        return ranks * row_length(self.config.exchange.compression, elements, ranks)

    @property
    def training(self) -> int:
        batch = self.config.train.batch_size
        given = self._backbone, batch, self.half, self._adds
        micro_batch = self._micro_batch(*given, self._arriving)
        return max(micro_batch, self._meeting, self._sampling)

    @property
    def _pieces(self) -> int:
        """Of those that are picked at the start, the most: what is sure to be taken ends a run."""
        return max(self.config.exchange.pieces, self.config.exchange.most_pieces)

    @property
    def _sampling(self) -> int:
        """A sample of how stale a late exchange is, until the one before it is let go."""
        exchange = self.config.exchange
        if not (exchange.delay and self.config.staleness.sample_every):
            return 0
        if not (exchange.traits.late and self._exchanges):
            return 0
        return self.part // self._pieces * self.element

    @property
    def _meeting(self) -> int:
        """The node's reduce-scatter of the gradients, or what DDP's average of parameters makes."""
        exchange = self.config.exchange
        if exchange.traits.crosses is Crosses.VALUES and self.nodes * self.ranks_per_node > 1:
            return 2 * self.shared * self.element
        alone = self.chunk == self.shared or self.ranks_per_node == 1
        return 0 if alone else (self.shared + self.chunk) * self.element

    def _micro_batch(
        self, backbone: Activations, batch: int, half: bool, adds: bool, arriving: int = 0
    ) -> int:
        """Forward and backward pass of B images: the backbone's and the classifier's moments.

        `adds`: some add to the gradients of others. `arriving`: beside the backbone's way back,
        when gradients are averaged already.
        """
        scale = self.element // 4
        images = self.owners * batch
        found = backbone.of(batch)
        features = 3 * images * self.features * self.element
        most = max(self._classifier(images, half, each) for each in {False, adds})
        classifier = most + self._statistics(images) + features
        copies = 4 * backbone.largest * (1 if half or scale > 1 else WEIGHT_COPIES)
        return max(found.way_back * scale + copies + arriving, found.kept * scale + classifier)

    def _classifier(self, images: int, half: bool, adds: bool) -> int:
        """Of two passes over tiles: a tile's numbers, the slopes of features, where exponentials
        wait for the second pass, and the gradient that torch's DDP is given."""
        s, features = self.element, self.features
        product = 2 if half else s
        place = self._place(images, product, adds)
        weight = self.classes * features * s
        given = weight if self.config.exchange.is_torchs else 0
        kept = images * self.classes * product if place == "scratch" else 0
        tile = self._tile(images, product) * self._of_tile(images, product, place, adds)
        return tile + 4 * images * features * s + given + kept

    def _of_tile(self, images: int, product: int, place: str, adds: bool) -> int:
        """Of each of its classes: what the gradient's rows had, and the more of the two passes."""
        s, features = self.element, self.features
        half = product < s
        again, room = (
            images * product * (place == "again"),
            images * product * (place == "gradient"),
        )
        if self.cards and s == 4:
            logits = images * s + features * product * (half or self.margin) + again
            slopes = features * s * (self.margin or adds)
        else:
            # In half precision the products give what float32 is made of.
            logits = images * s + half * (images + features) * product
            slopes = half * features * product + features * s * (half or adds)
            slopes += features * s * self.margin
        return room + max(logits, slopes + (logits if again else 0))

    def _tile(self, images: int, product: int) -> int:
        """Classes of one; `product`: bytes of an element in products."""
        features = self.features
        size = tile_classes(images, features, self.element, product, self.cards)
        return min(size, self.classes)

    def _place(self, images: int, product: int, adds: bool) -> str:
        features, s = self.features, self.element
        return place(images, features, self.classes, product, s, adds, self.cards)

    @property
    def _places(self) -> list[str]:
        """Of the micro-batches of a window."""
        images = self.owners * self.config.train.batch_size
        product = 2 if self.half else self.element
        later = self.config.exchange.backward_passes_per_step - 1
        first = self._place(images, product, adds=False)
        return [first] + later * [self._place(images, product, self._adds)]

    @property
    def products(self) -> float:
        return PRODUCTS + self._places.count("again") / len(self._places)

    @property
    def exponentials(self) -> str:
        places, images = self._places, self.owners * self.config.train.batch_size
        wait = {
            "gradient": "wait in the gradient's own rows",
            "scratch": "wait in a tensor of their own",
            "again": "are computed twice, a fourth product beside three",
        }
        found = f"exponentials of {images:,} images x {self.classes:,} classes {wait[places[0]]}"
        if places[-1] == places[0]:
            return found
        return f"{found}; in later micro-batches of a window they {wait[places[-1]]}"

    @property
    def _adds(self) -> bool:
        """Micro-batches add to the gradients of others."""
        exchange = self.config.exchange
        each = exchange.traits.local_steps or exchange.is_torchs
        return exchange.backward_passes_per_step > 1 and not each

    def _statistics(self, images: int) -> int:
        gathered = self.owners if gathers_statistics(self.owners) else 1
        numbers = 3 + (self.config.classifier.label_smoothing > 0)
        return numbers * images * self.element * (1 + gathered)

    @property
    def _own_values(self) -> int:
        """What nodes that differ keep of their own while they hold the mean of all."""
        traits = self.config.exchange.traits
        whole = traits.local_steps and traits.is_torchs
        return whole * self.shared * self.element + self.own_on_host

    @property
    def own_on_host(self) -> int:
        traits = self.config.exchange.traits
        kept = traits.local_steps and traits.steps_chunks
        return self.part * self.element if kept else 0

    @property
    def evaluation(self) -> int:
        """A tile's logits of four batches, the weight as products take it, and what a slice finds,
        thrice: in one tile, of all tiles, and of all slices."""
        batch, s = self.config.train.batch_size, self.element
        met = MET_AT_ONCE * self.owners * batch
        width = self.features
        tile = self._tile(met, 2 if self.half else s)
        of_tile = tile * (met * s + (2 * met + 2 * width) * self.half)
        found = 3 * (2 * PREDICTED + 3) * met * 8
        features = 3 * met * width * s
        predicted = of_tile + found + features
        seen = self._backbone.of(batch).seen * (s // 4)
        # Autocast keeps all weights of the backbone in half precision.
        halves = 2 * self.anatomy.backbone_elements if self.half else 0
        return self._own_values + self.images + halves + max(predicted, seen)

    @property
    def estimate(self) -> int:
        """A copy of the values, and a gradient in the parameters' precision, in several runs."""
        runs = runs_of(self.config.train.precision)
        batch = -(-self.config.train.batch_size // runs)
        # Of several runs, and of two places.
        gradient = self._micro_batch(self._activations(half=False), batch, half=False, adds=True)
        return self._own_values + self.parameters + gradient

    @property
    def carried(self) -> int:
        """States that the exchange goes on from, for each element."""
        exchange = self.config.exchange
        loses = self._is_lossy or exchange.traits.crosses is Crosses.FACTORS
        return int(exchange.has_outer or (loses and exchange.traits.error_feedback))

    @property
    def saving(self) -> int:
        """In the host's memory: the whole node's states, and a copy of each file's content."""
        states = self.states + self.carried
        of_slice = self.classes * self.anatomy.per_class
        file = (1 + states) * max(self.anatomy.backbone_elements, of_slice)
        return states * self.parameters + (file + self._backbone.largest) * self.element

    @property
    def images(self) -> int:
        size, batch = self.config.data.image_size, self.config.train.batch_size
        return self.anatomy.channels * size**2 * batch * 4

    @property
    def checkpoint(self) -> int:
        whole = self.anatomy.backbone_elements + self.anatomy.classifier_elements
        return whole * self.element * (1 + self.states + self.carried)
