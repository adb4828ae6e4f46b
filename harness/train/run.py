"""One run from its config to its summary: checks, world, tracking, training, final status."""

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import fmean
from types import FrameType

import torch

from harness.config import Config
from harness.data.images import Dataset
from harness.data.open import open_dataset
from harness.data.shares import BatchSplit
from harness.data.skipped import skipped_pictures
from harness.data.verify import verify
from harness.doctor.agreement import agree_on_data, agree_on_settings
from harness.doctor.before_training import check_before_training
from harness.doctor.compute import measure_speed
from harness.errors import Diverged, UserError
from harness.measure.clock import clock_for
from harness.measure.machine import environment
from harness.measure.summary import DIVERGED_TAG, RESTARTS_TAG, UNDISTURBED, RunSummary
from harness.measure.traffic import Traffic
from harness.measure.utilisation import Capacity
from harness.model.anatomy import DTYPES
from harness.parallel.cores import Cores, cores_of
from harness.parallel.group import Meters
from harness.parallel.order import Order
from harness.parallel.pulse import Pulse, open_pulse
from harness.parallel.ranks import launched_topology, open_ranks
from harness.parallel.topology import Topology, check_classes
from harness.parallel.world import World, choose_device, link
from harness.signals import handled, unless_ignored
from harness.tracing.gather import check_trace
from harness.tracing.horovod_timeline import allow_timeline
from harness.tracking.connection import Status, check_store
from harness.tracking.ended import check_alike
from harness.tracking.folders import Claim, check_free, claim, now
from harness.tracking.node_gauges import monitor_node
from harness.tracking.only_one import only_one
from harness.tracking.tracker import Tracker
from harness.train.checkpoint.places import Places, find_places
from harness.train.choose_kind import choose_kind
from harness.train.choose_pieces import choose_pieces
from harness.train.early_end import EarlyEnd, EndedEarly
from harness.train.going_on import (
    Place,
    Start,
    began_on,
    begin_again,
    choose_start,
    chosen_before,
    condemn,
    ended_on_first,
)
from harness.train.pretrained import agree_on_weights, check_weights
from harness.train.routing import choose_route
from harness.train.run_journal import OtherRank, RunJournal
from harness.train.step import make_step
from harness.train.training import Training


class Stopped(KeyboardInterrupt):
    """Raised when SIGTERM or SIGHUP arrives; ends a run as Ctrl-C does."""


def run(
    config: Config,
    folder: Path | None = None,
    goes_on: bool = False,
    early_end: EarlyEnd | None = None,
) -> RunSummary:
    """Trains as `config` describes; leaves config, metrics and summary in the run's folder.

    If the folder holds this run and it `goes_on`, it does so from its newest good checkpoint, in
    the same files and the same run in MLflow; if nothing of it is left to do, only its summary is
    returned. `early_end`: a request to end. Raises UserError for mistakes that the user can fix, on
    every rank and before anything is written.
    """
    topology = launched_topology()
    dataset, problem, place = None, None, Place(folder, goes_on)
    try:
        dataset = _prepare(config, topology, place)
    except UserError as error:
        problem = error
    if config.trace.horovod_timeline:
        allow_timeline()
    with open_ranks(topology) as ranks:
        agree_on_settings(config, ranks)
        ranks.raise_together(problem)
        assert dataset is not None
        if (summary := ended_on_first(config, place, ranks)) is not None:
            return summary
        agree_on_data(dataset, ranks)
        start = choose_start(config, place, ranks)
        if start.chosen is None:  # a checkpoint has all values, and the weights may be gone
            agree_on_weights(config, ranks)
        device, warning = choose_device(config.train.device, ranks, began_on(start.place, ranks))
        if warning and ranks.is_first:
            print(f"warning: {warning}", file=sys.stderr, flush=True)
        with (
            open_pulse(config.train.stuck_seconds) as pulse,
            link(ranks, device, _meters(config, device, pulse)) as links,
        ):
            world = links.world(config.classifier.layout)
            return _run(start.given(config), dataset, world, start, early_end or EarlyEnd())


def _run(
    config: Config, dataset: Dataset, world: World, start: Start, early_end: EarlyEnd
) -> RunSummary:
    """The rest of `run`, once all ranks have agreed on settings, data and the checkpoint.
    Collective over the world."""
    check_before_training(config, world, start.place.folder)
    cores = cores_of(world)
    torch.set_num_threads(cores.threads(config.train.threads))
    notes = (*dataset.notes, *verify(dataset, world, config.data))
    with _own_folder(config, start.place, world) as own:
        places = _places(config, own, world, start.place.goes_on)
        capacity = _capacity(config, world, cores)
        config = _with_choices(config, dataset, world, start)
        with world.together():
            step = make_step(config, dataset, world, goes_on=start.own is not None)
        training = Training(step, own, capacity, places, early_end)
        if world.is_first and step.model.begun.fit:
            print(step.model.begun.fit.line, file=sys.stderr, flush=True)
        with _journal(config, own, world, start) as journal:
            if notes:
                journal.warn("data", "; ".join(notes))
            if start.chosen and start.chosen.note:
                journal.warn("resume_choice", start.chosen.note)
            if places.note:
                journal.warn("folders", places.note)
            journal.name_classes(dataset.class_names)
            summary = training.run(journal, journal.provenance)
            if config.data.on_corrupt == "skip":
                journal.report_skipped(skipped_pictures(dataset, world))
            journal.conclude(summary)
            training.check_saved()
            if summary.diverged:
                raise Diverged(summary.diverged, "lower optimizer.lr, or train for fewer windows")
            return summary


