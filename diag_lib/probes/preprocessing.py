"""Would the teacher know more if it were fed otherwise: preprocessing, scale, normalisation or resizing?

Published detectors that miss their published AUC are nearly always fed differently from their training. The
search goes one setting after the other on half A of the validation images; half B, which chose nothing, says
whether the winner really is better.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from diag_lib.errors import UserError
from diag_lib.models import PREPROCESS
from diag_lib.probes.compare import paired
from diag_lib.settings import Settings
from diag_lib.statistics import MATERIAL_GAIN, Answer, Auc, AucDifference, auc, n_for_gain

Floats = npt.NDArray[np.float64]
Triple = tuple[float, float, float]
Scores = Callable[["Variant", npt.NDArray[np.int64]], Floats]

NORMALISATIONS: dict[str, tuple[Triple, Triple]] = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "-1 to 1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "0 to 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "0 to 255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
RESIZES = ("resize", "crop", "shortest")
SCALES = (1.0, 2 / 3)  # 2/3: what the published ForenSynth LaDeDa needs with NPR
STEP = 0.01  # AUC on half A that a setting must win before the search leaves the configured one
CONFIGURED = "configured"


@dataclass(frozen=True)
class Variant:
    """One way of feeding the teacher; `normalisation` is a name of `NORMALISATIONS` or "configured"."""

    preprocess: str
    input_scale: float
    normalisation: str
    resize: str

    @staticmethod
    def configured(settings: Settings, preprocess: str, input_scale: float) -> "Variant":
        """What the settings say; `preprocess` and `input_scale` as the network really applies them."""
        own = (tuple(settings.dataset.normalize_mean), tuple(settings.dataset.normalize_std))
        known = next((name for name, values in NORMALISATIONS.items() if values == own), CONFIGURED)
        return Variant(preprocess, input_scale, known, settings.dataset.resize)

    def mean_std(self, settings: Settings) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation of the normalisation, pixels in 0..1."""
        if self.normalisation == CONFIGURED:
            return settings.dataset.normalize_mean, settings.dataset.normalize_std
        return NORMALISATIONS[self.normalisation]

    def patch(self, configured: "Variant") -> dict[str, Any]:
        """The settings to change, nested as in YAML, to get from `configured` to this variant."""
        teacher: dict[str, Any] = {
            key: getattr(self, key)
            for key in ("preprocess", "input_scale")
            if getattr(self, key) != getattr(configured, key)
        }
        dataset: dict[str, Any] = {}
        if self.resize != configured.resize:
            dataset["resize"] = self.resize
        if self.normalisation != configured.normalisation:
            mean, std = NORMALISATIONS[self.normalisation]
            dataset |= {"normalize_mean": list(mean), "normalize_std": list(std)}
        return {key: part for key, part in (("teacher", teacher), ("dataset", dataset)) if part}

    def label(self, configured: "Variant") -> str:
        """A short name: the preprocessing, and whatever else differs from `configured`."""
        others = replace(self, preprocess=configured.preprocess).difference(configured)
        return self.preprocess if others == CONFIGURED else f"{self.preprocess}, {others}"

    def difference(self, configured: "Variant") -> str:
        """In words, what differs from `configured`."""
        changes = []
        if self.preprocess != configured.preprocess:
            changes.append(f"preprocess {self.preprocess}")
        if self.input_scale != configured.input_scale:
            changes.append(f"input scale {self.input_scale:.3g}")
        if self.normalisation != configured.normalisation:
            changes.append(f"normalised {self.normalisation}")
        if self.resize != configured.resize:
            changes.append({"resize": "squashed"}.get(self.resize, self.resize))
        return ", ".join(changes) or CONFIGURED


@dataclass(frozen=True)
class Trial:
    """One variant and its AUC on half A."""

    variant: Variant
    auc: Auc


@dataclass(frozen=True)
class PreprocessingProbe:
    """What the search found.

    `confirmation` compares configured (before) and best (after) on half B, or on all `n` images where
    `label_free`: the best was nominated without labels. It is None when the configured variant won on half A.
    `flipped`: the teacher ranks real above fake, all its scores were negated first. `skipped` says which
    variants could not be scored and why.
    """

    configured: Variant
    best: Variant
    confirmation: AucDifference | None
    trials: tuple[Trial, ...]
    flipped: bool
    answer: Answer
    n: int
    n_needed: int | None
    skipped: tuple[str, ...]
    label_free: bool = False

    def table(self) -> pd.DataFrame:
        """One row a variant, best first: `what`, the four settings, `auc`, `low`, `high` (half A)."""
        rows = [
            {
                "what": trial.variant.difference(self.configured),
                **vars(trial.variant),
                "auc": trial.auc.value,
                "low": trial.auc.ci[0],
                "high": trial.auc.ci[1],
                "chosen": trial.variant == self.best,
            }
            for trial in self.trials
        ]
        return pd.DataFrame(rows).sort_values("auc", ascending=False, kind="stable").reset_index(drop=True)


