"""The command line of `harness compare`: runs experiments, or reopens a recorded study."""

import argparse
from typing import Any

from harness.arguments import MOST_RANKS, MOST_SEEDS, Arguments, add_command, count, path, text
from harness.errors import UserError
from harness.launch.command import add_restarts

RUNNING = ("np", "hosts", "seeds", "study", "restarts")
"""Options that only apply if experiments are run."""
READING = ("uri", "experiment", "no_record")
"""Options that only apply if a recorded study is read."""


def add_compare(commands: Any) -> None:
    """Adds the `compare` command to the parser."""
    compare = add_command(
        commands,
        "compare",
        "Compare experiments, or a recorded study.\n\n"
        "All experiments are trained in turn with the same seeds. Table, verdict, chart and report "
        "follow.",
        "harness compare experiments/lab/data_parallel.yaml experiments/lab/hybrid_averaging.yaml "
        "--seeds 3",
    )
    _add_runs(compare)
    _add_recorded(compare)
    _add_terms(compare)
    compare.set_defaults(command=_compare)


def _add_runs(compare: argparse.ArgumentParser) -> None:
    compare.add_argument("arguments", nargs="*", metavar="EXPERIMENT.yaml|key=value")
    compare.add_argument(
        "--np", "-np", type=count(MOST_RANKS), help="number of ranks (default: one per slot)"
    )
    compare.add_argument(
        "--hosts", "-H", help="host:slots,host:slots (default: this machine alone)"
    )
    compare.add_argument(
        "--seeds",
        type=count(MOST_SEEDS),
        help="number of seeds per variant (default: 1); a verdict needs at least 3",
    )
    add_restarts(compare)
    compare.add_argument("--study", type=text, help="tag that joins the runs in MLflow")


def _add_recorded(compare: argparse.ArgumentParser) -> None:
    compare.add_argument(
        "--from-study",
        type=text,
        metavar="NAME",
        help="reopen a recorded study instead of running experiments",
    )
    compare.add_argument(
        "--uri", type=text, help="MLflow store to read from (default: as for tracking.uri)"
    )
    compare.add_argument(
        "--experiment", type=text, metavar="NAME", help="MLflow experiment to read from"
    )
    compare.add_argument(
        "--no-record", action="store_true", help="do not log the comparison to MLflow"
    )


def _add_terms(compare: argparse.ArgumentParser) -> None:
    compare.add_argument(
        "--target",
        type=float,
        help="target accuracy from 0 to 1 (default: the baseline's final accuracy less 0.01)",
    )
    compare.add_argument(
        "--baseline",
        type=text,
        metavar="NAME",
        help="variant to compare with (default: the first replicated, synchronous one)",
    )
    compare.add_argument(
        "--predictions",
        type=path,
        metavar="FILE",
        help="predictions from `harness plan --output`, to score",
    )
    compare.add_argument(
        "--folder", type=path, help="output folder for runs, table, chart and report"
    )


def _compare(parsed: argparse.Namespace) -> int:
    _check(parsed)
    # Imported here because pandas and matplotlib take seconds to import.
    from harness.tracking.prediction import read_predictions
    from harness.tracking.results import Terms

    terms = Terms(parsed.target, parsed.baseline)
    predictions = read_predictions(parsed.predictions) if parsed.predictions else ()
    if parsed.from_study is not None:
        from harness.compare.from_store import Source, reopen

        source = Source(parsed.from_study, parsed.uri, parsed.experiment)
        return reopen(source, terms, predictions, parsed.folder, not parsed.no_record)
    from harness.compare.run_all import Experiments, Ranks, compare
    from harness.config import study_name
    from harness.launch.hosts import slots_of

    given = Arguments.split(parsed.arguments)
    seeds = 1 if parsed.seeds is None else parsed.seeds
    return compare(
        Experiments(given.experiments, given.overrides, seeds),
        Ranks(parsed.np or slots_of(parsed.hosts), parsed.hosts, parsed.restarts or 0),
        study=study_name(parsed.study) if parsed.study else None,
        terms=terms,
        folder=parsed.folder,
        predictions=predictions,
    )


def _check(parsed: argparse.Namespace) -> None:
    reads = parsed.from_study is not None
    if reads and parsed.arguments:
        raise UserError(
            f"--from-study {parsed.from_study} runs no experiments, found {parsed.arguments[0]}; "
            f"give either experiments or --from-study"
        )
    foreign = [
        name
        for name in (RUNNING if reads else READING)
        if getattr(parsed, name) not in (None, False)
    ]
    if foreign:
        option = foreign[0].replace("_", "-")
        other = "leave it out" if reads else "add --from-study NAME"
        raise UserError(
            f"--{option} applies only to {'new runs' if reads else 'a recorded study'}; {other}"
        )
