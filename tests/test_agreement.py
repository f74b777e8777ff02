"""Numbers that compare teacher and student patches: identities, references, behaviour under transformations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diag_lib.probes.agreement import agreement, percentile, resampling_weights, tail_share

SEEDS = st.integers(0, 10_000)


def pair(seed: int, images: int = 30, patches: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    teacher = rng.normal(rng.normal(), rng.uniform(0.5, 20), (images, 1)) + rng.normal(
        0, 3, (images, patches)
    )
    student = 0.2 * teacher + rng.normal(0, 1, (images, patches)) + rng.normal()
    return teacher, student


@given(SEEDS)
def test_equal_to_plain_formulas(seed: int) -> None:
    t, s = pair(seed)
    found = agreement(t, s)
    assert found.mse.value == pytest.approx(np.mean((t - s) ** 2))
    assert found.r2.value == pytest.approx(1 - np.mean((t - s) ** 2) / t.var())
    assert found.rho.value == pytest.approx(stats.pearsonr(t.ravel(), s.ravel()).statistic)
    assert found.scale_ratio.value == pytest.approx(t.std() / s.std())
    assert found.slope.value == pytest.approx(stats.linregress(s.ravel(), t.ravel()).slope)
    assert found.offset.value == pytest.approx((t.mean() - s.mean()) / t.std())
    assert found.rho_across.value == pytest.approx(stats.pearsonr(t.mean(1), s.mean(1)).statistic)
    assert found.rho_within.value == pytest.approx(
        np.mean([stats.pearsonr(a, b).statistic for a, b in zip(t, s, strict=True)])
    )


@given(SEEDS)
def test_shares_add_up_and_values_lie_in_their_intervals(seed: int) -> None:
    found = agreement(*pair(seed))
    assert found.shares is not None
    assert sum(found.shares.values()) == pytest.approx(1)
    for name in ("scale_ratio", "offset", "mse", "r2", "rho"):
        estimate = getattr(found, name)
        assert estimate.ci[0] <= estimate.value <= estimate.ci[1], name


@given(SEEDS, st.floats(0.01, 100), st.floats(-50, 50))
def test_scaling_and_shifting_the_teacher(seed: int, factor: float, shift: float) -> None:
    t, s = pair(seed)
    plain, moved = agreement(t, s), agreement(factor * t + shift, s)
    assert moved.scale_ratio.value == pytest.approx(factor * plain.scale_ratio.value)
    assert moved.rho.value == pytest.approx(plain.rho.value, abs=1e-9)
    assert moved.rho_within.value == pytest.approx(plain.rho_within.value, abs=1e-9)


def test_large_offsets_keep_their_digits() -> None:
    t, s = pair(1)
    assert agreement(t + 1e7, s).rho.value == pytest.approx(agreement(t, s).rho.value, abs=1e-6)


def test_the_image_is_the_unit_not_the_patch() -> None:
    """Copying every patch a hundred times tells nothing new."""
    t, s = pair(3)
    once, often = agreement(t, s), agreement(np.repeat(t, 100, axis=1), np.repeat(s, 100, axis=1))
    assert often.mse.ci == pytest.approx(once.mse.ci)


def test_a_flat_student_has_no_decomposition() -> None:
    t, _ = pair(4)
    found = agreement(t, np.full_like(t, 0.3))
    assert found.flat and found.shares is None
    assert np.isnan(found.scale_ratio.value) and found.scale_ratio.ci == (-np.inf, np.inf)


def test_perfect_imitation() -> None:
    t, _ = pair(5)
    found = agreement(t, t)
    assert found.mse.value == pytest.approx(0, abs=1e-9)
    assert found.r2.value == pytest.approx(1)
    assert found.rho.ci == pytest.approx((1, 1))


def test_refuses_what_it_cannot_compare() -> None:
    t, s = pair(6)
    with pytest.raises(ValueError, match="one shape"):
        agreement(t, s[:, :-1])
    with pytest.raises(ValueError, match="finite"):
        agreement(np.where(t > 0, np.inf, t), s)


def test_tail_share_of_known_distributions() -> None:
    rng = np.random.default_rng(0)
    assert tail_share(rng.normal(size=(400, 200))).value == pytest.approx(0.0855, abs=0.006)
    ruled = rng.normal(size=(400, 200))
    ruled[:, 0] *= 500
    found = tail_share(ruled)
    assert found.ci[0] > 0.9


@pytest.mark.slow
def test_intervals_cover() -> None:
    """95% intervals of the mean squared error over images cover about 95 of 100 times."""
    hits = 0
    for seed in range(300):
        rng = np.random.default_rng([seed, 7])
        t = rng.normal(0, 1, (80, 1)) + rng.normal(0, 1, (80, 9))
        low, high = agreement(t, np.zeros_like(t) + 1e-9 * rng.normal(size=t.shape)).mse.ci
        hits += low <= 2.0 <= high
    assert 0.90 <= hits / 300 <= 0.985


def test_resampling_is_reproducible_and_counts_images() -> None:
    weights = resampling_weights(9, seed=1)
    assert (weights.sum(axis=1) == 9).all()
    assert np.array_equal(weights, resampling_weights(9, seed=1))
    assert percentile(np.array([np.nan, np.inf])) == (-np.inf, np.inf)
