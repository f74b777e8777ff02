"""Step 06: what is wrong, how sure are we, what fixes it, and what did the fix gain?

The step reads the evidence of the others, lets every cause of `diag_lib.causes` speak in the order of
decision, runs the experiments that separate the suspects, and writes `verdict.json` and
`recommended.yaml`. What is claimed is decided by the intervals that are shown.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml

from diag_lib.causes import CAUSES, HEALTHY_GAIN, Cause, Fix, Status
from diag_lib.evidence import STEPS, Answer, Evidence, Finding, RunFolder, plain
from diag_lib.experiments import Comparison, Trials, dotted, experiment
from diag_lib.images import read_table
from diag_lib.probes.labels import doubtful
from diag_lib.screens import MATERIAL_GAIN, Case, RuledOut, Suspicion
from diag_lib.settings import Settings
from diag_lib.statistics import Auc, holm, n_for_gain
from diag_lib.user_code import load_plugins

SCHEMA = "diag/verdict/1"
SIGNIFICANCE = 0.05
CLEARLY_LESS = 0.03
"""AUC by which one intervention must fall short of another to be no explanation beside it."""
FEW_STEPS = 100
"""Optimisation steps below which no schedule has been tried: Adam moves a weight by at most its rate a step."""
DOUBTFUL = "artifacts/doubtful_labels.csv"
GAIN_GROUPS = ("optimisation", "model", "loss")
"""Groups whose proofs are gains that mean nothing while the AUC is inflated."""


@dataclass(frozen=True)
class NamedCause:
    """A cause as the verdict names it."""

    id: str
    status: Status
    sentence: str
    because: str
    evidence: tuple[str, ...]
    fix: Fix
    kind: str
    proof: Comparison | None
    equivalent: tuple[str, ...] = ()
    told_apart_by: str = ""


@dataclass(frozen=True)
class Open:
    """A cause that the evidence leaves open, with what would decide it."""

    id: str
    text: str
    needs: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Gate:
    """One question of the order of decision and how this run answers it."""

    question: str
    state: Literal["passed", "failed", "undecided", "not asked"]
    answer: str


@dataclass(frozen=True)
class VerdictResult:
    """The verdict; `recommended` is the settings patch of all named causes (None: nothing to set)."""

    healthy: bool | None
    complete: bool
    summary: str
    causes: tuple[NamedCause, ...]
    ruled_out: tuple[tuple[str, str], ...]
    undecided: tuple[Open, ...]
    arms: tuple[dict[str, Any], ...]
    findings: tuple[Finding, ...]
    recommended: dict[str, Any] | None
    recommended_auc: Auc | None
    missing_steps: tuple[str, ...]
    gates: tuple[Gate, ...]

    def to_dict(self) -> dict[str, Any]:
        """`verdict.json`, schema diag/verdict/1."""
        return {
            "schema": SCHEMA,
            "healthy": self.healthy,
            "complete": self.complete,
            "summary": self.summary,
            "causes": [_cause_dict(cause) for cause in self.causes],
            "ruled_out": [{"id": cause, "because": because} for cause, because in self.ruled_out],
            "undecided": [
                {"id": item.id, "needs": dict(item.needs), "text": item.text} for item in self.undecided
            ],
            "arms": plain(self.arms),
            "findings": [finding.to_dict() for finding in self.findings],
        }


def run(settings: Settings, run_dir: str | Path, *, progress: bool = True) -> VerdictResult:
    """Decide, prove and write the verdict of the run in `run_dir`.

    Needs the evidence of the earlier steps; steps that did not run make the verdict incomplete, and their
    causes stay silent. Raises `UserError` when the settings or the dataset are unusable.
    """
    load_plugins(settings)
    folder = RunFolder(run_dir).create()
    evidence = {step: found for step in STEPS[:-1] if (found := folder.read_evidence(step)) is not None}
    missing = tuple(step for step in STEPS[:-1] if step not in evidence)
    trials = Trials(settings, folder, evidence, progress=progress)
    verdict = _decide(trials, missing)
    if any(cause.id == "label_noise" for cause in verdict.causes):
        verdict = replace(verdict, causes=_with_labels_listed(verdict.causes, settings, folder))
    folder.write_json("verdict.json", verdict.to_dict())
    folder.write_text("recommended.yaml", _recommended_yaml(settings, verdict))
    inputs = {step: _digest(found) for step, found in evidence.items()}
    folder.write_evidence(Evidence("verdict", [], {"causes": len(verdict.causes)}, inputs))
    return verdict


def _with_labels_listed(
    causes: tuple[NamedCause, ...], settings: Settings, folder: RunFolder
) -> tuple[NamedCause, ...]:
    """Write `DOUBTFUL` by all judges that there are now (the audit came before them), and tell of it."""
    frame = read_table(settings).frame
    table = doubtful(folder, frame[frame["split"] == "train"], settings.training.seed)
    if table.empty:
        return causes
    folder.write_text(DOUBTFUL, table.to_csv(index=False))
    judges = " and ".join(dict.fromkeys(", ".join(table["judges"]).split(", ")))
    told = f"{DOUBTFUL} lists {len(table)} train labels that {judges} contradict, the worst first"
    return tuple(
        replace(cause, fix=replace(cause.fix, actions=(told, *cause.fix.actions)))
        if cause.id == "label_noise"
        else cause
        for cause in causes
    )


def _inflation() -> set[str]:
    return {cause.id for cause in CAUSES if cause.proof == "inflation_removed"}


def _rivals() -> set[str]:
    return {cause.id for cause in CAUSES if cause.rival}


def _digest(evidence: Evidence) -> str:
    return hashlib.sha256(json.dumps(evidence.to_dict(), sort_keys=True).encode()).hexdigest()


def _decide(trials: Trials, missing: tuple[str, ...]) -> VerdictResult:
    case = trials.case
    opinions = [(cause, cause.screen(case)) for cause in CAUSES]
    ruled_out = [(cause.id, opinion.because) for cause, opinion in opinions if isinstance(opinion, RuledOut)]
    suspects = [(cause, opinion) for cause, opinion in opinions if isinstance(opinion, Suspicion)]
    tried: list[Trial] = []
    undecided: list[Open] = []
    # Weak suspicions come last: an experiment is spent on them only while nothing is established.
    for cause, suspicion in sorted(suspects, key=lambda suspect: suspect[1].weak):
        established = _established(_judged(tried, case))
        explained = [other for other in established if other in cause.yields_to]
        flattered = [other for other in established if other in _inflation() and cause.group in GAIN_GROUPS]
        if explained:
            ruled_out.append((cause.id, f"{explained[0]} explains the same evidence"))
        elif flattered:
            text = (
                f"{suspicion.because}; not tested while {flattered[0]} flatters every AUC: repair that first"
            )
            undecided.append(Open(cause.id, text))
        elif suspicion.weak and [other for other in established if not (cause.rival and other in _rivals())]:
            text = f"{suspicion.because}; not tested, since {established[0]} is established"
            undecided.append(Open(cause.id, text, suspicion.needs))
        else:
            shown = cause.experiment is None or suspicion.direct
            proof = None if shown else experiment(trials, str(cause.experiment))
            tried.append((cause, suspicion, _confirmed(cause, proof, trials)))
    judged = _strongest_rival(_judged(tried, case), case)
    named = [found for found in judged if isinstance(found, NamedCause)]
    undecided = [*(found for found in judged if isinstance(found, Open)), *undecided]
    ruled_out += [
        (cause.id, found.because)
        for (cause, _, _), found in zip(tried, judged, strict=True)
        if isinstance(found, RuledOut)
    ]
    named.sort(key=lambda cause: ("established", "likely", "possible").index(cause.status))
    recommended = _combined_patch(named)
    after = trials.recommended(recommended) if recommended is not None else None
    healthy = _healthy(case, named)
    return VerdictResult(
        healthy=healthy,
        complete=not missing,
        summary=_summary(healthy, case, named, undecided, missing),
        causes=tuple(named),
        ruled_out=tuple(ruled_out),
        undecided=tuple(undecided),
        arms=trials.arm_table(),
        findings=tuple(finding for step in case.evidence.values() for finding in step.findings),
        recommended=recommended,
        recommended_auc=after.auc if after else None,
        missing_steps=missing,
        gates=gates(case),
    )


def _confirmed(cause: Cause, proof: Comparison | None, trials: Trials) -> Comparison | None:
    """The proof with a second training from another seed, where the student learns and could just have been unlucky.

    The fix is applied to the user's own training there. A fix that is no setting cannot be tried again so.
    """
    patch = cause.fix(trials.case).settings
    if proof is None or proof.direct or proof.confirmation is not None:
        return proof
    gained = proof.p < SIGNIFICANCE and proof.delta > 0
    if not (gained and patch and cause.proof == "gain" and trials.case.status_quo_learns):
        return proof
    return replace(proof, confirmation=trials.again(cause.id, patch))


Trial = tuple[Cause, Suspicion, Comparison | None]
"""A suspected cause and what its experiment showed."""


def _judged(tried: list[Trial], case: Case) -> list[NamedCause | Open | RuledOut]:
    """Every trial judged, with Holm's correction over all experiments that were made."""
    p = holm({cause.id: proof.p for cause, _, proof in tried if proof is not None})
    return [_judge(cause, suspicion, proof, p.get(cause.id, 1.0), case) for cause, suspicion, proof in tried]


