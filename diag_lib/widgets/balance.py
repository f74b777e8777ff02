"""With another alpha, loss or normalisation: who would rule the loss and the gradient?"""

from functools import cached_property

import ipywidgets as ipw
import numpy as np
import torch
from IPython.display import HTML

from diag_lib import display
from diag_lib.logits import LogitsResult
from diag_lib.losses import DISTILLATION_LOSSES, KEEPS_IMAGE_MEAN, NORMALIZATIONS, LogitScale
from diag_lib.plots import balance as pictures
from diag_lib.probes.balance import Balance, Choice, Terms, balance, headline, reading, terms
from diag_lib.settings import Settings
from diag_lib.widgets.board import LABEL, Board, buttons, place, slider_layout

ALPHAS = (
    0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5,
    0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1.0,
)  # fmt: skip
TEMPERATURES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
NO_DATA = "No image has finite patch logits on both sides: repair that first, then this board has something to weigh."


class BalanceBoard(Board):
    """The controls are `alpha`, `normalize`, `loss`, `temperature` and `side` (which student)."""

    def __init__(self, result: LogitsResult) -> None:
        self._result = result
        self._known: dict[tuple[str, str, str, float], Terms | None] = {}
        weights = result.settings.training.distillation
        self.alpha = ipw.SelectionSlider(
            options=[(f"{value:g}", value) for value in sorted({*ALPHAS, configured_alpha(result.settings)})],
            value=configured_alpha(result.settings),
            description="alpha_distill",
            tooltip="weight of the distillation; the labels get the rest to 1",
            style=LABEL,
            layout=slider_layout(),
        )
        self.normalize = buttons("normalize", NORMALIZATIONS, weights.normalize)
        self.loss = buttons("loss", dict.fromkeys((*DISTILLATION_LOSSES, weights.loss)), weights.loss)
        self.temperature = ipw.SelectionSlider(
            options=[(f"{value:g}", value) for value in sorted({*TEMPERATURES, weights.temperature})],
            value=weights.temperature,
            description="temperature",
            tooltip="of bernoulli_kl",
            disabled=weights.loss != "bernoulli_kl",
            style=LABEL,
            layout=slider_layout(),
        )
        self.side = buttons("student", ("trained", "untrained"), "trained")
        self.loss.observe(self._loss_changed, names="value")
        super().__init__([[self.alpha, self.temperature], [self.normalize], [self.loss, self.side]])

    @property
    def choice(self) -> Choice:
        """What the controls say."""
        return Choice(self.alpha.value, self.loss.value, self.normalize.value, self.temperature.value)

    @property
    def now(self) -> Balance | None:
        """The balance at the controls' values; None where no image has finite logits."""
        found = self._terms()
        return None if found is None else balance(found, self.alpha.value)

    def draw(self) -> list[HTML]:
        """Shares of loss and gradient, the cosine, and their reading."""
        found, now = self._terms(), self.now
        if found is None or now is None:
            return [display.callout("error", NO_DATA, "Nothing to weigh")]
        severity = "note" if KEEPS_IMAGE_MEAN[self.normalize.value] else "warning"
        alt = (
            f"{headline(now)}; weighted loss {now.total:.4g}, cosine of the gradients {now.cosine:.2f}; "
            f"beside it both shares at every weight."
        )
        return [
            display.figure(pictures.board(found, now, self.choice), alt=alt),
            display.callout(severity, reading(now, self.choice), self._title, place()),
        ]

    @property
    def _title(self) -> str:
        named = f"{self.loss.value} with normalisation {self.normalize.value}, {self.side.value} student"
        own = self._result.settings.training.distillation
        same = (own.loss, own.normalize) == (self.loss.value, self.normalize.value)
        return (
            f"Your settings: {named}"
            if same and self.alpha.value == own.alpha_distill
            else f"If it were {named}"
        )

    def _loss_changed(self, change: object) -> None:
        self.temperature.disabled = self.loss.value != "bernoulli_kl"

    @cached_property
    def _scale(self) -> LogitScale:
        return LogitScale.of(torch.as_tensor(self._result.pairs.teacher))

    def _terms(self) -> Terms | None:
        key = (self.side.value, self.normalize.value, self.loss.value, self.temperature.value)
        if key not in self._known:
            self._known[key] = self._compute()
        return self._known[key]

    def _compute(self) -> Terms | None:
        pairs = self._result.pairs
        student = getattr(pairs, self.side.value)
        if not (np.isfinite(student).all(axis=1) & np.isfinite(pairs.teacher).all(axis=1)).any():
            return None
        labels = pairs.frame["label"].to_numpy(dtype=np.int64)
        return terms(student, pairs.teacher, labels, self.choice, self._result.settings.pooling, self._scale)


def balance_board(result: LogitsResult) -> BalanceBoard:
    """Weights, loss and normalisation to try on the captured logits of step 03; starts at the run's settings."""
    return BalanceBoard(result)


def configured_alpha(settings: Settings) -> float:
    """The distillation's part of both weights: only their ratio decides where Adam goes."""
    weights = settings.training.distillation
    both = weights.alpha_distill + weights.alpha_task
    return round(weights.alpha_distill / both, 4) if both > 0 else 0.0
