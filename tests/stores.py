"""Empty MLflow stores to try things on: making one's tables takes MLflow seconds, a copy none."""

import shutil
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

from harness.tracking.connection import open_store


@lru_cache
def _empty() -> Path:
    file = Path(mkdtemp(prefix="empty-store-")) / "mlflow.db"
    open_store(f"sqlite:///{file}")
    return file


def new_store(folder: Path) -> str:
    """The address of a store of its own in the folder."""
    return f"sqlite:///{shutil.copy(_empty(), folder / 'mlflow.db')}"
