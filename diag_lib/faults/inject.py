"""Which faults can be injected into the demo, and how is a pipeline with one of them made?"""

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diag_lib.demo.dataset import Recipe, build
from diag_lib.errors import UserError
from diag_lib.faults import images, loops, weights
from diag_lib.faults.loops import Loop
from diag_lib.faults.scenes import (
    GOOD_TEACHER,
    LABELS_ALONE,
    LABELS_LEAD,
    PLAIN_SGD,
    QUIET_STRANGER,
    TEACHER_ALONE,
    TEACHER_LEADS,
    Fault,
    Overrides,
    own_network,
)
from diag_lib.faults.variants import VARIANTS
from diag_lib.faults.weights import Change, State
from diag_lib.resources import teachers_dir
from diag_lib.settings import load


@dataclass(frozen=True)
class Prepared:
    """A pipeline ready to run: `settings.load("demo", prepared.overrides)`."""

    id: str
    root: Path
    overrides: dict[str, Any]


_SAME_SPLITS = ("train", "val")


FAULTS: dict[str, Fault] = {
    fault.id: fault
    for fault in (
        Fault("healthy", "nothing is wrong: the teacher knows this artefact"),
        Fault(
            "teacher_domain_shift",
            "the teacher was trained on another artefact",
            settings={"teacher.weights": "demo-foreign"},
        ),
        Fault(
            "teacher_inverted",
            "the teacher says fake where it means real",
            teacher=weights.multiplied(-1.0),
        ),
        Fault(
            "teacher_preprocessing",
            "the teacher is fed with another preprocessing than it was trained with",
            settings={"teacher.preprocess": "raw"},
        ),
        Fault(
            "teacher_weights_not_loaded",
            "the names in the weights file fit only the teacher's head",
            teacher=weights.partly_named,
        ),
        Fault(
            "teacher_train_mode",
            "the teacher was left in train mode, and images come to it sorted by class",
            settings=own_network("teacher", "teacher_train_mode"),
            around=TEACHER_LEADS,
        ),
        Fault(
            "teacher_stale_cache",
            "the teacher's logits come from a cache that is keyed by running number",
            settings=own_network("teacher", "teacher_stale_cache"),
            around=TEACHER_LEADS,
        ),
        Fault(
            "patch_misalignment",
            "the teacher's map is mirrored",
            settings=own_network("teacher", "teacher_mirrored"),
            around=TEACHER_LEADS,
        ),
        Fault(
            "wrong_activation",
            "the teacher's logits went through a sigmoid",
            settings=own_network("teacher", "teacher_low_probabilities"),
            around={**own_network("teacher", "teacher_low"), **TEACHER_ALONE},
        ),
        Fault(
            "distill_weight_too_high",
            "a weak teacher has as much weight as the labels",
            settings=own_network("teacher", "teacher_weak"),
        ),
        Fault(
            "detached_graph",
            "the student's features are detached before its head",
            settings=own_network("student", "student_detached"),
            around=LABELS_LEAD,
        ),
        Fault(
            "capacity",
            "the student sees nothing but single pixels",
            settings=own_network("student", "student_without_capacity"),
        ),
        Fault(
            "student_batchnorm",
            "the student's running statistics never follow its activations",
            settings=own_network("student", "student_still_batchnorm"),
        ),
        Fault(
            "scale_mismatch",
            "the teacher's logits are 40 times larger, training is plain SGD",
            teacher=weights.multiplied(40.0),
            settings={"training.distillation.normalize": "none"},
            around=PLAIN_SGD,
        ),
        Fault(
            "offset_mismatch", "the teacher's logits are all 300 too large", teacher=weights.shifted(300.0)
        ),
        Fault(
            "heavy_tailed_teacher",
            "a few of the teacher's patch logits are enormous",
            teacher=weights.heavy_tailed,
        ),
        Fault(
            "labels_shuffled",
            "the training labels are dealt at random",
            alter=images.shuffle_labels,
            around=LABELS_LEAD,
        ),
        Fault(
            "labels_inverted_train",
            "the training classes are exchanged",
            alter=images.exchange_labels(("train",)),
            around=LABELS_LEAD,
        ),
        Fault(
            "labels_inverted",
            "the classes are exchanged in both splits",
            alter=images.exchange_labels(_SAME_SPLITS),
        ),
        Fault(
            "label_noise",
            "40% of the training labels are wrong",
            alter=images.exchange_labels(("train",), 0.4),
            around=LABELS_LEAD,
        ),
        Fault(
            "shortcut",
            "every fake is a JPEG, no real image is, and the artefact is nearly invisible",
            alter=images.save_as_jpeg(images.FAKE, 75),
            around=LABELS_LEAD,
            around_recipe={"strength_train": 0.15, "strength_val": 0.15},
        ),
        Fault(
            "leakage",
            "half of the validation images are near-copies of easy training images",
            alter=images.leak(0.5, brighter=1),
            around_recipe={"strength_val": 0.3},
        ),
        Fault(
            "split_shift",
            "the validation fakes come from another generator",
            recipe={"artefact_val": "checkerboard", "strength_val": 1.5},
        ),
        Fault(
            "class_imbalance",
            "only six fakes are left to train on",
            alter=images.keep_few(images.FAKE, 6),
            around=LABELS_LEAD,
        ),
        Fault("corrupt_images", "nearly all training images are damaged", alter=images.corrupt_files),
        Fault(
            "no_signal",
            "real and fake are the same kind of image",
            recipe={"strength_train": 0.0, "strength_val": 0.0},
        ),
        Fault(
            "too_little_data",
            "ten training images per class",
            recipe={"train": 10},
            # as many steps as the demo's, and an artefact that ten images do not give away
            settings={"training.batch_size": 4, "training.epochs_s2": 60},
            around_recipe={"strength_train": 0.4, "strength_val": 0.4},
            around=LABELS_LEAD,
        ),
        Fault(
            "destructive_resize",
            "images of 128 pixels are shrunk to 64",
            settings={"dataset.resize": "resize"},
            around={"dataset.resize": "crop"},
            # 400: as many crops as the photographs hold for every seed
            around_recipe={"size": 128, "train": 150, "val": 400},
        ),
        Fault(
            "student_normalization",
            "pixels from 0 to 255 are fed in without scaling",
            settings={
                "dataset.normalize_mean": [0.0, 0.0, 0.0],
                "dataset.normalize_std": [0.004, 0.004, 0.004],
            },
        ),
        Fault(
            "pooling_mismatch",
            "the largest patch logit stands for an image, the teacher was trained on the mean",
            settings={"pooling.kind": "topk", "pooling.aggregation": "max"},
        ),
        Fault(
            "lr_too_low",
            "the learning rate is 1,000 times too low",
            settings={"training.lr_s1": 2e-6, "training.lr_s2": 2e-6},
        ),
        Fault(
            "lr_too_high",
            "the learning rate is 1,000 times too high",
            settings={"training.lr_s1": 2.0, "training.lr_s2": 2.0},
            around=LABELS_LEAD,
        ),
        Fault(
            "frozen_parameters",
            "only the last layer's eight weights and bias train",
            settings={"student.trainable_s1": ["fc"], "student.trainable_s2": ["fc"]},
        ),
        Fault("undertrained", "one epoch", settings={"training.epochs_s1": 0, "training.epochs_s2": 1}),
        # in the code of the user's own loop
        Fault(
            "evaluation_bug",
            "the loop's evaluation shuffles the scores against the labels",
            loop=Loop(scored=loops.shuffled),
        ),
        Fault(
            "stale_checkpoint",
            "the loop evaluates a copy of the network that is never updated",
            loop=Loop(evaluated=lambda now, start: start),
        ),
        Fault(
            "numeric_overflow",
            "the loop takes the BCE of fp16 probabilities",
            loop=Loop(task=loops.half_precision_bce),
        ),
        Fault(
            "detached_loop",
            "the loop's network detaches the features before its head",
            loop=Loop(wired=loops.detach_features),
            around=LABELS_ALONE,
            cause="detached_graph",
        ),
        Fault(
            "loss_sign",
            "the loop subtracts the distillation loss",
            loop=Loop(distill=loops.negated_mse),
        ),
        Fault(
            "loss_reduction",
            "the loop sums the distillation loss over all patches",
            loop=Loop(distill=loops.summed_mse),
            around=QUIET_STRANGER,
        ),
        Fault(
            "head_only_optimizer",
            "the loop gives its optimiser the head alone",
            loop=Loop(optimised=loops.only_the_head),
            around=LABELS_ALONE,
            cause="frozen_parameters",
        ),
        Fault(
            "slow_loop",
            "the loop's learning rate is 1,000 times below the settings'",
            loop=Loop(rate=1e-3),
            cause="lr_too_low",
        ),
        Fault(
            "wild_loop",
            "the loop's learning rate is 1,000 times above the settings'",
            loop=Loop(rate=1e3),
            around=LABELS_ALONE,
            cause="lr_too_high",
        ),
    )
}


