"""The command line of `harness plan`: predicts experiments and their alternatives on a cluster."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.arguments import MOST_RANKS, Arguments, add_command, count, path, positive, text
from harness.calibrate.command import add_seconds
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.config import Config
    from harness.plan.failures import Failures
    from harness.plan.machines import Cluster
    from harness.tracking.prediction import Prediction


MOST_WINDOWS = 100_000
MOST_HOURS = 1e6
"""Longer than machines last; seconds, too."""


def add_plan(commands: Any) -> None:
    """Adds the `plan` command to the parser."""
    parser = add_command(
        commands,
        "plan",
        "Predict speed, waits, memory and bytes of a run.\n\n"
        "It also ranks the other ways to run the experiment there. The figures of the machines "
        "come from a file, from harness doctor, or from a measurement.",
        "harness plan experiments/glyphs/hybrid_averaging.yaml "
        "--cluster experiments/clusters/h100-400g.yaml",
    )
    parser.add_argument("arguments", nargs="+", metavar="EXPERIMENT.yaml|key=value")
    _add_machines(parser)
    parser.add_argument(
        "--simulate",
        type=count(MOST_WINDOWS),
        default=0,
        metavar="WINDOWS",
        help="number of windows to simulate on nodes that vary",
    )
    parser.add_argument(
        "--all", action="store_true", help="show every way of training, not only the strongest"
    )
    _add_failures(parser)
    parser.add_argument("--output", type=path, help="JSON file for the experiments' predictions")
    parser.add_argument(
        "--study", type=text, help="log the predictions to MLflow for compare --study of this name"
    )
    parser.set_defaults(command=_plan)


def _add_failures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hours-between-failures",
        type=positive(MOST_HOURS),
        metavar="H",
        help="mean time between failures of the whole run: adds how often to save",
    )
    parser.add_argument(
        "--save-seconds",
        type=positive(MOST_HOURS),
        metavar="S",
        help="time that training stands still for a checkpoint (default: 1)",
    )
    parser.add_argument(
        "--restart-seconds",
        type=positive(MOST_HOURS),
        metavar="S",
        help="time from a failure until training goes on (default: 60)",
    )


def _add_machines(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cluster", type=path, help="file with a cluster's figures, as in experiments/clusters/"
    )
    parser.add_argument("--doctor", type=path, help="file with the output of harness doctor --json")
    parser.add_argument("--hosts", "-H", help="hosts to measure now: host:slots,host:slots")
    parser.add_argument(
        "--np", "-np", type=count(MOST_RANKS), default=0, help="number of ranks to measure with"
    )
    parser.add_argument(
        "--calibrate", type=path, metavar="OUT.yaml", help="save the measured figures"
    )
    add_seconds(parser)
    parser.add_argument(
        "--nodes",
        type=count(MOST_RANKS),
        help="number of machines to predict for (default: the cluster's)",
    )
    parser.add_argument(
        "--ranks-per-node",
        type=count(MOST_RANKS),
        help="number of ranks on each machine (default: the cluster's)",
    )


def _plan(parsed: argparse.Namespace) -> int:
    from harness.config import load, study_name
    from harness.plan.cost_model import predict
    from harness.plan.failures import advice
    from harness.plan.from_calibration import CalibrationFailed
    from harness.tracking.prediction import write_predictions
    from harness.tracking.record import record_predictions

    given = Arguments.split(parsed.arguments)
    experiments, overrides = given.experiments, given.overrides
    if not experiments:
        raise UserError(f"no experiment among {' '.join(parsed.arguments)}; name a YAML file")
    configs = [load(each, overrides) for each in experiments]
    for config in configs:
        _ = config.exchange.chosen_kind  # refuses kind=auto now, and not after minutes of measuring
    study = study_name(parsed.study) if parsed.study else None
    failures = _failures(parsed)
    for file in (parsed.output, parsed.calibrate):
        _require_writable(file)
    try:
        cluster = _cluster(parsed, experiments[0], overrides)
    except CalibrationFailed as error:
        print(f"harness: {error}", file=sys.stderr, flush=True)
        return 1
    predictions = [predict(cluster, config) for config in configs]
    simulated = [_simulated(cluster, each, parsed.simulate) for each in configs if parsed.simulate]
    _show_plan(cluster, configs, predictions, simulated, parsed.all)
    if failures:
        for each in predictions:
            lines = advice(failures, each.step_ms / 1e3)
            _show([f"how often {each.variant} should save: {lines[0]}", *lines[1:]])
    if parsed.output:
        write_predictions(predictions, parsed.output)
    if study:
        record_predictions(configs[0].tracking, study, predictions)
        print(
            f"predictions are logged for harness compare --study {shlex.quote(study)}", flush=True
        )
    return 0


def _show_plan(
    cluster: "Cluster",
    configs: Sequence["Config"],
    predictions: Sequence["Prediction"],
    simulated: list[str],
    whole: bool,
) -> None:
    """Prints the whole page. Other ways are predicted of the first experiment; `whole`: all of them
    are shown."""
    from harness.plan import text as plan_text
    from harness.plan.ladder import ladder_lines
    from harness.plan.ways import all_ways

    config = configs[0]
    ways = all_ways(config, cluster)
    first = [*plan_text.cluster_lines(cluster), *plan_text.defaults_line(cluster)]
    _show([*first, *plan_text.differences(cluster, configs)])
    _show(plan_text.experiments_table(predictions))
    if simulated:
        _show(simulated)
    _show(plan_text.ways_table(ways, cluster, whole))
    _show(plan_text.advice(ways, cluster))
    _show(ladder_lines(config, cluster))
    _show(plan_text.break_even(cluster, config))


def _failures(parsed: argparse.Namespace) -> "Failures | None":
    """What failures cost, if their rate is given."""
    from harness.plan.failures import Failures

    hours = parsed.hours_between_failures
    if hours is not None:
        return Failures(3600 * hours, parsed.save_seconds or 1.0, parsed.restart_seconds or 60.0)
    if parsed.save_seconds or parsed.restart_seconds:
        raise UserError("--save-seconds and --restart-seconds need --hours-between-failures H")
    return None


def _require_writable(file: Path | None) -> None:
    """Raises UserError if `file` cannot be written; called before minutes of measuring."""
    if file is None:
        return
    place = file if os.path.exists(file) else file.absolute().parent
    if os.path.isdir(file) or not os.access(place, os.W_OK, effective_ids=True):
        raise UserError(
            f"cannot write {file}; give a new file in an existing, writable folder, or one that "
            f"may be written"
        )


def _cluster(parsed: argparse.Namespace, experiment: Path, overrides: Sequence[str]) -> "Cluster":
    from harness.plan.from_doctor import cluster_of_doctor
    from harness.plan.machines import read_cluster

    measures = bool(parsed.hosts or parsed.np)
    if [bool(parsed.cluster), bool(parsed.doctor), measures].count(True) != 1:
        raise UserError(
            "give exactly one of --cluster FILE.yaml, --doctor FILE.json, and --hosts or --np to "
            "measure"
        )
    if parsed.calibrate and not measures:
        raise UserError(
            "--calibrate saves what --hosts measures, but no hosts are given; add --hosts or leave "
            "out --calibrate"
        )
    if parsed.cluster:
        cluster = read_cluster(parsed.cluster)
    elif parsed.doctor:
        cluster = cluster_of_doctor(parsed.doctor)
    else:
        cluster = _measured(parsed, experiment, overrides)
    nodes = parsed.nodes or cluster.nodes
    if nodes > 1 and not cluster.link_known:
        raise UserError(
            f"the figures of {cluster.name} come from one machine: no link between machines was "
            f"measured, so {nodes} cannot be predicted; measure on two, or leave out --nodes"
        )
    return cluster.on(nodes, parsed.ranks_per_node or cluster.ranks_per_node)


def _measured(parsed: argparse.Namespace, experiment: Path, overrides: Sequence[str]) -> "Cluster":
    from harness.plan.from_calibration import calibrate, cluster_from

    found = calibrate(experiment, overrides, parsed.np, parsed.hosts, parsed.seconds)
    cluster = cluster_from(found, name=parsed.calibrate.stem if parsed.calibrate else "measured")
    if parsed.calibrate:
        cluster.write(parsed.calibrate)
    return cluster


def _simulated(cluster: "Cluster", config: "Config", windows: int) -> str:
    from harness.plan.cost_model import with_chosen_pieces
    from harness.plan.simulate import simulate
    from harness.plan.workload import workload_of

    where = cluster.nodes, cluster.ranks_per_node
    work = workload_of(with_chosen_pieces(cluster, config, *where), *where, cluster.on_cards)
    found = simulate(cluster, work, windows, config.seed)
    step = found.step_seconds
    return (
        f"{config.name}, simulated over {windows} windows: {step * 1e3:.1f} ms per window, "
        f"{work.images / step:,.0f} images/s, {found.wait_seconds / step:.1%} waiting for other "
        f"nodes, longest window {found.slowest_seconds * 1e3:.1f} ms"
    )


def _show(lines: list[str]) -> None:
    print("\n".join(lines), end="\n\n", flush=True)
