"""Which root causes are known, what speaks for and against each, what proves it, and what is the cure?

The table `CAUSES` is the medicine: one entry a cause, in the order of decision (integrity of the data,
wiring, teacher, labels, optimisation, loss). A screen reads evidence only; the experiment named beside it
is run by the verdict step and turns a suspicion into a proof.
"""

from dataclasses import dataclass
from typing import Literal

from diag_lib import screens
from diag_lib.errors import UserError
from diag_lib.fixes import (
    Cure,
    Fix,
    distillation_patch,
    fix_in_code,
    fix_listed_files,
    measured_fix,
    plain_fix,
)
from diag_lib.screens import LARGER_STUDENT, Screen

Status = Literal["established", "likely", "possible"]
ProofKind = Literal["gain", "inflation_removed", "direct"]


@dataclass(frozen=True)
class Cause:
    """One row of the table.

    `rival`: it makes a student learn worse, like other causes do; of several, the one that brings most is named.
    `experiment` names an entry of `diag_lib.experiments.EXPERIMENTS` (or an arm as ``arm:<id>``), None for a
    direct proof. `yields_to` lists causes that, once established, explain the same evidence. `stands_in`: where the fix
    is no setting, the entry of `diag_lib.experiments.REPAIRS` that takes the cause out of play for the second look.
    """

    id: str
    group: Literal["data", "teacher", "loss", "optimisation", "model"]
    sentence: str
    screen: Screen
    experiment: str | None
    proof: ProofKind
    fix: Cure
    equivalent: tuple[str, ...] = ()
    yields_to: tuple[str, ...] = ()
    told_apart_by: str = ""
    rival: bool = False
    stands_in: str | None = None


_EVAL = "call teacher.eval() before every pass, also where train() of the whole model is called later"
SKIP_TEACHER = distillation_patch(alpha_distill=0.0, alpha_task=1.0)

UNHEARD_TEACHER = (
    "teacher_weights_not_loaded",
    "student_normalization",
    "teacher_train_mode",
    "teacher_stale_cache",
    "wrong_activation",
)
"""With one of these the teacher was never really asked: what its scores seem to say needs no further cause.

A sigmoid flattens logits that lie far from zero until nothing is left to rank.
"""

SPOILED = (
    "corrupt_images",
    "student_normalization",
    "detached_graph",
    "labels_shuffled",
    "labels_inverted_train",
)
"""With one of these no training can go well: what other settings change needs no further cause."""

SLIPS = ("numeric_overflow", "loss_sign", "loss_reduction", "frozen_parameters")
"""Slips in the code of a loop, beside which a learning rate that looks odd says nothing."""

