"""The pages: their links lead somewhere, their commands run, their metrics are those of a run."""

import argparse
import json
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest
from horovod.runner.launch import parse_args

from harness import cli
from harness.arguments import SUFFIXES, Arguments
from harness.config import Config, load
from harness.config.section import keys_of
from harness.measure.phase import Phase
from tests.horovodrun import horovodrun

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "analysis/README.md",
    ROOT / "deploy/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "harness").rglob("README.md")),
]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=name_of)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[(?:[^][]|\[[^][]*\])*\]\(([^)\s]+)\)")
ELSEWHERE = ("http://", "https://", "mailto:")
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
SHORT = (
    *("data.num_classes=16", "data.image_size=16", "backbone.feature_dim=8", "train.threads=1"),
    *("train.batch_size=4", "train.steps=8", "train.log_every=2", "train.evaluate_every=4"),
    *("train.untimed_windows=1", "train.evaluate_images=8", "train.matmul_seconds=0.02"),
    *("optimizer.warmup_windows=2", "staleness.sample_every=2", "staleness.curvature_products=2"),
    "tracking.enabled=false",
    "train.device=cpu",
)
"""A few windows, in which everything is measured that is measured now and then."""
IN_MLFLOW, IN_TROUBLE = "In MLflow only", "Only in runs that go wrong"
"""Headings of docs/metrics.md: of names that are not in metrics.jsonl, or in few of them."""


class Unknown(AssertionError):
    """No rule here says how to try such a command."""


@dataclass(frozen=True)
class Command:
    """One command line of a page."""

    page: Path
    line: str
    output: tuple[str, ...] = ()
    """What the page shows of what it prints."""

    @property
    def words(self) -> list[str]:
        words = shlex.split(self.line.removesuffix("&"), comments=True)
        while words and ASSIGNMENT.match(words[0]):
            words.pop(0)
        return words

    @property
    def made_before(self) -> set[str]:
        """Files that earlier commands of the page write."""
        before = [*commands_of(self.page.read_text())]
        earlier = before[: before.index((self.line, self.output))]
        words = [word for line, _ in earlier for word in shlex.split(line, comments=True)]
        options = ("--calibrate", "--output")
        return {words[at + 1] for at, word in enumerate(words) if word in options}


