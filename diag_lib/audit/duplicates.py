"""Does the same picture stand several times, across splits (leakage) or with both labels (conflict)?

Found: equal files, equal pixels, and near-duplicates (re-encoded, rescaled, slightly edited, mirrored, or cut to
their centre 7/8). Not found: other crops, rotations, strong edits. How near is near: see `images.hashing`.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from diag_lib.audit.part import CLASS_NAMES, Case, Part, listed
from diag_lib.evidence import Finding, Severity
from diag_lib.images import hashing

LEAK_SHARE = 0.01
"""Share of val that stands in train as well, from which leakage is claimed. All val images were compared, so
this is a census without an interval; whether it flatters the AUC, evaluating without them decides."""

DUPLICATE_SHARE = 0.05
PAIRED_SHARE = 0.2
"""Near-duplicates with both labels for more than this share of the fakes look like a set of reconstructions
(each fake made from a real image), not like label errors."""

KINDS = ("file", "pixels", "near", "mirrored", "centre")
COLUMNS = ["a", "b", "distance", "kind"]
EXACT = ("file", "pixels")
_CHAIN = 50


def check(case: Case) -> Part:
    """Pairs of copies; from them duplicates within a split, leakage across splits, label conflicts."""
    frame = case.readable
    pairs, skipped = find_pairs(frame)
    leaks = leaked(frame, pairs)
    table = described(frame, pairs)
    case.run.write_parquet("duplicates.parquet", table)
    case.run.write_parquet("leakage.parquet", leaks)
    findings = [_duplicates(frame, pairs), _leakage(frame, leaks, skipped), _conflict(frame, pairs)]
    numbers: dict[str, float | int | str | None] = {
        "n_duplicate_pairs": len(pairs), "n_leaked": len(leaks), "n_skipped_buckets": skipped,
        "hash_distance": hashing.MAX_DISTANCE,
    }  # fmt: skip
    return Part(findings, numbers, {"pairs": table, "leakage": leaks, "leak_sources": leak_sources(leaks)})


def find_pairs(frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Pairs of rows (a < b) that show one picture, with distance (bits) and kind, each pair once.

    Of many equal files not every pair is listed: each is linked to the first one, and to the first of train.
    The second value counts buckets of the join that were too large to be compared.
    """
    if frame.empty:
        return pd.DataFrame(columns=COLUMNS), 0
    shape = (-1, *hashing.THUMBNAIL_SHAPE)
    whole = np.frombuffer(b"".join(frame["thumbnail"]), np.uint8).reshape(shape)
    centre = np.frombuffer(b"".join(frame["centre_thumbnail"]), np.uint8).reshape(shape)
    varied = frame["contrast"].to_numpy(dtype=float) > 1 / 255  # two blank pictures are not one picture
    train = (frame["split"] == "train").to_numpy()
    found = [
        _equal(frame["file_hash"], varied, train, "file"),
        _equal(frame["pixel_hash"], varied, train, "pixels"),
    ]
    skipped = 0
    for kind, other in (("near", whole), ("mirrored", hashing.mirrored(whole)), ("centre", centre)):
        near, too_large = _near(whole, other, train, kind)
        found.append(near)
        skipped += too_large
    pairs = pd.concat(found, ignore_index=True)
    rank = pairs["kind"].map(KINDS.index)
    pairs = pairs.assign(rank=rank).sort_values(["a", "b", "rank"]).drop_duplicates(["a", "b"])
    return pairs[COLUMNS].reset_index(drop=True), skipped


