"""Do the configured mean and standard deviation fit the pixels, and does the resize keep the fine detail?"""

import numpy as np
import numpy.typing as npt
import pandas as pd

from diag_lib.audit.part import CLASS_NAMES, Case, Part
from diag_lib.evidence import Finding
from diag_lib.statistics import mean_interval

FAR_MEAN = 2.0
"""Normalised channel means beyond this are not normalised; common statistics on common photographs stay below 1."""

SPREAD = (0.2, 5.0)
"""Normalised channel standard deviations that are tolerated ([0,0,0]/[1,1,1], no normalisation, gives .25)."""

LOST_SHARE = 0.5
"""Share of the fine detail whose loss is worth a note; whether the label lived there, step 04 tests."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Floats = npt.NDArray[np.float64]


def check(case: Case) -> Part:
    """Measured against configured channel statistics (train), and what the resize removes (all splits)."""
    train = case.sample[case.sample["split"] == "train"]
    train = train[train["lost"].notna()]
    if train.empty:
        message = "no train image could be measured"
        return Part([Finding("audit.normalization", "note", "undecided", message)])
    means, squares = np.array(train["mean"].tolist()), np.array(train["square"].tolist())
    mean, std = means.mean(axis=0), np.sqrt(np.maximum(squares.mean(axis=0) - means.mean(axis=0) ** 2, 0))
    configured = case.settings.dataset
    finding = _fits(
        means, mean, std, np.array(configured.normalize_mean), np.array(configured.normalize_std), len(train)
    )
    numbers: dict[str, float | int | str | None] = {}
    for name, values in (("mean", mean), ("std", std)):
        numbers |= {f"pixel_{name}_{c}": float(v) for c, v in zip("rgb", values, strict=True)}
    return Part([finding, _resize(case)], numbers, {"channels": channels(case, mean, std)})


def channels(case: Case, mean: Floats, std: Floats) -> pd.DataFrame:
    """Measured and configured mean and std of each channel, 0..1, and the normalised ones."""
    configured = case.settings.dataset
    set_mean, set_std = np.array(configured.normalize_mean), np.array(configured.normalize_std)
    return pd.DataFrame(
        {
            "channel": ["red", "green", "blue"], "measured mean": mean, "configured mean": set_mean,
            "measured std": std, "configured std": set_std, "normalised mean": (mean - set_mean) / set_std,
            "normalised std": std / set_std,
        }
    )  # fmt: skip


def _fits(means: Floats, mean: Floats, std: Floats, set_mean: Floats, set_std: Floats, n: int) -> Finding:
    """One finding from the channel that fits worst; `ci` is that of its normalised mean."""
    centre, spread = (mean - set_mean) / set_std, std / set_std
    worst = int(np.argmax(np.abs(centre)))
    interval = mean_interval((means[:, worst] - set_mean[worst]) / set_std[worst]).ci
    data = {
        "measured_mean": mean.round(4).tolist(), "measured_std": std.round(4).tolist(),
        "settings": {"dataset": {"normalize_mean": mean.round(3).tolist(), "normalize_std": std.round(3).tolist()}},
    }  # fmt: skip
    shown = (
        f"measured mean {_shown(mean)} and std {_shown(std)} against configured {_shown(set_mean)} and "
        f"{_shown(set_std)} (red, green, blue)"
    )
    reason = _reason(centre, spread, set_mean, set_std, interval)
    value = float(centre[worst])
    if reason:
        return Finding(
            "audit.normalization", "error", "yes", f"{reason}: {shown}", value, interval, FAR_MEAN, n, data
        )
    return Finding("audit.normalization", "ok", "no", shown, value, interval, FAR_MEAN, n, data)


def _reason(
    centre: Floats, spread: Floats, set_mean: Floats, set_std: Floats, interval: tuple[float, float]
) -> str:
    if (set_mean > 1.5).any() or (set_std > 1.5).any():
        return "the configured values are on the scale 0-255, but pixels are divided by 255 first"
    reversed_imagenet = np.allclose(set_mean, IMAGENET_MEAN[::-1], atol=2e-3) or (
        np.allclose(set_std, IMAGENET_STD[::-1], atol=5e-4)
        and not np.allclose(set_mean, IMAGENET_MEAN, atol=2e-3)
    )
    if reversed_imagenet:
        return "the configured values are ImageNet's in BGR order, but pixels are RGB"
    if np.abs(centre).max() > FAR_MEAN and (interval[0] > FAR_MEAN or interval[1] < -FAR_MEAN):
        return "normalised pixels are far from zero"
    if spread.max() > SPREAD[1] or spread.min() < SPREAD[0]:
        return "normalised pixels have a spread far from one"
    return ""


def _resize(case: Case) -> Finding:
    """Share of the fine detail that the configured resize removes: median of each class."""
    measured = case.sample[case.sample["lost"].notna()]
    lost = [float(measured.loc[measured["label"] == label, "lost"].median()) for label in (0, 1)]
    side = measured[["width", "height"]].min(axis=1).median()
    size, mode = case.settings.dataset.image_size, case.settings.dataset.resize
    told = ", ".join(f"{share:.0%} of the {name}" for share, name in zip(lost, CLASS_NAMES, strict=True))
    message = (
        f"`{mode}` to {size} removes {told} images' fine detail (shorter side typically {side:.0f} pixels)"
    )
    worst = float(np.nanmax(lost))
    answer = "yes" if worst > LOST_SHARE else "no"
    if answer == "yes":
        message += "; forgery traces live there, so compare with `resize: crop`"
    data = {"real": lost[0], "fake": lost[1], "settings": {"dataset": {"resize": "crop"}}}
    return Finding(
        "audit.resize", "note" if answer == "yes" else "ok", "yes" if answer == "yes" else "no", message, worst, None,
        LOST_SHARE, len(measured), data,
    )  # fmt: skip


def _shown(values: Floats) -> str:
    return "[" + ", ".join(f"{v:.3g}" for v in values) + "]"
