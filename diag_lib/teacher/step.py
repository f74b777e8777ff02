"""Does the teacher know anything about these images, and if not: is it the teacher or how it is used?

The guide's question (AUC below 0.55: not informative; above 0.70: good) is answered with intervals, on train
and val and for every source, and beside it stand the usual reasons for a wrong answer: weights that did not
arrive, another preprocessing than in training, swapped labels, train mode, rounded probabilities.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from diag_lib.checks import with_own
from diag_lib.devices import choose
from diag_lib.evidence import UNUSED_TEACHER, Evidence, Finding, RunFolder, muted
from diag_lib.images import ImageSet, open_split
from diag_lib.models import (
    PREPROCESS,
    LoadReport,
    PatchModel,
    apply_preprocess,
    build_teacher,
    pool,
    preprocessing,
)
from diag_lib.models import state_sha as _state_sha
from diag_lib.probes.fingerprint import Fingerprint, fingerprint
from diag_lib.probes.pairs import spread
from diag_lib.probes.preprocessing import NORMALISATIONS, PreprocessingProbe, Variant, probe
from diag_lib.probes.teacher import (
    ModeCheck,
    SaturationCheck,
    WeightsCheck,
    batches,
    check_mode,
    check_saturation,
    check_weights,
    image_logits,
)
from diag_lib.progress import Bar
from diag_lib.settings import Settings
from diag_lib.statistics import Auc, auc, robust_summary, split_halves
from diag_lib.teacher.findings import findings
from diag_lib.teacher_cache import TeacherMaps, teacher_maps

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TRAIN_IMAGES = 4000  # more do not change the answer; the AUC's interval is +-.02 by then
SMALL_NETWORK = 100_000  # parameters; below it a forward pass costs no more than reading the image
PROBE_IMAGES = {  # how many validation images each variant of the preprocessing probe is scored on
    "quick": {"small": 800, "large": 128},
    "standard": {"small": 2000, "large": 400},
    "full": {"small": 4000, "large": 2000},
}
FINGERPRINT_IMAGES = 96
PATCH_VALUES = 4_000_000
EXAMPLES_A_CLASS = 3
BLOCK = 64
ROC_RESAMPLES = 300
ROC_GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class HeatMap:
    """One picture (H, W, 3) uint8, the teacher's patch logits (h, w) over it, its label and image logit."""

    path: str
    label: int
    score: float
    pixels: npt.NDArray[np.uint8]
    patches: npt.NDArray[np.float32]


@dataclass(frozen=True)
class TeacherResult:
    """What step 02 measured.

    `scores` has one row an image: path, split, label, source, score (raw logit, float64). `sources` has one
    row a source of each split: its AUC (against all images of the other class where it holds one class only).
    `roc` is the validation curve with its pointwise 95% band. `patches` summarises patch logits of all, real
    and fake validation images. `evidence` holds the findings.
    """

    settings: Settings
    report: LoadReport
    scores: pd.DataFrame
    val: Auc
    train: Auc
    sources: pd.DataFrame
    roc: pd.DataFrame
    patches: pd.DataFrame
    examples: list[HeatMap]
    weights: WeightsCheck
    preprocessing: PreprocessingProbe
    fingerprint: Fingerprint
    mode: ModeCheck
    saturation: SaturationCheck
    evidence: Evidence

    def finding(self, name: str) -> Finding:
        """The finding `teacher.<name>`."""
        found = self.evidence.finding(f"teacher.{name}")
        if found is None:
            raise KeyError(name)
        return found

    def of_split(self, split: str) -> pd.DataFrame:
        """The rows of `scores` of "train" or "val"."""
        return self.scores[self.scores["split"] == split]


