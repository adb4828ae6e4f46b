"""What Horovod was built with, compared with what a run needs."""

from harness.doctor.versions import Build, horovod_build, judge_build
from tests.doctor.seats import FOUR

GOOD = Build(version="0.28.1+mended.12345678.1", has=("gloo",))


def judged(h2: Build) -> list[tuple[str, str]]:
    builds = [h2 if seat.host == "h2" else GOOD for seat in FOUR]
    return [(finding.level, finding.found) for finding in judge_build(FOUR, builds)]


def test_the_one_that_is_installed_here() -> None:
    build = horovod_build()
    assert "gloo" in build.has
    assert build.mended
    assert judge_build(FOUR[:1], [build])[0].level == "ok"


def test_a_mended_one_with_gloo_is_well() -> None:
    assert judged(GOOD) == [("ok", "0.28.1+mended.12345678.1 with gloo")]


def test_a_stock_one_is_warned_of() -> None:
    ((level, found),) = judged(Build(version="0.28.1", has=("gloo",)))
    assert level == "warn"
    assert "Horovod on h2 is not the mended build" in found


def test_what_is_asked_and_missing() -> None:
    ((level, found),) = judged(GOOD.model_copy(update={"asked": ("gloo", "nccl")}))
    assert (level, found) == (
        "fail",
        "Horovod on h2 was built without nccl, which this run asks for",
    )


def test_one_that_cannot_be_imported() -> None:
    found = judged(Build(version="0.28.1+mended.1.1", error="libtorch.so: no such file"))
    assert found == [("fail", "Horovod cannot be used on h2 (libtorch.so: no such file)")]
