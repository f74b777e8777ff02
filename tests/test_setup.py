"""Does what the set-up files promise hold: environment, declared dependencies, wheel, make?"""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import diag_lib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_the_conda_environment_is_python_pip_and_this_package_with_existing_extras():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, packages = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"
    assert pip == "pip"
    [editable] = packages["pip"]
    match = re.fullmatch(r"-e \.\[([\w,]+)\]", editable)
    assert match, editable
    extras = set(match[1].split(","))
    assert "notebook" in extras
    assert extras <= set(EXTRAS)


def test_every_imported_package_is_declared_and_every_core_dependency_is_used():
    imported = {
        name.split(".")[0]
        for path in (ROOT / "diag_lib").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom) and node.module and not node.level
            else []
        )
    } - set(sys.stdlib_module_names)
    by_module = importlib.metadata.packages_distributions()
    distributions = {
        module: {_name(distribution) for distribution in by_module[module]}
        for module in imported
        if module in by_module
    }
    core = {_name(requirement) for requirement in PROJECT["dependencies"]}
    declared = core | {_name(requirement) for extra in EXTRAS.values() for requirement in extra}
    # What matplotlib's and Jupyter's packages are made of; they come and go with them.
    parts = {
        "beautifulsoup4",
        "cycler",
        "ipython",
        "jinja2",
        "markupsafe",
        "nbclient",
        "nbformat",
        "traitlets",
    }
    parts |= {"jupyter-client", "jupyter-core"}
    missing = {
        module for module, names in distributions.items() if not names & (declared | parts | {"diag-lib"})
    }
    assert missing == set()
    used = set().union(*distributions.values())
    # No import of their own is needed: pandas reads parquet through pyarrow.
    assert core - used <= {"pyarrow"}


def test_the_version_is_semantic_and_in_the_changelog():
    assert re.fullmatch(r"\d+\.\d+\.\d+", diag_lib.__version__)
    assert f"## {diag_lib.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_a_wheel_holds_notebooks_presets_templates_and_demo_teachers(wheel_content: Path):
    package = wheel_content / "diag_lib"
    assert sorted(path.name for path in (package / "_notebooks").glob("*.ipynb")) == sorted(
        path.name for path in (ROOT / "notebooks").glob("*.ipynb")
    )
    for pattern in ("presets/*.yaml", "workbook/templates/**/*", "py.typed"):
        expected = {path.relative_to(ROOT / "diag_lib") for path in (ROOT / "diag_lib").glob(pattern)}
        assert expected
        assert expected <= {path.relative_to(package) for path in package.glob(pattern)}
    teachers = {path.name for path in (ROOT / "data" / "teachers").glob("*.safetensors")}
    assert teachers
    assert teachers <= {path.name for path in (package / "_data" / "teachers").iterdir()}
    assert not list(wheel_content.rglob("test_*.py"))


