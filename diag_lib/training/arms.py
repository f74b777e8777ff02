"""Which trainings are compared, and which of them does the budget allow?

An arm is the user's settings with a few keys replaced; everything else (start, batches, augmentation,
teacher) is shared, so that a difference between two arms is the effect of those keys.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diag_lib.errors import UserError
from diag_lib.settings import Settings

Overrides = Mapping[str, Any]

_DISTILLATION = "training.distillation."


@dataclass(frozen=True)
class Arm:
    """One training: dotted settings keys that it replaces, and a factor on both learning rates."""

    id: str
    overrides: Overrides = field(default_factory=dict)
    lr_factor: float = 1.0


def _weights(alpha: float) -> dict[str, float]:
    return {_DISTILLATION + "alpha_distill": alpha, _DISTILLATION + "alpha_task": round(1 - alpha, 10)}


def _normalized(how: str) -> dict[str, str]:
    return {_DISTILLATION + "normalize": how}


# Only what is trained; the learning rates stay, so that the arm answers for frozen parameters alone.
_UNFROZEN = {"student.trainable_s1": ["all"], "student.trainable_s2": ["all"]}

ARMS: dict[str, Arm] = {
    arm.id: arm
    for arm in (
        Arm("status_quo"),
        Arm("bce_only", _weights(0.0)),
        *(Arm(f"alpha_{alpha:g}", _weights(alpha)) for alpha in (0.01, 0.05, 0.1, 0.2, 0.3, 0.5)),
        Arm("centered", _normalized("center")),
        Arm("standardized", _normalized("standardize")),
        # A robust scale alone would leave a few enormous patches ruling a squared loss all the more.
        Arm("robust", {**_normalized("robust"), _DISTILLATION + "loss": "huber"}),
        Arm("unfrozen", _UNFROZEN),
        Arm("unfrozen_bce", {**_UNFROZEN, **_weights(0.0)}),
        Arm("lr_x0.1", lr_factor=0.1),
        Arm("lr_x10", lr_factor=10.0),
        Arm("unfrozen_lr_x10", _UNFROZEN, lr_factor=10.0),
    )
}

CORE = ("status_quo", "bce_only", "standardized", "alpha_0.01")
PRIORITY = (
    *CORE,
    "recommended",  # whatever the verdict recommends; its place in the budget is kept free
    "unfrozen",
    "unfrozen_bce",
    "centered",
    "robust",
    "lr_x10",
    "alpha_0.1",
    "recommended@seed1",
    "status_quo@seed1",
    "lr_x0.1",
    "alpha_0.05",
    "alpha_0.2",
    "alpha_0.3",
    "alpha_0.5",
    "unfrozen_lr_x10",
)
"""The order in which the budget admits arms; any other arm comes after them, in alphabetical order."""

RESERVED = ("recommended", "recommended@seed1")
"""Arms whose settings the evidence decides; they are paid for even when they turn out to be another arm."""

EXPLORATORY = frozenset({"alpha_0.05", "alpha_0.1", "alpha_0.2", "alpha_0.3"})
"""Arms that stop when they are clearly lost (see `loop.Student`): the middle rungs of the ladder of weights, from
which the best is chosen and by which alone no cause is proven. What is lost cannot be the best."""

SEEDED = re.compile(r"(?P<base>.+)@seed(?P<k>[1-9]\d{0,5})")
_SAFE_ID = re.compile(r"[A-Za-z0-9][\w.@+-]{0,79}")


def arm_settings(settings: Settings, arm_id: str, extra: Mapping[str, Overrides] | None = None) -> Settings:
    """The settings that an arm is trained with (before the budget shortens the schedule).

    `extra` defines further arms, id to overrides; `<id>@seed<k>` is arm `<id>` with `training.seed` + k.
    Raises UserError for an unknown id.
    """
    seeded = SEEDED.fullmatch(arm_id)
    base = seeded["base"] if seeded else arm_id
    arm = Arm(base, extra[base]) if extra and base in extra else ARMS.get(base)
    if arm is None or not _SAFE_ID.fullmatch(arm_id):
        known = ", ".join([*ARMS, *(extra or {})])
        raise UserError(f"arm {arm_id!r} does not exist: choose from {known}, or <id>@seed<k>")
    changed = settings.with_overrides(arm.overrides) if arm.overrides else settings
    t = changed.training
    more: dict[str, Any] = {}
    if arm.lr_factor != 1.0:
        more |= {f"training.{key}": getattr(t, key) * arm.lr_factor for key in ("lr_s1", "lr_s2")}
    if seeded:
        more["training.seed"] = (t.seed + int(seeded["k"])) % 2**32
    return changed.with_overrides(more) if more else changed


def effective(settings: Settings) -> dict[str, Any]:
    """The parts of the settings that a training's result depends on, in one spelling.

    Two arms with equal `effective` settings are the same training: without distillation the teacher, the
    distillation loss and its normalisation do not matter, without a stage neither do its learning rate and
    parts.
    """
    tree = settings.to_dict()
    parts = {key: tree[key] for key in ("dataset", "teacher", "student", "pooling", "training")}
    training, student, distillation = parts["training"], parts["student"], parts["training"]["distillation"]
    if distillation["alpha_distill"] == 0:
        parts.pop("teacher")
        training["distillation"] = {"alpha_distill": 0.0, "alpha_task": distillation["alpha_task"]}
    for stage in ("s1", "s2"):
        names = student[f"trainable_{stage}"]
        student[f"trainable_{stage}"] = ["all"] if "all" in names else sorted(set(names))
        if training[f"epochs_{stage}"] == 0:
            student.pop(f"trainable_{stage}")
            training.pop(f"lr_{stage}")
    return parts


@dataclass(frozen=True)
class Plan:
    """What the budget allows. All arms have the same schedule.

    `links` maps an arm to the earlier arm that is the same training; `not_run` says why a requested arm is
    left out; `image_steps` is the cost of one arm, `spent` that of all planned arms, `over_budget` is set
    when even one epoch a stage of the core arms exceeds the budget.
    """

    epochs_s1: int
    epochs_s2: int
    schedule_fraction: float
    image_steps: int
    budget: int
    spent: int
    over_budget: bool
    admitted: tuple[str, ...]
    links: dict[str, str]
    not_run: dict[str, str]

    def shorten(self, settings: Settings) -> Settings:
        """The settings with the plan's schedule."""
        t = settings.training
        if (t.epochs_s1, t.epochs_s2) == (self.epochs_s1, self.epochs_s2):
            return settings
        return settings.with_overrides(
            {"training.epochs_s1": self.epochs_s1, "training.epochs_s2": self.epochs_s2}
        )


