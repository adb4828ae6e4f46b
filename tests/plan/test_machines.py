"""A cluster's file: what is written is read, and what is wrong with it is reported in a line."""

from pathlib import Path

import pytest

from harness.errors import UserError
from harness.plan.machines import Cluster, Stalls, read_cluster
from tests.plan.clusters import cluster

EXAMPLES = sorted(Path("experiments/clusters").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_can_be_read(path: Path) -> None:
    assert read_cluster(path).name == path.stem


def test_what_is_written_is_read(tmp_path: Path) -> None:
    given = cluster(stalls=Stalls(every_seconds=10, for_seconds=2), measured={"hosts": ["h1"]})
    given.write(tmp_path / "c.yaml")
    assert read_cluster(tmp_path / "c.yaml") == given


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nodes: 0", "nodes=0 does not fit"),
        ("cards: 8", "unknown key cards"),
        ("node: {}", "node.bytes_per_second is missing"),
        ("jitter: 2", "jitter=2 does not fit"),
        ("stalls: {every_seconds: 1, for_seconds: 2}", "stalls.for_seconds=2 is not below"),
        ("- 3", "is not YAML"),
    ],
)
def test_mistakes_are_reported(line: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    cluster().write(path)
    key = line.split(":")[0]
    kept = [each for each in path.read_text().splitlines() if not each.startswith(f"{key}:")]
    if key == "node":
        kept = _without_block(path.read_text().splitlines(), "node:")
    path.write_text("\n".join([*kept, line]) + "\n")
    with pytest.raises(UserError, match=expected):
        read_cluster(path)


def _without_block(lines: list[str], head: str) -> list[str]:
    kept, inside = [], False
    for line in lines:
        inside = line == head or (inside and line.startswith(" "))
        if not inside:
            kept.append(line)
    return kept


def test_no_file_and_no_cluster(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the cluster"):
        read_cluster(tmp_path / "none.yaml")
    cluster().write(tmp_path / "fast.yaml")
    with pytest.raises(UserError, match=r"the nearest file is .*/fast.yaml; use that"):
        read_cluster(tmp_path / "fasst.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(UserError, match="holds a list, not keys and values"):
        read_cluster(tmp_path / "list.yaml")


EXPERIMENTS = sorted(Path("experiments").rglob("*.yaml"))
EXPERIMENTS = [path for path in EXPERIMENTS if path.parent.name != "clusters"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=str)
def test_an_experiment_is_no_cluster(path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_cluster(path)
    assert str(error.value).startswith(f"{path} is an experiment, not a cluster; name it without")


def test_sharing_cores_slows_ranks_down() -> None:
    def slowdown(ranks: int, cores: float | None) -> float:
        values = cluster(sharing_penalty=0.1).model_dump()
        return Cluster(**values | {"ranks_per_node": ranks, "cores_per_node": cores}).slowdown

    assert slowdown(8, None) == 1.0
    assert slowdown(2, 4.0) == 1.0
    assert slowdown(2, 1.0) == pytest.approx(2 * 1.1)
    assert slowdown(4, 0.5) == pytest.approx(8 * 1.3)


def test_a_rank_takes_as_many_cores_as_it_has_threads() -> None:
    """A node of 8 cores, measured with 2 ranks of 4 threads: none is left for a third."""
    node = cluster(nodes=1, ranks_per_node=2, cores_per_node=8.0, threads=4)
    assert node.slowdown == 1.0
    assert node.cores_are_busy
    assert node.on(1, 8).slowdown == pytest.approx(4.0)
    assert not node.on(1, 1).cores_are_busy


def test_ranks_on_cores_divide_their_node_s_memory() -> None:
    cores = cluster(ranks_per_node=2, cores_per_node=8.0, memory_bytes=16e9)
    assert cores.on(4, 8).memory_bytes == pytest.approx(4e9)
    assert cores.on(4, 2) == cores.on(4, 8).on(4, 2)
    assert cluster(ranks_per_node=2, memory_bytes=16e9).on(4, 8).memory_bytes == 16e9