def leaked(frame: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """A row per val image that train holds too: val_path, train_path, distance, kind, labels, source, conflict."""
    split = frame["split"].to_numpy()
    a, b = pairs["a"].to_numpy(dtype=int), pairs["b"].to_numpy(dtype=int)
    val = np.where(split[a] == "val", a, b) if len(a) else a
    train = np.where(split[a] == "val", b, a) if len(a) else b
    across = (split[val] == "val") & (split[train] == "train")
    links = pairs.assign(val=val, train=train, rank=pairs["kind"].map(KINDS.index))[across]
    links = links.sort_values(["val", "rank", "distance", "train"]).drop_duplicates("val")
    held, seen = frame.iloc[links["val"]], frame.iloc[links["train"]]
    return pd.DataFrame(
        {
            "val_path": held["path"].to_numpy(), "train_path": seen["path"].to_numpy(),
            "distance": links["distance"].to_numpy(dtype=np.int64), "kind": links["kind"].to_numpy(),
            "val_label": held["label"].to_numpy(), "train_label": seen["label"].to_numpy(),
            "val_source": held["source"].to_numpy(), "train_source": seen["source"].to_numpy(),
            "conflict": held["label"].to_numpy() != seen["label"].to_numpy(),
        }
    )  # fmt: skip


def leak_sources(leaks: pd.DataFrame) -> pd.DataFrame:
    """Leaked val images by label and source of both sides: exact, near, and how many carry the other label."""
    kept = leaks.assign(
        exact=leaks["kind"].isin(EXACT), near=~leaks["kind"].isin(EXACT), conflict=leaks["conflict"].astype(bool),
        val_class=leaks["val_label"].map(dict(enumerate(CLASS_NAMES))),
        train_class=leaks["train_label"].map(dict(enumerate(CLASS_NAMES))),
    )  # fmt: skip
    by = ["val_class", "val_source", "train_class", "train_source"]
    summed = kept.groupby(by, as_index=False)[["exact", "near", "conflict"]].sum()
    return summed.sort_values(["exact", "near"], ascending=False, kind="stable").reset_index(drop=True)


def described(frame: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs with path, split, label and source of both sides."""
    sides: dict[str, Any] = {}
    for side in ("a", "b"):
        rows = frame.iloc[pairs[side].to_numpy(dtype=int)]
        sides |= {f"{side}_{name}": rows[name].to_numpy() for name in ("path", "split", "label", "source")}
    return pd.DataFrame({**sides, "distance": pairs["distance"].to_numpy(), "kind": pairs["kind"].to_numpy()})


def _linked(members: npt.NDArray[np.int64], train: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Pairs among equal items: all of few; of many each with the first, and each with the first of train."""
    if len(members) <= _CHAIN:
        return [(int(x), int(y)) for i, x in enumerate(members) for y in members[i + 1 :]]
    anchors = {int(members[0]), *(int(m) for m in members[train[members]][:1])}
    return sorted({(min(x, int(y)), max(x, int(y))) for x in anchors for y in members if x != y})


def _equal(
    hashes: "pd.Series[str]", varied: npt.NDArray[np.bool_], train: npt.NDArray[np.bool_], kind: str
) -> pd.DataFrame:
    rows = np.flatnonzero(varied & hashes.duplicated(keep=False).to_numpy())
    groups = pd.Series(rows).groupby(hashes.to_numpy()[rows])
    links = [pair for _, group in groups if len(group) > 1 for pair in _linked(group.to_numpy(), train)]
    return _table(np.array(links, dtype=np.int64).reshape(-1, 2), np.zeros(len(links), np.int64), kind)


def _near(
    whole: hashing.Thumbnails, other: hashing.Thumbnails, train: npt.NDArray[np.bool_], kind: str
) -> tuple[pd.DataFrame, int]:
    """Near-duplicate pairs between `whole` and `other`; equal hashes are joined once, then spread out."""
    good = np.flatnonzero(hashing.hashable(whole) & hashing.hashable(other))
    if not len(good):
        return _table(np.zeros((0, 2), np.int64), np.zeros(0, np.int64), kind), 0
    itself = kind == "near"
    hashes, members = _collapsed(hashing.difference_hash(whole[good]), good)
    others, other_members = (
        (hashes, members) if itself else _collapsed(hashing.difference_hash(other[good]), good)
    )
    i, j, distance, skipped = hashing.near_pairs(hashes, None if itself else others)
    links, far = [], []
    for x, y, d in zip(i, j, distance, strict=True):
        for pair in _across(members.of(x), other_members.of(y), train):
            links.append(pair)
            far.append(d)
    if itself:
        for several in np.flatnonzero(np.diff(members.bounds) > 1):
            pairs = _linked(members.of(int(several)), train)
            links += pairs
            far += [0] * len(pairs)
    table = np.array(links, dtype=np.int64).reshape(-1, 2)
    apart = table[:, 0] != table[:, 1]
    table, bits = table[apart], np.array(far, dtype=np.int64)[apart]
    close = hashing.same_picture(whole[table[:, 0]], other[table[:, 1]])
    return _table(np.sort(table[close], axis=1), bits[close], kind), skipped


class _Members(NamedTuple):
    """Rows in groups, one after the other."""

    rows: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]

    def of(self, group: int) -> npt.NDArray[np.int64]:
        return self.rows[self.bounds[group] : self.bounds[group + 1]]


def _collapsed(
    hashes: npt.NDArray[np.uint16], rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint16], _Members]:
    """Distinct hashes, and the rows that have each."""
    words = np.ascontiguousarray(hashes).view(np.uint64)
    order = np.lexsort(words.T)  # stable: rows stay in order within a group
    new = np.append(True, (words[order][1:] != words[order][:-1]).any(axis=1))
    starts = np.flatnonzero(new)
    return hashes[order[starts]], _Members(rows[order], np.append(starts, len(rows)))


def _across(
    x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], train: npt.NDArray[np.bool_]
) -> list[tuple[int, int]]:
    """Pairs between two groups of equal hashes: all of few; else through the first, and the first of train."""
    if len(x) * len(y) <= _CHAIN:
        return [(int(a), int(b)) for a in x for b in y]
    from_x, from_y = {int(x[0]), *map(int, x[train[x]][:1])}, {int(y[0]), *map(int, y[train[y]][:1])}
    return sorted({(a, int(b)) for a in from_x for b in y} | {(int(a), b) for a in x for b in from_y})


def _table(links: npt.NDArray[np.int64], distance: npt.NDArray[np.int64], kind: str) -> pd.DataFrame:
    return pd.DataFrame({"a": links[:, 0], "b": links[:, 1], "distance": distance, "kind": kind})


