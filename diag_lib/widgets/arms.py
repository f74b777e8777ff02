"""Which of two arms is better, and does every seed say so?"""

from pathlib import Path

import pandas as pd
from IPython.display import HTML

from diag_lib import display
from diag_lib.distillation import STATUS_QUO, DistillationResult, describe
from diag_lib.evidence import RunFolder
from diag_lib.plots import seeds as pictures
from diag_lib.seeds import BySeed, SeedPair, by_seed, headline, pair_up, reading
from diag_lib.widgets.board import Board, buttons, place

_SEVERITY = {"better": "ok", "worse": "warning", "open": "note", "not trained": "note"}


class ArmBoard(Board):
    """The controls are `before` and `after`, two arms; it starts at the status quo against the best of the others."""

    def __init__(self, result: DistillationResult, known: dict[str, BySeed]) -> None:
        self._result, self._known = result, known
        self.before = buttons("first arm", known, STATUS_QUO)
        self.after = buttons("second arm", known, _best_other(result))
        super().__init__([[self.before], [self.after]])

    @property
    def now(self) -> list[SeedPair]:
        """The comparison of the chosen arms, one entry a seed of the run."""
        return pair_up(self._known, self.before.value, self.after.value)

    def draw(self) -> list[HTML]:
        """Difference and interval of every seed, as a picture, as numbers and in words."""
        first, second, pairs = self.before.value, self.after.value, self.now
        same = self._trained(first) == self._trained(second)
        title = f"{first} and {second} are the same training" if same else headline(first, second, pairs)
        said = "; ".join(f"seed {pair.seed}: {pair.shown}" for pair in pairs)
        words = "Choose another arm: there is nothing between these two." if same else reading(pairs)
        settings = self._result.settings
        named = f"{second}: {describe(second, settings)}. {first}: {describe(first, settings)}."
        return [
            display.figure(pictures.differences(pairs, title), alt=f"{title}. {said}.", caption=named),
            display.table(
                _table(pairs, first, second), f"AUC on half B, {first} and {second} from the same seed"
            ),
            display.callout(_SEVERITY[pairs[0].verdict], words, title, place()),
        ]

    def _trained(self, name: str) -> str:
        return self._result.arms[name].linked_to or name


def arm_board(result: DistillationResult, run_dir: RunFolder | str | Path) -> ArmBoard:
    """Any two arms of step 05 side by side, paired on half B, from every seed that both were trained with."""
    run = run_dir if isinstance(run_dir, RunFolder) else RunFolder(run_dir)
    return ArmBoard(result, by_seed(result.settings, run, result.arms))


def _best_other(result: DistillationResult) -> str:
    """The arm that half A likes best beside the status quo, which stands alone where nothing else was trained."""
    others = [name for name, arm in result.arms.items() if STATUS_QUO not in (name, arm.linked_to)]
    return max(others, key=lambda name: result.choice.on_a[name], default=STATUS_QUO)


def _table(pairs: list[SeedPair], first: str, second: str) -> pd.DataFrame:
    def side(pair: SeedPair, name: str) -> str:
        if pair.found is None:
            return "–"
        measured = (pair.found.before if name == "before" else pair.found.after).auc
        return display.with_interval(measured.value, measured.ci) if measured.defined else "ranks nothing"

    return pd.DataFrame(
        {
            "seed": [f"{pair.seed}" for pair in pairs],
            f"first: {first}": [side(pair, "before") for pair in pairs],
            f"second: {second}": [side(pair, "after") for pair in pairs],
            "difference [95%]": [pair.shown for pair in pairs],
            "p": [
                f"{pair.found.p:.2g}" if pair.found and pair.found.p == pair.found.p else "" for pair in pairs
            ],
        }
    )
