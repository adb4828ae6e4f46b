"""Quick checks of one host before ranks are started on it again; seconds, and no other host needed.

`python -m harness.doctor.quick FOLDER CARDS`: exit code 0, or 1 with one line that says why not.
"""

import os
import sys
import uuid
from pathlib import Path

from harness.errors import one_line

LEAST_FREE_BYTES = 100e6
"""Free space below which a run's files cannot be written for long."""


def fault_of(folder: Path, cards: int) -> str:
    """Why no rank should run on this host; "" if nothing was found."""
    return _disk(folder) or _compute(cards)


def _disk(folder: Path) -> str:
    """Writes where the run writes, down to the disk: a disk that failed may only be readable."""
    file = folder / f".{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = os.statvfs(folder)
        free = found.f_bavail * found.f_frsize
        if free < LEAST_FREE_BYTES:
            return f"{folder} has {free / 1e6:.0f} MB free"
        with file.open("wb") as handle:
            handle.write(b"1")
            handle.flush()
            os.fsync(handle.fileno())
        file.unlink()
    except OSError as error:
        return f"cannot write {folder} ({error.strerror})"
    return ""


def _compute(cards: int) -> str:
    """One product on every card that ranks will use, or on the processor."""
    try:
        import torch

        from harness.doctor.versions import horovod_build

        if error := horovod_build().error:
            return f"its Horovod cannot be used ({error})"
        found = torch.cuda.device_count()
        if found < cards:
            return f"{found} cards answer instead of {cards}"
        for device in [f"cuda:{number}" for number in range(cards)] or ["cpu"]:
            ones = torch.ones(64, 64, device=device)
            if float((ones @ ones).sum()) != 64**3:
                return f"{device} multiplies wrongly"
    except Exception as error:  # whatever a broken driver or installation raises
        return f"it cannot compute ({one_line(error, 120)})"
    return ""


def main(arguments: list[str]) -> int:
    fault = fault_of(Path(arguments[0]), int(arguments[1]))
    if fault:
        print(fault, flush=True)
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
