"""What happens when a suspected cause is taken away?

Every experiment compares two trainings (or two evaluations) that differ in the suspected cause alone:
same initialisation, batches and augmentation. Gains are measured on half B of the validation images, which
chose nothing. Experiments on the data never touch the dataset: they write a derived one, or a curation
file, below the run folder and train on that.
"""

import posixpath
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from diag_lib import images, training
from diag_lib.evidence import Evidence, RunFolder
from diag_lib.images.alike import write_alike
from diag_lib.images.manifest import read_curation
from diag_lib.probes import retrain
from diag_lib.probes.compare import paired
from diag_lib.probes.student import recalibrated
from diag_lib.screens import LARGER_STUDENT, Case, normalization_patch, pooling_patch
from diag_lib.settings import Settings
from diag_lib.statistics import (
    Auc,
    AucDifference,
    auc,
    auc_difference_unpaired,
    cluster_bootstrap,
)
from diag_lib.training import ArmResult

STATUS_QUO, BCE_ONLY = "status_quo", "bce_only"
ALPHA_ARMS = ("alpha_0.01", "alpha_0.05", "alpha_0.1", "alpha_0.2", "alpha_0.3", "alpha_0.5")
ARMS_OF_STEP = {
    "logits": (STATUS_QUO,),
    "baseline": (BCE_ONLY,),
    "distillation": (STATUS_QUO, BCE_ONLY, "standardized", "centered", "robust", *ALPHA_ARMS),
}
"""The arms that a step's evidence speaks of; the verdict reads them again."""

SIGNIFICANT = 0.05
VAL_HALVES = "probes/val_halves"
MORE = 2.0
"""Times as many images that half A of val must hold to show what more images bring."""
AGAIN = "@seed1"
"""The arm's suffix for the confirming training: `training.seed` + 1."""

WORDS = {
    BCE_ONLY: "training on the labels alone",
    "standardized": "standardising the teacher's logits",
    "centered": "centring the teacher's logits",
    "robust": "scaling the teacher's logits robustly, with a Huber loss",
    "unfrozen": "training all layers",
    "baseline.frozen": "training all layers",
    "baseline.learning_rate": "another learning rate",
    "baseline.resize": "cropping native pixels",
    "baseline.batchnorm": "recalibrating the BatchNorm statistics",
    "teacher.train_mode": "putting the teacher into eval mode",
}
"""What an arm or a probe changes, as the subject of a sentence."""

UNTRAINED = {"teacher.train_mode": ("teacher as it runs", "teacher in eval mode")}
"""Probes that compare two evaluations of a network, by the names of both sides; the others compare trainings."""


@dataclass(frozen=True)
class Measured:
    """An arm (or an evaluation of one) and its AUC on the compared images."""

    arm: str
    auc: Auc


@dataclass(frozen=True)
class Comparison:
    """Before and after taking a cause away; `delta` = after - before with its two-sided 95% interval."""

    what: str
    before: Measured
    after: Measured
    delta: float
    ci: tuple[float, float]
    p: float
    correlation: float = 0.0
    direct: bool = False
    confirmation: "Comparison | None" = None

    def sentence(self) -> str:
        """The comparison in words, with intervals."""
        verb = "raises" if self.ci[0] > 0 else "lowers" if self.ci[1] < 0 else "does not clearly change"
        low, high = self.ci
        before, after = self.before.auc.value, self.after.auc.value
        return (
            f"{self.what} {verb} the AUC: {before:.2f} before, {after:.2f} after "
            f"({self.delta:+.2f} [{low:+.2f}, {high:+.2f}])"
        )

    def in_full(self) -> str:
        """The sentence, and what the same change did to a training from another seed."""
        second = self.confirmation
        if second is None:
            return self.sentence()
        low, high = second.ci
        return f"{self.sentence()}; from another seed {second.delta:+.2f} [{low:+.2f}, {high:+.2f}]"


