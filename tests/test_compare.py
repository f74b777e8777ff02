"""Choosing on one half and proving on the other."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diag_lib.probes.compare import Scores, choose_and_prove, common_scores, gains, paired
from diag_lib.statistics import auc, auc_difference

SEEDS = st.integers(0, 10_000)


def scores(seed: int, shifts: dict[str, float], n: int = 200) -> Scores:
    """Normal scores whose fake images lie `shift` standard deviations above the real ones."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    noise = rng.normal(size=n)
    table = {name: noise + 0.3 * rng.normal(size=n) + shift * labels for name, shift in shifts.items()}
    return Scores(labels, rng.permutation(np.arange(n) % 2 == 0), table)


def test_a_clear_gain_is_chosen_and_proven() -> None:
    choice = choose_and_prove(scores(0, {"status_quo": 0.0, "bce_only": 2.0, "alpha_0.1": 1.0}), "status_quo")
    assert (choice.best, choice.answer) == ("bce_only", "yes")
    assert choice.proof.ci[0] > 0.2


@given(SEEDS)
def test_the_proof_uses_only_images_that_did_not_choose(seed: int) -> None:
    found = scores(seed, {"a": 0.5, "b": 1.0})
    choice = choose_and_prove(found, "a")
    b = ~found.half_a
    expected = auc_difference(found.labels[b], found.of["a"][b], found.of[choice.best][b])
    assert choice.proof.delta == pytest.approx(expected.delta)
    assert choice.on_a[choice.best] == pytest.approx(
        max(auc(found.labels[found.half_a], x[found.half_a]).value for x in found.of.values())
    )


def test_a_tie_keeps_the_reference() -> None:
    one = scores(1, {"a": 1.0})
    same = Scores(one.labels, one.half_a, {"other": one.of["a"], "a": one.of["a"].copy()})
    choice = choose_and_prove(same, "a")
    assert (choice.best, choice.answer) == ("a", "no")


def test_constant_scores_are_never_chosen() -> None:
    one = scores(2, {"a": -3.0})
    with_flat = Scores(one.labels, one.half_a, {**one.of, "flat": np.zeros(len(one.labels))})
    assert choose_and_prove(with_flat, "a").best == "a"


@pytest.mark.slow
def test_equal_candidates_are_rarely_called_better() -> None:
    """The best of eight arms that are all alike: at most one false claim in twenty, with the binomial's play."""
    names = {f"arm{k}": 0.8 for k in range(8)}
    claims = sum(choose_and_prove(scores(seed, names), "arm0").answer == "yes" for seed in range(300))
    assert claims <= 21


def test_no_gain_is_possible_where_the_auc_is_one() -> None:
    labels = np.arange(40) % 2
    perfect = auc_difference(labels, labels.astype(float), labels * 2.0)
    assert gains(perfect) == "no"


def test_common_scores_join_by_path_whatever_the_order() -> None:
    first = pd.DataFrame(
        {"path": list("abcd"), "label": [0, 1, 0, 1], "half": list("AABB"), "score": [1.0, 2, 3, 4]}
    )
    second = first.iloc[[3, 1, 0]].assign(score=[40.0, 20, 10])
    joined = common_scores({"first": first, "second": second})
    assert joined.of["first"].tolist() == [1, 2, 4]
    assert joined.of["second"].tolist() == [10, 20, 40]
    assert joined.labels.tolist() == [0, 1, 1] and joined.half_a.tolist() == [True, True, False]


@pytest.mark.parametrize("broken", [np.nan, 1.0])
def test_a_collapsed_student_counts_as_its_ties_and_two_of_them_stay_undefined(broken: float) -> None:
    labels = np.repeat([0, 1], 50)
    good = np.random.default_rng(0).normal(size=100) + 3 * labels
    lost = np.full(100, broken)
    up, down = paired(labels, lost, good), paired(labels, good, lost)
    assert up.before.value == 0.5 and up.delta == pytest.approx(up.after.value - 0.5) and up.ci[0] > 0.3
    assert down.delta == pytest.approx(-up.delta) and down.ci == pytest.approx((-up.ci[1], -up.ci[0]))
    assert not paired(labels, lost, lost).before.defined and paired(labels, lost, lost).p == 1.0
