"""How much better is one arm than another, from each seed?"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from diag_lib.plots import style
from diag_lib.seeds import SeedPair

_SHADES = {"better": style.GOOD, "worse": style.BAD, "open": style.NEUTRAL, "not trained": style.NEUTRAL}


@style.styled
def differences(pairs: Sequence[SeedPair], title: str) -> Figure:
    """One row a seed: the paired difference in AUC with its interval. All figures of a run are of one size."""
    figure, ax = style.new_figure(width=8.5, height=1.75 + 0.5 * len(pairs))
    drawn = [pair.found for pair in pairs if pair.found is not None and pair.found.delta == pair.found.delta]
    reach = max([0.1, *(abs(end) for found in drawn for end in found.ci)])
    values = [found.delta if (found := pair.found) is not None else float("nan") for pair in pairs]
    intervals = [found.ci if (found := pair.found) in drawn else (float("nan"),) * 2 for pair in pairs]
    names = [f"seed {pair.seed}{' (this run)' if not row else ''}" for row, pair in enumerate(pairs)]
    style.interval_bars(ax, names, values, intervals, [_SHADES[pair.verdict] for pair in pairs])
    for row, pair in enumerate(pairs):
        if pair.found not in drawn:
            style.direct_label(ax, 0.0, row, pair.shown, style.NEUTRAL, dx=8)
    ax.set_xlim(-1.08 * reach, 1.08 * reach)
    style.threshold_line(ax, 0.0, "no difference", axis="x")
    ax.set_xlabel("difference in AUC, second arm - first (paired, half B, 95% interval)")
    style.finding_title(figure, title)
    return figure