def _strongest_rival(
    judged: list[NamedCause | Open | RuledOut], case: Case
) -> list[NamedCause | Open | RuledOut]:
    """Of the causes that make a student learn worse keep the one whose removal brings most.

    Another learning rate, a longer schedule or a gentler teacher softens many a failure. One whose AUC stays
    `CLEARLY_LESS` below the best is ruled out; one that is about as good is named as equivalent. After a handful of
    steps, though, everything that speeds the training helps: then it is too short.
    """
    rivals = [
        found for found in judged if isinstance(found, NamedCause) and found.id in _rivals() and found.proof
    ]
    if len(rivals) < 2:
        return judged
    reached = {found.id: found.proof.after.auc.value for found in rivals if found.proof}
    hurried = "undertrained" if "undertrained" in reached and _few_steps(case) else None
    top = reached[hurried] if hurried else max(reached.values())
    level = [found for found in rivals if abs(reached[found.id] - top) < CLEARLY_LESS]
    best = min(level, key=lambda found: (found.id != hurried, found.status != "established"))
    told = "The interventions bring the same; apply one, run again, and see whether the other still helps."
    others = tuple(found.id for found in level if found is not best)

    def keep(found: NamedCause | Open | RuledOut) -> NamedCause | Open | RuledOut:
        if found is best and others:
            return replace(
                best, equivalent=(*best.equivalent, *others), told_apart_by=best.told_apart_by or told
            )
        if isinstance(found, NamedCause) and found in rivals and found is not best:
            return RuledOut(
                f"{found.because}; but {best.id} explains it: "
                f"AUC {reached[best.id]:.2f} against {reached[found.id]:.2f}"
            )
        return found

    return [keep(found) for found in judged]


