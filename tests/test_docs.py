"""Do the pages and GitHub's forms name things that exist?"""

import re
from pathlib import Path

import pytest
import yaml

from diag_lib.causes import CAUSES
from diag_lib.evidence import FINDINGS
from diag_lib.settings import Settings, preset_names
from diag_lib.training import ARMS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "data" / "README.md"])
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read(path: Path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:|#)([^)#\s]+)(?:#([\w-]+))?\)", text):
        place = page.parent / target
        assert place.exists(), target
        if anchor and place.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads], (
                anchor
            )


def test_guide_names_what_exists():
    text = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    steps = {name.partition(".")[0] for name in FINDINGS}
    found = set(re.findall(rf"`((?:{'|'.join(steps)})\.\w+)`", text))
    assert found and found <= set(FINDINGS)
    assert set(re.findall(r"causes\.md#(\w+)", text)) <= {cause.id for cause in CAUSES}
    assert set(re.findall(r"\(`(\w+)`\)", text)) == set(Settings().thresholds.model_dump())
    assert set(re.findall(r"arms? `(\w[\w.]*)`", text)) <= set(ARMS)
    assert set(re.findall(r"preset `(\w+)`", text)) <= set(preset_names())


def test_continuous_integration_calls_what_contributors_call():
    workflow = read(ROOT / ".github" / "workflows" / "ci.yml")
    steps = workflow["jobs"]["check"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads the key `on` as true
    assert workflow["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_issue_forms_are_forms(form):
    """The keys and kinds that GitHub accepts, ids used once, a label for each field."""
    content = read(form)
    assert (
        {"name", "description", "body"} <= set(content) <= {"name", "description", "body", "labels", "title"}
    )
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert fields and all(
        field["type"] in ("input", "textarea", "dropdown", "checkboxes") for field in fields
    )
    ids = [field["id"] for field in fields]
    assert len(ids) == len(set(ids)) and all(field["attributes"]["label"] for field in fields)


def test_a_report_of_a_wrong_verdict_asks_for_the_run():
    fields = {field["id"]: field for field in read(FORMS[-1])["body"]}
    assert fields["run"]["attributes"]["label"] == "run.json" and fields["run"]["validations"]["required"]
    assert fields["verdict"]["attributes"]["label"] == "verdict.json"
