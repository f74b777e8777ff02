"""What does the teacher know about these images, and where in them does it see it?"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import ndtr, ndtri

from diag_lib.plots import style
from diag_lib.teacher import HeatMap, TeacherResult

BINS = 40
SHOWN_SOURCES = 12
SHOWN_TRIALS = 14
GRID = np.linspace(0.0, 1.0, 201)


@style.styled
def roc(result: TeacherResult) -> Figure:
    """The validation ROC curve with its band and the guide's thresholds; beside it the AUC of every split."""
    figure, (left, right) = style.new_figure(1, 2, width=10.5, height=4.4, width_ratios=[1, 1.1])
    low, good = result.settings.thresholds.teacher_auc_low, result.settings.thresholds.teacher_auc_good
    curve = result.roc
    left.fill_between(curve["fpr"], curve["low"], curve["high"], color=style.TEACHER, alpha=0.2, linewidth=0)
    left.plot(curve["fpr"], curve["tpr"], color=style.TEACHER)
    left.plot([0, 1], [0, 1], color=style.GRID, linewidth=1)
    for value, at in ((low, 0.72), (good, 0.35)):
        left.plot(
            GRID, equal_binormal(GRID, value), color=style.NEUTRAL, linestyle=(0, (5, 3)), linewidth=1.2
        )
        style.direct_label(
            left, at, float(equal_binormal(np.array(at), value)), f"AUC {value:g}", style.NEUTRAL
        )
    left.set_xlabel("reals called fake")
    left.set_ylabel("fakes called fake")
    left.set_aspect("equal")
    style.finding_title(left, "ROC on validation images", "band: 95% at each point, images resampled")
    _auc_bars(right, result)
    style.finding_title(figure, _headline(result))
    return figure


def equal_binormal(fpr: np.ndarray, value: float) -> np.ndarray:
    """True-positive rates of two unit normals whose AUC is `value`: the shape a threshold stands for."""
    curve: np.ndarray = ndtr(ndtri(fpr) + np.sqrt(2) * ndtri(value))
    return curve


def _auc_bars(ax: Axes, result: TeacherResult) -> None:
    low, good = result.settings.thresholds.teacher_auc_low, result.settings.thresholds.teacher_auc_good
    rows = [("val", result.val.value, result.val.ci), ("train", result.train.value, result.train.ci)]
    rows += [
        (f"{row['split']}: {row['source'] or '(none)'}", row["auc"], (row["low"], row["high"]))
        for row in result.sources.head(SHOWN_SOURCES).to_dict("records")
    ]
    names, values, intervals = zip(*rows, strict=True)
    style.interval_bars(ax, names, values, intervals, style.TEACHER)
    style.threshold_line(ax, low, f"{low:g}", axis="x", kind="bad")
    style.threshold_line(ax, good, f"{good:g}", axis="x", kind="good")
    ends = [end for interval in intervals for end in interval]
    ax.set_xlim(min(0.4, *ends) - 0.02, max(0.8, *ends) + 0.02)
    ax.set_xlabel("AUC with 95% interval")
    hidden = len(result.sources) - SHOWN_SOURCES
    style.finding_title(
        ax, "AUC of each split and source", f"{hidden} more sources not drawn" if hidden > 0 else None
    )


