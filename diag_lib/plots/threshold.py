"""Where on the ROC curve does a threshold sit, and what does it call each image?"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diag_lib.plots import style
from diag_lib.probes.threshold import Confusion, Floats, Ints

BINS = 40


@style.styled
def board(labels: Ints, scores: Floats, threshold: float, now: Confusion) -> Figure:
    """Scores of both classes with the threshold, the ROC curve with its point, the confusion matrix."""
    figure, axes = style.new_figure(1, 3, width=11, height=3.7, width_ratios=[1.3, 1, 1])
    style.fix_layout(figure, left=0.05, right=0.985, top=0.77, bottom=0.15, wspace=0.28)
    finite = scores[np.isfinite(scores)]
    low, high = (float(end) for end in np.quantile(finite, [0.005, 0.995])) if finite.size else (-1.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    for label in (0, 1):
        values = scores[(labels == label) & np.isfinite(scores)]
        weights = np.full(values.size, 1 / max(1, values.size))
        look = {"color": style.CLASS_COLOURS[label], "histtype": "stepfilled", "alpha": 0.4}
        axes[0].hist(
            values.clip(edges[0], edges[-1]), edges, weights=weights, label=style.CLASS_NAMES[label], **look
        )
    axes[0].axvline(np.clip(threshold, edges[0], edges[-1]), color=style.STUDENT, linewidth=2)
    axes[0].set_xlabel("image logit")
    axes[0].set_yticks([])
    axes[0].legend(loc="upper right")
    style.finding_title(axes[0], f"Right of {threshold:.3g}: called fake")
    order = np.sort(finite)[::-1]
    fake, real = (np.sort(scores[(labels == label) & np.isfinite(scores)]) for label in (1, 0))
    rates = [
        np.concatenate([[0.0], 1 - np.searchsorted(side, order, "left") / max(1, side.size)])
        for side in (real, fake)
    ]
    axes[1].plot(rates[0], rates[1], color=style.NEUTRAL)
    axes[1].plot([0, 1], [0, 1], color=style.GRID, linewidth=1)
    axes[1].plot([now.fpr], [now.tpr], "o", color=style.STUDENT, markersize=9)
    axes[1].set_xlabel("reals called fake (FPR)")
    axes[1].set_ylabel("fakes called fake (TPR)")
    style.finding_title(axes[1], f"TPR {now.tpr:.0%}, FPR {now.fpr:.0%}")
    _matrix(axes[2], now)
    style.finding_title(figure, f"At {threshold:.3g} the balanced accuracy is {now.balanced_accuracy:.2f}")
    return figure


def _matrix(ax: Axes, now: Confusion) -> None:
    counts = np.array([[now.real_hit, now.real_miss], [now.fake_miss, now.fake_hit]])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    for row in range(2):
        for column in range(2):
            said = f"{counts[row, column]:,}\n{shares[row, column]:.0%}"
            dark = shares[row, column] > 0.75
            ax.text(column, row, said, ha="center", va="center", color="white" if dark else style.INK)
    ax.set_xticks([0, 1], ["called real", "called fake"])
    ax.set_yticks([0, 1], ["real", "fake"])
    ax.grid(visible=False)
    style.finding_title(ax, f"Accuracy {now.accuracy:.2f}")
