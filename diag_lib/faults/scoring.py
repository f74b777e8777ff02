"""How good are the verdicts of many cases together? The figures of `faults.json`, and the table as text."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from diag_lib.statistics import cluster_bootstrap

Row = dict[str, Any]


def score(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of `faults.json`, over the injections that do harm; None where there was no such case.

    right_first, causes_per_case, proof_rate : over runs of single faults; `right_first_ci` draws whole faults with
    replacement, since runs of one fault are alike; all right, or none, takes Clopper and Pearson's (1934) bound for as
    many faults, where drawing them would show no doubt at all. by_cause : runs named first and runs that did harm, of
    each fault. compound_both : over two faults at once, each of which does harm by itself. controls : distinct healthy
    pipelines. median_seconds : of one case, while `workers` of them ran.
    """
    killing = [row for row in rows if row["kind"] == "fault" and row["harm"]["kills"]]
    controls = [row for row in rows if row["kind"] == "control"]
    compound = [row for row in rows if row["kind"] == "compound" and row["harm"]["kills"]]
    established = [row for row in killing if row["status"] == "established"]
    proven = [row for row in established if row["proof"]["p"] is None or row["proof"]["p"] < 0.05]
    right = np.array([row["first_right"] for row in killing], dtype=float)
    names = [row["case"] for row in killing]
    return {
        "right_first": _share(row["first_right"] for row in killing),
        "right_first_ci": _interval(right, names) if names else None,
        "causes_per_case": statistics.fmean(len(row["named"]) for row in killing) if killing else None,
        "controls": len({row["case"] for row in controls}),
        "false_alarms": sum(bool(row["named"]) for row in controls),
        "controls_called_healthy": sum(row["healthy"] is True for row in controls),
        "compound_both": _share(row["all_named"] for row in compound),
        "proof_rate": len(proven) / len(established) if established else None,
        "median_seconds": statistics.median(row["seconds"] for row in rows) if rows else None,
        "killing": len(killing),
        "by_cause": {
            name: [sum(row["first_right"] for row in killing if row["case"] == name), names.count(name)]
            for name in dict.fromkeys(names)
        },
        "dropped": [row["case"] for row in rows if row["harm"] is not None and not row["harm"]["kills"]],
    }


def _interval(right: "np.ndarray[Any, np.dtype[np.float64]]", names: Sequence[str]) -> tuple[float, float]:
    """Two-sided 95% interval of the share that is right, with whole faults as the unit."""
    bound = 0.025 ** (1 / len(set(names)))
    if right.all():
        return bound, 1.0
    if not right.any():
        return 0.0, 1 - bound
    low, high = cluster_bootstrap(lambda taken: float(right[taken].mean()), names)
    return low, high


def _share(answers: Iterable[Any]) -> float | None:
    values = [bool(answer) for answer in answers]
    return sum(values) / len(values) if values else None


def summary(rows: Sequence[Row]) -> list[str]:
    """The table as text, one line a case, the score last."""
    lines = []
    for row in rows:
        if row["kind"] == "control":
            word = "false alarm" if row["named"] else "silent"
        elif not row["harm"]["kills"]:
            word = "does no harm, not scored"
        elif row["kind"] == "compound":
            word = "both named" if row["all_named"] else "missed"
        else:
            word = "right" if row["first_right"] else "missed"
        named = ", ".join(row["named"]) or "nothing"
        lines.append(f"{row['case']:32} seed {row['seed']}  {word:26} named {named}  {row['seconds']:.0f} s")
    figures = score(rows)
    right = "-" if figures["right_first"] is None else f"{figures['right_first']:.0%}"
    lines.append(
        f"right cause first: {right} of {figures['killing']} killing injections; "
        f"{figures['false_alarms']} false alarms on {figures['controls']} controls"
    )
    return lines
