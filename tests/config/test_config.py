"""Every knob: read from files and overrides, refused in one line that names what to do."""

import json
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.config import AUTO, Config, Section, load, load_resolved, load_with_notes
from harness.config.load import OF_CLUSTERS
from harness.config.mistakes import OTHER_NAMES
from harness.config.section import keys_of
from harness.config.sections.data import TWO_LABELS
from harness.errors import UserError
from harness.exchange.kinds import KINDS, PLANNED, Crosses
from harness.plan.machines import Cluster


def write(folder: Path, file: str = "run.yaml", **values: Any) -> Path:
    path = folder / file
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write(tmp_path, train={"steps": 5}, exchange={"kind": "delayed", "delay": 1})


def message_of(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(path: Path, *overrides: str) -> str:
    """The line; empty where the config is taken."""
    try:
        load(path, overrides)
    except UserError as error:
        return str(error)
    return ""


def test_values_of_the_file_then_of_the_overrides(run: Path) -> None:
    config = load(run, ["train.steps=7", "data.dataset=synthetic", "optimizer.lr=1e-3"])
    assert (config.train.steps, config.data.dataset, config.optimizer.lr) == (7, "synthetic", 1e-3)
    assert (config.exchange.kind, config.exchange.delay) == ("delayed", 1)
    assert config.train.batch_size == 32


def test_an_override_can_be_a_list_or_null(run: Path) -> None:
    config = load(
        run, ["optimizer.milestones=[0.25,0.5,0.75]", "train.steps=null", "train.epochs=2"]
    )
    assert config.optimizer.milestones == (0.25, 0.5, 0.75)
    assert (config.train.steps, config.train.epochs) == (None, 2.0)


@pytest.mark.parametrize("override", ["train.steps", "=5", "train.steps:5"])
def test_an_override_has_a_key_and_a_value(run: Path, override: str) -> None:
    assert f"override {override!r} is not key=value" in message_of(run, override)


@pytest.mark.parametrize(
    ("override", "unknown", "nearest"),
    [
        ("train.step=1", "train.step", "train.steps"),
        ("exchange.backward_passes=1", "exchange.backward_passes", "backward_passes_per_step"),
        ("optimizer.LR=1", "optimizer.LR", "optimizer.lr"),
        ("classifer.layout=node", "classifer", "classifier"),
        ("sed=1", "sed", "seed"),
        ("lr=1", "lr", "optimizer.lr"),
        ("batch_size=1", "batch_size", "train.batch_size"),
        ("exchange.lr=1", "exchange.lr", "optimizer.lr"),
        ("K=4", "K", "exchange.backward_passes_per_step"),
        ("exchange.K=4", "exchange.K", "exchange.backward_passes_per_step"),
        ("micro_batches=4", "micro_batches", "exchange.backward_passes_per_step"),
        ("d=1", "d", "exchange.delay"),
        ("delay=1", "delay", "exchange.delay"),
        ("wire=int8", "wire", "exchange.compression"),
        ("bits=8", "bits", "exchange.compression"),
        ("rank=16", "rank", "exchange.powersgd_rank"),
        ("optimizer.learning_rate=1", "optimizer.learning_rate", "optimizer.lr"),
        ("classes=10", "classes", "data.num_classes"),
        ("batch=4", "batch", "train.batch_size"),
        ("layout=node", "layout", "classifier.layout"),
        ("model=resnet18", "model", "backbone.name"),
    ],
)
def test_an_unknown_key_names_the_nearest(
    run: Path, override: str, unknown: str, nearest: str
) -> None:
    message = message_of(run, override)
    assert message.startswith(f"command line: unknown key {unknown}; the nearest known key is ")
    assert message.endswith(f"{nearest}; use that, or leave it out")


def test_every_other_name_leads_to_a_setting() -> None:
    assert set(OTHER_NAMES.values()) <= set(keys_of(Config))
    assert not set(OTHER_NAMES) & {key.rpartition(".")[2] for key in keys_of(Config)}


def test_a_misspelt_path_names_the_nearest_file(run: Path) -> None:
    missing = run.with_name("runn.yaml")
    assert message_of(missing) == (
        f"cannot read the experiment {missing}: No such file or directory; the nearest file is "
        f"{run}; use that, or correct the path"
    )
    assert message_of(run.with_name("x.yaml")).endswith("directory; correct the path")


def test_a_cluster_is_no_experiment() -> None:
    message = message_of(Path("experiments/clusters/h100-400g.yaml"), "train.steps=4")
    assert message.startswith(
        "experiments/clusters/h100-400g.yaml describes a cluster, not an experiment; give it as "
        "--cluster of harness plan"
    )
    assert Cluster.model_fields[OF_CLUSTERS].is_required()


def test_an_unknown_key_in_the_file_is_found_too(tmp_path: Path) -> None:
    path = write(tmp_path, train={"steps": 5, "batchsize": 4})
    said = f"{path}, line 2: unknown key train.batchsize; the nearest known key is train.batch_size"
    said += "; use that, or leave it out"
    assert message_of(path) == said


def test_a_dotted_key_in_a_file_is_shown_its_section(tmp_path: Path) -> None:
    path = tmp_path / "dotted.yaml"
    path.write_text("train.steps: 4\n")
    said = "train.steps is not a key; write it in its section, train: {steps: ...}"
    assert message_of(path).startswith(f"{path}, line 1: {said}")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.steps=many", "give a whole number from 1 to 1,000,000,000,000 or null (Length of"),
        ("train.steps=2.5", "give a whole number from 1"),
        ("train.batch_size=0", "give a whole number from 1 to 1,000,000,000 (Images per rank per"),
        ("optimizer.lr=-1", "give a number above 0 and at most 1,000,000 (Learning rate at its"),
        ("optimizer.momentum=1", "give a number of at least 0 and below 1"),
        (
            "optimizer.milestones=0.5",
            "give a list in brackets, [ ], of which each is a number from 0",
        ),
        ("classifier.layout=sharded", "give replicated, node or world"),
        ("exchange.kind=delay", "the nearest is delayed"),
        ("exchange.delay=soon", "give a whole number from 0 to 1,000"),
        ("exchange.delay=true", "give a whole number"),
        ("data.num_classes=1", "give a whole number from 2"),
        ("train=5", "give values to the keys of this section, such as train.batch_size"),
        ("optimizer=sgd", "give values to the keys of this section, such as optimizer.name"),
        ("name=a/b", "give a text of letters, digits and the signs _ . - and of 1 to 128"),
        ("optimizer.nesterov=perhaps", "give true or false"),
        ("seed=007", "a number that begins with 0 as octal; leave the 0 out"),
        ("seed=1:30", "give a whole number"),
        ("tracking.study=\n", "cannot be printed; leave it out"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(run: Path, override: str, said: str) -> None:
    key, _, value = override.partition("=")
    shown = value if value.isprintable() else json.dumps(value)
    message = message_of(run, override)
    assert message.startswith(f"command line: {key}={shown} does not fit: ")
    assert said in message


def test_no_word_of_the_library_reaches_a_user(run: Path) -> None:
    """Every field of every section, given a section, a list, a text and nothing."""
    for key in keys_of(Config):
        for value in ("{a: 1}", "[[1]]", "'\\x'", "-1e400", "\x7f"):
            message = refused(run, f"{key}={value}")
            words = ("Input ", "a valid", "Error", "pydantic", "instance", "validator", "type=")
            assert not any(word in message for word in words), message
            assert not message or key in message or "give either" in message


def test_nothing_behind_the_equals_sign(run: Path) -> None:
    message = message_of(run, "train.batch_size=")
    assert message == "command line: train.batch_size= gives nothing; write a value behind it"


def test_all_mistakes_are_named_at_once(run: Path) -> None:
    message = message_of(run, "train.batch_size=0", "train.stepz=1")
    assert "train.batch_size=0" in message
    assert "train.stepz" in message


def test_torchs_own_data_parallel_takes_no_other_route(run: Path) -> None:
    """Each rank would step its chunk alone, and nobody would send the others theirs."""
    changes = ["exchange.kind=ddp_powersgd", "exchange.delay=0", "classifier.layout=replicated"]
    assert load(run, changes).exchange.route == "auto"
    assert "it needs delay=0" in message_of(run, *changes, "exchange.route=hierarchical")


def test_synchronous_takes_no_delay(run: Path) -> None:
    message = message_of(run, "exchange.kind=synchronous")
    assert "exchange.kind=synchronous uses its result at once, exchange.delay is 1" in message
    assert "set delay=0 or kind=delayed" in message
    assert load(run, ["exchange.kind=averaging"]).exchange.delay == 1


@pytest.mark.parametrize("kind", ["delayed", "averaging"])
def test_the_flat_route_is_synchronous(run: Path, kind: str) -> None:
    message = message_of(run, f"exchange.kind={kind}", "exchange.route=flat")
    assert f"exchange.route=flat belongs to kind=synchronous, exchange.kind is {kind}" in message


@pytest.mark.parametrize("route", ["flat", "hierarchical"])
@pytest.mark.parametrize("compression", ["none", "fp16", "int8", "int4", "sign"])
def test_every_wire_goes_by_both_routes(run: Path, route: str, compression: str) -> None:
    given = {"kind": "synchronous", "delay": 0, "route": route, "compression": compression}
    exchange = load(run, [f"exchange.{key}={value}" for key, value in given.items()]).exchange
    assert {key: getattr(exchange, key) for key in given} == given


@pytest.mark.parametrize(
    "own", ["pieces=4", "slice_pieces=4", "max_pieces=4", "outer_lr=0.7", "outer_momentum=0.9"]
)
def test_what_only_averaging_knows(run: Path, own: str) -> None:
    assert "belong to kind=averaging or slowmo, exchange.kind is delayed" in message_of(
        run, f"exchange.{own}"
    )
    load(run, ["exchange.kind=averaging", "classifier.layout=node", f"exchange.{own}"])


def test_only_slices_that_cross_have_a_pace(run: Path) -> None:
    averaging = ["exchange.kind=averaging", "exchange.slice_pieces=4"]
    assert "exchange.slice_pieces=4 cuts the slices that cross between nodes" in message_of(
        run, *averaging, "classifier.layout=replicated"
    )
    assert load(run, [*averaging, "classifier.layout=node"]).exchange.slice_pieces == 4


DRAWN = [
    *("exchange.kind=averaging", "exchange.slice_rows=drawn"),
    *("classifier.layout=node", "classifier.sampling=0.1"),
]


@pytest.mark.parametrize(
    "other",
    [
        "exchange.kind=slowmo",
        "classifier.layout=replicated",
        "classifier.sampling=1",
        "exchange.slice_pieces=2",
        "exchange.max_pieces=2",
        "exchange.outer_momentum=0.5",
    ],
)
def test_what_drawn_rows_need(run: Path, other: str) -> None:
    assert load(run, DRAWN).exchange.slice_rows == "drawn"
    assert "exchange.slice_rows=drawn sends sampled rows: it needs kind=averaging" in message_of(
        run, *DRAWN, other
    )


@pytest.mark.parametrize("share", ["0", "-0.1", "1.01", "nan", "many"])
def test_a_share_of_classes_is_above_0_and_at_most_1(run: Path, share: str) -> None:
    message = message_of(run, f"classifier.sampling={share}")
    assert (
        f"classifier.sampling={share} does not fit: give a number above 0 and at most 1" in message
    )
    assert load(run, ["classifier.sampling=0.1"]).classifier.sampling == 0.1
    assert load(run).classifier.sampling == 1


def test_an_angle_that_is_added_is_below_pi(run: Path) -> None:
    """From there on a margin would help the target."""
    arcface = "classifier.margin=arcface"
    message = message_of(run, arcface, "classifier.margin_size=4")
    assert "classifier.margin_size=4 is an angle with margin=arcface, and from pi on it" in message
    assert message.endswith("give less than 3.14 radians, or use margin=cosface")
    assert load(run, [arcface, "classifier.margin_size=3.1"]).classifier.margin_size == 3.1
    assert load(run, ["classifier.margin=cosface", "classifier.margin_size=4"])


@pytest.mark.parametrize(
    ("exchange", "reason"),
    [
        ({"kind": "ddp_powersgd"}, "is not 0 for classes that rest"),
        ({"compression": "fp16"}, "with a later one, when the class may rest"),
        ({"kind": "delayed", "delay": 1, "compression": "int8"}, "when the class may rest"),
        ({"kind": "averaging", "compression": "sign"}, "sign has no sign for 0"),
    ],
)
def test_classes_that_rest_need_a_way_that_sends_zeros(
    run: Path, exchange: dict[str, object], reason: str
) -> None:
    given = {"kind": "synchronous", "delay": 0} | exchange
    changes = [f"exchange.{key}={value}" for key, value in given.items()]
    message = message_of(run, *changes, "classifier.sampling=0.1")
    assert reason in message
    assert ", classifier.sampling is 0.1; use " in message
    load(run, [*changes, "classifier.sampling=1"])


@pytest.mark.parametrize(
    "changes",
    [
        ["exchange.kind=ddp", "exchange.compression=fp16", "exchange.delay=0"],
        ["exchange.kind=averaging", "exchange.compression=int8"],
        ["exchange.kind=delayed", "exchange.compression=sign", "classifier.layout=world"],
    ],
)
def test_other_wires_send_zeros_or_no_slices(run: Path, changes: list[str]) -> None:
    assert load(run, [*changes, "classifier.sampling=0.1"]).classifier.sampling == 0.1


@pytest.mark.parametrize("kind", ["averaging", "isolated"])
def test_nodes_that_step_alone_have_all_classes(run: Path, kind: str) -> None:
    message = message_of(
        run, f"exchange.kind={kind}", "exchange.delay=0", "classifier.layout=world"
    )
    assert f"exchange.kind={kind} lets nodes step alone, classifier.layout is world" in message


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["train.steps=7", "train.epochs=2"], "steps=7 and epochs=2.0; remove one"),
        (["train.steps=null"], "neither"),
    ],
)
def test_a_run_has_one_length(run: Path, overrides: list[str], found: str) -> None:
    message = message_of(run, *overrides)
    assert f"give either train.steps or train.epochs, found {found}" in message


