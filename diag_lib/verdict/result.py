"""What a verdict says, and how it stands in `verdict.json` and `recommended.yaml`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diag_lib.causes import Status
from diag_lib.evidence import Finding, plain
from diag_lib.experiments import Comparison
from diag_lib.fixes import Fix
from diag_lib.settings import Settings, dotted
from diag_lib.statistics import Auc
from diag_lib.verdict.gates import Gate

SCHEMA = "diag/verdict/1"


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
    """A cause that the evidence leaves open, with what would decide it; `proof` is the experiment that did not.

    `seen`: the mistake itself stands in the settings or the files; open is what it costs.
    """

    id: str
    text: str
    needs: Mapping[str, int] = field(default_factory=dict)
    proof: Comparison | None = None
    seen: bool = False


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


def recommended_yaml(settings: Settings, verdict: VerdictResult) -> str:
    """The whole settings with the fix applied, headed by what was changed and what is left to do by hand."""
    lines = [f"# {verdict.summary}"]
    for cause in verdict.causes:
        lines.append(f"# {cause.id} ({cause.status}): {cause.fix.text}")
        lines.extend(f"#   to do: {action}" for action in cause.fix.actions)
    if verdict.recommended is None:
        found = "No setting needs to change" if verdict.healthy else "No change of settings is proven to help"
        lines.append(f"# {found}; these are the settings of the run.")
    patched = settings
    if verdict.recommended:  # the history tells of the settings as they were
        patched = settings.with_overrides({**dotted(verdict.recommended), "history": None})
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
