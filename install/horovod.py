"""Build the mended Horovod once, keep the wheel in .cache/horovod/, install it beside torch.

    python install/horovod.py             build if need be, then install into this Python
    python install/horovod.py --wheel     build if need be, print the wheel's path, install nothing
    python install/horovod.py --edits     list what is changed in Horovod's source, and why

The last release of Horovod (0.28.1, June 2023) does not compile against current versions of torch
and has bugs that would falsify a comparison of waiting times, or let ranks hang. Each is fixed by a
substitution that must match exactly once; nothing is built if one does not.

Run it with the Python whose environment holds torch, setuptools, wheel and cmake (the Makefile,
environment.yml and the Dockerfile do). Horovod's own build variables (HOROVOD_GPU_OPERATIONS=NCCL,
HOROVOD_CUDA_HOME=..., HOROVOD_WITH_MPI=1, HOROVOD_NCCL_HOME=...) pass through if they are set, and
each different set of them has its own wheel. Without HOROVOD_GPU_OPERATIONS, Horovod uses no card,
even if torch is built for cards. NCCL is the one that comes with torch, if one does.
JOBS (default 2) is the number of compiler processes; each takes up to 2 GB of memory.
"""

import argparse
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

VERSION = "0.28.1"
SDIST_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "horovod"


@dataclass(frozen=True)
class Edit:
    """One substitution: `find` occurs exactly once in `file` and becomes `replace`."""

    file: str
    find: str
    replace: str
    reason: str


CXX17 = "torch 2.1 and later compile as C++17 only"
EDITS = (
    Edit("CMakeLists.txt", "set(CMAKE_CXX_STANDARD 14)", "set(CMAKE_CXX_STANDARD 17)", CXX17),
    Edit(
        "horovod/torch/CMakeLists.txt",
        "set(CMAKE_CXX_STANDARD 14)",
        "set(CMAKE_CXX_STANDARD 17)",
        CXX17,
    ),
    Edit(
        "cmake/Modules/FindPytorch.cmake",
        "if (Pytorch_CUDA OR Pytorch_ROCM)",
        "if (NOT HAVE_CUDA)\n    set(Pytorch_CUDA FALSE)\nendif()\n"
        "if (Pytorch_CUDA OR Pytorch_ROCM)",
        "the registry's torch is for CUDA, also where there is no CUDA toolkit to compile with:"
        " operations on cards are built when HOROVOD_GPU_OPERATIONS asks for them",
    ),
    Edit(
        "horovod/common/gloo/gloo_context.cc",
        "assert(global_context.IsEnabled());",
        "gloo_iface_ = global_context.gloo_iface_;",
        "a process set must use the interface of --network-interfaces, as the world does",
    ),
    Edit(
        "horovod/common/gloo/gloo_controller.cc",
        "global_ranks_.reserve(size_);",
        "global_ranks_.resize(size_);",
        "the stall inspector loops over this vector, which otherwise stays empty: it never fires",
    ),
    Edit(
        "horovod/torch/mpi_ops_v2.cc",
        "std::this_thread::yield();",
        "std::this_thread::sleep_for(std::chrono::microseconds(100));",
        "a waiting rank must not take the core from the rank it waits for",
    ),
    Edit(
        "horovod/common/process_set.h",
        "mutable std::recursive_mutex mutex;",
        "mutable std::recursive_mutex mutex;\n  std::atomic_bool peers_lost{false};",
        "remembers that a peer is gone, for the two edits below",
    ),
    Edit(
        "horovod/common/operations.cc",
        'background loop uncaught exception: " << ex.what();',
        'background loop uncaught exception: " << ex.what();\n'
        "    state.process_set_table.peers_lost = true;",
        "a broken connection ends the background loop: nobody is left to negotiate the end with",
    ),
    Edit(
        "horovod/common/process_set.cc",
        "InitializeRegisteredAndRemoveMarkedIfReady_(context, status);",
        """if (!peers_lost) {
        try {
          InitializeRegisteredAndRemoveMarkedIfReady_(context, status);
        } catch (const std::exception& error) {
          LOG(WARNING) << "ending process sets alone, a peer is gone: " << error.what();
          peers_lost = true;
        }
      }
      if (peers_lost) {
        if (Contains(id)) {
          Get(id).Finalize(status);
          DeregisterProcessSet(id);
        }
        id_to_be_removed_ = SUCCESSFUL_REMOVAL;
      }""",
        "with a peer gone every set ends here alone, its pending handles with the shut-down error,"
        " instead of an uncaught exception that aborts the process",
    ),
    Edit(
        "horovod/common/process_set.cc",
        "next_id_ = 1;",
        "next_id_ = 1;\n  peers_lost = false;",
        "a later hvd.init() starts with all peers present",
    ),
    Edit(
        "horovod/runner/common/util/safe_shell_exec.py",
        "codecs.getincrementaldecoder('utf8')()",
        "codecs.getincrementaldecoder('utf8')(errors='replace')",
        "a byte that is not UTF-8 must not end the thread that passes on what a rank prints: the "
        "rank then waits for ever to print more",
    ),
)