def test_an_override_replaces_its_alternative_and_says_so(run: Path) -> None:
    found = load_with_notes(run, ["train.epochs=2", "train.batch_size=4"])
    assert (found.config.train.steps, found.config.train.epochs) == (None, 2.0)
    assert found.notes == (f"train.epochs=2 replaces train.steps=5 ({run}, line 5)",)
    assert load_with_notes(run, ["train.steps=7"]).notes == ()
    assert load_with_notes(run, ["train.epochs=null"]).notes == ()


def test_pieces_that_are_picked_and_pieces_that_are_given(tmp_path: Path) -> None:
    """Both in one file are what a run records that picked: max_pieces, and what came of it."""
    exchange = {"kind": "averaging", "max_pieces": 4}
    path = write(tmp_path, train={"steps": 5}, exchange=exchange)
    given = load(path, ["exchange.pieces=2"]).exchange
    assert (given.pieces, given.max_pieces) == (2, 0)
    record = write(tmp_path, train={"steps": 5}, exchange=exchange | {"pieces": 3})
    assert (load(record).exchange.pieces, load(record).exchange.max_pieces) == (3, 4)


def test_0_pieces_at_most_leave_the_number_of_pieces_as_it_was_given(tmp_path: Path) -> None:
    base, child = tmp_path / "base.yaml", tmp_path / "child.yaml"
    base.write_text("exchange: {kind: averaging, pieces: 4}\ntrain: {steps: 5}\n")
    child.write_text("base: base.yaml\nexchange: {max_pieces: 0}\n")
    for path, overrides in ((child, []), (base, ["exchange.max_pieces=0"])):
        found = load_with_notes(path, overrides)
        assert (found.config.exchange.pieces, found.notes) == (4, ())
    assert load_with_notes(child, ["exchange.pieces=2"]).notes == ()
    assert load(base, ["exchange.max_pieces=8"]).exchange.pieces == 1


