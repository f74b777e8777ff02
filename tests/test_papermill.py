"""Plain papermill on a notebook of the installed package: from an empty folder, with a mistake, and to S3."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import sample_run as sample
import yaml

from diag_lib.evidence import RunFolder

pytestmark = pytest.mark.slow
S3_NEEDS = ("moto", "boto3", "flask")
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample.settings_file(tmp_path_factory.mktemp("user"))


def papermill(
    site: Path, here: Path, *arguments: str | Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """`papermill 01_audit.ipynb ...` in the folder `here`, with the package as the wheel in `site` has it."""
    environment = (
        os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"} | variables
    )
    notebook = site / "diag_lib" / "_notebooks" / "01_audit.ipynb"
    return subprocess.run(
        [sys.executable, "-m", "papermill", str(notebook), *map(str, arguments)],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
    )


def outputs(text: str) -> str:
    """What the cells of an executed notebook show; every cell must have run."""
    cells = [cell for cell in nbformat.reads(text, 4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    shown = [output for cell in cells for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    return "".join(str(output.get("data", {}).get("text/html", "")) for output in shown)


@pytest.mark.parametrize(
    "spelled",
    [
        lambda config: ["-p", "config", config, "-p", "run_dir", "reports/mine"],
        lambda config: [
            "-y",
            f"{{config: {config}, run_dir: reports/mine, overrides: {{dataset.image_size: 48}}}}",
        ],
    ],
    ids=["-p", "-y"],
)
def test_parameters_work_from_an_empty_folder(
    wheel_content: Path, tmp_path: Path, config: Path, spelled
) -> None:
    done = papermill(wheel_content, tmp_path, "out.ipynb", *spelled(config))
    assert done.returncode == 0, done.stderr
    run = RunFolder(tmp_path / "reports" / "mine")
    assert "<img" in outputs((tmp_path / "out.ipynb").read_text(encoding="utf-8"))
    evidence = run.read_evidence("audit")
    assert evidence is not None and evidence.finding("audit.unreadable").answer == "no"
    kept = yaml.safe_load((run.root / "settings.yaml").read_text(encoding="utf-8"))
    assert kept["dataset"]["image_size"] == (48 if "-y" in spelled(config) else 256)
    assert {path.name for path in tmp_path.iterdir()} == {"out.ipynb", "reports"}


def test_settings_that_are_not_there_end_it_with_one_line(wheel_content: Path, tmp_path: Path) -> None:
    done = papermill(
        wheel_content, tmp_path, "out.ipynb", "-p", "config", "absent.yaml", "-p", "run_dir", "reports/mine"
    )
    assert done.returncode != 0
    # Papermill's own frames stand above it; of ours there is the line alone.
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("UserError: absent.yaml: no such settings file; name a YAML file or a preset (")
    assert "diag_lib/settings" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"out.ipynb"}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[object, str]]:
    """A bucket `reports` on an S3 server of this process, and the server's address."""
    if missing := [name for name in S3_NEEDS if importlib.util.find_spec(name) is None]:
        pytest.skip(f"S3 IS NOT TESTED: no {', '.join(missing)}; pip install 'moto[s3,server]' boto3")
    import boto3
    from moto.server import ThreadedMotoServer

    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        made = boto3.resource("s3", endpoint_url=address).Bucket("reports")
        made.create()
        yield made, address
    finally:
        server.stop()


def test_the_executed_notebook_goes_to_s3(wheel_content: Path, tmp_path: Path, config: Path, bucket) -> None:
    made, address = bucket
    target = "s3://reports/runs/01_audit.ipynb"
    done = papermill(
        wheel_content,
        tmp_path,
        target,
        "-p",
        "config",
        config,
        "-p",
        "run_dir",
        "mine",
        BOTO3_ENDPOINT_URL=address,
    )
    assert done.returncode == 0, done.stderr
    assert [item.key for item in made.objects.all()] == ["runs/01_audit.ipynb"]
    text = made.Object("runs/01_audit.ipynb").get()["Body"].read().decode()
    assert "<img" in outputs(text)
    assert (tmp_path / "mine" / "evidence" / "audit.json").is_file()
