"""What a run says of its machine, and what it never says."""

import json
import subprocess
from pathlib import Path

import psutil
import pytest
import torch

from harness.measure.machine import environment, peak_memory_bytes
from harness.measure.redaction import masked, without_secrets

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def test_the_environment_names_versions_commit_and_machine() -> None:
    found = environment({"gloo": True})
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["mlflow"].startswith("3.")
    assert found["horovod_build"] == {"gloo": True}
    assert found["cores"] >= found["usable_cores"] >= 1
    assert found["memory_bytes"] > 1e8
    assert found["cpu"]
    assert found["host"]
    json.dumps(found)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_commit_is_the_one_that_git_names() -> None:
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert environment()["git_commit"] == head


def test_variables_of_the_libraries_are_kept_and_secrets_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOROVOD_CYCLE_TIME", "10")
    monkeypatch.setenv("HOROVOD_API_TOKEN", "s3cret")
    monkeypatch.setenv("NCCL_PROXY", "http://user:s3cret@proxy:1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    found = environment()
    assert found["variables"]["HOROVOD_CYCLE_TIME"] == "10"
    assert found["variables"]["NCCL_PROXY"] == "http://proxy:1"
    assert "s3cret" not in json.dumps(found)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:s3cret@host:5000/x?y=1", "http://host:5000/x?y=1"),
        ("postgresql+psycopg2://user:p@ss@host/db", "postgresql+psycopg2://host/db"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
        ("http://t0ken@host:5000", "http://host:5000"),
        ("//t0ken@host/x", "//host/x"),
        ("http://user:pa/ss#w@host:5000/x", "http://host:5000/x"),
        ("http://host/x?y=1&token=t0ken&z=2#/page", "http://host/x?y=1&token=***&z=2#/page"),
        (
            "postgresql://host/db?user=me&password=t0ken",
            "postgresql://host/db?user=***&password=***",
        ),
        ("tracking.uri=http://user:t0ken@host", "tracking.uri=http://host"),
        (
            "no answer from 'http://a:b@c:1/d', http://e:f@g",
            "no answer from 'http://c:1/d', http://g",
        ),
        ("http://host:80/mail@home", "http://host:80/mail@home"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("git@host:project", "git@host:project"),
        ("/usr/bin:/bin", "/usr/bin:/bin"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_its_secrets(uri: str, shown: str) -> None:
    assert masked(uri) == shown
    assert masked(shown) == shown


def test_names_that_look_like_secrets_are_left_out() -> None:
    kept = without_secrets({"A_KEY": "1", "my_password": "2", "GITHUB_TOKEN": "3", "PATH": "4"})
    assert kept == {"PATH": "4"}


def test_peak_memory_remembers_what_was_given_back() -> None:
    before = peak_memory_bytes(CPU)
    held = psutil.Process().memory_info().rss
    block = torch.ones(64 + int(before / 4e6), 1_000_000)  # beyond whatever was held so far
    grown = psutil.Process().memory_info().rss - held
    size = block.numel() * 4
    del block
    assert grown == pytest.approx(size, rel=0.2)
    assert peak_memory_bytes(CPU) >= before + 64 * 4e6 * 0.8