FORGOTTEN = ("cstdint", "stdexcept", "string")
"""Headers that Horovod and Gloo use without including them: since gcc 13, other headers no longer
include them."""

DEFAULT_SETTINGS = {
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_MPI": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
}
# The variables that Horovod's build reads. Those that it reads at run time (HOROVOD_CYCLE_TIME,
# HOROVOD_STALL_..., HOROVOD_GLOO_...) must not lead to another wheel.
BUILD_VARIABLES = ("HOROVOD_GPU", "HOROVOD_CPU_OPERATIONS", "HOROVOD_DEBUG")
BUILD_PREFIXES = (
    "HOROVOD_ALLOW_MIXED_GPU_IMPL",
    "HOROVOD_BUILD_",
    "HOROVOD_CUDA_",
    "HOROVOD_GPU_",
    "HOROVOD_MPICXX_",
    "HOROVOD_NCCL_",
    "HOROVOD_NVTX_",
    "HOROVOD_ROCM_",
    "HOROVOD_WITH_",
    "HOROVOD_WITHOUT_",
)


class InstallError(Exception):
    """The wheel cannot be built or installed; the message says why in one line."""


def substitute(text: str, edit: Edit) -> str:
    """The text after the edit. Raises InstallError unless the edit matches exactly once."""
    found = text.count(edit.find)
    if found != 1:
        raise InstallError(
            f"edit of {edit.file} ({edit.reason}): expected {edit.find!r} once, found it {found}"
            f" times; this is not the source of Horovod {VERSION}"
        )
    return text.replace(edit.find, edit.replace)


def mend(source: Path, edits: Iterable[Edit] = EDITS) -> None:
    """Make all edits under `source`, or none: every match is checked before a file is written."""
    mended: dict[Path, str] = {}
    for edit in edits:
        path = source / edit.file
        if path not in mended:
            if not path.is_file():
                raise InstallError(f"edit of {edit.file} ({edit.reason}): there is no such file")
            mended[path] = path.read_text(encoding="utf-8")
        mended[path] = substitute(mended[path], edit)
    for path, text in mended.items():
        path.write_text(text, encoding="utf-8")


def edits_hash(edits: Iterable[Edit] = EDITS) -> str:
    """Hash of all changes to the source, eight hex digits; part of the installed version."""
    changes = [(edit.file, edit.find, edit.replace) for edit in edits]
    return hashlib.sha256(json.dumps([changes, FORGOTTEN]).encode()).hexdigest()[:8]


def build_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Our defaults and the caller's build variables; WITH_X and WITHOUT_X exclude each other."""
    chosen = {
        name: value
        for name, value in environment.items()
        if value and (name in BUILD_VARIABLES or name.startswith(BUILD_PREFIXES))
    }
    defaults = {
        name: value
        for name, value in DEFAULT_SETTINGS.items()
        if name.replace("_WITH_", "_WITHOUT_") not in chosen
        and name.replace("_WITHOUT_", "_WITH_") not in chosen
    }
    return dict(sorted({**defaults, **chosen}.items()))


def compiler_flags(environment: Mapping[str, str]) -> str:
    """Flags for the C++ compiler: the user's, and those that include the forgotten headers."""
    included = [f"-include {header}" for header in FORGOTTEN]
    return " ".join([*included, environment.get("CXXFLAGS", "")]).strip()


def wheel_key(torch_version: str, settings: Mapping[str, str]) -> str:
    """A readable folder name, ending in a hash of everything that a wheel depends on."""
    python = sysconfig.get_config_var("SOABI") or sysconfig.get_python_version()
    parts = [VERSION, SDIST_SHA256, torch_version, python, sysconfig.get_platform(), edits_hash()]
    digest = hashlib.sha256(json.dumps([parts, dict(settings)]).encode()).hexdigest()[:12]
    return f"horovod-{VERSION}-torch-{torch_version}-{python}-{digest}"


def local_version(key: str) -> str:
    """The local part of the installed version: mended, the hash of the edits, and of the build."""
    return f"mended.{edits_hash()}.{key.rsplit('-', 1)[1]}"


def run(command: list[str], log: Path, environment: Mapping[str, str], what: str) -> None:
    """Run a command with its output in `log`. Raises InstallError with the errors in it."""
    with log.open("a", encoding="utf-8") as output:
        output.write(f"\n$ {' '.join(command)}\n")
        output.flush()
        status = subprocess.run(command, stdout=output, stderr=output, env=dict(environment))
    if status.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        raise InstallError(
            f"{what} failed (exit {status.returncode}); the whole output is in {log}, in it:\n"
            + "\n".join(first_errors(lines) or lines[-20:])
        )


def first_errors(lines: list[str], most: int = 20) -> list[str]:
    """The errors of the compiler and of CMake, each with the line after it; none of Python's."""
    places = [i for i, line in enumerate(lines) if re.search(r"\berror: |CMake Error", line, re.I)]
    named = [i for i in places if "subprocess" not in lines[i]]
    chosen = sorted({place for i in named for place in (i, i + 1) if place < len(lines)})
    return [lines[i] for i in chosen[:most]]


