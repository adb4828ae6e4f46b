"""What the Horovod of this Python was built with."""

import os
from importlib.metadata import PackageNotFoundError, version

from pydantic import BaseModel, ConfigDict


class Build(BaseModel):
    """One rank's Horovod."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str | None
    """With the local part that a mended build has; none: not installed."""
    error: str | None = None
    """Why it cannot be imported."""
    has: tuple[str, ...] = ()
    """gloo, mpi, nccl: what it was built with."""
    asked: tuple[str, ...] = ("gloo",)
    """What the variables of this process ask for."""

    @property
    def mended(self) -> bool:
        """Built by this project's set-up: see install/horovod.py for what is mended."""
        return "+mended" in (self.version or "")


def horovod_build() -> Build:
    """Starts nothing."""
    try:
        installed = version("horovod")
    except PackageNotFoundError:
        return Build(version=None, error="it is not installed")
    try:
        import horovod.torch as hvd
    except Exception as error:  # the loader's, the linker's or its own: all are told
        return Build(version=installed, error=" ".join(str(error).split())[:200])
    built = {"gloo": hvd.gloo_built(), "mpi": hvd.mpi_built(), "nccl": hvd.nccl_built()}
    return Build(version=installed, has=tuple(key for key in built if built[key]), asked=_asked())


def _asked() -> tuple[str, ...]:
    names = ("HOROVOD_CONTROLLER", "HOROVOD_CPU_OPERATIONS", "HOROVOD_GPU_OPERATIONS")
    chosen = {os.environ.get(name, "").lower() for name in names}
    # Without a choice the launcher of this project takes gloo.
    return tuple(sorted(chosen & {"gloo", "mpi", "nccl"})) or ("gloo",)
