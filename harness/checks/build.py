"""Has every rank's Horovod what this run asks of it?"""

from collections.abc import Sequence

from harness.doctor.finding import Finding, listed, told
from harness.doctor.seat import Seat
from harness.doctor.versions import Build

CHECK = "horovod"


def judge_build(seats: Sequence[Seat], builds: Sequence[Build]) -> list[Finding]:
    by_host = {seat.host: build for seat, build in zip(seats, builds, strict=True)}
    faults = [fault for host, build in by_host.items() for fault in _faults(host, build)]
    stock = [host for host, build in by_host.items() if build.version and not build.mended]
    if stock:
        faults.append(
            Finding(
                check=CHECK,
                level="warn",
                found=f"Horovod on {listed(stock)} is not the mended one: no warning of stalled "
                f"ranks, process sets ignore the network interface, waiting ranks spin",
                advice="build it by install/horovod.py, as make setup does",
            )
        )
    has = f"{builds[0].version} with {listed(builds[0].has)}"
    return told(faults, Finding(check=CHECK, level="ok", found=has))


def _faults(host: str, build: Build) -> list[Finding]:
    if build.error is not None:
        found = f"Horovod cannot be used on {host} ({build.error})"
        return [Finding(check=CHECK, level="fail", found=found, advice="run make setup there")]
    missing = [kind for kind in build.asked if kind not in build.has]
    return [
        Finding(
            check=CHECK,
            level="fail",
            found=f"Horovod on {host} was built without {kind}, which this run asks for",
            advice=f"build it with {kind}, see install/horovod.py, or ask for gloo",
        )
        for kind in missing
    ]
