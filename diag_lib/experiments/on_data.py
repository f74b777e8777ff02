"""Experiments that change which images or labels are used; the dataset itself is never touched."""

import posixpath
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from diag_lib import images, training
from diag_lib.evidence import RunFolder
from diag_lib.experiments.comparison import (
    Comparison,
    Measured,
    compare,
    from_difference,
    half_b,
)
from diag_lib.experiments.trials import BCE_ONLY, STATUS_QUO, Trials
from diag_lib.images.alike import write_alike
from diag_lib.images.manifest import read_curation
from diag_lib.probes import retrain
from diag_lib.screens import normalization_patch
from diag_lib.settings import dotted
from diag_lib.statistics import (
    MATERIAL_GAIN,
    SIGNIFICANT,
    Auc,
    auc,
    auc_difference_unpaired,
    cluster_bootstrap,
)
from diag_lib.training import ArmResult

VAL_HALVES = "probes/val_halves"
ENLARGED_ALIKE = "enlarged_alike"
MORE = 2.0
"""Times as many images that half A of val must hold to show what more images bring."""


def without_leaks(trials: Trials) -> Comparison | None:
    """The same scores with and without the validation images that also stand in train.

    The sets are nested, so that the interval comes from a bootstrap over images.
    """
    arm = trials.flattered()
    leaked = leaked_paths(trials.source)
    if arm is None or not leaked:
        return None
    scores = arm.val_scores
    labels, values = scores["label"].to_numpy(), scores["score"].to_numpy()
    clean = ~scores["path"].isin(leaked).to_numpy()
    before, after = auc(labels, values, nan="undefined"), auc(labels[clean], values[clean], nan="undefined")
    if not (before.defined and after.defined):
        return None

    def inflation(rows: np.ndarray) -> float:
        kept = rows[clean[rows]]
        whole, part = auc(labels[rows], values[rows]), auc(labels[kept], values[kept])
        return part.value - whole.value

    seed = trials.settings.training.seed
    ci = cluster_bootstrap(inflation, np.arange(len(labels)), strata=labels + 2 * clean, seed=seed)
    delta = after.value - before.value
    what = f"leaving out {int((~clean).sum())} leaked validation images"
    names = Measured(arm.id, before), Measured(f"{arm.id} without leaks", after)
    return Comparison(what, *names, delta, ci, _p_of(delta, ci))


def _p_of(delta: float, ci: tuple[float, float]) -> float:
    """Two-sided p of no difference, from a 95% interval taken as normal."""
    se = (ci[1] - ci[0]) / (2 * norm.ppf(0.975))
    return float(2 * norm.sf(abs(delta) / se)) if se > 0 else float(delta == 0)


def leaked_paths(run: RunFolder) -> set[str]:
    """Validation paths that the audit found in train as well."""
    table = run.artifact("leakage.parquet")
    return set(pd.read_parquet(table)["val_path"]) if table.is_file() else set()


def encoded_alike(trials: Trials) -> Comparison | None:
    """The flattered arm on the original files against the same arm on files saved alike.

    Where one class looks enlarged and cropping both to one size takes nothing from the AUC, the other class is enlarged
    too: pixels tell that they were resampled long after the size has been made equal.
    """
    arm = trials.flattered()
    if arm is None:
        return None
    cropped, looks_enlarged = _saved_alike(trials, arm, "encoded_alike")
    if cropped is None or not looks_enlarged or (cropped.p < SIGNIFICANT and cropped.delta <= -MATERIAL_GAIN):
        return cropped
    enlarged, _ = _saved_alike(trials, arm, ENLARGED_ALIKE, enlarge=True)
    if enlarged is None or enlarged.delta > min(-MATERIAL_GAIN, cropped.delta):
        return cropped
    return replace(enlarged, p=min(1.0, 2 * enlarged.p))  # the better of two


