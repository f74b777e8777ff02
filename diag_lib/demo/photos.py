"""Which real photographs is the demo set cut from, and who took them?"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from diag_lib.errors import UserError

INSTALL_HINT = "install it with: pip install scikit-learn scikit-image"


@dataclass(frozen=True)
class Photo:
    """One photograph that lies inside an installed package (nothing is downloaded)."""

    name: str
    package: str
    file: str
    licence: str
    credit: str


_SKIMAGE = ("skimage", "data/")
_SKLEARN = ("sklearn", "datasets/images/")

PHOTOS: tuple[Photo, ...] = tuple(
    Photo(name, package, folder + file, licence, credit)
    for name, (package, folder), file, licence, credit in (
        ("astronaut", _SKIMAGE, "astronaut.png", "public domain", "NASA (portrait of Eileen Collins)"),
        ("brick", _SKIMAGE, "brick.png", "CC0", "CC0Textures, Bricks25"),
        ("camera", _SKIMAGE, "camera.png", "CC0", "Lav Varshney"),
        ("chelsea", _SKIMAGE, "chelsea.png", "CC0", "Stefan van der Walt"),
        ("china", _SKLEARN, "china.jpg", "CC BY 2.0", "danielbuechele, flickr 6061409035"),
        ("coffee", _SKIMAGE, "coffee.png", "CC0", "Rachel Michetti, courtesy of Pikolo Espresso Bar"),
        ("flower", _SKLEARN, "flower.jpg", "CC BY 2.0", "vultilion, flickr 6056698931"),
        ("grass", _SKIMAGE, "grass.png", "CC0", "linolafett, DeviantArt 434853879"),
        ("gravel", _SKIMAGE, "gravel.png", "CC0", "CC0Textures, Gravel04"),
        ("rocket", _SKIMAGE, "rocket.jpg", "public domain", "SpaceX, flickr 16511594820"),
    )
)


def locate(photo: Photo) -> Path:
    """Path of the photograph inside its installed package; the package itself is not imported.

    Raises UserError if the package, or the file in it, is not installed.
    """
    spec = find_spec(photo.package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the demo set needs the photographs of {photo.package}, not installed here; {INSTALL_HINT}"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / photo.file
    if not path.is_file():
        raise UserError(f"{photo.package} is installed without its photograph {photo.file}; re{INSTALL_HINT}")
    return path


def read(photo: Photo) -> np.ndarray:
    """The photograph as uint8 (H, W, 3); grey photographs get three equal channels."""
    with Image.open(locate(photo)) as image:
        return np.asarray(image.convert("RGB"))


def halves(split: str) -> Iterator[tuple[str, np.ndarray]]:
    """(name, pixels) of the half of every photograph that belongs to a split: train left, val right."""
    for photo in PHOTOS:
        pixels = read(photo)
        middle = pixels.shape[1] // 2
        yield photo.name, pixels[:, :middle] if split == "train" else pixels[:, middle:]
