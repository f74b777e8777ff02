"""What does learning from the labels alone look like, and what would have changed it?"""

import math
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diag_lib.baseline import BaselineResult, learning_curve
from diag_lib.plots import style
from diag_lib.probes.conditional import CLEARLY_WORKS
from diag_lib.statistics import Auc

COIN = math.log(2)
GUIDE_LOSS = 0.45
LEARNING = 0.6
LOSS_CEILING = 1.6
VARIANT_NAMES = {
    "unfrozen_bce": "every layer trained",
    "longer": "four times as long",
    "bce_crop": "native crops",
}


@style.styled
def learning_curves(result: BaselineResult) -> Figure:
    """Loss against a coin and the guide's expectation, and validation AUC, epoch by epoch."""
    table = learning_curve(result.arm)
    figure, axes = style.new_figure(1, 2, width=10.5, height=3.8)
    losses = [
        (axes[0].plot(table["epoch"], table[column], "o-", color=colour, markersize=3)[0], name)
        for column, colour, name in (("train_bce", style.STUDENT, "train"), ("val_bce", style.NEUTRAL, "val"))
    ]
    finite = table[["train_bce", "val_bce"]].to_numpy()
    top = min(LOSS_CEILING, max(0.75, 1.08 * float(np.nanmax(np.where(np.isfinite(finite), finite, 0)))))
    axes[0].set_ylim(0, top)
    axes[0].set_ylabel("binary cross-entropy")
    style.threshold_line(axes[0], COIN, "a coin: 0.6931")
    style.threshold_line(axes[0], GUIDE_LOSS, "guide: 0.45", kind="good")
    style.finding_title(axes[0], _loss_headline(result))
    axes[1].plot(table["epoch"], table["val_auc"], "o-", color=style.STUDENT, markersize=3)
    limit = result.settings.thresholds.baseline_auc
    axes[1].set_ylim(min(0.4, 0.95 * float(np.nanmin([0.5, *table["val_auc"]]))), 1.02)
    axes[1].set_ylabel("validation AUC")
    style.threshold_line(axes[1], limit, f"guide: {limit:.2f}", kind="good")
    style.threshold_line(axes[1], 0.5, "chance")
    measured = result.arm.auc
    if measured.defined:
        axes[1].errorbar(
            table["epoch"].iloc[-1], measured.value, yerr=_bars(measured), color=style.STUDENT, capsize=4
        )
    style.finding_title(axes[1], f"Validation AUC ends at {_auc(measured)}")
    for ax in axes:
        ax.set_xlabel("epoch")
        _stage_boundary(ax, result)
    style.label_lines(axes[0], losses)
    return figure


@style.styled
def scores(result: BaselineResult) -> Figure:
    """How far the student's image logits tell the classes apart, and what shuffled labels give."""
    figure, axes = style.new_figure(1, 2, width=10.5, height=3.6)
    table = result.arm.val_scores
    finite = table["score"][np.isfinite(table["score"])]
    if len(finite) and finite.min() < finite.max():
        low, high = np.quantile(finite, [0.005, 0.995])
        edges = np.linspace(low, high, 40)
        for label in (0, 1):
            values = table.loc[table["label"] == label, "score"]
            counts, _ = np.histogram(values, edges)
            colour = style.CLASS_COLOURS[label]
            axes[0].stairs(counts, edges, fill=True, alpha=0.35, color=colour)
            axes[0].stairs(counts, edges, color=colour, linewidth=1.6, label=style.CLASS_NAMES[label])
        axes[0].legend(loc="upper right")
    axes[0].set_xlabel("image logit (raw)")
    axes[0].set_ylabel("validation images")
    style.finding_title(axes[0], "How far real and fake are apart")
    _permutations(axes[1], result)
    return figure


