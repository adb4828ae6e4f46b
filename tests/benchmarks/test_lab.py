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


def test_a_table_that_is_there_needs_no_lab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = Hosts(0)
    hosts.stand_in(monkeypatch)
    (tmp_path / "table.json").write_text(json.dumps(MEASURED))
    link = lab.Link("9.3mbit", latency="20ms")
    assert lab.measure(tmp_path, "table", link, 3755, [lab.METHOD], []) == MEASURED
    assert hosts.labs == 0
    noted = json.loads((tmp_path / CONDITIONS).read_text())["table"]
    assert (noted["hosts"], noted["ranks"], noted["classes"]) == (2, 4, 3755)
    assert (noted["mbit_per_second"], noted["latency"]) == (9.3, "20ms")


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
