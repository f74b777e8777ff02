"""What did a trained arm leave behind, and is it still valid?"""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from diag_lib.evidence import RunFolder
from diag_lib.files import whole
from diag_lib.images import ImageSet
from diag_lib.models import PatchModel, build, save_weights
from diag_lib.settings import Settings
from diag_lib.statistics import Auc, auc

SCHEMA = "diag/arm/1"
CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class ArmResult:
    """One trained arm.

    `overrides` are the dotted settings keys in which it differs from the run's settings, `settings` what it
    was trained with. `history` has the lists stage, train_loss, train_distill_loss, train_task_loss,
    val_loss (BCE), val_acc, val_auc; distillation losses are NaN where none was computed. `val_scores` and
    `train_scores` have the columns path, label, source, half (val only), score: raw image logits after the
    last epoch, float64. `auc` is that of all validation images. `evidence` holds gradient signals, fit to
    the teacher, parameter moves. `linked_to` names the arm that is the same training; `stopped` says why it
    ended early, if it did.
    """

    id: str
    overrides: dict[str, Any]
    settings: dict[str, Any]
    history: dict[str, list[float]]
    val_scores: pd.DataFrame
    train_scores: pd.DataFrame
    auc: Auc
    seed: int
    image_steps: int
    seconds: float
    schedule_fraction: float
    evidence: dict[str, Any] = field(default_factory=dict)
    stopped: str | None = None
    linked_to: str | None = None
    folder: Path = field(default_factory=Path)
    seeds: int = 1

    def auc_on(self, half: str) -> Auc:
        """The AUC on validation half "A" (which may choose) or "B" (which proves)."""
        chosen = self.val_scores[self.val_scores["half"] == half]
        return auc(chosen["label"], chosen["score"], nan="undefined")

    @property
    def train_auc(self) -> Auc:
        """The AUC on the training images."""
        return auc(self.train_scores["label"], self.train_scores["score"], nan="undefined")

    def model(self, settings: Settings) -> PatchModel:
        """The trained student, in eval mode on the CPU; `settings` are the run's."""
        kept = self.settings
        size = {"dataset.image_size": kept["dataset"]["image_size"]}
        student, file = kept["student"], self.folder / "student.safetensors"
        built, _ = build(student["arch"], file, student["preprocess"], settings=settings.with_overrides(size))
        return built


def is_current(run: RunFolder, arm: str, key: str) -> bool:
    """Whether the arm's folder holds a finished training with this key."""
    kept = run.read_json(f"artifacts/arms/{arm}/settings.json")
    done = (run.arm_dir(arm) / "result.json").is_file() or (
        isinstance(kept, dict) and bool(kept.get("linked_to"))
    )
    return done and isinstance(kept, dict) and kept.get("schema") == SCHEMA and kept.get("key") == key


def load_arm(run: RunFolder, arm: str) -> ArmResult | None:
    """The finished arm of a run folder (a linked one under its own id), or None when there is none."""
    kept = run.read_json(f"artifacts/arms/{arm}/settings.json")
    if not isinstance(kept, dict) or kept.get("schema") != SCHEMA:
        return None
    holder = kept.get("linked_to") or arm
    folder = run.arm_dir(holder)
    result = run.read_json(f"artifacts/arms/{holder}/result.json")
    history = run.read_json(f"artifacts/arms/{holder}/history.json")
    if not isinstance(result, dict) or not isinstance(history, dict):
        return None
    try:
        val_scores, train_scores = (
            pd.read_parquet(folder / f"{name}_scores.parquet") for name in ("val", "train")
        )
    except (OSError, ValueError):
        return None
    measured = auc(val_scores["label"], val_scores["score"], nan="undefined")
    return ArmResult(
        id=arm,
        overrides=kept["overrides"],
        settings=kept["settings"],
        history=_with_nan(history),
        val_scores=val_scores,
        train_scores=train_scores,
        auc=measured,
        linked_to=kept.get("linked_to"),
        folder=folder,
        **{name: result[name] for name in _FROM_RESULT},
    )


_FROM_RESULT = ("seed", "image_steps", "seconds", "schedule_fraction", "evidence", "stopped")


def _with_nan(history: dict[str, list[float | None]]) -> dict[str, list[float]]:
    return {key: [float("nan") if v is None else v for v in values] for key, values in history.items()}


def describe_arm(
    run: RunFolder,
    arm: str,
    key: str,
    overrides: dict[str, Any],
    effective: dict[str, Any],
    linked_to: str | None,
) -> None:
    """Write the arm's settings.json."""
    text = {
        "schema": SCHEMA,
        "key": key,
        "linked_to": linked_to,
        "overrides": overrides,
        "settings": effective,
    }
    run.write_json(f"artifacts/arms/{arm}/settings.json", text)


def write_scores(
    path: Path, images: ImageSet, scores: npt.NDArray[np.float64], halves: npt.NDArray[np.str_] | None
) -> None:
    """Write one row an image: path, label, source, (half,) score."""
    table = images.frame[["path", "label", "source"]].copy()
    if halves is not None:
        table["half"] = halves
    table["score"] = scores
    with whole(path) as partial:
        table.to_parquet(partial, index=False)


def write_student(model: PatchModel, folder: Path) -> None:
    """Write the trained student's tensors."""
    save_weights(model, folder / "student.safetensors")


def save_checkpoint(folder: Path, key: str, state: dict[str, Any]) -> None:
    """Keep a training's state after an epoch (atomically; read back with weights_only=True)."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: value for name, value in state.items() if name not in _JSON_PARTS}
    text = json.dumps({name: state[name] for name in _JSON_PARTS})
    content = io.BytesIO()  # written at once: a full disk is then an OSError that says so
    torch.save({"key": key, "json": text, **plain}, content)
    with whole(folder / CHECKPOINT) as partial:
        partial.write_bytes(content.getvalue())


def load_checkpoint(folder: Path, key: str) -> dict[str, Any] | None:
    """The state of a training with this key that did not finish, or None."""
    path = folder / CHECKPOINT
    try:
        content = path.read_bytes()
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if state.pop("key") != key:
            return None
        return {**state, **json.loads(state.pop("json"))}
    except FileNotFoundError:
        return None
    except Exception:  # torn or foreign in any way: train anew
        return None


_JSON_PARTS = ("history", "signals")
