"""What does the data set look like, and where does it betray itself?"""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diag_lib.audit import AuditResult
from diag_lib.audit.properties import PROPERTIES, Property
from diag_lib.audit.shortcuts import SHORTCUT_AUC
from diag_lib.images import DecodeError, decode
from diag_lib.images.decode import Pixels
from diag_lib.images.views import fit
from diag_lib.plots import style

PER_CLASS = 8
PAIRS = 6
TILE = 128
MOST_SOURCES = 12
MOST_LEVELS = 8
KIND_COLOURS = {"trace": style.BAD, "header": style.NEUTRAL, "content": style.SERIES[5]}


@style.styled
def counts(result: AuditResult) -> Figure:
    """Readable images by split and class, and by source."""
    table = result.tables["counts"]
    sources = table.groupby("source")["images"].sum().sort_values(ascending=False)
    figure, axes = style.new_figure(1, 2, width=10.5, height=3.6 + 0.12 * min(len(sources), MOST_SOURCES))
    splits = [split for split in ("train", "val", "test") if split in set(table["split"])]
    for row, split in enumerate(splits):
        for label, name in style.CLASS_NAMES.items():
            n = int(table.loc[(table["split"] == split) & (table["class"] == name), "images"].sum())
            place = row + (label - 0.5) * 0.36
            axes[0].barh(place, n, height=0.34, color=style.CLASS_COLOURS[label])
            style.direct_label(axes[0], n, place, f"{n:,} {name}", style.CLASS_COLOURS[label])
    axes[0].set_yticks(range(len(splits)), splits)
    axes[0].invert_yaxis()
    axes[0].set_xlim(0, axes[0].get_xlim()[1] * 1.25)
    axes[0].set_xlabel("readable images")
    style.finding_title(axes[0], "Splits and classes")
    _source_bars(axes[1], table, list(sources.index[:MOST_SOURCES]))
    more = len(sources) - MOST_SOURCES
    style.finding_title(
        axes[1], "Sources", f"the {MOST_SOURCES} largest of {len(sources)}" if more > 0 else None
    )
    style.finding_title(figure, _sentence(result.finding("imbalance").message))
    return figure


def _source_bars(ax: Axes, table: pd.DataFrame, sources: Sequence[str]) -> None:
    left = np.zeros(len(sources))
    for label, name in style.CLASS_NAMES.items():
        chosen = table[table["class"] == name].groupby("source")["images"].sum()
        values = np.array([chosen.get(source, 0) for source in sources], dtype=float)
        ax.barh(
            range(len(sources)), values, left=left, color=style.CLASS_COLOURS[label], height=0.6, label=name
        )
        left += values
    ax.set_yticks(range(len(sources)), [style.plain(source or "(no source)", 28) for source in sources])
    ax.invert_yaxis()
    ax.set_xlabel("readable images")
    ax.set_xlim(0, ax.get_xlim()[1] * 1.2)
    ax.legend(loc="center right")


@style.styled
def sample_grid(result: AuditResult) -> Figure:
    """Images drawn at random from train: real above, fake below."""
    seed = result.settings.training.seed
    figure, axes = style.new_figure(2, PER_CLASS, width=11, height=3.4, squeeze=False)
    for label, name in style.CLASS_NAMES.items():
        frame = result.frame
        rows = frame[(frame["reason"] == "") & (frame["split"] == "train") & (frame["label"] == label)]
        order = np.random.default_rng([seed, 0x671D, label]).permutation(len(rows))[:PER_CLASS]
        files = rows["file"].iloc[order].tolist()
        for ax, file in zip(axes[label], [*files, *[None] * (PER_CLASS - len(files))], strict=True):
            _picture(ax, _tile(file) if file else None)
        axes[label][0].set_ylabel(name, color=style.CLASS_COLOURS[label], fontweight="bold")
    style.finding_title(
        figure, "Do these look like what their row says? Real above, fake below", "drawn at random"
    )
    return figure