def prepare(
    fault: str | Fault, out: Path, *, seed: int = 0, repaired: bool = False, recipe: Overrides | None = None
) -> Prepared:
    """Make the dataset and weights of a pipeline with this fault below `out`.

    Parameters
    ----------
    out : gets the folder `demo-<id>`, and `demo-<id>-teacher.safetensors` where the fault is in the weights.
    seed : chooses crops, injection, and (added to the preset's) the training seed.
    repaired : the same scene without the fault, `demo-<id>-repaired`: what the fault is measured against.
    recipe : fields of `Recipe` that hold where neither fault nor scene says otherwise.

    Raises
    ------
    UserError : there is no such fault; the folder cannot be written or holds something else.
    """
    fault = find(fault) if isinstance(fault, str) else fault
    name = f"demo-{fault.id}" + (f"-s{seed}" if seed else "") + ("-repaired" if repaired else "")
    root = Path(out).absolute() / name
    fields = {**(recipe or {}), **fault.around_recipe, **({} if repaired else fault.recipe)}
    made = replace(Recipe(seed=seed), **fields)
    alter = None if repaired else fault.alter
    build(
        root,
        made,
        alter=alter,
        name=_altered(fault, repaired),
        code=[Path(images.__file__)] if alter else [],
    )
    overrides = {
        **GOOD_TEACHER,
        **fault.around,
        **({} if repaired else fault.settings),
        "dataset.root": str(root),
    }
    if seed:
        overrides["training.seed"] = load("demo").training.seed + seed
    if fault.teacher is not None and not repaired:
        overrides["teacher.weights"] = str(_write_teacher(fault.teacher, root))
    if fault.loop is not None:
        recording = root.with_name(f"{root.name}-training.jsonl")
        loops.train(load("demo", overrides), Loop() if repaired else fault.loop, recording)
        overrides["history"] = str(recording)
    return Prepared(fault.id, root, overrides)


