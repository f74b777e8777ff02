"""Does a page say where it was made? Paths, the user's and the machine's name become neutral words."""

import contextlib
import getpass
import os
import re
import site
import socket
import sys
import sysconfig
from collections.abc import Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

# An absolute path of two or more parts that does not continue a word, a URL or a relative path.
_POSIX = re.compile(r"(?<![\w:/.~\\%+=<-])/(?:[^\s/\"'<>()\[\]{},;:|&]+/)+([^\s/\"'<>()\[\]{},;:|&]*)")
_WINDOWS = re.compile(r"(?<![\w/])[A-Za-z]:[\\/](?:[^\s\\/\"'<>:|?*]+[\\/])*([^\s\\/\"'<>:|?*,;)\]]*)")
_HOMES = re.compile(r"/(?:home|Users)/[^\s/\"'<>]+")
_FILE_URL = re.compile(r"file://[^\s\"'<>]*")
_PLAIN_NAMES = {"localhost", "root", "user", "users", "admin", "runner", "test", "docker", "jovyan", "ubuntu"}


class Scrubber:
    """Replaces machine-specific text; `places` are further `(path, word)` pairs, e.g. the run folder."""

    def __init__(self, places: Iterable[tuple[str | Path, str]] = ()) -> None:
        pairs = [*((str(path), word) for path, word in places), *_standard_places()]
        resolved = [(os.path.realpath(path), word) for path, word in pairs]
        known = {path.rstrip("/\\"): word for path, word in reversed([*pairs, *resolved])}
        # The root itself would eat unrelated text; the general pattern below handles its paths.
        self._places = sorted(
            ((path, word) for path, word in known.items() if len(Path(path).parts) > 1),
            key=lambda p: -len(p[0]),
        )
        self._names = [
            (re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])"), word) for name, word in _names()
        ]

    def __call__(self, text: str) -> str:
        """The text without absolute paths (a path keeps its last part), user and host names."""
        if not text:
            return text
        for path, word in self._places:
            if path in text:
                text = re.sub(re.escape(path) + r"(?![\w-])([/\\]?)", partial(_joined, word), text)
        text = _FILE_URL.sub("file", text)
        text = _HOMES.sub("~", text)
        text = _POSIX.sub(lambda m: f"…/{m[1]}" if m[1] else "…", text)
        text = _WINDOWS.sub(lambda m: f"…/{m[1]}" if m[1] else "…", text)
        for pattern, word in self._names:
            text = pattern.sub(word, text)
        return text

    def tree(self, value: Any) -> Any:
        """The same for every text (keys too) in nested mappings and lists."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return {
                self(key) if isinstance(key, str) else key: self.tree(item) for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.tree(item) for item in value]
        return value


def _joined(word: str, match: re.Match[str]) -> str:
    separator = match[1]
    if not word:
        return "" if separator else "."
    return f"{word}{separator}"


def _standard_places() -> tuple[tuple[str, str], ...]:
    package_parent = Path(__file__).resolve().parents[2]
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()}
    return (
        *((path, "site-packages") for path in packages if path),
        (str(package_parent), ""),
        (sysconfig.get_path("stdlib"), f"python{sys.version_info[0]}.{sys.version_info[1]}"),
        (sys.prefix, "PYTHON"),
        (sys.base_prefix, "PYTHON"),
        (str(Path.home()), "~"),
        (str(Path.cwd()), ""),
    )


@lru_cache(maxsize=1)
def _names() -> tuple[tuple[str, str], ...]:
    names: list[tuple[str, str]] = []
    with contextlib.suppress(OSError, KeyError, ImportError):
        names.append((getpass.getuser(), "USER"))
    host = socket.gethostname()
    names += [(host, "HOST"), (host.partition(".")[0], "HOST")]
    return tuple((name, word) for name, word in names if len(name) > 2 and name.lower() not in _PLAIN_NAMES)
