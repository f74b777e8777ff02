"""Would a small Arrow or parquet file become a huge one when it is read?

Images are compressed already: what a file holds can hardly be larger than the file. Compressed pages and buffers say
how large they get before they are; repeated values, which cost a file nothing, are counted as they come out.
"""

import struct

import pyarrow as pa
from pyarrow import ipc, parquet

from diag_lib.errors import UserError

FACTOR = 20
FREE = 256 * 2**20
"""A file may grow to `FREE` bytes and `FACTOR` times its size: pixels that are stored plainly shrink to a tenth."""
FILE_COST = 1024
"""Bytes that a file counts at least, however small."""
_RECORDS, _DICTIONARY = (
    3,
    2,
)  # kinds of message, by Message.fbs of Apache Arrow, as are the numbers of fields below


def limit_of(size: int) -> int:
    """Bytes that a file of `size` bytes may become."""
    return FREE + FACTOR * size


def refuse(where: str, size: int) -> None:
    """Raise the `UserError` for a file that grows beyond its limit."""
    raise UserError(
        f"{where}: {size:,} bytes that unpack to more than {limit_of(size):,}; images do not shrink like that, so it "
        "is taken for a bomb; remove it"
    )


def refuse_pages(meta: parquet.FileMetaData, names: set[str], where: str, size: int) -> None:
    """Raise `UserError` when the columns `names` of a parquet file are too large by its own account."""
    total = 0
    for group in range(meta.num_row_groups):
        columns = meta.row_group(group)
        for at in range(columns.num_columns):
            column = columns.column(at)
            if column.path_in_schema.partition(".")[0] in names:
                total += max(0, column.total_uncompressed_size)
    if total > limit_of(size):
        refuse(where, size)


def refuse_buffers(stream: pa.NativeFile, where: str) -> None:
    """Raise `UserError` when compressed buffers of an Arrow stream are too large by their own account.

    Reads the messages to their end, of each compressed buffer the eight bytes that say its size.
    """
    size = stream.size()
    messages = ipc.MessageReader.open_stream(stream)
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return
        if message.body is not None and _unpacked_size(message) > limit_of(size):
            refuse(where, size)


def _unpacked_size(message: ipc.Message) -> int:
    """Bytes of a message's buffers when they are unpacked, 0 when they are not compressed.

    pyarrow does not tell; the flatbuffer does: RecordBatch {length, nodes, buffers, compression}. Raises `ValueError`.
    """
    table = _Table.root(message.metadata)
    kind, header = table.byte(1), table.below(2)
    if kind == _DICTIONARY and header is not None:
        header = header.below(1)
    if kind not in (_RECORDS, _DICTIONARY) or header is None or header.below(3) is None:
        return 0
    body = memoryview(message.body)
    total = 0
    for offset, length in header.pairs(2):
        if length >= 8 and 0 <= offset <= len(body) - 8:
            total += max(0, struct.unpack_from("<q", body, offset)[0])
    return total


class _Table:
    """A flatbuffers table: fields by number. What lies outside the bytes is a `ValueError`."""

    def __init__(self, data: memoryview, at: int) -> None:
        self.data, self.at = data, at
        self.fields = at - self._read("<i", at)

    @staticmethod
    def root(buffer: pa.Buffer) -> "_Table":
        data = memoryview(buffer)
        if len(data) < 4:
            raise ValueError("no table")
        return _Table(data, struct.unpack_from("<I", data)[0])

    def _read(self, form: str, at: int) -> int:
        if not 0 <= at <= len(self.data) - struct.calcsize(form):
            raise ValueError("outside the message")
        value: int = struct.unpack_from(form, self.data, at)[0]
        return value

    def _place(self, number: int) -> int | None:
        slot = 4 + 2 * number
        if slot + 2 > self._read("<H", self.fields):
            return None
        offset = self._read("<H", self.fields + slot)
        return self.at + offset if offset else None

    def byte(self, number: int) -> int:
        at = self._place(number)
        return 0 if at is None else self._read("<B", at)

    def below(self, number: int) -> "_Table | None":
        at = self._place(number)
        return None if at is None else _Table(self.data, at + self._read("<I", at))

    def pairs(self, number: int) -> list[tuple[int, int]]:
        """A vector of structs of two int64."""
        at = self._place(number)
        if at is None:
            return []
        at += self._read("<I", at)
        count = self._read("<I", at)
        self._read("<q", at + 4 + 16 * count - 8) if count else None
        return [struct.unpack_from("<qq", self.data, at + 4 + 16 * one) for one in range(count)]
