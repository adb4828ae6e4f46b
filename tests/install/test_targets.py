"""The Makefile sets up once; .ci/run checks, then tests. Stand-ins replace the slow parts."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the Makefile, whose installation only records that it ran."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "install/build.txt", "install/constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "install" / "horovod.py").touch()
    installation = [
        'echo "$1 into $2 with $EXTRAS$HOROVOD_GPU_OPERATIONS" >> installs',
        'mkdir -p "$2/bin"; cp harness "$2/bin/"; cp pytest "$2/bin/python"',
    ]
    program(tmp_path / "install" / "install.sh", "\n".join(installation))
    program(tmp_path / "harness", 'echo "harness $@" >> calls')
    program(tmp_path / "pytest", 'echo "python $@" >> calls')
    return tmp_path


def make(checkout: Path, *arguments: str, **variables: str) -> None:
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = ["make", "-s", *arguments]
    subprocess.run(command, cwd=checkout, env=environment | variables, check=True)


def installs(checkout: Path) -> list[str]:
    return (checkout / "installs").read_text().splitlines()


def test_the_set_up_is_made_by_the_first_target_and_not_again(checkout: Path) -> None:
    make(checkout, "demo")
    make(checkout, "demo")
    make(checkout, "test")
    assert installs(checkout) == ["python3 into .venv with tests,analysis"]
    calls = (checkout / "calls").read_text().splitlines()
    assert calls == ["harness demo", "harness demo", "python -m pytest -n 2"]


@pytest.mark.parametrize(
    "name", ["pyproject.toml", "install/constraints.txt", "install/horovod.py"]
)
def test_the_set_up_is_made_again_when_what_it_reads_has_changed(checkout: Path, name: str) -> None:
    make(checkout, "setup")
    stamp = (checkout / ".venv" / ".stamp").stat().st_mtime
    os.utime(checkout / name, (stamp + 5, stamp + 5))
    make(checkout, "setup", "EXTRAS=tests,gpu")
    made_with = [line.split()[-1] for line in installs(checkout)]
    assert made_with == ["tests,analysis", "tests,gpu"]


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({"EXTRAS": "tests,gpu"}, "python3 into .venv with tests,gpu"),
        ({"PYTHON": "python3.99"}, "python3.99 into .venv with tests,analysis"),
        ({"HOROVOD_GPU_OPERATIONS": "NCCL"}, "python3 into .venv with tests,analysisNCCL"),
        ({"HOROVOD_CUDA_HOME": "/a folder"}, "python3 into .venv with tests,analysis"),
    ],
)
def test_other_choices_set_up_again_and_stay(
    given: dict[str, str], made: str, checkout: Path
) -> None:
    make(checkout, "demo")
    for words in ([], [f"{name}={value}" for name, value in given.items()]):
        # From the environment first, as a container's build gives them, then as arguments.
        make(checkout, "setup", *words, **({} if words else given))
        assert installs(checkout)[1:] == [made]
    make(checkout, "demo")
    make(checkout, "demo", "JOBS=3", HOROVOD_CYCLE_TIME="5")
    assert installs(checkout)[1:] == [made]
    os.utime(checkout / "pyproject.toml", (2**32, 2**32))
    make(checkout, "test")
    assert installs(checkout)[1:] == [made, made]


def test_a_stamp_that_says_nothing_means_the_defaults(checkout: Path) -> None:
    make(checkout, "setup")
    (checkout / ".venv" / ".stamp").write_text("")
    make(checkout, "demo")
    assert len(installs(checkout)) == 1
    make(checkout, "setup", "EXTRAS=tests")
    assert installs(checkout)[1:] == ["python3 into .venv with tests"]


def test_each_variable_of_horovod_s_build_sets_up_again(checkout: Path) -> None:
    read = runpy.run_path(str(ROOT / "install" / "horovod.py"))
    known = {*read["BUILD_VARIABLES"], *(f"{prefix}X" for prefix in read["BUILD_PREFIXES"])}
    make(checkout, "setup", **dict.fromkeys(known, "1"))
    lines = (checkout / ".venv" / ".stamp").read_text().splitlines()
    assert {line.split()[0] for line in lines} == known | {"PYTHON", "EXTRAS"}


def test_a_failed_set_up_leaves_no_stamp(checkout: Path) -> None:
    program(checkout / "install" / "install.sh", "exit 1")
    with pytest.raises(subprocess.CalledProcessError):
        make(checkout, "test")
    assert not (checkout / ".venv" / ".stamp").exists()
    assert not (checkout / "calls").exists()


def run_ci(folder: Path, make: str) -> tuple[int, list[str]]:
    program(folder / "bin" / "make", f'echo "make $@" >> {folder}/calls\n{make}')
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    status = subprocess.run([ROOT / ".ci" / "run"], env=environment, stdin=subprocess.DEVNULL)
    return status.returncode, (folder / "calls").read_text().splitlines()


def test_ci_checks_then_tests(tmp_path: Path) -> None:
    assert run_ci(tmp_path, "exit 0") == (0, ["make check", "make test"])


def test_ci_stops_at_a_failed_check(tmp_path: Path) -> None:
    assert run_ci(tmp_path, "exit 2") == (2, ["make check"])


def test_an_old_python_is_refused_in_one_line_before_anything_is_made(tmp_path: Path) -> None:
    old = tmp_path / "python2"
    program(old, 'case "$1" in --version) echo "Python 2.7.18";; *) exit 1;; esac')
    command = [ROOT / "install" / "install.sh", old, tmp_path / "venv"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "needs Python 3.11" in line
    assert "2.7.18" in line
    assert not (tmp_path / "venv").exists()


def test_a_missing_compiler_is_named_before_anything_is_made(tmp_path: Path) -> None:
    command = [ROOT / "install" / "install.sh", sys.executable, tmp_path / "venv"]
    environment = {**os.environ, "CXX": "no-such-compiler"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    assert "there is no no-such-compiler" in result.stderr
    assert not (tmp_path / "venv").exists()
