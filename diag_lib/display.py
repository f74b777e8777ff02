"""How does a result become a picture, a table or a sentence in a notebook and in the report?

Every function returns an IPython `HTML` object. All text is escaped, so that hostile file names, class
names or messages stay text. The markup carries few, theme-neutral inline styles for live JupyterLab and
`diag-*` classes that the report's own style sheet refines.
"""

import base64
import html
import io
import math
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from IPython.display import HTML

from diag_lib.evidence import FINDINGS, Finding

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# severity -> (word, glyph, edge colour readable on light and on dark, "r,g,b" of the tint)
SEVERITY_LOOK: dict[str, tuple[str, str, str, str]] = {
    "ok": ("OK", "✓", "#1a8a4a", "26,138,74"),
    "note": ("Note", "i", "#3b78c4", "59,120,196"),
    "warning": ("Warning", "!", "#c77700", "199,119,0"),
    "error": ("Error", "✕", "#d03a4b", "208,58,75"),
}
ANSWER_WORD: dict[str, str] = {"yes": "Yes", "no": "No", "undecided": "Undecided"}
_NUMBER = re.compile(r"[+\-−]?(?:[\d,]*\.?\d+(?:e[+\-]?\d+)?|∞) ?%?(?: \[[^\]]*\])?")
MAX_ROWS = 200
MAX_THUMBNAILS = 60
THUMBNAIL_PIXELS = 160


def text(value: object) -> str:
    """Any value as escaped text: control and direction-changing characters replaced, quotes escaped."""
    shown = "".join(_printable(character) for character in str(value))
    return html.escape(shown, quote=True)


def _html(markup: str) -> HTML:
    return HTML(markup)  # type: ignore[no-untyped-call,unused-ignore]


def _printable(character: str) -> str:
    kept = character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Cn"}
    return character if kept else "\N{REPLACEMENT CHARACTER}"


def number(value: object) -> str:
    """A number as people read it: about three digits, thousands separated, nan as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}" if math.isfinite(value) else str(value)
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.3f}" if 0.001 <= abs(value) < 10 else f"{value:.3g}" if value else "0"


def with_interval(value: float | None, ci: tuple[float, float] | None) -> str:
    """`0.512 [0.470, 0.554]`, or only the number where there is no interval."""
    shown = number(value)
    return f"{shown} [{number(ci[0])}, {number(ci[1])}]" if ci is not None else shown


def figure(fig: "Figure", alt: str, caption: str | None = None) -> HTML:
    """A matplotlib figure as an image with its text alternative; the figure is closed.

    A figure that pictures nothing (all axes off and empty) becomes the sentences that it holds.

    Parameters: `alt` says what the picture shows to who cannot see it (required, not empty).
    Raises `ValueError` when `alt` is empty.
    """
    if not alt.strip():
        raise ValueError("figure: alt is empty; say in a sentence what the picture shows")
    if not any(ax.axison or ax.has_data() for ax in fig.axes):
        words = _words(fig)
        _close(fig)
        return _html("".join(f'<p class="diag-said" style="margin:1em 0">{part}</p>' for part in words))
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    # Both sizes, so that the place is kept before the picture is there and nothing below it jumps.
    width, height = (round(inches * 100) for inches in fig.get_size_inches())
    _close(fig)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    below = (
        f'<figcaption style="margin-top:.4em;font-size:.92em">{text(caption)}</figcaption>' if caption else ""
    )
    return _html(
        f'<figure class="diag-figure" style="margin:1em 0">'
        f'<img src="data:image/png;base64,{data}" alt="{text(alt)}" width="{width}" height="{height}" '
        f'style="max-width:100%;height:auto;background:#fff;border-radius:6px">{below}</figure>'
    )


def _words(fig: "Figure") -> list[str]:
    """The titles of a figure with what stands below each, as escaped markup."""
    parts = [(fig.get_suptitle(), "")]
    for ax in fig.axes:
        said = " ".join(item.get_text() for item in ax.texts)
        parts.append((ax.get_title(loc="left") or ax.get_title(), said))
    return [
        " ".join(f"<strong>{text(title)}.</strong> {text(said)}".replace("\n", " ").split())
        for title, said in parts
        if title
    ]


def _close(fig: "Figure") -> None:
    """Forget a figure that pyplot holds; one made by `style.new_figure` is only cleared."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close(fig)
    fig.clear()


def callout(severity: str, message: str, title: str | None = None, least_height: int = 0) -> HTML:
    """A coloured note; `severity` is ok, note, warning or error. Blank lines separate paragraphs.

    `least_height` in pixels keeps the place of a text that gets longer and shorter.
    """
    word, glyph, edge, tint = SEVERITY_LOOK[severity]
    paragraphs = "".join(
        f'<p style="margin:.35em 0">{text(part)}</p>' for part in message.split("\n\n") if part.strip()
    )
    place = f";min-height:{least_height}px" if least_height else ""
    return _html(
        f'<div class="diag-callout diag-{severity}" role="note" style="{_box(edge, tint)}{place}">'
        f'<p style="margin:0 0 .2em"><strong><span aria-hidden="true">{glyph}</span> '
        f"{text(title or word)}</strong></p>"
        f"{paragraphs}</div>"
    )


