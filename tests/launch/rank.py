"""A rank that ends, or hangs, as its argument demands; needs neither torch nor Horovod."""

import os
import signal
import sys
import time
from pathlib import Path

RANK = int(os.environ["HOROVOD_RANK"])


def main(mode: str, folder: Path) -> None:
    print(f"rank {RANK} starts", flush=True)
    (folder / f"started-{RANK}").write_text(str(os.getpid()))
    if mode == "progress":
        (folder / f"environment-{RANK}").write_text("\n".join(os.environ))
        for step in range(5):
            print(f"\r{step} of 5", end="", file=sys.stderr, flush=True)
            time.sleep(0.05)
        print(f"\rdone {RANK}", file=sys.stderr, flush=True)
    elif mode == "mistake":
        if RANK == 1:
            print("harness: num_classes is 3; use replicated", file=sys.stderr)
            sys.exit(2)
        time.sleep(600)
    elif mode == "crash":
        if RANK == 1:
            time.sleep(0.5)  # its victim's traceback comes first
            raise ValueError("the cause")
        print("Traceback (most recent call last)\nHorovodInternalError: gone", file=sys.stderr)
        time.sleep(600)
    elif mode == "killed":
        if RANK == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    elif mode == "tidy":
        signal.signal(signal.SIGTERM, lambda *_: _leave(folder))
        (folder / f"ready-{RANK}").touch()
        time.sleep(600)
    elif mode in ("stuck", "halted", "waiting"):
        from harness.parallel.pulse import open_pulse

        with open_pulse(3.0) as pulse:
            pulse.window(7, slow=False)
            pulse.show("data" if mode == "stuck" and RANK == 1 else "exchange_wait")
            if mode == "halted" and RANK == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(600)
    elif mode == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (folder / f"ready-{RANK}").touch()
        time.sleep(600)


def _leave(folder: Path) -> None:
    time.sleep(0.5)
    (folder / f"tidied-{RANK}").touch()
    sys.exit(1)


main(sys.argv[1], Path(sys.argv[2]))
