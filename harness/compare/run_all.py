"""Trains experiments in turn on the same hosts with the same seeds, and compares the results."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.compare.comparable import check_same_images
from harness.compare.conclude import conclude
from harness.config import Config, load
from harness.config.layers import override_of
from harness.errors import UserError
from harness.launch.environment import withheld
from harness.launch.hosts import hosts_or_local, parse_hosts, topology_of
from harness.launch.launch import Outcome
from harness.launch.supervisor import Policy, Training, supervise
from harness.parallel.topology import check_classes
from harness.paths import folder_name
from harness.tracking.address import store_uri
from harness.tracking.comparison_files import TABLE_FILE
from harness.tracking.connection import check_store
from harness.tracking.failure import Failure
from harness.tracking.folders import claim, now
from harness.tracking.prediction import Prediction
from harness.tracking.record import record_predictions
from harness.tracking.recorded import RecordedRun, environments_of, variants_of
from harness.tracking.results import Results, Terms
from harness.tracking.run_folder import RunFolder
from harness.tracking.study import predictions_of


@dataclass(frozen=True)
class Trial:
    """One training of a study."""

    experiment: Path
    config: Config
    overrides: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class Plan:
    """All trainings of a study, in the order in which they run."""

    study: str
    folder: Path
    ranks: int
    hosts: str
    variants: tuple[Config, ...]
    trials: tuple[Trial, ...]
    restarts: int = 0

    @property
    def seeds(self) -> int:
        return len(self.trials) // len(self.variants)

    def at(self, folder: Path) -> "Plan":
        """The same plan in another folder."""
        trials = (replace(trial, folder=folder / trial.folder.name) for trial in self.trials)
        return replace(self, folder=folder, trials=tuple(trials))


@dataclass(frozen=True)
class Experiments:
    """The experiments that a study compares, and how often each is trained."""

    paths: Sequence[Path]
    overrides: Sequence[str] = ()
    """`key=value`, for all of them."""
    seeds: int = 1
    """Trainings of each experiment, with consecutive seeds."""


@dataclass(frozen=True)
class Ranks:
    """The number of ranks of each training, and their hosts."""

    number: int
    hosts: str | None = None
    """As `--hosts` takes them; None: this machine."""
    restarts: int = 0
    """Times that a training that fails goes on, on the same ranks."""


def compare(
    experiments: Experiments,
    ranks: Ranks,
    study: str | None,
    terms: Terms,
    folder: Path | None,
    predictions: tuple[Prediction, ...] = (),
) -> int:
    """Runs and compares a whole study; returns the exit code.

    `folder` receives the runs' folders and the comparison's files. Raises UserError before the
    first run starts.
    """
    plan = make_plan(experiments, ranks, study, folder)
    terms.check([config.name for config in plan.variants])
    tracking = plan.variants[0].tracking
    if tracking.enabled:
        check_store(tracking)
    plan = plan.at(claim(folder, plan.folder).folder)
    _announce(plan)
    predictions, before_runs = _predictions(plan, predictions)
    runs, failures, code = _run_all(plan)
    results = Results(
        plan.study,
        variants_of(runs, planned=plan.variants),
        environments_of(runs),
        predictions,
        predicted_before=before_runs,
        # With one seed, or stopped early, there was no second pass in reverse order.
        in_turn=plan.seeds > 1 and len(runs) == len(plan.trials),
        failures=tuple(failures),
    )
    if any(variant.summaries for variant in results.variants):
        conclude(results, terms, plan.folder, tracking)
    return code


def make_plan(
    experiments: Experiments, ranks: Ranks, study: str | None, folder: Path | None
) -> Plan:
    """Reads and checks every experiment. Raises UserError if one of them cannot run."""
    paths, seeds, np = experiments.paths, experiments.seeds, ranks.number
    if not paths:
        raise UserError(
            "no experiment was given; name one or more EXPERIMENT.yaml, or reopen a recorded study "
            "with --from-study NAME"
        )
    if seeds < 1 or np < 1:
        raise UserError(f"found --seeds {seeds}, --np {np}; give at least one of each")
    configs = tuple(load(path, experiments.overrides) for path in paths)
    where = hosts_or_local(ranks.hosts, np)
    _check(configs, np, where)
    time = now()
    study = study or configs[0].tracking.study or f"study-{time}"
    place = (folder or Path(configs[0].tracking.folder) / folder_name(study) / time).absolute()
    if os.path.exists(place / TABLE_FILE):
        raise UserError(f"{place} already contains a comparison; give another --folder")
    trials = tuple(_trials(experiments, configs, study, place))
    return Plan(study, place, np, where, configs, trials, ranks.restarts)


def _trials(
    experiments: Experiments, configs: Sequence[Config], study: str, place: Path
) -> Iterator[Trial]:
    """The trainings in the order they run."""
    pairs = list(zip(experiments.paths, configs, strict=True))
    for number in range(experiments.seeds):
        seed = configs[0].seed + number
        # Every other seed runs in reverse order (A B C, C B A, ...), so that a machine that slows
        # down steadily slows all variants by the same amount.
        for path, config in pairs if number % 2 == 0 else reversed(pairs):
            own = (*experiments.overrides, f"seed={seed}", override_of("tracking.study", study))
            trial = place / f"{config.name}-s{seed}"
            if os.path.exists(trial):
                raise UserError(f"{trial} already exists; give another --folder")
            yield Trial(path, load(path, own), own, trial)


def _check(configs: Sequence[Config], np: int, hosts: str) -> None:
    names = [config.name for config in configs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two experiments are named {twice[0]}; give each a different `name`")
    topology = topology_of(parse_hosts(hosts, np), np)
    for config in configs:
        check_classes(topology, config.classifier.layout, config.data.num_classes)
        check_same_images(configs[0], config)


def _predictions(plan: Plan, given: tuple[Prediction, ...]) -> tuple[tuple[Prediction, ...], bool]:
    """The study's predictions, and whether all of them are known to precede its runs.

    Given predictions are stored with the study; without them, those that it already has are used.
    """
    tracking = plan.variants[0].tracking
    if not tracking.enabled:
        return given, bool(given)
    if given:
        record_predictions(tracking, plan.study, given)
    found, before = predictions_of(store_uri(tracking), plan.study, tracking.experiment)
    return given or found, before and given in ((), found)


def _announce(plan: Plan) -> None:
    variants, seeds = len(plan.variants), plan.seeds
    _print(
        f"study {plan.study}: {len(plan.trials)} run{'s' * (len(plan.trials) > 1)} "
        f"({variants} variant{'s' * (variants > 1)}, {seeds} seed{'s' * (seeds > 1)}) of "
        f"{plan.ranks} rank{'s' * (plan.ranks > 1)} on {plan.hosts}, into {plan.folder}"
    )
    lengths = {config.name: _length(config, plan.ranks) for config in plan.variants}
    if len(set(lengths.values())) > 1:
        each = ", ".join(f"{name} {length}" for name, length in lengths.items())
        _print(f"warning: the variants do not see the same number of images: {each}")
    for line in withheld(plan.variants[0]):
        _print(line)


def _length(config: Config, ranks: int) -> str:
    train = config.train
    if train.steps is None:
        return f"{train.epochs:g} epochs"
    images = train.steps * config.exchange.backward_passes_per_step * train.batch_size * ranks
    return f"{images:,} images"


def _run_all(plan: Plan) -> tuple[list[RecordedRun], list[Failure], int]:
    """Runs all trials; returns the runs, the failures among them, and the exit code."""
    runs: list[RecordedRun] = []
    failures: list[Failure] = []
    code = 0
    for number, trial in enumerate(plan.trials, start=1):
        _print(f"\n[{number}/{len(plan.trials)}] {trial.config.name}, seed {trial.config.seed}")
        outcome = _run(plan, trial)
        runs.append(_recorded(trial, outcome))
        if outcome.exit_code == 0:
            continue
        failures.append(Failure(config=trial.config, reason=outcome.reason))
        code = max(code, outcome.exit_code)
        if outcome.stopped or outcome.exit_code == 2:
            _print("the study stops here")
            break
    return runs, failures, code


def _recorded(trial: Trial, outcome: Outcome) -> RecordedRun:
    """The run as it would be read from a store, with the config that the run resolved."""
    files, ended_well = RunFolder(trial.folder), outcome.exit_code == 0
    return RecordedRun(
        files.mlflow_run_id or "",
        files.config or trial.config,
        "FINISHED" if ended_well else "KILLED" if outcome.stopped else "FAILED",
        files.read_summary() if ended_well else None,
        trial.folder,
        None if ended_well else outcome.reason,
    )


def _run(plan: Plan, trial: Trial) -> Outcome:
    given = trial.experiment, trial.overrides, trial.config, trial.folder
    log = plan.folder / f"{trial.folder.name}.log"
    policy = Policy(plan.restarts, same_ranks=True)
    try:
        outcome = supervise(Training(*given, plan.ranks, plan.hosts), policy, log)
    except UserError as error:  # those that have run already are worth a comparison
        outcome = Outcome(2, f"harness: {error}", log, stopped=False)
    if outcome.exit_code:
        _print(outcome.reason)
        _print(f"output of all ranks: {outcome.log}")
    return outcome


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