def _few_steps(case: Case) -> bool:
    t, counts = case.settings.training, case.finding("audit.imbalance")
    n_train = counts.n if counts is not None and counts.n else 0
    return 0 < math.ceil(n_train / t.batch_size) * (t.epochs_s1 + t.epochs_s2) < FEW_STEPS


def _established(judged: list[NamedCause | Open | RuledOut]) -> list[str]:
    return [found.id for found in judged if isinstance(found, NamedCause) and found.status == "established"]


def _judge(
    cause: Cause, suspicion: Suspicion, proof: Comparison | None, p: float, case: Case
) -> NamedCause | Open | RuledOut:
    """Evidence and experiment together: established, likely, possible, open or ruled out."""

    def name(status: Status) -> NamedCause:
        return NamedCause(
            cause.id,
            status,
            cause.sentence,
            suspicion.because,
            tuple(finding_id for finding_id in suspicion.evidence if case.finding(finding_id)),
            cause.fix(case),
            _kind(cause, suspicion, proof),
            proof,
            cause.equivalent,
            cause.told_apart_by,
        )

    if cause.experiment is None or suspicion.direct:
        return Open(cause.id, suspicion.because, suspicion.needs) if suspicion.weak else name("established")
    if proof is None:
        return Open(cause.id, f"{suspicion.because}; its experiment was not run", suspicion.needs)
    effect = _effect(cause, suspicion, proof, p, case)
    if effect == "shown":
        return name("likely" if suspicion.weak else "established")
    if effect == "absent":
        learns = f"; your own training reaches {_reached(case.arms.get('status_quo'))}"
        return RuledOut(
            f"{suspicion.because}; but {proof.in_full()}{learns if case.status_quo_learns else ''}"
        )
    cured = cause.proof != "gain" or proof.after.auc.value > case.limits.baseline_auc
    promising = (
        cured
        and not _falls_short(cause, proof, case)
        and proof.p < SIGNIFICANCE
        and abs(proof.delta) >= MATERIAL_GAIN
    )
    if suspicion.weak or case.status_quo_learns or not promising:
        return Open(
            cause.id, f"{suspicion.because}; {proof.in_full()}", {**_images_for(proof), **suspicion.needs}
        )
    return name("likely")


