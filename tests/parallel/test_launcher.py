"""Which processes are ranks of a launch, and who says so where another launcher started them."""

import os
import sys

import pytest

from harness.errors import ReportedByAnotherRank, UserError
from harness.parallel.launcher import Launched, launched, refuse_others

GLOO = {"HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1", "HOROVOD_GLOO_RENDEZVOUS_PORT": "1234"}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("HOROVOD_", "OMPI_", "PMI", "SLURM_", "JSM_", "MV2_")):
            monkeypatch.delenv(name)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "harness", "train", "x.yaml"])


def found(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Launched | str | None:
    """What the process takes itself for; what it says; None where it is silent."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    try:
        return launched()
    except UserError as error:
        return str(error)
    except ReportedByAnotherRank:
        return None


TORCHRUN = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
SRUN = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("variables", "rank", "said"),
    [
        (TORCHRUN, "RANK", "horovodrun --gloo -np 4 -H HOST1:2,HOST2:2 python -m harness train"),
        (OPEN_MPI, "OMPI_COMM_WORLD_RANK", "horovodrun --gloo -np 2 -H localhost:2 python"),
        ({"PMI_SIZE": "3"}, "PMI_RANK", "mpirun (MPICH or Intel MPI) started 3 processes of this"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "MV2_COMM_WORLD_RANK", "mpirun (MVAPICH) started 2"),
        ({"JSM_NAMESPACE_SIZE": "6"}, "JSM_NAMESPACE_RANK", "jsrun started 6 processes"),
        (SRUN, "SLURM_PROCID", "-np 8 -H $(scontrol show hostnames | sed 's/$/:4/' | paste -sd,)"),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, "SLURM_PROCID", "srun started 2 processes"),
    ],
)
def test_of_another_launchers_processes_the_first_says_what_to_use(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], rank: str, said: str
) -> None:
    line = found(monkeypatch, **variables, **{rank: "0"})
    assert isinstance(line, str)
    assert said in line
    assert found(monkeypatch, **variables, **{rank: "1"}) is None


def test_where_only_the_number_is_known_the_second_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [found(monkeypatch, PMIX_RANK=rank) for rank in ("0", "1", "2")]
    assert isinstance(said[0], Launched)
    assert "a PMIx launcher started several processes" in str(said[1])
    assert said[2] is None


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        {"WORLD_SIZE": "everything"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        # A batch script, and the shell of an allocation, know of tasks that are to come.
        {"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_NNODES": "4"},
        {"SLURM_NTASKS": "16", "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
        {},
    ],
)
def test_a_process_that_was_started_once_is_a_run_of_one_rank(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    place = found(monkeypatch, **variables)
    assert isinstance(place, Launched)
    assert (place.rank, place.size) == (0, 1)


def test_horovodrun_may_be_started_by_another_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    place = found(monkeypatch, **SRUN, **GLOO, HOROVOD_RANK="1", HOROVOD_SIZE="2")
    assert isinstance(place, Launched)
    assert (place.rank, place.size, place.rendezvous) == (1, 2, ("127.0.0.1", 1234))


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2"}, "makes this process one of 2 ranks, but"),
        ({"HOROVOD_RANK": "0", "HOROVOD_SIZE": "2"}, "do not give its launcher's address"),
        ({"HOROVOD_RANK": "one"}, "HOROVOD_RANK='one' is not a number"),
        ({"HOROVOD_SIZE": ""}, "HOROVOD_SIZE='' is not a number"),
        ({"HOROVOD_RANK": "1"}, "HOROVOD_RANK=1 and HOROVOD_SIZE=1 are not a rank of a launch"),
        ({"HOROVOD_RANK": "-1", "HOROVOD_SIZE": "4"} | GLOO, "are not a rank of a launch"),
        ({"HOROVOD_SIZE": "0"}, "are not a rank of a launch"),
        ({"HOROVOD_SIZE": "2", "HOROVOD_LOCAL_SIZE": "0"} | GLOO, "are not a rank of a launch"),
        (
            {"HOROVOD_SIZE": "2"} | GLOO | {"HOROVOD_GLOO_RENDEZVOUS_PORT": "x"},
            "HOROVOD_GLOO_RENDEZVOUS_PORT='x' is not a number",
        ),
    ],
)
def test_variables_that_no_launch_sets_are_told(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    assert said in str(found(monkeypatch, **variables))


def test_what_starts_ranks_is_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_others(starts_ranks=True)
    for name, value in (GLOO | {"HOROVOD_RANK": "0", "HOROVOD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    refuse_others()
    with pytest.raises(UserError, match=r"horovodrun started 2 processes of this.*start it once"):
        refuse_others(starts_ranks=True)
    monkeypatch.setenv("HOROVOD_RANK", "1")
    with pytest.raises(ReportedByAnotherRank):
        refuse_others(starts_ranks=True)


def test_the_command_that_is_advised_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "x", "http://me:s3cret@host/a"])
    assert "s3cret" not in str(found(monkeypatch, WORLD_SIZE="2"))