def run(settings: Settings, run_dir: RunFolder | str | Path, *, progress: bool = True) -> TeacherResult:
    """Ask the teacher about val and (at most 4,000 images of) train, probe it, write `evidence/teacher.json`.

    Writes `artifacts/teacher_scores.parquet` and `teacher_probe.parquet` too. Raises UserError where the
    teacher cannot be built or the images cannot be read.
    """
    folder = run_dir if isinstance(run_dir, RunFolder) else RunFolder(run_dir).create()
    model, report = build_teacher(settings)
    sets = {split: open_split(settings, split, folder) for split in ("train", "val")}
    maps = {
        split: teacher_maps(settings, images, folder, model=model, progress=progress)
        for split, images in sets.items()
    }
    seed = settings.training.seed
    rows = {
        "val": np.arange(len(sets["val"].frame)),
        "train": spread(sets["train"].labels, TRAIN_IMAGES, seed),
    }
    logits = {split: _pooled(maps[split], rows[split], settings) for split in ("train", "val")}
    scores = _score_table(sets, rows, logits)
    folder.write_parquet("teacher_scores.parquet", scores)
    aucs = {split: _auc(images, rows[split], logits[split]) for split, images in sets.items()}
    probes = _Probes(settings, folder, model, sets["val"], logits["val"], progress)
    weights, prints, mode = probes.weights(report), probes.fingerprint(), probes.mode()
    feeding = probes.preprocessing(prints)
    folder.write_parquet("teacher_probe.parquet", feeding.table())
    saturation = check_saturation(sets["val"].labels, logits["val"])
    patches = _patch_statistics(maps["val"], sets["val"].labels, seed)
    found = findings(settings, aucs["val"], aucs["train"], scores, weights, feeding, prints, mode, saturation)
    evidence = Evidence(
        "teacher",
        found if settings.training.distillation.alpha_distill else muted(found, UNUSED_TEACHER),
        _numbers(aucs, patches, saturation),
        {
            "settings": settings.digest("dataset", "teacher", "pooling", "training.seed", "thresholds"),
            "weights": _state_sha(model),
            "teacher_maps": maps["val"].key,
        },
    )
    evidence = with_own(evidence, settings, folder)
    folder.write_evidence(evidence)
    return TeacherResult(
        settings, report, scores, aucs["val"], aucs["train"], _by_source(scores),
        roc_band(sets["val"].labels, logits["val"], seed), patches, _examples(sets["val"], maps["val"], logits["val"]),
        weights, feeding, prints, mode, saturation, evidence,
    )  # fmt: skip


