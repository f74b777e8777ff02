"""On which settings do the cells below run? A table, and where somebody sits, fields checked as they are typed."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import ipywidgets as ipw
import pandas as pd
from IPython.display import HTML

from diag_lib import display, resources
from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder, refuse_address
from diag_lib.images import keep_out_of_dataset, refuse_missing
from diag_lib.live import live
from diag_lib.settings import (
    ARCHITECTURES,
    BUDGET_IMAGE_STEPS,
    Preprocess,
    Settings,
    check_parameters,
    dotted,
    load,
)
from diag_lib.widgets.board import LABEL, Board, buttons

KEPT = "panel.json"
"""In the run folder: what the panel changed, for all notebooks of the run. Batch runs do not read it."""
NO_WEIGHTS = "none: random weights"
WIDE = ipw.Layout(width="46em", max_width="100%")


class SettingsPanel(Board):
    """The controls are `fields` (by dotted key) and the buttons `use` and `back`.

    `overrides` is what the next cell gives to `workbook.start`: the notebook's own, and over them what was typed here
    and taken with `use`. Its still form is a table of the settings.
    """

    def __init__(self, config: str | Path, run: RunFolder, given: Mapping[str, Any], base: Path) -> None:
        self.config, self.run, self._given, self._base = config, run, dict(given), base
        self.parameters = self._settings(given)
        self._own = {key: self._shown(self.parameters, key) for key in _KEYS}
        self._used = self._kept()
        self.fields = {
            key: control(key, self._used.get(key, self._own[key])) for key, control in _KEYS.items()
        }
        self.use = ipw.Button(description="Use these settings", button_style="primary", layout=_button())
        self.back = ipw.Button(description="Back to the parameters", layout=_button())
        super().__init__([*([field] for field in self.fields.values()), [self.use, self.back]])
        self.picture.layout.height, self.picture.layout.overflow = (
            "8em",
            "auto",
        )  # messages do not move the page
        self.use.on_click(lambda _: self.take())
        self.back.on_click(lambda _: self._reset())
        self.redraw()

    @property
    def overrides(self) -> dict[str, Any]:
        """The notebook's overrides with what is used of the panel."""
        return {**self._given, **{key: _value(key, text) for key, text in self._used.items()}}

    @property
    def typed(self) -> dict[str, str]:
        """What the fields hold where it differs from the parameters."""
        return {
            key: str(field.value).strip()
            for key, field in self.fields.items()
            if str(field.value).strip() != self._own[key]
        }

    def check(self) -> str:
        """What is wrong with the fields, in the words of the settings; empty when nothing is."""
        try:
            settings = self._settings(
                {**self._given, **{k: _value(k, text) for k, text in self.typed.items()}}
            )
            keep_out_of_dataset(settings, self.run.root)
            if "dataset.root" in self.typed:
                refuse_missing(settings)
        except UserError as error:
            return str(error).removeprefix("override: ")
        return ""

    def take(self) -> None:
        """The cells below, and this run's other notebooks, use what the fields hold; nothing where that is wrong."""
        if not self.check():
            self._used = self.typed
            with contextlib.suppress(
                UserError, OSError
            ):  # a folder that cannot be written is the next cell's to say
                self.run.create().write_json(KEPT, self._used)
        self.redraw()

    def redraw(self) -> None:
        """Only the line below the fields."""
        self.picture.value = "".join(str(part.data) for part in self.draw())

    def draw(self) -> list[HTML]:
        """Whether the fields are valid and in use."""
        if wrong := self.check():
            return [display.callout("error", wrong, "Not possible")]
        if self.typed != self._used:
            return [
                display.callout(
                    "warning", "Press “Use these settings”, then run the cells below.", "Not in use yet"
                )
            ]
        if not self._used:
            return [
                display.callout("ok", "The cells below use the settings of the parameters cell.", "In use")
            ]
        changed = ", ".join(f"{key} = {text or NO_WEIGHTS}" for key, text in self._used.items())
        where = (
            f"Run the cells below. Kept in {self.run.root.name}/{KEPT} for all notebooks of this run folder."
        )
        return [display.callout("ok", f"{changed}. {where}", "In use")]

    def still(self) -> str:
        """The settings that the cells below use, as a table: those of the panel, and all that are not the default."""
        settings = self._settings(self.overrides)
        default, now = dotted(Settings().to_dict()), dotted(settings.to_dict())
        names = [*_KEYS, *(key for key in now if key not in _KEYS and now[key] != default[key])]
        rows = [(name, _said(name, now[name])) for name in names]
        table = display.table(
            pd.DataFrame(rows, columns=["setting", "value"]), "Used below; the rest as preset"
        )
        return f"<details><summary>Settings of this page</summary>{table.data}</details>"

    def _settings(self, overrides: Mapping[str, Any]) -> Settings:
        with contextlib.chdir(self._base):
            return load(self.config, dict(overrides))

    def _shown(self, settings: Settings, key: str) -> str:
        """The setting as a field's text; places inside the working directory without it."""
        value = dotted(settings.to_dict())[key]
        text = "" if value is None else str(value)
        return text.removeprefix(f"{self._base}{os.sep}")

    def _kept(self) -> dict[str, str]:
        """What the panel of another notebook of this run changed, if it is still possible."""
        found = self.run.read_json(KEPT) if live() else None
        kept = (
            {k: v for k, v in found.items() if k in _KEYS and isinstance(v, str)}
            if isinstance(found, dict)
            else {}
        )
        kept = {key: text for key, text in kept.items() if text != self._own[key]}
        with contextlib.suppress(UserError):
            self._settings({**self._given, **{key: _value(key, text) for key, text in kept.items()}})
            return kept
        return {}

    def _reset(self) -> None:
        self._quiet = True
        for key, field in self.fields.items():
            field.value = self._own[key]
        self._quiet = False
        self.take()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {**super()._repr_mimebundle_(include, exclude), "text/html": self.still()}


