"""How do values with intervals look side by side without a script? SVG rows that scale with the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape


@dataclass(frozen=True)
class Row:
    """One value with its 95% interval; `kind` is a tone of the style sheet (ok, error, note, none)."""

    name: str
    value: float | None
    ci: tuple[float, float] | None
    kind: str = "note"
    note: str = ""


def row(name: str, raw: Any, kind: str = "note", note: str = "") -> Row:
    """A row from `{"auc": .., "ci": [lo, hi]}`; anything that is no number counts as missing."""
    raw = raw if isinstance(raw, dict) else {}
    value, ci = raw.get("auc"), raw.get("ci")
    value = float(value) if _is_number(value) else None
    ok = isinstance(ci, (list, tuple)) and len(ci) == 2 and all(map(_is_number, ci))
    return Row(name, value, (float(ci[0]), float(ci[1])) if ok else None, kind, note)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def bars(
    rows: Sequence[Row], marks: Sequence[tuple[float, str]] = ((0.5, "chance"),), quantity: str = "AUC"
) -> Markup:
    """The rows on one axis from a round number below all of them to 1; `marks` are labelled dashed lines.

    Each row says its numbers in text beside the picture; the picture carries the same as its label.
    """
    lows = [value for item in rows for value in (item.value, *(item.ci or ())) if value is not None]
    low = min([0.4, *(math.floor(value * 10) / 10 for value in lows)])
    scale = _Scale(max(0.0, low), 1.0)
    body = Markup("").join(_bar(item, scale, marks, quantity) for item in rows)
    ticks = {round(scale.low, 2): f"{scale.low:.1f}", 1.0: "1.0"} | {at: f"{at:g}" for at, _ in marks}
    spans = Markup("").join(
        Markup('<span style="left:{}%">{}</span>').format(round(scale(at), 2), label)
        for at, label in ticks.items()
    )
    axis = Markup(
        '<div class="bar axis" aria-hidden="true"><span></span><div class="ticks">{}</div><span></span></div>'
    )
    key = Markup('<p class="key">Dashed: {}.</p>').format(", ".join(f"{at:g} {label}" for at, label in marks))
    return Markup('<div class="bars">{}{}{}</div>').format(body, axis.format(spans), key if marks else "")


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return 2 + 96 * min(1.0, max(0.0, share))


def _bar(item: Row, scale: _Scale, marks: Sequence[tuple[float, str]], quantity: str) -> Markup:
    lines = Markup("").join(
        Markup('<line class="mark" x1="{0}%" x2="{0}%" y1="0" y2="26"></line>').format(round(scale(at), 2))
        for at, _ in marks
    )
    shapes = Markup("")
    if item.ci is not None:
        shapes += Markup('<line class="span" x1="{}%" x2="{}%" y1="13" y2="13"></line>').format(
            round(scale(item.ci[0]), 2), round(scale(item.ci[1]), 2)
        )
    if item.value is not None:
        shapes += Markup('<circle class="dot" cx="{}%" cy="13" r="6"></circle>').format(
            round(scale(item.value), 2)
        )
    figures = "not measured" if item.value is None else f"{item.value:.2f}"
    spoken = f"{item.name}: {quantity} {figures}"
    if item.ci is not None:
        figures += f" [{item.ci[0]:.2f}, {item.ci[1]:.2f}]"
        spoken += f", 95% interval {item.ci[0]:.2f} to {item.ci[1]:.2f}"
    note = Markup('<br><span class="soft small">{}</span>').format(item.note) if item.note else ""
    return Markup(
        '<div class="bar {kind}"><span class="name">{name}{note}</span>'
        '<svg role="img" aria-label="{spoken}">'
        '<line class="rail" x1="2%" x2="98%" y1="13" y2="13"></line>{lines}{shapes}</svg>'
        '<span class="figures">{figures}</span></div>'
    ).format(
        kind=escape(item.kind),
        name=item.name,
        note=note,
        spoken=spoken,
        lines=lines,
        shapes=shapes,
        figures=figures,
    )