def test_a_childs_choice_replaces_its_bases(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", train={"epochs": 3, "batch_size": 8})
    middle = write(tmp_path, "middle.yaml", base="base.yaml", train={"steps": 5})
    assert (load(middle).train.steps, load(middle).train.epochs) == (5, None)
    child = write(tmp_path, base="middle.yaml", train={"epochs": 2})
    found = load_with_notes(child)
    assert (found.config.train.steps, found.config.train.epochs) == (None, 2.0)
    assert found.config.train.batch_size == 8
    assert found.notes == ()
    both = write(tmp_path, base="base.yaml", train={"epochs": 2, "steps": 5})
    assert "found steps=5 and epochs=2.0" in message_of(both)


def test_a_date_is_a_text_and_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train: {steps: 3}\ntracking: {study: 2024-05-01}\nname: '2024-05-02'\n")
    found = load_with_notes(path)
    assert (found.config.tracking.study, found.config.name) == ("2024-05-01", "2024-05-02")
    said = f"tracking.study=2024-05-01 is taken as a text, not as a date ({path}, line 2)"
    assert found.notes == (said,)


def test_train_must_be_given(tmp_path: Path) -> None:
    path = write(tmp_path, seed=1)
    assert message_of(path) == f"{path}: give either train.steps or train.epochs, found neither"


def test_a_file_builds_on_its_base_and_that_on_its_own(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    write(tmp_path, "base.yaml", train={"steps": 5, "batch_size": 8}, seed=1, name="first")
    write(tmp_path, "middle.yaml", base="base.yaml", train={"batch_size": 16}, name="second")
    path = write(tmp_path / "deeper", base="../middle.yaml", name="third", data={"augment": 0})
    config = load(path, ["seed=9"])
    assert (config.train.steps, config.train.batch_size) == (5, 16)
    assert (config.name, config.seed, config.data.augment) == ("third", 9, 0)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_circle_of_bases_is_an_error(tmp_path: Path, length: int) -> None:
    for number in range(length):
        write(tmp_path, f"{number}.yaml", base=f"{(number + 1) % length}.yaml", train={"steps": 1})
    assert "0.yaml is its own base; remove the key base there" in message_of(tmp_path / "0.yaml")


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, base="missing.yaml", train={"steps": 1})
    message = message_of(path)
    assert "cannot read the experiment" in message
    assert "missing.yaml" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: [1, 2", "odd.yaml is not YAML, line"),
        ("- 1\n- 2\n", "holds a list, not keys and values"),
        ("", "is empty: it holds no keys and values"),
        ("# all commented out\n", "is empty: it holds no keys and values"),
        ("train: {steps: 5}\ndata: {root: '${nowhere.at.all}'}\n", "nowhere"),
        ("1: 2\ntrain: {steps: 5}\n", "odd.yaml, line 1: unknown key 1"),
        ("train: {steps: 5}\ndata: 3\n", "odd.yaml, line 2: data=3 does not fit"),
        ("train: {steps: 5}\nbase: [a, b]\n", "odd.yaml, line 2: base names one file"),
    ],
)
def test_a_file_that_is_no_experiment(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    assert said in message_of(path)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert "cannot read the experiment" in message_of(tmp_path / "binary.yaml")


def test_a_folder_is_no_experiment(tmp_path: Path) -> None:
    assert "cannot read the experiment" in message_of(tmp_path)


def test_a_config_cannot_be_changed(run: Path) -> None:
    config = load(run)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.train.steps = 3


def sections(model: type[Section] = Config) -> list[type[Section]]:
    found = [model]
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += sections(field.annotation)
    return found


@pytest.mark.parametrize("section", sections())
def test_every_knob_says_what_it_is(section: type[Section]) -> None:
    for name, field in section.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        assert nested or field.description, f"{section.__name__}.{name} has no docstring"


def test_known_keys_are_all_leaves_and_sections(run: Path) -> None:
    leaves = set(load(run).flattened())
    groups = {leaf.rpartition(".")[0] for leaf in leaves} - {""}
    assert set(keys_of(Config)) == leaves | groups
    assert {"data.dataset", "exchange.delay", "train.batch_size", "seed"} <= leaves
    assert groups == set(Config.model_fields) - leaves


NASTY = (
    *(
        "null",
        "Null",
        "~",
        "007",
        "1e3",
        "0x10",
        "1_000",
        "1:30",
        "2024-05-01",
        "on",
        "yes",
        "False",
    ),
    *(".inf", ".nan", "a: b", "[draft", "{a", "run #3", "- x", "? y", "!!str z", "&a", "*b", "<<"),
    *("${seed}", "${", "$${", "$$", "a${b", "'", '"', '"null"', "'x'", "%d", "@", "`", "|", ">"),
    *("=", "a=b", "--x", "../up", "a/b", "..", "ünï", "統計", "🙂", "e\u0301", "a\\nb"),
)
"""Texts that YAML, a shell, a file system or this project's own references would read otherwise."""
PRINTABLE = st.text(st.characters(blacklist_categories=("C", "Z")), min_size=1, max_size=40)
ANY = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1)