class _Probes:
    """The probes of one teacher on validation images; `known` are its image logits as configured."""

    def __init__(
        self,
        settings: Settings,
        run: RunFolder,
        model: PatchModel,
        val: ImageSet,
        known: Floats,
        progress: bool,
    ) -> None:
        self.settings, self.run, self.model, self.val, self.known = settings, run, model, val, known
        self.device = choose(settings).device
        self.progress = progress
        self.start = Variant.configured(settings, model.preprocess, model.input_scale)
        size = "small" if sum(p.numel() for p in model.parameters()) <= SMALL_NETWORK else "large"
        limit = PROBE_IMAGES[settings.runtime.budget][size]
        self.rows = spread(val.labels, limit, settings.training.seed)
        model.to(self.device)

    def _inputs(self, rows: Ints, variant: Variant, images: ImageSet) -> Any:
        return batches(images, rows, *variant.mean_std(self.settings), self.device)

    def weights(self, report: LoadReport) -> WeightsCheck:
        """Are they loaded?"""
        chosen = spread(self.val.labels, 8, self.settings.training.seed)
        inputs = torch.cat(list(self._inputs(chosen, self.start, self.val)))
        return check_weights(self.model, report, self.settings, inputs)

    def mode(self) -> ModeCheck:
        """Does the batch matter?"""
        return check_mode(self.model, self.val, self.rows, self.settings, self.device, self.known)

    def fingerprint(self) -> Fingerprint:
        """What do the normalisation statistics remember?"""
        chosen = spread(self.val.labels, FINGERPRINT_IMAGES, self.settings.training.seed)
        variants = self._remembered()
        configured = next(name for name, variant in variants.items() if variant == self.start)

        def activate(variant: Variant) -> Callable[[], Any]:
            return lambda: (
                apply_preprocess(x, variant.preprocess) * variant.input_scale
                for x in self._inputs(chosen, variant, self.val)
            )

        activations = {name: activate(variant) for name, variant in variants.items()}
        return fingerprint(self.model, activations, configured, seed=self.settings.training.seed)

    def _remembered(self) -> dict[str, Variant]:
        """The variants whose traces are looked for: preprocessings where the network has them, or normalisations."""
        if self.model.supports_preprocess:
            return {name: replace(self.start, preprocess=name) for name in PREPROCESS}
        names = dict.fromkeys([self.start.normalisation, *NORMALISATIONS])
        return {name: replace(self.start, normalisation=name) for name in names}

    def preprocessing(self, prints: Fingerprint) -> PreprocessingProbe:
        """Does another way of feeding the teacher raise its AUC?"""
        halves = split_halves(self.val.labels, _groups(self.val), self.settings.training.seed)
        opened = {self.start.resize: self.val}
        nominated = self._remembered()[prints.best] if prints.best and prints.answer == "yes" else None
        done: dict[Variant, dict[int, float]] = {}
        with Bar(desc="preprocessing probe", unit="image", disable=not self.progress) as bar:

            def scores(variant: Variant, positions: Ints) -> Floats:
                rows = self.rows[positions]
                if variant == self.start:
                    return self.known[rows]
                if variant.resize not in opened:
                    opened[variant.resize] = open_split(self.settings, "val", self.run, resize=variant.resize)
                seen = done.setdefault(variant, {})
                new = np.array([row for row in rows.tolist() if row not in seen], np.int64)
                if len(new):
                    with preprocessing(self.model, variant.preprocess, variant.input_scale):
                        inputs = self._inputs(new, variant, opened[variant.resize])
                        found = image_logits(self.model, inputs, self.settings.pooling)
                    seen.update(zip(new.tolist(), found.tolist(), strict=True))
                    bar.update(len(new))
                return np.array([seen[row] for row in rows.tolist()])

            return probe(
                scores,
                self.start,
                self.val.labels[self.rows],
                halves[self.rows],
                _groups(self.val)[self.rows],
                with_preprocess=self.model.supports_preprocess,
                nominated=nominated,
                own=prints.best if prints.certain and self.model.supports_preprocess else None,
            )


def _groups(images: ImageSet) -> npt.NDArray[Any]:
    return np.asarray(images.groups)


def _auc(images: ImageSet, rows: Ints, logits: Floats) -> Auc:
    return auc(images.labels[rows], logits, groups=_groups(images)[rows], nan="undefined")


def _pooled(maps: TeacherMaps, rows: Ints, settings: Settings) -> Floats:
    """Image logits (n,) of view 0, pooled in float64."""
    maps.ensure(rows, np.zeros_like(rows))
    blocks = [rows[start : start + 1024] for start in range(0, len(rows), 1024)]
    found = [pool(maps.get(block).double(), settings.pooling).numpy() for block in blocks]
    return np.concatenate(found) if found else np.zeros(0)


def _score_table(sets: dict[str, ImageSet], rows: dict[str, Ints], logits: dict[str, Floats]) -> pd.DataFrame:
    tables = []
    for split, images in sets.items():
        table = images.frame.iloc[rows[split]][["path", "label", "source"]].reset_index(drop=True)
        tables.append(table.assign(split=split, score=logits[split]))
    return pd.concat(tables, ignore_index=True)[["path", "split", "label", "source", "score"]]


