"""The table of causes: what each screen makes of evidence, and that the table holds together."""

import dataclasses

import pytest

from diag_lib.causes import CAUSES, Cause
from diag_lib.evidence import Answer, Evidence, Finding
from diag_lib.screens import Case, RuledOut, Suspicion
from diag_lib.settings import Settings, dotted
from diag_lib.statistics import Auc

BY_ID = {cause.id: cause for cause in CAUSES}


def measured(value: float, half: float = 0.03) -> Auc:
    return Auc(value, (value - half, value + half), half / 2, 500, 500, True)


def found(finding_id: str, answer: Answer, ci: tuple[float, float] | None = None, **data: object) -> Finding:
    value = sum(ci) / 2 if ci else None
    return Finding(
        finding_id, "warning", answer, f"{finding_id} says {answer}", value, ci, None, 1000, dict(data)
    )


def case(*findings: Finding, **arms: float) -> Case:
    steps = {finding.id.partition(".")[0] for finding in findings}
    evidence = {step: Evidence(step, [f for f in findings if f.id.startswith(f"{step}.")]) for step in steps}
    return Case(Settings(), evidence, {name: measured(value) for name, value in arms.items()})


def teacher(low: float, high: float) -> Finding:
    return found("teacher.auc", "undecided", (low, high))


def test_ids_are_unique_and_a_cause_yields_only_to_causes_before_it_in_the_table() -> None:
    assert len(BY_ID) == len(CAUSES)
    position = {cause.id: i for i, cause in enumerate(CAUSES)}
    for cause in CAUSES:
        for other in cause.yields_to:
            assert position[other] < position[cause.id], (cause.id, other)


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.id)
def test_without_evidence_every_cause_is_silent(cause: Cause) -> None:
    assert cause.screen(case()) is None


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.id)
def test_every_fix_is_a_valid_settings_patch_or_says_what_to_do(cause: Cause) -> None:
    fix = cause.fix(case())
    assert fix.text.endswith(".")
    if fix.settings:
        Settings().with_overrides(dotted(fix.settings))


def test_a_useless_teacher_is_told_from_unloaded_weights_from_inversion_and_from_wrong_preprocessing() -> (
    None
):
    screen = BY_ID["teacher_domain_shift"].screen
    assert isinstance(screen(case(teacher(0.46, 0.53))), Suspicion)
    for look_alike in (
        case(teacher(0.46, 0.53), found("teacher.weights_loaded", "no")),
        case(teacher(0.20, 0.30)),
        case(teacher(0.80, 0.90)),
    ):
        assert isinstance(screen(look_alike), RuledOut)
    better = found("teacher.preprocessing", "yes", after_ci=(0.7, 0.8))
    assert (
        screen(case(teacher(0.46, 0.53), better)).weak
        and "teacher_preprocessing" in BY_ID["teacher_domain_shift"].yields_to
    ), "the other input is tried first, and rules this out only where it helps the student"
    turned = found("teacher.preprocessing", "yes", after_ci=(0.7, 0.8), flipped=True)
    assert not screen(case(teacher(0.46, 0.53), turned)).weak
    hardly_better = found("teacher.preprocessing", "yes", after_ci=(0.5, 0.6))
    assert isinstance(screen(case(teacher(0.46, 0.53), hardly_better)), Suspicion)


def test_a_teacher_that_another_preprocessing_turns_round_is_not_called_inverted() -> None:
    turned = found("teacher.preprocessing", "yes", after_ci=(0.9, 0.95), flipped=False)
    assert isinstance(BY_ID["teacher_inverted"].screen(case(teacher(0.2, 0.3))), Suspicion)
    assert isinstance(BY_ID["teacher_inverted"].screen(case(teacher(0.2, 0.3), turned)), RuledOut)
    assert isinstance(BY_ID["teacher_preprocessing"].screen(case(teacher(0.2, 0.3), turned)), Suspicion)


def test_a_resize_that_harms_both_networks_is_not_the_teachers_preprocessing() -> None:
    screen = BY_ID["teacher_preprocessing"].screen
    cropped = found(
        "teacher.preprocessing", "yes", after_ci=(0.8, 0.9), settings={"dataset": {"resize": "crop"}}
    )
    assert isinstance(screen(case(cropped)), Suspicion)
    assert isinstance(screen(case(cropped, found("baseline.resize", "no"))), Suspicion)
    assert isinstance(screen(case(cropped, found("baseline.resize", "yes"))), RuledOut)
    scaled = {"dataset": {"resize": "crop", "normalize_mean": [0.0] * 3, "normalize_std": [1.0] * 3}}
    for patch, ruled_out in ((scaled, True), ({**scaled, "teacher": {"preprocess": "NPR"}}, False)):
        also = dataclasses.replace(cropped, data={**cropped.data, "settings": patch})
        assert isinstance(screen(case(also, found("baseline.resize", "yes"))), RuledOut) == ruled_out


