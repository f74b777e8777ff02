"""What does a full or read-only disk do, whatever is being written when it fills up?

Real file systems of a few MB: see `small_disk`. The disk fills up right before the n-th file that a step writes,
for every n; the step has to end with one line that names the folder, leave no half-written file, and give the
figures of an undisturbed run once there is room.
"""

import json
from pathlib import Path

import pytest
import sample_run as sample
import small_disk
from steps_data import tiny_settings, write_images, write_teacher

AT_EVERY_WRITE = """
import json, shutil, sys, tempfile
from pathlib import Path
import small_disk
from diag_lib import audit, teacher, training
from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.settings import load

disk, settings, what = Path(sys.argv[1]), load(sys.argv[2]), sys.argv[3]
small_disk.mount_small(disk, "16m")
settings = settings.with_overrides({"runtime.cache_dir": sys.argv[4]})  # the cache is filled in a test of its own
real, count, full_at = tempfile.mkstemp, 0, None

def mkstemp(*arguments, **options):
    global count
    if Path(options.get("dir") or "/").is_relative_to(disk):
        count += 1
        if count == full_at:
            small_disk.fill(disk)
    return real(*arguments, **options)

tempfile.mkstemp = mkstemp

def step(run):
    if what == "arms":
        arms = training.train_arms(settings, run, ["status_quo"], progress=False)
        return [arm.val_scores["score"].tolist() for arm in arms.values()]
    {"audit": audit, "teacher": teacher}[what].run(settings, run, progress=False)
    found = run.read_json(f"evidence/{what}.json")
    return [found["findings"], found["numbers"]]

expected = step(RunFolder(disk / "calm"))
writes, said = count, []
for full_at in range(1, writes + 1):
    run, count = RunFolder(disk / f"full{full_at}"), 0
    try:
        step(run)
        raise SystemExit(f"write {full_at} of {writes}: nobody noticed")
    except UserError as error:
        said.append(str(error))
    files = [file for file in run.root.rglob("*") if file.is_file()]
    for file in files:
        assert not file.name.startswith(".") or file.name == ".lock", file
        assert file.stat().st_size or file.name == ".lock", file
        if file.suffix == ".json":
            json.loads(file.read_text())
    small_disk.free(disk)
    full, full_at = full_at, None
    assert step(run) == expected, full
    shutil.rmtree(run.root)
print(json.dumps({"writes": writes, "said": said, "place": str(disk)}))
"""


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    """Settings, 12 images a class and split, and a teacher."""
    write_images(tmp_path / "data", train=12, val=12)
    write_teacher(tmp_path / "teacher.safetensors")
    chosen = tiny_settings(tmp_path, training__epochs_s2=1, runtime__workers=1, runtime__budget="quick")
    (tmp_path / "my.yaml").write_text(chosen.to_yaml(), encoding="utf-8")
    return tmp_path / "my.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(("step", "fewest"), [("audit", 6), ("teacher", 3), ("arms", 6)])
def test_a_disk_that_fills_up_before_any_write_of_a_step(
    settings_file: Path, tmp_path: Path, step: str, fewest: int
) -> None:
    disk = tmp_path / "disk"
    done = small_disk.inside(AT_EVERY_WRITE, disk, settings_file, step, tmp_path / "cache")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["writes"] >= fewest
    for line in found["said"]:
        assert line.startswith(f"{disk}/full") and "\n" not in line
        assert "No space left on device; free some space, then the same command continues" in line


WHOLE_RUN = """
import json, sys
from pathlib import Path
import small_disk
from diag_lib import cli
from diag_lib.workbook import run

disk, books, settings = (Path(argument) for argument in sys.argv[1:4])
small_disk.mount_small(disk, "8m")
run.resources.notebooks_dir = lambda: books
command = ["run", str(settings), "--steps", "audit,teacher", "--out", str(disk / "run")]
codes = [cli.main(command)]
small_disk.free(disk)
(disk / "again").touch()  # the notebook fills the disk once
torn = []
for file in (disk / "run").rglob("*"):
    if file.suffix in (".json", ".ipynb"):
        json.loads(file.read_text())
    if file.suffix == ".html" and "</html>" not in file.read_text():
        torn.append(file.name)
    if file.name.startswith("."):
        torn.append(file.name)
codes.append(cli.main(command))
steps = json.loads((disk / "run/run.json").read_text())["steps"]
print(json.dumps({"codes": codes, "torn": torn, "status": [steps[s]["status"] for s in ("audit", "teacher")]}))
"""

