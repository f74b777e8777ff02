"""Do the names, the files' own marks and the teacher agree about which class is real?

real = 0 and fake = 1 here, as LaDeDa's tools hard-code; torchvision's ImageFolder sorts the folder names instead, so
that `fake` becomes 0. A swapped class shows in words of the opposite class in its paths, in generators' marks in
files called real, in cameras in files called fake, and in a teacher that ranks the wrong way round.
"""

import re

import numpy as np
import numpy.typing as npt
import pandas as pd

from diag_lib.audit.part import CLASS_NAMES, Case, Part, share_interval
from diag_lib.evidence import Answer, Finding, Severity
from diag_lib.images.sources import CLASS_LABELS
from diag_lib.probes.labels import judges
from diag_lib.statistics import auc

WORDS = (
    re.compile(r"real|authentic|original|genuine|pristine|photo|nature|camera|coco|imagenet|ffhq|lsun", re.I),
    re.compile(
        r"fake|synth|generat|gan(?![a-z])|diffusion|(?<![a-z])sd(xl|v?\d)|midjourney|dall-?e|firefly|flux",
        re.I,
    ),
)
"""What file and folder names of real and of fake images commonly say."""

FEW = 20
"""Fewer images than this are no witness."""

GENERATORS = re.compile(
    r"parameters|prompt|diffusion|midjourney|dall-?e|comfyui|novelai|firefly|invokeai|automatic1111", re.I
)
"""Software marks that generators leave (`parameters` and `prompt` are names of their PNG text chunks)."""

MOST = 0.5
"""Share of the witnesses' images that must contradict their class, with its whole interval, for a claim."""


def check(case: Case) -> Part:
    """One finding from all the witnesses; a table with a row for each of them."""
    frame = case.readable
    rows = [
        *_in_the_names(frame),
        ("marks of generators and cameras", *_contradiction(frame, _marks(frame))),
    ]
    for judge in judges(case.run):
        if judge.name == "teacher":
            rows += [
                (f"teacher on {name}", *_ranking(frame, judge.scores, name)) for name in ("train", "val")
            ]
    table = pd.DataFrame(rows, columns=["witness", "images", "contradicting", "low", "high"])
    table = table[table["images"] >= FEW].reset_index(drop=True)
    return Part([_finding(case, table)], {"folders_sorted": sorted_folders(case)}, {"polarity": table})


def _in_the_names(frame: pd.DataFrame) -> list[tuple[str, int, float, float, float]]:
    """The names as a witness for each split, since labels get swapped in one of them; for both where one has few."""
    words = _words(frame)
    apart = []
    for split in ("train", "val"):
        of = (frame["split"] == split).to_numpy()
        apart.append((f"words in the names of {split}", *_contradiction(frame[of], words[of], both=True)))
    if all(row[1] >= FEW for row in apart):
        return apart
    return [("words in the names", *_contradiction(frame, words, both=True))]


def sorted_folders(case: Case) -> str:
    """ "fake=0, real=1": the labels that torchvision's ImageFolder would give this dataset's class folders."""
    folders = {
        part
        for path in case.frame["path"].head(5000)
        for part in str(path).split("/")[:-1]
        if part.lower() in CLASS_LABELS
    }
    return ", ".join(f"{name}={number}" for number, name in enumerate(sorted(folders)))


def _words(frame: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Per image 0.0 or 1.0 where its names speak of one class alone, else NaN (n,).

    A source that holds both classes names what was imitated or who imitated it, and is no witness.
    """
    classes = frame.groupby("source")["label"].nunique()
    mixed = set(classes[classes > 1].index)
    names = [
        str(path).rpartition("/")[2] if source in mixed else f"{source} {str(path).rpartition('/')[2]}"
        for path, source in zip(frame["path"], frame["source"], strict=True)
    ]
    said = np.array([[bool(word.search(name)) for word in WORDS] for name in names], dtype=bool).reshape(
        -1, 2
    )
    return np.where(said[:, 0] == said[:, 1], np.nan, said[:, 1].astype(float))


def _marks(frame: pd.DataFrame) -> npt.NDArray[np.float64]:
    generator = frame["software"].astype(str).str.contains(GENERATORS).to_numpy(dtype=bool)
    camera = (frame["camera"].astype(str) != "").to_numpy(dtype=bool)
    return np.where(generator == camera, np.nan, generator.astype(float))


def _contradiction(
    frame: pd.DataFrame, said: npt.NDArray[np.float64], both: bool = False
) -> tuple[int, float, float, float]:
    """(marked images, share that contradicts the label, its interval); with `both` only if both classes are marked."""
    marked, labels = np.isfinite(said), frame["label"].to_numpy(dtype=float)
    n = int(marked.sum())
    if not n or (both and len(np.unique(labels[marked])) < 2):
        return 0, np.nan, 0.0, 1.0
    wrong = int((said[marked] != labels[marked]).sum())
    return n, wrong / n, *share_interval(wrong, n)


def _ranking(frame: pd.DataFrame, scores: "pd.Series[float]", split: str) -> tuple[int, float, float, float]:
    """(images, probability that a real one is ranked above a fake one, its interval): .5 is a coin."""
    part = frame[(frame["split"] == split) & frame["path"].isin(scores.index)]
    measured = auc(part["label"].to_numpy(), scores.reindex(part["path"]).to_numpy(), nan="undefined")
    if not measured.defined:
        return 0, np.nan, 0.0, 1.0
    return len(part), 1 - measured.value, 1 - measured.ci[1], 1 - measured.ci[0]


def _finding(case: Case, table: pd.DataFrame) -> Finding:
    """Yes: some witness contradicts the labels for certain. Undecided: none of them says anything."""
    folders = sorted_folders(case)
    told = "; ".join(
        f"{row.witness}: {row.contradicting:.0%} of {row.images} against"
        for row in table.itertuples(index=False)
    )
    hint = (
        f" (ImageFolder would read {folders}: a pipeline that uses it has other labels than this one)"
        if folders.lower().startswith(("fake=0", "ai=0"))
        else ""
    )
    n = len(case.readable)
    # A teacher that knows little ranks a little the wrong way round now and then.
    useless = case.settings.thresholds.teacher_auc_low
    bar = np.where(table["witness"].str.startswith("teacher"), useless, MOST)
    against, agree = table[table["low"] > bar], table[table["high"] < MOST]
    data = {"folders": folders, "real": 0, "fake": 1}
    if len(against):
        worst = against.sort_values("low").iloc[-1]
        message = (
            f"{CLASS_NAMES[0]} and {CLASS_NAMES[1]} may be swapped: {told}; look at 20 images of each class"
        )
        ci = (float(worst["low"]), float(worst["high"]))
        value = float(worst["contradicting"])
        return Finding("audit.polarity", "warning", "yes", message + hint, value, ci, MOST, n, data)
    answer: Answer = "no" if len(agree) else "undecided"
    severity: Severity = "ok"
    message = (
        f"nothing speaks against the labels: {told}"
        if len(table)
        else "names and files say nothing of the class"
    )
    return Finding("audit.polarity", severity, answer, message + hint, n=n, data=data)