def plan(
    settings: Settings, n_train: int, ids: Sequence[str], extra: Mapping[str, Overrides] | None = None
) -> Plan:
    """Which of the arms `ids` are trained, on which schedule, with n_train images an epoch.

    The same for every step of a run, whatever has been trained before: arms are admitted in the order of
    `PRIORITY` until the budget is used up, and arms of that list are counted whether somebody asks for them
    or not. When the core arms alone exceed the budget, the epochs of every arm shrink by one common factor
    (to at least one epoch a stage).
    """
    every = [*PRIORITY, *sorted({*ids, *(extra or {})} - set(PRIORITY))]
    known = {arm: effective(arm_settings(settings, arm, extra)) for arm in every if _is_known(arm, extra)}
    links = _links(known)
    t = settings.training
    core = [arm for arm in CORE if arm not in links]
    wanted = len(core) * n_train * (t.epochs_s1 + t.epochs_s2)
    factor = min(1.0, settings.image_steps / max(1, wanted))
    epochs = [max(1, int(e * factor + 1e-9)) if e else 0 for e in (t.epochs_s1, t.epochs_s2)]
    cost = n_train * sum(epochs)
    spent, admitted, not_run = 0, [], {}
    for arm in every:
        if arm in links and arm not in RESERVED:
            continue
        if arm in core or spent + cost <= settings.image_steps:
            spent += cost
            admitted.append(arm)
    links = {arm: target for arm, target in links.items() if target in admitted or arm not in admitted}
    admitted += [arm for arm, target in links.items() if target in admitted and arm not in admitted]
    budget = settings.image_steps
    for arm in ids:
        arm_settings(settings, arm, extra)  # an unknown id is the caller's mistake
        if arm not in admitted:
            not_run[arm] = (
                f"the {settings.runtime.budget} budget of {budget:,} image-steps is used up by arms that "
                f"come first ({cost:,} an arm); set runtime.budget to a larger one"
            )
    return Plan(
        epochs_s1=epochs[0],
        epochs_s2=epochs[1],
        schedule_fraction=sum(epochs) / (t.epochs_s1 + t.epochs_s2),
        image_steps=cost,
        budget=budget,
        spent=spent,
        over_budget=spent > budget,
        admitted=tuple(admitted),
        links=links,
        not_run=not_run,
    )


def _is_known(arm: str, extra: Mapping[str, Overrides] | None) -> bool:
    base = arm.split("@seed")[0]
    return base in ARMS or base in (extra or {})


def _links(known: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Arms that are the same training as an earlier one; reserved arms link to others, never the reverse."""
    links: dict[str, str] = {}
    first: list[tuple[dict[str, Any], str]] = []
    for arm in sorted(known, key=lambda arm: arm in RESERVED):
        same = next((other for parts, other in first if parts == known[arm]), None)
        if same is None:
            first.append((known[arm], arm))
        else:
            links[arm] = same
    return links


def alpha_ladder(arms: Iterable[str]) -> dict[str, float]:
    """The alpha_distill of every `alpha_*` arm among `arms`, ascending."""
    ladder = {
        arm: float(arm.removeprefix("alpha_")) for arm in arms if arm in ARMS and arm.startswith("alpha_")
    }
    return dict(sorted(ladder.items(), key=lambda item: item[1]))