def _kind(cause: Cause, suspicion: Suspicion, proof: Comparison | None) -> str:
    """The kind of proof that there is: a recording shows directly what else an experiment has to."""
    if suspicion.direct:
        return "direct"
    return "gain" if cause.proof == "direct" and proof is not None and not proof.direct else cause.proof


def _effect(cause: Cause, suspicion: Suspicion, proof: Comparison, p: float, case: Case) -> str:
    """`shown`, `absent` or `unclear`: what the experiment says, by its displayed interval and Holm's p."""
    falls = cause.proof == "inflation_removed"
    low, high = (-proof.ci[1], -proof.ci[0]) if falls else proof.ci
    delta = -proof.delta if falls else proof.delta
    learns = proof.before.auc.ci[0] > case.limits.baseline_auc
    bar = HEALTHY_GAIN if cause.proof == "gain" and learns and not suspicion.seen else 0.0
    status_quo = case.arms.get("status_quo")
    elsewhere = cause.proof == "gain" and proof.before.arm != "status_quo" and case.status_quo_learns
    if elsewhere and status_quo is not None and proof.after.auc.value < status_quo.value + HEALTHY_GAIN:
        return "absent"  # what another training gains explains nothing that the user's own does not lack
    # A gain that stays below `baseline_auc` has only moved towards a coin; it repairs nothing.
    cured = cause.proof != "gain" or proof.after.auc.ci[0] > case.limits.baseline_auc
    cured = cured and not _falls_short(cause, proof, case)
    if low > bar and delta >= MATERIAL_GAIN and p < SIGNIFICANCE:
        return "shown" if cured and _again(proof, bar) else "unclear"
    return "absent" if high < MATERIAL_GAIN or (low > 0 and bar > 0) else "unclear"


def _falls_short(cause: Cause, proof: Comparison, case: Case) -> bool:
    """Whether repairing the teacher brings less than half of what the student gains without any teacher."""
    labels = case.arms.get("bce_only")
    if cause.group != "teacher" or proof.before.arm != "status_quo" or labels is None or not labels.defined:
        return False
    return proof.delta < (labels.value - proof.before.auc.value) / 2


def _again(proof: Comparison, bar: float) -> bool:
    """Whether the confirming training, if any, gained as well: an interval tells of images, not of seeds."""
    second = proof.confirmation
    return second is None or (second.ci[0] > bar and second.delta >= MATERIAL_GAIN)