CAUSES: list[Cause] = [
    Cause(
        id="corrupt_images",
        group="data",
        sentence="Too many image files cannot be decoded completely.",
        screen=screens.corrupt_images,
        experiment=None,
        proof="direct",
        fix=fix_listed_files(
            "audit.unreadable", "Replace or remove the unreadable files.", "restore the files or drop them"
        ),
    ),
    Cause(
        id="leakage",
        group="data",
        sentence="Validation pictures also stand in train, so the reported AUC flatters.",
        screen=screens.leakage,
        experiment="without_leaks",
        proof="inflation_removed",
        fix=fix_listed_files(
            "audit.leakage",
            "Exclude the leaked validation images and split by group.",
            "split again so that near-duplicates stay on one side",
        ),
        stands_in="leaks_excluded",
    ),
    Cause(
        id="shortcut",
        group="data",
        sentence="How the files were saved gives the label away, so the AUC measures the files' format or size.",
        screen=screens.shortcut,
        experiment="encoded_alike",
        proof="inflation_removed",
        fix=plain_fix(
            "Bring both classes to the same format, quality and size before training.",
            None,
            "re-encode both classes alike (same codec, quality, chroma subsampling, size)",
            "judge the detector only on images that were saved alike",
        ),
        stands_in="saved_alike",
    ),
    Cause(
        id="evaluation_bug",
        group="model",
        sentence="Your loop reports another AUC than its own validation scores have.",
        screen=screens.recorded("evaluation", needs_harm=False),
        experiment=None,
        proof="direct",
        fix=plain_fix(
            "Repair the evaluation: rank the raw logits against their own labels.",
            None,
            "gather logits and labels in the same loop, then take the rank AUC of the float64 logits",
        ),
    ),
    Cause(
        id="stale_checkpoint",
        group="model",
        sentence="Older weights than the trained ones are evaluated.",
        screen=screens.recorded("checkpoint", needs_harm=False),
        experiment=None,
        proof="direct",
        fix=plain_fix(
            "Evaluate the network that was just trained.",
            None,
            "check which object and which file the validation loads, and when it is written",
        ),
    ),
    Cause(
        id="numeric_overflow",
        group="optimisation",
        sentence="The recorded training is lost to numbers that are not finite.",
        screen=screens.recorded("overflow"),
        experiment=None,
        proof="direct",
        fix=plain_fix(
            "Train in fp32 or bf16, and take losses from logits.",
            None,
            "replace fp16 by bf16 or fp32, log(sigmoid(x)) by the with-logits losses",
            "clip gradients or lower the learning rate if it happens in fp32",
        ),
    ),
    Cause(
        id="loss_sign",
        group="loss",
        sentence="A loss enters with the wrong sign: each step makes it worse.",
        screen=screens.recorded("loss_sign"),
        experiment=None,
        proof="direct",
        fix=plain_fix("Turn the sign of that loss.", None, "look at the line that adds up the total loss"),
    ),
    Cause(
        id="loss_reduction",
        group="loss",
        sentence="A loss is summed over patches or batch in place of averaged, and outweighs the other.",
        screen=screens.recorded("loss_reduction"),
        experiment=None,
        proof="direct",
        fix=plain_fix("Average that loss.", None, 'set reduction="mean", or divide by the number of patches'),
    ),
    Cause(
        id="student_normalization",
        group="data",
        sentence="The pixels are normalised wrongly before they reach the networks.",
        screen=screens.student_normalization,
        experiment="normalized",
        proof="gain",
        fix=lambda case: Fix("Correct the normalisation.", screens.normalization_patch(case)),
    ),
    Cause(
        id="teacher_weights_not_loaded",
        group="teacher",
        sentence="The teacher's weights were not loaded: it answers like a random network.",
        screen=screens.weights_not_loaded,
        experiment=None,
        proof="direct",
        fix=plain_fix(
            "Load the teacher's weights completely, or train without it until they load.",
            SKIP_TEACHER,
            "set teacher.weights and teacher.arch so that no key is missing",
        ),
    ),
    Cause(
        id="teacher_train_mode",
        group="teacher",
        sentence="The teacher runs in train mode: its answer for an image depends on the batch.",
        screen=screens.teacher_train_mode,
        experiment="probe:teacher.train_mode",
        proof="direct",
        fix=plain_fix("Put the teacher into eval mode; until then train without it.", SKIP_TEACHER, _EVAL),
    ),
    Cause(
        id="teacher_stale_cache",
        group="teacher",
        sentence="The teacher's logits are not those of the image it is shown: a stale cache, or chance.",
        screen=screens.teacher_stale_cache,
        experiment=None,
        proof="direct",
        fix=plain_fix(
            "Compute the teacher's logits again; until then train without it.",
            SKIP_TEACHER,
            "key cached logits by the image's identity, the view and the weights, never by a running number",
        ),
    ),
    Cause(
        id="wrong_activation",
        group="loss",
        sentence="A loss takes the output of a sigmoid where it needs raw logits.",
        screen=screens.either(screens.recorded("activation"), screens.wrong_activation),
        experiment=None,
        proof="direct",
        fix=plain_fix("Give the losses raw logits.", None, "remove the sigmoid before the loss"),
    ),
    Cause(
        id="labels_inverted_train",
        group="data",
        sentence="The train labels are swapped: train says fake where val says real.",
        screen=screens.labels_inverted_train,
        experiment="train_labels_flipped",
        proof="gain",
        fix=plain_fix(
            "Flip the label mapping of train (real = 0, fake = 1).",
            None,
            "swap the class folders of train, or its labels in the manifest",
            "or for the workbook alone: let dataset.curation name "
            "artifacts/experiments/train_labels_flipped/curation.csv in the run folder",
        ),
        yields_to=("corrupt_images",),
        stands_in="labels_swapped_back",
    ),
    Cause(
        id="labels_shuffled",
        group="data",
        sentence="The train labels have nothing to do with the train images.",
        screen=screens.labels_shuffled,
        experiment="teacher_on_train",
        proof="direct",
        fix=plain_fix(
            "Join the labels to the images again.",
            None,
            "rebuild train from its source, checking that file names and labels are sorted alike",
            "then run the workbook again",
        ),
        yields_to=("corrupt_images",),
        stands_in="labels_unused",
    ),
    Cause(
        id="label_noise",
        group="data",
        sentence="Many train labels are wrong.",
        screen=screens.label_noise,
        experiment="teacher_on_train",
        proof="direct",
        fix=fix_listed_files(
            "audit.labels",
            "Correct or exclude the train images whose labels look wrong.",
            "write a curation.csv (path, action, label) and set dataset.curation",
        ),
        yields_to=("corrupt_images", "labels_inverted_train", "labels_shuffled"),
        stands_in="labels_unused",
    ),
    Cause(
        id="teacher_preprocessing",
        group="teacher",
        sentence="The teacher sees images prepared in another way than it was trained with.",
        screen=screens.teacher_preprocessing,
        experiment="teacher_variant",
        proof="gain",
        fix=measured_fix("teacher.preprocessing", "Give the teacher the preprocessing it was trained with."),
        yields_to=UNHEARD_TEACHER,
    ),
    Cause(
        id="teacher_inverted",
        group="teacher",
        sentence="Teacher and labels disagree about which class is fake.",
        screen=screens.teacher_inverted,
        experiment="arm:bce_only",
        proof="gain",
        fix=plain_fix(
            "Correct the polarity; until then train without the teacher.",
            SKIP_TEACHER,
            "look at 20 images of each class: if the folders are right, negate the teacher's logits",
            "if the folders are swapped, rename them (real = 0, fake = 1)",
        ),
        equivalent=("labels_inverted",),
        yields_to=(*UNHEARD_TEACHER, "teacher_preprocessing"),
        told_apart_by="Looking at 20 images of each class; numbers cannot tell which of the two is wrong.",
    ),
    Cause(
        id="teacher_domain_shift",
        group="teacher",
        sentence="The teacher knows nothing about these images; imitating it drowns the labels.",
        screen=screens.teacher_domain_shift,
        experiment="arm:bce_only",
        proof="gain",
        fix=plain_fix(
            "Skip the distillation, or fine-tune the teacher on this data first.",
            SKIP_TEACHER,
            "to keep the distillation instead: diag finetune-teacher YOUR.yaml, then diag run YOUR.yaml "
            "--set teacher.weights=finetuned",
        ),
        yields_to=(*UNHEARD_TEACHER, "teacher_preprocessing", "teacher_inverted"),
    ),
    Cause(
        id="patch_misalignment",
        group="teacher",
        sentence="The teacher's patch grid lies wrongly on the picture.",
        screen=screens.patch_misalignment,
        experiment=None,
        proof="direct",
        fix=plain_fix(
            "Realign the teacher's patch grid.",
            None,
            "check the order of height and width, flips and crops between the image and the teacher's map",
        ),
        yields_to=(*UNHEARD_TEACHER, "corrupt_images", "labels_inverted_train"),
    ),
    Cause(
        id="detached_graph",
        group="optimisation",
        sentence="Part of the student is cut off from the loss: no gradient arrives there.",
        screen=screens.either(screens.recorded("gradient_reach"), screens.detached_graph),
        experiment=None,
        proof="direct",
        fix=plain_fix(
            "Connect the student's layers to the loss again.",
            None,
            "look for detach(), no_grad(), .data or a conversion to numpy between these layers and the loss",
        ),
        yields_to=("corrupt_images", "numeric_overflow", "student_normalization"),
    ),
    Cause(
        id="frozen_parameters",
        group="optimisation",
        sentence="Layers that must learn are frozen.",
        screen=screens.either(screens.recorded("moved"), screens.from_finding("baseline.frozen")),
        experiment="probe:baseline.frozen",
        proof="gain",
        fix=fix_in_code(
            "moved",
            "Let every layer that should learn take part in your loop.",
            "give the optimiser all of the student's parameters, with requires_grad on",
            measured_fix("baseline.frozen", "Train all layers of the student."),
        ),
        yields_to=SPOILED,
        rival=True,
    ),
    Cause(
        id="lr_too_low",
        group="optimisation",
        sentence="The learning rate is too low for this budget.",
        screen=screens.either(screens.recorded_step("low"), screens.lr("low")),
        experiment="probe:baseline.learning_rate",
        proof="gain",
        fix=fix_in_code(
            "update_ratio",
            "Raise the learning rate of your loop.",
            "look at the rate that the optimiser has, and at what schedules and groups make of it",
            measured_fix("baseline.learning_rate", "Raise the learning rate."),
        ),
        yields_to=(*SPOILED, *SLIPS),
        rival=True,
    ),
    Cause(
        id="lr_too_high",
        group="optimisation",
        sentence="The learning rate is too high: the loss does not settle.",
        screen=screens.either(screens.recorded_step("high"), screens.lr("high")),
        experiment="probe:baseline.learning_rate",
        proof="gain",
        fix=fix_in_code(
            "update_ratio",
            "Lower the learning rate of your loop.",
            "look at the rate that the optimiser has, and at what schedules and groups make of it",
            measured_fix("baseline.learning_rate", "Lower the learning rate."),
        ),
        yields_to=(*SPOILED, *SLIPS),
        rival=True,
    ),
    Cause(
        id="undertrained",
        group="optimisation",
        sentence="The student was trained too briefly: it still improves.",
        screen=screens.undertrained,
        experiment="longer",
        proof="gain",
        fix=measured_fix("baseline.undertrained", "Train longer."),
        yields_to=(
            *SPOILED,
            "frozen_parameters",
            "lr_too_low",
        ),
        rival=True,
    ),
    Cause(
        id="destructive_resize",
        group="data",
        sentence="Resizing interpolates away what separates real from fake.",
        screen=screens.from_finding("baseline.resize", unless_rescued=False),
        experiment="probe:baseline.resize",
        proof="gain",
        fix=measured_fix("baseline.resize", "Crop native pixels instead of resizing."),
        yields_to=SPOILED,
        rival=True,
    ),
    Cause(
        id="student_batchnorm",
        group="model",
        sentence="The student's BatchNorm statistics do not fit its activations at evaluation.",
        screen=screens.student_batchnorm,
        experiment="recalibrated",
        proof="gain",
        fix=plain_fix(
            "Recalibrate the BatchNorm statistics before evaluating.",
            None,
            "average the BatchNorm statistics over the train set once after training, or raise their momentum",
        ),
        yields_to=("corrupt_images", "student_normalization", "labels_shuffled", "labels_inverted_train"),
        rival=True,
    ),
    Cause(
        id="pooling_mismatch",
        group="model",
        sentence="The pooling of the patch logits hides what the student knows.",
        screen=screens.either(screens.recorded("pooling"), screens.pooling_mismatch),
        experiment="other_pooling",
        proof="gain",
        fix=fix_in_code(
            "pooling",
            "Pool the patch logits of your loop in the way that ranks the images best.",
            "see symptoms.pooling for which one that is",
            lambda case: Fix(
                "Pool the patch logits in the way that ranks the images best.", screens.pooling_patch(case)
            ),
        ),
        yields_to=SPOILED,
        rival=True,
    ),
    Cause(
        id="split_shift",
        group="data",
        sentence="Train and val hold different kinds of images: what train teaches does not carry over.",
        screen=screens.split_shift,
        experiment="carried_over",
        proof="gain",
        fix=plain_fix(
            "Let train and val come from the same sources.",
            None,
            "split each generator and source over train and val",
            "look at 20 val images of each class: wrong labels of val would look the same",
        ),
        yields_to=("corrupt_images", "labels_inverted_train", "labels_shuffled"),
        rival=True,
    ),
    Cause(
        id="class_imbalance",
        group="data",
        sentence="One class is too rare to learn from.",
        screen=screens.class_imbalance,
        experiment="more_images",
        proof="gain",
        fix=plain_fix(
            "Balance the classes by sampling or weights.",
            None,
            "draw as many images of either class per batch",
        ),
        yields_to=(
            "corrupt_images",
            "labels_shuffled",
            "labels_inverted_train",
            *UNHEARD_TEACHER,
            "teacher_domain_shift",
        ),
        rival=True,
    ),
    Cause(
        id="capacity",
        group="model",
        sentence="The student is too small: it cannot even overfit one batch.",
        screen=screens.capacity,
        experiment="larger_student",
        proof="gain",
        fix=plain_fix("Use a larger student.", {"student": dict(LARGER_STUDENT)}),
        yields_to=(
            "corrupt_images",
            "student_normalization",
            "detached_graph",
            "frozen_parameters",
            "lr_too_low",
            "lr_too_high",
        ),
        rival=True,
    ),
    Cause(
        id="too_little_data",
        group="data",
        sentence="There are too few training images: the student knows them and nothing else.",
        screen=screens.too_little_data,
        experiment="more_images",
        proof="gain",
        fix=plain_fix(
            "Collect more training images of both classes.",
            None,
            "until then augment, or train fewer parameters, and judge the detector by its interval",
        ),
        yields_to=(
            "corrupt_images",
            "labels_shuffled",
            "labels_inverted_train",
            "student_normalization",
            "frozen_parameters",
        ),
        rival=True,
    ),
    Cause(
        id="no_signal",
        group="data",
        sentence="Nothing in these images separates the classes for this student.",
        screen=screens.no_signal,
        experiment=None,
        proof="direct",
        fix=plain_fix(
            "Check that the classes differ at all.",
            None,
            "look at random images of both classes side by side",
        ),
        yields_to=("frozen_parameters", "lr_too_low", "lr_too_high", "capacity"),
    ),
    Cause(
        id="offset_mismatch",
        group="loss",
        sentence="The teacher's logits sit far from zero; the distance to them rules the loss.",
        screen=screens.offset,
        experiment="arm:centered",
        proof="gain",
        fix=plain_fix("Centre the teacher's logits.", distillation_patch(normalize="center")),
        yields_to=(
            *UNHEARD_TEACHER,
            "teacher_domain_shift",
            "teacher_inverted",
            "frozen_parameters",
        ),
        rival=True,
    ),
    Cause(
        id="heavy_tailed_teacher",
        group="loss",
        sentence="A few patches of enormous magnitude rule the distillation loss.",
        screen=screens.heavy_tail,
        experiment="arm:robust",
        proof="gain",
        fix=plain_fix(
            "Scale the teacher's logits by robust statistics, with a loss that is linear in large errors.",
            distillation_patch(normalize="robust", loss="huber"),
        ),
        yields_to=(
            *UNHEARD_TEACHER,
            "teacher_domain_shift",
            "teacher_inverted",
            "offset_mismatch",
        ),
        rival=True,
    ),
    Cause(
        id="scale_mismatch",
        group="loss",
        sentence="Teacher and student speak on different scales; the distillation loss drowns the labels.",
        screen=screens.scale,
        experiment="arm:standardized",
        proof="gain",
        fix=plain_fix("Standardise the teacher's logits.", distillation_patch(normalize="standardize")),
        yields_to=(
            "corrupt_images",
            *UNHEARD_TEACHER,
            "teacher_domain_shift",
            "teacher_inverted",
            "offset_mismatch",
            "heavy_tailed_teacher",
        ),
        rival=True,
    ),
    Cause(
        id="distill_weight_too_high",
        group="loss",
        sentence="The distillation outweighs the labels although the teacher is the weaker guide.",
        screen=screens.weight_too_high,
        experiment="best_alpha",
        proof="gain",
        fix=measured_fix("distillation.best_arm", "Lower alpha_distill."),
        yields_to=(
            *UNHEARD_TEACHER,
            "teacher_domain_shift",
            "teacher_inverted",
            "teacher_preprocessing",
            "offset_mismatch",
            "heavy_tailed_teacher",
            "scale_mismatch",
        ),
        rival=True,
    ),
]

_OWN: set[str] = set()


def inflating() -> set[str]:
    """The causes that flatter an AUC: their repair lowers it to the true one."""
    return {cause.id for cause in CAUSES if cause.proof == "inflation_removed"}


def rivals() -> set[str]:
    """The causes that make a student learn worse, of which the one whose repair brings most is named."""
    return {cause.id for cause in CAUSES if cause.rival}


def register(cause: Cause) -> Cause:
    """Add a cause of the user's own; it has its say after the others. One of the same id is replaced.

    A new experiment is entered in `diag_lib.experiments.EXPERIMENTS` before. Raises `UserError` for an id of the
    workbook's own causes, or an experiment that does not exist.
    """
    from diag_lib.experiments import EXPERIMENTS

    if cause.id not in _OWN and any(cause.id == other.id for other in CAUSES):
        raise UserError(f"cause {cause.id!r}: the workbook has a cause of that id; choose another")
    if cause.experiment and ":" not in cause.experiment and cause.experiment not in EXPERIMENTS:
        raise UserError(f"cause {cause.id!r}: no experiment {cause.experiment!r} in experiments.EXPERIMENTS")
    CAUSES[:] = [*(other for other in CAUSES if other.id != cause.id), cause]
    _OWN.add(cause.id)
    return cause
