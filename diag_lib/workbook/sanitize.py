"""Is a notebook's output safe to publish? Only known harmless tags, attributes and image data pass.

The report's content security policy stops foreign scripts and all requests already; this removes them from the file,
so that it stays harmless where the policy is not honoured, and adds what accessibility and phones need.
"""

import re
from collections.abc import Callable

from bs4 import BeautifulSoup, Tag
from bs4.element import NavigableString

NO_DESCRIPTION = "Figure without a description"
_NBCONVERT_ALT = "No description has been provided for this image"

# Removed with everything in them; all other unknown tags are removed but their content stays.
DROPPED = frozenset(
    [
        "script",
        "style",
        "iframe",
        "frame",
        "frameset",
        "object",
        "embed",
        "applet",
        "template",
        "noscript",
        "link",
        "meta",
        "base",
        "form",
        "input",
        "button",
        "select",
        "textarea",
        "audio",
        "video",
        "source",
        "track",
        "canvas",
        "map",
        "area",
        "portal",
        "dialog",
        "head",
        "title",
        "math",
        "foreignobject",
        "use",
        "image",
        "animate",
        "animatetransform",
        "animatemotion",
        "set",
    ]
)
ALLOWED = frozenset(
    [
        "a",
        "abbr",
        "b",
        "blockquote",
        "br",
        "caption",
        "cite",
        "code",
        "col",
        "colgroup",
        "dd",
        "del",
        "details",
        "dfn",
        "div",
        "dl",
        "dt",
        "em",
        "figcaption",
        "figure",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "hr",
        "i",
        "img",
        "ins",
        "kbd",
        "li",
        "mark",
        "ol",
        "p",
        "pre",
        "q",
        "s",
        "samp",
        "section",
        "small",
        "span",
        "strong",
        "sub",
        "summary",
        "sup",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "time",
        "tr",
        "tt",
        "u",
        "ul",
        "var",
        "wbr",
        "svg",
        "g",
        "path",
        "rect",
        "line",
        "circle",
        "ellipse",
        "text",
        "tspan",
        "polyline",
        "polygon",
        "desc",
    ]
)
_ATTRIBUTES = frozenset(
    [
        "class",
        "title",
        "alt",
        "width",
        "height",
        "colspan",
        "rowspan",
        "scope",
        "role",
        "lang",
        "dir",
        "open",
        "start",
        "style",
        "tabindex",
        "datetime",
        "viewbox",
        "x",
        "y",
        "x1",
        "x2",
        "y1",
        "y2",
        "cx",
        "cy",
        "r",
        "rx",
        "ry",
        "d",
        "points",
        "fill",
        "stroke",
        "stroke-width",
        "stroke-dasharray",
        "stroke-linecap",
        "opacity",
        "fill-opacity",
        "text-anchor",
        "dominant-baseline",
        "font-size",
        "font-weight",
        "transform",
        "preserveaspectratio",
    ]
)
_IMAGE_DATA = re.compile(r"data:image/(?:png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/=\s]*$")
_LINK = re.compile(r"(?:https?://|mailto:|#|[\w-]+\.html(?:#[\w.-]*)?$)")
_BAD_STYLE = re.compile(
    r"url\s*\(|expression|position|@import|behavior|binding|\\|content\s*:|z-index|/\*", re.IGNORECASE
)
_SORT_KEY = re.compile(r"-?\d+(?:\.\d+)?")
_TEXT_ATTRIBUTES = ("title", "alt", "aria-label")


def clean(markup: str, scrub: Callable[[str], str] = str) -> str:
    """Harmless HTML from untrusted HTML; `scrub` is applied to every text a reader can see."""
    try:
        return _cleaned(markup, scrub)
    except RecursionError:  # nested without end: nothing a person wrote
        return "<p>[output left out: nested too deeply]</p>"


def _cleaned(markup: str, scrub: Callable[[str], str]) -> str:
    soup = BeautifulSoup(markup, "html.parser")
    for tag in soup.find_all(DROPPED):
        if not tag.decomposed:
            tag.decompose()
    for text in soup.find_all(string=True):
        if type(text) is not NavigableString:  # comments, declarations, processing instructions
            text.extract()
    for tag in soup.find_all(True):
        _clean_tag(tag, scrub)
    for text in list(soup.find_all(string=True)):
        text.replace_with(NavigableString(scrub(str(text))))
    for table in soup.find_all("table"):
        _make_scrollable(soup, table)
    for block in soup.find_all("pre"):
        block["tabindex"] = "0"
    for head in soup.find_all("th"):
        if not head.get_text(strip=True) and not head.find("img"):
            head.name = "td"  # a corner cell heads nothing
            head.attrs.pop("scope", None)
    tell_regions_apart(soup)
    return str(soup)


def tell_regions_apart(page: Tag) -> None:
    """Number the regions of a page that have the same name, so that a list of them says which is which.

    A section is a region too, named by its heading; it keeps its name.
    """
    headings = [
        page.find(id=str(part["aria-labelledby"])) for part in page.select("section[aria-labelledby]")
    ]
    seen = dict.fromkeys((head.get_text(" ", strip=True) for head in headings if isinstance(head, Tag)), 1)
    for region in page.find_all(role="region"):
        name = str(region.get("aria-label", ""))
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            region["aria-label"] = f"{name} ({seen[name]})"


def _clean_tag(tag: Tag, scrub: Callable[[str], str]) -> None:
    name = tag.name.lower()
    if name not in ALLOWED:
        tag.unwrap()
        return
    for attribute, value in list(tag.attrs.items()):
        text = " ".join(value) if isinstance(value, list) else str(value)
        if attribute == "src" and name == "img":
            continue
        if attribute == "href" and name == "a":
            if not _LINK.match(text.strip()):
                del tag[attribute]
        elif attribute == "id":
            # Anchors are kept in text cells only: an output must not take over the page's own.
            in_text = tag.find_parent(class_="diag-text") is not None
            if not in_text or not re.fullmatch(r"[\w.\-·]+", text):
                del tag[attribute]
        elif attribute == "style":
            tag[attribute] = _clean_style(text)
        elif attribute == "data-sort":
            if not _SORT_KEY.fullmatch(text):
                del tag[attribute]
        elif attribute in _TEXT_ATTRIBUTES:
            tag[attribute] = scrub(text)
        elif attribute not in _ATTRIBUTES and not attribute.startswith("aria-"):
            del tag[attribute]
    if name == "a" and str(tag.get("href", "")).startswith("http"):
        tag["rel"] = "noreferrer noopener"
    if name == "img":
        _clean_image(tag)


def _clean_style(style: str) -> str:
    return ";".join(part.strip() for part in style.split(";") if part.strip() and not _BAD_STYLE.search(part))


def _clean_image(tag: Tag) -> None:
    alt = str(tag.get("alt") or "").strip()
    alt = NO_DESCRIPTION if alt in ("", _NBCONVERT_ALT) else alt
    if _IMAGE_DATA.match(str(tag.get("src", ""))):
        tag["alt"] = alt
    else:
        tag.replace_with(NavigableString(f"[picture left out: {alt}]"))


def _make_scrollable(soup: BeautifulSoup, table: Tag) -> None:
    """Wide tables scroll inside their own box, so that the page never does."""
    if table.find_parent(class_="diag-scroll") or table.find_parent("table"):
        return
    label = table.caption.get_text(" ", strip=True) if table.caption else "Table"
    box = soup.new_tag(
        "div", attrs={"class": "diag-scroll", "tabindex": "0", "role": "region", "aria-label": label}
    )
    table.wrap(box)