@style.styled
def shortcuts(result: AuditResult) -> Figure:
    """How well each property alone gives the label away, and the distribution of the strongest one."""
    table = result.tables["shortcuts"].sort_values("auc", ascending=False).reset_index(drop=True)
    figure, axes = style.new_figure(
        1, 2, width=11, height=max(3.2, 1.6 + 0.34 * len(table)), width_ratios=[1.2, 1]
    )
    intervals = list(zip(table["low"].astype(float), table["high"].astype(float), strict=True))
    colours = [KIND_COLOURS[kind] for kind in table["kind"]]
    style.interval_bars(
        axes[0], table["says"].tolist(), table["auc"].astype(float).tolist(), intervals, colours
    )
    axes[0].set_xlim(0.38, 1.02)
    axes[0].set_xlabel("held-out AUC of this property alone, with 95% interval")
    style.threshold_line(axes[0], SHORTCUT_AUC, f"shortcut: {SHORTCUT_AUC:g}", axis="x", kind="bad")
    for place, (kind, meaning) in enumerate(
        (
            ("trace", "how the file was made"),
            ("header", "only in the header"),
            ("content", "the picture itself"),
        )
    ):
        axes[0].plot([], [], "o", color=KIND_COLOURS[kind], label=meaning, zorder=place)
    axes[0].legend(loc="lower right")
    strongest = _strongest(table)
    if strongest is None:
        axes[1].set_axis_off()
    else:
        _distribution(axes[1], result.sample, strongest)
    style.finding_title(figure, _sentence(result.finding("shortcut.joint").message))
    return figure


def _strongest(table: pd.DataFrame) -> Property | None:
    """The strongest trace, or the strongest property where no trace differs between images."""
    traces = table[table["kind"] == "trace"]
    chosen = traces if len(traces) else table
    named = {prop.name: prop for prop in PROPERTIES}
    return named[chosen["name"].iloc[0]] if len(chosen) else None


def _distribution(ax: Axes, sample: pd.DataFrame, prop: Property) -> None:
    values = pd.Series(prop.of(sample))
    labels = sample["label"].to_numpy()
    if prop.categorical or values.nunique(dropna=False) <= MOST_LEVELS:
        levels = pd.Series([_level(value) for value in values])
        shown = levels.value_counts().index[:MOST_LEVELS]
        for label, name in style.CLASS_NAMES.items():
            shares = [float((levels[labels == label] == level).mean()) for level in shown]
            places = np.arange(len(shown)) + (label - 0.5) * 0.38
            ax.bar(places, shares, width=0.36, color=style.CLASS_COLOURS[label], label=name)
        ax.set_xticks(range(len(shown)), [style.plain(level or "none", 16) for level in shown])
        ax.set_ylabel("share of the class")
    else:
        numbers = values.astype(float).to_numpy()
        low, high = np.nanquantile(numbers, [0.005, 0.995])
        _histograms(ax, numbers, labels, float(low), float(high))
    ax.set_xlabel(prop.says)
    ax.legend(loc="best")
    style.finding_title(ax, f"The classes in {prop.says}")


def _level(value: object) -> str:
    if isinstance(value, float):
        return "none" if np.isnan(value) else f"{value:g}"
    return str(value)


def _histograms(ax: Axes, numbers: np.ndarray, labels: np.ndarray, low: float, high: float) -> None:
    edges: list[float] = np.linspace(low, high if high > low else low + 1, 41).tolist()
    for label, name in style.CLASS_NAMES.items():
        own = np.clip(numbers[(labels == label) & np.isfinite(numbers)], edges[0], edges[-1])
        weights = np.full(len(own), 1 / max(1, len(own)))
        colour = style.CLASS_COLOURS[label]
        ax.hist(own, edges, weights=weights, histtype="stepfilled", color=colour, alpha=0.25)
        ax.hist(own, edges, weights=weights, histtype="step", color=colour, linewidth=1.8, label=name)
    ax.set_yticks([])
    ax.set_ylabel("share of the class")


@style.styled
def content(result: AuditResult) -> Figure:
    """Brightness, sharpness, fine detail and size by class."""
    frame, labels = result.sample, result.sample["label"].to_numpy()
    figure, axes = style.new_figure(1, 4, width=12, height=3.0)
    shown = ("brightness", "sharpness", "high_frequency")
    named = {prop.name: prop for prop in PROPERTIES}
    for ax, name in zip(axes, shown, strict=False):
        numbers = named[name].of(frame).astype(float)
        finite = numbers[np.isfinite(numbers)]
        low, high = np.quantile(finite, [0.005, 0.995]) if finite.size else (0.0, 1.0)
        _histograms(ax, numbers, labels, float(low), float(high))
        ax.set_xlabel(named[name].says)
    for label, name in style.CLASS_NAMES.items():
        rows = frame[labels == label]
        axes[3].plot(
            rows["width"].astype(float), rows["height"].astype(float), "o^"[label], color=style.CLASS_COLOURS[label],
            alpha=0.35, markersize=4, label=name, rasterized=True,
        )  # fmt: skip
    axes[3].set_xlabel("width in pixels")
    axes[3].set_ylabel("height in pixels")
    axes[0].legend(loc="best")
    style.finding_title(figure, _sentence(result.finding("content").message))
    return figure


