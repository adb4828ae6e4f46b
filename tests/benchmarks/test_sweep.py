"""What a sweep asks for next, from results at hand."""

import math
from pathlib import Path

import pytest

from benchmarks import sweep
from benchmarks.sweep import SEEDS, NoBestPoint, Sweep, beyond, first_points, rank, table
from benchmarks.sweep_points import Point, Result

RULE = "data_parallel"


def result(lr: float, momentum: float, seed: int, final: float) -> Result:
    point = Point(name=RULE, experiment="x", lr=lr, momentum=momentum, seed=seed)
    return Result(point=point, curve=((1000, final - 0.2), (2000, final)))


def write(made: Sweep, results: list[Result]) -> None:
    made.folder.mkdir(exist_ok=True)
    lines = [each.model_dump_json() + "\n" for each in results]
    (made.folder / "results.jsonl").write_text("".join(lines))


RATES = [lr for lr, _ in first_points()]


def along(best: float, momentum: float = 0.8) -> list[Result]:
    """The first seed's at the first rates, and their like with another momentum: highest at one."""
    effective = best / (1 - 0.8)

    def final(lr: float, other: float) -> float:
        away = abs(math.log(lr / (1 - other) / effective)) + abs(other - momentum)
        return 0.97 - away / 20

    points = [*first_points()]
    if momentum != 0.8:
        points += [(lr * (1 - momentum) / (1 - 0.8), momentum) for lr in RATES]
    return [result(lr, other, SEEDS[0], final(lr, other)) for lr, other in points]


def asked(made: Sweep) -> list[tuple[float, float, int]]:
    return [(point.lr, point.momentum, point.seed) for point in made.missing()]


def test_every_rule_starts_from_the_same_points(tmp_path: Path) -> None:
    made = Sweep(tmp_path / "sweep", [RULE])
    assert asked(made) == [(lr, 0.8, SEEDS[0]) for lr in (0.2, 0.3, 0.45, 0.7)]


def test_a_best_rate_at_an_edge_asks_for_one_beyond(tmp_path: Path) -> None:
    made = Sweep(tmp_path / "sweep", [RULE])
    write(made, along(RATES[-1]))
    assert asked(made) == [(1.0, 0.8, SEEDS[0])]
    write(made, along(RATES[0]))
    assert asked(made) == [(0.13, 0.8, SEEDS[0])]


def test_a_best_rate_inside_asks_for_other_momenta(tmp_path: Path) -> None:
    made = Sweep(tmp_path / "sweep", [RULE])
    write(made, along(RATES[1]))
    assert asked(made) == [(0.6, 0.6, SEEDS[0]), (0.15, 0.9, SEEDS[0])], "effective rate 1.5"


def test_a_better_momentum_asks_for_its_own_neighbours(tmp_path: Path) -> None:
    made = Sweep(tmp_path / "sweep", [RULE])
    before = along(RATES[1])
    better = result(0.6, 0.6, SEEDS[0], 0.98)
    worse = result(0.15, 0.9, SEEDS[0], 0.9)
    write(made, [*before, better, worse])
    assert asked(made) == [(0.4, 0.6, SEEDS[0]), (0.9, 0.6, SEEDS[0])]
    around = [result(lr, 0.6, SEEDS[0], 0.9) for lr in (0.4, 0.9)]
    write(made, [*before, better, worse, *around])
    assert asked(made) == [(0.9, 0.4, SEEDS[0])]


def test_no_momentum_is_an_end_and_no_edge() -> None:
    found = {(lr, 0.0): [result(lr, 0.0, 10, 0.9)] for lr in (1.0, 3.0)}
    found[2.0, 0.0] = [result(2.0, 0.0, 10, 0.99)]
    found[1.6, 0.2] = [result(1.6, 0.2, 10, 0.9)]
    assert beyond(RULE, found, set(found)) == []


def finished(best: float) -> list[Result]:
    """All that the first seed is asked for, where the best rate stands inside."""
    neighbours = [(0.8, 0.6), (0.1, 0.95)]
    return along(best) + [result(lr, other, SEEDS[0], 0.5) for lr, other in neighbours]