def commands_of(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Command lines, and the output that is shown of each."""
    for language, content in FENCE.findall(text):
        joined = content.replace("\\\n", " ")
        if language == "console":
            for shown in re.split(r"^\$ ", joined, flags=re.MULTILINE)[1:]:
                line, *output = shown.splitlines()
                yield line, tuple(filter(None, output))
        elif language == "sh":
            for line in joined.splitlines():
                if shlex.split(line, comments=True):
                    yield line.strip(), ()


COMMANDS = [
    pytest.param(Command(page, line, output), id=f"{name_of(page)}-{' '.join(line.split())[:80]}")
    for page in PAGES
    for line, output in commands_of(page.read_text(encoding="utf-8"))
]


# links ------------------------------------------------------------------------------------------


def anchors_of(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+?) *#*$", FENCE.sub("", text), flags=re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.append(f"{anchor}-{found.count(anchor)}" if anchor in found else anchor)
    return set(found)


def dead_links(page: Path, text: str) -> list[str]:
    plain = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    return [
        link
        for link in LINK.findall(plain)
        if not link.startswith(ELSEWHERE) and not leads_somewhere(page, link)
    ]


def leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = unquote(link).partition("#")
    target = page.parent / path if path else page
    if not target.exists():
        return False
    return not anchor or anchor in anchors_of(target.read_text(encoding="utf-8"))


@EACH_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page, page.read_text(encoding="utf-8")) == []


def test_a_dead_link_is_seen() -> None:
    text = "# A b, c\n[a](#a-b-c) [b](#a-b) [c](README.md) [d](NONE.md) [e](README.md#none)\n"
    found = [link for link in dead_links(ROOT / "README.md", text) if link != "#a-b-c"]
    assert found == ["#a-b", "NONE.md", "README.md#none"]


@EACH_PAGE
def test_settings_are_those_of_the_config(page: Path) -> None:
    known = set(keys_of(Config))
    sections = "|".join({key.partition(".")[0] for key in known if "." in key})
    text = " ".join(re.findall(r"`[^`\n]+`", FENCE.sub("", page.read_text(encoding="utf-8"))))
    named = set(re.findall(rf"(?<![\w./-])(?:{sections})\.[a-z_]+(?![\w/(.])", text))
    files = {name for name in named if name.endswith((".py", ".yaml", ".md"))}
    assert named - files - known == set()


# commands ---------------------------------------------------------------------------------------


def check(words: Sequence[str], made: set[str]) -> argparse.Namespace | None:
    """Tries a command line, or has its arguments taken by the parser that takes them in earnest."""
    name = Path(words[0]).name
    if name not in RULES:
        raise Unknown(f"{name}: add a rule for it, or leave it out of the page")
    return RULES[name](list(words[1:]), made)


def check_make(words: list[str], made: set[str]) -> None:
    variables = [word.partition("=")[0] for word in words if "=" in word]
    known = set(re.findall(r"\$\((?:if \$\()?([A-Z]+)", (ROOT / "Makefile").read_text()))
    assert set(variables) <= known, "the Makefile knows no such variable"
    subprocess.run(["make", "-n", *words], cwd=ROOT, check=True, capture_output=True, timeout=30)


def check_harness(words: list[str], made: set[str]) -> argparse.Namespace:
    parsed = cli._parse(words)
    given = getattr(parsed, "arguments", None) or []
    if words[:2] == ["lab", "run"] or (words[0] == "launch" and not given[0].endswith(SUFFIXES)):
        check(given, made)  # a program, behind `--`
        return parsed
    arguments = Arguments.split(given)
    for experiment in arguments.experiments:
        load(ROOT / experiment, arguments.overrides)
    assert arguments.experiments or not arguments.overrides
    for file in (getattr(parsed, "cluster", None), getattr(parsed, "predictions", None)):
        assert file is None or (ROOT / file).exists() or str(file) in made, f"there is no {file}"
    return parsed


def horovodrun_arguments(words: list[str]) -> argparse.Namespace:
    before, sys.argv = sys.argv, ["horovodrun", *words]
    try:
        parsed: argparse.Namespace = parse_args()
    finally:
        sys.argv = before
    return parsed


def check_horovodrun(words: list[str], made: set[str]) -> None:
    parsed = horovodrun_arguments(words)
    slots = [int(host.partition(":")[2]) for host in parsed.hosts.split(",")]
    assert parsed.num_proc == sum(slots)
    check(parsed.command, made)


def check_mlflow(words: list[str], made: set[str]) -> None:
    from mlflow.cli import cli as mlflow

    assert mlflow.commands[words[0]].make_context(words[0], words[1:])


def check_python(words: list[str], made: set[str]) -> argparse.Namespace | None:
    assert words[:2] == ["-m", "harness"], "only harness is tried as a module"
    return check(["harness", *words[2:]], made)


RULES: dict[str, Callable[[list[str], set[str]], argparse.Namespace | None]] = {
    "make": check_make,
    "harness": check_harness,
    "horovodrun": check_horovodrun,
    "mlflow": check_mlflow,
    "python": check_python,
    "hostname": lambda words, made: None,
}


def costs_little(words: Sequence[str]) -> bool:
    """Whether it really runs here: it reads what the repository ships, and starts nothing."""
    named = set(words)
    reads = {"--from-study", "recorded"} <= named
    predicts = "plan" in named and not {"--hosts", "--study", "--output"} & named
    shows = {"launch", "--dry-run"} <= named
    return reads or shows or (predicts and "experiments/clusters/8xV100-25g.yaml" in named)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    parsed = check(command.words, command.made_before)
    runs = costs_little(command.words)
    assert runs or not command.output, "nobody compares this output with what is printed"
    if runs and parsed is not None:
        if "folder" in parsed and not parsed.folder and "dry_run" not in parsed:
            parsed.folder = tmp_path / "out"
        assert parsed.command(parsed) == 0
        printed = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [line for line in command.output if line.split() not in printed] == []


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("rsync -a here there", Unknown),
        ("harness lab run -- rsync -a here there", Unknown),
        ("make nothing", subprocess.CalledProcessError),
        ("make demo STUDI=demo", AssertionError),
        ("harness trial experiments/lab/ceiling.yaml", Exception),
        ("harness train experiments/lab/none.yaml", Exception),
        ("harness train experiments/lab/ceiling.yaml train.stepz=3", Exception),
        ("harness compare experiments/lab/ceiling.yaml --seed 3", Exception),
        ("harness plan experiments/lab/ceiling.yaml --cluster none.yaml", AssertionError),
        ("horovodrun -np 3 -H h1:2 python -m harness train experiments/base.yaml", AssertionError),
        ("mlflow server --hots h1", Exception),
    ],
)
def test_a_wrong_command_is_seen(
    line: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(error):
        check(shlex.split(line), set())


def parsers() -> dict[str, argparse.ArgumentParser]:
    (commands,) = [
        action.choices
        for action in cli._parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    return dict(commands)


@pytest.mark.parametrize("name", sorted(parsers()))
def test_help_opens_with_an_example_that_works(name: str) -> None:
    _, example = parsers()[name].format_help().split("example:\n", 1)
    words = shlex.split(example.split("\n\n", 1)[0])
    assert words.count("harness") == 1
    parsed = cli._parse(words[words.index("harness") + 1 :])
    for each in Arguments.split(getattr(parsed, "arguments", [])).experiments:
        load(ROOT / each)


def test_the_front_page_names_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \[harness (\w+)\]", text, flags=re.MULTILINE)) == set(parsers())


PAGE_OF = {
    name: name for name in ("train", "launch", "compare", "doctor", "plan", "pack", "evaluate")
} | {"ui": "tracking"}


@pytest.mark.parametrize("name", PAGE_OF)
def test_a_page_names_every_option(name: str) -> None:
    page = ROOT / "harness" / PAGE_OF[name] / "README.md"
    first = [
        cells[0]
        for heading, cells in rows_of(page.read_text(encoding="utf-8"))
        if heading.startswith("argument")
    ]
    named = {word for cell in first for word in re.findall(r"--[a-z][a-z-]*", cell)}
    options = {
        option
        for action in parsers()[name]._actions
        for option in action.option_strings
        if option.startswith("--") and option != "--help"
    }
    assert named == options


def rows_of(text: str) -> Iterator[tuple[str, list[str]]]:
    """Of every table: the first cell of its head, and the cells of each row."""
    heading: str | None = None
    for line in text.splitlines():
        if not line.startswith("|"):
            heading = None
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if heading is None:
            heading = cells[0]
        elif not set(line) <= set("|-: "):
            yield heading, cells


# metrics ----------------------------------------------------------------------------------------

PLACES = {
    "<phase>": "|".join(Phase),
    "<set>": "[a-z]+_[a-z]+",
    "<node>": "[0-9]+",
    "<gauge>": ".+",
    "<variant>": ".+",
}


def documented() -> dict[str, set[str]]:
    """Names of metrics by the section of docs/metrics.md that has them."""
    sections = re.split(r"^## +", (ROOT / "docs/metrics.md").read_text("utf-8"), flags=re.MULTILINE)
    return {
        section.partition("\n")[0]: {
            cells[0].strip("`") for heading, cells in rows_of(section) if heading == "metric"
        }
        for section in sections
    }


def fits(pattern: str, name: str) -> bool:
    parts = re.split(f"({'|'.join(PLACES)})", pattern)
    return bool(
        re.fullmatch(
            "".join(f"({PLACES[p]})" if p in PLACES else re.escape(p) for p in parts), name
        )
    )


def differing(patterns: set[str], names: set[str]) -> tuple[set[str], set[str]]:
    """Documented and logged by nobody; logged and not documented."""
    unused = {each for each in patterns if not any(fits(each, name) for name in names)}
    return unused, {name for name in names if not any(fits(each, name) for each in patterns)}


def test_the_metrics_are_those_of_a_run(tmp_path: Path) -> None:
    """It is the run on two nodes that the page of `harness train` shows, cut short, and with one
    rank on each."""
    page = ROOT / "harness/train/README.md"
    (words,) = [
        words
        for line, output in commands_of(page.read_text(encoding="utf-8"))
        if Path((words := Command(page, line, output).words)[0]).name == "horovodrun"
    ]
    shown = horovodrun_arguments(words[1:])
    changes = [*SHORT, f"data.cache={tmp_path}/cache", "--folder", f"{tmp_path}/run"]
    horovodrun([*shown.command[1:], *changes], np=2, hosts=shown.hosts.replace(":2", ":1"))
    lines = (tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = {name for line in lines for name in json.loads(line)["metrics"]}
    usual = [names for title, names in documented().items() if title not in (IN_MLFLOW, IN_TROUBLE)]
    assert differing(set().union(*usual), logged) == (set(), set())


def test_the_metrics_in_mlflow_only_are_those_of_the_recorded_store() -> None:
    with sqlite3.connect(f"file:{ROOT}/analysis/store/mlflow.db?mode=ro", uri=True) as base:
        keys = {key for (key,) in base.execute("SELECT DISTINCT key FROM metrics")}
    own = {key for key in keys if key.startswith(("system/", "comparison/"))}
    assert differing(documented()[IN_MLFLOW], own) == (set(), set())


def test_metrics_of_trouble_are_named_after_what_an_evaluation_counts() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "harness").rglob("*.py")]
    beside = {"train/dropped_steps", "summary/restarts", "summary/lost_seconds"}
    for name in ("nonfinite_images", *beside):
        assert any(f'"{name}"' in source for source in sources)
    shown = {re.sub("[/_]nonfinite_images$", "", name) for name in documented()[IN_TROUBLE]}
    assert beside <= shown
    assert shown - beside == {"val", "val/<set>", "summary/val", "summary/val_<set>"}


def test_a_metric_that_nobody_logs_or_documents_is_seen() -> None:
    assert differing({"a/<phase>_ms", "b"}, {"a/data_ms", "c"}) == ({"b"}, {"c"})


@pytest.mark.parametrize("phase", Phase)
def test_each_phase_is_explained(phase: Phase) -> None:
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert phase in {cells[0] for heading, cells in rows_of(text) if heading == "phase"}