class Trials:
    """A run's settings, evidence and trained arms, and the means to train more under changed settings."""

    def __init__(
        self, settings: Settings, run: RunFolder, evidence: Mapping[str, Evidence], *, progress: bool = True
    ) -> None:
        self.settings = settings
        self.run = run
        self.progress = progress
        self.results: dict[str, ArmResult] = {}
        self.not_run: list[str] = []
        asked = [arm for step, arms in ARMS_OF_STEP.items() if step in evidence for arm in arms]
        self.arms(*(arm for arm in asked if (run.arm_dir(arm) / "settings.json").is_file()))
        self.case = Case(settings, evidence, {name: result.auc for name, result in self.results.items()})

    def arms(self, *ids: str) -> list[ArmResult | None]:
        """The arms' results, trained now unless the run folder holds them; None for one beyond the budget."""
        wanted = [name for name in ids if name not in self.results]
        if wanted:
            self.results.update(training.train_arms(self.settings, self.run, wanted, progress=self.progress))
            self.not_run.extend(name for name in wanted if name not in self.results)
        return [self.results.get(name) for name in ids]

    def variant(self, name: str, overrides: Mapping[str, Any], arm: str = STATUS_QUO) -> ArmResult | None:
        """`arm` trained under changed settings, in a run folder of its own below `artifacts/experiments`."""
        return retrain.variant(
            self.settings, self.run, name, overrides, arm=arm, below="experiments", progress=self.progress
        )

    def experiment(self, name: str) -> Comparison | None:
        """Run ``arm:<id>``, ``probe:<finding>`` or an entry of `EXPERIMENTS`; None when it cannot be run."""
        if name.startswith("arm:"):
            return self.instead(name.removeprefix("arm:"))
        if name.startswith("probe:"):
            return self.probed(name.removeprefix("probe:"))
        return EXPERIMENTS[name](self)

    def instead(self, arm: str) -> Comparison | None:
        """The status quo against another arm on half B, confirmed on a new seed when it differs."""
        first = self._pair(STATUS_QUO, arm)
        if first is None or first.p >= SIGNIFICANT:
            return first
        return replace(first, confirmation=self._pair(STATUS_QUO + AGAIN, arm + AGAIN))

    def again(self, name: str, patch: Mapping[str, Any]) -> Comparison | None:
        """The status quo against itself with a settings patch, both from another seed, on half B."""
        (before,) = self.arms(STATUS_QUO + AGAIN)
        if before is None:  # the arms' budget is used up
            before = self.variant("again", {}, STATUS_QUO + AGAIN)
        if before is None:
            return None
        after = self.variant(f"again_{name}", dotted(patch), STATUS_QUO + AGAIN)
        if after is None:
            return None
        sides = half_b(before.val_scores), f"{STATUS_QUO} repaired", half_b(after.val_scores)
        return compare("the same repair from another seed", STATUS_QUO, *sides)

    def probed(self, finding_id: str) -> Comparison | None:
        """The comparison that a probe has made already, as a rule BCE only with and without one thing changed."""
        found = self.case.finding(finding_id)
        if found is None or found.value is None or found.ci is None or "before_ci" not in found.data:
            return None
        data, what = found.data, WORDS.get(finding_id, finding_id)
        before, after = (
            Auc(data[side], tuple(data[f"{side}_ci"]), float("nan"), 0, 0, data[side] is not None)
            for side in ("before", "after")
        )
        names = UNTRAINED.get(finding_id, (BCE_ONLY, f"{BCE_ONLY}, {what}"))
        sides = Measured(names[0], before), Measured(names[1], after)
        direct = finding_id in UNTRAINED
        return Comparison(
            what, *sides, found.value, found.ci, data["p"], data.get("correlation", 0.0), direct
        )

    def _pair(self, before: str, after: str) -> Comparison | None:
        left, right = self.arms(before, after)
        if right is None and after in training.ARMS:  # the arms' budget is used up, but this one decides
            right = self.variant(f"arm_{after}", training.ARMS[after].overrides)
        if left is None or right is None:
            return None
        what = WORDS.get(after.partition("@")[0], f"training as {after}")
        return compare(what, before, half_b(left.val_scores), after, half_b(right.val_scores))

    def recommended(self, patch: Mapping[str, Any]) -> ArmResult | None:
        """The configured training with all fixes at once, listed as the arm `recommended`.

        A patch of training settings shares batches and teacher pass with the other arms; one that changes the
        data or the teacher is trained in a run folder of its own.
        """
        overrides = dotted(patch)
        if any(key.startswith(("dataset.", "teacher.")) for key in overrides):
            result = self.variant("recommended", overrides)
        else:
            result = training.train_arms(
                self.settings,
                self.run,
                ["recommended"],
                extra={"recommended": overrides},
                progress=self.progress,
            ).get("recommended")
        if result is not None:
            self.results["recommended"] = replace(result, id="recommended")
        return result

    def arm_table(self) -> tuple[dict[str, Any], ...]:
        """Every arm of the run folder: id, settings patch, AUC on all validation images, number of seeds."""
        folder = self.run.root / "artifacts" / "arms"
        names = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
        arms = {name: arm for name in names if (arm := training.load_arm(self.run, name)) is not None}
        arms.update({name: arm for name, arm in self.results.items() if name not in arms})
        seeds = Counter(name.partition("@")[0] for name in arms)
        return tuple(
            {
                "id": name,
                "settings": nested(arms[name].overrides),
                "auc": arms[name].auc.value if arms[name].auc.defined else None,
                "ci": list(arms[name].auc.ci),
                "seeds": seeds[name],
            }
            for name in sorted(arms, key=_arm_order)
            if "@" not in name
        )

    def flattered(self) -> ArmResult | None:
        """The arm whose AUC a fault of validity would flatter: the better of the status quo and BCE only."""
        trained = [arm for arm in self.arms(STATUS_QUO, BCE_ONLY) if arm is not None and arm.auc.defined]
        return max(trained, key=lambda arm: arm.auc.value, default=None)


