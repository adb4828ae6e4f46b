"""The command line of plan: predicts experiments, and all other ways, on a cluster."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError

if TYPE_CHECKING:
    from harness.config import Config
    from harness.study.cluster import Cluster


def add_plan(commands: Any) -> None:
    """`harness plan`."""
    parser = commands.add_parser("plan", help="predicts speed, waits, memory and bytes of a run")
    parser.add_argument("arguments", nargs="+", metavar="EXPERIMENT.yaml|key=value")
    parser.add_argument("--cluster", type=Path, help="figures of a cluster: experiments/clusters/")
    parser.add_argument("--doctor", type=Path, help="what harness doctor --json printed")
    parser.add_argument("--hosts", "-H", help="measure these now: host:slots,host:slots")
    parser.add_argument("--np", "-np", type=int, default=0, help="ranks to measure with")
    parser.add_argument("--calibrate", type=Path, metavar="OUT.yaml", help="keep what was measured")
    parser.add_argument("--seconds", type=float, default=0.6, help="for each of the timings")
    parser.add_argument("--nodes", type=int, help="predict for so many machines")
    parser.add_argument("--ranks-per-node", type=int, help="of so many ranks")
    parser.add_argument("--simulate", type=int, default=0, metavar="WINDOWS", help="with jitter")
    parser.add_argument("--output", type=Path, help="predictions of the experiments, JSON")
    parser.add_argument("--study", help="keep them in MLflow for compare --study of this name")
    parser.set_defaults(command=_plan)


def _plan(parsed: argparse.Namespace) -> int:
    from harness.config import load
    from harness.study import plan_text
    from harness.study.calibration import CalibrationFailed
    from harness.study.cost_model import predict
    from harness.study.plan import all_ways
    from harness.study.prediction import write_predictions
    from harness.study.record import record_predictions

    overrides = [argument for argument in parsed.arguments if "=" in argument]
    experiments = [Path(argument) for argument in parsed.arguments if "=" not in argument]
    if not experiments:
        raise UserError("harness plan predicts experiments; name a YAML file")
    configs = [load(each, overrides) for each in experiments]
    try:
        cluster = _cluster(parsed, experiments[0], overrides)
    except CalibrationFailed as error:
        print(f"harness: {error}", file=sys.stderr, flush=True)
        return 1
    predictions = [predict(cluster, config) for config in configs]
    simulated = []
    if parsed.simulate:
        simulated = [_simulated(cluster, config, parsed.simulate) for config in configs]
    ways = all_ways(configs[0], cluster)
    _show([plan_text.cluster_line(cluster), *plan_text.defaults_line(cluster)])
    _show(plan_text.of_experiments(predictions))
    if simulated:
        _show(simulated)
    _show(plan_text.of_ways(ways))
    _show(plan_text.verdict(ways, cluster))
    _show(plan_text.break_even(cluster, configs[0]))
    if parsed.output:
        write_predictions(predictions, parsed.output)
    if parsed.study:
        record_predictions(configs[0], parsed.study, predictions)
        print(f"predictions are kept for harness compare --study {parsed.study}", flush=True)
    return 0


def _cluster(parsed: argparse.Namespace, experiment: Path, overrides: list[str]) -> "Cluster":
    from harness.study.cluster import read_cluster
    from harness.study.doctor_figures import cluster_of_doctor

    measures = bool(parsed.hosts or parsed.np)
    if [bool(parsed.cluster), bool(parsed.doctor), measures].count(True) != 1:
        raise UserError("say where: --cluster FILE.yaml, --doctor FILE.json, or --hosts to measure")
    if parsed.calibrate and not measures:
        raise UserError("--calibrate keeps what --hosts measures; name hosts, or leave it out")
    if parsed.cluster:
        cluster = read_cluster(parsed.cluster)
    elif parsed.doctor:
        cluster = cluster_of_doctor(parsed.doctor)
    else:
        cluster = _measured(parsed, experiment, overrides)
    for name, value in (("--nodes", parsed.nodes), ("--ranks-per-node", parsed.ranks_per_node)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value} is no number of them; give 1 or more")
    nodes = parsed.nodes or cluster.nodes
    if nodes > 1 and not cluster.link_known:
        raise UserError(
            f"the figures of {cluster.name} are of one machine: no link between machines was "
            f"measured, and nothing is known of {nodes}; measure on two, or leave --nodes out"
        )
    return cluster.on(nodes, parsed.ranks_per_node or cluster.ranks_per_node)


def _measured(parsed: argparse.Namespace, experiment: Path, overrides: list[str]) -> "Cluster":
    from harness.study.calibration import calibrate, cluster_from

    found = calibrate(experiment, overrides, parsed.np, parsed.hosts, parsed.seconds)
    cluster = cluster_from(found, name=parsed.calibrate.stem if parsed.calibrate else "measured")
    if parsed.calibrate:
        cluster.write(parsed.calibrate)
    return cluster


def _simulated(cluster: "Cluster", config: "Config", windows: int) -> str:
    from harness.study.cost_model import paced
    from harness.study.simulate import simulate
    from harness.study.workload import workload_of

    where = cluster.nodes, cluster.ranks_per_node
    work = workload_of(paced(cluster, config, *where), *where)
    found = simulate(cluster, work, windows, config.seed)
    step = found.step_seconds
    return (
        f"{config.name}, simulated over {windows} windows: {step * 1e3:.1f} ms a window, "
        f"{work.images / step:,.0f} images/s, {found.wait_seconds / step:.1%} waiting for other "
        f"nodes, the longest window {found.slowest_seconds * 1e3:.1f} ms"
    )


def _show(lines: list[str]) -> None:
    print("\n".join(lines), end="\n\n", flush=True)
