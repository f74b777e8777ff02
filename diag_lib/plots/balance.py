"""Who rules the loss and the gradient at each weight, and do the two losses agree?"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from diag_lib.plots import style
from diag_lib.probes.balance import Balance, Choice, Terms, headline, percent, rounded, share

DISTILL, TASK = style.TEACHER, style.STUDENT
EDGE = 0.0005  # where alphas of 0 and 1 are drawn
TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
LINES = {"loss": "-", "gradient": (0, (4, 2))}


@style.styled
def board(found: Terms, now: Balance, choice: Choice) -> Figure:
    """Shares now, shares at every weight, and the cosine; always of one size, so that nothing jumps."""
    figure, axes = style.new_figure(1, 3, width=11, height=3.9, width_ratios=[1.15, 1.25, 0.8])
    style.fix_layout(figure, left=0.065, right=0.975, top=0.77, bottom=0.135, wspace=0.24)
    _bars(axes[0], now)
    _curves(axes[1], found, now, choice)
    _cosine(axes[2], now.cosine)
    style.finding_title(figure, headline(now))
    return figure


def _bars(ax: Axes, now: Balance) -> None:
    for row, part in enumerate((now.loss_share, now.gradient_share)):
        if not np.isfinite(part):
            continue
        ax.barh(row, part, color=DISTILL, height=0.5)
        ax.barh(row, 1 - part, left=part, color=TASK, height=0.5)
        for left, width, text in ((0.0, part, percent(part)), (part, 1 - part, percent(1 - part))):
            if width > 0.22:
                ax.text(left + width / 2, row, text, ha="center", va="center", color="white", fontsize=10)
    ax.set_yticks([0, 1], ["loss", "gradient"])
    ax.set_ylim(1.75, -0.55)
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    ax.grid(visible=False)
    sums = f"{now.distill:.3g} distillation + {now.task:.3g} labels"
    style.finding_title(ax, f"Weighted loss {now.total:.4g}", sums)
    for x, align, colour, text in (
        (0.0, "left", DISTILL, "distillation"),
        (1.0, "right", TASK, "labels (BCE)"),
    ):
        ax.text(x, 1.5, text, color=colour, fontsize=10, fontweight="bold", ha=align, va="center")


def _curves(ax: Axes, found: Terms, now: Balance, choice: Choice) -> None:
    odds = np.linspace(np.log(EDGE / (1 - EDGE)), -np.log(EDGE / (1 - EDGE)), 161)
    alphas = 1 / (1 + np.exp(-odds))
    place = float(np.clip(choice.alpha_distill, EDGE, 1 - EDGE))
    sides = (("loss", found.distill, found.task), ("gradient", found.distill_norm, found.task_norm))
    for name, distill, task in sides:
        shares = [share(distill, task, alpha) for alpha in alphas]
        ax.plot(alphas, shares, color=style.INK, linestyle=LINES[name], linewidth=1.6, label=name)
    for part in (now.loss_share, now.gradient_share):
        ax.plot([place], [part], "o", color=style.STUDENT, markersize=8, zorder=5)
    ax.axvline(place, color=style.STUDENT, linewidth=1.2, zorder=1)
    ax.axhline(0.5, color=style.GRID, linewidth=1)
    ax.set_xscale("logit")
    ax.set_xlim(EDGE, 1 - EDGE)
    ax.xaxis.set_major_locator(FixedLocator(list(TICKS)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    ax.set_ylim(-0.04, 1.04)
    ax.set_xlabel("alpha_distill")
    ax.legend(loc="lower right", title="share of the")
    style.finding_title(ax, "Distillation's share at each weight", f"line: now, {choice.alpha_distill:g}")


def _cosine(ax: Axes, cosine: float) -> None:
    if np.isfinite(cosine):
        ax.barh(0, cosine, color=style.NEUTRAL, height=0.5)
        ax.plot([cosine], [0], "D", color=style.INK, markersize=7)
    ax.axvline(0, color=style.INK, linewidth=1.2)
    ax.set_xlim(-1.05, 1.05)
    ax.set_ylim(1, -0.8)
    ax.set_yticks([])
    ax.grid(visible=False, axis="y")
    ax.set_xticks([-1, 0, 1], ["-1\ncontrary", "0\nunrelated", "1\nagree"])
    shown = f"Cosine {rounded(cosine)}" if np.isfinite(cosine) else "No cosine: a gradient is 0"
    style.finding_title(ax, shown, "between the two gradients")