def settings_panel(
    config: str | os.PathLike[str],
    run_dir: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
) -> SettingsPanel:
    """The first thing in every notebook: the settings of its three parameters, to be changed where somebody sits.

    Raises `UserError` when the parameters are not allowed.
    """
    base = resources.base_dir()
    check_parameters(config, run_dir, overrides)
    refuse_address(run_dir)
    run = RunFolder(base / Path(run_dir).expanduser())
    return SettingsPanel(config if isinstance(config, str) else Path(config), run, overrides or {}, base)


def _text(key: str, value: str) -> ipw.Text:
    return ipw.Text(value, description=key, tooltip=_HINTS.get(key, key), style=_LABEL, layout=WIDE)


def _arch(key: str, value: str) -> ipw.Combobox:
    return ipw.Combobox(
        value=value, options=ARCHITECTURES, ensure_option=False, description=key,
        tooltip=f"{', '.join(ARCHITECTURES)}, timm/<name> or package.module:factory", style=_LABEL, layout=WIDE,
    )  # fmt: skip


def _preprocess(key: str, value: str) -> ipw.ToggleButtons:
    return buttons(key, get_args(Preprocess), value, _LABEL)


def _budget(key: str, value: str) -> ipw.ToggleButtons:
    return buttons(key, BUDGET_IMAGE_STEPS, value, _LABEL)


_LABEL = {**LABEL, "description_width": "11em"}
_KEYS = {
    "dataset.root": _text,
    "teacher.arch": _arch,
    "teacher.weights": _text,
    "teacher.preprocess": _preprocess,
    "student.arch": _arch,
    "runtime.budget": _budget,
}
_HINTS = {
    "dataset.root": "a folder train|val / real|fake, or a .csv or .parquet with path, label, split",
    "teacher.weights": "an alias, a file, or empty for random weights",
}


def _value(key: str, text: str) -> str | None:
    return None if key == "teacher.weights" and not text else text


def _said(key: str, value: object) -> str:
    if value is None:
        return NO_WEIGHTS if key.endswith(".weights") else "null"
    return str(value)


def _button() -> ipw.Layout:
    return ipw.Layout(width="auto")
