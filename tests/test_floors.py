"""The floors of the house: imports go downward only, and importing a module opens nothing."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [
    "errors locking mounts paths seeding signals whole_files parallel.slices exchange.kinds",
    "measure",
    "config arguments terminal",
    "parallel leaving",
    "model data exchange tracing tracking",
    "launch train.stability train.evaluation train.row_optimizer pack",
    "doctor lab",
    "train",
    "calibrate checkpoint compare evaluate",
    "plan demo",
    "cli __main__",
]
"""Lowest first. A module has the floor of the longest name here that it is, or lies in."""

ALLOWED = {
    "horovod": ("parallel.", "doctor.versions", "tracing.horovod_timeline"),
    "torch.distributed": ("parallel.", "tracing."),
    "torch._C._distributed_c10d": ("parallel.",),
    "mlflow": ("tracking.",),
    "pandas": ("compare.", "demo.text", "tracking.study", "tracking.record"),
    "matplotlib": ("compare.",),
    "simpy": ("plan.simulate",),
    "triton": ("model.kernels",),
}
"""Where a package may be imported: it is meant to be replaceable from there."""


STARTS_RUNS = ("launch.", "lab.", "doctor.", "compare.", "plan.", "demo.", "tracking.")
"""What trains there, trains in processes of its own."""

LATE = ("compare.", "demo.", "tracking.study", "tracking.record", "tracking.ui")
"""Imported by few commands, and only when these need them: libraries of theirs take seconds."""


def module_of(path: Path) -> str:
    dotted = ".".join(path.relative_to(ROOT / "harness").with_suffix("").parts)
    return dotted.removesuffix(".__init__")


PARSED = {
    path: ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "harness").rglob("*.py"))
}
SOURCES = {
    module_of(path): tree
    for path, tree in PARSED.items()
    if path.name != "__init__.py" or len(tree.body) > 1  # more than a docstring
}
MODULES = pytest.mark.parametrize("module", SOURCES)


def floor_of(module: str) -> int:
    names = {name: floor for floor, line in enumerate(FLOORS) for name in line.split()}
    matching = [name for name in names if f"{module}.".startswith(f"{name}.")]
    assert matching, f"harness.{module} has no floor; give it one in this list"
    return names[max(matching, key=len)]


def imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names that are imported anywhere in a module, or reached through `torch`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def own_imports(module: str) -> set[str]:
    """Modules of this house that one imports."""
    names = {name.removeprefix("harness.") for name in imported(SOURCES[module])}
    return (names & SOURCES.keys()) - {module}


@MODULES
def test_imports_go_downward(module: str) -> None:
    upward = [name for name in own_imports(module) if floor_of(name) > floor_of(module)]
    assert upward == []


def test_no_module_reaches_itself() -> None:
    """On one floor modules may import each other, but not in a circle."""
    reached = {module: own_imports(module) for module in SOURCES}
    for _ in SOURCES:
        reached = {
            module: names.union(*(reached[name] for name in names))
            for module, names in reached.items()
        }
    assert [module for module, names in reached.items() if module in names] == []


def test_studies_start_runs_as_processes() -> None:
    for module in SOURCES:
        if module.startswith(STARTS_RUNS):
            assert own_imports(module) & {"train.training", "train.run"} == set(), module


@MODULES
def test_packages_stay_where_they_belong(module: str) -> None:
    for package, places in ALLOWED.items():
        if not module.startswith(places):
            found = {n for n in imported(SOURCES[module]) if f"{n}.".startswith(f"{package}.")}
            assert found == set(), f"{package} belongs to {places}"


@MODULES
def test_what_draws_for_notebooks_is_not_needed(module: str) -> None:
    """The harness is installed without analysis/, benchmarks/ and tests/."""
    beside = {"analysis", "benchmarks", "tests"}
    assert {name.partition(".")[0] for name in imported(SOURCES[module])} & beside == set()


def test_the_list_names_nothing_that_is_gone() -> None:
    for name in " ".join(FLOORS).split():
        assert any(f"{module}.".startswith(f"{name}.") for module in SOURCES), name


FOR_CARDS = ("model.kernels", "model.card_passes")
"""They need Triton, which torch's builds for cards bring."""

IMPORT_ALL = """
import importlib, json, os, sys, threading
import horovod.torch, torch
import torch.distributed as dist
from harness.model.torchvision import torchvision

def open_files():
    kinds = []
    for number in os.listdir("/proc/self/fd"):
        try:
            kinds.append(os.readlink(f"/proc/self/fd/{number}").split(":")[0])
        except FileNotFoundError:
            continue  # the listing's own
    return sorted(kinds)

def state():
    return {
        "horovod": horovod.torch.is_initialized(),
        "process group": dist.is_initialized(),
        "threads": threading.active_count(),
        "environment": dict(os.environ),
        "working directory": (os.getcwd(), sorted(os.listdir())),
        "open files and sockets": open_files(),
        "torch": (torch.get_num_threads(), torch.initial_seed(), torch.get_default_dtype()),
    }

changed = {}
LATE = tuple(sys.argv[1].split())
for module in sys.argv[2:]:
    before = state()
    importlib.import_module(f"harness.{module}")
    after = state()
    found = [key for key in before if before[key] != after[key]]
    if {"mlflow", "pandas", "matplotlib"} & sys.modules.keys() and not module.startswith(LATE):
        found.append("libraries that take seconds, and that most ranks can do without")
    if found:
        changed[module] = found
print(json.dumps(changed))
"""


def test_importing_opens_nothing(tmp_path: Path) -> None:
    """No hvd.init, no process group, no thread, socket, file or variable."""
    here, home = tmp_path / "here", tmp_path / "home"
    here.mkdir()
    home.mkdir()
    late_last = sorted(SOURCES, key=lambda module: module.startswith(LATE))
    if find_spec("triton") is None:
        late_last = [each for each in late_last if not each.startswith(FOR_CARDS)]
    found = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, " ".join(LATE), *late_last],
        cwd=here,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == {}
