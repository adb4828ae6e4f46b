"""The cache is written once, whole or not at all, and damage is noticed."""

import fcntl
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from harness.data.pixel_cache import HEADER_BYTES, cached_pixels
from harness.errors import UserError

SHAPE = (8, 256, 1024)
PARTS = [np.full(SHAPE[1:], value, np.uint8) for value in range(SHAPE[0])]
# A copy of this process starts at once; what runs in it uses none of torch's threads.
FORK = multiprocessing.get_context("fork")


def refuse():
    raise AssertionError("rendered although the file is there")


def render_once(path: Path, together, rendered) -> None:
    """In a process of its own: ask for the pixels at the same moment as the others."""

    def render():
        rendered.put(os.getpid())
        yield from PARTS

    together.wait()
    pixels = cached_pixels(path, SHAPE, render)
    assert np.array_equal(pixels.numpy(), np.stack(PARTS))


def render_half(path: Path, half_done) -> None:
    """In a process of its own: write half, say so, and never end."""

    def render():
        yield from PARTS[:4]
        half_done.set()
        while True:
            signal.pause()

    cached_pixels(path, SHAPE, render)


def render_late(path: Path, half_done, other_ended) -> None:
    """In a process of its own: write half, and the rest once another has written all."""

    def render():
        yield from PARTS[:4]
        half_done.set()
        assert other_ended.wait(100)
        yield from PARTS[4:]

    cached_pixels(path, SHAPE, render)


def test_many_processes_at_once_render_once(tmp_path):
    together, rendered = FORK.Barrier(3), FORK.Queue()
    processes = [
        FORK.Process(target=render_once, args=(tmp_path / "a.bin", together, rendered))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0] * 3
    rendered.get(timeout=10)
    assert rendered.empty()


def test_a_writer_killed_in_the_middle_leaves_nothing_that_is_taken_for_whole(tmp_path):
    path, half_done = tmp_path / "a.bin", FORK.Event()
    process = FORK.Process(target=render_half, args=(path, half_done))
    process.start()
    assert half_done.wait(100)
    assert list(tmp_path.glob("*.partial"))
    process.kill()
    process.join()
    assert not path.exists()

    pixels = cached_pixels(path, SHAPE, lambda: PARTS)
    assert np.array_equal(pixels.numpy(), np.stack(PARTS))
    assert {file.name for file in tmp_path.iterdir()} == {"a.bin", ".lock"}


def test_where_there_are_no_locks_each_process_has_a_file_of_its_own(tmp_path, monkeypatch):
    def none(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    path, half_done, other_ended = tmp_path / "a.bin", FORK.Event(), FORK.Event()
    process = FORK.Process(target=render_late, args=(path, half_done, other_ended))
    process.start()
    assert half_done.wait(100)
    cached_pixels(path, SHAPE, lambda: PARTS)
    other_ended.set()
    process.join(100)
    assert process.exitcode == 0
    assert {file.name for file in tmp_path.iterdir()} == {"a.bin", ".lock"}
    assert int(cached_pixels(path, SHAPE, refuse)[7, 3, 3]) == 7


def test_a_renderer_that_fails_leaves_nothing(tmp_path):
    def render():
        yield PARTS[0]
        raise UserError("no ink")

    with pytest.raises(UserError, match="no ink"):
        cached_pixels(tmp_path / "a.bin", SHAPE, render)
    assert {file.name for file in tmp_path.iterdir()} == {".lock"}


def test_the_second_time_reads_the_file(tmp_path):
    cached_pixels(tmp_path / "a.bin", SHAPE, lambda: PARTS)
    assert int(cached_pixels(tmp_path / "a.bin", SHAPE, refuse)[7, 3, 3]) == 7


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def empty(path):
    os.truncate(path, 0)


def flip_a_pixel(path):
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES + 12345] ^= 1
    path.write_bytes(content)


def flip_the_header(path):
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_pixel, flip_the_header])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "a.bin"
    cached_pixels(path, SHAPE, lambda: PARTS)
    damage(path)
    with pytest.raises(UserError, match=rf"{path} are damaged: .*; delete it and run again"):
        cached_pixels(path, SHAPE, refuse)


def test_writing_into_the_pixels_changes_no_file(tmp_path):
    path = tmp_path / "a.bin"
    cached_pixels(path, SHAPE, lambda: PARTS).zero_()
    assert int(cached_pixels(path, SHAPE, refuse)[7, 3, 3]) == 7


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"set data\.cache to another folder"):
        cached_pixels(tmp_path / "file" / "a.bin", SHAPE, lambda: PARTS)
