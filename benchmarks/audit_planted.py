"""Which planted problems are found, by the audit and by its peers, and what is raised where nothing is wrong?

Each problem is planted into a sound set of images of its own. Problems of single images are scored by images
(recall, precision), those of a whole set by whether they are claimed, controls by false claims.
"""

import io
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from benchmarks import audit_peers
from benchmarks.pictures import CLASSES, picture
from diag_lib import audit
from diag_lib.audit import AuditResult
from diag_lib.settings import load

SIDE = 128
TRAIN, VAL = 60, 40
ODD = 8
Peer = dict[str, Any]
Save = Callable[[Image.Image, Path, int, str], None]


class Scene:
    """A folder with `train|val / real|fake`, and what is planted in it."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.seed, self.rng = root, seed, np.random.default_rng([seed, 0x91A])

    def fill(self, save: Save, signal: bool = False, fakes: float = 1.0) -> None:
        """Pictures that no two share; with `signal` the fakes have another grain."""
        for split, count in (("train", TRAIN), ("val", VAL)):
            for label, name in enumerate(CLASSES):
                (self.root / split / name).mkdir(parents=True)
                for i in range(int(count * (fakes if label else 1))):
                    image = self.picture(bool(label and signal))
                    save(image, self.root / split / name / f"{i:03d}", label, split)

    def picture(self, fake: bool = False, side: int = SIDE) -> Image.Image:
        return picture(self.rng, side, fake)

    def some(self, where: str, count: int = ODD) -> list[Path]:
        files = sorted((self.root / where).iterdir())
        return [files[i] for i in sorted(self.rng.choice(len(files), count, replace=False))]

    def names(self, files: Iterable[Path]) -> set[str]:
        return {file.relative_to(self.root).as_posix() for file in files}


def jpeg(quality: int = 92, subsampling: int = 2) -> Save:
    return lambda im, path, label, split: im.save(
        path.with_suffix(".jpg"), quality=quality, subsampling=subsampling
    )


def png(im: Image.Image, path: Path, label: int, split: str) -> None:
    im.save(path.with_suffix(".png"))


def by_class(real: Save, fake: Save) -> Save:
    return lambda im, path, label, split: (fake if label else real)(im, path, label, split)


@dataclass(frozen=True)
class Problem:
    """`plant` returns the images that are wrong (None: the set as a whole is, or nothing is).

    `ours` is a table of the audit, an oddity, or the finding that must be claimed ("" for a control). `peers` is
    what a peer may say it by: "sets" (copies), an issue of CleanVision, "class" (any issue that one class has and the
    other has not), "any" (any issue), "failed" (it stops), or "" (it has no such check).
    """

    name: str
    plant: Callable[[Scene], set[str] | None]
    ours: str
    peers: str = ""
    settings: tuple[tuple[str, Any], ...] = ()


def damaged(cut: Callable[[bytes], bytes]) -> Callable[[Scene], set[str]]:
    def plant(scene: Scene) -> set[str]:
        scene.fill(jpeg())
        files = scene.some("train/fake")
        for file in files:
            file.write_bytes(cut(file.read_bytes()))
        return scene.names(files)

    return plant


def leaked(
    change: Callable[[Image.Image], Image.Image], save: Save, label: str = "real"
) -> Callable[[Scene], set[str]]:
    """Val images made from train's real ones; with `label` fake they carry the other label too."""

    def plant(scene: Scene) -> set[str]:
        scene.fill(jpeg())
        for i, file in enumerate(scene.some("train/real")):
            with Image.open(file) as image:
                save(change(image.convert("RGB")), scene.root / "val" / label / f"leak{i}", 0, "val")
        return scene.names((scene.root / "val" / label).glob("leak*"))

    return plant


def copied(where: str, name: str = "copy") -> Callable[[Scene], set[str]]:
    """Equal files of train's real images elsewhere; wrong are both where the label differs."""

    def plant(scene: Scene) -> set[str]:
        scene.fill(jpeg())
        files = scene.some("train/real")
        for i, file in enumerate(files):
            shutil.copyfile(file, scene.root / where / f"{name}{i}.jpg")
        copies = scene.names((scene.root / where).glob(f"{name}*"))
        return copies | (scene.names(files) if "fake" in where else set())

    return plant


def odd(change: Callable[[Image.Image], Image.Image], suffix: str = ".jpg") -> Callable[[Scene], set[str]]:
    def plant(scene: Scene) -> set[str]:
        scene.fill(jpeg())
        files = scene.some("train/real")
        for file in files:
            with Image.open(file) as image:
                changed = change(image.convert("RGB"))
            file.unlink()
            changed.save(file.with_suffix(suffix))
        return scene.names(file.with_suffix(suffix) for file in files)

    return plant


