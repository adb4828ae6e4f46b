"""Lists of hosts, and which variables of the environment the ranks get."""

import socket
from unittest.mock import patch

import pytest
from horovod.runner.common.util.hosts import parse_hosts_and_slots as horovodruns_hosts
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config import Config
from harness.errors import UserError
from harness.launch.environment import passed_on, withheld
from harness.launch.hosts import (
    Host,
    hosts_option,
    parse_hosts,
    ranks_here,
    read_hosts,
    topology_of,
)


def test_names_of_this_machine_share_its_cores() -> None:
    hosts = parse_hosts("localhost:2, 127.0.0.1:3", 5)
    assert hosts == (Host("localhost", 2), Host("127.0.0.1", 3))
    assert ranks_here(hosts, 5) == 5
    assert ranks_here(hosts, 3) == 3


def test_ranks_elsewhere_do_not_share_this_machine_s_cores() -> None:
    elsewhere = (Host("192.0.2.1", 8), Host("localhost", 4))
    assert ranks_here(elsewhere, 8) == 0
    assert ranks_here(elsewhere, 9) == 1


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


def test_ranks_reach_the_store_as_the_launcher_does() -> None:
    """Where certificates are and where artifacts go is no secret, except within an address."""
    names = (
        *("MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_CLIENT_CERT_PATH"),
        *("MLFLOW_TRACKING_INSECURE_TLS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("AWS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    )
    given = dict.fromkeys(names, "/etc/ca.pem")
    assert passed_on(given) == given
    address = {"MLFLOW_S3_ENDPOINT_URL": "https://me:s3cret@minio:9000"}
    assert passed_on(address) == {"MLFLOW_S3_ENDPOINT_URL": "https://minio:9000"}


def test_credentials_that_ranks_will_miss_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    config = Config.model_validate({"train": {"steps": 1}})
    assert withheld(config) == []
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@host")
    (line,) = withheld(config)
    assert line.startswith("warning: MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_URI would be")
    assert "s3cret" not in line
    silent = Config.model_validate({"train": {"steps": 1}, "tracking": {"enabled": False}})
    assert withheld(silent) == []


@pytest.mark.parametrize(
    "text",
    [
        "h1:4,h2:4",
        "h1:4, h2:4",
        "h1:4 h2:4",
        "h1:4;h2:4",
        "h1:4\nh2:4\n",
        " h1:4,,h2:4, ",
        "h1 slots=4\nh2 slots=4",
        "h1 slots = 4,h2:4",
        "h1: 4, h2 :4",
    ],
)
def test_hosts_may_be_divided_as_people_and_schedulers_do(text: str) -> None:
    assert read_hosts(text) == (Host("h1", 4), Host("h2", 4))
    assert hosts_option(read_hosts(text)) == "h1:4,h2:4"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("h1:1,h1:1", "names h1 more than once; write --hosts h1:2"),
        ("a:1,b:1,a:1,b:1", "names a more than once; write --hosts a:2,b:2"),
        ("h1", "'h1'; write NAME:SLOTS"),
        ("h1:0", "each with 1 to 4096 slots"),
        ("h1:-1", "'h1:-1'; write"),
        ("h1:4.0", "'h1:4.0'; write"),
        ("h1:４", "'h1:４'; write"),
        ("h1:99999", "'h1:99999'; write"),
        ("h1:" + "9" * 5000, "each with 1 to 4096 slots"),
        ("::1:2", "takes only host names and IPv4 addresses"),
        ("[fe80::1]:2", "takes only host names and IPv4 addresses"),
        ("h1:4:4", "takes only host names and IPv4 addresses"),
        ("-oProxyCommand=x:1", "'-oProxyCommand=x:1'; write"),
        ("h1 slots=4 max_slots=8", "'max_slots=8'; write"),
        ("", "contains no host"),
        (" , ", "contains no host"),
        ("a..b:1", "does not resolve"),
        ("a" * 64 + ":1", "does not resolve"),
    ],
)
def test_other_hosts_are_told_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_hosts(text, 1)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ranks", [0, -3])
def test_no_ranks_are_told(ranks: int) -> None:
    with pytest.raises(UserError, match=f"--np {ranks} starts no rank"):
        parse_hosts("localhost:4", ranks)


PIECES = st.sampled_from(
    ["h1", "localhost", ":", "4", ",", ";", " ", "\n", "slots=", "-", ".", "4:"]
)
RUBBISH = st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=12).map("".join))


@settings(max_examples=500)
@given(RUBBISH)
def test_any_text_is_hosts_or_a_users_mistake(text: str) -> None:
    """Replaces the name server, which may take many seconds for an unknown name."""
    nameless = patch("socket.getaddrinfo", side_effect=socket.gaierror("asked"))
    with nameless, pytest.raises(UserError) as mistake:
        parse_hosts(text, 1)
    line = str(mistake.value)
    assert "\n" not in line
    if "asked" not in line:
        assert "write " in line
        return
    hosts = read_hosts(text)
    # The list is read as horovodrun reads it.
    assert horovodruns_hosts(hosts_option(hosts)) == (
        [host.name for host in hosts],
        {host.name: host.slots for host in hosts},
    )
    assert read_hosts(hosts_option(hosts)) == hosts