@style.styled
def scores(result: TeacherResult) -> Figure:
    """Image logits of real and fake images, on validation and on train."""
    figure, axes = style.new_figure(1, 2, width=10.5, height=3.6)
    for ax, split in zip(axes, ("val", "train"), strict=True):
        table = result.of_split(split)
        finite = table["score"].to_numpy()[np.isfinite(table["score"])]
        low, high = robust_range(finite)
        for label in (0, 1):
            values = table.loc[table["label"] == label, "score"].to_numpy()
            values = np.clip(values[np.isfinite(values)], low, high)
            weights = np.full(len(values), 1 / max(1, len(values)))
            shown = {"color": style.CLASS_COLOURS[label], "label": style.CLASS_NAMES[label]}
            ax.hist(
                values,
                np.linspace(low, high, BINS + 1),
                weights=weights,
                alpha=0.25,
                **shown | {"label": None},
            )
            ax.hist(
                values,
                np.linspace(low, high, BINS + 1),
                weights=weights,
                histtype="step",
                linewidth=1.6,
                **shown,
            )
        outside = int(((finite < low) | (finite > high)).sum())
        style.threshold_line(ax, 0.0, "0", axis="x") if low < 0 < high else None
        ax.set_xlabel("image logit (above 0: fake)")
        note = f"{outside} images outside are drawn at the edges" if outside else None
        found = result.val if split == "val" else result.train
        style.finding_title(ax, f"{split}: AUC {found.value:.2f}", note)
        ax.legend(loc="upper right")
    axes[0].set_ylabel("share of images")
    return figure


def robust_range(values: np.ndarray, share: float = 0.01) -> tuple[float, float]:
    """A range that holds the central part of the values, widened a little; never empty."""
    if not len(values):
        return -1.0, 1.0
    low, high = (float(v) for v in np.quantile(values, [share, 1 - share]))
    margin = 0.1 * (high - low) or 0.5
    return low - margin, high + margin


@style.styled
def heatmaps(result: TeacherResult) -> Figure:
    """Pictures with the teacher's patch logits laid over them, one colour scale, white at 0."""
    shown = result.examples
    figure, axes = style.new_figure(
        2, max(1, len(shown)), width=1.8 * max(1, len(shown)) + 1, height=4.6, squeeze=False
    )
    limit = _limit(shown)
    image = None
    for column, example in enumerate(shown):
        axes[0, column].imshow(example.pixels)
        name = style.CLASS_NAMES[example.label]
        axes[0, column].set_title(
            f"{name} {example.score:+.3g}", color=style.CLASS_COLOURS[example.label], loc="center"
        )
        height, width = example.pixels.shape[:2]
        axes[1, column].imshow(example.pixels.mean(axis=2), cmap="gray", alpha=0.35)
        image = axes[1, column].imshow(
            example.patches, cmap=style.DIVERGING, vmin=-limit, vmax=limit, alpha=0.75,
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )  # fmt: skip
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    if image is not None:
        bar = figure.colorbar(image, ax=axes[1, :].tolist(), shrink=0.85, extend="both", pad=0.01)
        bar.set_label("patch logit")
    style.finding_title(
        figure,
        "Where the teacher sees fake (orange) and real (blue)",
        "over each picture: its label, image logit",
    )
    return figure


def _limit(shown: list[HeatMap]) -> float:
    values = np.concatenate([np.abs(example.patches).ravel() for example in shown]) if shown else np.ones(1)
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, 0.98)) or 1.0 if len(finite) else 1.0


@style.styled
def preprocessing(result: TeacherResult) -> Figure:
    """AUC of every way of feeding the teacher that was tried on half A, and the proof of the winner."""
    probe = result.preprocessing
    table = probe.table().dropna(subset=["auc"])
    kept = table.head(SHOWN_TRIALS)
    own = table[table["what"] == "configured"]
    if len(own) and "configured" not in set(kept["what"]):
        kept = table.drop(own.index).head(SHOWN_TRIALS - 1)
        kept = table.loc[kept.index.union(own.index)]
    figure, ax = style.new_figure(width=9, height=1.6 + 0.42 * max(1, len(kept)))
    colours = [_trial_colour(row["what"], row["chosen"]) for row in kept.to_dict("records")]
    intervals = list(zip(kept["low"], kept["high"], strict=True))
    style.interval_bars(ax, [_short(what) for what in kept["what"]], list(kept["auc"]), intervals, colours)
    limits = result.settings.thresholds
    style.threshold_line(ax, limits.teacher_auc_low, f"{limits.teacher_auc_low:g}", axis="x", kind="bad")
    style.threshold_line(ax, limits.teacher_auc_good, f"{limits.teacher_auc_good:g}", axis="x", kind="good")
    ax.set_xlabel("AUC with 95% interval, on the half of the images that chooses")
    style.finding_title(figure, result.finding("preprocessing").message)
    return figure


