"""The command line of `harness train`: one rank of a training."""

import argparse
from typing import Any

from harness.arguments import Arguments, add_command, add_continue, check_continue, path
from harness.errors import alike_on_all_ranks
from harness.parallel.launcher import is_first
from harness.train.early_end import EarlyEnd

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


def _train(parsed: argparse.Namespace) -> int:
    # From the beginning: while torch and Horovod are imported, a request would end the process.
    with EarlyEnd().listening() as early_end:
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
        run(loaded.config, parsed.folder, parsed.goes_on, early_end)
    return 0
