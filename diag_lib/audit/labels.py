"""Which images look like the other class, so that a person should check their label?

Held-out scores from the measured content properties (not from the files' traces), then confident learning
(Northcutt et al. 2021): an image is suspect when its score for the other class exceeds the mean self-confidence
of that class. A sheet for the eye, no verdict: scores of a teacher or student say more, and later steps have them.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd

from diag_lib.audit.part import Case, Part
from diag_lib.audit.properties import PROPERTIES, codes
from diag_lib.audit.shortcuts import MIN_CLASS, boosted_scores, fold_numbers
from diag_lib.evidence import Finding
from diag_lib.statistics import auc

USEFUL_AUC = 0.80
"""Below this the content properties know too little about the label to suspect anything."""

SHOWN = 40


def check(case: Case) -> Part:
    """Suspected labels, the strongest first."""
    frame = case.sample
    labels = frame["label"].to_numpy(dtype=np.int64)
    empty = pd.DataFrame(columns=["path", "split", "label", "source", "probability_of_label"])
    if np.bincount(labels, minlength=2).min() < MIN_CLASS:
        message = f"fewer than {MIN_CLASS} images of a class: labels were not checked"
        return Part(
            [Finding("audit.labels", "note", "undecided", message, n=len(frame))], {}, {"suspects": empty}
        )
    columns = [codes(prop.of(frame), prop.categorical) for prop in PROPERTIES if prop.kind == "content"]
    scores = boosted_scores(
        np.column_stack(columns), labels, fold_numbers(frame, case.settings.training.seed)
    )
    measured = auc(labels, scores)
    if not measured.defined or measured.ci[0] < USEFUL_AUC:
        message = "simple picture statistics know too little about the label to suspect single images"
        return Part(
            [Finding("audit.labels", "ok", "undecided", message, measured.value, measured.ci, USEFUL_AUC, len(frame))],
            {}, {"suspects": empty},
        )  # fmt: skip
    suspects = suspected(frame, labels, 1 / (1 + np.exp(-scores)))
    message = (
        f"{len(suspects)} of {len(frame)} images look like the other class by their picture statistics; look at the "
        "first of them before trusting either"
    )
    finding = Finding(
        "audit.labels", "note" if len(suspects) else "ok", "undecided", message, len(suspects) / len(frame),
        n=len(frame), data={"paths": suspects["path"].head(20).tolist()},
    )  # fmt: skip
    return Part([finding], {"n_label_suspects": len(suspects)}, {"suspects": suspects.head(SHOWN)})


def suspected(
    frame: pd.DataFrame, labels: npt.NDArray[np.int64], fake: npt.NDArray[np.float64]
) -> pd.DataFrame:
    """Images whose held-out probability of the other class exceeds that class's mean self-confidence."""
    of_label = np.where(labels == 1, fake, 1 - fake)
    confidence = np.array([of_label[labels == label].mean() for label in (0, 1)])
    chosen = np.flatnonzero((1 - of_label) >= confidence[1 - labels])
    chosen = chosen[np.argsort(of_label[chosen], kind="stable")]
    columns = ["path", "split", "label", "source"]
    return frame.iloc[chosen][columns].assign(probability_of_label=of_label[chosen]).reset_index(drop=True)