FILL = """from pathlib import Path
import sys
sys.path.insert(0, {tests!r})
import small_disk
if not Path({disk!r}, "again").exists():
    small_disk.fill(Path({disk!r}))
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_before_a_page_is_rendered(tmp_path: Path) -> None:
    """Evidence is there, but neither the notebook nor its page can be kept: the step is done again."""
    disk = tmp_path / "disk"
    filling = FILL.format(tests=str(Path(small_disk.__file__).parent), disk=str(disk))
    books = sample.notebooks(
        tmp_path / "books", audit=sample.notebook("audit", sample.evidence_cell("audit"), filling)
    )
    done = small_disk.inside(WHOLE_RUN, disk, books, sample.settings_file(tmp_path))
    assert done.stdout, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"codes": [2, 0], "torn": [], "status": ["done", "done"]}, done.stderr[-2000:]
    [line] = [line for line in done.stderr.splitlines() if line.startswith("diag: ")]
    assert line.startswith(f"diag: {disk}/run")
    assert line.endswith(": No space left on device; free some space, then the same command continues")
    assert "Traceback" not in done.stderr


CACHE = """
import json, sys, warnings
from pathlib import Path
import small_disk
from diag_lib import audit, teacher, training
from diag_lib.evidence import RunFolder
from diag_lib.settings import load

disk, out, settings = Path(sys.argv[1]), Path(sys.argv[2]), load(sys.argv[3])
small_disk.mount_small(disk, "8m")
settings = settings.with_overrides({"runtime.cache_dir": str(disk / "cache")})

def figures(name):
    run = RunFolder(out / name)
    audit.run(settings, run, progress=False)
    teacher.run(settings, run, progress=False)
    arms = training.train_arms(settings, run, ["status_quo"], progress=False)
    steps = [run.read_json(f"evidence/{step}.json") for step in ("audit", "teacher")]
    return [[found["findings"], found["numbers"]] for found in steps], arms["status_quo"].val_scores["score"].tolist()

small_disk.fill(disk)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    full = figures("full")
small_disk.free(disk)
left = [str(file) for file in disk.rglob("*") if file.is_file()]
with warnings.catch_warnings():
    warnings.simplefilter("error", UserWarning)
    calm = figures("calm")
maps = sum(file.stat().st_size for file in disk.rglob("maps.f*"))
print(json.dumps({"same": full == calm, "told": [str(w.message) for w in told], "left": left, "maps": maps}))
"""


@pytest.mark.slow
def test_a_full_cache_costs_time_only(settings_file: Path, tmp_path: Path) -> None:
    """The run goes on with maps in memory and says so; with room the cache fills, and the figures are the same."""
    done = small_disk.inside(CACHE, tmp_path / "disk", tmp_path / "out", settings_file)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"] and found["maps"] > 0
    assert any("the maps stay in memory" in line and "runtime.cache_dir" in line for line in found["told"])
    assert not [name for name in found["left"] if Path(name).name.startswith(".")]


READ_ONLY = """
import json, os, sys
from pathlib import Path
import small_disk
from diag_lib import cli

data, home, out, settings = (Path(argument) for argument in sys.argv[1:5])
home.mkdir()
os.environ["HOME"] = str(home)
for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "TORCH_HOME", "HF_HOME", "IPYTHONDIR"):
    os.environ.pop(name, None)
small_disk.read_only(data)
small_disk.read_only(home)
for place in (data, home):
    try:
        (place / "probe").touch()
        raise SystemExit(f"{place} can be written")
    except OSError:
        pass
code = cli.main(["run", str(settings), "--steps", "audit,teacher", "--out", str(out)])
small_disk.read_only(out)
other = cli.main(["run", str(settings), "--steps", "audit", "--fresh", "--out", str(out)])
inside = cli.main(["run", str(settings), "--steps", "audit", "--out", str(out / "below")])
print(json.dumps([code, other, inside]))
"""


@pytest.mark.slow
def test_a_read_only_dataset_and_home_are_enough(settings_file: Path, tmp_path: Path) -> None:
    """The notebooks 01 and 02 with a home and a dataset that nobody can write to; then a run folder like that."""
    done = small_disk.inside(READ_ONLY, tmp_path / "data", tmp_path / "home", tmp_path / "out", settings_file)
    assert done.returncode == 0 and done.stdout, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 2, 2], done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("diag: ")]
    assert len(lines) == 2 and all("Read-only file system" in line for line in lines)
    assert all(str(tmp_path / "out") in line for line in lines) and "Traceback" not in done.stderr
