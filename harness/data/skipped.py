"""The pictures that could not be read during a run and were replaced, on all ranks."""

from harness.data.images import Dataset
from harness.data.picture_source import PictureSource
from harness.parallel.world import World


def skipped_pictures(dataset: Dataset, world: World) -> list[tuple[str, str]]:
    """The place of each, and why it could not be read. Collective over the world."""
    own = [
        (source.pictures.shown(number), why)
        for source in (dataset.train, *dataset.validation.values())
        if isinstance(source, PictureSource)
        for number, why in source.skipped.items()
    ]
    everyones = world.gather_objects(own, "skipped")
    return sorted({each for those in everyones for each in those})
