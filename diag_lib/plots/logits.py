"""What do the patch logits of teacher and student look like side by side?"""

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from diag_lib.logits import LogitsResult
from diag_lib.plots import style

BINS = 80
HEX_PAIRS = 200_000
PART_COLOURS = {"mean": "#E69F00", "spread": "#56B4E9", "pattern": style.NEUTRAL}
PART_NAMES = {"mean": "different means", "spread": "different spreads", "pattern": "different patterns"}


@style.styled
def histograms(result: LogitsResult) -> Figure:
    """Both distributions on one axis (the guide's view), then each on its own: shape apart from scale."""
    teacher, student = _finite(result.pairs.teacher), _finite(result.pairs.trained)
    figure, axes = style.new_figure(1, 3, width=11.5, height=3.8, width_ratios=[1.5, 1, 1])
    low, high = _robust_range(np.concatenate([teacher[:: _step(teacher)], student[:: _step(student)]]))
    for values, colour, name in ((teacher, style.TEACHER, "teacher"), (student, style.STUDENT, "student")):
        _histogram(axes[0], values, low, high, colour, name)
    style.finding_title(axes[0], "One axis: are they on one scale?", _outliers_text(teacher, low, high))
    axes[0].legend(loc="upper right")
    for ax, values, colour, name in (
        (axes[1], teacher, style.TEACHER, "teacher"),
        (axes[2], student, style.STUDENT, "student"),
    ):
        own_low, own_high = _robust_range(values)
        _histogram(ax, values, own_low, own_high, colour, name)
        style.finding_title(
            ax,
            f"{name}: mean {values.mean():.3g}, sd {values.std():.3g}",
            _outliers_text(values, own_low, own_high),
        )
    for ax in axes:
        ax.set_xlabel("patch logit")
        ax.set_yticks([])
    axes[0].set_ylabel("share of patches")
    style.finding_title(figure, _scale_headline(result))
    return figure


