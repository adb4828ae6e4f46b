"""The edits of Horovod's source, and the cache of wheels; needs no network and no compiler."""

import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "install" / "horovod.py"


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """install/horovod.py as a module (the name horovod is the package's), with an empty cache."""
    specification = importlib.util.spec_from_file_location("install_horovod", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "install_horovod", module)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    return module


def source_tree(install: ModuleType, folder: Path) -> Path:
    """A made-up source package in which every edit matches once, between lines of no interest."""
    texts: dict[str, list[str]] = {}
    for edit in install.EDITS:
        texts.setdefault(edit.file, ["first line"]).extend([edit.find, "another line"])
    for name, lines in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(lines))
    return folder


def contents(folder: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_every_edit_is_made_and_the_rest_stays(install: ModuleType, tmp_path: Path) -> None:
    source = source_tree(install, tmp_path / "source")
    install.mend(source)
    for edit in install.EDITS:
        text = (source / edit.file).read_text()
        assert edit.replace in text
        assert text.startswith("first line\n")
        assert text.endswith("\nanother line")


@pytest.mark.parametrize("number", range(11))
@pytest.mark.parametrize("times", [0, 2])
def test_an_edit_that_does_not_match_once_is_named_and_nothing_is_written(
    install: ModuleType, tmp_path: Path, number: int, times: int
) -> None:
    edit = install.EDITS[number]
    source = source_tree(install, tmp_path / "source")
    path = source / edit.file
    path.write_text(path.read_text().replace(edit.find, "\n".join([edit.find] * times)))
    before = contents(source)
    with pytest.raises(install.InstallError) as caught:
        install.mend(source)
    message = str(caught.value)
    assert edit.file in message
    assert edit.reason in message
    assert f"found it {times} times" in message
    assert "\n" not in message
    assert contents(source) == before


def test_all_edits_are_tried_above(install: ModuleType) -> None:
    assert len(install.EDITS) == 11


def test_a_missing_file_is_named(install: ModuleType, tmp_path: Path) -> None:
    source = source_tree(install, tmp_path / "source")
    (source / "horovod/common/process_set.cc").unlink()
    with pytest.raises(install.InstallError, match=r"process_set\.cc .* no such file"):
        install.mend(source)


def test_without_wishes_gloo_and_torch_alone_are_built(install: ModuleType) -> None:
    assert install.build_settings({"PATH": "/bin", "HOROVOD_CYCLE_TIME": "5"}) == {
        "HOROVOD_WITHOUT_MPI": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITH_PYTORCH": "1",
    }


def test_the_users_build_variables_pass_and_replace_their_opposite(install: ModuleType) -> None:
    settings = install.build_settings(
        {
            "HOROVOD_WITH_MPI": "1",
            "HOROVOD_GPU_OPERATIONS": "NCCL",
            "HOROVOD_NCCL_HOME": "/usr/local/nccl",
            "HOROVOD_CUDA_HOME": "",
        }
    )
    assert settings["HOROVOD_WITH_MPI"] == "1"
    assert "HOROVOD_WITHOUT_MPI" not in settings
    assert settings["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    assert settings["HOROVOD_NCCL_HOME"] == "/usr/local/nccl"
    assert "HOROVOD_CUDA_HOME" not in settings


def torch_packages(folder: Path) -> Path:
    for name in ("include/nccl.h", "lib/libnccl.so.2"):
        path = folder / "nvidia" / "nccl" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_headers_that_gcc_13_no_longer_brings_along_are_included(install: ModuleType) -> None:
    flags = install.compiler_flags({"CXXFLAGS": "-O1 -g"})
    assert flags == "-include cstdint -include stdexcept -include string -O1 -g"


def test_nccl_is_the_one_of_torch(install: ModuleType, tmp_path: Path) -> None:
    packages = torch_packages(tmp_path / "packages")
    settings = install.build_settings({"HOROVOD_GPU_OPERATIONS": "NCCL"})
    variables = install.torch_nccl(settings, packages, tmp_path / "link")
    assert variables == {
        "HOROVOD_NCCL_HOME": str(tmp_path / "link"),
        "HOROVOD_NCCL_LINK": "SHARED",
    }
    assert (tmp_path / "link/lib/libnccl.so").resolve().name == "libnccl.so.2"
    assert (tmp_path / "link/include/nccl.h").is_file()


@pytest.mark.parametrize(
    "environment",
    [{}, {"HOROVOD_GPU_OPERATIONS": "NCCL", "HOROVOD_NCCL_HOME": "/usr/local/nccl"}],
)
def test_nccl_is_left_alone_where_it_is_not_wanted_or_named(
    install: ModuleType, tmp_path: Path, environment: dict[str, str]
) -> None:
    packages = torch_packages(tmp_path / "packages")
    settings = install.build_settings(environment)
    assert install.torch_nccl(settings, packages, tmp_path / "link") == {}


def test_a_failed_build_shows_the_compilers_complaint_not_pythons(install: ModuleType) -> None:
    log = ["all is well"] * 30
    log += ["CMake Error at CMakeLists.txt:1 (message):", "  Could NOT find NCCL", ""]
    log += ["  File core.py, in run_commands"] * 30
    log += ["subprocess.CalledProcessError: Command cmake", "error: subprocess-exited-with-error"]
    assert install.first_errors(log) == log[30:32]


def test_a_wheel_belongs_to_its_torch_its_settings_and_its_edits(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = install.build_settings({})
    keys = [
        install.wheel_key("2.13.0+cpu", plain),
        install.wheel_key("2.13.0+cu130", plain),
        install.wheel_key("2.13.0+cpu", {**plain, "HOROVOD_GPU_OPERATIONS": "NCCL"}),
    ]
    monkeypatch.setattr(install, "edits_hash", lambda: "00000000")
    keys.append(install.wheel_key("2.13.0+cpu", plain))
    assert len(set(keys)) == 4


def test_a_wheel_is_built_once(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def build(key: str, settings: dict[str, str], log: Path) -> Path:
        built.append(key)
        wheel = install.CACHE / key / f"horovod-0.28.1+{install.local_version(key)}-any.whl"
        wheel.parent.mkdir()
        wheel.touch()
        return wheel

    monkeypatch.setattr(install, "build", build)
    first = install.find_or_build(install.build_settings({}))
    assert install.find_or_build(install.build_settings({})) == first
    other = install.find_or_build(install.build_settings({"HOROVOD_DEBUG": "1"}))
    assert other != first
    assert len(built) == 2


def test_a_failed_command_shows_the_end_of_its_output(install: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", "print('no such header'); raise SystemExit(3)"]
    with pytest.raises(install.InstallError, match=r"the build failed \(exit 3\)") as caught:
        install.run(command, log, {}, "the build")
    assert "no such header" in str(caught.value)


def test_the_installed_horovod_has_these_edits(install: ModuleType) -> None:
    version = importlib.metadata.version("horovod")
    assert version.startswith(f"{install.VERSION}+mended.{install.edits_hash()}."), (
        f"horovod {version} is installed, which install/horovod.py did not build with its present"
        " edits; run make setup"
    )