def half_b(scores: pd.DataFrame) -> pd.DataFrame:
    """The validation images that chose nothing."""
    return scores[scores["half"] == "B"]


def compare(what: str, before: str, left: pd.DataFrame, after: str, right: pd.DataFrame) -> Comparison | None:
    """Paired comparison of two score tables (columns path, label, score) on their common images."""
    both = left.merge(right, on="path", suffixes=("_before", "_after"))
    if both.empty:
        return None
    labels, old, new = (both[name].to_numpy() for name in ("label_before", "score_before", "score_after"))
    return _from_difference(what, before, after, paired(labels, old, new))


def _from_difference(what: str, before: str, after: str, difference: AucDifference) -> Comparison:
    return Comparison(
        what,
        Measured(before, difference.before),
        Measured(after, difference.after),
        difference.delta,
        difference.ci,
        difference.p,
        difference.correlation,
    )


def _without_leaks(trials: Trials) -> Comparison | None:
    """The same scores with and without the validation images that also stand in train.

    The sets are nested, so that the interval comes from a bootstrap over images.
    """
    arm = trials.flattered()
    leaked = leaked_paths(trials.run)
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


def _encoded_alike(trials: Trials) -> Comparison | None:
    """The flattered arm on the original files against the same arm on files saved alike."""
    arm = trials.flattered()
    if arm is None:
        return None
    table = images.read_table(trials.settings).frame
    out = trials.run.artifact("experiments/encoded_alike/data")
    used = table[table["split"].isin(["train", "val"])]
    alike = write_alike(used, out, seed=trials.settings.training.seed)
    if alike is None:
        return None
    after = trials.variant(
        "encoded_alike", {"dataset.root": str(alike.root), "dataset.curation": None}, arm.id
    )
    if after is None:
        return None
    origin = dict(zip(alike.origin["path"], alike.origin["original"], strict=True))
    scores = after.val_scores.assign(path=after.val_scores["path"].map(origin))
    return compare(alike.what, arm.id, arm.val_scores, f"{arm.id} on files saved alike", scores)


def _train_labels_flipped(trials: Trials) -> Comparison | None:
    """BCE only with the train labels as they are against the train labels swapped."""
    (before,) = trials.arms(BCE_ONLY)
    table = images.read_table(trials.settings).frame
    train = table[table["split"] == "train"]
    file = _write_curation(trials, "train_labels_flipped", train, "relabel")
    after = trials.variant("train_labels_flipped", {"dataset.curation": str(file)}, BCE_ONLY)
    if before is None or after is None:
        return None
    what = "swapping the train labels"
    return compare(
        what, BCE_ONLY, half_b(before.val_scores), f"{BCE_ONLY} on swapped labels", half_b(after.val_scores)
    )


def _write_curation(trials: Trials, name: str, rows: pd.DataFrame, action: str) -> Path:
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