def _duplicates(frame: pd.DataFrame, pairs: pd.DataFrame) -> Finding:
    split = frame["split"].to_numpy()
    within = pairs[split[pairs["a"].to_numpy(dtype=int)] == split[pairs["b"].to_numpy(dtype=int)]]
    group = hashing.groups(len(frame), within["a"].to_numpy(dtype=int), within["b"].to_numpy(dtype=int))
    surplus = len(frame) - len(np.unique(group))
    share = surplus / max(1, len(frame))
    kinds = within["kind"].value_counts().to_dict()
    many = share >= DUPLICATE_SHARE
    message = (
        f"{surplus} of {len(frame)} images repeat a picture of their own split"
        if surplus
        else "no picture repeats"
    )
    severity: Severity = "warning" if many else "note" if surplus else "ok"
    return Finding(
        "audit.duplicates", severity, "yes" if many else "no", message, share, None, DUPLICATE_SHARE, len(frame),
        {"kinds": kinds, "file": "artifacts/duplicates.parquet"},
    )  # fmt: skip


NOT_FOUND = "crops other than the centre, rotations and strong edits would not be found"


def _leakage(frame: pd.DataFrame, leaks: pd.DataFrame, skipped: int) -> Finding:
    n = int((frame["split"] == "val").sum())
    share, exact = len(leaks) / max(1, n), int(leaks["kind"].isin(EXACT).sum())
    data = {
        "n_leaked": len(leaks), "n_exact": exact, "n_conflict": int(leaks["conflict"].sum()),
        "kinds": leaks["kind"].value_counts().to_dict(), "file": "artifacts/leakage.parquet",
        "sources": leaks["val_source"].value_counts().head(10).to_dict(), "not_found": NOT_FOUND,
        "skipped_buckets": skipped,
    }  # fmt: skip
    if leaks.empty:
        message = f"none of {n} val images stands in train ({NOT_FOUND}{_incomplete(skipped)})"
        return Finding("audit.leakage", "ok", "no", message, 0.0, None, LEAK_SHARE, n, data)
    conflict = f", {data['n_conflict']} of them with the other label" if data["n_conflict"] else ""
    message = (
        f"{len(leaks)} of {n} val images ({share:.1%}) stand in train as well ({exact} exactly{conflict}), "
        f"e.g. {leaks['val_path'].iloc[0]} = {leaks['train_path'].iloc[0]}"
    )
    claimed = share >= LEAK_SHARE
    few = "" if claimed else f": too few to flatter the AUC, which needs {LEAK_SHARE:.0%}"
    message += f"{few}; {NOT_FOUND}{_incomplete(skipped)}"
    return Finding(
        "audit.leakage", "error" if claimed else "note", "yes" if claimed else "no", message, share, None, LEAK_SHARE,
        n, data,
    )  # fmt: skip


def _incomplete(skipped: int) -> str:
    """What to add when flat pictures filled buckets of the join that were too large to compare."""
    return f"; {skipped} groups of look-alike flat pictures were too large to compare" if skipped else ""


def _conflict(frame: pd.DataFrame, pairs: pd.DataFrame) -> Finding:
    label = frame["label"].to_numpy()
    a, b = pairs["a"].to_numpy(dtype=int), pairs["b"].to_numpy(dtype=int)
    both = pairs[label[a] != label[b]]
    exact, near = both[both["kind"].isin(EXACT)], both[~both["kind"].isin(EXACT)]
    rows = np.unique(both[["a", "b"]].to_numpy(dtype=int))
    fakes = int((label == 1).sum())
    paired = int((label[np.unique(near[["a", "b"]].to_numpy(dtype=int))] == 1).sum()) / max(1, fakes)
    share = len(rows) / max(1, len(frame))
    paths = frame["path"].iloc[rows[:10]].tolist()
    data = {
        "n_exact": len(exact),
        "n_near": len(near),
        "paths": paths,
        "file": "artifacts/duplicates.parquet",
    }
    if both.empty:
        return Finding(
            "audit.label_conflict", "ok", "no", "no picture carries both labels", 0.0, n=len(frame)
        )
    if exact.empty and paired >= PAIRED_SHARE:
        message = (
            f"{paired:.0%} of the fakes closely resemble a real image: the fakes look like reconstructions of the "
            "reals (pairs), not like label errors"
        )
        return Finding("audit.label_conflict", "note", "no", message, share, n=len(frame), data=data)
    if exact.empty and share < LEAK_SHARE:
        message = f"{len(rows)} images closely resemble one of the other class, e.g. {listed(paths, 2)}: look at them"
        return Finding("audit.label_conflict", "note", "undecided", message, share, n=len(frame), data=data)
    message = (
        f"{len(rows)} images carry both labels in copies of one picture ({len(exact)} exact and {len(near)} near "
        f"pairs), e.g. {listed(paths, 2)}"
    )
    severity: Severity = "error" if share >= LEAK_SHARE else "warning"
    return Finding("audit.label_conflict", severity, "yes", message, share, n=len(frame), data=data)
