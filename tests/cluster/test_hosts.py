"""Lists of hosts, and what of the environment goes to the ranks."""

import pytest

from harness.cluster.environment import passed_on, withheld_credentials
from harness.cluster.hosts import Host, most_ranks_on_a_machine, parse_hosts, topology_of
from harness.errors import UserError


def test_names_of_this_machine_share_its_cores() -> None:
    hosts = parse_hosts("localhost:2, 127.0.0.1:3", 5)
    assert hosts == (Host("localhost", 2), Host("127.0.0.1", 3))
    assert most_ranks_on_a_machine(hosts) == 5
    elsewhere = (Host("192.0.2.1", 8), Host("localhost", 1))
    assert most_ranks_on_a_machine(elsewhere) == 8


@pytest.mark.parametrize(
    ("slots", "ranks", "shape"),
    [((2, 2), 4, (2, 2)), ((4, 4), 4, (1, 4)), ((1, 1, 1), 3, (3, 1)), ((4, 4), 8, (2, 4))],
)
def test_hosts_are_filled_in_order(
    slots: tuple[int, ...], ranks: int, shape: tuple[int, int]
) -> None:
    found = topology_of(tuple(Host(str(n), count) for n, count in enumerate(slots)), ranks)
    assert (found.nodes, found.ranks_per_node) == shape


@pytest.mark.parametrize(("slots", "ranks"), [((2, 2), 3), ((1, 2, 3), 6), ((3, 1), 4)])
def test_hosts_of_different_size_are_told(slots: tuple[int, ...], ranks: int) -> None:
    with pytest.raises(UserError, match="same number of ranks"):
        topology_of(tuple(Host(str(n), count) for n, count in enumerate(slots)), ranks)


def test_ranks_get_what_they_need_and_no_secret() -> None:
    given = {
        "PATH": "/bin",
        "SSH_AUTH_SOCK": "/tmp/agent",
        "OMP_NUM_THREADS": "1",
        "NCCL_DEBUG": "INFO",
        "MLFLOW_TRACKING_URI": "http://me:s3cret@host",
        "HTTPS_PROXY": "http://me:s3cret@proxy",
        "HOROVOD_TOKEN": "s3cret",
        "MLFLOW_TRACKING_TOKEN": "s3cret",
        "ANYTHING_ELSE": "s3cret",
        "PATHOLOGY": "s3cret",
    }
    assert passed_on(given) == {
        "PATH": "/bin",
        "SSH_AUTH_SOCK": "/tmp/agent",
        "OMP_NUM_THREADS": "1",
        "NCCL_DEBUG": "INFO",
        "MLFLOW_TRACKING_URI": "http://host",
        "HTTPS_PROXY": "http://proxy",
    }


def test_credentials_that_ranks_will_miss_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    assert withheld_credentials() == []
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@host")
    assert withheld_credentials() == ["MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_URI"]
