"""Can the label be told from how the file was made, without looking at the picture?

Each property's AUC is held out: the score of an image comes from folds it is not in, copies of one picture
staying in one fold. A score is the log-odds of fake among images with a similar value, so that two-sided
differences count and an uninformative property scores 0 for every image, whatever the balance of the classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from diag_lib.audit.part import CLASS_NAMES, Case, Part
from diag_lib.audit.properties import PROPERTIES, Property, Values, codes
from diag_lib.evidence import Finding, Severity
from diag_lib.images import hashing
from diag_lib.statistics import Auc, answer_above, auc

SHORTCUT_AUC = 0.60
"""The interval must lie above this for a shortcut to be claimed."""

MIN_CLASS = 30
"""Fewer images of a class decide nothing. With at least as many, uninformative properties were claimed in none of
900 simulated sets of 100 to 2,000 images, balanced 50/50 to 95/5; with 20 of a class, in 1 of 60."""

FOLDS = 5
BINS = 10
PRIOR_IMAGES = 4.0
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def check(case: Case) -> Part:
    """Held-out AUC of every property, of all traces together, and of all content properties together."""
    frame = case.sample
    labels = frame["label"].to_numpy(dtype=np.int64)
    folds = fold_numbers(frame, case.settings.training.seed)
    table = property_table(frame, labels, folds)
    traces = [p for p in PROPERTIES if p.kind == "trace"]
    joint = together(frame, labels, folds, traces)
    findings = [_joint(joint, table, labels), *(_single(row, labels) for row in table.to_dict("records"))]
    findings.append(_content(table, labels))
    tables = {"shortcuts": table, "shortcut_sources": source_table(frame, labels, folds, table)}
    return Part(findings, {"auc_traces": joint.value if joint else None}, tables)


def property_table(frame: pd.DataFrame, labels: Ints, folds: Ints) -> pd.DataFrame:
    """A row per property that is not the same for all: name, kind, says, auc, low, high, direction."""
    rows = []
    for prop in PROPERTIES:
        values = codes(prop.of(frame), prop.categorical)
        if len(values) == 0 or (values == values[0]).all():
            continue
        measured = auc(labels, held_out_odds(values, labels, folds, prop.categorical))
        rows.append(
            (prop.name, prop.kind, prop.says, measured.value, *measured.ci, _differs(frame, labels, prop))
        )
    columns = ["name", "kind", "says", "auc", "low", "high", "differs"]
    return pd.DataFrame(rows, columns=columns).fillna({"auc": 0.5})


MOST_TOLD = 3


def source_table(frame: pd.DataFrame, labels: Ints, folds: Ints, table: pd.DataFrame) -> pd.DataFrame:
    """The strongest traces by source: which generator or camera gives the label away?

    A row per property and (class, source): images, typical value, and the held-out AUC of this source's images
    against the whole other class. Empty where each class has one source.
    """
    columns = ["property", "class", "source", "images", "typical", "auc", "low", "high"]
    sources = frame["source"].to_numpy()
    cells = sorted({(int(y), str(source)) for y, source in zip(labels, sources, strict=True)})
    if len(cells) <= len(np.unique(labels)):
        return pd.DataFrame(columns=columns)
    traces = table[(table["kind"] == "trace") & (table["low"] > 0.5)].sort_values("auc", ascending=False)
    named = {prop.name: prop for prop in PROPERTIES}
    rows = []
    for name in traces["name"].head(MOST_TOLD):
        prop = named[name]
        values = prop.of(frame)
        scores = held_out_odds(codes(values, prop.categorical), labels, folds, prop.categorical)
        for label, source in cells:
            own = (labels == label) & (sources == source)
            against = own | (labels != label)
            measured = auc(labels[against], scores[against], nan="undefined")
            typical = _typical(values[own], prop.categorical)
            place = CLASS_NAMES[label], source or "(none)", int(own.sum())
            value, ci = (measured.value, measured.ci) if measured.defined else (0.5, (0.5, 0.5))
            rows.append((prop.says, *place, typical, value, *ci))
    return pd.DataFrame(rows, columns=columns)


def fold_numbers(frame: pd.DataFrame, seed: int) -> Ints:
    """Fold 0..4 of each image; copies of one picture share a fold."""
    thumbnails = np.frombuffer(b"".join(frame["thumbnail"]), np.uint8).reshape(-1, *hashing.THUMBNAIL_SHAPE)
    group = hashing.picture_groups(thumbnails)
    _, which = np.unique(group, return_inverse=True)
    shuffled = np.random.default_rng([seed, 0xF01D]).permutation(int(which.max(initial=0)) + 1)
    folds: Ints = shuffled[which.reshape(-1)] % FOLDS
    return folds


def held_out_odds(values: Floats, labels: Ints, folds: Ints, categorical: bool = False) -> Floats:
    """Log-odds of fake, relative to the classes' balance, among the other folds' images of a similar value."""
    scores = np.zeros(len(values))
    for fold in range(FOLDS):
        here, there = folds == fold, folds != fold
        if not here.any() or not there.any():
            continue
        edges = _edges(values[there], categorical)
        bins = np.searchsorted(edges, values, side="right")
        prior = labels[there].mean()
        if prior in (0.0, 1.0):
            continue
        fakes = np.bincount(bins[there], labels[there], len(edges) + 1) + PRIOR_IMAGES * prior
        total = np.bincount(bins[there], minlength=len(edges) + 1) + PRIOR_IMAGES
        share = fakes / total
        odds = np.log(share / (1 - share)) - np.log(prior / (1 - prior))
        scores[here] = odds[bins[here]]
    # Equal values of one bin differ between folds by chance alone, and that chance is anti-correlated with the
    # labels; rounding turns such differences into ties.
    return np.round(scores, 1)


def _edges(values: Floats, categorical: bool) -> Floats:
    distinct = np.unique(values)
    if categorical or len(distinct) <= BINS:
        return (distinct[:-1] + distinct[1:]) / 2
    return np.unique(np.quantile(values, np.arange(1, BINS) / BINS))


def together(frame: pd.DataFrame, labels: Ints, folds: Ints, properties: Sequence[Property]) -> Auc | None:
    """Held-out AUC of small boosted trees on all these properties; None when all are the same for all images."""
    columns = [codes(prop.of(frame), prop.categorical) for prop in properties]
    columns = [values for values in columns if len(values) and (values != values[0]).any()]
    if not columns:
        return None
    x = np.column_stack(columns)
    return auc(labels, boosted_scores(x, labels, folds))


def boosted_scores(x: Floats, labels: Ints, folds: Ints) -> Floats:
    """Held-out decision values (n,) of gradient-boosted trees, less each fold's base rate."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    scores = np.zeros(len(labels))
    for fold in range(FOLDS):
        here, there = folds == fold, folds != fold
        if not here.any() or len(np.unique(labels[there])) < 2:
            continue
        leaf = max(5, min(20, int(np.bincount(labels[there]).min()) // 4))
        model = HistGradientBoostingClassifier(
            max_iter=40,
            max_depth=3,
            learning_rate=0.1,
            min_samples_leaf=leaf,
            early_stopping=False,
            random_state=0,
        )
        model.fit(x[there], labels[there])
        prior = labels[there].mean()
        scores[here] = model.decision_function(x[here]) - np.log(prior / (1 - prior))
    return np.round(scores, 2)


def _differs(frame: pd.DataFrame, labels: Ints, prop: Property) -> str:
    """ "real: 512, fake: 256": the typical value of each class."""
    values = prop.of(frame)
    told = []
    for label, name in enumerate(CLASS_NAMES):
        told.append(f"{name}: {_typical(values[labels == label], prop.categorical)}")
    return ", ".join(told)


def _typical(values: Values, categorical: bool) -> str:
    """ "512", "JPEG (98%)" or "none"."""
    chosen = pd.Series(values)
    if categorical:
        common = chosen.fillna("").astype(str).value_counts()
        return f"{common.index[0] or 'none'} ({common.iloc[0] / len(chosen):.0%})" if len(common) else "none"
    middle = chosen.astype(float).median()
    return "none" if np.isnan(middle) else format(middle, ".3g")


def _enough(labels: Ints) -> bool:
    return bool(np.bincount(labels, minlength=2).min() >= MIN_CLASS)


TAILS = {
    "trace": "a detector can learn this instead of the forgery",
    "header": "no network sees this, but the classes were collected differently",
    "content": "this belongs to the picture and may be the genuine signal",
}


def _single(row: Mapping[Any, Any], labels: Ints) -> Finding:
    ci = (float(row["low"]), float(row["high"]))
    answer = answer_above(ci, SHORTCUT_AUC) if _enough(labels) else "undecided"
    message = f"{row['says']} alone tells the classes apart with AUC {row['auc']:.2f} ({row['differs']})"
    severity: Severity = "ok"
    if answer == "yes":
        message += f": {TAILS[row['kind']]}"
        severity = "error" if row["kind"] == "trace" else "note"
    name, value, data = f"audit.shortcut.{row['name']}", float(row["auc"]), {"kind": row["kind"]}
    return Finding(name, severity, answer, message, value, ci, SHORTCUT_AUC, len(labels), data)


def _joint(joint: Auc | None, table: pd.DataFrame, labels: Ints) -> Finding:
    finding = "audit.shortcut.joint"
    if joint is None:
        message = "format, compression and size are the same for all images: they cannot give the label away"
        return Finding(finding, "ok", "no", message, 0.5, (0.5, 0.5), SHORTCUT_AUC, len(labels))
    value, ci = (joint.value, joint.ci) if joint.defined else (0.5, (0.5, 0.5))
    if not _enough(labels):
        message = (
            f"fewer than {MIN_CLASS} images of a class: whether file properties give the label away is open"
        )
        return Finding(finding, "note", "undecided", message, value, ci, SHORTCUT_AUC, len(labels))
    answer = answer_above(ci, SHORTCUT_AUC)
    traces = table[table["kind"] == "trace"].sort_values("auc", ascending=False)
    best = traces["name"].iloc[0] if len(traces) else ""
    data = {"strongest": best, "single": {row.name: row.auc for row in traces.itertuples(index=False)}}
    told = f"format, compression and size together tell the classes apart with held-out AUC {value:.2f}"
    if answer == "yes":
        told += f"; strongest: {traces['says'].iloc[0]} ({traces['differs'].iloc[0]})"
    severity: Severity = "error" if answer == "yes" else "note" if answer == "undecided" else "ok"
    return Finding(finding, severity, answer, told, value, ci, SHORTCUT_AUC, len(labels), data)


def _content(table: pd.DataFrame, labels: Ints) -> Finding:
    """The strongest content property: information, not an accusation."""
    content = table[table["kind"] == "content"].sort_values("auc", ascending=False)
    if content.empty:
        return Finding(
            "audit.content", "ok", "no", "no content property differs between images", n=len(labels)
        )
    best = content.iloc[0]
    ci = (float(best["low"]), float(best["high"]))
    answer = answer_above(ci, SHORTCUT_AUC) if _enough(labels) else "undecided"
    message = f"{best['says']} alone separates the classes with AUC {best['auc']:.2f} ({best['differs']})"
    if answer == "yes":
        message += "; if this is not the forgery itself, match the classes in it"
    return Finding(
        "audit.content", "note" if answer == "yes" else "ok", answer, message, float(best["auc"]), ci, SHORTCUT_AUC,
        len(labels), {"property": best["name"]},
    )  # fmt: skip
