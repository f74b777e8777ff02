"""Can the student learn from the labels alone, without a teacher, and if not: what holds it back?

One BCE-only training answers the guide's question. Checks that cost no training follow (permuted labels, BatchNorm,
pooling); probes that train run only where the answer leaves them open, and the result says what was skipped and why.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from diag_lib import training
from diag_lib.checks import with_own
from diag_lib.evidence import Evidence, Finding, RunFolder
from diag_lib.images import open_split
from diag_lib.models import taken_in
from diag_lib.probes import baseline_findings as say
from diag_lib.probes.agreement import Interval, mean_interval_over_images
from diag_lib.probes.compare import Choice, Scores, choose_and_prove, common_scores
from diag_lib.probes.conditional import PROBES, Probes
from diag_lib.probes.student import (
    pooling_variants,
    recalibrated,
    repooled,
)
from diag_lib.settings import Settings
from diag_lib.statistics import Auc, AucDifference, auc
from diag_lib.training import ArmResult

BCE_ONLY = "bce_only"
PERMUTATIONS = 500


@dataclass(frozen=True)
class BaselineResult:
    """What step 04 measured.

    `arm` is the BCE-only training, `loss` its mean BCE on val. `permuted` are the AUCs of its scores against shuffled
    labels; `recalibration` compares it with itself after its BatchNorm statistics were measured anew on train;
    `pooling` re-pools the same patch logits. `probes` holds the rest.
    """

    arm: ArmResult
    loss: Interval
    permuted: npt.NDArray[np.float64]
    recalibration: AucDifference
    pooling: Choice
    pooling_aucs: dict[str, Auc]
    probes: Probes
    evidence: Evidence
    settings: Settings

    def finding(self, name: str) -> Finding | None:
        """The finding `baseline.<name>`, if that probe was run."""
        return self.evidence.finding(f"baseline.{name}")


def run(settings: Settings, run_dir: RunFolder | str | Path, *, progress: bool = True) -> BaselineResult:
    """Train on the labels alone, check what is free, probe what is open; writes `evidence/baseline.json`."""
    folder = run_dir if isinstance(run_dir, RunFolder) else RunFolder(run_dir).create()
    arm = training.train_arms(settings, folder, [BCE_ONLY], progress=progress)[BCE_ONLY]
    labels, scores = arm.val_scores["label"].to_numpy(), arm.val_scores["score"].to_numpy()
    loss = mean_interval_over_images(bce(labels, scores))
    permuted = permuted_aucs(labels, scores, settings.training.seed)
    recalibration, pooling, pooling_scores = _same_logits(settings, folder, arm)
    findings = [
        say.learns(arm, settings.thresholds.baseline_auc),
        say.loss(loss, arm),
        say.permutation(arm, permuted),
        say.train_below_val(arm),
        say.gradients(arm),
        say.batchnorm(recalibration, None if arm.stopped else _followed(settings, arm)),
        say.pooling(pooling, settings),
    ]
    probes = Probes()
    for probe in PROBES:
        finding = probe(settings, folder, arm, probes, progress)
        findings += [finding] if finding is not None else []
    numbers: dict[str, Any] = {
        "auc": arm.auc.value,
        "train_auc": arm.train_auc.value,
        "val_loss": loss.value,
        "train_loss_first": arm.history["train_task_loss"][0],
        "train_loss_last": arm.history["train_task_loss"][-1],
        "image_steps": arm.image_steps,
        **{f"skipped_{name}": why for name, why in probes.skipped.items()},
    }
    evidence = Evidence("baseline", findings, numbers, {"settings": settings.digest()})
    evidence = with_own(evidence, settings, folder)
    folder.write_evidence(evidence)
    pooling_aucs = {name: pooling_scores.auc(name) for name in pooling_scores.of}
    return BaselineResult(
        arm, loss, permuted, recalibration, pooling, pooling_aucs, probes, evidence, settings
    )


def reading(result: BaselineResult) -> str:
    """The guide's two rules for this run, and what the probes add."""
    found = result.finding("auc")
    assert found is not None
    rule = {
        "yes": "The baseline works. By the guide's rule the distillation is "
        "the issue wherever the distilled student fails.",
        "no": "The baseline fails. By the guide's rule this is a dataset problem, not the distillation's, "
        "unless a probe below brings the labels to teach something.",
        "undecided": "These images do not decide whether the baseline works.",
    }[found.answer]
    if _turned_round(result):
        rule = f"The baseline fails, and not by chance. {_TURNED_ROUND}"
    more = [f.message for f in result.evidence.findings if _tells(f)]
    if found.answer != "yes" and not more:
        more = [
            "No probe has found what holds the student back; the audit "
            "and the teacher's AUC on train have the next word."
        ]
    return "\n\n".join([rule, *more])


def next_step(result: BaselineResult) -> str:
    """What to do after this page."""
    if _turned_round(result):
        return _TURNED_ROUND
    for name, advice in _ADVICE.items():
        found = result.finding(name)
        if found is not None and _tells(found):
            return advice
    found = result.finding("auc")
    if found is not None and found.answer == "yes":
        return "The labels suffice. Step 05 asks whether a teacher adds to them or takes away."
    return (
        "Look at the audit (labels, leakage, imbalance) before anything else; "
        "step 05 shows whether a teacher rescues the student."
    )