def _box(edge: str, tint: str) -> str:
    return (
        f"border-left:5px solid {edge};background:rgba({tint},.1);border-radius:4px;"
        "padding:.6em 1em;margin:1em 0"
    )


def answer(finding: Finding) -> HTML:
    """One finding as a sentence: its severity, the message, the numbers that decide, and what was asked."""
    word, glyph, edge, tint = SEVERITY_LOOK[finding.severity]
    details = [] if finding.value is None else [with_interval(finding.value, finding.ci)]
    if finding.threshold is not None:
        details.append(f"threshold {limit(finding.threshold)}")
    if finding.n is not None:
        details.append(f"n = {number(finding.n)}")
    if question := asked(finding):
        details.append(question)
    numbers = (
        f'<br><span class="diag-numbers" style="font-size:.92em">{text(" · ".join(details))}</span>'
        if details
        else ""
    )
    return _html(
        f'<p class="diag-answer diag-{finding.severity}" style="{_box(edge, tint)}">'
        f'<strong><span aria-hidden="true">{glyph}</span> '
        f"{word}.</strong> {text(sentence(finding.message))}{numbers}</p>"
    )


def findings_table(findings: Iterable[Finding], caption: str = "Findings") -> HTML:
    """Findings as a table, the most severe first: severity, what was found, numbers, threshold."""
    order = list(SEVERITY_LOOK)[::-1]
    rows = sorted(findings, key=lambda finding: order.index(finding.severity))
    if not rows:
        return callout("note", "No findings.", caption)
    body = "".join(
        f'<tr><td data-sort="{order.index(row.severity)}">{badge(row.severity)}</td>'
        f'<td class="diag-wide" style="text-align:left">{text(sentence(row.message))}<br>'
        f"<small><code>{text(row.id)}</code> {text(asked(row))}</small></td>"
        f'<td class="diag-number">{text(with_interval(row.value, row.ci))}</td>'
        f'<td class="diag-number">{text(limit(row.threshold))}</td>'
        f'<td class="diag-number">{text(number(row.n))}</td></tr>'
        for row in rows
    )
    head = ("Severity", "Finding", "Value [95%]", "Threshold", "n")
    return _html(_table(caption, head, body, numeric=[False, False, True, True, True]))


def asked(finding: Finding) -> str:
    """`Asked: the teacher ranks real above fake? No.`; empty for a check that has no statement."""
    statement = FINDINGS.get(finding.id)
    return "" if statement is None else f"Asked: {statement}? {ANSWER_WORD[finding.answer]}."


def sentence(message: str) -> str:
    """The message with a capital where it begins with a plain word (a name with dots or signs stays as it is)."""
    return message[:1].upper() + message[1:] if re.match(r"[a-z]+[ ,]", message) else message


def limit(threshold: float | None) -> str:
    """A threshold to four digits."""
    return "–" if threshold is None else f"{threshold:.4g}"


def badge(severity: str) -> str:
    """The severity as escaped markup: glyph and word on a tint."""
    word, glyph, edge, tint = SEVERITY_LOOK[severity]
    return (
        f'<span class="diag-badge diag-{severity}" style="white-space:nowrap;border:1px solid {edge};'
        f'background:rgba({tint},.14);border-radius:1em;padding:.05em .6em">'
        f'<span aria-hidden="true">{glyph}</span> {word}</span>'
    )


def table(df: "pd.DataFrame", caption: str, max_rows: int = MAX_ROWS) -> HTML:
    """A data frame as a table, its index only where it is named; at most `max_rows` rows, and it says so.

    Underscores of column names become spaces (not in a heading of several words, whose names are quoted as they are),
    truth values yes and no; an empty frame is said, not drawn.
    """
    if df.empty:
        return _html(f'<p class="diag-said" style="margin:1em 0"><strong>{text(caption)}:</strong> none.</p>')
    shown = df.head(max_rows)
    if df.index.name or df.index.nlevels > 1:
        shown = shown.reset_index()
    head = [name if " " in name else name.replace("_", " ") for name in map(str, shown.columns)]
    numeric = [_is_numeric(shown.iloc[:, place]) for place in range(shown.shape[1])]
    body = "".join(
        "<tr>" + "".join(_cell(value, right) for value, right in zip(row, numeric, strict=True)) + "</tr>"
        for row in shown.itertuples(index=False, name=None)
    )
    if len(df) > max_rows:
        caption = f"{caption} (first {number(max_rows)} of {number(len(df))} rows)"
    return _html(_table(caption, head, body, numeric))


def _is_numeric(column: "pd.Series") -> bool:
    """Numbers, or texts that all say a number (with an interval or a per cent sign) where they say anything."""
    if str(column.dtype).startswith(("int", "float", "Int", "Float", "uint")):
        return True
    said = [str(value).strip() for value in column if str(value).strip() not in ("", "–")]
    return bool(said) and all(_NUMBER.fullmatch(value) for value in said)


