"""Whatever lies where a checkpoint should be: it is read, or told of in one line."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from harness.config import BackboneConfig, ClassifierConfig, Config, OptimizerConfig
from harness.errors import UserError
from harness.exchange.carried import Strip
from harness.exchange.flat import Flat
from harness.measure.summary import Evaluation
from harness.model.backbone import make_backbone
from harness.model.sliced_classifier import SlicedClassifier
from harness.tracking.run_folder import META
from harness.train.checkpoint.checkpoint import Checkpoint
from harness.train.checkpoint.choice import choose_checkpoint
from harness.train.checkpoint.files import write_tensors
from harness.train.checkpoint.meta import Meta, resumed_meta
from harness.train.checkpoint.places import Places
from harness.train.checkpoint.writing import Writer
from harness.train.course import Passed
from harness.train.optimizer import make_optimizer
from tests.alone import group_of_one, world_of_one

CLASSES = 6
EXAMPLES = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Model:
    """A small one, with a momentum and what a wire owes."""

    def __init__(self) -> None:
        backbone = make_backbone(BackboneConfig(feature_dim=2), 1, 8, seed=0)
        classifier = SlicedClassifier(2, CLASSES, ClassifierConfig(), group_of_one(), seed=0)
        like = torch.zeros(1)
        self.flats = (
            Flat(list(backbone.parameters()), 1, like),
            Flat(list(classifier.parameters()), 1, like),
        )
        optimizer = make_optimizer(OptimizerConfig(), self.flats)
        optimizer.step()
        self.checkpoint = Checkpoint(backbone, classifier, self.flats, optimizer, world_of_one())

    def carried(self) -> list[Strip]:
        return [
            Strip("exchange.unsent", flat, 0, flat.elements, torch.ones(flat.elements))
            for flat in self.flats
        ]

    def load(self, folder: Path) -> str:
        """What the user is told; empty: it was read."""
        values = {"train": {"steps": 1}, "data": {"num_classes": CLASSES}}
        config = Config.model_validate(values)
        # No path of a config is longer than this or has such characters.
        train = config.train.model_copy(update={"resume": str(folder)})
        config = config.model_copy(update={"train": train})
        try:
            choose_checkpoint(config, world_of_one())
            meta = resumed_meta(config)
            assert meta
            self.checkpoint.load(folder, meta)
            self.checkpoint.load_carried(folder, meta, self.carried())
        except UserError as error:
            return str(error)
        return ""


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.fixture(scope="module")
def whole(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    passed = Passed(
        images=96,
        epoch=1,
        epoch_images=32,
        warmup_images=None,
        training_images=64,
        ranks=2,
        batch_size=4,
        passes=1,
        seed=0,
    )
    evaluation = Evaluation(window=4, images=32, train_seconds=1.0, metrics={"val/top1": 0.5})
    meta = Meta(window=12, num_classes=CLASSES, passed=passed).model_dump()
    meta["progress"] = {"train_seconds": 1.5, "evaluations": [evaluation.model_dump()]}
    folder = tmp_path_factory.mktemp("whole") / "000000012"
    writer = Writer(lambda value: [value], leads=True)
    copies = model.checkpoint.copies(Places.shared(1), model.carried())
    writer.write(folder, copies, Meta.model_validate(meta))
    assert model.load(folder) == ""
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Callable[[], Path]:
    def made() -> Path:
        folder = tmp_path / whole.name
        if folder.is_dir():
            shutil.rmtree(folder)
        folder.unlink(missing_ok=True)
        return Path(shutil.copytree(whole, folder))

    return made


def unlisted(folder: Path) -> Path:
    """As one was written before checkpoints listed their files: only what is in them shows more."""
    meta = json.loads((folder / META).read_text())
    del meta["files"], meta["sha256"]
    (folder / META).write_text(json.dumps(meta))
    return folder


def one_line(model: Model, folder: Path, must_fail: bool = True) -> None:
    told = model.load(folder)
    assert told or not must_fail
    assert "\n" not in told
    assert len(told) < 500 + len(str(folder))


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@EXAMPLES
@given(st.integers(0, 2), st.floats(0, 1, exclude_max=True))
def test_cut_short(model: Model, copy: Callable[[], Path], which: int, share: float) -> None:
    path = files(copy())[which]
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    one_line(model, path.parent)


@EXAMPLES
@given(st.integers(0, 2), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1))
def test_bits_turned_over(
    model: Model, copy: Callable[[], Path], which: int, bits: list[tuple[float, int]]
) -> None:
    path = files(copy())[which]
    content = bytearray(path.read_bytes())
    for place, bit in bits:
        content[int(place * (len(content) - 1))] ^= 1 << bit
    one_line(model, path.parent, must_fail=changed(path, bytes(content)))


@EXAMPLES
@given(st.integers(0, 2), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1))
def test_bits_turned_over_without_a_list(
    model: Model, copy: Callable[[], Path], which: int, bits: list[tuple[float, int]]
) -> None:
    """Mostly in the header, which says what is where; numbers that changed cannot be told."""
    path = files(unlisted(copy()))[which]
    content = bytearray(path.read_bytes())
    for place, bit in bits:
        content[int(place**4 * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)
    one_line(model, path.parent, must_fail=False)


def changed(path: Path, content: bytes) -> bool:
    """Writes it; whether that means something else: spaces in JSON mean nothing."""
    before = path.read_bytes()
    path.write_bytes(content)
    if path.name != META:
        return content != before
    try:
        return bool(json.loads(content) != json.loads(before))
    except ValueError:
        return True


@EXAMPLES
@given(st.integers(0, 2), st.binary(max_size=200))
def test_anything_at_all(
    model: Model, copy: Callable[[], Path], which: int, content: bytes
) -> None:
    path = files(copy())[which]
    path.write_bytes(content)
    one_line(model, path.parent)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**60, max_value=2**200)
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
KEYS = (
    "window",
    "num_classes",
    "progress",
    "passed",
    "next_warning",
    "progress.evaluations",
    "progress.train_seconds",
    "passed.images",
    "passed.epoch",
    "passed.seed",
    "another",
)


@EXAMPLES
@given(st.sampled_from(KEYS), JSON)
def test_other_values_in_what_it_says_of_itself(
    model: Model, copy: Callable[[], Path], key: str, value: Any
) -> None:
    path = copy() / META
    meta = json.loads(path.read_text())
    section, _, name = key.rpartition(".")
    (meta[section] if section else meta)[name] = value
    one_line(model, path.parent, must_fail=changed(path, json.dumps(meta).encode()))
    path.write_text(json.dumps(meta))
    one_line(model, unlisted(path.parent), must_fail=False)


@EXAMPLES
@given(st.text(alphabet='{}[]",:0123456789e-. nulltrue', max_size=300) | JSON.map(json.dumps))
def test_anything_for_what_it_says_of_itself(
    model: Model, copy: Callable[[], Path], text: str
) -> None:
    path = copy() / META
    path.write_text(text)
    one_line(model, path.parent)


@EXAMPLES
@given(st.data())
def test_other_tensors(model: Model, copy: Callable[[], Path], data: st.DataObject) -> None:
    """Other shapes and kinds, and tensors that are missing or too many."""
    folder = unlisted(copy())
    path = data.draw(st.sampled_from([each for each in files(folder) if each.name != META]))
    tensors = load_file(path)
    name = data.draw(st.sampled_from(sorted(tensors)))
    kinds = (torch.float16, torch.float64, torch.int64, torch.bool, torch.bfloat16, torch.uint8)
    change: dict[str, Callable[[Tensor], Tensor | None]] = {
        "missing": lambda _: None,
        "longer": lambda each: torch.cat((each.flatten(), each.flatten())),
        "flat": lambda each: each.flatten() if each.dim() != 1 else each[:-1].clone(),
        "single": lambda _: torch.zeros(()),
        "empty": lambda _: torch.zeros(0),
        "kind": lambda each: each.to(data.draw(st.sampled_from(kinds))),
    }
    chosen = data.draw(st.sampled_from(sorted(change)))
    changed = change[chosen](tensors.pop(name))
    if changed is not None:
        tensors[name] = changed
    path.unlink()
    write_tensors(path, tensors)
    fits = chosen == "kind" or (chosen == "missing" and name.startswith("exchange."))
    one_line(model, folder, must_fail=not fits)


NAMES = st.sampled_from(
    ["0-6", "-1-6", "6-0", "0-7", "0-5", "1-6", "a-b", "0", "0-6-9", "", "99999999999999999999-1"]
) | st.text(alphabet="0123456789-_ x²", max_size=12)


@EXAMPLES
@given(NAMES, st.booleans())
def test_other_names_of_slices(
    model: Model, copy: Callable[[], Path], name: str, beside: bool
) -> None:
    folder = unlisted(copy())
    (path,) = folder.glob("classifier-*")
    other = path.with_name(f"classifier-{name}.safetensors")
    if other == path:
        return
    if beside:
        shutil.copy(path, other)
    else:
        path.rename(other)
    one_line(model, folder, must_fail=False)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("other", [a_pipe, a_link_to_itself, a_folder, lambda path: None])
def test_no_file(
    model: Model, copy: Callable[[], Path], which: int, other: Callable[[Path], None]
) -> None:
    """A pipe would be waited for, for ever."""
    path = files(copy())[which]
    path.unlink()
    other(path)
    one_line(model, path.parent)


def test_no_folder(model: Model, copy: Callable[[], Path], tmp_path: Path) -> None:
    folder = copy()
    one_line(model, folder / META)
    one_line(model, tmp_path / "none")
    one_line(model, Path("a\0b"))
    one_line(model, Path("x" * 5000))


def test_a_header_that_promises_more_than_there_is(model: Model, copy: Callable[[], Path]) -> None:
    for size in (0, 8, 2**20, 2**40, 2**63, 2**64 - 1):
        path = copy() / "backbone.safetensors"
        path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])
        one_line(model, path.parent)
