"""The command line of `harness checkpoint`."""

import argparse
from typing import Any

from harness.arguments import add_command, path

ABOUT = "Show, verify or export what a run saved.\n\nFOLDER is a checkpoint, or a run with several."


def add_checkpoint(commands: Any) -> None:
    """`harness checkpoint show | verify | export`."""
    parser = add_command(commands, "checkpoint", ABOUT, "harness checkpoint show runs/mine")
    actions = parser.add_subparsers(required=True, metavar="COMMAND")
    show = actions.add_parser("show", help="list checkpoints, and what is in the newest")
    show.set_defaults(command=_show)
    verify = actions.add_parser(
        "verify", help="compare all files with their checksums; exit code 1 names the first bad one"
    )
    verify.set_defaults(command=_verify)
    export = actions.add_parser(
        "export", help="write the model into one safetensors file that plain torch can read"
    )
    export.add_argument("--output", type=path, required=True, help="file to write")
    export.set_defaults(command=_export)
    for action in (show, verify, export):
        action.add_argument("folder", type=path, metavar="FOLDER")


# Imported inside because torch takes seconds to import.


def _show(parsed: argparse.Namespace) -> int:
    from harness.checkpoint.show import show

    return show(parsed.folder)


def _verify(parsed: argparse.Namespace) -> int:
    from harness.checkpoint.verify import verify

    return verify(parsed.folder)


def _export(parsed: argparse.Namespace) -> int:
    from harness.checkpoint.export import export

    return export(parsed.folder, parsed.output)
