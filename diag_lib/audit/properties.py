"""Which properties of a file and its picture can give a label or a split away?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from diag_lib.audit.jpeg import TRACE_FOUND

LOSSLESS = ("PNG", "BMP", "TIFF", "PPM", "GIF")
Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Property:
    """One property of an image: numbers or, where `categorical`, names.

    `kind`: "trace" is left in the pixels by how the file was made and is no part of the picture; "header" only
    stands in the file and no network sees it; "content" belongs to the picture and may be the genuine signal.
    """

    name: str
    kind: str
    says: str
    of: Callable[[pd.DataFrame], Values]
    categorical: bool = False


def _codec(frame: pd.DataFrame) -> Values:
    names = frame["format"].astype(object).replace(dict.fromkeys(LOSSLESS, "lossless") | {"MPO": "JPEG"})
    return names.to_numpy()


def _column(name: str, kind: type = float) -> Callable[[pd.DataFrame], Values]:
    return lambda frame: frame[name].to_numpy(dtype=kind)


PROPERTIES: tuple[Property, ...] = (
    Property("codec", "trace", "lossy or lossless format", _codec, categorical=True),
    Property("jpeg_quality", "trace", "JPEG quality", _column("jpeg_quality")),
    Property(
        "jpeg_tables", "trace", "JPEG quantisation tables", _column("jpeg_tables", object), categorical=True
    ),
    Property("subsampling", "trace", "chroma subsampling", _column("subsampling", object), categorical=True),
    Property(
        "jpeg_history",
        "trace",
        "a JPEG past in the pixels",
        lambda f: (_column("jpeg_trace")(f) > TRACE_FOUND) * 1.0,
    ),
    Property("width", "trace", "width", _column("width")),
    Property("height", "trace", "height", _column("height")),
    Property("aspect", "trace", "aspect ratio", lambda f: _column("width")(f) / _column("height")(f)),
    Property("format", "header", "file format", _column("format", object), categorical=True),
    Property(
        "software", "header", "software named in the file", _column("software", object), categorical=True
    ),
    Property("camera", "header", "camera named in the file", _column("camera", object), categorical=True),
    Property("exif", "header", "EXIF block", _column("has_exif")),
    Property("alpha", "header", "alpha channel", _column("has_alpha")),
    Property("suffix", "header", "suffix that contradicts the content", _column("wrong_suffix")),
    Property("orientation", "header", "EXIF orientation", _column("orientation")),
    Property("bytes_per_pixel", "content", "bytes per pixel", _column("bytes_per_pixel")),
    Property("brightness", "content", "brightness", _column("brightness")),
    Property("contrast", "content", "contrast", _column("contrast")),
    Property("sharpness", "content", "sharpness", _column("sharpness")),
    Property("colourfulness", "content", "colourfulness", _column("colourfulness")),
    Property("entropy", "content", "entropy", _column("entropy")),
    Property("grayscale", "content", "grayscale", _column("grayscale")),
    Property("high_frequency", "content", "share of fine detail", _column("high_frequency")),
    Property("spectral_slope", "content", "slope of the spectrum", _column("spectral_slope")),
)


def codes(values: Values, categorical: bool) -> npt.NDArray[np.float64]:
    """Properties as float64 (n,): categories numbered by name, missing numbers -1."""
    if categorical:
        return (
            pd.Series(values, dtype=object)
            .fillna("")
            .astype(str)
            .astype("category")
            .cat.codes.to_numpy()
            .astype(np.float64)
        )
    numbers = values.astype(np.float64)
    return np.where(np.isfinite(numbers), numbers, -1.0)
