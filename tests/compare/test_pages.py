"""What a person sees: the report and MLflow's page of a study, in a real browser."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.compare.colours import styles_of
from harness.compare.conclude import Conclusion
from harness.config import Config
from harness.tracking.connection import open_store
from harness.tracking.results import Results, Terms
from harness.tracking.tracker import Tracker
from harness.train.run_journal import summary_metrics
from tests.browser import Browser, browser, end_group, needs_browser
from tests.compare.trained import OTHER_ENDS, OTHER_SPEEDS, trained, trainings
from tests.recorded import variant

pytestmark = needs_browser

NAME = "hybrid_averaging_k4_int8_two_pieces"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


def results() -> Results:
    rivals = [
        trainings(NAME, OTHER_SPEEDS, OTHER_ENDS, faster=3.0, layout="node"),
        trainings("hasty", OTHER_SPEEDS, (*OTHER_ENDS[:4], 0.85), faster=2.0),
        variant("gone", failures=("rank 1",)),
    ]
    environment = {"versions": {"torch": "2.13.0"}, "cpu": "a processor", "usable_cores": 2}
    return Results("which", (trainings("data_parallel"), *rivals), (environment,))


@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_is_readable_on_a_desk_and_in_a_hand(
    width: int, chromium: Browser, tmp_path: Path
) -> None:
    Conclusion.of(results(), Terms(0.9)).write(tmp_path)
    page = (tmp_path / "report.html").as_uri()
    chromium.open(page, width)
    assert chromium.requests == [page]
    assert chromium.complaints == []
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert chromium.evaluate(overflow) == 0
    assert chromium.evaluate("innerWidth") == width
    images = "[...document.images].map(i => i.complete && i.naturalWidth * i.naturalHeight)"
    sizes = chromium.evaluate(images)
    assert len(sizes) == 3
    assert min(sizes) > 10_000
    # The verdict comes first, and is seen without scrolling.
    box = "JSON.stringify(document.querySelector('.winner').getBoundingClientRect())"
    assert re.search(r'"top":\d{2,3}[.,]', chromium.evaluate(box))
    seen = chromium.evaluate("document.body.innerText")
    winner = rf"Winner by time to 90\.00%: {NAME} \(7\.\d s\), 3\.\d\dx faster than the runner-up"
    assert re.search(winner, seen)
    assert "hasty: misses the target; more images/s; accuracy inconclusive" in seen.replace(
        "\n", " "
    )
    assert "gone: no result, its only run failed" in seen
    assert "classifier.layout" in seen
    assert "a processor" in seen
    assert str(tmp_path) not in (tmp_path / "report.html").read_text()


def test_a_variant_has_the_same_colour_in_words_tables_and_pictures(
    chromium: Browser, tmp_path: Path
) -> None:
    Conclusion.of(results(), Terms(0.9)).write(tmp_path)
    chromium.open((tmp_path / "report.html").as_uri(), 1280)
    own = styles_of(each.name for each in results().variants)[NAME].colour.lower()
    said = "getComputedStyle(document.querySelector('.rivals li')).borderLeftColor"
    row = f"[...document.querySelectorAll('td')].find(d => d.innerText == '{NAME}')"
    colour = f"getComputedStyle({row}.querySelector('.swatch')).backgroundColor"
    assert (
        chromium.evaluate(said)
        == chromium.evaluate(colour)
        == f"rgb{tuple(bytes.fromhex(own[1:]))}"
    )
    pictures = f"[...document.images].map(i => atob(i.src.split(',')[1]).includes('{own}'))"
    assert chromium.evaluate(pictures) == [True, True, True]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's own pages of a store with two variants of two seeds; their address."""
    folder = tmp_path_factory.mktemp("ui")
    store = f"sqlite:///{folder}/mlflow.db"
    open_store(store)
    for name, faster in (("data_parallel", 1.0), ("hybrid_averaging", 3.0)):
        for seed in (0, 1):
            keep(store, folder, name, seed, faster)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mlflow = shutil.which("mlflow", path=str(Path(sys.executable).parent))
    assert mlflow is not None
    process = subprocess.Popen(
        [mlflow, "ui", "--workers", "1", "--backend-store-uri", store, "--port", str(port)],
        cwd=folder,
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        await_answer(f"{address}/health", process)
        yield address
    finally:
        end_group(process)


def keep(store: str, folder: Path, name: str, seed: int, faster: float) -> None:
    """What a training leaves in the store."""
    tracking = {"uri": store, "study": "which"}
    values = {"name": name, "seed": seed, "train": {"steps": 300}, "tracking": tracking}
    place = folder / f"{name}-s{seed}"
    place.mkdir()
    tracker = Tracker.start(Config.model_validate(values), place, {})
    run = trained(name, seed, faster * (1 + 0.01 * seed), 0.97)
    for point in run.evaluations:
        tracker.log(point.window, {"val/top1": point.metrics["val/top1"]})
    tracker.log(0, summary_metrics(run))
    tracker.finish("FINISHED")


def await_answer(address: str, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, "the server has ended"
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError("the server does not answer")


def test_mlflows_page_shows_the_study_and_its_charts(server: str, chromium: Browser) -> None:
    chromium.open(f"{server}/#/experiments/1/runs?compareRunsMode=CHART", 1600, 1200)
    text = "document.body.innerText"
    for name in ("data_parallel-s0", "data_parallel-s1", "hybrid_averaging-s0"):
        chromium.wait_for(f"{text}.includes('{name}')")
    chromium.wait_for(f"{text}.includes('summary/images_per_second')")
    plots = "[...document.querySelectorAll('.js-plotly-plot')]"
    speeds = "['1280.00', '1292.80', '3840.00', '3878.40'].every(s => p.innerText.includes(s))"
    bars = "p.querySelectorAll('.bars path').length == 4"
    chromium.wait_for(f"{plots}.some(p => {speeds} && {bars})")
