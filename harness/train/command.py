"""The command line of `harness train`: one rank of a training."""

import argparse
from typing import Any

from harness.arguments import Arguments, add_command, path
from harness.errors import UserError, alike_on_all_ranks
from harness.parallel.launcher import is_first

ABOUT = (
    "Run one training. Under horovodrun it runs on all ranks; `harness launch` starts it there.\n\n"
    "Settings of the experiment's file are changed by key=value."
)


def add_train(commands: Any) -> None:
    """`harness train`."""
    parser = add_command(
        commands,
        "train",
        ABOUT,
        "harness train experiments/glyphs/data_parallel.yaml train.steps=100",
    )
    parser.add_argument("arguments", nargs="*", metavar="EXPERIMENT.yaml|key=value")
    parser.add_argument("--folder", type=path, help="folder for this run's files")
    add_continue(parser)
    parser.set_defaults(command=_train)


def add_continue(parser: argparse.ArgumentParser) -> None:
    """The option --continue."""
    parser.add_argument(
        "--continue",
        dest="goes_on",
        action="store_true",
        help="if FOLDER holds this run, go on from its newest good checkpoint",
    )


def check_continue(parsed: argparse.Namespace) -> None:
    """Raises UserError if it is not known which run goes on."""
    if parsed.goes_on and parsed.folder is None:
        raise UserError("--continue goes on with the run of a folder; name it with --folder")


def _train(parsed: argparse.Namespace) -> int:
    from harness.config import load_with_notes

    with alike_on_all_ranks():
        given = Arguments.split(parsed.arguments)
        loaded = load_with_notes(given.only_experiment("train"), given.overrides)
        check_continue(parsed)
    # Imported here because torch and Horovod take seconds to import.
    from harness.train.run import run

    if is_first():
        for note in loaded.notes:
            print(f"harness: {note}", flush=True)
    run(loaded.config, parsed.folder, parsed.goes_on)
    return 0
