"""Misplaced patch grids are found by what the patches show, without labels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from diag_lib.models import Geometry
from diag_lib.probes.grid import IDENTITY, check_grid, grids, local_content

GEOMETRY = Geometry(stride=8, offset=4, receptive_field=9)
HALF = np.arange(60) % 2 == 0


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Blurred noise with local noise of varying strength: something that differs from patch to patch."""
    rng = np.random.default_rng(0)
    smooth = F.interpolate(torch.tensor(rng.uniform(0, 255, (60, 3, 16, 16))), size=64, mode="bilinear")
    strength = torch.tensor(rng.uniform(0, 20, (60, 1, 8, 8))).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return (smooth + strength * torch.tensor(rng.normal(size=(60, 3, 64, 64)))).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def teacher(pictures: torch.Tensor) -> NDArray[np.float64]:
    """Patch logits that depend on the noise in the patch, with outliers and a class offset."""
    rng = np.random.default_rng(1)
    maps = 20 * local_content(pictures, GEOMETRY, (7, 7))[:, 4]
    maps = maps + rng.normal(0, 4, maps.shape) + rng.normal(0, 30, (60, 1, 1))
    maps[0, 0, 0] = -5000
    return np.asarray(maps)


@pytest.mark.parametrize(
    ("damage", "back"),
    [
        (lambda m: m, IDENTITY),
        (lambda m: m.swapaxes(1, 2), "transposed"),
        (lambda m: m[:, :, ::-1], "flipped left-right"),
        (lambda m: m[:, ::-1], "flipped top-bottom"),
        (lambda m: np.roll(m, (1, 0), (1, 2)), "shifted 1 up"),
        (lambda m: np.rot90(m, 1, (1, 2)), "turned by 270 degrees"),
    ],
)
def test_names_the_turn_that_puts_the_map_back(pictures, teacher, damage, back) -> None:
    found = check_grid(damage(teacher), local_content(pictures, GEOMETRY, (7, 7)), HALF)
    assert found.best == back
    assert found.answer == ("yes" if back == IDENTITY else "no")


def test_a_map_unrelated_to_the_picture_stays_undecided(pictures) -> None:
    noise = np.random.default_rng(2).normal(size=(60, 7, 7))
    assert check_grid(noise, local_content(pictures, GEOMETRY, (7, 7)), HALF).answer == "undecided"


def test_a_constant_map_stays_undecided(pictures) -> None:
    assert (
        check_grid(np.zeros((60, 7, 7)), local_content(pictures, GEOMETRY, (7, 7)), HALF).answer
        == "undecided"
    )


def test_the_student_is_followed_through_the_turns(pictures, teacher) -> None:
    found = check_grid(
        teacher.swapaxes(1, 2), local_content(pictures, GEOMETRY, (7, 7)), HALF, student=teacher
    )
    rho = found.table.set_index("grid")["student_rho"]
    assert rho["transposed"] == pytest.approx(1, abs=0.01) and rho[IDENTITY] < 0.5


def test_windows_show_the_pixels_that_a_cell_sees() -> None:
    picture = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    picture[..., 8:16, 16:24] = 255
    brightness = local_content(picture, Geometry(stride=8, offset=3.5, receptive_field=8), (4, 4))[0, 0]
    expected = np.zeros((4, 4))
    expected[1, 2] = 1
    assert np.allclose(brightness, expected)


def test_oblong_grids_have_no_transposes() -> None:
    assert not any("transposed" in name or "90" in name for name in grids(4, 6))
    assert list(grids(1, 1)) == [name for name in grids(1, 1) if "shifted" not in name]


def test_each_half_needs_images(pictures, teacher) -> None:
    with pytest.raises(ValueError, match="two images"):
        check_grid(teacher, local_content(pictures, GEOMETRY, (7, 7)), np.ones(60, dtype=bool))


def test_a_student_that_learned_something_tells_a_turned_map_where_local_content_does_not(pictures) -> None:
    """The map follows nothing that the content channels show, but the student's own map agrees with it."""
    rng = np.random.default_rng(3)
    student = rng.normal(size=(60, 7, 7))
    turned = student[:, :, ::-1] + rng.normal(size=(60, 7, 7))
    content = local_content(pictures, GEOMETRY, (7, 7))
    found = check_grid(turned, content, HALF, student)
    assert found.answer == "no" and found.turned == "flipped left-right"
    assert check_grid(student[:, :, ::-1], content, HALF, rng.normal(size=(60, 7, 7))).answer == "undecided"
    opposed = check_grid(student, content, HALF, -student + 0.1 * rng.normal(size=(60, 7, 7)))
    assert opposed.answer == "undecided"  # a student that was taught the opposite
    assert check_grid(student, content, HALF, student + rng.normal(size=(60, 7, 7))).turned == IDENTITY
