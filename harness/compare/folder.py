"""A study as its folder keeps it: each run's config and summary in a folder of its own in there."""

from collections.abc import Sequence
from pathlib import Path

from harness.config import load_resolved
from harness.errors import UserError
from harness.measure.summary import FILE_NAME, RunSummary
from harness.tracking.folders import CONFIG_FILE
from harness.tracking.results import Variant


def variants_in(folder: Path) -> tuple[Variant, ...]:
    """Those with runs that ended well, in the order of their names, each run by its seed.

    Raises UserError where there are none.
    """
    found: dict[str, list[tuple[RunSummary, Path]]] = {}
    for path in sorted(folder.rglob(FILE_NAME)):
        run = RunSummary.read(path.parent)
        found.setdefault(run.name, []).append((run, path.parent / CONFIG_FILE))
    if not found:
        raise UserError(f"{folder} holds no run with a {FILE_NAME}; give a study's own folder")
    variants = []
    for _, runs in sorted(found.items()):
        runs.sort(key=lambda each: each[0].seed)
        summaries, configs = zip(*runs, strict=True)
        variants.append(Variant(load_resolved(configs[0]), summaries))
    return tuple(variants)


def write_runs(folder: Path, variants: Sequence[Variant]) -> None:
    """What `variants_in` reads."""
    for each in variants:
        for run in each.summaries:
            place = folder / f"{each.name}-s{run.seed}"
            place.mkdir(parents=True, exist_ok=True)
            config = each.config.model_copy(update={"seed": run.seed})
            (place / CONFIG_FILE).write_text(config.to_yaml(), encoding="utf-8")
            run.write(place)