def _with_choices(config: Config, dataset: Dataset, world: World, start: Start) -> Config:
    """The config with all that a run chooses by measuring, once for all its restarts on as many
    ranks. Collective over the world."""
    if (exchange := chosen_before(start, world)) is not None:
        return config.model_copy(update={"exchange": exchange})
    config = choose_kind(config, dataset, world)
    return choose_route(choose_pieces(config, dataset, world), dataset, world)


def _meters(config: Config, device: torch.device, pulse: Pulse) -> Meters:
    order = Order(pulse.collective) if config.train.check_collectives else None
    return Meters(clock_for(device, pulse.show), Traffic(), pulse, order)


def _prepare(config: Config, topology: Topology, place: Place) -> Dataset:
    """Opens the images. Raises UserError for all mistakes that can be found before
    communicating."""
    check_classes(topology, config.classifier.layout, config.data.num_classes)
    check_trace(config.trace, topology.world_size)
    if topology.rank == 0 and place.folder is not None:
        if place.holds_run:
            check_alike(config, place.folder)
        else:
            check_free(place.folder)
    if topology.rank == 0 and config.tracking.enabled and not place.holds_run:
        check_store(config.tracking)
    dataset = open_dataset(config.data)
    share = (config.train.batch_size, topology.rank, topology.world_size, config.seed)
    BatchSplit(len(dataset.train), *share)
    if config.train.resume is None and not place.holds_run:
        check_weights(config, dataset)
    return dataset


def _capacity(config: Config, world: World, cores: Cores) -> Capacity:
    """What this rank's processor can do. Collective over the world."""
    return Capacity(
        matmul_flop_per_second=_matmul_speed(config, world.device, world),
        cores=0.0 if world.device.type == "cuda" else min(torch.get_num_threads(), cores.own),
    )


def _matmul_speed(config: Config, device: torch.device, world: World) -> float:
    """FLOP/s of a plain matrix product in the run's precision, while all ranks do one.

    On CPUs the result is the mean over a machine's ranks, because which rank gets which part of the
    shared cores within seconds is chance. Collective over the world.
    """
    seconds = config.train.matmul_seconds
    if not seconds:
        return 0.0
    dtype = torch.bfloat16 if config.train.precision == "bf16" else DTYPES[config.train.precision]
    machines = world.machines()  # a collective: all ranks start together
    own = measure_speed(device, seconds, dtype).flop_per_second
    speeds = world.gather_objects(own, "matmul")
    here = machines[world.topology.rank]
    return (
        own
        if device.type == "cuda"
        else fmean(
            speed for machine, speed in zip(machines, speeds, strict=True) if machine == here
        )
    )


def _places(config: Config, folder: Path, world: World, goes_on: bool) -> Places:
    """Where checkpoints go, if the run saves any. Collective over the world."""
    if not config.train.saves:
        return Places.shared(world.topology.world_size)
    return find_places(folder, world, goes_on)


@contextmanager
def _own_folder(config: Config, place: Place, world: World) -> Iterator[Path]:
    """The run's folder, which rank 0 makes and names; other hosts may have one of their own under
    the same name. Only one process at a time is the first rank of a run there. After an error an
    empty folder is removed.

    Collective over the world.
    """
    name = f"{config.name}-s{config.seed}-{now()}"
    own, given, lock = None, place.folder, ExitStack()
    with world.together():
        if world.is_first:
            held = Claim(given.absolute()) if place.goes_on and given else None
            own = held or claim(given, Path(config.tracking.folder) / name)
            lock.enter_context(only_one(own.folder))
    name = world.broadcast(own.folder.name if own else None, "folder")
    folder = (given or Path(config.tracking.folder) / name).absolute()
    try:
        with lock:
            yield folder
    except BaseException:
        (own or Claim(folder, (folder,))).give_back()
        raise


@contextmanager
def _journal(
    config: Config, folder: Path, world: World, start: Start
) -> Iterator[RunJournal | OtherRank]:
    """Opens tracking on rank 0 and each node's gauges, and records how the run ended."""
    tracker, commit, hosts, restarts = Tracker.silent(), None, world.hosts(), UNDISTURBED
    with world.together():
        if world.is_first:
            facts = environment(world.horovod_build()) | {"hosts": hosts}
            facts |= {"ranks": world.topology.world_size, "device": world.device.type}
            commit = facts["git_commit"]
            if start.place.goes_on:
                tracker = Tracker.go_on(config, folder, facts, start.window)
                restarts = begin_again(folder, start.own, world.topology.world_size)
                tracker.tag(RESTARTS_TAG, str(restarts.number))
            else:
                tracker = Tracker.start(config, folder, facts)
    run_id = world.broadcast(tracker.run_id, "run id")
    watches = world.topology.local_rank == 0
    gauges = monitor_node(config, run_id, world.topology.node) if watches else nullcontext()
    status: Status = "FAILED"
    first = world.is_first
    journal = RunJournal(folder, tracker, commit, restarts) if first else OtherRank()
    try:
        with _stop_signals(), gauges:
            yield journal
        status = "FINISHED"
    except (KeyboardInterrupt, EndedEarly):
        status = "KILLED"
        raise
    except Diverged as error:
        tracker.tag(DIVERGED_TAG, error.found)
        if line := condemn(start.own, error, leads=watches):
            journal.warn("bad_checkpoint", line)
        raise
    finally:
        journal.close()
        tracker.finish(status)


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Inside the block SIGTERM, which horovodrun sends to end a run, raises, so that tracking
    records it. So does SIGHUP, which a closed terminal sends, unless it is ignored, as under
    nohup."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(number).name)

    with handled([signal.SIGTERM, *unless_ignored(signal.SIGHUP)], stop):
        yield
