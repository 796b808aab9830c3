"""Grids and animations."""

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf.errors import UserError
from ddpm_hf.figures import (
    class_columns,
    draw_neighbours,
    make_class_grid,
    make_grid,
    make_titled_rows,
    pick_frames,
    save_animation,
)


def solid(value, mode="L"):
    return Image.new(mode, (4, 3), value)


def test_grid_places_images_row_by_row():
    grid = np.asarray(make_grid([solid(10), solid(20), solid(30)], columns=2, scale=2, gap=1))
    assert grid.shape == (2 * 6 + 1, 2 * 8 + 1)
    assert (grid[:6, :8] == 10).all()
    assert (grid[:6, 9:] == 20).all()
    assert (grid[7:, :8] == 30).all()
    assert (grid[7:, 9:] == 255).all()
    assert (grid[6] == 255).all()
    assert make_grid([solid("red", "RGB")]).mode == "RGB"


@pytest.mark.parametrize(
    ("count", "total", "frames"),
    [(0, 5, []), (1, 5, [0]), (2, 5, [0, 4]), (3, 5, [0, 2, 4]), (5, 5, [0, 1, 2, 3, 4]), (9, 3, [0, 1, 2])],
)
def test_frames_are_spread_evenly(count, total, frames):
    assert pick_frames(count, total) == frames


def test_gif_shows_the_frames_and_holds_the_last(tmp_path):
    save_animation([solid(0), solid(128), solid(255)], tmp_path / "a.gif", ".gif", seconds=0.3, hold=1.0)
    durations, values = [], []
    with Image.open(tmp_path / "a.gif") as gif:
        for index in range(gif.n_frames):
            gif.seek(index)
            durations.append(gif.info["duration"])
            values.append(np.asarray(gif.convert("L")).mean())
    assert durations == [100, 100, 1100]
    assert values == pytest.approx([0, 128, 255], abs=3)


def ink(picture: Image.Image, box: tuple[int, int, int, int]) -> int:
    """Pixels darker than white within a box."""
    return int((np.asarray(picture.convert("L").crop(box)) < 128).sum())


def test_a_column_of_a_class_has_its_name_below():
    grid = make_class_grid([Image.new("L", (28, 28), 200)] * 4, ["Bag", ""])
    assert grid.mode == "L" and grid.size == (2 * 86 - 2, 2 * 86 - 2 + 22)
    assert ink(grid, (0, 170, 84, 192)) > 20 and ink(grid, (86, 170, 170, 192)) == 0


def test_a_name_that_is_too_long_stays_in_its_column():
    grid = make_class_grid([Image.new("RGB", (28, 28), "white")] * 2, ["", "a very long name of a class, indeed"])
    assert ink(grid, (0, 84, 86, 106)) == 0 and ink(grid, (86, 84, 170, 106)) > 50


def test_neighbours_are_titled_and_their_distance_is_below():
    pair = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    far = pair.clone()
    far[1] = 255
    picture = draw_neighbours([pair + 200, far])
    same = make_titled_rows(
        [("image", [Image.new("L", (28, 28), value) for value in (200, 0)]),
         ("nearest\nin training", [Image.new("L", (28, 28), value) for value in (200, 255)])],
        scale=3, captions=["0.000", "1.000"],
    )  # fmt: skip
    assert np.array_equal(np.asarray(picture), np.asarray(same))
    margin = picture.width - (2 * 86 - 2)
    assert margin > 60 and ink(picture, (0, 0, margin, 84)) > 20 and ink(picture, (0, 86, margin, 170)) > 40


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"animations end in \.gif"):
        save_animation([solid(0)], tmp_path / "a.avi", ".avi")


@pytest.mark.parametrize(
    ("count", "classes", "columns"),
    [(20, 10, 10), (20, 2, 4), (100, 2, 10), (20, 12, 12), (9, 10, None), (9, 1, None), (9, 0, None), (9, 3, 3)],
)
def test_a_column_is_one_class_and_the_grid_about_square(count, classes, columns):
    assert class_columns(count, classes) == columns