@pytest.mark.parametrize(
    ("now", "gain", "statistics", "suspected"),
    [
        ((0.85, 0.92), (0.01, 0.05), "undecided", False),
        ((0.85, 0.92), (0.01, 0.05), "yes", True),
        ((0.85, 0.92), (0.06, 0.10), "undecided", True),
        ((0.65, 0.75), (0.01, 0.05), "undecided", True),
    ],
)
def test_a_little_more_knowledge_of_a_good_teacher_explains_no_failure(
    now: tuple[float, float], gain: tuple[float, float], statistics: Answer, suspected: bool
) -> None:
    better = found("teacher.preprocessing", "yes", gain, after_ci=(0.9, 0.95))
    known = case(teacher(*now), better, found("teacher.bn_fingerprint", statistics))
    opinion = BY_ID["teacher_preprocessing"].screen(known)
    assert isinstance(opinion, Suspicion if suspected else RuledOut)


def test_statistics_that_cannot_follow_are_a_mistake_that_stands_in_the_network() -> None:
    """Then the experiment only says what it costs; fresh statistics that merely help may be an unlucky last step."""
    screen = BY_ID["student_batchnorm"].screen
    for still in (True, False):
        opinion = screen(case(found("baseline.batchnorm", "yes", (0.1, 0.2), still=still)))
        assert isinstance(opinion, Suspicion) and opinion.measured is still
    assert isinstance(screen(case(found("baseline.batchnorm", "no", (-0.01, 0.01), still=True))), RuledOut)


def test_a_student_with_a_sigmoid_is_to_blame_only_where_it_does_not_work() -> None:
    screen = BY_ID["wrong_activation"].screen
    seen = found("logits.activation", "yes", side="student")
    for reached in (0.5, 0.75):
        opinion = screen(case(seen, status_quo=reached))
        assert isinstance(opinion, Suspicion) and opinion.direct
    assert isinstance(screen(case(seen, status_quo=0.97)), RuledOut)
    teachers = screen(case(found("logits.activation", "yes", side="teacher"), status_quo=0.97))
    assert isinstance(teachers, Suspicion) and not teachers.direct


def test_an_undecided_teacher_says_how_many_images_would_decide() -> None:
    opinion = BY_ID["teacher_domain_shift"].screen(case(teacher(0.42, 0.58)))
    assert isinstance(opinion, Suspicion) and opinion.weak
    assert opinion.needs["n_val_per_class"] == pytest.approx(
        412, abs=2
    )  # 80% power for "< .55" if the truth is .50


def test_a_scale_is_blamed_only_if_the_teacher_knows_something() -> None:
    ratio = found("logits.scale_ratio", "yes", (15.0, 25.0))
    assert isinstance(BY_ID["scale_mismatch"].screen(case(ratio, teacher(0.9, 0.95))), Suspicion)
    assert isinstance(BY_ID["scale_mismatch"].screen(case(ratio, teacher(0.46, 0.53))), RuledOut)


def test_swapped_train_labels_show_as_a_teacher_that_is_right_on_val_and_wrong_on_train() -> None:
    swapped = case(teacher(0.9, 0.95), found("teacher.auc_train", "no", (0.04, 0.1)))
    assert isinstance(BY_ID["labels_inverted_train"].screen(swapped), Suspicion)
    both = case(teacher(0.05, 0.1), found("teacher.auc_train", "no", (0.04, 0.1)))
    assert isinstance(BY_ID["labels_inverted_train"].screen(both), RuledOut)
    assert isinstance(BY_ID["teacher_inverted"].screen(both), Suspicion)
    assert BY_ID["teacher_inverted"].equivalent == ("labels_inverted",)


@pytest.mark.parametrize(
    ("reached", "held_out", "teaches", "suspect"),
    [
        (0.04, (0.93, 0.99), False, True),
        (0.30, (0.93, 0.99), False, False),  # another generator in val can do that
        (0.04, (0.93, 0.99), True, False),  # a teacher that knows both splits would have noticed
        (0.47, (0.50, 0.58), False, False),
    ],
)
def test_swapped_train_labels_show_without_a_teacher_that_knows(reached, held_out, teaches, suspect) -> None:
    low, high = (0.9, 0.95) if teaches else (0.48, 0.53)
    findings = (
        found("teacher.auc", "yes" if teaches else "no", (low, high)),
        found("teacher.auc_train", "undecided", (low, high)),
        found("baseline.heldout_train", "yes", held_out),
    )
    opinion = BY_ID["labels_inverted_train"].screen(case(*findings, bce_only=reached))
    assert isinstance(opinion, Suspicion) == suspect


