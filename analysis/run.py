"""`make analysis`: executes the notebooks on a store and saves their figures as PNG files.

Without arguments, it executes the committed notebooks in place, on the store that the repository
ships. With another store or study, executed copies go to a separate folder.
"""

import argparse
import base64
import os
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from harness.tracking.address import sqlite_file

HERE = Path(__file__).resolve().parent
QUESTIONS = (
    "phases",
    "accuracy",
    "utilisation",
    "traffic",
    "scaling",
    "staleness",
    "scale",
    "predictions",
    "ladder",
    "lateness",
)
NOTEBOOKS = tuple(HERE / f"{number}_{name}.ipynb" for number, name in enumerate(QUESTIONS, start=1))
TIMEOUT_SECONDS = 300
"""Time limit for a cell."""
QUIET = "ignore:IProgress not found"
"""Hides a warning of tqdm, which MLflow imports, because it would show this machine's folders."""


def execute(notebook: NotebookNode, parameters: Mapping[str, str]) -> None:
    """Runs all cells in this folder.

    `parameters` are set in a new cell behind the one that is tagged `parameters`.
    """
    if parameters:
        tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
        source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        cell = nbformat.v4.new_code_cell(source, id="injected", metadata={"tags": ["injected"]})
        notebook.cells.insert(tags.index(["parameters"]) + 1, cell)
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT_SECONDS,
        resources={"metadata": {"path": str(HERE)}},
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],
    )
    client.execute(env={**os.environ, "PYTHONWARNINGS": QUIET})
    notebook.metadata["language_info"] = {"name": "python"}


def figures(notebook: NotebookNode) -> list[bytes]:
    """The PNGs that the notebook's cells show."""
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    found = [
        output["data"]["image/png"] for output in shown if "image/png" in output.get("data", {})
    ]
    return [base64.b64decode(each) for each in found]


def run(parameters: Mapping[str, str], folder: Path) -> None:
    """Writes executed copies of all notebooks, and their figures as PNG files, into `folder`."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        execute(notebook, parameters)
        nbformat.write(notebook, folder / path.name)
        (figure,) = figures(notebook)
        (folder / "figures" / f"{path.stem}.png").write_bytes(figure)
        print(folder / path.name, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.run", description=__doc__)
    parser.add_argument("--uri", help="MLflow store, sqlite:///FILE.db or http://HOST:PORT")
    parser.add_argument("--study", help="a study in the store")
    parser.add_argument(
        "--folder", type=Path, help="folder for executed copies (default: runs/analysis/STUDY)"
    )
    chosen = parser.parse_args()
    parameters = {}
    if chosen.uri:
        file = sqlite_file(chosen.uri)  # made absolute, because notebooks run in their own folder
        parameters["URI"] = f"sqlite:///{file}" if file else chosen.uri
    if chosen.study:
        parameters["STUDY"] = chosen.study
    default = Path("runs/analysis") / (chosen.study or "store") if parameters else HERE
    run(parameters, chosen.folder or default)


if __name__ == "__main__":
    main()