def _cell(value: Any, right: bool) -> str:
    plain = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
    if isinstance(plain, bool):
        plain = "yes" if plain else "no"
    kind = ' class="diag-number"' if right else ' style="text-align:left"'
    return f"<td{kind}>{text(number(plain))}</td>"


def _table(caption: str, head: Sequence[str], body: str, numeric: Sequence[bool]) -> str:
    looks = {True: ' class="diag-number"', False: ' style="text-align:left"'}
    cells = "".join(
        f'<th scope="col"{looks[right]}>{text(name)}</th>' for name, right in zip(head, numeric, strict=True)
    )
    return (
        f'<div class="diag-scroll" tabindex="0" role="region" aria-label="{text(caption)}" '
        f'style="overflow-x:auto;margin:1em 0">'
        f'<table class="diag-table">'
        f'<caption style="text-align:left;font-weight:600">{text(caption)}</caption>'
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(items: Mapping[str, object], caption: str | None = None) -> HTML:
    """Names and values as a short list, e.g. ``facts({"train": 600, "device": "cpu"})``."""
    rows = "".join(
        f'<div style="display:flex;flex-wrap:wrap;gap:.2em 1em">'
        f'<dt style="min-width:11em;opacity:.8">{text(name)}</dt>'
        f'<dd style="margin:0;font-weight:600;overflow-wrap:anywhere">{text(number(value))}</dd></div>'
        for name, value in items.items()
    )
    above = f'<p style="margin:.2em 0"><strong>{text(caption)}</strong></p>' if caption else ""
    return _html(
        f'<div class="diag-facts" style="margin:1em 0">{above}<dl style="margin:0">{rows}</dl></div>'
    )


def meanings(cause_ids: Iterable[str]) -> HTML:
    """What stands behind each of these causes, to unfold: when it is suspected, what looks like it, its proof."""
    return _html("".join(meaning(name) for name in cause_ids))


def meaning(cause_id: object, title: str = "") -> str:
    """One cause of `meanings` as escaped markup; empty for an id that no table holds."""
    from diag_lib.causes import CAUSES
    from diag_lib.causes_words import explained

    cause = next((cause for cause in CAUSES if cause.id == cause_id), None)
    if cause is None:
        return ""
    answers = "".join(
        f"<p><strong>{text(question)}</strong> {_marked(said)}</p>"
        for question, said in explained(cause).items()
    )
    return (
        f'<details class="diag-meaning"><summary>{text(title or f"What {cause.id} means")}</summary>'
        f"<p>{text(cause.sentence)}</p>{answers}</details>"
    )


def _marked(words: str) -> str:
    """Escaped; `code` as such, and of a link to another cause its name, since that one has no place here."""
    return re.sub(
        r"`([^`]+)`|\[([^\]]+)\]\(#[^)]*\)", lambda mark: f"<code>{mark[1] or mark[2]}</code>", text(words)
    )


def thumbnails(
    images: Sequence[Any], captions: Sequence[str], title: str | None = None, least_height: int = 0
) -> HTML:
    """Small pictures side by side, each with its caption (which is its text alternative too).

    Parameters: `images` are uint8 arrays (H, W, 3) or (H, W), or PIL images; at most 60 are shown, said so.
    `least_height` in pixels keeps the place of pictures that come and go.
    Raises `ValueError` when the numbers of images and captions differ.
    """
    if len(images) != len(captions):
        raise ValueError(f"thumbnails: {len(images)} images but {len(captions)} captions")
    shown = list(zip(images, captions, strict=True))[:MAX_THUMBNAILS]
    items = "".join(
        f'<figure style="margin:0;width:112px">'
        f'<img src="{_thumbnail(image)}" alt="{text(caption)}" width="112" '
        f'style="width:112px;height:auto;image-rendering:pixelated;border-radius:4px;background:#fff">'
        f'<figcaption style="font-size:.8em;line-height:1.3;overflow-wrap:anywhere">{_breakable(caption)}</figcaption>'
        "</figure>"
        for image, caption in shown
    )
    above = f'<p style="margin:.2em 0 .5em"><strong>{text(title)}</strong></p>' if title else ""
    rest = len(images) - len(shown)
    more = f'<p style="margin:.5em 0 0">{number(rest)} more are not shown.</p>' if rest else ""
    return _html(
        f'<div class="diag-thumbnails" style="margin:1em 0;min-height:{least_height}px">{above}'
        f'<div style="display:flex;flex-wrap:wrap;gap:12px">{items}</div>{more}</div>'
    )


def _breakable(caption: str) -> str:
    """Escaped; a line breaks after a folder rather than within a name."""
    return text(caption).replace("/", "/<wbr>")


def _thumbnail(image: Any) -> str:
    from PIL import Image

    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture = picture.convert("RGB")
    picture.info.clear()  # EXIF, comments and profiles would be saved too
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