def _permutations(ax: Axes, result: BaselineResult) -> None:
    finite = result.permuted[np.isfinite(result.permuted)]
    ax.hist(finite, bins=30, color="#C9C9C9")
    ax.set_xlabel("AUC")
    ax.set_ylabel("shuffles of the labels")
    measured = result.arm.auc
    if measured.defined:
        ax.axvspan(*measured.ci, color=style.STUDENT, alpha=0.15)
        ax.axvline(measured.value, color=style.STUDENT)
        top = ax.get_ylim()[1]
        left = measured.value > 0.7
        style.direct_label(
            ax,
            measured.value,
            0.92 * top,
            f"true labels: {measured.value:.2f}",
            style.STUDENT,
            dx=-6 if left else 6,
        )
    ax.set_xlim(min(0.35, measured.value - 0.05 if measured.defined else 0.35), 1.02)
    inside = (
        measured.defined
        and len(finite)
        and np.quantile(finite, 0.025) <= measured.value <= np.quantile(finite, 0.975)
    )
    style.finding_title(
        ax,
        "The true labels do no better than shuffled"
        if inside
        else "The true labels stand out of shuffled ones",
    )


@style.styled
def changes(result: BaselineResult) -> Figure:
    """The AUC of the baseline beside that of each change that was tried, with 95% intervals."""
    rows: list[tuple[str, Auc, str]] = [("BCE only, as configured", result.arm.auc, style.STUDENT)]
    rows.append(("fresh BatchNorm statistics", result.recalibration.after, style.NEUTRAL))
    rows += [
        (f"pooled: {name}", value, style.NEUTRAL)
        for name, value in result.pooling_aucs.items()
        if name != "as configured"
    ]
    probes = result.probes
    rows += [
        (f"learning rate x {name.removeprefix('bce_lr_x')}", value, style.SERIES[0])
        for name, value in probes.rate_aucs.items()
        if name.startswith("bce_lr_x")
    ]
    for name, difference in (
        ("unfrozen_bce", probes.unfrozen),
        ("longer", probes.longer),
        ("bce_crop", probes.crop),
    ):
        if difference is not None:
            rows.append((VARIANT_NAMES[name], difference.after, style.SERIES[0]))
    for name, value in (
        ("train: part teaches, rest judged", probes.held_out),
        ("val: half A teaches, B judged", probes.val_halves),
    ):
        if value is not None:
            rows.append((name, value, style.SERIES[4]))
    rows = [row for row in rows if row[1].defined]
    figure, ax = style.new_figure(width=8.5, height=1.2 + 0.42 * len(rows))
    style.interval_bars(
        ax,
        [name for name, _, _ in rows],
        [value.value for _, value, _ in rows],
        [value.ci for _, value, _ in rows],
        [colour for _, _, colour in rows],
    )
    limit = result.settings.thresholds.baseline_auc
    style.threshold_line(ax, limit, f"guide: {limit:.2f}", axis="x", kind="good")
    ax.axvline(0.5, color=style.GRID, linewidth=2, zorder=0)
    ax.set_xlabel("validation AUC with its 95% interval")
    style.finding_title(ax, _changes_headline(result))
    return figure


@style.styled
def optimisation(result: BaselineResult) -> Figure:
    """A few steps at many learning rates, and one batch shown again and again."""
    run = result.probes.ladder is not None or result.probes.overfit is not None
    figure, axes = style.new_figure(1, 2, width=10.5, height=3.6 if run else 1.3)
    _ladder(axes[0], result)
    _overfit(axes[1], result)
    return figure


