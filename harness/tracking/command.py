"""The command line of `harness ui`, which shows MLflow's pages of the recorded runs."""

import argparse
from typing import Any

from harness.arguments import add_command, count, text

PORT = 5000


def add_ui(commands: Any) -> None:
    """`harness ui`."""
    ui = add_command(
        commands,
        "ui",
        "Show MLflow's pages of the recorded runs.\n\n"
        "A store in a file is served; of a tracking server the address is printed.",
        "harness ui --study demo",
    )
    ui.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    ui.add_argument("--study", type=text, metavar="NAME", help="show the runs of this study")
    ui.add_argument(
        "--uri",
        type=text,
        help="MLflow store (default: MLFLOW_TRACKING_URI, else mlflow.db in this folder)",
    )
    ui.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve at; 0.0.0.0 lets other machines connect",
    )
    ui.add_argument(
        "--port",
        type=count(65_535),
        default=PORT,
        help="first port to try (default: 5000); the next free one is used",
    )
    ui.set_defaults(command=_ui)


def _ui(parsed: argparse.Namespace) -> int:
    from harness.errors import UserError
    from harness.tracking.ui import show

    if parsed.arguments:
        raise UserError(
            f"harness ui takes options only, found {parsed.arguments[0]}; see harness ui --help"
        )
    return show(parsed.uri, parsed.study, parsed.host, parsed.port)
