"""The command line of `harness evaluate`, which judges a trained model."""

import argparse
from typing import Any

from harness.arguments import add_command, path

ABOUT = (
    "Judge a trained model: top-1 and top-5 of known classes, pairs of unseen ones.\n\n"
    "CHECKPOINT is a checkpoint, or a run for its newest one. Without options it is the run's own "
    "validation that is repeated; data.KEY=VALUE changes where its images are."
)


def add_evaluate(commands: Any) -> None:
    """Adds the `evaluate` command to the parser."""
    parser = add_command(commands, "evaluate", ABOUT, "harness evaluate runs/mine --pairs lfw.txt")
    parser.add_argument("checkpoint", type=path, metavar="CHECKPOINT")
    parser.add_argument("arguments", nargs="*", metavar="data.KEY=VALUE")
    images = parser.add_mutually_exclusive_group()
    images.add_argument(
        "--pairs", type=path, metavar="FILE", help="lines of two image files, and 1 if they match"
    )
    images.add_argument(
        "--folder", type=path, metavar="DIR", help="a folder for each class, known or unseen"
    )
    parser.set_defaults(command=_evaluate)


def _evaluate(parsed: argparse.Namespace) -> int:
    # Imported here because torch takes seconds to import.
    from harness.evaluate.evaluate import evaluate_folder, evaluate_own, evaluate_pairs
    from harness.evaluate.trained import load_trained

    trained = load_trained(parsed.checkpoint, parsed.arguments)
    if parsed.pairs is not None:
        lines = evaluate_pairs(trained, parsed.pairs)
    elif parsed.folder is not None:
        lines = evaluate_folder(trained, parsed.folder)
    else:
        lines = evaluate_own(trained)
    for line in lines:
        print(line, flush=True)
    return 0