@pytest.mark.parametrize("cause", ["labels_inverted_train", "label_noise"])
def test_a_teacher_that_knows_nothing_judges_no_labels(cause) -> None:
    """A student that learns val's order from them does; without one the question does not arise."""
    findings = (
        found("teacher.auc", "no", (0.44, 0.50)),
        found("teacher.auc_train", "undecided", (0.46, 0.55)),
        found("baseline.train_below_val", "no", (-0.02, 0.02)),
    )
    taught = BY_ID[cause].screen(case(*findings, bce_only=0.97))
    assert isinstance(taught, RuledOut) and "BCE-only AUC" in taught.because
    assert BY_ID[cause].screen(case(*findings, bce_only=0.5)) is None


def test_shuffled_labels_are_told_from_a_gap_between_train_and_val() -> None:
    shuffled = case(
        teacher(0.95, 0.99),
        found("teacher.auc_train", "no", (0.46, 0.54)),
        found("baseline.heldout_train", "no", (0.45, 0.55)),
    )
    assert isinstance(BY_ID["labels_shuffled"].screen(shuffled), Suspicion)
    gap = case(
        teacher(0.95, 0.99),
        found("teacher.auc_train", "no", (0.46, 0.54)),
        found("baseline.heldout_train", "yes", (0.9, 0.95)),
        bce_only=0.5,
    )
    assert isinstance(BY_ID["labels_shuffled"].screen(gap), RuledOut)
    opinion = BY_ID["split_shift"].screen(gap)
    assert isinstance(opinion, Suspicion) and opinion.weak, "val's labels may be wrong"


@pytest.mark.parametrize(("val", "suspected"), [(0.62, True), (0.80, False)])
def test_a_clear_gap_between_unseen_train_and_val_is_a_shift_though_val_is_open(
    val: float, suspected: bool
) -> None:
    opinion = BY_ID["split_shift"].screen(
        case(
            found("baseline.heldout_train", "yes", (0.90, 0.94)),
            found("baseline.val_learnable", "yes", (0.60, 0.71)),
            bce_only=val,
        )
    )
    assert isinstance(opinion, Suspicion) is suspected and (opinion is None or not opinion.weak)


def test_labels_with_which_a_good_teacher_still_agrees_are_not_shuffled() -> None:
    """Most pictures of train are blank: neither they nor what is left can be learned, but the labels are right."""
    left = (
        found("baseline.heldout_train", "no", (0.38, 0.53)),
        found("baseline.val_learnable", "yes", (0.88, 0.93)),
    )
    for train, suspect in (((0.62, 0.76), False), ((0.46, 0.54), True)):
        evidence = (teacher(0.99, 1.0), found("teacher.auc_train", "undecided", train), *left)
        opinion = BY_ID["labels_shuffled"].screen(case(*evidence, bce_only=0.51))
        assert isinstance(opinion, Suspicion) == suspect


def test_optimisation_is_hardly_suspect_when_the_standardised_arm_rescues_the_student() -> None:
    probe = found("baseline.learning_rate", "yes", (0.2, 0.3), factor=10.0)
    assert isinstance(BY_ID["lr_too_low"].screen(case(probe, bce_only=0.52, standardized=0.5)), Suspicion)
    assert BY_ID["lr_too_low"].screen(case(probe, bce_only=0.52, standardized=0.84)).weak
    assert isinstance(BY_ID["lr_too_high"].screen(case(probe, bce_only=0.52, standardized=0.5)), RuledOut)


def test_a_weight_is_too_high_only_if_the_labels_alone_do_better_with_an_informative_teacher() -> None:
    screen = BY_ID["distill_weight_too_high"].screen
    assert isinstance(screen(case(teacher(0.6, 0.7), status_quo=0.62, bce_only=0.9)), Suspicion)
    assert isinstance(screen(case(teacher(0.6, 0.7), status_quo=0.9, bce_only=0.9)), RuledOut)
    assert screen(case(teacher(0.46, 0.53), status_quo=0.62, bce_only=0.9)) is None


def test_broken_files_are_the_cause_only_of_a_failure_and_only_if_they_are_many() -> None:
    screen = BY_ID["corrupt_images"].screen
    many, few = (
        dataclasses.replace(found("audit.unreadable", "yes", worst=w), severity="error") for w in (0.5, 0.03)
    )
    opinion = screen(case(many, status_quo=0.5))
    assert isinstance(opinion, Suspicion) and not opinion.weak
    assert screen(case(few, status_quo=0.5)).weak
    assert isinstance(screen(case(many, status_quo=0.72)), Suspicion), "what is left teaches half of it"
    some = dataclasses.replace(many, data={"worst": 0.2})
    assert isinstance(screen(case(some, status_quo=0.96)), RuledOut)
    assert isinstance(screen(case(many, status_quo=0.96)), Suspicion), "half of a class is missing"
    assert isinstance(screen(case(few, status_quo=0.72)), RuledOut)
    assert isinstance(screen(case(found("audit.unreadable", "yes", worst=0.01), status_quo=0.5)), RuledOut)