def _by_source(scores: pd.DataFrame) -> pd.DataFrame:
    """AUC of every source: within it, or against all images of the class that it does not hold."""
    rows = []
    for split, table in scores.groupby("split", sort=False):
        names = sorted(table["source"].unique())
        for name in names if len(names) > 1 else []:
            own = table[table["source"] == name]
            alone = len(set(own["label"])) == 1
            other = table[table["label"] != own["label"].iloc[0]]
            judged = pd.concat([own, other]) if alone else own
            found = auc(judged["label"].to_numpy(), judged["score"].to_numpy(), nan="undefined")
            counts = {"n_real": int((own["label"] == 0).sum()), "n_fake": int((own["label"] == 1).sum())}
            against = f"all {'fake' if own['label'].iloc[0] == 0 else 'real'}" if alone else "its own"
            rows.append(
                {"split": split, "source": name, "against": against, **counts,
                 "auc": found.value, "low": found.ci[0], "high": found.ci[1]}
            )  # fmt: skip
    columns = ["split", "source", "against", "n_real", "n_fake", "auc", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def roc_band(labels: npt.ArrayLike, scores: npt.ArrayLike, seed: int) -> pd.DataFrame:
    """ROC curve on a grid of false-positive rates with its pointwise 95% bootstrap band (fpr, tpr, low, high)."""
    y, x = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    good = ~np.isnan(x)
    real, fake = np.sort(x[good & (y == 0)]), np.sort(x[good & (y == 1)])
    if not (len(real) and len(fake)):
        return pd.DataFrame({"fpr": ROC_GRID, "tpr": np.nan, "low": 0.0, "high": 1.0})
    rng = np.random.default_rng([seed, 0x20C])
    resampled = np.stack(
        [
            _curve(np.sort(rng.choice(real, len(real))), np.sort(rng.choice(fake, len(fake))))
            for _ in range(ROC_RESAMPLES)
        ]
    )
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    return pd.DataFrame({"fpr": ROC_GRID, "tpr": _curve(real, fake), "low": low, "high": high})


def _curve(real: Floats, fake: Floats) -> Floats:
    """True-positive rates at `ROC_GRID`, straight lines between the distinct thresholds; sorted inputs."""
    cuts = np.unique(np.concatenate([real, fake]))[::-1]
    fpr = 1 - np.searchsorted(real, cuts, "left") / len(real)
    tpr = 1 - np.searchsorted(fake, cuts, "left") / len(fake)
    fpr, tpr = np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr])
    curve: Floats = np.interp(ROC_GRID, fpr, tpr)
    below = np.searchsorted(fpr, ROC_GRID, "right") - 1
    on_step = fpr[below] == ROC_GRID
    curve[on_step] = tpr[below[on_step]]  # the top of a vertical step
    return curve


def _patch_statistics(maps: TeacherMaps, labels: Ints, seed: int) -> pd.DataFrame:
    """min, max, mean, std and their robust companions of the patch logits: all, real and fake images."""
    cells = int(np.prod(maps.shape))
    chosen = spread(labels, max(16, PATCH_VALUES // cells), seed)
    values = maps.get(chosen)[:, 0].numpy()
    kinds = {"all": chosen >= 0, "real": labels[chosen] == 0, "fake": labels[chosen] == 1}
    rows = {
        name: {**robust_summary(values[which]), "images": int(which.sum())} for name, which in kinds.items()
    }
    return pd.DataFrame(rows).T.rename_axis("patches of")


def _examples(images: ImageSet, maps: TeacherMaps, logits: Floats) -> list[HeatMap]:
    """Of each class the images that the teacher finds most real, middling and most fake."""
    chosen: list[int] = []
    for label in (0, 1):
        rows = np.flatnonzero((images.labels == label) & np.isfinite(logits))
        ranked = rows[np.argsort(logits[rows], kind="stable")]
        places = np.unique(np.linspace(0, len(ranked) - 1, min(EXAMPLES_A_CLASS, len(ranked))).astype(int))
        chosen += [int(ranked[place]) for place in places]
    if not chosen:
        return []
    rows = np.array(chosen, np.int64)
    pixels = images.pixels(rows).permute(0, 2, 3, 1).numpy()
    patches = maps.get(rows)[:, 0].numpy()
    frame = images.frame.iloc[rows]
    return [
        HeatMap(str(path), int(label), float(logits[row]), picture, patch)
        for path, label, row, picture, patch in zip(
            frame["path"], frame["label"], chosen, pixels, patches, strict=True
        )
    ]


def _numbers(
    aucs: dict[str, Auc], patches: pd.DataFrame, saturation: SaturationCheck
) -> dict[str, float | int | str | None]:
    numbers: dict[str, float | int | str | None] = {
        "auc": aucs["val"].value,
        "auc_train": aucs["train"].value,
        "auc_sigmoid_fp32": saturation.auc_sigmoid,
    }
    for kind, row in patches.iterrows():
        numbers |= {f"patch_{name}_{kind}": float(value) for name, value in row.items()}
    return numbers
