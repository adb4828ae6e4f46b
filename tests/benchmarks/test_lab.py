"""The page that `make lab` leaves, from numbers at hand; a study that goes on where it ended."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from analysis.draw.scaling import CONDITIONS
from benchmarks import lab, lab_hosts
from benchmarks.lab_page import page, table
from harness.config import load
from harness.tracking.failure import FAILURES_FILE, Failure, divergence, write_failures
from harness.tracking.run_folder import CONFIG, RunFolder
from tests.recorded import summary


def variant(name: str, rate: float, ratio: float, wait: float) -> dict[str, object]:
    return {
        "variant": name,
        "images_per_second": rate,
        "ratio": ratio,
        "ratio_quartiles": [ratio - 0.02, ratio + 0.02],
        "exchange_wait_percent": wait,
    }


POWERSGD = "experiments/rivals/ddp_powersgd.yaml"
MEASURED = [
    variant("ceiling", 1000.0, 1.0, 0.0),
    variant("hybrid_averaging", 960.0, 0.961, 1.23),
    variant("data_parallel", 192.0, 0.19, 88.8),
]


def test_rates_stand_beside_the_ceiling_and_the_baseline() -> None:
    assert table(MEASURED) == [
        "| variant | images/s | of ceiling | quartiles | of data_parallel | exchange wait |",
        "|:--|--:|--:|--:|--:|--:|",
        "| ceiling | 1000 | 1.000 | 0.98 - 1.02 | 5.21x | 0.0 % |",
        "| hybrid_averaging | 960 | 0.961 | 0.94 - 0.98 | 5.00x | 1.2 % |",
        "| data_parallel | 192 | 0.190 | 0.17 - 0.21 | 1.00x | 88.8 % |",
    ]


def test_waiting_that_is_not_seen_is_no_zero_and_a_table_names_its_commit(tmp_path: Path) -> None:
    row = variant("ddp", 500.0, 0.5, 0.0) | {"exchange_wait_percent": None}
    assert table([MEASURED[0], row])[-1].endswith("| - |")
    recorded = [each | {"commit": "abc", "cpu": "a chip"} for each in MEASURED]
    (tmp_path / "rate.json").write_text(json.dumps({"mbit_per_second": {"slow": 125}}))
    (tmp_path / "rate-slow.json").write_text(json.dumps(recorded))
    assert "Measured at commit abc on a chip." in page(tmp_path)


def test_without_the_baseline_nothing_is_measured_against_it() -> None:
    assert table(MEASURED[:2])[-1] == "| hybrid_averaging | 960 | 0.961 | 0.94 - 0.98 |  | 1.2 % |"


def test_the_page_holds_what_was_measured_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "rate.json").write_text(json.dumps({"mbit_per_second": {"slow": 125}}))
    (tmp_path / "rate-slow.json").write_text(json.dumps(MEASURED))
    assert "## rate-slow" in page(tmp_path)
    assert "## lab" not in page(tmp_path)
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "comparison.md").write_text("# lab: 4 ranks\n\n| a |\n")
    assert page(tmp_path).rstrip().endswith("## lab: 4 ranks\n\n| a |")


class Hosts:
    """In place of the lab: `compare` there leaves runs, and ends with the first so many."""

    def __init__(self, trainings: int) -> None:
        self.left = trainings
        self.made: list[str] = []
        self.labs = 0

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (lab, lab_hosts):
            monkeypatch.setattr(module, "lab", self.up)
            monkeypatch.setattr(module, "in_lab", self.run)

    @contextmanager
    def up(self, *_: object) -> Iterator[str]:
        self.labs += 1
        yield "h1:2,h2:2"

    def run(self, words: Sequence[str], log: Path) -> None:
        experiments = [Path(word) for word in words if word.endswith(".yaml")]
        (seed,) = [word.removeprefix("seed=") for word in words if word.startswith("seed=")]
        folder = Path(words[words.index("--folder") + 1])
        folder.mkdir()
        for path in experiments:
            if not self.left:
                raise lab.LabFailed("interrupted")
            self.left -= 1
            run = folder / f"{path.stem}-s{seed}"
            run.mkdir()
            (run / CONFIG).write_text(load(path, (f"seed={seed}",)).to_yaml())
            RunFolder(run).write_summary(summary(path.stem, seed=int(seed)))
            self.made.append(run.name)


def test_a_study_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiments = [lab.BASELINE, lab.METHOD, "experiments/rivals/data_parallel_int8.yaml"]
    made = []
    for trainings in (4, 100):
        hosts = Hosts(trainings)
        hosts.stand_in(monkeypatch)
        if trainings == 4:
            with pytest.raises(lab.LabFailed):
                lab._trained(tmp_path / "trainings", lab.Link(), experiments)
        else:
            found = lab._trained(tmp_path / "trainings", lab.Link(), experiments)
        made += hosts.made
    variants = ("data_parallel", "data_parallel_int8", "hybrid_averaging")
    wanted = [f"{name}-s{seed}" for seed in lab.SEEDS for name in variants]
    assert sorted(made) == sorted(wanted), "each once"
    assert made[3] == "data_parallel_int8-s1", "and there and back"
    assert [each.name for each in found] == list(variants)
    assert [len(each.summaries) for each in found] == [3, 3, 3]
    labs = hosts.labs
    assert lab._trained(tmp_path / "trainings", lab.Link(), experiments) == found
    assert hosts.labs == labs, "nothing is left to train"


GRID = lab.Grid(lab.Link("9.3mbit", latency="20ms"))


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tables that were measured, each with the rows of `MEASURED`."""
    measured: list[str] = []

    def rates(folder: Path, name: str, *_: object) -> None:
        if not (folder / f"{name}.json").exists():
            measured.append(name)
            (folder / f"{name}.json").write_text(json.dumps(MEASURED))

    monkeypatch.setattr(lab, "rates", rates)
    return measured


