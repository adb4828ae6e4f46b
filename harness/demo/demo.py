"""The demonstration: the method over an emulated slow link, and over one without a limit."""

import sys
from collections.abc import Sequence
from pathlib import Path

from harness.compare.folder import variants_in
from harness.compare.run_all import Experiments, Ranks, compare
from harness.config import tracking_in
from harness.demo.text import Link, next_steps, summary
from harness.errors import RunFailed
from harness.lab.host import PACKAGE
from harness.lab.own_lab import NoLab, own_lab, run_in_lab, set_rate
from harness.tracking.address import store_uri
from harness.tracking.folders import claimed, now
from harness.tracking.results import Terms, Variant, baseline_of

HOSTS, SLOTS = 2, 2
EXPERIMENTS = PACKAGE / "experiments"
BASELINE = EXPERIMENTS / "lab" / "data_parallel.yaml"
METHOD = EXPERIMENTS / "lab" / "hybrid_averaging.yaml"
RIVAL = EXPERIMENTS / "rivals" / "data_parallel_int8.yaml"
"""The baseline with the method's compression, which shows the gain without lateness."""
OVERRIDES = (
    "tracking.experiment=demo",
    "train.device=cpu",  # on cards, two hosts on one machine would need a card for each rank
    # Short enough for ten minutes on two cores.
    "train.epochs=5",
    "train.evaluate_images=500",
)
SHORT = ("train.epochs=2",)
"""Overrides of the study without a limit, of which only the speed is used."""
SLOW, UNLIMITED = "demo", "demo-unlimited"
"""Names of the two studies."""
LOG_FILE = "comparison.log"
EMULATED = f"localhost:{SLOTS},127.0.0.1:{SLOTS}"


def demo(folder: Path | None) -> int:
    """Trains over both links and prints the results; returns the exit code.

    Raises UserError before the first run starts.
    """
    with claimed(folder, Path("runs") / SLOW / now()) as place:
        try:
            with own_lab(HOSTS, SLOTS) as hosts:
                _print(f"two hosts of {SLOTS} ranks on this machine; all output goes to {place}\n")
                _print("1. without a limit on the link between them")
                pair = BASELINE, METHOD
                unlimited = _study(hosts, UNLIMITED, place / "unlimited", pair, SHORT)
                link = Link.for_baseline(baseline_of(unlimited))
                _print(f"\n2. with a limit of {link} on the link")
                set_rate(link.rate)
                slow = _study(hosts, SLOW, place / "slow", (BASELINE, RIVAL, METHOD))
        except NoLab as reason:
            _print(f"cannot emulate a slow link here, so the gain over one is not shown: {reason}")
            experiments = Experiments((BASELINE, METHOD), OVERRIDES)
            return compare(experiments, Ranks(HOSTS * SLOTS, EMULATED), SLOW, Terms(), place)
        store = store_uri(tracking_in(None))
        print(f"\n{summary(slow, unlimited, link)}\n\n{next_steps(place / 'slow', store, SLOW)}")
    return 0


def _study(
    hosts: str,
    name: str,
    folder: Path,
    experiments: Sequence[Path],
    overrides: Sequence[str] = (),
) -> tuple[Variant, ...]:
    """Trains the experiments in turn in the lab; tables and verdict go to a file."""
    folder.mkdir()
    words = ["compare", *map(str, experiments), *OVERRIDES, *overrides, "--hosts", hosts]
    command = [sys.executable, "-m", "harness", *words, "--study", name, "--folder", str(folder)]
    # The shell redirects standard output to the log, so that only progress reaches the terminal.
    line = ["sh", "-c", 'log=$0; exec "$@" > "$log"', str(folder / LOG_FILE), *command]
    if code := run_in_lab(line):
        raise RunFailed(f"the study ended with exit code {code}; its files are in {folder}")
    return variants_in(folder)


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
