"""What a sweep asks for next, from results at hand."""

import math
from pathlib import Path

import pytest

from benchmarks import sweep
from benchmarks.sweep import SEEDS, NoBestPoint, Sweep, beyond, grid, rank, table
from benchmarks.sweep_points import Point, Result

RULE = "data_parallel"


def result(lr: float, momentum: float, seed: int, final: float) -> Result:
    point = Point(name=RULE, experiment="x", lr=lr, momentum=momentum, seed=seed)
    return Result(point=point, curve=((1000, final - 0.2), (2000, final)))


def write(made: Sweep, results: list[Result]) -> None:
    made.folder.mkdir(exist_ok=True)
    lines = [each.model_dump_json() + "\n" for each in results]
    (made.folder / "results.jsonl").write_text("".join(lines))


RATES = [lr for lr, momentum in grid() if momentum == 0.8]


def results(best: float, momentum: float = 0.8) -> list[Result]:
    """The first seed's, highest at one point."""

    def final(lr: float, other: float) -> float:
        return 0.99 if (lr, other) == (best, momentum) else 0.97 - lr / 100 - abs(other - 0.8) / 10

    return [result(lr, other, SEEDS[0], final(lr, other)) for lr, other in grid()]


def asked(made: Sweep) -> list[tuple[float, float, int]]:
    return [(point.lr, point.momentum, point.seed) for point in made.missing()]


def test_first_the_whole_grid_with_one_seed(tmp_path: Path) -> None:
    made = Sweep(tmp_path / "sweep", [RULE])
    assert asked(made) == [(lr, momentum, SEEDS[0]) for lr, momentum in grid()]
    assert (0.45, 0.8) in grid()
    assert (0.9, 0.6) in grid()


def test_a_best_point_at_an_edge_makes_the_grid_grow(tmp_path: Path) -> None:
    made = Sweep(tmp_path / "sweep", [RULE])
    write(made, results(RATES[-1]))
    assert asked(made) == [(1.0, 0.8, SEEDS[0])]
    write(made, results(RATES[0]))
    assert asked(made) == [(0.13, 0.8, SEEDS[0])]


def test_a_best_momentum_at_an_edge_makes_the_grid_grow_too(tmp_path: Path) -> None:
    made = Sweep(tmp_path / "sweep", [RULE])
    write(made, results(0.6, 0.6))
    assert asked(made) == [(0.6, 0.4, SEEDS[0]), (0.9, 0.4, SEEDS[0]), (1.3, 0.4, SEEDS[0])]
    write(made, results(0.15, 0.9))
    assert {momentum for _, momentum, _ in asked(made)} == {0.95}


def test_no_momentum_is_an_end_and_no_edge() -> None:
    found = {(lr, 0.0): [result(lr, 0.0, 10, 0.9)] for lr in (1.0, 3.0)}
    found[2.0, 0.0] = [result(2.0, 0.0, 10, 0.99)]
    found[2.0, 0.2] = [result(2.0, 0.2, 10, 0.9)]
    assert beyond(found) == []


def test_then_the_best_points_get_the_other_seeds(tmp_path: Path) -> None:
    made = Sweep(tmp_path / "sweep", [RULE])
    write(made, results(RATES[2]))
    wanted = asked(made)
    assert {seed for _, _, seed in wanted} == set(SEEDS[1:])
    assert len({(lr, momentum) for lr, momentum, _ in wanted}) == sweep.FINALISTS
    assert (RATES[2], 0.8, SEEDS[1]) in wanted
    others = [result(lr, momentum, seed, 0.98) for lr, momentum, seed in wanted]
    write(made, results(RATES[2]) + others)
    assert asked(made) == [], "the best point stands inside the grid"


def test_an_edge_that_all_seeds_prefer_is_not_taken_for_the_best(tmp_path: Path) -> None:
    made = Sweep(tmp_path / "sweep", [RULE])
    first = results(RATES[2])
    finalists = {(lr, m) for lr, m, _ in asked_after(made, first)}
    others = [
        result(lr, m, seed, 0.999 if lr == RATES[0] else 0.9)
        for lr, m in finalists
        for seed in SEEDS[1:]
    ]
    write(made, first + others)
    assert (RATES[0], 0.8) in finalists
    assert {lr for lr, _, _ in asked(made)} == {0.13}


def asked_after(made: Sweep, results: list[Result]) -> list[tuple[float, float, int]]:
    write(made, results)
    return asked(made)


def test_a_rate_that_grows_without_end_fails() -> None:
    found = {(lr, 0.8): [result(lr, 0.8, 10, 0.9 + lr / 100)] for lr in (1.0, 4.0, 7.0)}
    with pytest.raises(NoBestPoint, match=r"momentum 0\.8 is 7"):
        beyond(found)


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
