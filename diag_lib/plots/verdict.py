"""Which gates did the run pass, what did the fix gain, and how did all arms do?"""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from diag_lib.plots import style
from diag_lib.verdict import Gate, VerdictResult

_SHADES = {"passed": style.GOOD, "failed": style.BAD, "undecided": style.NEUTRAL, "not asked": style.GRID}
_MARKS = {"passed": "✓", "failed": "✗", "undecided": "?", "not asked": "–"}


@style.styled
def gates(result: VerdictResult) -> Figure:
    """The chain of questions in the order of decision, each with its answer and the figure behind it."""
    chain = result.gates
    figure, ax = style.new_figure(width=9, height=0.62 * len(chain) + 0.9)
    ax.set_axis_off()
    ax.set(xlim=(0, 1), ylim=(len(chain) - 0.4, -0.6))
    for row, gate in enumerate(chain):
        shade = _SHADES[gate.state]
        ax.add_patch(
            FancyBboxPatch(
                (0.005, row - 0.36), 0.99, 0.72, "round,pad=0,rounding_size=0.01", fc="none", ec=shade, lw=1.4
            )
        )
        ink = style.NEUTRAL if gate.state == "not asked" else shade
        ax.text(
            0.035,
            row,
            _MARKS[gate.state],
            color=ink,
            fontsize=15,
            fontweight="bold",
            ha="center",
            va="center",
        )
        ax.text(0.07, row, style.plain(gate.question), va="center", fontweight="bold")
        ax.text(0.985, row, style.plain(gate.answer, 70), va="center", ha="right", color=style.INK)
        if row:
            ax.plot([0.035, 0.035], [row - 0.64, row - 0.36], color=style.NEUTRAL, linewidth=1.2)
    style.finding_title(figure, _gate_title(chain))
    return figure


def _gate_title(chain: Sequence[Gate]) -> str:
    failed = [gate for gate in chain if gate.state == "failed"]
    if failed:
        return f"{len(failed)} of {len(chain)} gates failed, the first: {failed[0].question}"
    if any(gate.state == "undecided" for gate in chain):
        return "No gate failed, but not every question could be decided"
    return "Every gate was passed"


@style.styled
def before_after(result: VerdictResult) -> Figure | None:
    """Every proof as two dots with their 95% intervals; None when nothing was proven by comparison."""
    proofs = [(cause.id, cause.proof) for cause in result.causes if cause.proof is not None]
    if not proofs:
        return None
    names, values, intervals, shades = [], [], [], []
    for cause, proof in proofs:
        for word, side, shade in (("before", proof.before, style.BAD), ("after", proof.after, style.GOOD)):
            names.append(f"{word}: {side.arm}" if len(proofs) == 1 else f"{cause}, {word}")
            values.append(side.auc.value)
            intervals.append(side.auc.ci)
            shades.append(shade)
    figure, ax = style.new_figure(width=9, height=0.6 * len(names) + 1.5)
    style.interval_bars(ax, names, values, intervals, shades)
    style.threshold_line(ax, 0.5, "guessing", axis="x")
    ax.set(xlabel="validation AUC with 95% interval, on the images that chose nothing", xlim=(0.35, 1.02))
    delta, (low, high) = proofs[0][1].delta, proofs[0][1].ci
    style.finding_title(figure, f"The experiment moved the AUC by {delta:+.2f} [{low:+.2f}, {high:+.2f}]")
    return figure


@style.styled
def arms(result: VerdictResult) -> Figure | None:
    """The validation AUC of every trained arm with its interval; None without arms."""
    rows = [arm for arm in result.arms if arm["auc"] is not None]
    if not rows:
        return None
    figure, ax = style.new_figure(width=9, height=0.3 * len(rows) + 1.5)
    shades = [style.BAD if arm["id"] == "status_quo" else style.STUDENT for arm in rows]
    style.interval_bars(
        ax, [arm["id"] for arm in rows], [arm["auc"] for arm in rows], [arm["ci"] for arm in rows], shades
    )
    style.threshold_line(ax, 0.5, "guessing", axis="x")
    best = max(rows, key=lambda arm: arm["auc"])
    ax.set(xlabel="validation AUC with 95% interval", xlim=(0.35, 1.02))
    style.finding_title(figure, f"{best['id']} reaches the highest AUC, {best['auc']:.2f}")
    return figure
