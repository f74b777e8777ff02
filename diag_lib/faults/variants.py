"""Does a verdict hang on how a fault was injected? The same causes at other strengths and by other mechanisms.

No suite runs them: `diag faults --cause NAME` runs one.
"""

from diag_lib.faults import images, loops, weights
from diag_lib.faults.loops import Loop
from diag_lib.faults.scenes import LABELS_ALONE, LABELS_LEAD, TEACHER_LEADS, Fault, own_network

FAINT = {"strength_train": 0.15, "strength_val": 0.15}

VARIANTS: dict[str, Fault] = {
    fault.id: fault
    for fault in (
        Fault(
            "label_noise_third",
            "a third of the training labels are wrong",
            alter=images.exchange_labels(("train",), 0.33),
            around=LABELS_LEAD,
            cause="label_noise",
        ),
        Fault(
            "shortcut_good_jpeg",
            "every real image is a JPEG of quality 90, no fake is, and the artefact is nearly invisible",
            alter=images.save_as_jpeg(images.REAL, 90),
            around=LABELS_LEAD,
            around_recipe=FAINT,
            cause="shortcut",
        ),
        Fault(
            "shortcut_enlarged",
            "every fake, and no real image, has been enlarged by half, and the artefact is nearly invisible",
            alter=images.enlarged(images.FAKE, 96),
            around={**LABELS_LEAD, "dataset.resize": "crop"},
            around_recipe=FAINT,
            cause="shortcut",
        ),
        Fault(
            "leakage_exact_quarter",
            "a quarter of the validation images are copies of training images",
            alter=images.leak(0.25),
            around_recipe={"strength_val": 0.3},
            cause="leakage",
        ),
        Fault(
            "split_shift_blurred",
            "the validation images are out of focus",
            alter=images.blurred_val,
            cause="split_shift",
        ),
        Fault(
            "class_imbalance_reals",
            "only six real images are left to train on",
            alter=images.keep_few(images.REAL, 6),
            around=LABELS_LEAD,
            cause="class_imbalance",
        ),
        Fault(
            "corrupt_images_blank",
            "nearly all training images are of one colour",
            alter=images.one_colour(0.95),
            cause="corrupt_images",
        ),
        Fault(
            "student_normalization_dim",
            "the pixels are divided by a standard deviation of 20",
            settings={"dataset.normalize_std": [20.0, 20.0, 20.0]},
            around=LABELS_LEAD,
            cause="student_normalization",
        ),
        Fault(
            "no_signal_faint",
            "the artefact is next to invisible",
            recipe={"strength_train": 0.03, "strength_val": 0.03},
            cause="no_signal",
        ),
        Fault(
            "teacher_weights_unset",
            "the settings name no weights for the teacher",
            settings={"teacher.weights": None},
            cause="teacher_weights_not_loaded",
        ),
        Fault(
            "teacher_at_random",
            "the teacher's factory forgets to load its weights",
            settings=own_network("teacher", "teacher_at_random"),
            cause="teacher_weights_not_loaded",
        ),
        Fault(
            "teacher_of_neighbours",
            "the teacher answers for the image before in its batch",
            settings=own_network("teacher", "teacher_of_neighbours"),
            around=TEACHER_LEADS,
            cause="teacher_stale_cache",
        ),
        Fault(
            "scale_mismatch_clipped",
            "the teacher's logits are 200 times larger, and gradients are clipped",
            teacher=weights.multiplied(200.0),
            settings={"training.distillation.normalize": "none", "training.clip_grad_norm": 1.0},
            around={"training.distillation.normalize": "standardize"},
            cause="scale_mismatch",
        ),
        Fault(
            "offset_mismatch_far",
            "the teacher's logits are all 2,000 too large",
            teacher=weights.shifted(2000.0),
            cause="offset_mismatch",
        ),
        Fault(
            "pooling_mismatch_top",
            "the mean of the largest 2% of the patch logits stands for an image",
            settings={"pooling.kind": "topk", "pooling.r": 0.02},
            cause="pooling_mismatch",
        ),
        Fault(
            "wrong_activation_student",
            "the student ends in a sigmoid, and the BCE has one of its own",
            settings=own_network("student", "student_with_sigmoid"),
            around=LABELS_ALONE,
            cause="wrong_activation",
        ),
        Fault(
            "detached_output",
            "the student's output is detached",
            settings=own_network("student", "student_cut_off"),
            cause="detached_graph",
        ),
        Fault(
            "student_batchnorm_still",
            "the student's BatchNorm has no momentum and keeps a variance of 100",
            settings=own_network("student", "student_without_momentum"),
            cause="student_batchnorm",
        ),
        Fault(
            "capacity_one_channel",
            "the student has two convolutions with one channel between them",
            settings=own_network("student", "student_of_one_channel"),
            cause="capacity",
        ),
        Fault(
            "lr_too_low_hundredth",
            "the learning rate is 100 times too low",
            settings={"training.lr_s1": 2e-5, "training.lr_s2": 2e-5},
            cause="lr_too_low",
        ),
        Fault(
            "undertrained_two",
            "two epochs",
            settings={"training.epochs_s1": 1, "training.epochs_s2": 1},
            cause="undertrained",
        ),
        Fault(
            "evaluation_threshold",
            "the loop's evaluation ranks decisions in place of scores",
            loop=Loop(scored=loops.cut),
            cause="evaluation_bug",
        ),
    )
}
