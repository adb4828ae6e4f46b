"""The launcher's variables for this process; launchers other than Horovod's are refused."""

import os
import shlex
import socket
import sys
from dataclasses import dataclass

from harness.errors import ReportedByAnotherRank, UserError
from harness.measure.redaction import masked


@dataclass(frozen=True)
class Launched:
    """This process's place, as numbered by horovodrun; a single rank without a launcher."""

    rank: int = 0
    size: int = 1
    """Number of ranks."""
    local_rank: int = 0
    """Number among the ranks of its host, of which there are `local_size`."""
    local_size: int = 1
    cross_rank: int = 0
    """Number among the ranks with the same local rank, of which there are `cross_size`."""
    cross_size: int = 1
    host: str = ""
    """The host's name as given to the launcher; without a launcher the machine's own."""
    interface: str | None = None
    """The network interface chosen by the launcher."""
    rendezvous: tuple[str, int] | None = None
    """Address and port of the launcher's key-value store, which all ranks can reach."""


@dataclass(frozen=True)
class _Foreign:
    """Another launcher, by the variables that it sets."""

    name: str
    size: str
    rank: str
    local_size: str = ""


FOREIGN = (
    _Foreign("torchrun", "WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE"),
    _Foreign(
        "mpirun (Open MPI)",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Foreign(
        "mpirun (MVAPICH)",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    _Foreign("jsrun", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_SIZE"),
    _Foreign("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    _Foreign("mpirun (MPICH or Intel MPI)", "PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS"),
)


def launched() -> Launched:
    """The place that horovodrun set for this process.

    Raises UserError for impossible numbers, and for another launcher; in that case one rank reports
    it and the others exit silently.
    """
    if not {"HOROVOD_RANK", "HOROVOD_SIZE"} & os.environ.keys():
        refuse_others()
        return Launched(host=os.environ.get("HOROVOD_HOSTNAME") or socket.gethostname())
    found = Launched(
        rank=_number("HOROVOD_RANK", 0),
        size=_number("HOROVOD_SIZE", 1),
        local_rank=_number("HOROVOD_LOCAL_RANK", 0),
        local_size=_number("HOROVOD_LOCAL_SIZE", 1),
        cross_rank=_number("HOROVOD_CROSS_RANK", 0),
        cross_size=_number("HOROVOD_CROSS_SIZE", 1),
        host=os.environ.get("HOROVOD_HOSTNAME") or socket.gethostname(),
        interface=os.environ.get("HOROVOD_GLOO_IFACE") or None,
        rendezvous=_rendezvous(),
    )
    if not 0 <= found.rank < found.size or found.local_rank < 0 or found.local_size < 1:
        raise UserError(
            f"HOROVOD_RANK={found.rank} and HOROVOD_SIZE={found.size} are not a rank of a launch; "
            f"unset all HOROVOD_ variables that horovodrun sets, or start with horovodrun --gloo"
        )
    if found.size > 1 and found.rendezvous is None:
        raise UserError(
            f"HOROVOD_SIZE={found.size} makes this process one of {found.size} ranks, but "
            f"HOROVOD_GLOO_RENDEZVOUS_ADDR and _PORT do not give its launcher's address; start "
            f"with horovodrun --gloo -np {found.size}, or unset HOROVOD_RANK and HOROVOD_SIZE"
        )
    return found


def is_first() -> bool:
    """Whether this is the rank that reports what all ranks of the launch find alike."""
    try:
        return int(os.environ.get("HOROVOD_RANK") or 0) == 0
    except ValueError:
        return True


def is_one_of_many() -> bool:
    """Whether this process is one of several ranks of a launch."""
    try:
        return int(os.environ.get("HOROVOD_SIZE") or 1) > 1
    except ValueError:
        return False


def refuse_others(starts_ranks: bool = False) -> None:
    """Raises UserError if another launcher started several processes, which would each be a world
    of one.

    One of them reports it and the others exit silently. `starts_ranks`: this command starts its own
    ranks, so horovodrun must not have started it either.
    """
    if starts_ranks and is_one_of_many() and "HOROVOD_RANK" in os.environ:
        _refuse("horovodrun", os.environ["HOROVOD_SIZE"], is_first(), "start it once, without it")
    if "HOROVOD_SIZE" in os.environ:
        return
    for launcher in FOREIGN:
        size = _known_number(launcher.size) or _slurm_tasks(launcher)
        if size > 1:
            command = "start it once" if starts_ranks else f"use {_command(launcher, size)}"
            _refuse(launcher.name, str(size), _known_number(launcher.rank) < 1, command)
    # PMIx gives a process only its number, so the first one cannot know that there are others.
    rank = _known_number("PMIX_RANK")
    if rank > 0:
        _refuse("a PMIx launcher", "several", rank == 1, "use horovodrun --gloo -np N -H HOST:N")


def _refuse(name: str, size: str, reports: bool, advice: str) -> None:
    if not reports:
        raise ReportedByAnotherRank
    raise UserError(
        f"{name} started {size} processes of this command, each of which would be a whole run "
        f"(only Horovod's own launcher with Gloo is supported); {advice}"
    )


def _command(launcher: _Foreign, size: int) -> str:
    """The command line that starts the same on this number of ranks."""
    words = [masked(word) for word in sys.orig_argv]
    return f"horovodrun --gloo -np {size} -H {_hosts(launcher, size)} {shlex.join(words)}"


def _hosts(launcher: _Foreign, size: int) -> str:
    if launcher.name == "srun":
        nodes = _known_number("SLURM_STEP_NUM_NODES") or _known_number("SLURM_NNODES") or 1
        local = -(-size // nodes)
        names = f"$(scontrol show hostnames | sed 's/$/:{local}/' | paste -sd,)"
    else:
        local = _known_number(launcher.local_size) or size
        nodes = -(-size // local)
        names = ",".join(f"HOST{number}:{local}" for number in range(1, min(nodes, 4) + 1))
        names += ",..." if nodes > 4 else ""
    return names if nodes > 1 else f"localhost:{size}"


def _slurm_tasks(launcher: _Foreign) -> int:
    """Number of tasks of a Slurm step; 0 in a batch script, which knows the number too but is one
    process."""
    in_step = _known_number("SLURM_PROCID") > 0 or "SLURM_STEP_ID" in os.environ
    alone = "SLURM_STEP_NUM_TASKS" in os.environ
    return _known_number("SLURM_NTASKS") if launcher.name == "srun" and in_step and not alone else 0


def _known_number(name: str) -> int:
    """The variable's number; 0 if it is not set or not a number, since other programs use these
    names too."""
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"{name}={text!r} is not a number; unset it, or start with horovodrun --gloo"
        ) from None


def _rendezvous() -> tuple[str, int] | None:
    address = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR")
    port = _number("HOROVOD_GLOO_RENDEZVOUS_PORT", 0)
    return (address, port) if address and port > 0 else None
