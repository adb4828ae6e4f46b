"""The command `harness doctor`: on one process, on emulated nodes, and what it refuses."""

import json
from pathlib import Path

import pytest

from harness.cli import main
from harness.doctor import examination
from harness.doctor.compute import Speed
from harness.launch.launch import Outcome
from tests.horovodrun import horovodrun

EXPERIMENT = """
name: small
data: {dataset: synthetic, num_classes: 12, image_size: 8}
train: {batch_size: 4, steps: 2}
tracking: {uri: "sqlite:///store.db"}
"""
CHECKS = [
    "versions",
    "horovod",
    "names",
    "memory",
    "disk",
    "compute",
    "links",
    "in-host",
    "clocks",
    "tracking",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "small.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(examination, "ROUND_SECONDS", 0.01)
    return tmp_path


def test_one_process_without_a_launcher(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    *lines, scope, last = capfd.readouterr().out.splitlines()
    assert scope.startswith("only this process on this machine was checked; to check all ranks")
    assert [line.split()[:2] for line in lines] == [["ok", check] for check in CHECKS]
    assert last == "doctor: 10 ok, 0 warn, 0 fail"
    assert [path.name for path in here.iterdir()] == ["small.yaml"], "something was left behind"


def test_a_fault_is_told_and_ends_with_1(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["small.yaml", "tracking.uri=sqlite:///none/store.db", "--json"]
    assert main(["doctor", *arguments]) == 1
    (line,) = capfd.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["verdict"] == "fail"
    (fault,) = [each for each in found["findings"] if each["level"] != "ok"]
    assert fault["check"] == "tracking"
    assert "cannot write the MLflow store" in fault["found"]
    (speed,) = found["speeds"]
    assert Speed.model_validate(speed).flop_per_second > 0
    assert found["links"] == []
    assert [seat["rank"] for seat in found["seats"]] == [0]


def test_what_the_model_does_not_take(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "small.yaml", "backbone.name=alexnet"]) == 1
    assert "fail  config     backbone.name=alexnet cannot take" in capfd.readouterr().out


def test_a_card_that_is_not_there(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert main(["doctor", "small.yaml", "train.device=cuda"]) == 1
    assert "fail  cards      train.device=cuda needs a card for each rank" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.yaml"], "cannot read the experiment"),
        (["small.yaml", "small.yaml"], "one experiment at a time"),
        (["train.steps=3"], "train.steps=3 changes an experiment"),
        (["small.yaml", "train.stepz=3"], "unknown key train.stepz"),
        (["--hosts", "h1"], "write NAME:SLOTS"),
    ],
)
def test_what_is_refused(
    here: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["doctor", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err


def test_emulated_nodes(here: Path) -> None:
    ended = horovodrun(
        ["-m", "harness", "doctor", "small.yaml", "--json"], folder=here, check=False
    )
    (line,) = ended.lines(0)
    found = json.loads(line)
    levels = {each["check"]: each["level"] for each in found["findings"]}
    assert list(levels) == CHECKS
    # Whether two cores are fast enough for four ranks depends on the machine.
    assert {check: level for check, level in levels.items() if check != "compute"} == {
        check: "ok" for check in CHECKS if check != "compute"
    }
    assert ended.returncode == int(levels["compute"] == "fail")
    assert [(link["source"], link["target"]) for link in found["links"]] == [(0, 2), (0, 1), (2, 3)]
    assert len(found["speeds"]) == 4
    assert [seat["host"] for seat in found["seats"]] == ["localhost"] * 2 + ["127.0.0.1"] * 2
    assert not [ended.lines(rank) for rank in (1, 2, 3) if ended.lines(rank)]


def test_it_starts_horovodrun_itself(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--hosts", "localhost:1,127.0.0.1:1"])
    out, err = capfd.readouterr()
    assert "names      2 ranks on 2 hosts, all on this machine" in out
    assert "only this process" not in out
    assert out.splitlines()[-1].startswith("doctor: ")
    assert code == int(", 0 fail" not in out)
    assert err == ""


def test_json_stands_alone_whatever_else_is_printed(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A shell on another host may print `Terminated` for a rank that it ended."""
    log = tmp_path / "log.txt"
    log.write_text('[0 stdout] {"verdict": "fail"}\n[horovodrun] Terminated\n')
    outcome = Outcome(1, "", log, stopped=False)
    monkeypatch.setattr("harness.doctor.doctor.launch", lambda *_: outcome)
    assert main(["doctor", "--json", "--hosts", "localhost:1"]) == 1
    assert capfd.readouterr().out == '{"verdict": "fail"}\n'