GATES: tuple[tuple[str, str, Answer], ...] = (
    ("Can every image be read?", "audit.unreadable", "no"),
    ("Is val free of pictures from train?", "audit.leakage", "no"),
    ("Do the files hide the label?", "audit.shortcut.joint", "no"),
    ("Are the teacher's weights loaded?", "teacher.weights_loaded", "yes"),
    ("Is the teacher's preprocessing its own?", "teacher.preprocessing", "no"),
    ("Does the teacher know these images?", "teacher.auc", "yes"),
    ("Can the student learn from labels alone?", "baseline.auc", "yes"),
    ("Do teacher and student share a scale?", "logits.scale_ratio", "no"),
    ("Does the configured training learn?", "distillation.status_quo", "yes"),
)
"""The order of decision: the question, the finding that answers it, and the answer that passes."""


def gates(case: Case) -> tuple[Gate, ...]:
    """How the run answers each question of `GATES`."""
    return tuple(_gate(case, *gate) for gate in GATES)


def _gate(case: Case, question: str, finding_id: str, passes: Answer) -> Gate:
    found = case.finding(finding_id)
    if found is None:
        return Gate(question, "not asked", "its step has not run")
    value = f"{found.value:.2f}" if found.value is not None else found.answer
    answer = (
        f"{value} [{found.ci[0]:.2f}, {found.ci[1]:.2f}]" if found.ci and found.value is not None else value
    )
    if found.answer == "undecided":
        return Gate(question, "undecided", answer)
    return Gate(question, "passed" if found.answer == passes else "failed", answer)


HEADLINES = {True: ("ok", "Healthy"), False: ("error", "Cause found"), None: ("note", "Not decided")}
"""Severity and title of the answer, by `healthy`."""


def patch_text(result: VerdictResult) -> str:
    """The recommended settings patch as YAML, ready to paste."""
    if result.recommended is None:
        return "# no setting needs to change"
    return yaml.safe_dump(result.recommended, sort_keys=False, allow_unicode=True)


def describe_gates(result: VerdictResult) -> str:
    """The chain in words: the text alternative of its picture."""
    return "; ".join(f"{gate.question} {gate.state}, {gate.answer}" for gate in result.gates)


def cause_table(result: VerdictResult) -> pd.DataFrame:
    """One row a named cause: what it says, how sure it is, why, and what its experiment showed."""
    rows = [
        (
            cause.id,
            cause.status,
            cause.because,
            cause.proof.in_full() if cause.proof else "shown without training",
        )
        for cause in result.causes
    ]
    return pd.DataFrame(rows, columns=["cause", "status", "evidence", "experiment"])


def ruled_out_table(result: VerdictResult) -> pd.DataFrame:
    """One row a cause that the evidence contradicts."""
    return pd.DataFrame(result.ruled_out, columns=["cause", "because"])


def open_table(result: VerdictResult) -> pd.DataFrame:
    """One row a cause that stays open, with the images per class that would decide it."""
    rows = [(item.id, item.text, item.needs.get("n_val_per_class")) for item in result.undecided]
    return pd.DataFrame(rows, columns=["cause", "what is known", "validation images per class needed"])


def to_do(result: VerdictResult) -> str:
    """The fixes as sentences, settings first, then what is left to do by hand; paragraphs by blank lines."""
    if not result.causes:
        return (
            "Nothing needs to be repaired."
            if result.healthy
            else "Gather what would decide the open questions below."
        )
    parts = []
    for cause in result.causes:
        parts.append(f"{cause.id} ({cause.status}): {cause.fix.text}")
        parts.extend(cause.fix.actions)
        if cause.equivalent:
            parts.append(
                f"Cannot be told from {', '.join(cause.equivalent)} by numbers. {cause.told_apart_by}"
            )
    return "\n\n".join(parts)