def _saved_alike(
    trials: Trials, arm: ArmResult, name: str, *, enlarge: bool = False
) -> tuple[Comparison | None, bool]:
    """`arm` on files saved alike, in `artifacts/experiments/<name>`, and whether one class looks enlarged."""
    table = images.read_table(trials.settings).frame
    out = trials.run.artifact(f"experiments/{name}/data")
    used = table[table["split"].isin(["train", "val"])]
    alike = write_alike(used, out, seed=trials.settings.training.seed, enlarge=enlarge)
    if alike is None:
        return None, False
    after = trials.variant(name, {"dataset.root": str(alike.root), "dataset.curation": None}, arm.id)
    if after is None:
        return None, alike.enlarged
    origin = dict(zip(alike.origin["path"], alike.origin["original"], strict=True))
    scores = after.val_scores.assign(path=after.val_scores["path"].map(origin))
    found = compare(alike.what, arm.id, arm.val_scores, f"{arm.id} on files saved alike", scores)
    return found, alike.enlarged


def train_labels_flipped(trials: Trials) -> Comparison | None:
    """BCE only with the train labels as they are against the train labels swapped."""
    (before,) = trials.arms(BCE_ONLY)
    table = images.read_table(trials.settings).frame
    train = table[table["split"] == "train"]
    file = write_curation(trials, "train_labels_flipped", train, "relabel")
    after = trials.variant("train_labels_flipped", {"dataset.curation": str(file)}, BCE_ONLY)
    if before is None or after is None:
        return None
    what = "swapping the train labels"
    return compare(
        what, BCE_ONLY, half_b(before.val_scores), f"{BCE_ONLY} on swapped labels", half_b(after.val_scores)
    )


def write_curation(trials: Trials, name: str, rows: pd.DataFrame, action: str) -> Path:
    """A curation file of the experiment, on top of the user's own."""
    labels = 1 - rows["label"] if action == "relabel" else None
    table = pd.DataFrame({"path": rows["path"], "action": action, "label": labels})
    own = trials.settings.dataset.curation
    if own is not None:
        kept = read_curation(own)
        table = pd.concat([kept[~kept["path"].isin(table["path"])], table])
    file = trials.run.artifact(f"experiments/{name}/curation.csv")
    table.to_csv(file, index=False)
    return file


def teacher_on_train(trials: Trials) -> Comparison | None:
    """What the train labels are worth: an informative teacher's AUC on train against val, without training.

    Where the teacher knows too little to judge, a student trained on half of val stands in.
    """
    train, val = (trials.case.finding(name) for name in ("teacher.auc_train", "teacher.auc"))
    if train is None or val is None or train.ci is None or val.ci is None:
        return trained_on_val(trials)
    if val.ci[0] <= trials.settings.thresholds.teacher_auc_good:
        return trained_on_val(trials)
    scores = pd.read_parquet(trials.source.artifact("teacher_scores.parquet"))
    before, after = (
        auc(part["label"].to_numpy(), part["score"].to_numpy(), nan="undefined")
        for part in (scores[scores["split"] == "train"], scores[scores["split"] == "val"])
    )
    difference = auc_difference_unpaired(before, after)
    what = "judging the same teacher by the val labels instead of the train labels"
    return replace(from_difference(what, "teacher on train", "teacher on val", difference), direct=True)


def normalized(trials: Trials) -> Comparison | None:
    """The status quo against the same training on pixels that are normalised as pretrained networks expect."""
    (before,) = trials.arms(STATUS_QUO)
    patch = normalization_patch(trials.case)
    if before is None or patch is None:
        return None
    after = trials.variant("normalized", dotted(patch))
    if after is None:
        return None
    name = f"{STATUS_QUO}, normalised"
    return compare(
        "correcting the normalisation", STATUS_QUO, half_b(before.val_scores), name, half_b(after.val_scores)
    )