@style.styled
def leaked_pairs(result: AuditResult) -> Figure:
    """Leaked validation pictures above their counterparts in train: those with two labels, then the least similar."""
    leaks = result.tables["leakage"].sort_values(["conflict", "distance"], ascending=False, kind="stable")
    pairs = [
        _Pair(row["kind"], row["distance"], *((f"{side}: ", row[f"{side}_path"], row[f"{side}_label"])
                                              for side in ("val", "train")))
        for row in leaks.head(PAIRS).to_dict("records")
    ]  # fmt: skip
    return _pair_sheet(result, pairs, result.finding("leakage").message)


@style.styled
def copies(result: AuditResult) -> Figure:
    """Pictures above their copies: those with two labels first, then repeats within a split, least similar first."""
    table = result.tables["pairs"]
    conflict = table["a_label"] != table["b_label"]
    chosen = table.assign(conflict=conflict)[conflict | (table["a_split"] == table["b_split"])]
    chosen = chosen.sort_values(["conflict", "distance"], ascending=False, kind="stable")
    pairs = [
        _Pair(row["kind"], row["distance"], *((f"{row[f'{side}_split']}: ", row[f"{side}_path"], row[f"{side}_label"])
                                              for side in "ab"))
        for row in chosen.head(PAIRS).to_dict("records")
    ]  # fmt: skip
    check = "label_conflict" if conflict.any() else "duplicates"
    return _pair_sheet(result, pairs, result.finding(check).message)


class _Pair(NamedTuple):
    """Two pictures of one motif: how and how far they differ, and (where, path, label) of both."""

    kind: str
    distance: int
    above: tuple[str, str, int]
    below: tuple[str, str, int]


def _pair_sheet(result: AuditResult, pairs: Sequence[_Pair], message: str) -> Figure:
    if not pairs:
        return _said(message)
    figure, axes = style.new_figure(2, PAIRS, width=11, height=4.2, squeeze=False)
    file_of = dict(zip(result.frame["path"], result.frame["file"], strict=True))
    for column, pair in enumerate([*pairs, *[None] * (PAIRS - len(pairs))]):
        for row in range(2):
            side = pair and (pair.above, pair.below)[row]
            _picture(axes[row][column], _tile(file_of[side[1]]) if side else None)
            if side:
                label = int(side[2])
                told = side[0] + style.CLASS_NAMES[label]
                axes[row][column].set_title(told, fontsize=9, color=style.CLASS_COLOURS[label], pad=3)
        if pair:
            axes[1][column].set_xlabel(f"{pair.kind}, {pair.distance} bits", fontsize=8)
    style.finding_title(figure, _sentence(message))
    return figure


@style.styled
def suspects(result: AuditResult) -> Figure:
    """The pictures whose label is doubted most, worst first, with the class their label claims."""
    table = result.tables["suspects"].head(2 * PER_CLASS)
    message = result.finding("labels").message
    if table.empty:
        return _said(message)
    rows = -(-len(table) // PER_CLASS)
    figure, axes = style.new_figure(rows, PER_CLASS, width=11, height=0.7 + 1.5 * rows, squeeze=False)
    file_of = dict(zip(result.frame["path"], result.frame["file"], strict=True))
    shown = [*table.to_dict("records"), *[None] * (rows * PER_CLASS - len(table))]
    for ax, row in zip(axes.ravel(), shown, strict=True):
        _picture(ax, _tile(file_of[row["path"]]) if row else None)
        if row:
            label = int(row["label"])
            told = f"{style.CLASS_NAMES[label]}? {row['probability_of_label']:.0%}"
            ax.set_title(told, fontsize=9, color=style.CLASS_COLOURS[label], pad=3)
    style.finding_title(figure, _sentence(message), "label, and the judges' probability that it is right")
    return figure


def _said(message: str) -> Figure:
    """Nothing to picture: the sentence alone."""
    figure, ax = style.new_figure(width=11, height=0.9)
    ax.set_axis_off()
    style.finding_title(figure, _sentence(message, 400))
    return figure


def _tile(file: str) -> Pixels | None:
    with contextlib.suppress(DecodeError):
        return fit(decode(file), "shortest", TILE)
    return None


def _picture(ax: Axes, pixels: Pixels | None) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if pixels is not None:
        ax.imshow(pixels)


def _sentence(message: str, most: int = 110) -> str:
    """The first clause of a finding as a headline; the whole message stands beside the figure."""
    shown = style.plain(message.split("; ")[0], most).replace(r"\$", "$")
    return shown[:1].upper() + shown[1:]
