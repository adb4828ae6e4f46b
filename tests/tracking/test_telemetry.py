"""MLflow does not report to its makers, whichever part of a command imports it first."""

import os
import subprocess
import sys
from pathlib import Path

from tests.horovodrun import ROOT

COMMAND = """
from harness.cli import main
main(["compare", "--from-study", "none", "--uri", "sqlite:///none.db"])
"""
OURS = ("MLFLOW_", "CI", "GITHUB_", "PYTEST_", "DO_NOT_TRACK")
"""Beginnings of variables by which MLflow decides."""


def identities(program: str, home: Path) -> list[Path]:
    """What MLflow leaves in the home of whoever runs the program."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(OURS)}
    environment = kept | {"HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    subprocess.run(command, check=True, env=environment, cwd=home, timeout=120)
    return list(home.rglob("telemetry.json"))


def test_a_command_leaves_no_identity_in_the_home(tmp_path: Path) -> None:
    assert not identities(f"{COMMAND}import mlflow", tmp_path)


def test_without_a_command_mlflow_would_leave_one(tmp_path: Path) -> None:
    assert identities("import mlflow", tmp_path)
