"""Memory of what happens at the mean of all nodes: evaluations and curvature estimates."""

from harness.doctor.need.classifier import ClassifierScratch
from harness.doctor.need.micro_batch import micro_batch_bytes
from harness.doctor.need.sizes import Sizes
from harness.train.evaluation import MET_AT_ONCE
from harness.train.stability import dynamics_of, runs_of


def own_on_host(sizes: Sizes) -> int:
    """Bytes of a node's own values, kept in host memory while it holds the mean of all nodes."""
    traits = sizes.config.exchange.traits
    kept = traits.local_steps and traits.steps_chunks
    return sizes.part * sizes.element_bytes if kept else 0


def _own_values(sizes: Sizes) -> int:
    """The same wherever they are kept."""
    traits = sizes.config.exchange.traits
    whole = traits.local_steps and traits.is_torchs
    return whole * sizes.shared * sizes.element_bytes + own_on_host(sizes)


def evaluation_bytes(sizes: Sizes) -> int:
    """Peak of an evaluation: in the backbone, or in the predictions of several batches at once."""
    batch, s = sizes.config.train.batch_size, sizes.element_bytes
    met = MET_AT_ONCE * sizes.owners * batch
    predicted = ClassifierScratch(sizes, met, sizes.product_bytes).evaluation
    larger = sizes.activations(sizes.half, sizes.config.data.size_in_validation)
    seen = larger.of(batch).seen * (s // 4)
    # Autocast keeps a copy in half precision of every weight that is trained.
    halves = 2 * sizes.anatomy.backbone_elements if sizes.half else 0
    return _own_values(sizes) + sizes.validated + halves + max(predicted, seen)


def makes_estimates(sizes: Sizes) -> bool:
    """Whether the run estimates the curvature."""
    config, settings = sizes.config, sizes.config.staleness
    settled = max(config.optimizer.warmup_windows, config.exchange.synchronous_windows)
    late = dynamics_of(config, settled, sizes.nodes)
    once = settings.curvature_after_warmup and late is not None and late.delay > 0
    return once or settings.curvature_every > 0


def estimate_bytes(sizes: Sizes) -> int:
    """Peak of a curvature estimate: a copy of the values, and a gradient in the precision of the
    parameters, computed in several runs."""
    runs = runs_of(sizes.config.train.precision)
    batch = -(-sizes.config.train.batch_size // runs)
    # Gradients of several runs, and at two points, are added up.
    gradient = micro_batch_bytes(sizes, sizes.activations(half=False), batch, adds=True)
    return _own_values(sizes) + sizes.parameters + gradient
