"""What does one row of a packed dataset say? An image as it was stored, its class and where it comes from."""

from dataclasses import dataclass

_SUFFIXES = (
    (b"\xff\xd8\xff", ".jpg"), (b"\x89PNG\r\n\x1a\n", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp"),
    (b"II*\0", ".tif"), (b"MM\0*", ".tif"), (b"\xff\x4f\xff\x51", ".j2k"), (b"\0\0\0\x0cjP  ", ".jp2"),
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """`name` as the shard has it (any text), `image` the encoded bytes, `suffix` with its dot, `label` 0 or 1.

    Without an image it is a remark on the shard, `remark` says which.
    """

    name: str
    image: bytes | None
    suffix: str = ""
    label: int = 0
    source: str = ""
    remark: str = ""

    @staticmethod
    def note(name: str, remark: str) -> "Sample":
        """A remark in place of an image."""
        return Sample(name, None, remark=remark)


def sniffed_suffix(content: bytes) -> str:
    """The usual file suffix of an encoded image, `.bin` when it is no known format."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    if content[4:12] in (b"ftypavif", b"ftypavis"):
        return ".avif"
    return next((suffix for magic, suffix in _SUFFIXES if content.startswith(magic)), ".bin")
