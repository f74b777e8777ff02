"""What do the training curves look like, and which loss fills the sum?"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from diag_lib.plots import style
from diag_lib.recording import Recording, values
from diag_lib.symptoms import LN2, NAMES, SymptomsResult, recorded_findings
from diag_lib.symptoms.flow import STEP_HIGH, STEP_LOW, step_ratio

LOSSES = (
    ("train_loss", style.INK, "-", "total"),
    ("train_distill_loss", style.TEACHER, "--", "distillation"),
    ("train_task_loss", style.STUDENT, "-.", "task (BCE)"),
)


@style.styled
def curves(result: SymptomsResult) -> Figure:
    """Losses, their shares and the validation AUC, epoch by epoch; the title is the finding."""
    figure, axes = style.new_figure(1, 3, width=12.0, height=4.2)
    _losses(axes[0], result)
    _shares(axes[1], result)
    _auc(axes[2], result)
    for ax in axes:
        _mark_stages(ax, result)
        ax.set_xlabel("epoch")
        ax.set_xlim(0.5, len(result.history) + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.finding_title(figure, result.summary)
    return figure


def describe_curves(result: SymptomsResult) -> str:
    """The figure in words, for its text alternative."""
    said = [f"{name}: {result.curves[column].said}" for column, name in NAMES.items()]
    return f"Training curves over {len(result.history)} epochs. {'; '.join(said)}."


def _losses(ax: Axes, result: SymptomsResult) -> None:
    known, lines = [], []
    for column, colour, dashes, name in LOSSES:
        values = result.history.values(column)
        if result.history.known(column):
            known.append(values[np.isfinite(values)])
            lines.append((_line(ax, result, column, colour, dashes), name))
    if not known:
        _nothing(ax, "no loss in the history")
    else:
        everything = np.concatenate(known)
        if everything.min() > 0 and everything.max() > 20 * everything.min():
            ax.set_yscale("log")
        style.threshold_line(ax, LN2, f"a coin's BCE, {LN2:.3f}")
        style.label_lines(ax, lines)
    ax.set_ylabel("loss")
    style.finding_title(ax, f"BCE {result.curves['train_task_loss'].said}")


def _shares(ax: Axes, result: SymptomsResult) -> None:
    epochs = result.shares["epoch"].to_numpy()
    distill = result.shares["distill"].to_numpy()
    good = np.isfinite(distill)
    if good.any():
        last = float(distill[good][-1])
        wide = np.concatenate([epochs[good] - 0.5, epochs[good][-1:] + 0.5])
        step = np.append(distill[good], last)
        ax.fill_between(wide, 0, step, step="post", color=style.TEACHER, alpha=0.55)
        ax.fill_between(wide, step, 1, step="post", color=style.STUDENT, alpha=0.55)
        ax.plot(wide, step, color=style.INK, linewidth=1, drawstyle="steps-post")
        centre = float(np.mean(epochs[good]))
        for height, share, name in ((last / 2, last, "distillation"), ((1 + last) / 2, 1 - last, "task")):
            if share > 0.08:
                label = style.direct_label(ax, centre, height, f"{name} {share:.1%}", style.INK, dx=0)
                label.set_horizontalalignment("center")
        title = f"Distillation is {result.finding('distill_share').value or 0:.1%} of the weighted loss"
    else:
        _nothing(ax, "both losses are needed for their shares")
        title = "Shares of the loss are unknown"
    ax.set_ylim(0, 1)
    ax.set_ylabel("share of the weighted loss")
    style.finding_title(ax, title, f"weights {result.alpha[0]:g} and {result.alpha[1]:g}")


def _auc(ax: Axes, result: SymptomsResult) -> None:
    threshold = result.settings.thresholds.baseline_auc
    if result.history.known("val_auc"):
        _line(ax, result, "val_auc", style.STUDENT, "-")
        epochs = result.history.epochs["epoch"].to_numpy()
        if result.auc is not None and result.auc.defined:
            low, high = result.auc.ci
            ax.errorbar(
                [epochs[-1]], [result.auc.value], [[result.auc.value - low], [high - result.auc.value]],
                color=style.STUDENT, capsize=4, linewidth=1.6, zorder=4,
            )  # fmt: skip
        values = result.history.values("val_auc")
        low, high = np.nanmin(values[np.isfinite(values)]), np.nanmax(values[np.isfinite(values)])
        ax.set_ylim(max(0.0, min(0.4, low - 0.05)), min(1.02, max(0.75, high + 0.05)))
    else:
        _nothing(ax, "no validation AUC in the history")
        ax.set_ylim(0.4, 1.0)
    style.threshold_line(ax, 0.5, "chance, .5")
    style.threshold_line(ax, threshold, f"signal, {threshold:.2f}", kind="good")
    ax.set_ylabel("validation AUC")
    subtitle = "95% interval at the last epoch" if result.auc is not None and result.auc.defined else None
    style.finding_title(ax, f"AUC {result.curves['val_auc'].said}", subtitle)


def _line(ax: Axes, result: SymptomsResult, column: str, colour: str, dashes: str) -> Line2D:
    values = result.history.values(column)
    shown = np.where(np.isfinite(values), values, np.nan)
    marker = "o" if len(values) < 4 else "None"
    return ax.plot(result.history.epochs["epoch"], shown, dashes, color=colour, marker=marker, markersize=5)[
        0
    ]


def _mark_stages(ax: Axes, result: SymptomsResult) -> None:
    stages, epochs = result.history.values("stage"), result.history.epochs["epoch"].to_numpy()
    for i in np.flatnonzero(np.diff(stages) != 0):
        ax.axvline(epochs[i] + 0.5, color=style.NEUTRAL, linewidth=0.9, linestyle=":")
        if np.isfinite(stages[i + 1]):
            ax.annotate(
                f"stage {stages[i + 1]:.0f}", (epochs[i] + 0.5, 0), xycoords=("data", "axes fraction"),
                xytext=(3, 3), textcoords="offset points", fontsize=8, color=style.NEUTRAL,
            )  # fmt: skip


def _nothing(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=style.NEUTRAL)


# ---- what the recorder saw


@style.styled
def recorded(result: SymptomsResult) -> Figure:
    """Inside the recorded loop: gradients, step sizes, fit to the teacher, and the AUC reported against the exact one.

    Raises ValueError for a history that is no recording.
    """
    log = result.history.recording
    if log is None:
        raise ValueError("the history is no recording")
    figure, axes = style.new_figure(1, 4, width=13.0, height=3.9)
    _gradients(axes[0], log)
    _step_sizes(axes[1], log)
    _fit(axes[2], log)
    _reported_auc(axes[3], log)
    found = recorded_findings(result)
    worst = next((f for f in found if f.severity == "error"), None)
    style.finding_title(
        figure, worst.message if worst else "The recording shows no slip in the code of the loop"
    )
    return figure


def describe_recorded(result: SymptomsResult) -> str:
    """The figure in words, for its text alternative."""
    names = ("losses_agree", "update_ratio", "teacher_fit", "evaluation")
    return " ".join(["What the recorder saw.", *(result.finding(name).message for name in names)])


def _gradients(ax: Axes, log: Recording) -> None:
    steps, lines = values(log.updates, "step"), []
    for name, colour, dashes, label in (
        ("distill_norm", style.TEACHER, "--", "distillation"),
        ("task_norm", style.STUDENT, "-.", "task (BCE)"),
    ):
        norms = values(log.updates, "gradients", name)
        if (norms > 0).any():
            lines.append((_dots(ax, steps, np.where(norms > 0, norms, np.nan), colour, dashes), label))
    if lines:
        ax.set_yscale("log")
        style.label_lines(ax, lines)
    else:
        _nothing(ax, "no gradients recorded")
    _steps_axis(ax, "gradient norm, unweighted", "How hard each loss pulls")


def _step_sizes(ax: Axes, log: Recording) -> None:
    steps, ratios = values(log.updates, "step"), np.array([step_ratio(event) for event in log.updates])
    if (ratios > 0).any():
        _dots(ax, steps, np.where(ratios > 0, ratios, np.nan), style.STUDENT, "-")
        ax.set_yscale("log")
        for limit, label in ((STEP_LOW, "next to nothing"), (STEP_HIGH, "overwrites the weights")):
            style.threshold_line(ax, limit, label)
    else:
        _nothing(ax, "no step examined")
    _steps_axis(ax, "step / weights", "How far a step moves the weights")


def _fit(ax: Axes, log: Recording) -> None:
    steps, rho = values(log.steps, "step"), values(log.steps, "fit", "rho")
    if np.isfinite(rho).any():
        _dots(ax, steps, rho, style.STUDENT, "-")
        style.threshold_line(ax, 0.0, "no relation")
        ax.set_ylim(min(-0.1, np.nanmin(rho) - 0.05), 1.0)
    else:
        _nothing(ax, "no patches of both recorded")
    _steps_axis(ax, "correlation with the teacher", "How well the patches follow")


def _reported_auc(ax: Axes, log: Recording) -> None:
    epochs = np.arange(1, len(log.epochs) + 1)
    told, exact = values(log.epochs, "val_auc"), values(log.epochs, "seen", "exact")
    told = np.where(told > 1.5, told / 100, told)
    lines = []
    for numbers, colour, dashes, label in (
        (exact, style.STUDENT, "-", "exact"),
        (told, style.INK, ":", "reported"),
    ):
        if np.isfinite(numbers).any():
            lines.append(
                (_dots(ax, epochs, np.where(np.isfinite(numbers), numbers, np.nan), colour, dashes), label)
            )
    if lines:
        style.threshold_line(ax, 0.5, "chance, .5")
        style.label_lines(ax, lines)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        _nothing(ax, "no validation AUC recorded")
    ax.set_xlabel("epoch")
    ax.set_ylabel("validation AUC")
    style.finding_title(ax, "What is reported, and what is so")


def _dots(ax: Axes, x: np.ndarray, y: np.ndarray, colour: str, dashes: str) -> Line2D:
    return ax.plot(x, y, dashes, color=colour, marker="o", markersize=3)[0]


def _steps_axis(ax: Axes, ylabel: str, title: str) -> None:
    ax.set_xlabel("step")
    ax.set_ylabel(ylabel)
    style.finding_title(ax, title)
