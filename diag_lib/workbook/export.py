"""How do I share a run? As one HTML file or a zip: no requests, scripts or paths; pictures only if wanted."""

import re
import zipfile
from pathlib import Path

from bs4 import BeautifulSoup, Tag
from markupsafe import Markup

from diag_lib.errors import UserError
from diag_lib.evidence import STEP_TITLES, STEPS, RunFolder
from diag_lib.files import whole
from diag_lib.settings import load
from diag_lib.workbook.render import environment, page_name, scrubber
from diag_lib.workbook.sanitize import tell_regions_apart
from diag_lib.workbook.state import RunState

_SAFE_IN_ZIP = (1980, 1, 1, 0, 0, 0)


def export_single_file(run: str | Path, out: str | Path, images: bool = True) -> Path:
    """Write the report of the run folder `run` as `out`: one page, or a zip of pages when it ends in .zip.

    Parameters
    ----------
    images : False leaves out every picture of the pages (they may show the dataset) and says so in its place;
        the interval bars, which show numbers only, stay.

    Raises
    ------
    UserError : `run` holds no report, or `out` is no .html or .zip or cannot be written.
    """
    folder, out = RunFolder(run), Path(out)
    if not (folder.root / "index.html").is_file():
        raise UserError(f"{run}: holds no report (index.html); name a run folder, such as reports/demo")
    if out.suffix.lower() not in (".html", ".htm", ".zip"):
        raise UserError(f"{out}: the file to write must end in .html or .zip")
    refuse_place(folder, out)
    names = ["index.html", *(page_name(step) for step in STEPS if (folder.root / page_name(step)).is_file())]
    pages = {
        name: BeautifulSoup((folder.root / name).read_text(encoding="utf-8"), "html.parser") for name in names
    }
    for page in pages.values() if not images else ():
        _without_images(page)
    try:
        if out.suffix.lower() == ".zip":
            _write_zip(out, {name: str(page) for name, page in pages.items()})
        else:
            _write_text(out, _one_page(folder, pages))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another file") from None
    return out


def refuse_place(folder: RunFolder, out: Path) -> None:
    """Raise `UserError` for a page of the run itself, a file in its dataset, or a folder that does not exist."""
    place = out.resolve()
    own = ("index.html", *map(page_name, STEPS))
    if place in [(folder.root / name).resolve() for name in own]:
        raise UserError(f"{out}: is a page of the run itself, which stays as it is; choose another file")
    if not place.parent.is_dir():
        raise UserError(f"{out}: its folder does not exist; make it first or choose another file")
    try:
        root = load(folder.root / "settings.yaml").dataset.folder
    except UserError:
        return
    if root.is_dir() and place.is_relative_to(root.resolve()):
        raise UserError(f"{out}: lies inside the dataset, which is never written to; choose another file")


def _without_images(page: BeautifulSoup) -> None:
    for picture in page.find_all("img"):
        note = page.new_tag("span", attrs={"class": "omitted"})
        note.string = f"Picture left out: {picture.get('alt', '')}"
        picture.replace_with(note)


def _one_page(folder: RunFolder, pages: dict[str, BeautifulSoup]) -> str:
    """All pages in one: the overview, then each step as a section that the links point to."""
    whole = BeautifulSoup("", "html.parser")
    for name, page in pages.items():
        main = page.find("main")
        if not isinstance(main, Tag):
            continue
        anchor = _anchor(name)
        for tag in main.find_all(class_="around"):
            tag.decompose()
        _rename_ids(main, anchor)
        for link in main.find_all("a", href=True):
            target = str(link["href"]).partition("#")[0]
            if target in pages:
                link["href"] = f"#{_anchor(target)}"
            elif target.endswith(".html") and ":" not in target:
                link.unwrap()
        section = whole.new_tag("section", attrs={"class": "part", "id": anchor})
        section.extend(list(main.contents))
        whole.append(section)
        whole.append("\n")
    tell_regions_apart(whole)
    state, hide = RunState.load(folder), scrubber(folder, None)
    links = Markup("").join(
        Markup('<li><a href="#{}">{}</a></li>').format(_anchor(page_name(step)), STEP_TITLES[step])
        for step in STEPS
        if page_name(step) in pages
    )
    nav = Markup(
        '<header class="top"><nav aria-label="Steps of the run">'
        '<a class="home" href="#{}">{}</a><ol>{}</ol></nav></header>'
    ).format(_anchor("index.html"), hide(state.name), links)
    return (
        environment()
        .get_template("page.html.j2")
        .render(title=hide(state.name), nav=nav, main=Markup(str(whole)))  # noqa: S704 - cut from our own pages
    )


def _anchor(name: str) -> str:
    return "page-" + name.removesuffix(".html")


def _rename_ids(main: Tag, anchor: str) -> None:
    """Ids are unique within a page only; in the joined file each page gets its own prefix."""
    ids = {str(tag["id"]) for tag in main.find_all(id=True)}
    for tag in main.find_all(True):
        if tag.get("id"):
            tag["id"] = f"{anchor}-{tag['id']}"
        if tag.get("aria-labelledby") in ids:
            tag["aria-labelledby"] = f"{anchor}-{tag['aria-labelledby']}"
        if str(tag.get("href", "")).startswith("#") and str(tag["href"])[1:] in ids:
            tag["href"] = f"#{anchor}-{str(tag['href'])[1:]}"


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def _write_zip(path: Path, pages: dict[str, str]) -> None:
    """A zip whose bytes depend on the pages only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        top = re.sub(r"[^\w.-]", "_", path.stem) or "report"
        for name, text in pages.items():
            entry = zipfile.ZipInfo(f"{top}/{name}", _SAFE_IN_ZIP)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, text)