def download_source(folder: Path, log: Path, environment: Mapping[str, str]) -> Path:
    """The unpacked source package, downloaded by pip and checked against its hash."""
    requirement = folder / "horovod.txt"
    requirement.write_text(f"horovod=={VERSION} --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=horovod"]
    command += ["--no-build-isolation", "--require-hashes", "-d", str(folder), "-r"]
    run([*command, str(requirement)], log, environment, f"download of Horovod {VERSION}")
    (archive,) = folder.glob("horovod-*.tar.gz")
    with tarfile.open(archive) as package:
        if hasattr(tarfile, "data_filter"):
            package.extractall(folder, filter="data")
        else:  # Python before 3.11.4; the archive's hash was checked above
            package.extractall(folder)
    return folder / f"horovod-{VERSION}"


def torch_nccl(settings: Mapping[str, str], packages: Path, folder: Path) -> dict[str, str]:
    """Variables that link Horovod with torch's NCCL, unless the user names another one.

    A process then has a single NCCL, and no second one needs to be installed. torch's package has
    the library only under its run-time name; `folder` gets the name that a linker looks for.
    """
    wanted = any("NCCL" in value for value in settings.values())
    named = any(name.startswith("HOROVOD_NCCL_") for name in settings)
    library = packages / "nvidia" / "nccl" / "lib" / "libnccl.so.2"
    if not wanted or named or not library.is_file():
        return {}
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "libnccl.so").symlink_to(library)
    (folder / "include").symlink_to(library.parent.parent / "include")
    return {"HOROVOD_NCCL_HOME": str(folder), "HOROVOD_NCCL_LINK": "SHARED"}


def build(key: str, settings: Mapping[str, str], log: Path) -> Path:
    """Download, mend and compile; returns the wheel, moved into the cache when it is complete."""
    # pip installs cmake and compiler wrappers next to this Python, which may not be on PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, **settings, "PATH": path}
    environment["CXXFLAGS"] = compiler_flags(os.environ)
    # Under make this variable is set but empty, and Horovod's setup.py would start 8 compilers.
    environment["MAKEFLAGS"] = f"-j{os.environ.get('JOBS') or 2}"
    for name in DEFAULT_SETTINGS.keys() - settings.keys():
        environment.pop(name, None)
    # With a PYTHONPATH, `import horovod` could find this file instead of the package.
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory(prefix="horovod-build-") as temporary:
        folder = Path(temporary)
        source = download_source(folder, log, environment)
        mend(source)
        packages = Path(sysconfig.get_path("platlib"))
        environment |= torch_nccl(settings, packages, folder / "nccl")
        environment["HOROVOD_LOCAL_VERSION"] = local_version(key)
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
        command += ["--use-pep517", "-w", str(folder / "wheel"), str(source)]
        run(command, log, environment, "build of Horovod")
        (wheel,) = (folder / "wheel").glob("horovod-*.whl")
        unfinished = CACHE / f"{key}.{os.getpid()}"
        unfinished.mkdir(parents=True)
        shutil.copy2(wheel, unfinished)
        shutil.rmtree(CACHE / key, ignore_errors=True)
        unfinished.rename(CACHE / key)
    return CACHE / key / wheel.name


@contextmanager
def only_one_builder() -> Iterator[None]:
    """Hold the cache's lock, so that a second set-up waits for the first and finds its wheel."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def find_or_build(settings: Mapping[str, str]) -> Path:
    """The wheel for this Python, this torch and these settings, from the cache or newly built."""
    try:
        torch_version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        raise InstallError(
            f"{sys.executable} has no torch, which Horovod is compiled against; install"
            " -r install/build.txt first, as install/install.sh does"
        ) from None
    key = wheel_key(torch_version, settings)
    with only_one_builder():
        wheels = list((CACHE / key).glob("horovod-*.whl"))
        if wheels:
            return wheels[0]
        log = CACHE / f"{key}.log"
        log.unlink(missing_ok=True)
        say(f"building Horovod {VERSION} against torch {torch_version}, once: 3 to 6 minutes")
        return build(key, settings, log)


def install(wheel: Path) -> None:
    """Install the wheel into this Python, unless this build is already installed."""
    wanted = wheel.name.split("-")[1]
    try:
        present = importlib.metadata.version("horovod")
    except importlib.metadata.PackageNotFoundError:
        present = None
    if present == wanted:
        say(f"horovod {present} is installed")
        return
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall"]
    log = CACHE / "install.log"
    log.unlink(missing_ok=True)
    run([*command, str(wheel)], log, os.environ, "installation of the wheel")
    say(f"horovod {wanted} was installed")


def say(message: str) -> None:
    print(f"install/horovod.py: {message}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--wheel", action="store_true", help="print the wheel, install nothing")
    choice.add_argument("--edits", action="store_true", help="list the edits and their reasons")
    arguments = parser.parse_args()
    if arguments.edits:
        for edit in EDITS:
            print(f"{edit.file}: {edit.reason}")
        return 0
    try:
        wheel = find_or_build(build_settings(os.environ))
        if arguments.wheel:
            print(wheel)
        else:
            install(wheel)
    except InstallError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
