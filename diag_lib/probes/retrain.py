"""What does the BCE-only student reach on other images, or with another schedule, than the run's own?

Each variant trains one arm in a run folder of its own below `artifacts/probes/<name>`, from a manifest or with
changed settings; the dataset itself is never touched. Its schedule is that of the run's arms, so that its AUC can
be compared with theirs.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from diag_lib import training
from diag_lib.evidence import RunFolder
from diag_lib.images import DecodeError, ImageSet, decode
from diag_lib.settings import Settings
from diag_lib.statistics import Auc, auc
from diag_lib.training import ArmResult

BCE_ONLY = "bce_only"
SAMPLE = 32  # files that are opened to learn how large the images are
FEW_FOLDS = (3, 5)  # folds of a small and of a large training set
ENOUGH_A_CLASS = 412


def variant(
    settings: Settings,
    run: RunFolder,
    name: str,
    overrides: Mapping[str, Any],
    *,
    arm: str = BCE_ONLY,
    below: str = "probes",
    progress: bool = True,
) -> ArmResult | None:
    """`arm` under changed settings, in `artifacts/<below>/<name>`; None when the budget leaves no room for it."""
    folder = RunFolder(run.artifact(f"{below}/{name}/settings.yaml").parent).create()
    cache = settings.runtime.cache_dir or run.default_cache
    changed = settings.with_overrides({"runtime.cache_dir": str(cache), **overrides})
    folder.write_text("settings.yaml", changed.to_yaml())
    return training.train_arms(changed, folder, [arm], progress=progress).get(arm)


def on_images(
    settings: Settings,
    run: RunFolder,
    name: str,
    train: pd.DataFrame,
    held: pd.DataFrame,
    *,
    overrides: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> ArmResult | None:
    """The BCE-only arm trained on the rows of `train` and judged on those of `held` (columns file, label)."""
    splits = settings.dataset.train_split, settings.dataset.val_split
    rows = [
        part[["file", "label"]].assign(split=split) for part, split in zip((train, held), splits, strict=True)
    ]
    manifest = pd.concat(rows).rename(columns={"file": "path"})
    file = run.artifact(f"probes/{name}/manifest.csv")
    manifest.to_csv(file, index=False, errors="surrogateescape")  # any byte that a name may hold
    changed = {"dataset.root": str(file), "dataset.curation": None, **(overrides or {})}
    return variant(settings, run, name, changed, progress=progress)


def typical_side(images: ImageSet, seed: int) -> float:
    """Median of the shorter side, in pixels, of a few image files; NaN when none can be decoded."""
    rng = np.random.default_rng([seed, 0x51DE])
    files = images.frame["file"].to_numpy()
    sides = []
    for file in rng.choice(files, min(SAMPLE, len(files)), replace=False):
        with contextlib.suppress(DecodeError):
            sides.append(min(decode(file).shape[:2]))
    return float(np.median(sides)) if sides else float("nan")


def cross_fitted(
    settings: Settings, run: RunFolder, images: ImageSet, *, progress: bool = True
) -> Auc | None:
    """AUC on training images of students that were not taught them; None when the budget leaves no room.

    One split of four fifths against one fifth where that fifth has 412 images a class (enough to tell .50 from
    .55), else three folds of which each is judged once. Folds keep near-duplicates together; their scores are
    compared by rank within the fold, because each fold has a student of its own.
    """
    enough = min(np.bincount(images.labels, minlength=2)) / FEW_FOLDS[1] >= ENOUGH_A_CLASS
    folds = fold_of(images, FEW_FOLDS[1] if enough else FEW_FOLDS[0], settings.training.seed)
    parts = []
    for fold in range(1 if enough else FEW_FOLDS[0]):
        out = folds == fold
        name = f"heldout_train_{fold}"
        arm = on_images(settings, run, name, images.frame[~out], images.frame[out], progress=progress)
        if arm is None:
            return None
        scores = arm.val_scores
        parts.append(pd.DataFrame({"label": scores["label"], "rank": scores["score"].rank(pct=True)}))
    judged = pd.concat(parts)
    return auc(judged["label"].to_numpy(), judged["rank"].to_numpy(), nan="undefined")


def fold_of(images: ImageSet, folds: int, seed: int) -> np.ndarray:
    """The fold 0 ... folds - 1 of each image (n,): alike in both classes, groups of near-duplicates together."""
    rng = np.random.default_rng([seed, 0x0D7])
    groups = pd.Series(np.asarray(images.groups))
    first = pd.Series(images.labels).groupby(groups.to_numpy()).first()
    place: dict[Any, int] = {}
    for label in (0, 1):
        names = rng.permutation(first.index[first == label].to_numpy())
        place.update({name: number % folds for number, name in enumerate(names.tolist())})
    return groups.map(place).to_numpy(np.int64)
