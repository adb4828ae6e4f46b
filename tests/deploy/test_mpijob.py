"""deploy/mpijob.yaml has the structure of the operator's v2beta1, and its launcher starts ranks.

The schema is written from the fields that the MPI operator and Kubernetes document: what they do
not know, they would drop without a word.
"""

import os
import shlex
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from harness.config import load
from harness.launch.hosts import read_hosts
from tests.horovodrun import ROOT

FILE = ROOT / "deploy/mpijob.yaml"
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Quantity = Annotated[str, Field(pattern=r"^[0-9.]+(m|Ki|Mi|Gi|Ti|k|M|G|T)?$")] | int
Text = dict[str, str]


class Part(BaseModel):
    """Takes only the fields that it names, with their types."""

    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Metadata(Part):
    name: Name | None = None
    labels: Text = {}
    annotations: Text = {}


class Mount(Part):
    name: Name
    mount_path: Annotated[str, Field(pattern="^/")]
    read_only: bool = False


class Resources(Part):
    limits: dict[str, Quantity] = {}
    requests: dict[str, Quantity] = {}


class Socket(Part):
    port: int


class Probe(Part):
    tcp_socket: Socket
    initial_delay_seconds: int = 0
    period_seconds: int = 10


class Container(Part):
    name: Name
    image: str
    command: list[str] = []
    args: list[str] = []
    working_dir: str | None = None
    env: list[dict[str, Any]] = []
    resources: Resources = Resources()
    volume_mounts: list[Mount] = []
    readiness_probe: Probe | None = None


class Claim(Part):
    claim_name: str
    read_only: bool = False


class Empty(Part):
    medium: Literal["", "Memory"] = ""
    size_limit: Quantity | None = None


class Volume(Part):
    name: Name
    persistent_volume_claim: Claim | None = None
    empty_dir: Empty | None = None


class Pod(Part):
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume] = []
    node_selector: Text = {}


class Template(Part):
    metadata: Metadata = Metadata()
    spec: Pod


class Replicas(Part):
    replicas: Annotated[int, Field(ge=1)] = 1
    restart_policy: Literal["Always", "OnFailure", "Never", "ExitCode"] = "Never"
    template: Template


class RunPolicy(Part):
    active_deadline_seconds: int | None = None
    backoff_limit: int | None = None
    clean_pod_policy: Literal["None", "Running", "All"] = "Running"
    suspend: bool = False
    ttl_seconds_after_finished: int | None = None


class Roles(Part):
    launcher: Replicas = Field(alias="Launcher")
    worker: Replicas = Field(alias="Worker")


class Spec(Part):
    mpi_replica_specs: Roles
    launcher_creation_policy: Literal["AtStartup", "WaitForWorkersReady"] = "AtStartup"
    mpi_implementation: Literal["OpenMPI", "Intel", "MPICH"] = "OpenMPI"
    run_launcher_as_worker: bool = False
    run_policy: RunPolicy = RunPolicy()
    slots_per_worker: Annotated[int, Field(ge=1)] = 1
    ssh_auth_mount_path: Annotated[str, Field(pattern="^/")] = "/root/.ssh"


class MpiJob(Part):
    api_version: Literal["kubeflow.org/v2beta1"]
    kind: Literal["MPIJob"]
    metadata: Metadata
    spec: Spec


def values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def job() -> MpiJob:
    return MpiJob.model_validate(values())


def test_it_is_a_job_of_the_operator() -> None:
    spec = job().spec
    for role in (spec.mpi_replica_specs.launcher, spec.mpi_replica_specs.worker):
        pod = role.template.spec
        mounted = {mount.name for each in pod.containers for mount in each.volume_mounts}
        assert mounted == {volume.name for volume in pod.volumes}
    (worker,) = spec.mpi_replica_specs.worker.template.spec.containers
    assert worker.resources.limits["nvidia.com/gpu"] == spec.slots_per_worker
    assert spec.mpi_replica_specs.launcher.replicas == 1


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ((), "apiVersion", "kubeflow.org/v1"),
        (("spec",), "slotPerWorker", 4),
        (("spec",), "cleanPodPolicy", "Running"),
        (("spec", "runPolicy"), "cleanPodPolicy", "Sometimes"),
        (("spec", "mpiReplicaSpecs"), "Workers", {}),
        (("spec", "mpiReplicaSpecs", "Worker"), "replicas", "2"),
        (("spec", "mpiReplicaSpecs", "Worker", "template", "spec"), "container", []),
    ],
)
def test_a_mistake_is_seen(place: tuple[str, ...], key: str, value: object) -> None:
    changed = values()
    inner = changed
    for each in place:
        inner = inner[each]
    inner[key] = value
    with pytest.raises(ValidationError):
        MpiJob.model_validate(changed)


def test_its_workers_take_keys_from_a_folder_that_everybody_may_write() -> None:
    """A Secret's volume is one, of mode 1777, whatever the modes of its files are."""
    (worker,) = job().spec.mpi_replica_specs.worker.template.spec.containers
    assert worker.args[0] == "/usr/sbin/sshd"
    assert worker.args[worker.args.index("-o") + 1] == "StrictModes=no"


def fill(tmp_path: Path) -> None:
    """What the operator mounts."""
    for folder in ("etc/ssh/ssh_config.d", "etc/mpi", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    workers = "harness-worker-0.harness.default.svc slots=4\nharness-worker-1.harness slots=4\n"
    (tmp_path / "etc/mpi/hostfile").write_text(workers)
    shown = tmp_path / "bin/harness"
    shown.write_text('#!/bin/sh\nfor each in "$@"; do printf "%s\\0" "$each"; done\n')
    shown.chmod(0o755)


def test_its_launcher_starts_ranks_on_the_workers(tmp_path: Path) -> None:
    """The script as it stands, in a folder in the place of /, with a program that shows what it is
    given in the place of harness."""
    (container,) = job().spec.mpi_replica_specs.launcher.template.spec.containers
    (script,) = container.args
    fill(tmp_path)
    for root in ("/etc/", "/runs"):
        script = script.replace(root, f"{tmp_path}{root}")
    ended = subprocess.run(
        [*container.command, script],
        env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    given = ended.stdout.split("\0")[:-1]
    assert given[0] == "launch"
    assert given[given.index("--np") + 1] == "8"
    hosts = read_hosts(given[given.index("--hosts") + 1])
    assert [(host.name.partition(".")[0], host.slots) for host in hosts] == [
        ("harness-worker-0", 4),
        ("harness-worker-1", 4),
    ]
    assert given[given.index("--folder") + 1] == f"{tmp_path}/runs/RUN"
    assert "--continue" in given
    (experiment,) = [each for each in given if each.endswith(".yaml")]
    config = load(ROOT / experiment, given[given.index(experiment) + 1 :])
    assert config.train.saves
    written = (tmp_path / "etc/ssh/ssh_config.d/harness.conf").read_text()
    assert shlex.split(written)[:2] == ["Host", "*"]
    assert "StrictHostKeyChecking no\n" in written
