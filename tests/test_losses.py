"""Do the losses compute what their names say, and does each normalisation treat the label as stated?"""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.nn import functional as F

from diag_lib import settings
from diag_lib.losses import (
    DISTILLATION_LOSSES,
    KEEPS_IMAGE_MEAN,
    NEEDS_SCALE,
    NORMALIZATIONS,
    LogitScale,
    distillation_loss,
    weighted_loss,
)
from diag_lib.settings import DistillationSettings
from diag_lib.statistics import auc

logit = st.floats(-1e4, 1e4, allow_subnormal=False)
pairs = st.lists(st.tuples(logit, logit), min_size=1, max_size=12)


def maps(seed=0, size=(4, 1, 3, 5)):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_maps(pairs):
    student, teacher = torch.tensor(pairs, dtype=torch.float64).T
    return student.reshape(-1, 1, 1, 1), teacher.reshape(-1, 1, 1, 1)


def weights(**changes):
    return DistillationSettings(**changes)


def test_tables_hold_what_the_settings_allow():
    fields = DistillationSettings.model_fields
    assert set(settings.DISTILLATION_LOSSES) == set(DISTILLATION_LOSSES)
    assert set(get_args(fields["normalize"].annotation)) == set(NORMALIZATIONS) == set(KEEPS_IMAGE_MEAN)
    assert set(NORMALIZATIONS) >= NEEDS_SCALE


@given(pairs)
def test_closed_forms(pairs):
    student, teacher = as_maps(pairs)
    s, t = student.numpy().ravel(), teacher.numpy().ravel()
    error = np.abs(s - t)
    expected = {
        "mse": np.mean(error**2),
        "huber": np.mean(np.where(error <= 1, error**2 / 2, error - 0.5)),
    }
    for name, value in expected.items():
        assert float(DISTILLATION_LOSSES[name](student, teacher, 1.0)) == pytest.approx(
            value, rel=1e-9, abs=1e-12
        )


@given(pairs, st.floats(0.5, 20))
def test_bernoulli_kl_is_the_divergence_of_two_coins(pairs, temperature):
    student, teacher = as_maps(pairs)
    found = float(DISTILLATION_LOSSES["bernoulli_kl"](student, teacher, temperature))
    s, t = (side.numpy().ravel() / temperature for side in (student, teacher))
    with np.errstate(over="ignore"):
        p = 1 / (1 + np.exp(-t))
    # KL = cross entropy - entropy, in the form BCE-with-logits uses
    cross = np.logaddexp(0, s) - p * s
    entropy = np.logaddexp(0, t) - p * t
    size = 1 + np.abs(np.concatenate([s, t])).max()
    assert found == pytest.approx(
        temperature**2 * np.mean(cross - entropy), rel=1e-6, abs=1e-8 * temperature**2 * size
    )
    assert found >= -1e-9
    assert float(DISTILLATION_LOSSES["bernoulli_kl"](teacher, teacher, temperature)) == pytest.approx(
        0, abs=1e-9
    )


def test_bernoulli_kl_by_scipy_and_its_temperature():
    student, teacher = maps(1), 2 * maps(2)
    for temperature in (1.0, 4.0):
        p, q = (torch.sigmoid(side / temperature).numpy().ravel() for side in (teacher, student))
        expected = temperature**2 * np.mean(
            [stats.entropy([a, 1 - a], [b, 1 - b]) for a, b in zip(p, q, strict=True)]
        )
        assert float(DISTILLATION_LOSSES["bernoulli_kl"](student, teacher, temperature)) == pytest.approx(
            expected
        )
    # Hinton's limit: at high temperature the loss is half ... an eighth of the squared error
    hot = float(DISTILLATION_LOSSES["bernoulli_kl"](student, teacher, 1e3))
    assert hot == pytest.approx(float(F.mse_loss(student, teacher)) / 8, rel=1e-3)


@given(st.integers(0, 10**6), st.floats(0.1, 1e3), st.floats(-1e3, 1e3))
def test_correlation_against_scipy_and_its_invariances(seed, factor, offset):
    student, teacher = maps(seed), maps(seed + 1)
    loss = DISTILLATION_LOSSES["correlation"]
    expected = 1 - stats.pearsonr(student.numpy().ravel(), teacher.numpy().ravel())[0]
    assert float(loss(student, teacher, 1.0)) == pytest.approx(expected, abs=1e-6)
    assert float(loss(student, factor * teacher + offset, 1.0)) == pytest.approx(expected, abs=1e-5)
    assert float(loss(student, -student, 1.0)) == pytest.approx(2, abs=1e-6)


@pytest.mark.parametrize("loss", DISTILLATION_LOSSES)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize(
    "case", ["constant student", "constant teacher", "both", "extreme", "one patch", "equal"]
)
def test_loss_and_gradient_stay_finite(loss, normalize, case):
    student, teacher = maps(3).float(), maps(4).float()
    if case in ("constant student", "both"):
        student = torch.full_like(student, 0.1)
    if case in ("constant teacher", "both"):
        teacher = torch.full_like(teacher, -7.3)
    if case == "extreme":
        teacher = teacher * 1e5
    if case == "one patch":
        student, teacher = student[:1, :, :1, :1], teacher[:1, :, :1, :1]
    if case == "equal":
        teacher = student.clone()
    student.requires_grad_()
    scale = LogitScale.of(teacher)
    value = distillation_loss(student, teacher, weights(loss=loss, normalize=normalize), scale)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()
    assert value.item() >= -1e-5


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_which_normalisation_keeps_the_label(normalize):
    labels = np.tile([0, 1], 20)
    teacher = 20 * (0.3 * maps(5, (40, 1, 6, 6)) + torch.from_numpy(labels).reshape(-1, 1, 1, 1)) - 15
    scale = LogitScale.of(teacher)
    _, seen = NORMALIZATIONS[normalize](maps(6, (40, 1, 6, 6)), teacher, scale)
    means = seen.mean(dim=(1, 2, 3)).numpy()
    if KEEPS_IMAGE_MEAN[normalize]:
        assert auc(labels, means).value == 1.0
    else:
        assert np.abs(means).max() < 1e-6


