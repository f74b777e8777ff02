"""What raises the suspicion of a cause, what tells it apart, and what does its experiment do? In words.

They stand under a named cause in the report, and in docs/causes.md. The conditions themselves stand in
`diag_lib/screens`; a test asks that every cause, experiment and finding id fits. Marks: `code`, [cause](#cause).
"""

from collections.abc import Sequence

from diag_lib.causes import CAUSES, Cause

EVIDENCE = {
    "corrupt_images": "`audit.unreadable` says that 2 % or more of the files of a split and class cannot be decoded; "
    "from 10 % on it can be what a failing training fails of.",
    "leakage": "`audit.leakage` finds validation pictures, exact or nearly so, in train.",
    "shortcut": "`audit.shortcut.joint` says that format, quality, size and the like predict the label of held-out files.",
    "evaluation_bug": "`symptoms.evaluation` [recorded]: the reported AUC is not the rank AUC of the recorded logits.",
    "stale_checkpoint": "`symptoms.checkpoint` [recorded]: the hash of the evaluated weights is an older one, while the "
    "trained weights moved on.",
    "numeric_overflow": "`symptoms.overflow` [recorded]: steps or weights are lost to NaN or infinity, and the recorded "
    "training fails.",
    "loss_sign": "`symptoms.loss_sign` [recorded]: the gradient of the total gives a loss a negative weight, and the "
    "recorded training fails.",
    "loss_reduction": "`symptoms.loss_reduction` [recorded]: a reported loss is its mean times the number of patches or "
    "images, and the recorded training fails.",
    "student_normalization": "`audit.normalization` says that the pixels, normalised as configured, are far from what "
    "networks expect.",
    "teacher_weights_not_loaded": "`teacher.weights_loaded` says no: keys of the network are missing in the file.",
    "teacher_train_mode": "`teacher.train_mode`: the teacher's answer for an image changes with its batch, and its AUC "
    "suffers.",
    "teacher_stale_cache": "`teacher.repeatable` says no: the teacher gives the same image other logits when asked again "
    "in another order.",
    "labels_inverted_train": "`teacher.auc_train` lies below one half as clearly as `teacher.auc` lies above it.",
    "labels_shuffled": "a good teacher ranks val (`teacher.auc`) but not train (`teacher.auc_train`); or no student "
    "learns held-out train labels (`baseline.heldout_train`), while val labels can be learned "
    "(`baseline.val_learnable`).",
    "label_noise": "a good teacher ranks train clearly worse than val (`teacher.auc_train`, `teacher.auc`), and the "
    "student ranks val better than the images it was taught (`baseline.train_below_val`).",
    "teacher_preprocessing": "`teacher.preprocessing` finds an input with which the teacher is better; "
    "`teacher.bn_fingerprint` says which one its BatchNorm statistics were made with.",
    "teacher_inverted": "`teacher.auc` lies below one half by more than .05 with its whole interval, on train too.",
    "teacher_domain_shift": "`teacher.auc` lies below .55 with its whole interval, and its weights were loaded.",
    "patch_misalignment": "`logits.alignment`: the two maps agree better when one is mirrored, turned or moved.",
    "wrong_activation": "`logits.activation`: the teacher's patches lie in [0, 1], or the student's stay there whatever "
    "it is shown; or `symptoms.activation` [recorded]: "
    "the reported loss is the formula with a sigmoid before it.",
    "detached_graph": "`baseline.gradients` says no: no gradient arrives at part of what should train; or "
    "`symptoms.gradient_reach` [recorded].",
    "frozen_parameters": "`baseline.frozen`: the student is better when all of it trains; or `symptoms.moved` "
    "[recorded]: weights that should train never move.",
    "lr_too_low": "`baseline.learning_rate`: ten times the rate is better; or `symptoms.update_ratio` [recorded]: steps "
    "are far too small for the weights, where the same settings learn here.",
    "lr_too_high": "`baseline.learning_rate`: a tenth of the rate is better; or `symptoms.update_ratio` [recorded]: "
    "steps are far too large for the weights, where the same settings learn here.",
    "undertrained": "`baseline.undertrained`: a longer schedule is better.",
    "destructive_resize": "`baseline.resize`: native pixels are better than resized ones.",
    "student_batchnorm": "`baseline.batchnorm`: recalibrated running statistics raise the AUC; it also says whether "
    "a momentum is too low for them to follow.",
    "pooling_mismatch": "`baseline.pooling`: another pooling of the same patch logits ranks better, or the student is "
    "pooled by its top patches while teachers are trained on the mean; or `symptoms.pooling` [recorded].",
    "split_shift": "the baseline fails on val (`baseline.auc`), but a student trained on part of train ranks the rest "
    "(`baseline.heldout_train`).",
    "class_imbalance": "`audit.imbalance` says that one class is much rarer, and the student does not learn.",
    "capacity": "`baseline.overfit_batch` says no although gradients flow and weights move.",
    "too_little_data": "train has fewer than 412 images of a class (`audit.imbalance`) and the student knows them far "
    "better than val (`baseline.auc`).",
    "no_signal": "neither train nor val can be learned (`baseline.heldout_train`, `baseline.val_learnable`, each or "
    "their mean), yet one batch can be overfit (`baseline.overfit_batch`), and no probe of the optimisation helps.",
    "offset_mismatch": "`logits.offset`: the means of teacher and student patches differ by more than their spread; "
    "the teacher is informative.",
    "heavy_tailed_teacher": "`logits.heavy_tail`: few teacher patches of enormous size make up the loss; the teacher is "
    "informative.",
    "scale_mismatch": "`logits.scale_ratio` is above 3 or `logits.mse` above 100; the teacher is informative.",
    "distill_weight_too_high": "bce_only is better than status_quo by .02 or more, although the teacher is informative "
    "(`distillation.best_arm`, `teacher.auc`, `baseline.auc`).",
}