def coordinates(start: Variant, *, with_preprocess: bool) -> list[tuple[str, tuple[Any, ...]]]:
    """The settings that are searched, one after the other, and their values."""
    names = tuple(NORMALISATIONS)
    own_first: list[tuple[str, tuple[Any, ...]]] = [("normalisation", names), ("resize", RESIZES)]
    if with_preprocess:
        own_first = [("preprocess", PREPROCESS), ("input_scale", SCALES), *own_first]
    return [
        (field, (getattr(start, field), *(v for v in values if v != getattr(start, field))))
        for field, values in own_first
    ]


def probe(
    scores: Scores,
    start: Variant,
    labels: npt.ArrayLike,
    halves: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    *,
    with_preprocess: bool = True,
    nominated: Variant | None = None,
    own: str | None = None,
) -> PreprocessingProbe:
    """Search on half "A", confirm on half "B"; a variant nominated without labels is proven on all images.

    Parameters
    ----------
    scores : (variant, image indices) to raw image logits; a UserError skips the variant.
    labels, halves, groups : one entry an image; groups hold near-duplicates together.
    own : the preprocessing that the teacher was certainly trained with, where that is known: others are
        measured but cannot win, because what they gain is picture content, not the teacher's knowledge.
    """
    y, half = np.asarray(labels), np.asarray(halves)
    unit = np.arange(len(y)) if groups is None else np.asarray(groups)
    a, b, everything = np.flatnonzero(half == "A"), np.flatnonzero(half == "B"), np.arange(len(y))
    plain = auc(y[a], scores(start, a), groups=unit[a], nan="undefined")

    def measure_as(sign: float) -> Callable[[Variant], Auc]:
        return lambda variant: auc(y[a], sign * scores(variant, a), groups=unit[a], nan="undefined")

    def compare(variant: Variant, rows: npt.NDArray[np.int64]) -> AucDifference:
        before, after = sign * scores(start, rows), sign * scores(variant, rows)
        return paired(y[rows], before, after, unit[rows])

    sign = 1.0
    best, tried, skipped = _search(measure_as(sign), start, with_preprocess, own)
    # A teacher that ranks the wrong way round is inverted, unless it is fed wrongly and another way puts it right.
    flipped = plain.defined and plain.ci[1] < 0.5 and not tried[best].value >= 1 - plain.value + STEP
    if flipped:
        sign = -1.0
        best, tried, skipped = _search(measure_as(sign), start, with_preprocess, own)
    trials = tuple(Trial(variant, found) for variant, found in tried.items())
    result = partial(
        PreprocessingProbe, start, trials=trials, flipped=flipped, n=len(y), skipped=tuple(skipped)
    )
    if nominated is not None and nominated != start:
        confirmation = compare(nominated, everything)
        answer, needed = decide(confirmation)
        if answer == "yes":
            return result(nominated, confirmation, answer=answer, n_needed=None, label_free=True)
    if best == start:
        answer = "no" if tried[start].defined else "undecided"
        return result(start, None, answer=answer, n_needed=None)
    confirmation = compare(best, b)
    answer, needed = decide(confirmation)
    return result(best, confirmation, answer=answer, n_needed=needed)


def _search(
    measure: Callable[[Variant], Auc], start: Variant, with_preprocess: bool, own: str | None
) -> tuple[Variant, dict[Variant, Auc], list[str]]:
    """Coordinate search: the best variant, every AUC on the way, and what could not be measured."""
    best, tried, skipped = start, {start: measure(start)}, []
    for field, values in coordinates(start, with_preprocess=with_preprocess):
        for variant in [replace(best, **{field: value}) for value in values]:
            if variant in tried:
                continue
            try:
                tried[variant] = measure(variant)
            except UserError as error:
                skipped.append(f"{variant.difference(start)}: {error}")
        allowed = {start.preprocess, own} if own else None
        defined = {
            variant: found.value
            for variant, found in tried.items()
            if found.defined and (allowed is None or variant.preprocess in allowed)
        }
        winner = max(defined, key=lambda variant: defined[variant], default=best)
        if best not in defined or defined[winner] >= defined[best] + STEP:
            best = winner
    return best, tried, skipped


def decide(confirmation: AucDifference) -> tuple[Answer, int | None]:
    """Is the winner better on half B, and if that is open, how many images a class would tell?

    "yes": the whole interval of the gain is above zero, the gain counts and the winner is above one half.
    "no": the whole interval is below a material gain.
    """
    if not (confirmation.before.defined and confirmation.after.defined):
        return "undecided", None
    material = confirmation.delta >= MATERIAL_GAIN and confirmation.after.ci[0] > 0.5
    if confirmation.ci[0] > 0 and material:
        return "yes", None
    if confirmation.ci[1] < MATERIAL_GAIN or confirmation.ci[0] > 0:
        return "no", None
    gain = max(abs(confirmation.delta), MATERIAL_GAIN)
    return "undecided", 2 * n_for_gain(gain, confirmation.after.value, confirmation.correlation)