def _images_for(proof: Comparison) -> dict[str, int]:
    """How many validation images a class would show a material gain with 80% power."""
    delta = max(abs(proof.delta), MATERIAL_GAIN)
    return {"n_val_per_class": n_for_gain(delta, proof.before.auc.value, proof.correlation)}


def _healthy(case: Case, named: list[NamedCause]) -> bool | None:
    if any(cause.status in ("established", "likely") for cause in named):
        return False
    return True if case.status_quo_learns else None


def _combined_patch(named: list[NamedCause]) -> dict[str, Any] | None:
    """The settings patches of the named causes, the earlier cause winning where they disagree."""
    patches = [cause.fix.settings for cause in named if cause.status != "possible" and cause.fix.settings]
    merged: dict[str, Any] = {}
    for patch in reversed(patches):
        merged = _overlay(merged, patch)
    return merged or None


def _overlay(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in patch.items():
        old = result.get(key)
        result[key] = (
            _overlay(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
        )
    return result


def _summary(
    healthy: bool | None, case: Case, named: list[NamedCause], undecided: list[Open], missing: tuple[str, ...]
) -> str:
    status_quo = case.arms.get("status_quo")
    reached = _reached(status_quo)
    if named and healthy is False:
        first = named[0]
        hedge = "" if first.status == "established" else "Probably: "
        proof = f" {first.proof.sentence()[0].upper()}{first.proof.sentence()[1:]}." if first.proof else ""
        more = f" Also: {', '.join(cause.id for cause in named[1:])}." if len(named) > 1 else ""
        return f"{hedge}{first.sentence}{proof}{more}"
    if healthy:
        return f"The training is healthy: the student reaches {reached}, and no cause of failure was found."
    if missing:
        return f"Not decided: the steps {', '.join(missing)} have not run."
    if status_quo is None:
        return "Not decided: the status-quo student could not be trained."
    still_open = ", ".join(item.id for item in undecided) or "no known cause fits the evidence"
    return f"Not decided: the student reaches {reached}; still open: {still_open}."


def _reached(arm: Auc | None) -> str:
    if arm is None or not arm.defined:
        return "no usable scores"
    return f"AUC {arm.value:.2f} [{arm.ci[0]:.2f}, {arm.ci[1]:.2f}]"


def _recommended_yaml(settings: Settings, verdict: VerdictResult) -> str:
    """The whole settings with the fix applied, headed by what was changed and what is left to do by hand."""
    lines = [f"# {verdict.summary}"]
    for cause in verdict.causes:
        lines.append(f"# {cause.id} ({cause.status}): {cause.fix.text}")
        lines.extend(f"#   to do: {action}" for action in cause.fix.actions)
    if verdict.recommended is None:
        lines.append("# No setting needs to change; these are the settings of the run.")
    patched = settings.with_overrides(dotted(verdict.recommended)) if verdict.recommended else settings
    comments = "\n".join(line.replace("\n", " ").replace("\r", " ") for line in lines)
    return f"{comments}\n{patched.to_yaml()}"


def _cause_dict(cause: NamedCause) -> dict[str, Any]:
    return {
        "id": cause.id,
        "equivalent": list(cause.equivalent),
        "status": cause.status,
        "evidence": list(cause.evidence),
        "fix": {"text": cause.fix.text, "settings": cause.fix.settings, "actions": list(cause.fix.actions)},
        "proof": _proof_dict(cause.kind, cause.proof),
    }


def _proof_dict(kind: str, proof: Comparison | None) -> dict[str, Any]:
    if proof is None:
        return {"kind": kind, "before": None, "after": None, "delta": None, "delta_ci": None, "p": None}

    def side(arm: str, auc: Auc) -> dict[str, Any]:
        return {"arm": arm, "auc": auc.value, "ci": list(auc.ci)}

    return {
        "kind": kind,
        "before": side(proof.before.arm, proof.before.auc),
        "after": side(proof.after.arm, proof.after.auc),
        "delta": proof.delta,
        "delta_ci": list(proof.ci),
        "p": proof.p,
    }
