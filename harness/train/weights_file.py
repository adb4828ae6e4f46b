"""Files of weights: torch's .pth without code, safetensors, and checkpoints of ours."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from harness.errors import UserError, one_line
from harness.train.checkpoint.choice import holder, names_in, newest_first
from harness.train.checkpoint.files import BACKBONE, STATES, Whole, plain_file
from harness.train.checkpoint.manifest import BadCheckpoint, check_file
from harness.train.checkpoint.meta import described
from harness.train.checkpoint.verdict import why_bad

INSIDE = ("model", "state_dict")
"""Keys under which programs put the state dict beside other things."""
TORCHS = (".pth", ".pt", ".bin")


def file_of(weights: Path) -> Path:
    """The file itself, or the backbone's in the newest good checkpoint of a folder.

    Raises UserError if there is none.
    """
    if not weights.is_dir():
        return weights
    problems = []
    for name in newest_first(set(names_in(weights))):
        folder = holder(weights) / name
        try:
            _check(folder)
        except BadCheckpoint as error:
            problems.append(f"{folder.name}: {error}")
            continue
        return folder / BACKBONE
    found = ", ".join(problems) or "it is no checkpoint and holds none"
    raise UserError(
        f"backbone.weights={weights} cannot be used: {found}; give a run, a checkpoint or a file"
    )


def _check(folder: Path) -> None:
    """Raises BadCheckpoint if a checkpoint has no backbone as it was written, or training diverged
    after it."""
    if reason := why_bad(folder):
        raise BadCheckpoint(reason)
    files = described(folder).files
    if files is not None:
        check_file(folder / BACKBONE, files.get(BACKBONE))


def read_weights(weights: Path) -> dict[str, Tensor]:
    """All tensors of a file by its own names, in host memory. Raises UserError if it has none."""
    file = file_of(weights)
    try:
        plain_file(file)
        found = _of_torch(file) if file.suffix in TORCHS else _of_safetensors(file)
    except OSError as error:
        raise UserError(
            f"backbone.weights={weights} cannot be read ({error.strerror or error}); correct the "
            f"path"
        ) from error
    except (
        pickle.UnpicklingError,
        SafetensorError,
        LookupError,
        RuntimeError,
        EOFError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(
            f"backbone.weights={weights} is no file of weights ({one_line(error, 120)}); give a "
            f"state dict as .pth or .safetensors, or a checkpoint"
        ) from error
    return found


def _of_safetensors(file: Path) -> dict[str, Tensor]:
    whole = Whole(file)
    return {name: whole.read(name) for name in sorted(whole.names) if not name.startswith(STATES)}


def _of_torch(file: Path) -> dict[str, Tensor]:
    """Reads tensors only: with weights_only nothing in the file is run."""
    found = torch.load(file, map_location="cpu", weights_only=True)
    for key in INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    return _tensors(found)


def _tensors(found: Any) -> dict[str, Tensor]:
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"it has {type(found).__name__}, not a dict of tensors")
    odd = [name for name, each in found.items() if not isinstance(each, Tensor)]
    if odd:
        raise ValueError(f"{odd[0]} in it is no tensor")
    return {str(name): each for name, each in found.items()}
