"""A YAML file is read as its writer sees it, or refused in a line with file, line and key."""

import os
from pathlib import Path

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from harness.config import Config, load
from harness.config.layers import escaped, filled
from harness.config.yaml_files import MOST_BYTES, Given, Plain, parse_yaml, read_yaml
from harness.errors import UserError
from harness.plan.from_doctor import cluster_of_doctor
from harness.plan.machines import read_cluster
from harness.tracking.prediction import read_predictions
from tests.plan.clusters import cluster

TRAIN = "train: {steps: 5}\n"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("run.yaml")


def loaded(file: Path, text: str) -> Config:
    file.write_text(text, encoding="utf-8")
    return load(file)


def refusal(file: Path, text: str | bytes) -> str:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        load(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {batch_size: 4}\nseed: 1\ntrain: {steps: 3}\n", "line 3: the key train is"),
        (TRAIN + "optimizer:\n  lr: 1\n  lr: 2\n", "line 4: the key lr is"),
        (TRAIN + "data: {root: a, root: a}\n", "line 2: the key root is"),
        (TRAIN + "'name': a\nname: b\n", "line 3: the key name is"),
        (TRAIN + "train: &t {steps: 3}\n", "line 2: the key train is"),
    ],
)
def test_a_key_stands_once(file: Path, text: str, said: str) -> None:
    message = refusal(file, text)
    assert message.startswith(f"run.yaml, {said} given twice, before in run.yaml, line ")
    assert message.endswith("; keep one of them")


def test_a_key_stands_once_in_bases_and_clusters_too(file: Path, tmp_path: Path) -> None:
    Path("base.yaml").write_text("seed: 1\nseed: 2\n")
    assert refusal(file, "base: base.yaml\n" + TRAIN).startswith("base.yaml, line 2: the key seed")
    cluster().write(tmp_path / "c.yaml")
    with (tmp_path / "c.yaml").open("a") as end:
        end.write("nodes: 4\n")
    with pytest.raises(UserError, match="the key nodes is given twice"):
        read_cluster(tmp_path / "c.yaml")


def test_a_merged_key_may_be_given_anew(file: Path) -> None:
    text = "train: &t {batch_size: 4, steps: 5}\nexchange: {kind: delayed}\n"
    base = "optimizer: &o {lr: 0.5, momentum: 0.1}\n" + TRAIN
    Path("base.yaml").write_text(base)
    assert loaded(file, text).train.batch_size == 4
    own = parse_yaml("a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 5}\n", "here")
    assert own["c"] == {"x": "5", "y": "2", "z": "4"}