TOLD_APART = {
    "corrupt_images": "A student that learns from the readable images all the same rules it out; a few broken files are "
    "listed and left out.",
    "leakage": "An honest good AUC stays where it is when the leaked images are left out.",
    "shortcut": "A content that differs survives saving both classes alike; a shortcut does not. Images of different "
    "size are cropped to one size; where the larger ones look enlarged, the others are enlarged as well. A property that "
    "predicts the label only a little is a note.",
    "evaluation_bug": "The logits of the same epoch rank well: the training is sound. In [stale_checkpoint]"
    "(#stale_checkpoint) they do not, and the hash is old.",
    "stale_checkpoint": "A frozen student keeps its weights too, but then the trained ones do not move either "
    "([frozen_parameters](#frozen_parameters)).",
    "numeric_overflow": "A rate that is too high can end there as well ([lr_too_high](#lr_too_high)); here the steps "
    "before were of a usual size.",
    "loss_sign": "The AUC falls below one half, as with inverted labels; the weight of the loss, measured from "
    "gradients, has the sign.",
    "loss_reduction": "Looks like [scale_mismatch](#scale_mismatch); here the logits are of one scale and the factor is "
    "a number of patches.",
    "student_normalization": "Seen in the settings and the pixels themselves; the experiment only says what it costs.",
    "teacher_weights_not_loaded": "Its AUC is that of a stranger ([teacher_domain_shift](#teacher_domain_shift)); the "
    "missing keys tell the difference.",
    "teacher_train_mode": "A teacher from another domain is as bad in eval mode; this one is good there.",
    "teacher_stale_cache": "A teacher that is merely bad is so repeatably.",
    "labels_inverted_train": "With swapped labels in both splits ([teacher_inverted](#teacher_inverted)) train and val "
    "agree.",
    "labels_shuffled": "Labels that are partly right ([label_noise](#label_noise)) leave the teacher above chance on "
    "train; swapped ones put it below.",
    "label_noise": "Harder training images would lower the teacher's AUC too, but the student would still rank what it "
    "was taught best.",
    "teacher_preprocessing": "A teacher from another domain is bad with every input. When native pixels serve the "
    "student as well, it is [destructive_resize](#destructive_resize). A teacher that is good as it is fed and gains a "
    "few hundredths from another input keeps no student from learning.",
    "teacher_domain_shift": "The AUC is near one half with every input that was tried, and not below it.",
    "patch_misalignment": "The image score is right (mirroring does not change a mean), only the places are wrong.",
    "wrong_activation": "A quiet teacher also has a small range, but not the bounds 0 and 1.",
    "detached_graph": "Frozen parameters are configured so; here they should train and get no gradient.",
    "frozen_parameters": "A low learning rate leaves the weights near their start too; ten times the rate does not "
    "replace the frozen layers.",
    "lr_too_low": "A schedule that is too short ([undertrained](#undertrained)) is cured by more epochs alone.",
    "lr_too_high": "The loss jumps or stays at a coin's from the first epochs; a tenth of the rate settles it.",
    "undertrained": "A student that has converged gains nothing from more epochs.",
    "destructive_resize": "A student that cannot learn fails on native pixels too.",
    "student_batchnorm": "The same weights with fresh statistics are good: nothing has to be trained again.",
    "pooling_mismatch": "The same patch logits rank well when pooled otherwise.",
    "split_shift": "A student that does not generalise within train either fails of labels, data or optimisation.",
    "class_imbalance": "A rare class that is learned all the same is no cause.",
    "capacity": "A student that overfits one batch has room enough; a frozen or detached one has no gradient.",
    "too_little_data": "A student that does not even know its training images fails of something else.",
    "no_signal": "Shuffled labels leave val learnable; here nothing is.",
    "offset_mismatch": "Centring removes it and leaves a difference of scale where it is.",
    "heavy_tailed_teacher": "The usual spread is ordinary (robust statistics); few patches are not.",
    "scale_mismatch": "Standardising keeps the teacher's order and takes only its scale away. With a useless teacher "
    "nothing is worth rescaling.",
    "distill_weight_too_high": "Standardising does not help as much as a smaller weight: it is what the teacher says, "
    "not how loud.",
}