def test_a_table_is_measured_once_and_its_conditions_are_recorded(
    tmp_path: Path, measuring: list[str]
) -> None:
    for _ in range(2):
        assert lab.measure(tmp_path, "table", GRID, 3755, [lab.METHOD], []) == MEASURED
    assert measuring == ["table"]
    noted = json.loads((tmp_path / CONDITIONS).read_text())["table"]
    assert (noted["hosts"], noted["ranks"], noted["classes"]) == (2, 4, 3755)
    assert (noted["mbit_per_second"], noted["latency"]) == (9.3, "20ms")


def test_a_table_of_another_link_or_without_a_variant_is_not_taken(
    tmp_path: Path, measuring: list[str]
) -> None:
    lab.measure(tmp_path, "table", GRID, 1000, [lab.METHOD], [])
    with pytest.raises(lab.LabFailed, match="has no rows of ddp, ddp_powersgd; delete it"):
        lab.measure(tmp_path, "table", GRID, 1000, [lab.METHOD, lab.DDP, POWERSGD + ",seed=1"], [])
    with pytest.raises(lab.LabFailed, match="was measured under"):
        lab.measure(tmp_path, "table", lab.Grid(lab.Link("15mbit")), 1000, [lab.METHOD], [])
    noted = json.loads((tmp_path / CONDITIONS).read_text())["table"]
    assert noted["mbit_per_second"] == 9.3


@pytest.mark.parametrize("interrupted", [False, True])
def test_only_a_study_in_one_go_is_called_in_turn(
    interrupted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    monkeypatch.setattr(lab, "conclude", lambda results, *_: said.append(results.in_turn))
    hosts = Hosts(5)
    hosts.stand_in(monkeypatch)
    if interrupted:
        with pytest.raises(lab.LabFailed):
            lab.clock(tmp_path, {"slow": lab.Link()})
    hosts.left = 100
    lab.clock(tmp_path, {"slow": lab.Link()})
    assert said == [not interrupted]


def test_a_run_that_diverged_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = Hosts(100)
    hosts.stand_in(monkeypatch)
    config = load(lab.METHOD, ("seed=0",))
    (tmp_path / "part-1").mkdir()
    failures = [Failure(config=config, reason=divergence("loss, window 3"))]
    failures.append(Failure(config=load(lab.BASELINE, ("seed=1",)), reason="a host is gone"))
    write_failures(failures, tmp_path / "part-1" / FAILURES_FILE)
    baseline, method = lab._trained(tmp_path, lab.Link(), [lab.BASELINE, lab.METHOD])
    assert sorted(hosts.made) == [
        *(f"data_parallel-s{seed}" for seed in lab.SEEDS),
        *(f"hybrid_averaging-s{seed}" for seed in (1, 2)),
    ]
    assert method.diverged == ("loss, window 3",)
    assert not baseline.failures, "its failed run was trained again"