# (text of a file, how its message begins, what else it says)
ODD = [
    (TRAIN + "null: 3\n", "line 2", "a key is null"),
    (TRAIN + "~: 3\n", "line 2", "a key is ~"),
    (TRAIN + "?\n: 3\n", "line 2", "a key is nothing"),
    (TRAIN + "? [a]\n: 3\n", "line 2", "a key is not a text"),
    (TRAIN + "2024-05-01: 3\n", "line 2", "unknown key 2024-05-01"),
    (TRAIN + "data: !!set {a, b}\n", "line 2", "the tag !!set is not known here"),
    (TRAIN + "name: !!binary aGk=\n", "line 2", "the tag !!binary is not known here"),
    (TRAIN + "name: !!python/object/apply:os.system [ls]\n", "line 2", "!!python/object/apply"),
    (TRAIN + "name: !mine x\n", "line 2", "the tag !mine is not known here"),
    (TRAIN + "data: &a {root: *a}\n", "line 2", "*a names no value that is complete"),
    (TRAIN + "data: {root: *none}\n", "line 2", "names no value"),
    (TRAIN + "data: {<<: 3}\n", "line 2", "<< names no keys and values"),
    (TRAIN + "---\nseed: 1\n", "line 2", "a second document begins"),
    (TRAIN + "data: {root: '${b'}\n", "line 2", "data.root: '${b' does not end"),
    (TRAIN + "data: {root: '${data.root}'}\n", "line 2", "leads back to itself"),
    (TRAIN + "data: {root: '${data.cache}'}\n", "line 2", "names a key that is not given"),
    (TRAIN + "data: {root: '${oc.env:NO_SUCH_VARIABLE}'}\n", "line 2", "NO_SUCH_VARIABLE is not"),
    (TRAIN + "data: {root: 'a${train}'}\n", "line 2", "is not a text"),
    (TRAIN + "seed: 010\n", "line 2", "begins with 0 as octal"),
    (TRAIN + "seed: 1:30\n", "line 2", "seed=1:30 does not fit: give a whole number"),
    (TRAIN + f"seed: {'9' * 5000}\n", "line 2", "give a whole number from 0 to 9,223"),
    (TRAIN + "optimizer: {lr: .inf}\n", "line 2", "optimizer.lr=.inf does not fit"),
    (TRAIN + "optimizer: {lr: inf}\n", "line 2", "optimizer.lr=inf does not fit"),
    (TRAIN + "optimizer: {lr: -.inf}\n", "line 2", "optimizer.lr=-.inf does not fit"),
    (TRAIN + "optimizer: {lr: nan}\n", "line 2", "optimizer.lr=nan does not fit"),
    (TRAIN + "optimizer: {lr: 1e999}\n", "line 2", "optimizer.lr=1e999 does not fit"),
    (TRAIN + "optimizer: {lr: 2024-05-01}\n", "line 2", "give a number above 0"),
    (TRAIN + "name:\n", "line 2", "name= does not fit"),
    (TRAIN + "tracking: {study: ''}\n", "line 2", "tracking.study= does not fit"),
    (TRAIN + 'data: {root: "a\\0b"}\n', "line 2", "it contains a byte of value 0"),
    (TRAIN + 'base: "a\\0b"\n', "line 2", "it contains a byte of value 0"),
    (TRAIN + "base: ~nobody-here/b.yaml\n", "line 2", "has no home folder ~nobody-here"),
    ("a: " + "[" * 5000, "line 1", "more than 40 levels are nested"),
    ("a: " + "{b: " * 5000, "line 1", "more than 40 levels are nested"),
    ("\n".join(["- " * 60]), "line 1", "more than 40 levels are nested"),
]


@pytest.mark.parametrize(("text", "line", "said"), ODD)
def test_what_cannot_be_taken_is_named_with_its_line(
    file: Path, text: str, line: str, said: str
) -> None:
    message = refusal(file, text)
    assert message.startswith(f"run.yaml, {line}: ")
    assert said in message
    assert len(message) < 400


