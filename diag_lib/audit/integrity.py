"""Can every file be decoded completely, and is anything about the files themselves odd?"""

import pandas as pd

from diag_lib.audit.part import CLASS_NAMES, Case, Part, listed, share_interval
from diag_lib.evidence import Finding

SERIOUS_SHARE = 0.02
"""Unreadable share of any split and class from which the data set counts as damaged; below it files are listed
and left out. Chosen so that losing the files cannot move an AUC by more than its interval at 400 images."""


def check(case: Case) -> Part:
    """Unreadable files by reason, split and class; ignored files; the curation's effect."""
    lost = unreadable(case.frame)
    cells = case.frame["split"] + " " + case.frame["label"].map(dict(enumerate(CLASS_NAMES)))
    shares = (case.frame["reason"] != "").groupby(cells).mean()
    worst = float(shares.max())
    value, n = len(lost) / max(1, len(case.frame)), len(case.frame)
    case.run.write_parquet("unreadable.parquet", lost)
    if lost.empty:
        finding = Finding(
            "audit.unreadable",
            "ok",
            "no",
            f"all {n} files can be decoded completely",
            0.0,
            None,
            SERIOUS_SHARE,
            n,
        )
        return Part([finding, _ignored(case)], {"n_unreadable": 0}, {"unreadable": lost})
    reasons = lost["reason"].value_counts()
    told = listed([f"{count} {reason}" for reason, count in reasons.items()])
    message = (
        f"{len(lost)} of {n} files cannot be decoded completely ({told}); worst: {worst:.1%} of "
        f"{shares.idxmax()}. They are left out here; a pipeline that sets LOAD_TRUNCATED_IMAGES would train "
        "on half-gray pictures instead"
    )
    finding = Finding(
        "audit.unreadable", "error" if worst >= SERIOUS_SHARE else "warning", "yes", message, value,
        share_interval(len(lost), n), SERIOUS_SHARE, n,
        {"worst": worst, "reasons": reasons.to_dict(), "file": "artifacts/unreadable.parquet",
         "paths": lost["path"].head(20).tolist()},
    )  # fmt: skip
    return Part([finding, _ignored(case)], {"n_unreadable": len(lost)}, {"unreadable": lost})


def unreadable(frame: pd.DataFrame) -> pd.DataFrame:
    """The files that cannot be decoded: path, split, label, source, reason."""
    columns = ["path", "split", "label", "source", "reason"]
    return frame.loc[frame["reason"] != "", columns].reset_index(drop=True)


def _ignored(case: Case) -> Finding:
    """What was found in the dataset's folder and not used, and what a curation file changed."""
    reasons = pd.Series([reason for _, reason in case.notes], dtype=object).value_counts()
    parts = [f"{count} times {reason}" for reason, count in reasons.items()]
    parts += [f"curation: {count} {what}" for what, count in case.curated.items() if count]
    found = bool(parts)
    message = f"not used or changed on reading: {listed(parts, 5)}" if found else "every file found is in use"
    ignored = pd.DataFrame(case.notes, columns=["path", "reason"], dtype=object)
    case.run.write_parquet("ignored.parquet", ignored)
    return Finding(
        "audit.ignored", "note" if found else "ok", "yes" if found else "no", message, n=len(case.notes),
        data={"reasons": reasons.to_dict(), "curated": case.curated, "examples": case.notes[:20],
              "file": "artifacts/ignored.parquet"},
    )  # fmt: skip