def _teacher_on_train(trials: Trials) -> Comparison | None:
    """What the train labels are worth: an informative teacher's AUC on train against val, without training.

    Where the teacher knows too little to judge, a student trained on half of val stands in.
    """
    train, val = (trials.case.finding(name) for name in ("teacher.auc_train", "teacher.auc"))
    if train is None or val is None or train.ci is None or val.ci is None:
        return _trained_on_val(trials)
    if val.ci[0] <= trials.settings.thresholds.teacher_auc_good:
        return _trained_on_val(trials)
    scores = pd.read_parquet(trials.run.artifact("teacher_scores.parquet"))
    before, after = (
        auc(part["label"].to_numpy(), part["score"].to_numpy(), nan="undefined")
        for part in (scores[scores["split"] == "train"], scores[scores["split"] == "val"])
    )
    difference = auc_difference_unpaired(before, after)
    what = "judging the same teacher by the val labels instead of the train labels"
    return replace(_from_difference(what, "teacher on train", "teacher on val", difference), direct=True)


def _normalized(trials: Trials) -> Comparison | None:
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


def _longer(trials: Trials) -> Comparison | None:
    """The status quo against the same training on the longer schedule that the baseline's probe tried."""
    (before,) = trials.arms(STATUS_QUO)
    found = trials.case.finding("baseline.undertrained")
    patch = found.data.get("settings") if found is not None else None
    if before is None or not patch:
        return None
    after = trials.variant("longer", dotted(patch))
    if after is None or after.image_steps < 2 * before.image_steps:
        return None
    what, name = "training longer", f"{STATUS_QUO}, trained longer"
    return compare(what, STATUS_QUO, half_b(before.val_scores), name, half_b(after.val_scores))


def _recalibrated(trials: Trials) -> Comparison | None:
    """The probe's comparison; for a status quo that learns its own students instead, from two seeds, untrained anew."""
    if not trials.case.status_quo_learns:
        return trials.probed("baseline.batchnorm")
    first = _with_fresh_norms(trials, STATUS_QUO)
    if first is None or first.p >= SIGNIFICANT or first.delta <= 0:
        return first
    return replace(first, confirmation=_with_fresh_norms(trials, STATUS_QUO + AGAIN))


def _with_fresh_norms(trials: Trials, name: str) -> Comparison | None:
    (arm,) = trials.arms(name)
    if arm is None or arm.stopped:
        return None
    settings = trials.settings.with_overrides(arm.overrides)
    train, val = (images.open_split(settings, split, trials.run) for split in ("train", "val"))
    logits = training.predict(recalibrated(settings, arm.model(settings), train), val, settings).logits
    fresh = val.frame[["path", "label"]].assign(score=logits)
    fresh = fresh.merge(arm.val_scores[["path", "half"]], on="path")
    what = WORDS["baseline.batchnorm"]
    return compare(what, name, half_b(arm.val_scores), f"{name}, recalibrated", half_b(fresh))


def _larger_student(trials: Trials) -> Comparison | None:
    """BCE only with the configured student against BCE only with Tiny-LaDeDa; None where it is that already."""
    (before,) = trials.arms(BCE_ONLY)
    if before is None or trials.settings.student.arch == LARGER_STUDENT["arch"]:
        return None
    after = trials.variant("larger_student", dotted({"student": LARGER_STUDENT}), BCE_ONLY)
    if after is None:
        return None
    what, name = "a larger student", f"{BCE_ONLY} with {LARGER_STUDENT['arch']}"
    return compare(what, BCE_ONLY, half_b(before.val_scores), name, half_b(after.val_scores))


def _more_images(trials: Trials) -> Comparison | None:
    """BCE only on as many images of each class as train has against BCE only on more of them.

    Both trainings use half A of val and take about as many steps; both are judged on half B. None where half A holds
    hardly more of any class than train, or where its small part already does better than train: then it is not the
    number of images that fails.
    """
    (baseline,) = trials.arms(BCE_ONLY)
    after = training.load_arm(RunFolder(trials.run.artifact(VAL_HALVES)), BCE_ONLY)
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
    if small.defined and own.defined and small.ci[0] > own.ci[1]:
        return None
    shown = [f"{sizes[0]} real and {sizes[1]} fake images" for sizes in (taken, held)]
    what = f"training on {shown[1]} instead of {shown[0]}"
    names = f"{BCE_ONLY} on {shown[0]}", f"{BCE_ONLY} on {shown[1]}"
    return compare(what, names[0], before.val_scores, names[1], after.val_scores)