def _ladder(ax: Axes, result: BaselineResult) -> None:
    ladder = result.probes.ladder
    if ladder is None:
        _not_run(ax, "Other learning rates", result.probes.skipped.get("learning_rate", "not run"))
        return
    loss = np.minimum(ladder["loss"].to_numpy(), LOSS_CEILING)
    ax.plot(ladder["factor"], loss, "o-", color=style.SERIES[0])
    ax.plot([1.0], loss[ladder["factor"].to_numpy() == 1.0], "D", color=style.STUDENT, zorder=3)
    style.direct_label(
        ax, 1.0, float(loss[ladder["factor"].to_numpy() == 1.0][0]), "yours", style.STUDENT, dx=0, dy=12
    )
    ax.set_xscale("log")
    ax.set_ylim(0, min(LOSS_CEILING, max(0.8, 1.05 * float(loss.max()))))
    ax.set_xlabel("multiple of your learning rate")
    ax.set_ylabel("BCE after 60 steps")
    style.threshold_line(ax, COIN, "a coin: 0.6931")
    best = float(ladder["factor"].iloc[int(np.argmin(loss))])
    title = (
        "Your learning rate is as good as any"
        if best == 1.0
        else f"A short run prefers {best:g} times your rate"
    )
    style.finding_title(ax, title)


def _overfit(ax: Axes, result: BaselineResult) -> None:
    fit = result.probes.overfit
    if fit is None:
        _not_run(ax, "Overfitting one batch", result.probes.skipped.get("overfit_batch", "not run"))
        return
    lines = [
        (ax.plot(range(1, len(curve) + 1), curve, color=style.SERIES[i])[0], f"rate x {factor:g}")
        for i, (factor, curve) in enumerate(fit.curves.items())
    ]
    ax.set_ylim(0, min(LOSS_CEILING, max(0.8, max(curve[0] for curve in fit.curves.values()))))
    ax.set_xlabel("step on the same batch")
    style.threshold_line(ax, COIN, "a coin: 0.6931")
    style.label_lines(ax, lines)
    style.finding_title(
        ax, "One batch can be memorised" if fit.passed else "Not even one batch can be memorised"
    )


def _not_run(ax: Axes, what: str, why: str) -> None:
    ax.set_axis_off()
    style.finding_title(ax, f"{what}: not needed")
    ax.text(0, 0.9, "\n".join(textwrap.wrap(why, 60)), transform=ax.transAxes, va="top", color=style.NEUTRAL)


def _stage_boundary(ax: Axes, result: BaselineResult) -> None:
    stages = np.asarray(result.arm.history["stage"])
    second = np.flatnonzero(stages == 2)
    if second.size and second[0] > 0:
        ax.axvline(second[0] + 0.5, color=style.GRID, linewidth=1.5, zorder=0)
        ax.annotate(
            "stage 2",
            (second[0] + 0.5, 0),
            xycoords=("data", "axes fraction"),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=8,
            color=style.NEUTRAL,
        )


def _loss_headline(result: BaselineResult) -> str:
    last = result.arm.history["train_task_loss"][-1]
    if not math.isfinite(last):
        return "The loss is no longer a number"
    first = result.arm.history["train_task_loss"][0]
    if last < LEARNING:
        return f"The loss falls from {first:.2f} to {last:.2f}: the labels are being learned"
    return f"The loss hardly falls: {first:.2f} to {last:.2f}"


def _changes_headline(result: BaselineResult) -> str:
    if result.arm.auc.ci[0] > CLEARLY_WORKS:
        return "The baseline needs no change"
    answers = {
        name: result.finding(name)
        for name in ("learning_rate", "frozen", "undertrained", "resize", "batchnorm", "pooling")
    }
    words = {
        "learning_rate": "another learning rate",
        "frozen": "training every layer",
        "undertrained": "training longer",
        "resize": "native crops",
        "batchnorm": "fresh BatchNorm statistics",
        "pooling": "another pooling",
    }
    helped = [words[name] for name, found in answers.items() if found is not None and found.answer == "yes"]
    return (
        f"What helps: {', '.join(helped)}"
        if helped
        else "None of the changes that were tried is proven to help"
    )


def _bars(measured: Auc) -> np.ndarray:
    return np.array([[measured.value - measured.ci[0]], [measured.ci[1] - measured.value]])


def _auc(measured: Auc) -> str:
    return (
        f"{measured.value:.2f} [{measured.ci[0]:.2f}, {measured.ci[1]:.2f}]"
        if measured.defined
        else "undefined (constant scores)"
    )