EXPERIMENTS = {
    "without_leaks": "the same scores, judged with and without the leaked validation images",
    "encoded_alike": "the same arm on the files as they are and on copies saved alike",
    "normalized": "the same training with normalised pixels",
    "probe:teacher.train_mode": "the same teacher in train and in eval mode",
    "train_labels_flipped": "bce_only on the train labels as they are and swapped",
    "teacher_on_train": "the same good teacher, judged by the train labels and by the val labels",
    "teacher_variant": "the same training with the teacher's own preprocessing",
    "arm:bce_only": "status_quo against bce_only, confirmed on a second seed",
    "arm:centered": "status_quo against centered, confirmed on a second seed",
    "arm:robust": "status_quo against robust, confirmed on a second seed",
    "arm:standardized": "status_quo against standardized, confirmed on a second seed",
    "probe:baseline.frozen": "bce_only with the configured layers and with all",
    "probe:baseline.learning_rate": "bce_only with the configured rate and the better one",
    "longer": "the same training on the longer schedule",
    "probe:baseline.resize": "bce_only on resized and on native pixels",
    "recalibrated": "the same weights with the BatchNorm statistics as they are and measured anew",
    "other_pooling": "bce_only with the configured pooling and the better one",
    "carried_over": "bce_only trained on train and on half of val, both judged on the other half; "
    "where val does not teach itself, a student within train against val",
    "more_images": "bce_only on as many images as there are and on more of them, taken from val",
    "larger_student": "bce_only with the configured student and with Tiny-LaDeDa",
    "best_alpha": "status_quo against the weight that was best on the other half",
}

KINDS = {
    "gain": "taking it away raises the AUC",
    "inflation_removed": "taking it away lowers a flattering AUC to the true one",
    "direct": "shown directly",
}


def explained(cause: Cause) -> dict[str, str]:
    """What a reader of the verdict may ask about a cause, and the answers; fewer for a cause of the user's own."""
    suspected = EVIDENCE.get(cause.id, "").replace("[recorded]", "(in a recording of your own loop)")
    answers = {"Suspected when": suspected, "Told apart:": told_apart(cause), "Proof:": proof(cause)}
    return {question: answer for question, answer in answers.items() if answer}


def told_apart(cause: Cause) -> str:
    """What looks like the cause, and how the two differ."""
    told = [cause.told_apart_by or TOLD_APART.get(cause.id, "")]
    if cause.equivalent:
        told.append(f"No number tells it from {_links(cause.equivalent)}.")
    if cause.yields_to:
        told.append(f"Silent once one of these is established: {_links(cause.yields_to)}.")
    if cause.rival:
        told.append("Of several that make a student learn worse, the one whose removal brings most is named.")
    return " ".join(part for part in told if part)


def proof(cause: Cause) -> str:
    """The two sides of the experiment, and what their difference shows."""
    if cause.experiment is None:
        return "shown directly, by the evidence above."
    sides = EXPERIMENTS.get(cause.experiment, f"the experiment `{cause.experiment}`")
    return f"{sides}; {KINDS[cause.proof]}."


def _links(ids: Sequence[str]) -> str:
    known = {cause.id for cause in CAUSES}
    return ", ".join(f"[{name}](#{name})" if name in known else f"`{name}`" for name in ids)