def _other_pooling(trials: Trials) -> Comparison | None:
    """BCE only with the configured pooling against BCE only trained and judged with the better one."""
    (before,) = trials.arms(BCE_ONLY)
    patch = pooling_patch(trials.case)
    if before is None or patch is None:
        return None
    after = trials.variant("other_pooling", dotted(patch), BCE_ONLY)
    if after is None:
        return None
    what, name = "another pooling of the patch logits", f"{BCE_ONLY}, pooled otherwise"
    return compare(what, BCE_ONLY, half_b(before.val_scores), name, half_b(after.val_scores))


def _trained_on_val(trials: Trials) -> Comparison | None:
    """BCE only trained on train against BCE only trained on half A of val; both judged on half B."""
    (before,) = trials.arms(BCE_ONLY)
    probe = RunFolder(trials.run.artifact(VAL_HALVES))
    after = training.load_arm(probe, BCE_ONLY)
    if before is None or after is None:
        return None
    scores = before.val_scores
    shared = posixpath.commonpath([posixpath.dirname(path) for path in scores["path"]])
    known = {posixpath.relpath(path, shared or "."): path for path in scores["path"]}
    renamed = after.val_scores.assign(path=after.val_scores["path"].map(lambda path: known.get(path, path)))
    what = "training on half of val instead of train"
    return compare(what, BCE_ONLY, half_b(scores), f"{BCE_ONLY} trained on val", renamed)


def _teacher_variant(trials: Trials) -> Comparison | None:
    """The status quo against the same training with the teacher's better preprocessing."""
    found = trials.case.finding("teacher.preprocessing")
    (before,) = trials.arms(STATUS_QUO)
    if found is None or before is None or not found.data.get("settings"):
        return None
    after = trials.variant("teacher_variant", dotted(found.data["settings"]))
    if after is None:
        return None
    name = f"{STATUS_QUO} with the teacher's own preprocessing"
    return compare(
        "the teacher's own preprocessing",
        STATUS_QUO,
        half_b(before.val_scores),
        name,
        half_b(after.val_scores),
    )


def _best_alpha(trials: Trials) -> Comparison | None:
    """The status quo against the weighting that was best on half A, proven on half B."""
    known = [arm for arm in ALPHA_ARMS if arm in trials.results]
    trained = [arm for arm in trials.arms(BCE_ONLY, *(known or ALPHA_ARMS)) if arm is not None]
    if not trained:
        return None
    best = max(trained, key=lambda arm: (_half_a_auc(arm), arm.id))
    return trials.instead(best.id)


def _half_a_auc(arm: ArmResult) -> float:
    scores = arm.val_scores[arm.val_scores["half"] == "A"]
    measured = auc(scores["label"].to_numpy(), scores["score"].to_numpy(), nan="undefined")
    return measured.value if measured.defined else 0.0


def dotted(patch: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` to `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in patch.items():
        flat.update(
            dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        )
    return flat


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` to `{"a": {"b": 1}}`."""
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        *parents, leaf = key.split(".")
        branch = tree
        for part in parents:
            branch = branch.setdefault(part, {})
        branch[leaf] = value
    return tree


def _arm_order(name: str) -> tuple[int, str]:
    order = (*training.ARMS, "recommended")
    return (order.index(name) if name in order else len(order), name)


EXPERIMENTS: dict[str, Callable[[Trials], Comparison | None]] = {
    "without_leaks": _without_leaks,
    "encoded_alike": _encoded_alike,
    "train_labels_flipped": _train_labels_flipped,
    "normalized": _normalized,
    "longer": _longer,
    "recalibrated": _recalibrated,
    "larger_student": _larger_student,
    "more_images": _more_images,
    "teacher_variant": _teacher_variant,
    "trained_on_val": _trained_on_val,
    "teacher_on_train": _teacher_on_train,
    "other_pooling": _other_pooling,
    "best_alpha": _best_alpha,
}
