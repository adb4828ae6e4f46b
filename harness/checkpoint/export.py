"""Writes a model into one file that plain torch can read: values, and all that it must be given."""

import json
from pathlib import Path

from torch import Tensor

from harness.checkpoint.shelf import shelf
from harness.checkpoint.verify import whole
from harness.config import Config
from harness.doctor.finding import format_bytes
from harness.errors import UserError, one_line
from harness.model.backbone import head_of
from harness.parallel.slices import Slice
from harness.train.checkpoint.files import BACKBONE, STATES, Rows, Whole, write_tensors
from harness.train.checkpoint.manifest import BadCheckpoint
from harness.train.checkpoint.meta import Meta, described
from harness.whole_files import PARTIAL


def export(folder: Path, output: Path) -> int:
    """Exports a checkpoint, or the newest of a folder. Raises UserError, and then writes nothing,
    if the checkpoint is bad or the file exists."""
    checkpoint, *_ = shelf(folder)
    if output.exists():
        raise UserError(f"{output} exists; remove it, or give another --output")
    try:
        whole(checkpoint)
        meta = described(checkpoint)
        tensors, about = state_dict(checkpoint, meta), metadata(checkpoint, meta)
    except BadCheckpoint as error:
        raise UserError(
            f"{checkpoint} cannot be exported: {error}; give the folder of another checkpoint"
        ) from error
    try:
        write_tensors(output.with_name(output.name + PARTIAL), tensors, about).replace(output)
    except OSError as error:
        raise UserError(
            f"cannot write {output} ({one_line(error)}); free space, or give another --output"
        ) from error
    print(
        f"{output}: {len(tensors)} tensors of {checkpoint}, {format_bytes(output.stat().st_size)}"
    )
    return 0


def state_dict(checkpoint: Path, meta: Meta) -> dict[str, Tensor]:
    """The backbone's values by their names, and the classifier's as `classifier.weight`, [C, D],
    and `classifier.bias`, [C]."""
    backbone = Whole(checkpoint / BACKBONE)
    rows = Rows(checkpoint, meta.names_in(checkpoint), Slice(0, meta.num_classes))
    found = {name: backbone.read(name) for name in backbone.names if not name.startswith(STATES)}
    return found | {
        f"classifier.{name}": rows.read(name) for name in rows.names if not name.startswith(STATES)
    }


def metadata(checkpoint: Path, meta: Meta) -> dict[str, str]:
    """What a program needs to use the model; all values are texts.

    Raises BadCheckpoint if the checkpoint does not say which model it is.
    """
    origin = meta.known_origin
    config = Config.from_flattened(origin.config, f"the config in {checkpoint}")
    cosines = config.classifier.margin != "none"
    return {
        "format": "pt",
        "backbone": config.backbone.name,
        "head": head_of(config.backbone.name),
        "classes": str(meta.num_classes),
        "class_names": json.dumps(meta.class_names(checkpoint), ensure_ascii=False),
        "channels": str(origin.channels),
        "image_size": str(config.data.image_size),
        "mean": json.dumps(origin.mean),
        "deviation": json.dumps(origin.deviation),
        "logits": "cosine" if cosines else "linear",
        "scale": str(config.classifier.margin_scale if cosines else 1.0),
        "experiment": config.name,
        "window": str(meta.window),
    }
