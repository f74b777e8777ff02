"""What results look like as tables, sentences and figures."""

import pandas as pd
from bs4 import BeautifulSoup

from diag_lib import display
from diag_lib.evidence import Finding
from diag_lib.plots import style


def _cells(markup: str, tag: str) -> list[tuple[str, bool]]:
    """Text of each cell, and whether it is set as a number."""
    found = BeautifulSoup(markup, "html.parser").find_all(tag)
    return [(cell.get_text(), "diag-number" in (cell.get("class") or [])) for cell in found]


def test_a_table_heads_columns_in_words_and_sets_numbers_right() -> None:
    frame = pd.DataFrame(
        {
            "val_class": ["real", "fake"],
            "auc": ["0.51 [0.47, 0.55]", "\N{EN DASH}"],
            "share": ["12%", "1,234"],
            "why": ["0.5", "the same"],
            "drifts": [True, False],
            "n": [1234, 5],
        }
    )
    shown = display.table(frame, "Numbers").data
    heads = [
        ("val class", False),
        ("auc", True),
        ("share", True),
        ("why", False),
        ("drifts", False),
        ("n", True),
    ]
    assert _cells(shown, "th") == heads
    assert [text for text, _ in _cells(shown, "td")][4:6] == ["yes", "1,234"]


def test_an_empty_table_is_said() -> None:
    shown = display.table(pd.DataFrame({"path": []}), "Leaked <pictures>").data
    assert "<table" not in shown
    assert BeautifulSoup(shown, "html.parser").get_text() == "Leaked <pictures>: none."


def test_an_empty_figure_is_said_and_a_drawn_one_is_drawn() -> None:
    figure, axes = style.new_figure(1, 2)
    for ax, words in zip(axes, ("No copies <b>", "Nothing else"), strict=True):
        ax.set_axis_off()
        style.finding_title(ax, words)
    axes[0].text(0, 0, "because")
    shown = display.figure(figure, alt="Copies.").data
    assert "<img" not in shown
    said = [p.get_text() for p in BeautifulSoup(shown, "html.parser").find_all("p")]
    assert said == ["No copies <b>. because", "Nothing else."]
    figure, ax = style.new_figure()
    ax.set_axis_off()
    ax.plot([0, 1], [0, 1])
    assert "<img" in display.figure(figure, alt="A line.").data


def test_a_finding_says_how_grave_it_is_and_what_was_asked() -> None:
    finding = Finding("audit.leakage", "ok", "no", "none of 9 images stands in train", 0.0, None, 0.693147, 9)
    for shown in (display.answer(finding).data, display.findings_table([finding]).data):
        text = BeautifulSoup(shown, "html.parser").get_text(" ")
        assert "None of 9 images stands in train" in text and "OK" in text
        assert "Asked: validation pictures that also stand in train? No." in text
        assert "0.6931" in text and "0.693147" not in text
    assert "Answer" not in shown


def test_a_message_that_begins_with_a_name_keeps_it() -> None:
    assert display.sentence("train has 300 images") == "Train has 300 images"
    assert display.sentence("demo.safetensors: 21 of 21") == "demo.safetensors: 21 of 21"
    assert display.sentence("") == ""
