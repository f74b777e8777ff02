"""Which scalars did a run write for TensorBoard, and how are ours written? Needs the extra `tensorboard`."""

import importlib
from collections.abc import Mapping
from pathlib import Path

from diag_lib.errors import UserError
from diag_lib.files import whole

Points = list[tuple[int, float]]
FILE = "events.out.tfevents.0.diag"
"""TensorBoard finds events by their name; its own writer would add the host's."""


def read_scalars(path: Path, max_bytes: int) -> dict[str, Points]:
    """All scalars of an events file, or of the events files in a folder, as tag -> [(step, value), ...].

    Tags from subfolders are prefixed with the subfolder, as TensorBoard names its runs.

    Raises
    ------
    UserError : no events there, too large, unreadable, or the extra is not installed.
    """
    files = sorted(path.rglob("*tfevents*")) if path.is_dir() else [path]
    files = [file for file in files if file.is_file()]
    if not files:
        raise UserError(f"history {path.name}: the folder holds no TensorBoard events; name the history file")
    total = sum(file.stat().st_size for file in files)
    if total > max_bytes:
        raise UserError(
            f"history {path.name}: {total:,} bytes of events; the limit is {max_bytes:,}, name one run's file"
        )
    series: dict[str, Points] = {}
    for file in files:
        folder = "" if file == path else "/".join(file.relative_to(path).parts[:-1])
        for tag, points in _scalars(file, path.name).items():
            series.setdefault(f"{folder}/{tag}" if folder else tag, []).extend(points)
    return series


def _scalars(file: Path, source: str) -> dict[str, Points]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError:
        raise UserError(
            f"history {source}: TensorBoard events need an extra: pip install 'diag-lib[tensorboard]'"
        ) from None
    found: dict[str, Points] = {}
    try:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0, "tensors": 0}).Reload()
        tags = events.Tags()
        for tag in tags["scalars"]:
            found[tag] = [(event.step, float(event.value)) for event in events.Scalars(tag)]
        for tag in tags["tensors"]:  # how TensorFlow 2 and Keras write scalars
            arrays = [(event.step, make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
            if all(array.size == 1 and array.dtype.kind in "fiu" for _, array in arrays):
                found[tag] = [(step, float(array.reshape(-1)[0])) for step, array in arrays]
    except Exception as error:  # a foreign binary format breaks in many ways
        raise UserError(
            f"history {source}: the events file cannot be read ({type(error).__name__})"
        ) from None
    return found


def require() -> None:
    """Raise `UserError` when `runtime.tensorboard` is asked for without the extra."""
    try:
        importlib.import_module("tensorboard.summary.writer.record_writer")
    except ImportError:
        raise UserError(
            "runtime.tensorboard: needs an extra: pip install 'diag-lib[tensorboard]', or set it to false"
        ) from None


def write_scalars(folder: Path, series: Mapping[str, Points], time: float) -> Path:
    """Write tag -> [(step, value), ...] as one events file into `folder`, in place of an earlier one.

    `time` (seconds since 1970) is what TensorBoard shows for all points. Raises `OSError`, and `UserError` as
    `require`.
    """
    require()
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / FILE) as part, part.open("wb") as stream:
        writer = RecordWriter(stream)
        writer.write(Event(wall_time=time, file_version="brain.Event:2").SerializeToString())
        for tag, points in series.items():
            for step, value in points:
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                writer.write(Event(wall_time=time, step=step, summary=summary).SerializeToString())
    return folder / FILE
