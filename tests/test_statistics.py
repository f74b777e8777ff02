"""Are the figures that every verdict rests on right? Independent references and simulation decide."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from diag_lib.statistics import (
    NEVER,
    answer_above,
    answer_below,
    auc,
    auc_difference,
    auc_difference_unpaired,
    claim_power,
    cluster_bootstrap,
    holm,
    mean_interval,
    n_for_gain,
    n_per_class_needed,
    ratio_interval,
    robust_summary,
    split_halves,
)

Z = stats.norm.ppf(0.975)


def brute_force_delong(labels, columns):
    """AUCs and covariance by the definition of DeLong et al. (1988): every pair, no ranks."""
    kernels = []
    for scores in columns:
        fake, real = scores[labels == 1], scores[labels == 0]
        kernels.append((fake[:, None] > real[None, :]) + 0.5 * (fake[:, None] == real[None, :]))
    v01 = np.stack([kernel.mean(axis=1) for kernel in kernels])
    v10 = np.stack([kernel.mean(axis=0) for kernel in kernels])
    covariance = np.cov(v01, ddof=1) / v01.shape[1] + np.cov(v10, ddof=1) / v10.shape[1]
    return v01.mean(axis=1), np.atleast_2d(covariance)


def binormal(rng, value, n_real, n_fake=None):
    n_fake = n_fake or n_real
    labels = np.repeat([0, 1], [n_real, n_fake])
    return labels, rng.normal(size=labels.size) + labels * np.sqrt(2) * stats.norm.ppf(value)


samples = st.integers(2, 25).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 1), min_size=n, max_size=n),
        st.lists(st.integers(-6, 6), min_size=n, max_size=n),  # few values: many ties
        st.lists(st.floats(-1e9, 1e9), min_size=n, max_size=n),
    )
)


@given(samples)
def test_auc_is_the_rank_auc_whatever_the_ties(sample):
    labels, tied, spread = (np.array(part) for part in sample)
    for scores in (tied, spread):
        found = auc(labels, scores)
        if labels.min() == labels.max() or scores.min() == scores.max():
            assert not found.defined
            assert np.isnan(found.value)
            assert found.ci == (0.0, 1.0)
        else:
            assert found.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
            assert found.ci[0] <= found.value <= found.ci[1]
            assert found.ci[0] < found.ci[1]
            assert found.se > 0
        assert found.n_real + found.n_fake == labels.size


@given(samples)
def test_swapping_the_classes_mirrors_value_and_interval(sample):
    labels, tied, _ = (np.array(part) for part in sample)
    found, mirrored = auc(labels, tied), auc(1 - labels, tied)
    if found.defined:
        assert mirrored.value == pytest.approx(1 - found.value, abs=1e-12)
        assert mirrored.ci == pytest.approx((1 - found.ci[1], 1 - found.ci[0]), abs=1e-9)


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_delong_variance_and_logit_interval_against_brute_force(decimals):
    rng = np.random.default_rng(5)
    for value, sizes in [(0.5, (30, 41)), (0.75, (60, 25)), (0.9, (80, 80))]:
        labels, scores = binormal(rng, value, *sizes)
        scores = scores if decimals is None else np.round(scores, decimals)
        (reference,), covariance = brute_force_delong(labels, [scores])
        found = auc(labels, scores)
        assert found.value == pytest.approx(reference, abs=1e-12)
        assert found.se == pytest.approx(np.sqrt(covariance[0, 0]), rel=1e-10)
        logit = np.log(reference / (1 - reference))
        half = Z * found.se / (reference * (1 - reference))
        assert found.ci == pytest.approx((1 / (1 + np.exp(half - logit)), 1 / (1 + np.exp(-half - logit))))


def test_extreme_logits_that_a_float32_sigmoid_would_tie_are_ranked():
    labels = np.repeat([0, 1], 50)
    scores = np.linspace(20.0, 2000.0, 100)
    squashed = 1 / (1 + np.exp(-scores.astype(np.float32)))
    assert auc(labels, scores).value == 1.0
    assert auc(labels, squashed).value == pytest.approx(0.5) or not auc(labels, squashed).defined


def test_non_finite_scores():
    labels = [0, 0, 0, 1, 1, 1]
    assert auc(labels, [-np.inf, 0, 1, 0, 2, np.inf]).value == pytest.approx(7.5 / 9)
    with pytest.raises(ValueError, match="1 of 6 scores are NaN"):
        auc(labels, [0, 1, 2, 3, 4, np.nan])
    assert not auc(labels, [0, 1, 2, 3, 4, np.nan], nan="undefined").defined
    lost = auc_difference(labels, [0, 1, 2, 3, 4, 5], [np.nan] * 6, nan="undefined")
    assert lost.before.value == 1.0
    assert not lost.after.defined
    assert lost.ci == (-1.0, 1.0)
    assert lost.p == 1.0


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="0 \\(real\\) and 1 \\(fake\\)"):
        auc([0, 2], [1.0, 2.0])
    with pytest.raises(ValueError, match="3 labels but 2 scores"):
        auc([0, 1, 1], [1.0, 2.0])
    assert not auc([], []).defined


@pytest.mark.parametrize("n", [2, 10, 40, 400])
def test_perfect_separation_has_newcombes_interval(n):
    found = auc(np.repeat([0, 1], n), np.arange(2 * n))
    low = found.ci[0]
    # the bound solves |1 - t| = z sqrt(V(t)) with the variance of Hanley and McNeil
    q1, q2 = low / (2 - low), 2 * low**2 / (1 + low)
    variance = (low * (1 - low) + (n - 1) * (q1 - low**2) + (n - 1) * (q2 - low**2)) / n**2
    assert 1 - low == pytest.approx(Z * np.sqrt(variance), rel=1e-6)
    assert found.value == found.ci[1] == 1.0
    assert found.se > 0
    one_slip = np.arange(2 * n)
    one_slip[[n - 1, n]] = one_slip[[n, n - 1]]
    assert auc(np.repeat([0, 1], n), one_slip).ci[0] < low  # a slip never makes us surer


def test_single_images_a_class_still_get_an_honest_interval():
    found = auc([0, 1], [0.0, 1.0])
    assert found.value == 1.0
    assert found.ci[0] < 0.3
    assert auc([0, 1, 1, 1], [1.0, 0.0, 2.0, 3.0]).ci[0] < 0.5


@pytest.mark.parametrize(("value", "n"), [(0.98, 40), (0.98, 30), (0.98, 50), (0.7, 40), (0.5, 100)])
def test_intervals_cover(value, n):
    rng = np.random.default_rng(11)
    runs = [auc(*binormal(rng, value, n)) for _ in range(2500)]
    low, high = np.array([run.ci for run in runs]).T
    assert np.mean((low <= value) & (value <= high)) >= 0.935
    wald = np.array([run.se for run in runs]) * Z
    centre = np.array([run.value for run in runs])
    if value < 0.9:
        assert np.mean(high - low) < 1.1 * np.mean(2 * wald)
    else:  # the plain interval would leave (0, 1)
        assert np.mean(centre + wald > 1) > 0.2
        assert high.max() <= 1


def test_groups_are_the_unit():
    rng = np.random.default_rng(3)
    labels, scores = binormal(rng, 0.8, 60)
    single = auc(labels, scores, groups=np.arange(120))
    assert single == auc(labels, scores)
    copied = auc(np.repeat(labels, 4), np.repeat(scores, 4), groups=np.repeat(np.arange(120), 4))
    assert copied.value == pytest.approx(single.value)
    assert copied.se == pytest.approx(single.se, rel=1e-9)
    assert auc(np.repeat(labels, 4), np.repeat(scores, 4)).se < 0.6 * single.se
    perfect = auc(np.repeat([0, 1], 40), np.arange(80), groups=np.repeat(np.arange(8), 10))
    assert perfect.ci[0] < auc(np.repeat([0, 1], 40), np.arange(80)).ci[0] - 0.1


def test_groups_with_both_classes_agree_with_the_bootstrap():
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(60), 6)
    labels = np.tile([0, 1], 180)
    scores = rng.normal(size=360) + labels + 2 * rng.normal(size=60)[groups]  # the scene moves both classes
    found = auc(labels, scores, groups=groups)
    low, high = cluster_bootstrap(
        lambda rows: roc_auc_score(labels[rows], scores[rows]), groups, replicates=400
    )
    assert found.se == pytest.approx((high - low) / (2 * Z), rel=0.2)


def test_paired_difference_against_brute_force():
    rng = np.random.default_rng(8)
    for rounding in (3, 0):
        labels, before = binormal(rng, 0.65, 90, 70)
        after = np.round(before + 0.8 * labels + rng.normal(size=before.size) * 0.7, rounding)
        before = np.round(before, rounding)
        values, covariance = brute_force_delong(labels, [before, after])
        found = auc_difference(labels, before, after)
        variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
        assert found.delta == pytest.approx(values[1] - values[0], abs=1e-12)
        assert found.se == pytest.approx(np.sqrt(variance), rel=1e-9)
        assert found.p == pytest.approx(2 * stats.norm.sf(abs(found.delta) / np.sqrt(variance)), rel=1e-6)
        assert found.ci == pytest.approx((found.delta - Z * found.se, found.delta + Z * found.se))
        assert found.correlation == pytest.approx(
            covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
        )
        assert found.before.ci == pytest.approx(auc(labels, before).ci)
        unpaired = auc_difference_unpaired(found.before, found.after)
        assert unpaired.se > found.se
        assert unpaired.delta == found.delta


def test_paired_difference_keeps_its_error_rate():
    rng = np.random.default_rng(2)
    p = []
    for _ in range(1500):
        labels, common = binormal(rng, 0.7, 60)
        p.append(auc_difference(labels, common + rng.normal(size=120), common + rng.normal(size=120)).p)
    assert 0.035 <= np.mean(np.array(p) < 0.05) <= 0.065


def test_differences_without_variance():
    labels = np.repeat([0, 1], 40)
    rng = np.random.default_rng(0)
    both_perfect = auc_difference(labels, labels + rng.random(80) * 0.9, labels + rng.random(80) * 0.9)
    assert (both_perfect.delta, both_perfect.p) == (0.0, 1.0)
    assert -0.1 < both_perfect.ci[0] < -0.01 < 0.01 < both_perfect.ci[1] < 0.1
    opposite = auc_difference(labels, -labels + rng.random(80) * 0.9, labels + rng.random(80) * 0.9)
    assert opposite.delta == 1.0
    assert opposite.p < 1e-6
    assert opposite.ci[0] > 0.9
    scores = rng.normal(size=80)
    same = auc_difference(labels, scores, 3 * scores + 1)
    assert (same.delta, same.se, same.p, same.ci) == (0.0, 0.0, 1.0, (0.0, 0.0))
    assert auc_difference(labels, scores, np.zeros(80)).p == 1.0


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(-1, 1))
def test_answers_are_three_way(low, width, threshold):
    ci = (low, low + width)
    below, above = answer_below(ci, threshold), answer_above(ci, threshold)
    assert (below == "yes") == (ci[1] < threshold)
    assert (above == "yes") == (ci[0] > threshold)
    assert not (below == "yes" and above == "yes")
    if low < threshold < low + width:
        assert below == above == "undecided"
    assert answer_below((np.nan, np.nan), threshold) == "undecided"


@pytest.mark.parametrize(
    ("truth", "threshold", "n"), [(0.50, 0.55, 412), (0.70, 0.60, 84), (0.75, 0.70, 286), (0.80, 0.70, 59)]
)
def test_sample_sizes_for_a_threshold(truth, threshold, n):
    needed = n_per_class_needed(truth, threshold)
    assert abs(needed - n) <= 1
    assert claim_power(truth, threshold, needed) >= 0.8 > claim_power(truth, threshold, needed - 1)
    assert n_per_class_needed(truth, threshold, sides=2) > 1.2 * needed


@pytest.mark.parametrize(
    ("n", "powers"),
    [
        (50, (0.22, 0.61, 0.27)),
        (100, (0.34, 0.86, 0.43)),
        (200, (0.53, 0.99, 0.67)),
        (500, (0.86, 1.00, 0.95)),
        (1000, (0.99, 1.00, 1.00)),
    ],
)
def test_power_of_the_three_claims(n, powers):
    claims = [(0.50, 0.55), (0.70, 0.60), (0.75, 0.70)]
    assert [claim_power(*claim, n) for claim in claims] == pytest.approx(powers, abs=0.006)


def test_power_is_what_simulated_intervals_reach():
    rng = np.random.default_rng(21)
    n = n_per_class_needed(0.7, 0.6, sides=2)
    claimed = [answer_above(auc(*binormal(rng, 0.7, n)).ci, 0.6) == "yes" for _ in range(1000)]
    assert np.mean(claimed) == pytest.approx(0.8, abs=0.05)


def test_no_sample_decides_a_truth_on_the_threshold():
    assert n_per_class_needed(0.6, 0.6) == NEVER
    assert n_per_class_needed(1.0, 0.6) >= 2
    assert n_for_gain(0.0) == NEVER


@pytest.mark.parametrize(
    ("delta", "correlation", "n"),
    [
        (0.05, 0.5, 419),
        (0.05, 0.8, 168),
        (0.05, 0.9, 84),
        (0.02, 0.5, 2619),
        (0.02, 0.8, 1048),
        (0.02, 0.9, 524),
    ],
)
def test_sample_sizes_for_a_gain(delta, correlation, n):
    assert abs(n_for_gain(delta, 0.70, correlation) - n) <= 1


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm_rejects_what_stepping_down_rejects(pvalues):
    adjusted = holm(pvalues)
    assert list(adjusted) == list(pvalues)
    for level in (0.01, 0.05, 0.2):
        rejected = set()  # Holm's procedure itself: stop at the first p above level / remaining
        for key in sorted(pvalues, key=pvalues.get):
            if pvalues[key] * (len(pvalues) - len(rejected)) > level:
                break
            rejected.add(key)
        assert {key for key, p in adjusted.items() if p <= level} == rejected
    assert all(adjusted[key] >= pvalues[key] for key in pvalues)


def test_holm_refuses_what_is_no_p_value():
    for bad in (np.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match="'x'"):
            holm({"x": bad})


def test_cluster_bootstrap_draws_whole_groups():
    rng = np.random.default_rng(1)
    centres = rng.normal(size=50)
    values = np.repeat(centres, 20) + 0.01 * rng.normal(size=1000)
    groups = np.repeat(np.arange(50), 20)
    low, high = cluster_bootstrap(lambda rows: values[rows].mean(), groups, seed=3)
    se = centres.std(ddof=1) / np.sqrt(50)
    assert (high - low) / (2 * Z) == pytest.approx(se, rel=0.12)
    assert (low, high) == cluster_bootstrap(lambda rows: values[rows].mean(), groups, seed=3)
    alone = cluster_bootstrap(lambda rows: values[rows].mean(), np.arange(1000), seed=3)
    assert alone[1] - alone[0] < 0.4 * (high - low)
    strata = np.repeat([0, 1], 500)
    share = cluster_bootstrap(lambda rows: float(np.mean(rows >= 500)), groups, strata=strata)
    assert share == pytest.approx((0.5, 0.5))
    assert cluster_bootstrap(lambda rows: np.nan, groups, replicates=5) == (-np.inf, np.inf)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12)), min_size=1, max_size=60), st.integers(0, 99)
)
def test_halves_are_balanced_and_keep_groups(rows, seed):
    labels, groups = (np.array(part) for part in zip(*rows, strict=True))
    alone = split_halves(labels, seed=seed)
    for label in (0, 1):
        assert abs(np.sum(alone[labels == label] == "A") - np.sum(alone[labels == label] == "B")) <= 1
    whole = split_halves(labels, groups, seed=seed)
    assert set(whole) <= {"A", "B"}
    for group in np.unique(groups):
        assert len(set(whole[groups == group])) == 1
    largest = np.unique(groups, return_counts=True)[1].max()
    assert abs(np.sum(whole == "A") - np.sum(whole == "B")) <= 2 * largest
    assert np.array_equal(whole, split_halves(labels, groups, seed=seed))


def test_halves_depend_on_the_seed():
    labels = np.repeat([0, 1], 50)
    assert not np.array_equal(split_halves(labels, seed=1), split_halves(labels, seed=2))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_robust_summary_against_scipy(values):
    x = np.array(values)
    found = robust_summary([*values, np.nan, np.inf])
    assert (found["n"], found["nonfinite"]) == (len(values), 2)
    assert found["mad"] == pytest.approx(stats.median_abs_deviation(x), abs=1e-9)
    assert (found["min"], found["max"]) == (x.min(), x.max())
    assert found["std"] == pytest.approx(np.std(x), abs=1e-9)
    assert (found["q01"], found["q99"]) == pytest.approx(tuple(np.percentile(x, [1, 99])))
    if np.std(x) > 1e-3:
        assert found["kurtosis"] == pytest.approx(stats.kurtosis(x, fisher=False), rel=1e-6)


def test_robust_summary_of_nothing_and_of_a_constant():
    assert np.isnan(robust_summary([])["mean"])
    assert robust_summary([])["n"] == 0
    assert np.isnan(robust_summary([2.0, 2.0])["kurtosis"])
    assert robust_summary([2.0, 2.0])["std"] == 0


def scaled_sample(kurtosis, n, rng):
    """Exactly mean 0 and sd 1 with (nearly) the wanted kurtosis: a symmetric three-point law."""
    far = np.sqrt(kurtosis)
    share = round(n / kurtosis / 2)
    x = np.zeros(n)
    x[:share], x[share : 2 * share] = far, -far
    return rng.permutation(x / x.std())


@pytest.mark.parametrize(
    ("n", "just_enough"), [(100, 4.25), (200, 3.84), (400, 3.57), (1000, 3.35), (2000, 3.24)]
)
def test_ratio_above_three_is_claimed_when_it_must(n, just_enough):
    rng = np.random.default_rng(n)
    one, other = scaled_sample(10, n, rng), scaled_sample(10, n, rng)
    assert ratio_interval(just_enough * 1.03 * one, other, 0.90).ci[0] > 3
    assert ratio_interval(just_enough * 0.95 * one, other, 0.90).ci[0] < 3


@pytest.mark.parametrize(("n", "just_enough"), [(100, 120), (200, 113), (400, 109), (1000, 106), (2000, 104)])
def test_mse_above_a_hundred_is_claimed_when_it_must(n, just_enough):
    spread = np.tile([0.0, 2.0], n // 2)  # coefficient of variation 1
    assert mean_interval(just_enough * 1.01 * spread, 0.90).ci[0] > 100
    assert mean_interval(just_enough * 0.96 * spread, 0.90).ci[0] < 100


def test_intervals_of_means_and_ratios_cover_with_images_as_units():
    rng = np.random.default_rng(6)
    covered = []
    for _ in range(400):
        level = rng.normal(size=(80, 1))  # patches of an image go together
        teacher = 4 * (level + 0.3 * rng.normal(size=(80, 25)))
        student = rng.normal(size=(80, 1)) + 0.3 * rng.normal(size=(80, 9))
        ratio = ratio_interval(teacher, student)
        mean = mean_interval(np.mean(teacher**2, axis=1), positive=True)
        covered.append((ratio.ci[0] <= 4 <= ratio.ci[1], mean.ci[0] <= 16 * 1.09 <= mean.ci[1]))
    assert np.mean(covered, axis=0) == pytest.approx([0.95, 0.94], abs=0.035)


def test_mean_interval_reference_and_groups():
    x = np.random.default_rng(0).gamma(2.0, size=300)
    found = mean_interval(x)
    assert found.se == pytest.approx(stats.sem(x))
    assert found.ci == pytest.approx((x.mean() - Z * stats.sem(x), x.mean() + Z * stats.sem(x)))
    repeated = mean_interval(np.repeat(x, 3), groups=np.repeat(np.arange(300), 3))
    assert repeated.se == pytest.approx(found.se)
    assert repeated.n == 300
    log = mean_interval(x, positive=True)
    assert log.ci[0] * log.ci[1] == pytest.approx(log.value**2)
    assert mean_interval([1.0]).ci == (-np.inf, np.inf)
    assert mean_interval([0.0, 0.0], positive=True).ci == (0.0, 0.0)


def test_ratio_of_constants():
    x = np.arange(10.0)
    assert ratio_interval(x, np.ones(10)).value == np.inf
    assert ratio_interval(np.ones(10), x).value == 0.0
    assert np.isnan(ratio_interval(np.ones(10), np.ones(10)).value)
    assert ratio_interval(np.ones(10), x).ci == (0.0, np.inf)
    with pytest.raises(ValueError, match="same"):
        ratio_interval(x, x[:5])


def test_large_inputs_need_no_pairs():
    rng = np.random.default_rng(0)
    labels, scores = binormal(rng, 0.7, 250_000)
    start = time.process_time()
    found = auc_difference(labels, scores, scores + rng.normal(size=scores.size))
    assert time.process_time() - start < 20  # all 62,500,000,000 pairs would take minutes and memory
    assert found.before.value == pytest.approx(0.7, abs=0.005)
