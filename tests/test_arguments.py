"""What stands on a command line: read as its writer means it, or one line and exit code 2."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.arguments import Arguments
from harness.cli import main
from tests.config.test_config import NASTY

EXPERIMENT = (
    "name: t\ndata: {dataset: synthetic, num_classes: 12, image_size: 8}\ntrain: {steps: 2}\n"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "run.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([""], "invalid choice"),
        (["trian", "run.yaml"], "invalid choice: 'trian'"),
        (["train"], "takes one EXPERIMENT.yaml, found none"),
        (["train", "train.steps=3"], "takes one EXPERIMENT.yaml, found none"),
        (["train", "run.yaml", "run.yaml"], "found run.yaml, run.yaml; name one"),
        (["train", "run.yaml", "train.steps"], "write overrides as key=value"),
        (["train", "run.yaml", "--fold", "x"], "unrecognized arguments: --fold x"),
        (["train", "run.yaml", "--folder"], "expected one argument"),
        (["train", "run.yaml", "--folder", ""], "argument --folder: it is empty"),
        (["train", "run.yaml", "--folder", "~nobody-here/x"], "no home folder ~nobody-here"),
        (["train", "~nobody-here/run.yaml"], "no home folder ~nobody-here"),
        (["train", "--", "-x.yaml"], "cannot read the experiment"),
        (["train", "-x.yaml"], "unrecognized arguments: -x.yaml"),
        (["train", ""], "it is empty"),
        (["compare", "run.yaml", "--seed", "3"], "unrecognized arguments: --seed 3"),
        (["compare", "run.yaml", "--seeds", "0"], "0 does not fit; give a whole number from 1 to"),
        (["compare", "run.yaml", "--seeds", "-1"], "-1 does not fit"),
        (["compare", "run.yaml", "--seeds", "1000000000"], "from 1 to 1,000"),
        (["compare", "run.yaml", "--seeds", "2.5"], "2.5 does not fit"),
        (["compare", "run.yaml", "--np", "0"], "argument --np/-np: 0 does not fit"),
        (["compare", "run.yaml", "--np", "-3"], "argument --np/-np: -3 does not fit"),
        (["compare", "run.yaml", "--np", "9" * 5000], "does not fit"),
        (["compare", "run.yaml", "--np", "٣"], "argument --np/-np: ٣ does not fit"),
        (
            ["compare", "run.yaml", "--target", "nan"],
            "--target must be above 0 and at most 1, got nan",
        ),
        (["compare", "run.yaml", "--target", "high"], "argument --target"),
        (["compare", "run.yaml", "--study", ""], "argument --study: it is empty"),
        (["compare", "--from-study", ""], "argument --from-study: it is empty"),
        (["compare", "run.yaml", "--predictions", "/dev/zero"], "a device or a pipe"),
        (["doctor", "run.yaml", "--np", "0"], "argument --np/-np: 0 does not fit"),
        (["doctor", "run.yaml", "-np=-2"], "argument --np/-np: -2 does not fit"),
        (["launch", "run.yaml", "--np", "0"], "argument --np/-np: 0 does not fit"),
        (["launch", "run.yaml", "run.yaml"], "found run.yaml, run.yaml"),
        (["launch", "train.steps=3"], "harness launch takes one EXPERIMENT.yaml, found none"),
        (["plan", "run.yaml", "--cluster", "/dev/zero"], "a device or a pipe"),
        (["plan", "run.yaml", "--cluster", "run.yaml", "--simulate", "-5"], "-5 does not fit"),
        (["plan", "run.yaml", "--cluster", "run.yaml", "--nodes", "0"], "0 does not fit"),
        (["plan", "run.yaml", "--hosts", "localhost:1", "--seconds", "inf"], "inf does not fit"),
        (["plan", "run.yaml", "--cluster", "c.yaml", "--output", "none/p.json"], "cannot write"),
        (["plan", "run.yaml", "--cluster", "c.yaml", "--output", "."], "cannot write"),
        (["plan", "run.yaml", "--cluster", "run.yaml"], "run.yaml is an experiment, not a cluster"),
        (["lab", "status", "a=b"], "unrecognized arguments: a=b"),
        (["lab", "up", "--hosts", "0"], "0 does not fit"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    words: list[str], said: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.rglob("*"))
    assert main(words) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("harness: ")
    assert said in line
    assert len(line) < 6000
    assert sorted(here.rglob("*")) == before


def test_what_holds_an_equals_sign_is_an_override_unless_it_is_a_file(here: Path) -> None:
    (here / "lr=0.1.yaml").write_text(EXPERIMENT)
    words = ["a.yaml", "train.steps=3", "lr=0.1.yaml", "data.root=x.yaml", "~/b.yaml"]
    found = Arguments.split(words)
    assert found.experiments == (Path("a.yaml"), Path("lr=0.1.yaml"), here / "home" / "b.yaml")
    assert found.overrides == ("train.steps=3", "data.root=x.yaml")


def test_no_experiment_looks_like_an_option_to_the_ranks(here: Path) -> None:
    """They get it by its name, on a command line of their own."""
    (experiment,) = Arguments.split(["-x.yaml"]).experiments
    assert experiment == here / "-x.yaml"


ODD = st.text(max_size=8).filter(lambda text: "\0" not in text) | st.sampled_from(NASTY)
OPTIONS = st.sampled_from(
    [
        *("--np", "--hosts", "--seeds", "--study", "--folder", "--target", "--baseline"),
        *("--cluster", "--from-study", "--json", "--nodes", "--simulate", "--output"),
        *("--", "-H", "-np", "-x"),
    ]
)


@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    command=st.sampled_from(("train", "compare", "plan", "launch")),
    words=st.lists(ODD | OPTIONS | st.just("none.yaml"), max_size=5),
)
def test_any_words_end_in_one_line(
    command: str, words: list[str], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing here can run: no word names an experiment that is there."""
    words = [word for word in words if not word.startswith(("--he", "-h"))]
    options = ["--dry-run"] if command == "launch" else []
    code = main([command, *options, *words])
    err = capfd.readouterr().err
    assert "Traceback" not in err
    if command != "launch":  # which starts any program
        assert code == 2
        assert len(err.splitlines()) == 1


def test_an_override_that_replaces_a_key_of_the_file_is_said(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "child.yaml").write_text("base: run.yaml\ntrain: {epochs: 3}\n")
    words = ["train.steps=2", "backbone.name=none", "tracking.enabled=false"]
    assert main(["train", "child.yaml", *words]) == 2
    out, mistake = capfd.readouterr()
    assert out == "harness: train.steps=2 replaces train.epochs=3 (child.yaml, line 2)\n"
    assert "unknown backbone.name=none" in mistake
    assert main(["train", "child.yaml", "train.steps=2", "train.epochs=1"]) == 2
    assert "give either train.steps or train.epochs" in capfd.readouterr().err
