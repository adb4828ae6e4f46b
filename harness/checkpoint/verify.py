"""Compares all files of checkpoints with their checksums."""

from pathlib import Path

from harness.checkpoint.shelf import shelf
from harness.doctor.finding import format_bytes
from harness.train.checkpoint.manifest import BadCheckpoint, check_file
from harness.train.checkpoint.meta import described
from harness.train.checkpoint.verdict import why_bad


def verify(folder: Path) -> int:
    """Prints one line for each checkpoint in the folder; returns 1 if any is bad."""
    bad = False
    for checkpoint in shelf(folder):
        try:
            found = whole(checkpoint)
        except BadCheckpoint as error:
            bad, found = True, f"bad: {error}"
        print(f"{checkpoint}: {found}", flush=True)
    return int(bad)


def whole(checkpoint: Path) -> str:
    """What was compared. Raises BadCheckpoint for the first file that is not as it was written, and
    if training diverged after it."""
    files = described(checkpoint).files
    if files is None:
        raise BadCheckpoint("it is older than checksums, so nobody can tell whether it is whole")
    for name, expected in sorted(files.items()):
        check_file(checkpoint / name, expected)
    if reason := why_bad(checkpoint):
        raise BadCheckpoint(reason)
    size = format_bytes(sum(each.bytes for each in files.values()))
    return f"good: {len(files)} files, {size}, are as they were written"