def test_aliases_do_not_grow_without_bound(file: Path) -> None:
    """A billion values in ten lines, and a text of a gigabyte."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "more than 50,000 values are named" in refusal(file, "\n".join(lines))
    growing = [f"b{n}: '{'${b' + str(n - 1) + '}'}${{b{n - 1}}}'" for n in range(1, 40)]
    text = "\n".join([f"b0: {'x' * 100}", *growing])
    assert "its references make a text too long" in refusal(file, text)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (TRAIN.encode("utf-16"), "byte 1 is not UTF-8; save it as UTF-8"),
        (TRAIN.encode() + b"name: caf\xe9\n", "byte 28 is not UTF-8"),
        (b"\x00\x00", "run.yaml is not YAML"),
        (b"data:\n\troot: x\n", "run.yaml is not YAML, line 2: a tab, where YAML takes blanks"),
        (TRAIN.encode() + b"name: a\x00b\n", "run.yaml is not YAML"),
        (b"a" * (MOST_BYTES + 1), "it has more than 1,048,576 bytes"),
    ],
)
def test_bytes_that_are_no_text(file: Path, raw: bytes, said: str) -> None:
    assert said in refusal(file, raw)


def test_a_byte_order_mark_is_no_part_of_the_first_key(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + TRAIN.encode())
    assert load(file).train.steps == 5


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "circle"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    """A pipe would be waited for, and /dev/zero never ends."""
    path = tmp_path / "odd"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.symlink_to(path)
    for read in (load, read_cluster, read_predictions, cluster_of_doctor):
        with pytest.raises(UserError, match=rf"cannot read the .* {path}: "):
            read(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"verdict": 1}', '"verdict"', "{}", "\0"])
def test_json_that_is_not_the_doctors(text: str, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    for whole in (text, f'{{"verdict": {text}', f'{{"verdict": 1, "seats": {text}, "speeds": []}}'):
        path.write_text(whole)
        with pytest.raises(UserError, match="holds no figures of the doctor"):
            cluster_of_doctor(path)
        if whole != "[]":
            with pytest.raises(UserError, match="holds no predictions"):
                read_predictions(path)


@pytest.mark.parametrize(
    ("text", "whole"),
    [("1e3", 1000), ("1_000", 1000), ("0x10", 16), ("0o10", 8), ("'12'", 12), ("5.0", 5)],
)
def test_a_whole_number_in_any_writing(file: Path, text: str, whole: int) -> None:
    assert loaded(file, f"train: {{steps: {text}}}\n").train.steps == whole


@pytest.mark.parametrize(
    "text", ["007", "2024-05-01", "on", "no", "1e3", "0x10", "1_000", "3.10", "null", "~", ".inf"]
)
def test_a_text_field_holds_what_is_written(file: Path, text: str) -> None:
    """Whatever YAML would make of it: quoted, the same."""
    assert loaded(file, f"{TRAIN}tracking: {{experiment: {text}}}\n").tracking.experiment == text
    quoted = f'{TRAIN}tracking: {{study: "{text}"}}\n'
    assert loaded(file, quoted).tracking.study == text


@pytest.mark.parametrize("text", ["null", "Null", "~", ""])
def test_null_is_none_where_there_may_be_none(file: Path, text: str) -> None:
    assert loaded(file, f"{TRAIN}tracking: {{study: {text}}}\n").tracking.study is None


def test_a_section_without_keys_changes_nothing(file: Path) -> None:
    Path("base.yaml").write_text(TRAIN + "optimizer: {lr: 0.5}\n")
    assert loaded(file, "base: base.yaml\noptimizer:\n#  lr: 0.1\n").optimizer.lr == 0.5
    assert loaded(file, TRAIN + "optimizer:\n").optimizer.lr == 0.1


def test_a_value_can_name_another(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/fast")
    text = (
        "seed: ${train.steps}\ntrain: {steps: 5}\nname: a${seed}\n"
        "tracking: {study: '$${name}', folder: '${oc.env:SCRATCH}/${name}'}\n"
        "data: {root: '${oc.env:NO_SUCH_VARIABLE,/slow}', cache: $$5}\n"
        "optimizer: {milestones: ['${optimizer.momentum}'], momentum: 0.5}\n"
    )
    config = loaded(file, text)
    assert (config.seed, config.name, config.data.root) == (5, "a5", "/slow")
    assert (config.tracking.study, config.tracking.folder) == ("${name}", "/fast/a5")
    assert (config.data.cache, config.optimizer.milestones) == ("$$5", (0.5,))


@for_all(st.text(st.sampled_from("${}ab.,")))
def test_a_text_that_is_escaped_comes_back(text: str) -> None:
    given = Given()
    given.put("name", escaped(text), "here")
    assert filled(given)["name"] == text


def test_quotes_tell_a_text_from_what_is_plain() -> None:
    found = read_as(Path("experiments/clusters/lab-2x2.yaml"))
    assert isinstance(found["name"], Plain)
    assert not isinstance(parse_yaml("a: 'x'", "here")["a"], Plain)


def read_as(path: Path) -> dict[str, object]:
    return read_yaml(path, "cluster")


def test_figures_of_no_fixed_shape_keep_their_types() -> None:
    """What a cluster was measured with is shown as numbers."""
    measured = read_cluster(Path("experiments/clusters/lab-2x2.yaml")).measured
    assert measured is not None
    config = measured["config"]
    assert isinstance(config["train.batch_size"], int)
    assert isinstance(config["optimizer.lr"], float)
    assert config["data.root"] is None