def combined(first: Fault, second: Fault, around: Overrides | None = None) -> Fault:
    """Both faults at once, in the scene `around` (default: both their scenes; where they disagree the second wins)."""

    def alter(folder: Path, rng: np.random.Generator) -> None:
        for change in (first.alter, second.alter):
            if change is not None:
                change(folder, rng)

    def teacher(state: State) -> State:
        for change in (first.teacher, second.teacher):
            if change is not None:
                state = change(state)
        return state

    return Fault(
        f"{first.id}+{second.id}",
        f"{first.description}; {second.description}",
        settings={**first.settings, **second.settings},
        recipe={**first.recipe, **second.recipe},
        alter=alter if first.alter or second.alter else None,
        teacher=teacher if first.teacher or second.teacher else None,
        around={**first.around, **second.around} if around is None else around,
        around_recipe={**first.around_recipe, **second.around_recipe},
        loop=second.loop or first.loop,
        parts=(first, second),
    )


def alone(part: Fault, compound: Fault) -> Fault:
    """One fault of a compound by itself, in the compound's scene."""
    return replace(part, around=compound.around, around_recipe=compound.around_recipe)


def find(fault_id: str) -> Fault:
    """The fault of that id, or a UserError that lists what exists."""
    known = {**FAULTS, **VARIANTS}
    if fault_id not in known:
        close = difflib.get_close_matches(fault_id, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"fault {fault_id!r} does not exist{hint}; choose from {', '.join(known)}")
    return known[fault_id]


def _altered(fault: Fault, repaired: bool) -> str:
    """What the stamp of the dataset says; never empty, so that it is not taken for the plain demo set."""
    return f"{fault.id}, repaired" if repaired else fault.id


def _write_teacher(change: Change, root: Path) -> Path:
    from safetensors.numpy import load_file, save_file

    target = root.with_name(f"{root.name}-teacher.safetensors")
    state = change(load_file(teachers_dir() / "demo-artefact.safetensors"))
    partial = target.with_name(f".{target.name}.part")
    save_file({name: np.array(tensor, order="C") for name, tensor in state.items()}, partial)
    partial.replace(target)
    return target