def misnamed(scene: Scene) -> set[str]:
    scene.fill(jpeg())
    return scene.names([file.rename(file.with_suffix(".png")) for file in scene.some("train/real")])


def flipped(share: float) -> Callable[[Scene], set[str]]:
    """Train labels of so many images of each class swapped; the classes differ in their grain."""

    def plant(scene: Scene) -> set[str]:
        scene.fill(jpeg(), signal=True)
        chosen = {name: scene.some(f"train/{name}", round(TRAIN * share)) for name in CLASSES}
        moved = [
            file.rename(scene.root / "train" / CLASSES[1 - CLASSES.index(name)] / f"flip_{file.name}")
            for name, files in chosen.items()
            for file in files
        ]
        return scene.names(moved)

    return plant


def whole(save: Save, fakes: float = 1.0) -> Callable[[Scene], None]:
    return lambda scene: scene.fill(save, fakes=fakes)


def swapped(scene: Scene) -> None:
    scene.fill(
        lambda im, path, label, split: im.save(path.with_name(f"{CLASSES[1 - label]}_{path.name}.jpg"))
    )


def half_gray(image: Image.Image) -> Image.Image:
    """What a forgiving decoder makes of a truncated file."""
    pixels = np.asarray(image).copy()
    pixels[SIDE // 2 :] = 128
    return Image.fromarray(pixels)


def once_jpeg(im: Image.Image, path: Path, label: int, split: str) -> None:
    buffer = io.BytesIO()
    im.save(buffer, "JPEG", quality=75)
    png(Image.open(buffer), path, label, split)


def darker_val_fakes(im: Image.Image, path: Path, label: int, split: str) -> None:
    jpeg()(im.point(lambda v: int(v * 0.7)) if label and split == "val" else im, path, label, split)


def dim(im: Image.Image) -> Image.Image:
    return im.point(lambda v: v // 25)


def same(im: Image.Image) -> Image.Image:
    return im


def flip(im: Image.Image) -> Image.Image:
    return im.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def resized(width: int, height: int) -> Callable[[Image.Image], Image.Image]:
    return lambda im: im.resize((width, height), Image.Resampling.BICUBIC)


def _gray(im: Image.Image) -> Image.Image:
    return im.convert("L").convert("RGB")


EDGE = SIDE // 16
PROBLEMS: tuple[Problem, ...] = (
    Problem("truncated files", damaged(lambda data: data[: len(data) // 2]), "unreadable", "failed"),
    Problem("empty files", damaged(lambda data: b""), "unreadable", "failed"),
    Problem("text called .jpg", damaged(lambda data: b"<html>not found</html>"), "unreadable", "failed"),
    Problem("leak: equal file", copied("val/real"), "leakage", "sets"),
    Problem("leak: equal pixels, PNG", leaked(same, png), "leakage", "sets"),
    Problem("leak: re-encoded q60", leaked(same, jpeg(60)), "leakage", "sets"),
    Problem("leak: half size", leaked(resized(SIDE // 2, SIDE // 2), jpeg()), "leakage", "sets"),
    Problem("leak: mirrored", leaked(flip, jpeg()), "leakage", "sets"),
    Problem("leak: centre 7/8", leaked(lambda im: im.crop((EDGE, EDGE, SIDE - EDGE, SIDE - EDGE)), jpeg()),
            "leakage", "sets"),
    Problem("leak: other label, q60", leaked(same, jpeg(60), "fake"), "leakage", "sets"),
    Problem("both labels: equal file", copied("train/fake"), "conflict", "sets"),
    Problem("repeated in train", copied("train/real"), "repeated", "sets"),
    Problem("nearly black", odd(dim), "dark", "dark"),
    Problem("nearly white", odd(lambda im: im.point(lambda v: 245 + v // 25)), "bright", "light"),
    Problem("blurred", odd(lambda im: im.filter(ImageFilter.GaussianBlur(8))), "blurred", "blurry"),
    Problem("no colour", odd(_gray), "gray", "grayscale"),
    Problem("one colour", odd(lambda im: Image.new("RGB", im.size, (90, 90, 90))), "constant", "low_information"),
    Problem("half gray", odd(half_gray, ".png"), "half_gray", "low_information"),
    Problem("elongated", odd(resized(SIDE * 4, SIDE // 2)), "elongated", "odd_aspect_ratio"),
    Problem("tiny", odd(resized(SIDE // 8, SIDE // 8)), "odd_size", "odd_size"),
    Problem("JPEG called .png", misnamed, "misnamed"),
    Problem("5% of labels flipped", flipped(0.05), "suspects"),
    Problem("10% of labels flipped", flipped(0.10), "suspects"),
    Problem("20% of labels flipped", flipped(0.20), "suspects"),
    Problem("shortcut: JPEG / PNG", whole(by_class(jpeg(), png)), "shortcut.codec", "class"),
    Problem("shortcut: quality 75 / 95", whole(by_class(jpeg(75), jpeg(95))), "shortcut.jpeg_quality", "class"),
    Problem("shortcut: size", whole(by_class(jpeg(), lambda im, *rest: jpeg()(im.resize((96, 96)), *rest))),
            "shortcut.width", "class"),
    Problem("shortcut: subsampling", whole(by_class(jpeg(92, 0), jpeg(92, 2))), "shortcut.subsampling", "class"),
    Problem("shortcut: JPEG past in PNG", whole(by_class(once_jpeg, png)), "shortcut.jpeg_history", "class"),
    Problem("drift: darker val fakes", whole(darker_val_fakes), "drift"),
    Problem("all fakes nearly black", whole(by_class(jpeg(), lambda im, *rest: jpeg()(dim(im), *rest))),
            "oddities", "class"),
    Problem("all fakes without colour", whole(by_class(jpeg(), lambda im, *rest: jpeg()(_gray(im), *rest))),
            "oddities", "class"),
    Problem("1 fake to 10 real", whole(jpeg(), fakes=0.1), "imbalance"),
    Problem("names of the other class", swapped, "polarity"),
    Problem("normalised for 0-255", whole(jpeg()), "normalization",
            settings=(("dataset.normalize_mean", [123.7, 116.3, 103.5]),
                      ("dataset.normalize_std", [58.4, 57.1, 57.4]))),
    Problem("resize destroys detail", whole(jpeg()), "resize", settings=(("dataset.image_size", 32),)),
    Problem("control: JPEG", whole(jpeg()), "", "any"),
    Problem("control: PNG", whole(png), "", "any"),
    Problem("control: 4 real to 1 fake", whole(jpeg(), fakes=0.5), "", "any"),
)  # fmt: skip


def measure(root: Path, seeds: int, peers: dict[str, Path]) -> list[dict[str, Any]]:
    """A row a problem: `ours` and each peer, as recall and precision (single images) or share of seeds (sets)."""
    expected: dict[tuple[str, int], set[str] | None] = {}
    ours: dict[tuple[str, int], set[str]] = {}
    for problem in PROBLEMS:
        for seed in range(seeds):
            scene = Scene(_folder(root, problem, seed), seed)
            expected[problem.name, seed] = problem.plant(scene)
            overrides = {
                "dataset.root": str(scene.root),
                "dataset.image_size": SIDE,
                **dict(problem.settings),
            }
            overrides |= {"runtime.device": "cpu", "runtime.workers": 1}
            result = audit.run(load("base", overrides), root / "runs" / scene.root.name, progress=False)
            ours[problem.name, seed] = found_by_us(problem, result)
    said = {name: _ask(name, python, root, seeds) for name, python in peers.items()}
    rows = []
    for problem in PROBLEMS:
        row: dict[str, Any] = {"problem": problem.name, "kind": _kind(problem, expected[problem.name, 0])}
        row["ours"] = _score(problem, expected, ours, seeds)
        for name in peers:
            answers = {
                (problem.name, seed): found_by_peer(problem, said[name][problem.name, seed])
                for seed in range(seeds)
                if (problem.name, seed) in said[name]
            }
            row[name] = _score(problem, expected, answers, seeds) if answers else None
        rows.append(row)
    shutil.rmtree(root)
    return rows


def _folder(root: Path, problem: Problem, seed: int) -> Path:
    return root / f"{PROBLEMS.index(problem):02d}-{seed}"


def _kind(problem: Problem, planted: set[str] | None) -> str:
    return "images" if planted is not None else "set" if problem.ours else "control"


def _ask(name: str, python: Path, root: Path, seeds: int) -> dict[tuple[str, int], Peer]:
    copies = ("sets", "failed")
    asked = [
        (problem, seed)
        for problem in PROBLEMS
        if (problem.peers in copies if name == "imagededup" else problem.peers)
        for seed in range(seeds)
    ]
    roots = [_folder(root, problem, seed) for problem, seed in asked]
    answers = audit_peers.ask(name, python, roots, root / f"peer-{name}")
    return {(problem.name, seed): answer for (problem, seed), answer in zip(asked, answers, strict=True)}


def found_by_us(problem: Problem, result: AuditResult) -> set[str]:
    """The paths that the audit lists for this problem, or the findings it claims."""
    tables = result.tables
    if problem.ours in ("unreadable", "suspects"):
        return set(tables[problem.ours]["path"])
    if problem.ours == "leakage":
        return set(tables["leakage"]["val_path"])
    if problem.ours in ("conflict", "repeated"):
        pairs = tables["pairs"]
        two = pairs["a_label"] != pairs["b_label"]
        return set(pairs[two][["a_path", "b_path"]].to_numpy().ravel()) if problem.ours == "conflict" else {
            path for path in pairs[~two][["a_path", "b_path"]].to_numpy().ravel() if "copy" in path
        } | _strangers(pairs[~two])  # fmt: skip
    if problem.ours in {odd.name for odd in audit.oddities.ODDITIES}:
        listing = tables["odd_images"]
        return {row.path for row in listing.itertuples() if problem.ours in row.oddities.split(", ")}
    claims = {f.id.removeprefix("audit.") for f in result.evidence.findings if f.answer == "yes"}
    if problem.ours:
        return claims & {problem.ours}
    return {
        f.id for f in result.evidence.findings if f.answer == "yes" and f.severity in ("warning", "error")
    }


def _strangers(pairs: Any) -> set[str]:
    """Pairs neither side of which is a planted copy: false ones."""
    return {
        path
        for a, b in pairs[["a_path", "b_path"]].itertuples(index=False)
        if "copy" not in a and "copy" not in b
        for path in (a, b)
    }


def found_by_peer(problem: Problem, said: Peer) -> set[str]:
    """The same of a peer, read as kindly as its output allows."""
    if problem.peers == "failed":
        return set()  # the run stops, or the files are left out without a word
    if problem.peers == "sets":
        return {path for group in said["sets"] for path in _accused(problem, group)}
    if problem.peers == "any":  # anything at all that it raises
        return {name for name, paths in said["issues"].items() if paths}
    if problem.peers == "class":  # some issue that most of one class has and hardly any of the other
        return {name for name, paths in said["issues"].items() if _of_one_class(paths)}
    return set(said["issues"].get(problem.peers, []))


def _of_one_class(paths: list[str]) -> bool:
    shares = sorted(sum(f"/{name}/" in path for path in paths) / (TRAIN + VAL) for name in CLASSES)
    return shares[0] <= 0.1 and shares[1] >= 0.9


def _accused(problem: Problem, group: list[str]) -> set[str]:
    """What a group of copies means for the problem: leaked val images, images of two labels, repeats."""
    splits, labels = ({path.split("/")[k] for path in group} for k in (0, 1))
    if problem.ours == "leakage":
        return {path for path in group if path.startswith("val/")} if len(splits) == 2 else set()
    if problem.ours == "conflict":
        return set(group) if len(labels) == 2 else set()
    copies = {path for path in group if "copy" in path}
    return copies or set(group)


def _score(
    problem: Problem,
    expected: dict[tuple[str, int], set[str] | None],
    found: dict[tuple[str, int], set[str]],
    seeds: int,
) -> dict[str, float | None]:
    if expected[problem.name, 0] is None:
        claimed = sum(bool(found[problem.name, seed]) for seed in range(seeds))
        return {"claimed": claimed / seeds}
    right = wanted = named = 0
    for seed in range(seeds):
        truth, said = expected[problem.name, seed] or set(), found[problem.name, seed]
        right, wanted, named = right + len(truth & said), wanted + len(truth), named + len(said)
    return {"recall": right / wanted, "precision": right / named if named else None}


def text(rows: list[dict[str, Any]]) -> str:
    """The table as lines of text."""
    names = [name for name in rows[0] if name not in ("problem", "kind")]
    lines = ["  planted problems: recall/precision of images, or share of seeds in which it is claimed"]
    lines.append(f"  {'':32}" + "".join(f"{name:>14}" for name in names))
    lines += [f"  {row['problem']:32}" + "".join(f"{_cell(row[name]):>14}" for name in names) for row in rows]
    return "\n".join(lines)


def _cell(score: dict[str, float | None] | None) -> str:
    if score is None:
        return "-"
    if "claimed" in score:
        return f"{score['claimed']:.2f}"
    precision = score["precision"]
    return f"{score['recall']:.2f}/" + ("-" if precision is None else f"{precision:.2f}")
