"""Does the difference between two arms hold from another seed, or was it the luck of one start?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from diag_lib.evidence import RunFolder
from diag_lib.experiments.comparison import Comparison, compare, half_b
from diag_lib.settings import Settings
from diag_lib.training import ArmResult, ArmResults, load_arm
from diag_lib.training.arms import SEEDED
from diag_lib.training.folder import is_current
from diag_lib.training.jobs import Splits, make_job

BySeed = dict[int, ArmResult]
"""One arm's trainings: k of `<id>@seed<k>` to the result, 0 for the run's own seed."""
Verdict = Literal["better", "worse", "open", "not trained"]


@dataclass(frozen=True)
class SeedPair:
    """Two arms from one seed; `found` is None where only one of them was trained from it."""

    seed: int
    found: Comparison | None

    @property
    def verdict(self) -> Verdict:
        """What the 95% interval of the paired difference says about the second arm."""
        if self.found is None:
            return "not trained"
        low, high = self.found.ci
        return "better" if low > 0 else "worse" if high < 0 else "open"

    @property
    def shown(self) -> str:
        """The difference with its interval, `+0.12 [+0.03, +0.21]`."""
        if self.found is None:
            return "not both trained"
        if not self.found.before.auc.defined and not self.found.after.auc.defined:
            return "neither ranks any image"
        low, high = self.found.ci
        return f"{self.found.delta:+.2f} [{low:+.2f}, {high:+.2f}]"


def by_seed(settings: Settings, run: RunFolder, arms: ArmResults) -> dict[str, BySeed]:
    """Every arm of `arms` with its trainings from further seeds that the run folder holds.

    Trainings left behind by other settings, data or code do not count. An arm that is the same training as another
    shares that one's seeds.
    """
    found: dict[str, BySeed] = {name: {0: arm} for name, arm in arms.items()}
    splits: Splits | None = None
    for folder in sorted((run.root / "artifacts" / "arms").glob("*@seed*")):
        seeded = SEEDED.fullmatch(folder.name)
        if seeded is None or seeded["base"] not in arms:
            continue
        splits = splits or Splits(settings, run)  # opens the images: only where there is a second seed
        key = make_job(settings, splits, arms.plan, folder.name).key
        again = load_arm(run, folder.name) if is_current(run, folder.name, key) else None
        if again is not None:
            found[seeded["base"]][int(seeded["k"])] = again
    for name, arm in arms.items():
        if arm.linked_to in found:
            found[name] = {**found[arm.linked_to], **found[name]}
    return found


def pair_up(known: Mapping[str, BySeed], before: str, after: str) -> list[SeedPair]:
    """The paired difference on half B, after - before, for every seed that any arm was trained from."""
    first, second = known[before], known[after]
    seeds = {k: arm.seed for arms in known.values() for k, arm in arms.items()}
    return [
        SeedPair(seed, _compared(before, first.get(k), after, second.get(k)))
        for k, seed in sorted(seeds.items())
    ]


def _compared(
    before: str, first: ArmResult | None, after: str, second: ArmResult | None
) -> Comparison | None:
    if first is None or second is None:
        return None
    return compare(
        f"{after} instead of {before}", before, half_b(first.val_scores), after, half_b(second.val_scores)
    )


def headline(before: str, after: str, pairs: Sequence[SeedPair]) -> str:
    """The comparison in a title."""
    told = [pair.verdict for pair in pairs if pair.verdict != "not trained"]
    both = f"{after} against {before}"
    if {"better", "worse"} <= set(told):
        return f"{both}: the seeds contradict each other"
    if set(told) <= {"open"}:
        return f"{both}: no clear difference"
    word = "better" if "better" in told else "worse"
    clear = sum(verdict == word for verdict in told)
    if len(told) == 1:
        return f"{both}: {word}, from one seed"
    return (
        f"{both}: {word} from {f'each of {clear}' if clear == len(told) else f'{clear} of {len(told)}'} seeds"
    )


def reading(pairs: Sequence[SeedPair]) -> str:
    """What the seeds say together, in sentences; blank lines separate paragraphs."""
    told = [pair for pair in pairs if pair.found is not None]
    if not told:
        return "No seed has trained both arms."
    own, rest = told[0], told[1:]
    if own.found is not None and own.shown.startswith("neither"):
        first = "Neither arm ranks any image of half B: their scores are all alike or not finite."
    else:
        first = f"{own.found.sentence() if own.found else ''} on the images of half B."
    if not rest:
        return (
            f"{first}\n\nOne seed has trained both. The interval tells what other images might change, not what "
            "another start might: step 06 trains a second seed where its answer rests on the difference."
        )
    others = "; ".join(f"seed {pair.seed} {pair.shown}" for pair in rest)
    verdicts = {pair.verdict for pair in told}
    if {"better", "worse"} <= verdicts:
        judged = "They contradict each other: the difference is the start's, not the arm's"
    elif len(verdicts) == 1 and "open" not in verdicts:
        judged = "They agree: it was not the luck of one start"
    elif verdicts == {"open"}:
        judged = "No seed shows a clear difference: more validation images would tell more than more seeds"
    else:
        judged = "Not every interval excludes 0: count on the direction, not on the size"
    return f"{first}\n\nFrom other seeds: {others}. {judged}."
