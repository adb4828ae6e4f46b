"""MLflow does not report to its makers, whoever imports it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.horovodrun import ROOT

PROGRAM = """
import harness.tracking.study
import mlflow
from mlflow.telemetry.utils import is_telemetry_disabled
assert is_telemetry_disabled()
"""
OURS = ("MLFLOW_", "CI", "GITHUB_", "PYTEST_", "DO_NOT_TRACK")
"""Beginnings of variables by which MLflow decides."""


def test_telemetry_is_off_and_leaves_nothing_in_the_home(tmp_path: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(OURS)}
    environment = kept | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=environment, timeout=120)
    assert not list(tmp_path.rglob("telemetry.json"))