def _tells(found: Finding) -> bool:
    """Whether a finding explains a failing baseline; a change that leaves it no better than a coin does not."""
    after = found.data.get("after_ci")
    better = after is None or (after[1] is not None and after[1] > 0.5)
    return found.answer == _TELLING.get(found.id) and better


def _turned_round(result: BaselineResult) -> bool:
    """Whether the student ranks val as far below one half as a baseline that works does above."""
    found = result.finding("auc")
    limit = 1 - result.settings.thresholds.baseline_auc
    return found is not None and found.ci is not None and found.ci[1] < limit


def skipped_table(result: BaselineResult) -> pd.DataFrame:
    """Which probes were not run, and why."""
    names = {
        "heldout_train": "train within train",
        "val_learnable": "train within val",
        "overfit_batch": "overfit one batch",
        "learning_rate": "learning rate",
        "frozen": "every layer trained",
        "undertrained": "a longer schedule",
        "resize": "crop against resize",
    }
    rows = [{"probe": names[name], "not run because": why} for name, why in result.probes.skipped.items()]
    return pd.DataFrame(rows, columns=["probe", "not run because"])


def bce(labels: npt.ArrayLike, logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Binary cross-entropy of each image's raw logit, in nats; ln 2 = 0.6931 is a coin's."""
    y, z = np.asarray(labels, dtype=np.float64), np.asarray(logits, dtype=np.float64)
    return np.asarray(np.logaddexp(0.0, z) - y * z)


def permuted_aucs(labels: npt.ArrayLike, scores: npt.ArrayLike, seed: int) -> npt.NDArray[np.float64]:
    """AUCs of the same scores against shuffled labels: what chance alone gives with these images."""
    y, x = np.asarray(labels), np.asarray(scores)
    rng = np.random.default_rng([seed, 0x9E12])
    return np.array([auc(rng.permutation(y), x, nan="undefined").value for _ in range(PERMUTATIONS)])


def learning_curve(arm: ArmResult) -> pd.DataFrame:
    """One row an epoch: epoch, stage, train and val BCE, val AUC."""
    history = arm.history
    return pd.DataFrame(
        {
            "epoch": np.arange(1, len(history["stage"]) + 1),
            "stage": history["stage"],
            "train_bce": history["train_task_loss"],
            "val_bce": history["val_loss"],
            "val_auc": history["val_auc"],
        }
    )


def _same_logits(settings: Settings, run: RunFolder, arm: ArmResult) -> tuple[AucDifference, Choice, Scores]:
    """The trained student evaluated in other ways: fresh BatchNorm statistics, other pooling. Nothing is trained."""
    train = open_split(settings, "train", run)
    val = open_split(settings, "val", run)
    if arm.stopped:  # weights that are no longer finite cannot be evaluated in any way
        lost = common_scores({say.CONFIGURED: arm.val_scores})
        return lost.difference(say.CONFIGURED, say.CONFIGURED), choose_and_prove(lost, say.CONFIGURED), lost
    table = val.frame[["path", "label"]].merge(arm.val_scores[["path", "half"]], on="path", how="left")
    variants = {
        name: table.assign(score=logits)
        for name, logits in repooled(
            settings, arm.model(settings), val, pooling_variants(settings.pooling)
        ).items()
    }
    scores = common_scores(variants)
    fresh = training.predict(recalibrated(settings, arm.model(settings), train), val, settings).logits
    both = common_scores({"before": variants[say.CONFIGURED], "after": table.assign(score=fresh)})
    return both.difference("before", "after"), choose_and_prove(scores, say.CONFIGURED), scores


def _followed(settings: Settings, arm: ArmResult) -> float | None:
    """The share of the student's running statistics that its own training makes up, in the layer with the least."""
    return taken_in(arm.model(settings), arm.image_steps / settings.training.batch_size)


_TURNED_ROUND = (
    "It ranks val the wrong way round: the labels of train and val contradict each other. Look at 20 images of each "
    "class of both splits (step 01) before any setting."
)

_TELLING = {
    "baseline.learning_rate": "yes",
    "baseline.frozen": "yes",
    "baseline.undertrained": "yes",
    "baseline.batchnorm": "yes",
    "baseline.pooling": "yes",
    "baseline.resize": "yes",
    "baseline.overfit_batch": "no",
    "baseline.heldout_train": "no",
    "baseline.permutation": "no",
    "baseline.gradients": "no",
    "baseline.train_below_val": "yes",
}
"""The answers that explain a failing baseline."""

_ADVICE = {
    "gradients": "Look for detach() or no_grad() between these layers and the loss, then run again.",
    "train_below_val": "Look at the train labels: the audit lists the images whose labels look wrong.",
    "frozen": "Set student.trainable_s1 and trainable_s2 to [all], then run again.",
    "learning_rate": "Change lr_s1 and lr_s2 as the table says, then run again.",
    "undertrained": "Raise epochs_s1 and epochs_s2, then run again.",
    "batchnorm": "Recalibrate the BatchNorm statistics before every evaluation, or raise their momentum.",
    "pooling": "Pool the patch logits as the table says.",
    "resize": "Set dataset.resize: crop, so that the traces of generation are not interpolated away.",
    "heldout_train": "Check how the train labels were joined to the images: not even train predicts train.",
    "overfit_batch": "Repair the student before looking at the data: it cannot memorise even one batch.",
}