def _short(what: str) -> str:
    return what.replace("preprocess ", "").replace("normalised ", "norm ").replace("input scale ", "x ")


def _trial_colour(what: str, chosen: bool) -> str:
    if what == "configured":
        return style.TEACHER
    return style.GOOD if chosen else style.NEUTRAL


@style.styled
def fingerprint(result: TeacherResult) -> Figure:
    """How far the activations' variances lie from the running ones for each variant: the shortest bar fits."""
    prints = result.fingerprint
    table = prints.table
    figure, ax = style.new_figure(width=8.5, height=1.6 + 0.36 * max(1, len(table)))
    if len(table):
        colours = [style.TEACHER if name == prints.configured else "#C9C9C9" for name in table["variant"]]
        ax.barh(range(len(table)), table["distance"], color=colours, height=0.65)
        for row, found in enumerate(table.to_dict("records")):
            text = f"correlation {found['correlation']:.3f}, ratio {found['ratio']:.2g}"
            style.direct_label(ax, found["distance"], row, text)
        names = [f"{name} (configured)" if name == prints.configured else name for name in table["variant"]]
        ax.set_yticks(range(len(table)), names)
        ax.set_ylim(len(table) - 0.4, -0.6)
        ax.set_xlim(0, float(table["distance"].max()) * 1.5)
        ax.set_xlabel("distance between the variances of the activations and the running variances")
    else:
        ax.set_axis_off()
    ax.grid(visible=False, axis="y")
    style.finding_title(figure, result.finding("bn_fingerprint").message)
    return figure


@style.styled
def patches(result: TeacherResult) -> Figure:
    """Range of the patch logits of real and fake images: the central 98%, the middle half's scale, the mean."""
    figure, ax = style.new_figure(width=8.5, height=2.4)
    rows = result.patches.loc[["real", "fake"]]
    for place, (name, row) in enumerate(rows.iterrows()):
        colour = style.CLASS_COLOURS[0 if name == "real" else 1]
        ax.plot([row["q01"], row["q99"]], [place, place], color=colour, linewidth=3, alpha=0.4)
        ax.plot(
            [row["median"] - row["mad"], row["median"] + row["mad"]],
            [place, place],
            color=colour,
            linewidth=9,
            alpha=0.7,
        )
        ax.plot([row["mean"]], [place], "D", color=style.INK, markersize=5)
        style.direct_label(ax, row["q99"], place, f"min {row['min']:.3g}, max {row['max']:.3g}", colour)
    ax.set_yticks([0, 1], ["real", "fake"])
    ax.set_ylim(1.6, -0.6)
    ax.margins(x=0.25)
    ax.set_xlabel("patch logit: thin = central 98%, thick = median and MAD, diamond = mean")
    ax.grid(visible=False, axis="y")
    whole = result.patches.loc["all"]
    style.finding_title(
        ax,
        f"Patch logits: mean {whole['mean']:.3g}, std {whole['std']:.3g}, kurtosis {whole['kurtosis']:.3g}",
    )
    return figure


def _headline(result: TeacherResult) -> str:
    """The answer to the step's question in a sentence."""
    if not result.val.defined:
        return "The teacher's AUC cannot be computed"
    informative, good = result.finding("auc").answer, result.finding("good").answer
    shown = f"AUC {result.val.value:.2f} [{result.val.ci[0]:.2f}, {result.val.ci[1]:.2f}]"
    if result.finding("inverted").answer == "yes":
        return f"The teacher ranks real above fake: {shown}"
    if informative == "no":
        return f"The teacher knows nothing useful about these images: {shown}"
    if informative == "undecided":
        return f"Too few images to say whether the teacher knows anything: {shown}"
    if good == "yes":
        return f"The teacher knows these images well: {shown}"
    return f"The teacher knows something about these images: {shown}"