def more_images(trials: Trials) -> Comparison | None:
    """BCE only on as many images of each class as train has against BCE only on more of them.

    Both trainings use half A of val and take about as many steps; both are judged on half B. None where half A holds
    hardly more of any class than train, or where its small part does better than train in about as many steps: then it
    is not the number of images that fails.
    """
    (baseline,) = trials.arms(BCE_ONLY)
    after = training.load_arm(RunFolder(trials.source.artifact(VAL_HALVES)), BCE_ONLY)
    if baseline is None or after is None:
        return None
    table = images.read_table(trials.settings).frame
    counts = table.loc[table["split"] == "train", "label"].value_counts()
    val = table[table["split"] == "val"].merge(baseline.val_scores[["path", "half"]], on="path")
    pool, judged = val[val["half"] == "A"], val[val["half"] == "B"]
    held = pool["label"].value_counts()
    taken = {label: min(int(counts.get(label, 0)), int(held.get(label, 0))) for label in (0, 1)}
    if min(taken.values()) == 0 or all(taken[label] * MORE > held[label] for label in taken):
        return None
    seed, t = trials.settings.training.seed, trials.settings.training
    few = pd.concat([pool[pool["label"] == label].sample(n, random_state=seed) for label, n in taken.items()])
    times = max(1, round(after.image_steps / (len(few) * (t.epochs_s1 + t.epochs_s2))))
    epochs = {"training.epochs_s1": t.epochs_s1 * times, "training.epochs_s2": t.epochs_s2 * times}
    before = retrain.on_images(
        trials.settings, trials.run, "as_few_images", few, judged, overrides=epochs, progress=trials.progress
    )
    if before is None:
        return None
    small, own = before.auc, baseline.auc_on("B")
    as_long = (
        baseline.image_steps * MORE >= before.image_steps
    )  # else it may just have been trained for longer
    if as_long and small.defined and own.defined and small.ci[0] > own.ci[1]:
        return None
    shown = [f"{sizes[0]} real and {sizes[1]} fake images" for sizes in (taken, held)]
    what = f"training on {shown[1]} instead of {shown[0]}"
    names = f"{BCE_ONLY} on {shown[0]}", f"{BCE_ONLY} on {shown[1]}"
    return compare(what, names[0], before.val_scores, names[1], after.val_scores)


def carried_over(trials: Trials) -> Comparison | None:
    """What training on val brings; where val does not teach itself, what a student reaches within train against val.

    The second is no intervention: it shows that something is lost from train to val, not what.
    """
    if trials.case.says("baseline.val_learnable", "yes"):
        return trained_on_val(trials)
    held_out = trials.case.finding("baseline.heldout_train")
    (baseline,) = trials.arms(BCE_ONLY)
    if baseline is None or held_out is None or held_out.ci is None or held_out.value is None:
        return None
    (low, high), n = held_out.ci, held_out.n or 0
    within = Auc(
        held_out.value, (low, high), (high - low) / (2 * float(norm.ppf(0.975))), n // 2, n // 2, True
    )
    difference = auc_difference_unpaired(baseline.auc, within)
    what, names = "judging within train instead of on val", (f"{BCE_ONLY} on val", f"{BCE_ONLY} within train")
    return replace(from_difference(what, *names, difference), direct=True)


def trained_on_val(trials: Trials) -> Comparison | None:
    """BCE only trained on train against BCE only trained on half A of val; both judged on half B."""
    (before,) = trials.arms(BCE_ONLY)
    probe = RunFolder(trials.source.artifact(VAL_HALVES))
    after = training.load_arm(probe, BCE_ONLY)
    if before is None or after is None:
        return None
    scores = before.val_scores
    shared = posixpath.commonpath([posixpath.dirname(path) for path in scores["path"]])
    known = {posixpath.relpath(path, shared or "."): path for path in scores["path"]}
    renamed = after.val_scores.assign(path=after.val_scores["path"].map(lambda path: known.get(path, path)))
    what = "training on half of val instead of train"
    return compare(what, BCE_ONLY, half_b(scores), f"{BCE_ONLY} trained on val", renamed)
