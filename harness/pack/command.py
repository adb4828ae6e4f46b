"""The command line of `harness pack`, which packs an image folder into a few files."""

import argparse
import os
from pathlib import Path
from typing import Any

from harness.arguments import add_command, count, path

SIDE = 256
"""Shorter side, pixels: 224 with the margin of the usual validation, 224 / 0.875."""
MOST_PIXELS = 16_384
MOST_PROCESSES = 1024


def add_pack(commands: Any) -> None:
    """Adds the `pack` command to the parser."""
    parser = add_command(
        commands,
        "pack",
        "Pack an image folder into a few files, decoded and resized once.\n\n"
        "Training from a pack reads pixels instead of decoding JPEGs in every epoch: set "
        "data.root to it. An interrupted pack is continued by the same command.",
        "harness pack photographs --side 256",
    )
    parser.add_argument("source", type=path, metavar="FOLDER", help="contains train/ and val/")
    parser.add_argument("--to", type=path, metavar="PACK", help="the pack (default: FOLDER.pack)")
    parser.add_argument(
        "--side",
        type=count(MOST_PIXELS, least=8),
        default=SIDE,
        help="reduce larger pictures to this shorter side, pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--keep",
        choices=("pixels", "jpeg"),
        default="pixels",
        help="what a picture is kept as; jpeg takes a fifth of the disk and is decoded in training",
    )
    parser.add_argument(
        "--processes",
        type=count(MOST_PROCESSES),
        default=len(os.sched_getaffinity(0)),
        help="number of processes (default: the cores)",
    )
    parser.set_defaults(command=_pack)


def _pack(parsed: argparse.Namespace) -> int:
    # Imported here because torch takes seconds to import.
    from harness.pack.packing import pack

    source = parsed.source
    named = source.resolve() if source.name in ("", "..") else source
    target = parsed.to or Path(f"{named}.pack")
    print(pack(source, target, parsed.side, parsed.keep, parsed.processes), flush=True)
    return 0
