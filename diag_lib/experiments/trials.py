"""A run's arms and settings, and the means to train more of them under changed settings."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diag_lib import training
from diag_lib.evidence import Evidence, RunFolder
from diag_lib.experiments.comparison import Comparison, Measured, compare, half_b
from diag_lib.probes import retrain
from diag_lib.screens import Case
from diag_lib.settings import Settings, dotted, nested
from diag_lib.statistics import SIGNIFICANT, Auc
from diag_lib.training import ArmResult

STATUS_QUO, BCE_ONLY = "status_quo", "bce_only"
ALPHA_ARMS = ("alpha_0.01", "alpha_0.05", "alpha_0.1", "alpha_0.2", "alpha_0.3", "alpha_0.5")
ARMS_OF_STEP = {
    "logits": (STATUS_QUO,),
    "baseline": (BCE_ONLY,),
    "distillation": (STATUS_QUO, BCE_ONLY, "standardized", "centered", "robust", *ALPHA_ARMS),
}
"""The arms that a step's evidence speaks of; the verdict reads them again."""

AGAIN = "@seed1"
"""The arm's suffix for the confirming training: `training.seed` + 1."""

SCHEDULE = ("training.epochs_s1", "training.epochs_s2", "training.seed")
"""What the budget and the confirming trainings change without being asked."""

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


class Trials:
    """A run's settings, evidence and trained arms, and the means to train more under changed settings."""

    def __init__(
        self,
        settings: Settings,
        run: RunFolder,
        evidence: Mapping[str, Evidence],
        *,
        source: RunFolder | None = None,
        progress: bool = True,
    ) -> None:
        self.settings = settings
        self.run = run
        self.source = source or run  # holds what the steps measured
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

    def world(self, changes: Mapping[str, Any], *ids: str) -> "Trials":
        """The same evidence where the settings are changed, with arms trained there, below `artifacts/experiments`."""
        cache = self.settings.runtime.cache_dir or self.run.default_cache
        changed = self.settings.with_overrides({"runtime.cache_dir": str(cache), **changes})
        name = f"experiments/repaired-{changed.digest()[:8]}/settings.yaml"
        folder = RunFolder(self.run.artifact(name).parent).create()
        folder.write_text("settings.yaml", changed.to_yaml())
        training.train_arms(changed, folder, ids, progress=self.progress)
        return Trials(changed, folder, self.case.evidence, source=self.source, progress=self.progress)

    def repaired(self, name: str, patch: Mapping[str, Any]) -> Comparison | None:
        """The status quo against itself with a settings patch on half B, confirmed on a new seed when it gains."""
        (before,) = self.arms(STATUS_QUO)
        after = self.variant(name, dotted(patch))
        if before is None or after is None:
            return None
        sides = half_b(before.val_scores), f"{STATUS_QUO} repaired", half_b(after.val_scores)
        first = compare("this repair", STATUS_QUO, *sides)
        if first is None or first.p >= SIGNIFICANT or first.delta <= 0:
            return first
        return replace(first, confirmation=self.again(name, patch))

    def instead(self, arm: str) -> Comparison | None:
        """The status quo against another arm on half B, confirmed on a new seed when it differs."""
        first = self._pair(STATUS_QUO, arm)
        if first is None or first.p >= SIGNIFICANT:
            return first
        return replace(first, confirmation=self._pair(STATUS_QUO + AGAIN, arm + AGAIN))

    def again(self, name: str, patch: Mapping[str, Any], arm: str = STATUS_QUO) -> Comparison | None:
        """An arm against itself with a settings patch, both from another seed, on half B."""
        (before,) = self.arms(arm + AGAIN)
        if before is None:  # the arms' budget is used up
            before = self.variant(f"again_{arm}", {}, arm + AGAIN)
        if before is None:
            return None
        after = self.variant(f"again_{name}", dotted(patch), arm + AGAIN)
        if after is None:
            return None
        sides = half_b(before.val_scores), f"{arm} repaired", half_b(after.val_scores)
        return compare("the same repair from another seed", arm, *sides)

    def probed(self, finding_id: str) -> Comparison | None:
        """The comparison that a probe has made already, as a rule BCE only with and without one thing changed."""
        found = self.case.finding(finding_id)
        if found is None or found.value is None or found.ci is None or "before_ci" not in found.data:
            return None
        data, what = found.data, WORDS.get(finding_id, finding_id)
        a_class = (found.n or 0) // 2
        before, after = (
            Auc(data[side], tuple(data[f"{side}_ci"]), float("nan"), a_class, a_class, data[side] is not None)
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
        data, the teacher or the length of the schedule is trained in a run folder of its own.
        """
        overrides = dotted(patch)
        if any(key.startswith(("dataset.", "teacher.", "training.epochs_")) for key in overrides):
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
        """Every arm of the run folder: id, settings patch, AUC on all validation images, number of seeds.

        What an earlier run has left there of other images or settings is no arm of this one.
        """
        folder = self.run.root / "artifacts" / "arms"
        names = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
        found = {name: arm for name in names if (arm := training.load_arm(self.run, name)) is not None}
        own = self.results.get(STATUS_QUO)
        arms = {name: arm for name, arm in found.items() if own is None or _comparable(arm, own)}
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


def _comparable(arm: ArmResult, own: ArmResult) -> bool:
    """Whether both were judged on the same labelled images and agree in every setting that neither of them varies."""
    shown = [one.val_scores[["path", "label"]].reset_index(drop=True) for one in (arm, own)]
    varied = tuple({*arm.overrides, *own.overrides, *SCHEDULE})
    mine, theirs = dotted(arm.settings), dotted(own.settings)
    same = [mine[key] == theirs[key] for key in mine.keys() & theirs.keys() if not key.startswith(varied)]
    return shown[0].equals(shown[1]) and all(same)


def _arm_order(name: str) -> tuple[int, str]:
    order = (*training.ARMS, "recommended")
    return (order.index(name) if name in order else len(order), name)