def texts(field: str) -> st.SearchStrategy[str]:
    """What a text field takes; `field`: its annotation and constraints, in words."""
    if "printable" in field:
        return PRINTABLE | st.sampled_from(NASTY)
    if "expanded" in field:
        return (ANY | st.sampled_from(NASTY)).filter(lambda text: not text.startswith("~"))
    return ANY | st.sampled_from(NASTY)


def values_of(annotation: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    """Values that a field takes, by its type and bounds."""
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return st.none() | values_of(kinds[0], metadata)
    bounds = {type(each).__name__: each for each in metadata}
    low = bounds["Ge"].ge if "Ge" in bounds else bounds["Gt"].gt if "Gt" in bounds else 0
    high = bounds["Le"].le if "Le" in bounds else bounds["Lt"].lt if "Lt" in bounds else 10**6
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return st.integers(low, high)
    if annotation is float:
        return st.floats(low, high, exclude_min="Gt" in bounds, exclude_max="Lt" in bounds)
    if get_origin(annotation) is Annotated:
        inner = [one for each in annotation.__metadata__ for one in getattr(each, "metadata", [])]
        return values_of(annotation.__origin__, [*inner, annotation])
    if annotation is str:
        return texts(str(metadata))
    if get_args(annotation)[-1:] == (Ellipsis,):
        return st.lists(values_of(get_args(annotation)[0], []), max_size=3).map(tuple)
    return st.sampled_from(get_args(annotation))


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Any config: every field is drawn from what its type and bounds allow."""
    values: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        assert field.annotation is not None
        if issubclass(field.annotation, Section):
            values[name] = {
                key: draw(values_of(inner.annotation, inner.metadata))
                for key, inner in field.annotation.model_fields.items()
            }
    values["name"] = draw(st.from_regex(r"\A[A-Za-z0-9_.-]+\Z"))
    values["seed"] = draw(st.integers(0, 2**63 - 1))
    exchange = values["exchange"]
    if exchange["kind"] == AUTO:
        exchange["backward_passes_per_step"] = 1
        exchange["kinds"] = exchange["kinds"] or ["synchronous"]
        values["classifier"]["layout"] = "replicated"
    else:
        exchange["kinds"] = PLANNED
    traits = KINDS["delayed" if exchange["kind"] == AUTO else exchange["kind"]]
    exchange["delay"] *= traits.late
    if not traits.has_routes:
        exchange["route"] = "auto"
    exchange["slice_rows"] = "all"
    if not traits.in_pieces:
        exchange |= {"pieces": 1, "slice_pieces": None, "max_pieces": 0}
        exchange |= {"outer_lr": 1.0, "outer_momentum": 0.0}
    if traits.is_torchs:
        exchange |= {"compression": "none", "backward_passes_per_step": 1}
        values["classifier"]["layout"] = "replicated"
        values["train"]["on_nonfinite"] = "stop"
    elif traits.local_steps:
        values["classifier"]["layout"] = "node"
    if traits.crosses is Crosses.FACTORS or exchange["compression"] != "none":
        values["classifier"]["sampling"] = 1.0
    if values["classifier"]["margin"] == "arcface":
        values["classifier"]["margin_size"] %= 3.14
    backbone = values["backbone"]
    if backbone["weights"] is None:
        backbone |= {"lr_factor": 1.0, "frozen": "none"}
    if backbone["frozen"] == "body":
        backbone["feature_dim"] = 8
    data = values["data"]
    if data["dataset"] != "image_folder":
        data |= {"recipe": "own", "validation_size": None}
    data["extras"] = [each for each in data["extras"] if each not in TWO_LABELS]
    data |= {"extras": ()} if data["recipe"] == "own" else {"augment": 1.0}
    values["trace"]["horovod_timeline"] &= values["trace"]["windows"] > 0
    values["train"]["epochs" if values["train"]["steps"] is not None else "steps"] = None
    if values["train"]["steps"] is None and values["train"]["epochs"] is None:
        values["train"]["steps"] = 1
    return Config.model_validate(values)


@settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
@given(config=configs())
@example(
    config=Config.model_validate({"name": "a", "train": {"steps": 1}, "tracking": {"uri": "\x85"}})
)
def test_a_config_comes_back_from_its_own_yaml(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load(path) == load_resolved(path) == config
    flat = config.flattened()
    stored = {key: str(value) for key, value in flat.items() if value is not None}
    assert Config.from_flattened(flat, "here") == Config.from_flattened(stored, "there") == config


def test_flattened_holds_every_value_by_its_dotted_key(run: Path) -> None:
    flat = load(run).flattened()
    assert flat["exchange.delay"] == 1
    assert flat["optimizer.milestones"] == [0.5, 0.75]
    assert not any(isinstance(value, dict) for value in flat.values())


@pytest.mark.parametrize(
    ("layout", "exchange"),
    [
        ("world", {"kind": "synchronous", "route": "flat", "backward_passes_per_step": 4}),
        ("node", {"kind": "delayed", "delay": 2, "compression": "int8"}),
        ("node", {"kind": "averaging", "delay": 1, "max_pieces": 8, "outer_momentum": 0.9}),
        ("node", {"kind": "slowmo", "pieces": 2, "slice_pieces": 8}),
        ("node", {"kind": "averaging", "slice_rows": "drawn"}),
        ("replicated", {"kind": "ddp_powersgd"}),
    ],
)
def test_the_same_run_with_its_nodes_apart_is_a_run_that_could_be_asked_for(
    layout: str, exchange: dict[str, object]
) -> None:
    classifier = {"layout": layout, "sampling": 0.1 if "slice_rows" in exchange else 1.0}
    values = {"classifier": classifier, "exchange": exchange, "train": {"steps": 5}}
    config = Config.model_validate(values)
    apart = config.with_nodes_apart("node", passes=1)
    assert Config.model_validate(apart.model_dump()) == apart
    assert (apart.exchange.kind, apart.classifier.layout) == ("isolated", "node")
    assert apart.exchange.backward_passes_per_step == 1
    passes = config.exchange.backward_passes_per_step
    assert config.with_nodes_apart().exchange.backward_passes_per_step == passes
    assert config.with_nodes_apart().classifier == config.classifier
