"""May an MIT-licensed package require all that this one requires, and does the page of licences say so?"""

from pathlib import Path

import pytest

from docs import make_licences as licences


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a distribution whose metadata holds the given lines; returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, *lines: str) -> str:
        folder = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        metadata = ["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *lines]
        (folder / "METADATA").write_text("\n".join(metadata) + "\n")
        return name

    return make


def test_every_dependency_is_installed_and_its_licence_is_allowed():
    groups = licences.project_groups()
    packages, _ = licences.dependencies(groups)
    assert {"numpy", "torch", "jupyterlab", "markupsafe"} <= {package.name for package in packages}
    assert licences.problems(groups) == []


@pytest.mark.parametrize(
    ("lines", "stated"),
    [
        (["License-Expression: AGPL-3.0-or-later"], "AGPL-3.0-or-later is not on the list"),
        (["License-Expression: MIT AND GPL-2.0-only"], "MIT AND GPL-2.0-only is not on the list"),
        (["License-Expression: MIT OR (Apache-2.0 AND SSPL-1.0)"], "is not on the list"),
        (["License: Our own terms"], "states no known licence"),
        (
            ["License: MIT", "Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)"],
            "no known",
        ),
        (["License: LicenseRef-NVIDIA-Proprietary"], "LicenseRef-NVIDIA-Proprietary is not on the list"),
        ([], "states no known licence"),
    ],
)
def test_what_is_unknown_or_not_allowed_is_named(installed, lines, stated):
    [line] = licences.problems({"core": [installed("example-package", *lines)]})
    assert line.startswith("example-package 1.0: ")
    assert stated in line


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["License-Expression: MIT OR GPL-2.0-only"], "MIT OR GPL-2.0-only"),
        (
            ["License-Expression: Apache-2.0 WITH LLVM-exception AND MIT"],
            "Apache-2.0 WITH LLVM-exception AND MIT",
        ),
        (["License: BSD-3-Clause", "Classifier: License :: OSI Approved :: BSD License"], "BSD-3-Clause"),
        (["License: Apache License, Version 2.0"], "Apache-2.0"),
        (
            [
                "License: Dual License",
                "Classifier: License :: OSI Approved :: BSD License",
                "Classifier: License :: OSI Approved :: Apache Software License",
            ],
            "Apache-2.0 AND BSD",
        ),
        (
            [
                "License: Copyright (c) 2020, somebody",
                "        All rights reserved.",
                "Classifier: License :: OSI Approved :: MIT License",
            ],
            "MIT",
        ),
    ],
)
def test_the_usual_ways_of_stating_a_licence_are_read(installed, lines, expected):
    groups = {"core": [installed("example-package", *lines)]}
    assert licences.problems(groups) == []
    assert [package.licence for package in licences.dependencies(groups)[0]] == [expected]


def test_licences_of_what_a_dependency_requires_are_checked_too(installed):
    installed("deep", "License: GPL")
    installed("between", "License: MIT", "Requires-Dist: deep; extra == 'more'")
    installed("other", "License: MIT", 'Requires-Dist: deep; sys_platform == "nowhere"')
    assert licences.problems({"core": [installed("top", "License: MIT", "Requires-Dist: between")]}) == []
    assert licences.problems({"core": ["other"]}) == []
    [line] = licences.problems({"core": ["top"], "extra": ["between[more]"]})
    assert line.startswith("deep 1.0: ")
    assert "not installed" in licences.problems({"core": ["a-package-that-is-nowhere"]})[0]


def test_nvidias_libraries_pass_only_where_pytorch_alone_asks_for_them(installed):
    installed("nvidia-example", f"License-Expression: {licences.NVIDIA}")
    installed("torch", "License: BSD-3-Clause", "Requires-Dist: nvidia-example")
    installed("accelerated", "License: MIT", "Requires-Dist: nvidia-example")
    assert licences.problems({"core": ["torch"]}) == []
    [line] = licences.problems({"core": ["torch", "accelerated"]})
    assert line.startswith("nvidia-example 1.0: ")


def test_the_page_lists_every_direct_dependency_and_every_licence_that_it_names_is_allowed():
    rows = {}
    for line in licences.PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0] not in ("package", "---"):
            rows[cells[0]] = cells[2]
    direct = {
        licences.canonicalize_name(licences.Requirement(text).name)
        for texts in licences.project_groups().values()
        for text in texts
    }
    assert direct - rows.keys() == set()
    allowed = {*licences.ALLOWED, licences.NVIDIA}
    assert [name for name, licence in rows.items() if not licences.is_allowed(licence, allowed)] == []