@style.styled
def scatter(result: LogitsResult) -> Figure:
    """Each patch as the teacher and the student see it; a perfect imitation lies on the identity line."""
    figure, axes = style.new_figure(1, 2, width=10.5, height=4.6)
    shown = result.after
    teacher, student = _pair(result.pairs.teacher, result.pairs.trained)
    step = max(1, len(teacher) // HEX_PAIRS)
    if teacher.size:
        (t_low, t_high), (s_low, s_high) = _robust_range(teacher), _robust_range(student)
        inside = (teacher >= t_low) & (teacher <= t_high) & (student >= s_low) & (student <= s_high)
        axes[0].hexbin(
            student[inside][::step],
            teacher[inside][::step],
            gridsize=45,
            bins="log",
            mincnt=1,
            cmap=style.SEQUENTIAL,
            rasterized=True,
            linewidths=0.1,
        )
        ends = np.array([min(t_low, s_low), max(t_high, s_high)])
        axes[0].plot(ends, ends, color=style.INK, linestyle=(0, (5, 3)), linewidth=1.2)
        axes[0].set_xlim(s_low, s_high)
        axes[0].set_ylim(t_low, t_high)
    text = (
        "no finite pairs" if shown is None else f"R² {shown.r2.value:.2f}, correlation {shown.rho.value:.2f}"
    )
    style.finding_title(axes[0], f"Patches: {text}", "dashed: student = teacher; colour counts patches")
    _image_means(axes[1], result)
    for ax in axes:
        ax.set_xlabel("student logit")
        ax.set_ylabel("teacher logit")
    return figure


def _image_means(ax: Axes, result: LogitsResult) -> None:
    table = result.per_image
    for label, marker in ((0, "o"), (1, "^")):
        rows = table[table["label"] == label]
        ax.plot(
            rows["student_mean"],
            rows["teacher_mean"],
            marker,
            color=style.CLASS_COLOURS[label],
            alpha=0.55,
            markersize=4,
            label=style.CLASS_NAMES[label],
            rasterized=True,
        )
    rho = "unknown" if result.after is None else f"{result.after.rho_across.value:.2f}"
    style.finding_title(
        ax,
        f"Images: correlation of the means {rho}",
        "one mark a picture",
    )
    ax.legend(loc="best")


@style.styled
def decomposition(result: LogitsResult) -> Figure:
    """What the MSE consists of, before and after training, beside the cost of predicting the teacher's mean."""
    rows = [
        (name, side)
        for name, side in (("trained student", result.after), ("untrained student", result.before))
        if side is not None
    ]
    figure, ax = style.new_figure(width=8.5, height=1.7 + 0.6 * (len(rows) + 1))
    names: list[str] = []
    for row, (name, side) in enumerate(rows):
        names.append(name)
        mse, left = side.mse.value, 0.0
        if side.shares is None:
            ax.barh(row, mse, color="#C9C9C9", height=0.55)
            style.direct_label(ax, mse, row, f"{mse:.3g} (flat student: not divisible)")
            continue
        for part, share in side.shares.items():
            ax.barh(row, share * mse, left=left, color=PART_COLOURS[part], height=0.55)
            if share > 0.12:
                ax.text(
                    left + share * mse / 2,
                    row,
                    f"{share:.0%}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color=_on(PART_COLOURS[part]),
                )
            left += share * mse
        style.direct_label(ax, mse, row, f"{mse:.3g}")
    if rows:
        names.append("predict the mean")
        floor = rows[0][1].sd_floor
        ax.barh(len(rows), floor, color="none", edgecolor=style.TEACHER, linewidth=1.5, height=0.55)
        style.direct_label(ax, floor, len(rows), f"{floor:.3g} = Var(teacher)", style.TEACHER)
    patches = [Patch(color=colour, label=PART_NAMES[part]) for part, colour in PART_COLOURS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(0, ax.get_xlim()[1] * 1.22)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("MSE between the patch maps")
    limit = result.settings.thresholds.mse_dominates
    if limit < 1.5 * ax.get_xlim()[1]:
        ax.set_xlim(0, max(ax.get_xlim()[1], 1.15 * limit))
        style.threshold_line(ax, limit, f"guide: {limit:g}", axis="x")
    style.finding_title(ax, _fit_headline(result))
    return figure


@style.styled
def gradients(result: LogitsResult) -> Figure:
    """How strongly each loss pulls, and whether they pull in one direction."""
    table = result.gradients
    figure, axes = style.new_figure(1, 2, width=10, height=3.6)
    lines = [
        (axes[0].plot(table["epoch"], table[name], "o-", color=colour, markersize=3)[0], label)
        for name, colour, label in (
            ("distill", style.TEACHER, "distillation"),
            ("task", style.STUDENT, "labels (BCE)"),
        )
    ]
    axes[0].set_yscale("log")
    axes[0].set_ylabel("gradient norm (weighted)")
    style.finding_title(axes[0], "How hard each loss pulls")
    style.label_lines(axes[0], lines)
    axes[1].plot(table["epoch"], table["cosine"], "o-", color=style.STUDENT, markersize=3)
    axes[1].set_ylim(-1.05, 1.05)
    style.threshold_line(axes[1], 0.0, "0: unrelated directions")
    style.finding_title(axes[1], _cosine_headline(table["cosine"].to_numpy()))
    axes[1].set_ylabel("cosine of the two gradients")
    for ax in axes:
        ax.set_xlabel("epoch")
    return figure


@style.styled
def grid(result: LogitsResult, rows: int = 9) -> Figure:
    """How well simple picture content predicts the teacher's map on each candidate grid."""
    check = result.grid
    if check is None:
        figure, ax = style.new_figure(width=7, height=1.6)
        ax.set_axis_off()
        style.finding_title(ax, "No grid to check: the teacher gives one patch, or too few finite maps")
        return figure
    table = check.table.head(rows)
    figure, ax = style.new_figure(width=8, height=1.3 + 0.32 * len(table))
    colours = [style.TEACHER if name == "as is" else "#C9C9C9" for name in table["grid"]]
    ax.barh(range(len(table)), table["r2_b"].clip(lower=0), color=colours, height=0.7)
    ax.set_yticks(range(len(table)), list(table["grid"]))
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    ax.set_xlim(0, max(0.1, 1.05 * float(np.nanmax([0.0, *table["r2_b"]]))))
    ax.set_xlabel("R² of the teacher's map from local picture content (images that chose nothing)")
    titles = {
        "yes": "The patches lie where they should",
        "no": f"The teacher's map fits better {check.best}",
        "undecided": "The teacher's map follows no simple content: the grid stays open",
    }
    style.finding_title(ax, titles[check.answer])
    return figure


@style.styled
def maps(result: LogitsResult) -> Figure:
    """A few validation pictures with what teacher and student see in each patch."""
    shown = result.pairs.examples
    figure, axes = style.new_figure(
        3, max(1, len(shown)), width=1.75 * max(1, len(shown)) + 1.2, height=5.6, squeeze=False
    )
    limits = {name: _spread([getattr(example, name) for example in shown]) for name in ("teacher", "student")}
    for column, example in enumerate(shown):
        axes[0, column].imshow(example.pixels)
        axes[0, column].set_title(
            style.CLASS_NAMES[example.label], color=style.CLASS_COLOURS[example.label], loc="center"
        )
        for row, name in ((1, "teacher"), (2, "student")):
            middle, half = limits[name]
            axes[row, column].imshow(
                getattr(example, name), cmap=style.DIVERGING, vmin=middle - half, vmax=middle + half
            )
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    for row, name in enumerate(("picture", "teacher", "student")):
        axes[row, 0].set_ylabel(name, color=style.MODEL_COLOURS.get(name, style.INK))
    style.finding_title(
        figure, "What each patch says: blue towards real, orange towards fake, around each row's own middle"
    )
    return figure


def _cosine_headline(cosines: npt.NDArray[np.float64]) -> str:
    late = cosines[len(cosines) // 2 :]
    if not np.isfinite(late).any():
        return "No distillation, so nothing to compare"
    middle = float(np.nanmedian(late))
    words = {
        -0.2: "pull against each other",
        0.2: "are hardly related",
        0.6: "partly agree",
        2.0: "pull together",
    }
    return f"The losses {next(word for limit, word in words.items() if middle < limit)} (median {middle:.2f})"


def _scale_headline(result: LogitsResult) -> str:
    if result.after is None:
        return "The logits are not finite: nothing can be compared"
    ratio = result.after.scale_ratio.value
    if result.after.flat:
        return "The trained student says nearly the same everywhere"
    more, factor = ("teacher", ratio) if ratio >= 1 else ("student", 1 / ratio)
    return f"The {more}'s patch logits spread {factor:.2g} times as wide"


def _fit_headline(result: LogitsResult) -> str:
    if result.after is None:
        return "The student's logits are not finite"
    r2 = result.after.r2.value
    if r2 < 0:
        return f"The trained student is worse than predicting the teacher's mean (R² {r2:.2f})"
    return f"The trained student explains {r2:.0%} of the teacher's variance"


def _histogram(
    ax: Axes, values: npt.NDArray[np.float32], low: float, high: float, colour: str, name: str
) -> None:
    counts, edges = np.histogram(values, bins=BINS, range=(low, high))
    share = counts / max(1, values.size)
    ax.stairs(share, edges, color=colour, fill=True, alpha=0.35)
    ax.stairs(share, edges, color=colour, linewidth=1.6, label=name)
    ax.set_xlim(low, high)


def _robust_range(values: npt.NDArray[np.float32]) -> tuple[float, float]:
    """The 1-99% range and a little more; never empty."""
    if not values.size:
        return -1.0, 1.0
    low, high = (float(v) for v in np.quantile(values, [0.01, 0.99]))
    margin = 0.15 * (high - low) or max(1e-6, 0.05 * abs(high), 1e-3)
    return low - margin, high + margin


def _outliers_text(values: npt.NDArray[np.float32], low: float, high: float) -> str:
    outside = int(((values < low) | (values > high)).sum())
    return f"{outside:,} of {values.size:,} lie outside" if outside else "no patch lies outside"


def _finite(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    flat = values.reshape(-1)
    return flat[np.isfinite(flat)]


def _pair(
    teacher: npt.NDArray[np.float32], student: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    good = np.isfinite(teacher) & np.isfinite(student)
    return teacher[good], student[good]


def _spread(maps_shown: list[npt.NDArray[np.float32]]) -> tuple[float, float]:
    values = (
        _finite(np.concatenate([m.reshape(-1) for m in maps_shown]))
        if maps_shown
        else np.zeros(1, np.float32)
    )
    if not values.size:
        return 0.0, 1.0
    low, high = np.quantile(values, [0.02, 0.98])
    return float(low + high) / 2, max(float(high - low) / 2, 1e-6)


def _step(values: npt.NDArray[np.float32]) -> int:
    return max(1, values.size // 1_000_000)


def _on(colour: str) -> str:
    return "white" if colour == style.NEUTRAL else style.INK
