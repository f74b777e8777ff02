"""Which labels contradict scores of a model that was not taught them, the worst first?

Confident learning (Northcutt, Jiang and Chuang 2021, by cleanlab) on held-out scores of the teacher and of the
students that earlier steps of this run have trained. Their files are read from the run folder; nothing is trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.images import read_table
from diag_lib.settings import load

INSTALL = "pip install 'diag-lib[labels]'"
FOLDS = 5
HELD_OUT = "probes/heldout_train_*"
_STUDENT = "bce_only"
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judge:
    """Scores of one model (higher: fake) by path, of images whose labels it was not trained on."""

    name: str
    scores: "pd.Series[float]"


def judges(run: RunFolder) -> list[Judge]:
    """The teacher's scores (step 02), and the students' (step 04: on val, and on the held-out parts of train)."""
    found = [("teacher", _teacher(run)), ("student", _student(run))]
    return [Judge(name, scores) for name, scores in found if len(scores)]


def _teacher(run: RunFolder) -> "pd.Series[float]":
    file = run.artifact("teacher_scores.parquet")
    if not file.is_file():
        return _EMPTY
    return _by_path(pd.read_parquet(file, columns=["path", "score"]))


def _student(run: RunFolder) -> "pd.Series[float]":
    """Ranks within each student, 0..1: the folds of train have a student each, on scales of their own."""
    folders = [run, *map(RunFolder, sorted((run.root / "artifacts").glob(HELD_OUT)))]
    if not any(folder.arm_dir(_STUDENT).is_dir() for folder in folders):
        return _EMPTY
    from diag_lib.training import load_arm  # imports torch, which the audit alone does without

    parts = []
    for folder in folders:
        arm = load_arm(folder, _STUDENT)
        if arm is not None:
            parts.append(arm.val_scores if folder is run else _renamed(arm.val_scores, folder, run))
    ranked = [_by_path(part.assign(score=part["score"].rank(pct=True))) for part in parts]
    return _by_path(pd.concat(ranked).reset_index()) if ranked else _EMPTY


_EMPTY: "pd.Series[float]" = pd.Series(dtype="float64")


def _renamed(scores: pd.DataFrame, folder: RunFolder, run: RunFolder) -> pd.DataFrame:
    """Paths of a probe's manifest as the dataset itself names them; no row where either can't be read any more."""
    try:
        own = read_table(load(folder.root / "settings.yaml")).frame
        names = read_table(load(run.root / "settings.yaml")).frame
    except UserError:
        return scores.head(0)
    known = dict(zip(names["file"], names["path"], strict=True))
    place = {path: known.get(file) for path, file in zip(own["path"], own["file"], strict=True)}
    return scores.assign(path=scores["path"].map(place)).dropna(subset="path")


def _by_path(scores: pd.DataFrame) -> "pd.Series[float]":
    finite = scores[np.isfinite(scores["score"].astype(float))]
    return finite.drop_duplicates("path").set_index("path")["score"].astype(float)


def doubtful(run: RunFolder, frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Images whose label contradicts teacher or student, the worst first.

    frame : columns path, split, label. Returns path, split, label, judges, probability_of_label (mean over the
    judges that contradict it), those that more judges contradict first; empty where there is no judge.
    """
    parts = []
    for judge in judges(run):
        known = frame[frame["path"].isin(judge.scores.index)].reset_index(drop=True)
        labels = known["label"].to_numpy(dtype=np.int64)
        if np.bincount(labels, minlength=2).min() < FOLDS:
            continue
        fake = probability_of_fake(np.asarray(judge.scores.loc[known["path"]], np.float64), labels, seed)
        own = np.where(labels == 1, fake, 1 - fake)
        chosen = issues(labels, fake)
        rows = known.iloc[chosen][["path", "split", "label"]]
        parts.append(rows.assign(judges=judge.name, probability_of_label=own[chosen]))
    return together(parts, ["path", "split", "label"])


def together(parts: Sequence[pd.DataFrame], image: list[str]) -> pd.DataFrame:
    """The suspects of several judges, a row an image (columns `image`, the path among them), judges and probability.

    parts : columns `image`, judges, probability_of_label. Those that more judges contradict come first.
    """
    columns = [*image, "judges", "probability_of_label"]
    if not any(len(part) for part in parts):
        return pd.DataFrame(columns=columns)
    rows = pd.concat([part for part in parts if len(part)], ignore_index=True)
    table = rows.groupby(image, sort=False, as_index=False).agg(
        judges=("judges", ", ".join),
        n=("judges", "size"),
        probability_of_label=("probability_of_label", "mean"),
    )
    table = table.sort_values(["n", "probability_of_label", "path"], ascending=[False, True, True])
    return table[columns].reset_index(drop=True)


def probability_of_fake(scores: Floats, labels: Ints, seed: int) -> Floats:
    """Held-out probabilities (n,) from scores on any scale: logistic regression on their normal ranks, by folds."""
    from sklearn.linear_model import LogisticRegression

    ranks = (rankdata(scores) - 0.5) / max(1, len(scores))
    x = np.log(ranks / (1 - ranks))[:, None]  # logistic ranks: no outlier rules, and order is all that counts
    folds = np.random.default_rng([seed, 0x1AB]).permutation(len(labels)) % FOLDS
    fake = np.full(len(labels), float(labels.mean()))
    for fold in range(FOLDS):
        here, there = folds == fold, folds != fold
        if here.any() and len(np.unique(labels[there])) == 2:
            fake[here] = LogisticRegression().fit(x[there], labels[there]).predict_proba(x[here])[:, 1]
    return fake


def has_cleanlab() -> bool:
    """Whether the extra `labels` is installed."""
    return find_spec("cleanlab") is not None


def issues(labels: Ints, fake: Floats) -> Ints:
    """Indices of the images whose label is doubtful, the worst first, from held-out probabilities (n,) of fake.

    With cleanlab its confident learning, which removes as many as the estimated noise. Without it the rule that
    this starts from: the probability of the other class reaches that class's mean self-confidence.
    """
    own = np.where(labels == 1, fake, 1 - fake)
    if has_cleanlab():
        from cleanlab.filter import find_label_issues

        found = find_label_issues(
            labels, np.column_stack([1 - fake, fake]), return_indices_ranked_by="self_confidence", n_jobs=1
        )
        return np.asarray(found, dtype=np.int64)
    confidence = np.array([own[labels == label].mean() for label in (0, 1)])
    chosen = np.flatnonzero((1 - own) >= confidence[1 - labels])
    return chosen[np.argsort(own[chosen], kind="stable")]
