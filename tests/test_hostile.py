"""Does hostile input run nothing, reach nothing and leak nothing? The threats are listed in SECURITY.md."""

import base64
import csv
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import torch
from PIL import Image
from steps_data import tiny_settings, write_images, write_teacher

from diag_lib import audit, cli, display, models, workbook
from diag_lib.audit import curation
from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.images import decode, read_table
from diag_lib.settings import load
from diag_lib.workbook.render import sort_script

ROOT = Path(__file__).resolve().parent.parent
MARK = "hostile-code-ran"


class Evil:
    """What a pickle would run: it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.system, (f"touch {self.mark}",)


# ---- weights


def _legacy_tar(path: Path, mark: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            data = pickle.dumps(Evil(mark), protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _zip_with_pickle(path: Path, mark: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": Evil(mark)}, protocol=2))
        archive.writestr("archive/version", "3\n")


def _zip_bomb(path: Path, mark: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", bytes(50_000_000))
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")  # the last entry says that it unpacks to 4 GB; so do two more
    data[at + 24 : at + 28] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(data)


def _header(length: int, text: bytes = b"{}") -> Callable[[Path, Path], None]:
    return lambda path, mark: path.write_bytes(struct.pack("<Q", length) + text)


def _claims(shape: list[int], end: int) -> Callable[[Path, Path], None]:
    text = json.dumps({"fc.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    return _header(len(text), text + bytes(64))


CHECKPOINTS: dict[str, Callable[[Path, Path], object]] = {
    "pickle.pth": lambda path, mark: path.write_bytes(pickle.dumps({"state_dict": Evil(mark)})),
    "torch.pth": lambda path, mark: torch.save({"state_dict": Evil(mark)}, path),
    "old.pth": lambda path, mark: torch.save(Evil(mark), path, _use_new_zipfile_serialization=False),
    "legacy.tar.pth": _legacy_tar,
    "by_hand.pth": _zip_with_pickle,
    "bomb.pth": _zip_bomb,
    "header.safetensors": _header(2**63),
    "header_gib.safetensors": _header(2**30),
    "nested.safetensors": _header(200_000, b"[" * 200_000),
    "claims.safetensors": _claims([10**6, 10**6], 4 * 10**12),
    "overflow.safetensors": _claims([2**62, 4], 64),
    "called.safetensors": lambda path, mark: path.write_bytes(pickle.dumps(Evil(mark))),
}


@pytest.mark.parametrize("name", list(CHECKPOINTS))
def test_a_hostile_checkpoint_is_one_line_and_runs_nothing(tmp_path: Path, name: str) -> None:
    mark, path = tmp_path / MARK, tmp_path / name
    CHECKPOINTS[name](path, mark)
    with pytest.raises(UserError) as caught:
        models.build("tiny_ladeda", path)
    assert "\n" not in str(caught.value) and not mark.exists()


def test_user_code_runs_only_with_trust_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / MARK)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    write_images(tmp_path / "data", train=2, val=2)
    (tmp_path / "s.yaml").write_text(
        "dataset: {root: data}\nteacher: {arch: 'evil_module:make', weights: null}\n"
    )
    arguments = ["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "run")]
    assert cli.main(arguments) == 2
    assert "--trust-code" in capsys.readouterr().err
    assert not (tmp_path / MARK).exists() and "evil_module" not in sys.modules


# ---- settings and parameters


@pytest.mark.parametrize(
    "text",
    [
        "training: !!python/object/apply:os.system ['touch {mark}']",
        "training: !!python/object/new:subprocess.Popen [[touch, '{mark}']]",
        "training: !!python/name:os.system",
        "history: !include /etc/passwd",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]",
        "training: {{<<: {{seed: 1}}}}\nx: *nothing",
        "dataset: {{root: " + "[" * 5_000 + "}}",
    ],
)
def test_yaml_can_neither_run_nor_explode(tmp_path: Path, text: str) -> None:
    mark = tmp_path / MARK
    (tmp_path / "s.yaml").write_text(text.format(mark=mark))
    with pytest.raises(UserError) as caught:
        load(tmp_path / "s.yaml")
    assert "\n" not in str(caught.value) and "root:x:0" not in str(caught.value) and not mark.exists()


INJECTIONS = (
    "'; import os; os.system('touch {mark}'); '",
    '"; __import__("os").system("touch {mark}"); "',
    "\n__import__('os').system('touch {mark}')\n",
    "\\' + __import__('os').system('touch {mark}') + '",
    '"""\n__import__("os").system("touch {mark}")\n"""',
    "{{x}} ${{y}} %(z)s \u2028 \u202e \x1b[31m",
)


@pytest.mark.slow
def test_notebook_parameters_are_values_never_code(tmp_path: Path) -> None:
    """Hostile text goes through papermill into the parameters of a real notebook that is run, and comes back equal."""
    import papermill

    mark = tmp_path / MARK
    hostile = [text.format(mark=mark) for text in INJECTIONS]
    source = nbformat.read(ROOT / "notebooks" / "01_audit.ipynb", as_version=4)
    first = next(cell for cell in source.cells if "parameters" in cell.metadata.get("tags", []))
    tell = (
        "import json, pathlib\npathlib.Path(run_dir, 'seen.json').write_text(json.dumps([config, overrides]))"
    )
    source.cells = [first, nbformat.v4.new_code_cell(tell)]
    nbformat.write(source, tmp_path / "in.ipynb")
    overrides = {text: [text] for text in hostile}
    papermill.execute_notebook(
        str(tmp_path / "in.ipynb"), str(tmp_path / "out.ipynb"), kernel_name="python3", progress_bar=False,
        parameters={"config": hostile[0], "run_dir": str(tmp_path), "overrides": overrides},
    )  # fmt: skip
    assert json.loads((tmp_path / "seen.json").read_text()) == [hostile[0], overrides]
    assert not mark.exists()


@pytest.mark.parametrize("text", INJECTIONS)
def test_a_hostile_parameter_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    mark = tmp_path / MARK
    value = text.format(mark=mark)
    for config, overrides in ((value, {}), ("base", {value: 1}), ("base", {"training.optimizer": value})):
        with pytest.raises(UserError) as caught:
            workbook.start("audit", config, str(tmp_path / "run"), overrides)
        assert len(str(caught.value).splitlines()) == 1 and not mark.exists()


# ---- names


NAMES = (
    "=cmd|' C calc'!A0.png", "+1+1.png", "-2+3.png", "@SUM(1).png", "<script>window.hacked=1<", "a\x1b[31mred.png",
    "b\u202egnp.exe.png", "c\r\nHTTP.png", "$(touch x).png", "`touch x`.png", "d'\"e.png", "e\u2028f.png",
)  # fmt: skip


@pytest.fixture(scope="module")
def hostile_names(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, audit.AuditResult]:
    """A dataset whose outermost folder is a formula and whose files are named like attacks."""
    tmp = tmp_path_factory.mktemp("names")
    data = tmp / "data"
    write_images(data / "=HYPERLINK(1)", train=6, val=6)
    write_teacher(tmp / "teacher.safetensors")
    for number, name in enumerate(NAMES):
        folder = data / "=HYPERLINK(1)" / "train" / ("real", "fake")[number % 2]
        Image.new("RGB", (32, 32), (number, 99, 9)).save(folder / name, "PNG")
    return tmp, audit.run(tiny_settings(tmp), tmp / "run", progress=False)


def test_no_cell_of_a_written_csv_is_a_formula(hostile_names: tuple[Path, audit.AuditResult]) -> None:
    tmp, result = hostile_names
    run = RunFolder(tmp / "run")
    marks = dict.fromkeys(result.frame["path"], "exclude")
    file = curation.save(result, run, marks)  # type: ignore[arg-type]
    with file.open(encoding="utf-8", newline="") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert len(cells) == 3 * (len(marks) + 1)
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert all(cell.isprintable() for cell in cells)
    del marks[next(path for path in marks if path.endswith("/0000.png"))]
    file = curation.save(result, run, marks)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"no fake images|no real images|no split"):
        read_table(
            result.settings.with_overrides({"dataset.curation": str(file)})
        )  # every path was understood


def test_a_manifests_path_that_is_a_formula_is_found_and_shown_as_a_path(tmp_path: Path) -> None:
    write_images(tmp_path / "data", train=1, val=1)
    write_teacher(tmp_path / "teacher.safetensors")
    for name in ("=1.png", "@x.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / name)
    text = (
        "path,label,split\n=1.png,0,train\n@x.png,1,train\nval/real/0000.png,0,val\nval/fake/0001.png,1,val\n"
    )
    (tmp_path / "data/m.csv").write_text(text)
    settings = tiny_settings(tmp_path, dataset__root=str(tmp_path / "data/m.csv"))
    assert set(read_table(settings).split("train")["path"]) == {"./=1.png", "./@x.png"}
    (tmp_path / "c.csv").write_text("path,action,label\n=1.png,relabel,fake\n./@x.png,relabel,real\n")
    changed = read_table(settings.with_overrides({"dataset.curation": str(tmp_path / "c.csv")}))
    assert changed.curated == {"excluded": 0, "relabelled": 2, "unmatched": 0}


def test_hostile_names_reach_neither_terminal_nor_page(
    hostile_names: tuple[Path, audit.AuditResult], capsys: pytest.CaptureFixture[str]
) -> None:
    tmp, result = hostile_names
    assert len(result.frame) == 24 + len(NAMES)
    assert all(path.isprintable() for path in result.frame["path"])
    assert all(finding.message.isprintable() for finding in result.evidence.findings)
    root = tmp / "data" / "a\x1b[31m\u202e"
    assert cli.main(["run", "--set", f"dataset.root={root}", "--out", str(tmp / "none")]) == 2
    assert all(character.isprintable() or character == "\n" for character in capsys.readouterr().err)


# ---- network, privacy


REFUSING = '''"""Every connection beyond this machine is refused and told."""
import socket, pathlib
MARK = pathlib.Path(@)
def refuse(name, real, of):
    def call(*a, **k):
        host = of(*a)
        if host not in (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0"):
            with MARK.open("a") as file: file.write(f"{name} {host}\\\\n")
            raise OSError("the network is refused")
        return real(*a, **k)
    return call
host = lambda address: address[0] if isinstance(address, tuple) else None
for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, refuse(name, getattr(socket.socket, name), lambda self, address: host(address)))
socket.socket.sendto = refuse("sendto", socket.socket.sendto, lambda self, data, *rest: host(rest[-1]))
for name in ("getaddrinfo", "gethostbyname"):
    setattr(socket, name, refuse(name, getattr(socket, name), lambda first, *rest: first))
(MARK.parent / f"guarded-{__import__('os').getpid()}").touch()
'''


@pytest.mark.slow
def test_a_run_needs_no_network_and_its_pages_tell_no_place(tmp_path: Path) -> None:
    """Steps 01 and 02 by the real notebooks, with the network refused in the run and in its kernels."""
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(
        REFUSING.replace("@", repr(str(guard / "tried"))).replace("\\\\", "\\")
    )
    write_images(tmp_path / "data", train=10, val=10)
    write_teacher(tmp_path / "teacher.safetensors")
    (tmp_path / "my.yaml").write_text(tiny_settings(tmp_path).to_yaml())
    secret = {"AWS_SECRET_ACCESS_KEY": "hunter2hunter2", "HF_TOKEN": "hf_swordfish", "USER": "zaphod-b"}
    environment = os.environ | secret | {"PYTHONPATH": os.pathsep.join([str(guard), str(ROOT)])}
    command = [sys.executable, "-m", "diag_lib.cli", "run", "my.yaml", "--out", "run", "--steps", "01,02"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(guard.glob("guarded-*"))) >= 3  # the run and two kernels
    assert not (guard / "tried").exists(), (guard / "tried").read_text()
    for name in ("one.html", "none.html", "all.zip"):
        options = ["--no-images"] if name == "none.html" else []
        assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / name), *options]) == 0
    pages = {p.name: p.read_bytes() for p in [*(tmp_path / "run").glob("*.html"), *tmp_path.glob("*.html")]}
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        pages |= {f"zip/{name}": archive.read(name) for name in archive.namelist()}
    places = [str(tmp_path), str(ROOT), str(Path.home()) + "/", sys.prefix, *secret.values()]
    host = re.compile(rf"\b{re.escape(os.uname().nodename)}\b".encode())
    for name, content in pages.items():
        words = re.sub(rb"base64,[^\"]+", b"", content)
        assert not [place for place in places if place.encode() in content] and not host.search(words), name
        assert content.count(b"<script") == content.count(sort_script().encode()) == 1, name
    assert re.search(rb"<img|data:image", pages["one.html"])
    assert not re.search(rb"data:image/(png|jpeg|webp)", pages["none.html"])


def test_pictures_in_reports_carry_no_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x8825] = "SECRETCAM", {1: "N", 2: (48.0, 8.0, 30.0)}
    private = {"exif": exif, "comment": b"SECRETCOMMENT", "icc_profile": b"SECRETPROFILE" * 20}
    Image.new("RGB", (64, 64), (9, 99, 9)).save(tmp_path / "x.jpg", **private)
    with Image.open(tmp_path / "x.jpg") as picture:
        picture.load()
        shown = display.thumbnails([picture, decode(tmp_path / "x.jpg")], ["a", "b"]).data
    pictures = re.findall(r"base64,([^\"]+)", shown)
    assert len(pictures) == 2
    for data in map(base64.b64decode, pictures):
        with Image.open(io.BytesIO(data)) as image:
            assert not image.info and not image.getexif()
        assert b"SECRET" not in data


# ---- the page of threats


def test_every_threat_names_tests_that_exist() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(lines) >= 12
    for line in lines:
        named = re.findall(r"`(test_\w+)::(test_\w+)`", line)
        assert named, line
        for module, test in named:
            source = (ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8")
            assert f"def {test}(" in source, f"{module}::{test}"


def test_a_thread_of_hostile_files_leaves_pillow_as_it_was() -> None:
    """Refusing files by many threads at once puts Pillow's own limits back."""
    import odd_files

    from diag_lib.images import DecodeError, decode_bytes

    before = (Image.MAX_IMAGE_PIXELS, sorted(Image.OPEN))

    def attempt() -> None:
        for data in odd_files.FOREIGN.values():
            with pytest.raises(DecodeError):
                decode_bytes(data)

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (Image.MAX_IMAGE_PIXELS, sorted(Image.OPEN)) == before
