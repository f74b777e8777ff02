"""Which images show the same picture, although their bytes differ?

A 256-bit difference hash of a 16 x 17 gray thumbnail, joined exactly up to `MAX_DISTANCE` differing bits.
Found: re-encoded, rescaled, slightly edited and mirrored copies; with the callers' help centre-cropped ones.
Not found: other crops, rotations, strong edits. Nearly flat pictures have no stable hash and are left out.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from diag_lib.images.decode import Pixels

Thumbnails = npt.NDArray[np.uint8]
THUMBNAIL_SHAPE = (16, 17)
MAX_DISTANCE = 15
"""Bits of 256. On 600 photographs and generated images: JPEG quality 60, 99.5% of copies within 15; half and
double size, all; the nearest of 180,000 unrelated pairs 50 bits apart. 16 bands join 15 exactly."""
MAX_RESIDUAL = 0.2
"""Standard deviation of the difference of two thumbnails, as a share of the smaller of their own, that copies may
show. Copies at JPEG quality 60, of half size or a tenth brighter stayed below .18; smooth crops of one photograph
that agreed in their hashes by chance began at .31."""
MIN_CONTRAST = 4.0
"""Standard deviation of a thumbnail below which its hash is noise."""
MAX_BUCKET = 4096
_WEIGHTS = (19595, 38470, 7471)  # ITU-R 601 luma, in 1/65536


def thumbnail(pixels: Pixels) -> Thumbnails:
    """The gray thumbnail uint8 (16, 17) of an (H, W, 3) image, antialiased."""
    return small(Image.fromarray(pixels).convert("L"))


def small(gray: Image.Image, box: tuple[int, int, int, int] | None = None) -> Thumbnails:
    """The thumbnail uint8 (16, 17) of an 8-bit gray image, or of its part `box` (left, top, right, bottom)."""
    return np.asarray(gray.resize(THUMBNAIL_SHAPE[::-1], Image.Resampling.BILINEAR, box, reducing_gap=3.0))


def difference_hash(thumbnails: Thumbnails) -> npt.NDArray[np.uint16]:
    """Hashes (n, 16) of 16 bits each from thumbnails (n, 16, 17): is a pixel brighter than the next one?

    Each of the 16 bands holds one bit of every row and of every column. Neighbouring bits of a smooth picture agree,
    so that bands of whole rows would be alike in thousands of pictures, and all of those would be compared.
    """
    bits = (thumbnails[:, :, :-1] > thumbnails[:, :, 1:]).reshape(len(thumbnails), 256)[:, _ORDER]
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint16)


_ORDER = (16 * np.arange(16) + (np.arange(16)[:, None] + 5 * np.arange(16)) % 16).ravel()


def mirrored(thumbnails: Thumbnails) -> Thumbnails:
    """The thumbnails (n, 16, 17) of the mirrored images."""
    return np.ascontiguousarray(thumbnails[:, :, ::-1])


def hashable(thumbnails: Thumbnails) -> npt.NDArray[np.bool_]:
    """Which of n thumbnails have enough contrast for a stable hash, bool (n,)."""
    if not len(thumbnails):
        return np.zeros(0, dtype=bool)
    deviation: npt.NDArray[np.float64] = thumbnails.reshape(len(thumbnails), -1).std(axis=1, dtype=np.float64)
    return deviation >= MIN_CONTRAST


def same_picture(a: Thumbnails, b: Thumbnails) -> npt.NDArray[np.bool_]:
    """Whether thumbnails (n, 16, 17) agree pairwise up to brightness and `MAX_RESIDUAL`, bool (n,)."""
    x, y = a.astype(np.float32), b.astype(np.float32)
    smaller = np.minimum(x.std(axis=(1, 2)), y.std(axis=(1, 2)))
    agree: npt.NDArray[np.bool_] = (x - y).std(axis=(1, 2)) <= MAX_RESIDUAL * smaller
    return agree


def near_pairs(
    a: npt.NDArray[np.uint16], b: npt.NDArray[np.uint16] | None = None, max_distance: int = MAX_DISTANCE
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """All pairs (i of a, j of b) at most `max_distance` bits apart; with `b` None the pairs i < j within a.

    Pigeonhole: hashes (n, 16) that differ in at most 15 bits agree in at least one of 16 bands. Returns
    (i, j, distance, skipped), `skipped` counting bands' buckets that were too large to be compared: only
    then may pairs be missing.
    """
    if not 0 <= max_distance <= 15:
        raise ValueError("the join is exact for 0..15 bits only")
    both = a if b is None else np.concatenate([a, b])
    side = np.zeros(len(both), dtype=bool)
    side[len(a) :] = True
    found: list[npt.NDArray[np.int64]] = [np.zeros((0, 3), dtype=np.int64)]
    skipped = 0
    for band in range(both.shape[1]):
        pairs, too_large = _bucket_pairs(both[:, band], side if b is not None else None)
        skipped += too_large
        for start in range(0, len(pairs), 1_000_000):
            chunk = pairs[start : start + 1_000_000]
            distance = np.bitwise_count(both[chunk[:, 0]] ^ both[chunk[:, 1]]).sum(axis=1, dtype=np.int64)
            near = distance <= max_distance
            found.append(np.column_stack([chunk[near], distance[near]]))
    result = np.unique(np.concatenate(found), axis=0)
    shift = 0 if b is None else len(a)
    return result[:, 0], result[:, 1] - shift, result[:, 2], skipped


def groups(n: int, i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Group number of each of n items linked by the pairs (i, j), numbered by first appearance."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = coo_matrix((np.ones(len(i), dtype=np.int8), (i, j)), shape=(n, n))
    numbers: npt.NDArray[np.int64] = connected_components(links, directed=False)[1].astype(np.int64)
    return numbers


def picture_groups(thumbnails: Thumbnails) -> npt.NDArray[np.int64]:
    """Group number of each of n thumbnails; copies of one picture, mirrored or not, share a group."""
    good = np.flatnonzero(hashable(thumbnails))
    if not len(good):
        return np.arange(len(thumbnails))
    hashes, representative, first = np.unique(
        difference_hash(thumbnails[good]), axis=0, return_index=True, return_inverse=True
    )
    chosen = good[representative]
    whole, flipped = thumbnails[chosen], mirrored(thumbnails[chosen])
    links = [(good, chosen[first.reshape(-1)])]
    for other, join in ((whole, near_pairs(hashes)), (flipped, near_pairs(hashes, difference_hash(flipped)))):
        i, j, _, _ = join
        same = same_picture(whole[i], other[j])
        links.append((chosen[i[same]], chosen[j[same]]))
    left, right = (np.concatenate(side) for side in zip(*links, strict=True))
    return groups(len(thumbnails), left, right)


def _bucket_pairs(
    values: npt.NDArray[np.uint16], side: npt.NDArray[np.bool_] | None
) -> tuple[npt.NDArray[np.int64], int]:
    """Index pairs (m, 2) of equal values (of different sides, the first side first), and skipped buckets."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(values)), bool), ordered[1:] != ordered[:-1]]))
    counts = np.diff(np.append(starts, len(values)))
    large = counts > MAX_BUCKET
    length = np.repeat(np.where(large, 0, counts), counts)
    place = np.arange(len(values)) - np.repeat(starts, counts)
    remaining = length - place - 1  # how many partners follow in the same bucket
    active = np.flatnonzero(remaining > 0)
    pairs: list[npt.NDArray[np.int64]] = [np.zeros((0, 2), dtype=np.int64)]
    step = 1
    while len(active):
        left, right = order[active], order[active + step]
        if side is not None:
            differ = side[left] != side[right]
            left, right = left[differ], right[differ]
        pairs.append(np.column_stack([np.minimum(left, right), np.maximum(left, right)]))
        step += 1
        active = active[remaining[active] >= step]
    return np.concatenate(pairs), int(large.sum())