def test_a_rare_class_is_no_cause_where_the_labels_teach_enough() -> None:
    screen, rare = BY_ID["class_imbalance"].screen, found("audit.imbalance", "yes")
    assert isinstance(screen(case(rare, status_quo=0.66, bce_only=0.52)), Suspicion)
    assert isinstance(screen(case(rare, status_quo=0.5)), Suspicion)
    assert isinstance(screen(case(rare, status_quo=0.5, bce_only=0.9)), RuledOut)
    assert isinstance(screen(case(rare, status_quo=0.9)), RuledOut)
    assert isinstance(screen(case(found("audit.imbalance", "no"), status_quo=0.5, bce_only=0.5)), RuledOut)


def test_too_little_data_needs_few_images_and_a_student_that_knows_only_them() -> None:
    screen = BY_ID["too_little_data"].screen
    few, many = (found("audit.imbalance", "no", real=n, fake=n) for n in (20, 500))
    gap, none = (found("baseline.auc", "no", (0.55, 0.65), train_auc=known) for known in (0.97, 0.60))
    opinion = screen(case(few, gap))
    assert isinstance(opinion, Suspicion) and not opinion.weak
    assert screen(case(few, none)).weak
    assert isinstance(screen(case(many, gap)), RuledOut)
    assert isinstance(screen(case(few, found("baseline.auc", "yes", (0.92, 0.97), train_auc=1.0))), RuledOut)


def test_a_teacher_that_was_squashed_is_not_judged_by_what_is_left_of_its_scores() -> None:
    order = [cause.id for cause in CAUSES]
    for other in (
        "teacher_domain_shift",
        "teacher_inverted",
        "teacher_preprocessing",
        "distill_weight_too_high",
    ):
        assert "wrong_activation" in BY_ID[other].yields_to
        assert order.index("wrong_activation") < order.index(other), "it must be established first"


def test_no_signal_is_certain_only_when_no_way_of_training_helps() -> None:
    silent = (
        found("baseline.heldout_train", "no", (0.46, 0.54)),
        found("baseline.val_learnable", "no", (0.46, 0.54)),
        found("baseline.overfit_batch", "yes"),
        teacher(0.46, 0.54),
    )
    screen = BY_ID["no_signal"].screen
    assert not screen(case(*silent, found("baseline.learning_rate", "no"), bce_only=0.5)).weak
    assert screen(case(*silent, found("baseline.learning_rate", "undecided"), bce_only=0.5)).weak
    for high, weak in ((0.64, True), (0.54, False)):
        longer = found("baseline.undertrained", "undecided", after_ci=[0.46, high])
        assert screen(case(*silent, longer, bce_only=0.5)).weak is weak, (
            "what stays at a coin's is no way out"
        )
    assert screen(case(*silent[:3], teacher(0.8, 0.9), bce_only=0.5)).weak


def test_a_val_that_hardly_differs_from_a_coin_is_judged_together_with_train() -> None:
    screen = BY_ID["no_signal"].screen
    rest = found("baseline.overfit_batch", "yes"), teacher(0.46, 0.54), found("baseline.learning_rate", "no")

    def opinion(train: tuple[float, float], val: tuple[float, float], answer: str = "undecided") -> object:
        halves = (
            found("baseline.heldout_train", "no", train),
            found("baseline.val_learnable", answer, val),
        )
        return screen(case(*halves, *rest, bce_only=0.5))

    assert not opinion((0.43, 0.52), (0.52, 0.63)).weak
    assert opinion((0.50, 0.58), (0.52, 0.66)).weak, "their mean may be above .60"
    assert opinion((0.36, 0.44), (0.57, 0.69)).weak, "val alone looks as if it could be learned"
    assert opinion((0.43, 0.52), (0.62, 0.70), "yes") is None


def test_a_wrong_normalisation_is_corrected_as_the_teachers_probe_proved_it() -> None:
    fix = BY_ID["student_normalization"].fix
    wrong = found("audit.normalization", "yes")
    assert fix(case(wrong)).settings["dataset"]["normalize_mean"] == [0.485, 0.456, 0.406]
    patch = {"dataset": {"normalize_mean": [0.5] * 3, "normalize_std": [0.5] * 3}}
    assert fix(case(wrong, found("teacher.preprocessing", "yes", settings=patch))).settings == patch
    assert fix(case(found("audit.normalization", "no"))).settings is None
    assert isinstance(
        BY_ID["student_normalization"].screen(case(found("audit.normalization", "no"))), RuledOut
    )
