"""Do all hosts that write a checkpoint see the same folder?"""

import socket
import time
import uuid
from pathlib import Path

from harness.config import TrainConfig
from harness.errors import UserError
from harness.parallel.world import World

LOOKS, APART_SECONDS = 10, 0.2
"""Looks for the file, and seconds between them: network file systems may show it a little late."""


def check_shared_folder(config: TrainConfig, folder: Path, world: World) -> None:
    """Raises UserError, on one rank, if ranks of several hosts write a checkpoint and do not share
    its folder.

    The first rank makes a file in `folder`, which must exist, and all others look for it; then the
    file is removed. Collective over the world.
    """
    writes = config.save or config.checkpoint_every
    if not writes or world.slices.size <= world.topology.ranks_per_node:
        return
    token = folder / f".{world.broadcast(uuid.uuid4().hex, 'folder token')}"
    with world.together():
        if world.is_first:
            _make(token)
    first = world.broadcast(socket.gethostname(), "folder host")
    found = _appears(token)
    world.gather_objects(found, "folder seen")
    if world.is_first:
        token.unlink(missing_ok=True)
    with world.together():
        if not found:
            raise UserError(
                f"classifier.layout=world saves a slice of the model from every host into {folder},"
                f" but {socket.gethostname()} does not see files that {first} writes there; set "
                f"tracking.folder or --folder to one that all hosts share, or save no checkpoints"
            )


def _make(token: Path) -> None:
    try:
        token.touch()
    except OSError as error:
        raise UserError(
            f"cannot write in {token.parent} ({error.strerror}); set tracking.folder or --folder "
            f"to another folder"
        ) from error


def _appears(path: Path) -> bool:
    for _ in range(LOOKS):
        if path.exists():
            return True
        time.sleep(APART_SECONDS)
    return False
