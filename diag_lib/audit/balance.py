"""Are there enough images, of both classes, and does val hold what train holds?"""

from collections import Counter

import pandas as pd

from diag_lib.audit.part import CLASS_NAMES, Case, Part, listed
from diag_lib.evidence import Finding, Severity
from diag_lib.statistics import n_per_class_needed

RARE_SHARE = 0.25
"""Share of the rarer train class below which the finding is raised (1:3); whether it harms, the arms decide."""

VERY_RARE_SHARE = 0.05


def check(case: Case) -> Part:
    """Counts by split, class and source; the rarer class; enough validation images; sources of val in train."""
    counts = count_table(case.readable)
    findings = [_imbalance(case.readable), _enough(case), _sources(case.readable)]
    numbers: dict[str, float | int | str | None] = {
        f"n_{split}_{CLASS_NAMES[label]}": n
        for (split, label), n in Counter(
            zip(case.readable["split"], case.readable["label"], strict=True)
        ).items()
    }
    return Part(findings, numbers, {"counts": counts, "files": file_table(case.readable)})


def count_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Readable images by split, class and source: columns split, class, source, images."""
    counts = frame.groupby(["split", "label", "source"], sort=True).size().rename("images").reset_index()
    return counts.assign(label=[CLASS_NAMES[label] for label in counts["label"]]).rename(
        columns={"label": "class"}
    )


def file_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Readable images by split, class and format: their number, the commonest size, and how many have it."""
    rows = []
    sizes = frame["width"].astype(int).astype(str) + " x " + frame["height"].astype(int).astype(str)
    classes = frame["label"].map(dict(enumerate(CLASS_NAMES)))
    cells = frame.assign(pixels=sizes, name=classes).groupby(["split", "name", "format"], sort=True)
    for (split, name, kind), part in cells:
        common = part["pixels"].value_counts()
        share = f"{common.iloc[0] / len(part):.0%}"
        rows.append((split, name, kind, len(part), common.index[0], share, len(common)))
    columns = ["split", "class", "format", "images", "commonest size", "share of it", "sizes"]
    return pd.DataFrame(rows, columns=columns)


def _imbalance(frame: pd.DataFrame) -> Finding:
    train = frame.loc[frame["split"] == "train", "label"]
    share = float(min((train == 0).mean(), (train == 1).mean()))
    rarer = CLASS_NAMES[int(train.mean() < 0.5)]
    counts = {name: int((train == label).sum()) for label, name in enumerate(CLASS_NAMES)}
    told = f"train has {counts['real']} real and {counts['fake']} fake images"
    if share >= RARE_SHARE:
        return Finding("audit.imbalance", "ok", "no", told, share, None, RARE_SHARE, len(train), counts)
    ratio = (1 - share) / share
    message = f"{told}: {rarer} is 1 to {ratio:.1f}; many batches show hardly any of it"
    severity: Severity = "error" if share < VERY_RARE_SHARE else "warning"
    return Finding("audit.imbalance", severity, "yes", message, share, None, RARE_SHARE, len(train), counts)


def _enough(case: Case) -> Finding:
    val = case.readable.loc[case.readable["split"] == "val", "label"]
    smallest = int(min((val == 0).sum(), (val == 1).sum()))
    low = case.settings.thresholds.teacher_auc_low
    needed = n_per_class_needed(0.5, low)
    few = smallest < needed
    message = f"val has at least {smallest} images of each class" + (
        f"; to establish an AUC below {low:g} takes about {needed} of each" if few else ""
    )
    return Finding(
        "audit.sample_size",
        "note" if few else "ok",
        "yes" if few else "no",
        message,
        smallest,
        None,
        needed,
        len(val),
    )


def _sources(frame: pd.DataFrame) -> Finding:
    """Sources (generators, cameras) of val, by class, that train does not hold."""
    seen = {
        split: set(zip(rows["label"], rows["source"], strict=True)) for split, rows in frame.groupby("split")
    }
    new = sorted(seen.get("val", set()) - seen.get("train", set()))
    val = frame[frame["split"] == "val"]
    affected = int(sum((val["label"].eq(label) & val["source"].eq(source)).sum() for label, source in new))
    n_sources = frame["source"].nunique()
    if not new:
        message = "every source of val is in train" if n_sources > 1 else "the images come from one source"
        return Finding("audit.sources", "ok", "no", message, 0.0, n=len(val))
    names = listed([f"{CLASS_NAMES[label]} {source or '(none)'}" for label, source in new])
    message = f"{affected} of {len(val)} val images come from sources that train does not hold: {names}"
    data = {"new": [[CLASS_NAMES[label], source] for label, source in new]}
    return Finding(
        "audit.sources", "note", "yes", message, affected / max(1, len(val)), n=len(val), data=data
    )