def test_an_installed_wheel_finds_its_notebooks_and_teachers_without_the_checkout(
    wheel_content: Path, tmp_path: Path
):
    code = (
        "import diag_lib.resources as r, diag_lib.lab as lab; from pathlib import Path;"
        "print(r.checkout_dir(), len(list(r.notebooks_dir().glob('*.ipynb'))), r.teachers_dir().name,"
        "len(list(lab.workspace(Path.cwd()).glob('*.ipynb'))))"
    )
    environment = os.environ | {"PYTHONPATH": str(wheel_content), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["None", "7", "teachers", "7"]
    assert len(list((tmp_path / "diag-notebooks").glob("*.ipynb"))) == 7


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
class TestMake:
    def test_help_lists_every_target(self):
        text = _run_make("help").stdout
        assert {"demo", "lab", "test", "lint", "faults", "bench", "setup", "clean"} <= set(text.split())

    def test_without_a_python_it_says_so_in_one_line(self, tmp_path: Path):
        done = _make(tmp_path, "PYTHON=/nonexistent/python3")
        assert done.returncode != 0
        assert "no Python 3.11 or newer" in done.stderr
        assert not (tmp_path / "venv").exists()

    def test_a_python_that_is_too_old_is_passed_over(self, tmp_path: Path):
        old = tmp_path / "python3"
        old.write_text("#!/bin/sh\nexit 1\n")
        old.chmod(0o755)
        assert "no Python 3.11 or newer" in _make(tmp_path, f"PYTHON={old}").stderr

    def test_a_finished_set_up_is_reused_without_pip_or_network(self, tmp_path: Path):
        venv = tmp_path / "venv"
        venv.mkdir()
        content = f"{ROOT}\n{(ROOT / 'pyproject.toml').read_text(encoding='utf-8')}"
        (venv / ".ready").write_text(content, encoding="utf-8")
        os.utime(venv / ".ready", (0, 0))  # older than pyproject.toml: only the content may decide
        done = _make(tmp_path, "PYTHON=/nonexistent/python3")
        assert done.returncode == 0, done.stderr

    def test_a_constraints_file_has_a_set_up_of_its_own_that_follows_it(self, tmp_path: Path):
        lowest = "PIP_ARGS=-c constraints/lowest.txt"
        assert "> .venv-lowest/.ready" in _run_make("-n", "setup", "--always-make", lowest).stdout
        venv = tmp_path / "venv"
        venv.mkdir()
        project, pins = (
            (ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "constraints/lowest.txt")
        )
        nowhere = "PYTHON=/nonexistent/python3"
        (venv / ".ready").write_text(f"{ROOT}\n{project}", encoding="utf-8")
        assert "no Python" in _make(tmp_path, nowhere, lowest).stderr
        (venv / ".ready").write_text(f"{ROOT} constraints/lowest.txt\n{project}{pins}", encoding="utf-8")
        assert _make(tmp_path, nowhere, lowest).returncode == 0
        assert "no Python" in _make(tmp_path, nowhere).stderr


def _make(folder: Path, *variables: str) -> subprocess.CompletedProcess[str]:
    return _run_make("setup", f"VENV={folder / 'venv'}", *variables)


def _run_make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`make` as in a shell, also where the tests themselves were started by make with variables of its own."""
    inherited = {"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL", "VENV", "PIP_ARGS", "TORCH_INDEX"}
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


class TestConstraints:
    """constraints/lowest.txt and highest.txt: the two ends of the versions that pyproject.toml allows."""

    DIRECT = {
        canonicalize_name(requirement.name): requirement
        for group in (PROJECT["dependencies"], *EXTRAS.values())
        for requirement in map(Requirement, group)
        if requirement.name != PROJECT["name"]
    }

    @staticmethod
    def pinned(name: str) -> dict[str, Version]:
        """The versions in a constraints file by package; every line must be `name==version`."""
        lines = (ROOT / "constraints" / name).read_text(encoding="utf-8").splitlines()
        pins = [Requirement(line) for line in lines if not line.startswith("#")]
        assert all([specifier.operator for specifier in pin.specifier] == ["=="] for pin in pins)
        assert len({canonicalize_name(pin.name) for pin in pins}) == len(pins)
        return {canonicalize_name(pin.name): Version(next(iter(pin.specifier)).version) for pin in pins}

    @pytest.mark.parametrize("name", ["lowest.txt", "highest.txt"])
    def test_each_file_pins_exactly_the_direct_dependencies_within_their_bounds(self, name: str):
        pins = self.pinned(name)
        assert pins.keys() == self.DIRECT.keys()
        assert [n for n, version in pins.items() if version not in self.DIRECT[n].specifier] == []

    def test_the_lowest_versions_are_the_lower_bounds(self):
        bounds = {
            name: [Version(part.version) for part in requirement.specifier if part.operator == ">="]
            for name, requirement in self.DIRECT.items()
        }
        assert bounds == {name: [version] for name, version in self.pinned("lowest.txt").items()}

    def test_the_highest_versions_are_at_least_the_lowest(self):
        lowest = self.pinned("lowest.txt")
        assert [n for n, version in self.pinned("highest.txt").items() if version < lowest[n]] == []


def test_a_wheel_made_from_the_sdist_holds_what_the_checkouts_wheel_holds(
    wheel_content: Path, tmp_path: Path
):
    _build("sdist", ROOT, tmp_path)
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        # the filter came with Python 3.11.4, and without one later versions warn
        opened.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    for name in (
        "LICENSE",
        "README.md",
        "Makefile",
        "constraints/lowest.txt",
        "tests/conftest.py",
        "docs/licences.md",
    ):
        assert (unpacked / name).is_file(), name
    _build("wheel", unpacked, tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if not name.endswith("/")}
    assert names == {
        path.relative_to(wheel_content).as_posix() for path in wheel_content.rglob("*") if path.is_file()
    }


def _build(target: str, source: Path, folder: Path) -> None:
    """`hatchling build` of one target of the project in `source`, into `folder`."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