def test_normalisations_by_hand():
    student, teacher = maps(7), 21 * maps(8) - 4
    scale = LogitScale.of(teacher)
    t = teacher.numpy()
    mad = np.median(np.abs(t - np.median(t)))
    expected = {
        "none": teacher.numpy(),
        "center": t - t.mean(),
        "standardize": (t - t.mean()) / t.std(),
        "robust": (t - np.median(t)) / (1.4826 * mad),
        "batch": (t - t.mean()) / (t.std(ddof=1) + 1e-8),
        "layer": (t - t.mean((1, 2, 3), keepdims=True)) / np.sqrt(t.var((1, 2, 3), keepdims=True) + 1e-5),
    }
    for name, value in expected.items():
        seen_student, seen = NORMALIZATIONS[name](student, teacher, scale)
        np.testing.assert_allclose(seen.numpy(), value, atol=1e-10, err_msg=name)
        touched = not torch.equal(seen_student, student)
        assert touched == (name in ("batch", "layer")), name


def test_robust_scale_resists_what_moves_the_plain_one():
    teacher = maps(9, (50, 1, 4, 4))
    spoilt = teacher.clone()
    spoilt[0, 0, 0, 0] = 1e6
    assert LogitScale.of(spoilt).std > 1e4
    assert LogitScale.of(spoilt).mad == pytest.approx(LogitScale.of(teacher).mad, rel=0.05)


def test_scale_of_odd_maps():
    assert LogitScale.of(torch.tensor([1.0, math.inf, 3.0, math.nan])) == LogitScale(2.0, 1.0, 2.0, 1.0)
    assert LogitScale.of(torch.tensor([math.nan])) == LogitScale(0.0, 1.0, 0.0, 1.0)
    flat = LogitScale.of(torch.full((3, 1, 2, 2), 5.0))
    assert (flat.plain_divisor, flat.robust_divisor) == (1.0, 1.0)
    mostly = LogitScale.of(torch.tensor([0.0, 0, 0, 0, 10]))
    assert mostly.robust_divisor == mostly.std == 4.0
    half = LogitScale.of(torch.full((1000,), 60000.0, dtype=torch.float16))
    assert half.mean == pytest.approx(60000, rel=1e-3)


@given(st.floats(0, 1), st.sampled_from(sorted(DISTILLATION_LOSSES)), st.sampled_from(sorted(NORMALIZATIONS)))
def test_weighted_sum(alpha, loss, normalize):
    chosen = weights(alpha_distill=alpha, alpha_task=1 - alpha, loss=loss, normalize=normalize)
    student, teacher = maps(10), maps(11)
    logits, labels = student.mean(dim=(1, 2, 3)), torch.tensor([0, 1, 1, 0])
    scale = LogitScale.of(teacher)
    parts = weighted_loss(student, teacher, logits, labels, chosen, scale)
    bce = np.mean(
        [np.log1p(np.exp(-z if y else z)) for z, y in zip(logits.tolist(), labels.tolist(), strict=True)]
    )
    assert float(parts.task) == pytest.approx(bce)
    assert float(parts.distill) == pytest.approx(float(distillation_loss(student, teacher, chosen, scale)))
    assert float(parts.total) == pytest.approx(alpha * float(parts.distill) + (1 - alpha) * bce)


def test_the_guides_sum_of_225():
    chosen = weights(alpha_distill=0.5, alpha_task=0.5)
    student = torch.zeros(4, 1, 2, 2)
    parts = weighted_loss(
        student, torch.full_like(student, math.sqrt(450)), torch.zeros(4), torch.tensor([0, 1, 0, 1]), chosen
    )
    assert float(parts.distill) == pytest.approx(450)
    assert float(parts.task) == pytest.approx(math.log(2))
    assert float(parts.total) == pytest.approx(225 + 0.3466, abs=1e-3)


def test_a_term_of_weight_zero_takes_no_part():
    student = maps(12).requires_grad_()
    broken = torch.full_like(student, math.inf)
    logits, labels = student.mean(dim=(1, 2, 3)), torch.tensor([0, 1, 0, 1])
    bce_only = weighted_loss(student, broken, logits, labels, weights(alpha_distill=0.0, alpha_task=1.0))
    bce_only.total.backward()
    assert bce_only.total.item() == bce_only.task.item()
    assert torch.isfinite(student.grad).all()
    alone = weighted_loss(None, None, logits, labels, weights(alpha_distill=0.5, alpha_task=0.5))
    assert alone.distill is None
    assert alone.total.item() == pytest.approx(0.5 * alone.task.item())


def test_gradients_reach_the_student_alone():
    student, teacher = maps(13).requires_grad_(), maps(14).requires_grad_()
    for normalize in NORMALIZATIONS:
        value = distillation_loss(student, teacher, weights(normalize=normalize), LogitScale.of(teacher))
        value.backward()
    assert teacher.grad is None
    assert float(student.grad.abs().sum()) > 0


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="aligned first"):
        distillation_loss(maps(), maps(size=(4, 1, 3, 1)), weights())
    with pytest.raises(ValueError, match="standardize needs"):
        distillation_loss(maps(), maps(), weights(normalize="standardize"))
