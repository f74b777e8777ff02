"""Which labels contradict what a model that was not taught them says, so that a person should look?

The judges: teacher and students, once later steps of this run have left their scores; and always boosted trees on
the measured content properties (not on the files' traces), each image judged by folds it is not in. Suspects are a
sheet for the eye, the worst first, no verdict.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from diag_lib.audit.part import Case, Part
from diag_lib.audit.properties import PROPERTIES, codes
from diag_lib.audit.shortcuts import MIN_CLASS, boosted_scores, fold_numbers
from diag_lib.evidence import Finding, Severity
from diag_lib.probes import labels as held_out
from diag_lib.statistics import Auc, auc

USEFUL_AUC = 0.80
"""Whose interval does not lie above this knows too little about the label to suspect single images."""

FILE = "label_issues.parquet"
PICTURE = "picture statistics"


@dataclass(frozen=True)
class Opinion:
    """What one judge holds of the rows of a frame: its AUC, and where it is good enough its suspects."""

    judge: str
    measured: Auc
    suspects: pd.DataFrame


def check(case: Case) -> Part:
    """Suspected labels of every judge that knows enough, together: the more judges and the surer, the earlier."""
    given = [_of_judge(case, judge) for judge in held_out.judges(case.run)]
    opinions = [opinion for opinion in (*given, _of_pictures(case)) if opinion is not None]
    useful = [opinion for opinion in opinions if opinion.measured.ci[0] >= USEFUL_AUC]
    table = held_out.together([o.suspects for o in useful], ["path", "split", "label", "source"])
    case.run.write_parquet(FILE, table)
    numbers: dict[str, float | int | str | None] = {"n_label_suspects": len(table)}
    numbers |= {f"auc_{o.judge}": o.measured.value for o in opinions}
    return Part([_finding(case, opinions, useful, table)], numbers, {"suspects": table})


def _of_judge(case: Case, judge: held_out.Judge) -> Opinion | None:
    frame = case.readable
    frame = frame[frame["path"].isin(judge.scores.index)].reset_index(drop=True)
    labels = frame["label"].to_numpy(dtype=np.int64)
    if np.bincount(labels, minlength=2).min() < MIN_CLASS:
        return None
    scores = np.asarray(judge.scores.loc[frame["path"]], dtype=np.float64)
    measured = auc(labels, scores, nan="undefined")
    fake = held_out.probability_of_fake(scores, labels, case.settings.training.seed)
    return _opinion(judge.name, frame, labels, fake, measured)


def _of_pictures(case: Case) -> Opinion | None:
    frame = case.sample
    labels = frame["label"].to_numpy(dtype=np.int64)
    if np.bincount(labels, minlength=2).min() < MIN_CLASS:
        return None
    columns = [codes(prop.of(frame), prop.categorical) for prop in PROPERTIES if prop.kind == "content"]
    folds = fold_numbers(frame, case.settings.training.seed)
    scores = boosted_scores(np.column_stack(columns), labels, folds)
    return _opinion(PICTURE, frame, labels, 1 / (1 + np.exp(-scores)), auc(labels, scores))


def _opinion(
    name: str,
    frame: pd.DataFrame,
    labels: npt.NDArray[np.int64],
    fake: npt.NDArray[np.float64],
    measured: Auc,
) -> Opinion | None:
    if not measured.defined:
        return None
    chosen = held_out.issues(labels, fake) if measured.ci[0] >= USEFUL_AUC else np.zeros(0, np.int64)
    own = np.where(labels == 1, fake, 1 - fake)[chosen]
    rows = frame.iloc[chosen][["path", "split", "label", "source"]]
    return Opinion(name, measured, rows.assign(judges=name, probability_of_label=own).reset_index(drop=True))


def _finding(case: Case, opinions: list[Opinion], useful: list[Opinion], table: pd.DataFrame) -> Finding:
    n = len(case.readable)
    if not opinions:
        message = f"fewer than {MIN_CLASS} images of a class: labels were not checked"
        return Finding("audit.labels", "note", "undecided", message, n=n)
    best = max(opinions, key=lambda opinion: opinion.measured.value).measured
    told = ", ".join(f"{o.judge} (held-out AUC {o.measured.value:.2f})" for o in opinions)
    if not useful:
        message = (
            f"nobody knows enough about the label to suspect single images: {told}; once steps 02 and 04 have run, "
            "this step asks teacher and student too"
        )
        return Finding("audit.labels", "ok", "undecided", message, best.value, best.ci, USEFUL_AUC, n)
    message = f"{len(table)} labels contradict {', '.join(o.judge for o in useful)}; asked: {told}; look at the first of them before trusting either"  # noqa: E501
    if not held_out.has_cleanlab():
        message += f"; cleanlab is not installed, so a simpler rule listed them: {held_out.INSTALL}"
    data = {
        "paths": table["path"].head(20).tolist(),
        "judges": {o.judge: {"auc": o.measured.value, "suspects": len(o.suspects)} for o in opinions},
        "cleanlab": held_out.has_cleanlab(),
        "file": f"artifacts/{FILE}",
    }
    severity: Severity = "note" if len(table) else "ok"
    return Finding("audit.labels", severity, "undecided", message, len(table) / max(1, n), n=n, data=data)