def test_then_the_best_points_get_the_other_seeds(tmp_path: Path) -> None:
    made = Sweep(tmp_path / "sweep", [RULE])
    write(made, finished(RATES[2]))
    wanted = asked(made)
    assert {seed for _, _, seed in wanted} == set(SEEDS[1:])
    assert len({(lr, momentum) for lr, momentum, _ in wanted}) == sweep.FINALISTS
    assert (RATES[2], 0.8, SEEDS[1]) in wanted
    others = [
        result(lr, momentum, seed, 0.98 if lr == RATES[2] else 0.9) for lr, momentum, seed in wanted
    ]
    write(made, finished(RATES[2]) + others)
    assert asked(made) == [], "the best point stands inside what was tried"


def test_an_edge_that_all_seeds_prefer_is_not_taken_for_the_best(tmp_path: Path) -> None:
    made = Sweep(tmp_path / "sweep", [RULE])
    first = finished(RATES[1])
    finalists = {(lr, m) for lr, m, _ in asked_after(made, first)}
    assert (RATES[0], 0.8) in finalists
    others = [
        result(lr, m, seed, 0.999 if lr == RATES[0] else 0.9)
        for lr, m in finalists
        for seed in SEEDS[1:]
    ]
    write(made, first + others)
    assert asked(made) == [(0.13, 0.8, seed) for seed in SEEDS]


def asked_after(made: Sweep, results: list[Result]) -> list[tuple[float, float, int]]:
    write(made, results)
    return asked(made)


def test_a_rate_that_grows_without_end_fails() -> None:
    found = {(lr, 0.8): [result(lr, 0.8, 10, 0.9 + lr / 100)] for lr in (1.0, 4.0, 7.0)}
    with pytest.raises(NoBestPoint, match=r"data_parallel with momentum 0\.8 is 7"):
        beyond(RULE, found, set(found))


def test_the_table_is_shown_with_a_line_for_a_rule_at_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Sweep(tmp_path / "sweep", [RULE])
    rates = [*RATES, *(RATES[-1] * 1.5**steps for steps in range(1, 7))]
    assert rates[-1] < sweep.MOST_RATE < 1.5 * rates[-1]
    write(made, [result(lr, 0.8, SEEDS[0], 0.8 + lr / 100) for lr in rates])
    monkeypatch.setattr("sys.argv", ["sweep", "--show", "--folder", str(made.folder)])
    assert sweep.main() == 0
    out, err = capsys.readouterr()
    assert f"| {RULE} | 7.97" in out
    assert "(unfinished)" in out
    assert err.count("\n") == 1
    assert err.startswith(f"sweep: the best rate of {RULE} with momentum 0.8 is 7.97")


def test_fewer_images_to_the_target_beat_a_higher_end() -> None:
    soon = Result(point=result(0.1, 0.8, 10, 0).point, curve=((1000, 0.98), (2000, 0.98)))
    high = Result(point=result(0.2, 0.8, 10, 0).point, curve=((1000, 0.9), (2000, 0.999)))
    never = Result(point=result(0.3, 0.8, 10, 0).point, curve=((1000, 0.9), (2000, 0.95)))
    diverged = Result(point=result(0.4, 0.8, 10, 0).point)
    ordered = sorted(([each] for each in (diverged, never, high, soon)), key=rank)
    assert [each for (each,) in ordered] == [soon, high, never, diverged]
    assert rank([soon, never]) > rank([high, high]), "one seed that misses is a miss"
    assert high.images_to(0.9495) == pytest.approx(1500)
    assert math.isinf(never.images_to(0.96))


def test_the_table_shows_the_best_and_all_points() -> None:
    found = {(0.1, 0.8): [result(0.1, 0.8, s, 0.985) for s in SEEDS]}
    found[0.2, 0.8] = [result(0.2, 0.8, SEEDS[0], 0.9)]
    row = table({RULE: found})[-1]
    assert row.startswith(f"| {RULE} | 0.1 | 0.8 | 98.50 | 2.0 k | 0.1 / 0.8: 98.5 · 0.2 / 0.8")
