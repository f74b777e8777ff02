"""The `diag` command: which run, on which settings, and what came out?

Exit codes: 0 done (whatever the verdict), 1 `--fail-on` reached, 2 the input is wrong, 3 a step failed, 130
interrupted, 141 whoever read the output is gone.
Heavy modules are imported inside the commands, so that `diag --help` answers at once.
"""

import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from diag_lib import __version__, files
from diag_lib.arguments import (
    complete_arms,
    complete_config,
    complete_faults,
    complete_keys,
    complete_presets,
    complete_steps,
    default_out,
    finding_lines,
    interval,
    load_settings,
    named_out,
    named_run,
    one_line,
    parse_steps,
    short,
    usage_line,
    verdict_lines,
)
from diag_lib.errors import UserError
from diag_lib.evidence import STEPS, RunFolder

if TYPE_CHECKING:
    from diag_lib.settings import Settings

PLANTED = "teacher_domain_shift"
"""What is wrong with the demo where no other fault is asked for."""
DONE, WRONG_INPUT, STEP_FAILED, INTERRUPTED, UNREAD = 0, 2, 3, 130, 141

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


Config = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        autocompletion=complete_config,
        help="A YAML settings file, or the name of a preset.",
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        autocompletion=complete_keys,
        help="Replace one setting; repeatable. Values are YAML.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="The run folder [default: reports/<settings name>]."),
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code", help="Run the networks, losses and plug-ins of your own that the settings name."
    ),
]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Finds out why a distilled real-vs-fake image detector does not learn, and proves the fix.

    \b
    diag demo                       see it work on data made here
    diag run my.yaml                diagnose your own training
    diag run --preset base --set dataset.root=photos --steps 01      audit a folder of images
    diag run my.yaml --preset safest --out reports/safest     your run with the guide's safest weights
    diag compare reports/my reports/safest
    diag COMMAND --help             more about one command, with examples
    diag --install-completion       names of presets, steps, arms and faults by Tab

    Exit codes: 0 done (whatever the verdict), 1 --fail-on reached, 2 your input is wrong, 3 a step failed.
    """
    if version:
        typer.echo(f"diag {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def demo(
    fault: Annotated[
        str | None,
        typer.Option(
            "--fault",
            metavar="ID",
            autocompletion=complete_faults,
            help="Inject this fault, e.g. leakage, and see it named.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The run folder [default: reports/demo[-ID]].")
    ] = None,
) -> int:
    """Make the demo data and run the workbook on it. Needs no data, no weights and no network.

    \b
    diag demo
    diag demo --fault leakage
    """
    _need("papermill", "skimage", extra="demo")
    from diag_lib.demo import prepare
    from diag_lib.faults.inject import find

    settings = prepare(fault=fault)
    code = _run(settings, out or Path("reports") / (f"demo-{fault}" if fault else "demo"))
    planted = find(fault or PLANTED)
    typer.echo(f"What had been planted: {planted.id} ({planted.description})")
    return code


@app.command()
def run(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG",
            autocompletion=complete_config,
            help="A YAML settings file, or the name of a preset.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            autocompletion=complete_presets,
            help="A preset; beside CONFIG, its training part is laid over it.",
        ),
    ] = None,
    assignments: Assignments = None,
    out: Out = None,
    steps: Annotated[
        str | None,
        typer.Option(
            "--steps", metavar="LIST", autocompletion=complete_steps, help="E.g. 01,03-05 or audit,teacher."
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run finished steps again too.")] = False,
    fail_on: Annotated[
        Literal["warning", "error"] | None,
        typer.Option("--fail-on", help="Exit with 1 when a finding is at least this severe."),
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(
            "--time-limit",
            metavar="MINUTES",
            help="Stop after so many minutes; the run is marked incomplete, the same command continues it.",
        ),
    ] = None,
    trust_code: TrustCode = False,
) -> int:
    """Run the workbook: seven steps, a verdict, a report. A run folder is resumed where it stopped.

    \b
    diag run my.yaml
    diag run my.yaml --preset safest                       your settings with the guide's safest weights
    diag run my.yaml --set training.seed=7 --out reports/seed7
    diag run --set dataset.root=photos --steps 01          the audit alone, needs no teacher
    diag run my.yaml --steps 00-02 --fail-on error         for scripts and CI
    diag run my.yaml --time-limit 110                      stop before a two-hour job is killed
    """
    chosen = parse_steps(steps)
    if time_limit is not None and not time_limit > 0:
        raise UserError(f"--time-limit {time_limit:g}: minutes above 0 are expected")
    settings = load_settings(config, preset, assignments or ())
    _need("papermill", extra="notebook")
    if (config or preset) == "demo":
        from diag_lib.demo import ensure_data

        ensure_data(settings)
    limit = None if time_limit is None else 60 * time_limit
    return _run(
        settings, out, steps=chosen, fresh=fresh, fail_on=fail_on, time_limit=limit, trust_code=trust_code
    )


@app.command("finetune-teacher")
def finetune_teacher(
    config: Config, assignments: Assignments = None, out: Out = None, trust_code: TrustCode = False
) -> int:
    """Train the teacher on your data.

    For a teacher from another domain: it writes the weights that the alias `finetuned` names. A training
    that was stopped goes on where it stopped.

    \b
    diag finetune-teacher my.yaml
    diag run my.yaml --set teacher.weights=finetuned
    """
    settings = load_settings(config, None, assignments or ())
    _allow_code(trust_code)
    from diag_lib.training import finetune_teacher as finetune

    result = finetune(*_prepared(config, settings, out, ["teacher"]))
    if _first_rank():
        auc = result.auc
        typer.echo(f"Validation AUC {interval(auc.before)} before, {interval(auc.after)} after")
        typer.echo(f"Written: {short(result.path)}. Use it: --set teacher.weights=finetuned")
    return DONE


@app.command()
def train(
    config: Config,
    arm: Annotated[
        str,
        typer.Option(
            "--arm", metavar="ID", autocompletion=complete_arms, help="E.g. status_quo or bce_only."
        ),
    ],
    assignments: Assignments = None,
    out: Out = None,
    trust_code: TrustCode = False,
) -> int:
    """Train one arm; works under torchrun.

    Shows its validation AUC; the workbook finds the trained arm in the run folder.

    \b
    diag train my.yaml --arm bce_only
    torchrun --nproc-per-node 4 -m diag_lib.cli train my.yaml --arm status_quo
    """
    settings = load_settings(config, None, assignments or ())
    _allow_code(trust_code)
    from diag_lib.training import arm_settings, train_arms

    distills = arm_settings(settings, arm).training.distillation.alpha_distill > 0
    needs = ["baseline", "distillation"] if distills else ["baseline"]
    settings, folder = _prepared(config, settings, out, needs)
    results = train_arms(settings, folder, [arm])
    if arm not in results:
        raise UserError(f"arm {arm}: {results.not_run.get(arm, 'was not trained')}")
    if _first_rank():
        typer.echo(f"{arm}: validation AUC {interval(results[arm].auc)}")
        typer.echo(f"Written: {short(folder.arm_dir(arm))}")
    return DONE


@app.command()
def faults(
    suite: Annotated[
        Literal["quick", "full"],
        typer.Option("--suite", help="quick: minutes; full: every fault and control."),
    ] = "quick",
    cause: Annotated[
        list[str] | None,
        typer.Option(
            "--cause", metavar="ID", autocompletion=complete_faults, help="Only this fault; repeatable."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Runs of each case.")] = 1,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the score table goes.")] = Path(
        "reports/faults"
    ),
) -> int:
    """Inject known faults, score the verdicts.

    Faults and hard controls; how often is the right cause named first, how often is there a false alarm?

    \b
    diag faults
    diag faults --cause leakage --cause lr_too_low --seeds 3
    """
    _need("papermill", "skimage", extra="demo")
    from diag_lib.faults.suite import run_suite

    return int(run_suite(suite, causes=cause or None, seeds=seeds, out=named_out(out) or out))


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN ...", help="Run folders, or names below reports; the reference first."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Also write the comparison as a page ending in .html."),
    ] = None,
) -> int:
    """Compare runs: verdict, AUC, settings.

    \b
    diag compare reports/before reports/after
    diag compare reports/before reports/after --out reports/before-after.html
    """
    from diag_lib.workbook.comparing import comparison, in_text

    found = comparison([named_run(run) for run in runs])
    typer.echo(in_text(found))
    if out is not None:
        from diag_lib.workbook.comparison_page import write_comparison

        typer.echo(f"Written: {short(write_comparison(found, out))}")
    return DONE


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or its name below reports.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The page to write, ending in .html or .zip.")],
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Leave out every picture of the dataset.")
    ] = False,
) -> int:
    """Write a run as one file to share.

    It opens offline and shows no path, user or host name.

    \b
    diag export reports/my my.html
    diag export reports/my my.zip --no-images
    """
    from diag_lib.workbook.export import export_single_file

    typer.echo(f"Written: {short(export_single_file(named_run(run), file, images=not no_images))}")
    return DONE


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(context: typer.Context) -> int:
    """Open the notebooks in JupyterLab.

    Further options go to JupyterLab.

    \b
    diag lab
    diag lab --no-browser --port 9000
    """
    from diag_lib.lab import open_lab

    return open_lab(context.args)


@app.command()
def doctor(
    weights_dir: Annotated[str, typer.Option(metavar="DIR", help="Where published weights lie.")] = "weights",
) -> int:
    """Check this machine: is everything here, and how long do things take on it?

    A line marked note limits what works, FAIL keeps diag from working; both say what to do. Takes a few seconds.
    """
    from diag_lib.doctor import examine

    marks = {"ok": "ok  ", "note": "note", "error": "FAIL"}
    bad = 0
    for check in examine(Path(weights_dir)):
        bad += check.level == "error"
        typer.echo(f"{marks[check.level]}  {check.name:<12} {check.text}")
    repair = f"{bad} thing{'s' if bad > 1 else ''} to repair, marked FAIL."
    typer.echo(repair if bad else "Ready. To see it work: diag demo")
    return DONE if not bad else STEP_FAILED


def _run(
    settings: "Settings",
    out: Path | None,
    *,
    steps: Sequence[str] = STEPS,
    fresh: bool = False,
    fail_on: Literal["warning", "error"] | None = None,
    time_limit: float | None = None,
    trust_code: bool = False,
) -> int:
    _allow_code(trust_code)
    from diag_lib.workbook.run import FAIL_ON_REACHED, run_workbook

    folder = RunFolder(named_out(out) or default_out(settings))
    code = run_workbook(
        settings, folder.root, steps=steps, fresh=fresh, fail_on=fail_on, time_limit=time_limit
    )
    judged = "verdict" in steps
    for line in verdict_lines(folder) if judged else finding_lines(folder, steps):
        typer.echo(line)
    if code == FAIL_ON_REACHED and judged:
        severe = ("error",) if fail_on == "error" else ("error", "warning")
        for line in finding_lines(folder, steps, severe):
            typer.echo(f"--fail-on {fail_on}: {line}")
    typer.echo(f"Report: {short(folder.root / 'index.html')}")
    return code


def _prepared(
    config: str, settings: "Settings", out: Path | None, needs: Sequence[str]
) -> tuple["Settings", RunFolder]:
    """Settings and run folder of a command that trains without the workbook; the folder is made when missing.

    `needs`: the steps whose requirements the command has. What they cannot work with leaves no folder behind.
    """
    from diag_lib.images import beside_run, read_table
    from diag_lib.workbook.preflight import refuse_mistakes
    from diag_lib.workbook.start import prepare_data

    prepare_data(settings, config)
    folder = RunFolder(named_out(out) or default_out(settings))
    settings = beside_run(settings, folder.root, folder.default_cache)
    read_table(settings)
    refuse_mistakes(settings, needs, folder.root)
    return settings, folder.create()


def _first_rank() -> bool:
    """Whether this process is the one that speaks (torchrun starts several)."""
    return os.environ.get("RANK", "0") == "0"


def _allow_code(trusted: bool) -> None:
    if trusted:
        os.environ["DIAG_TRUST_CODE"] = "1"  # the environment, so that the notebooks' kernels inherit it


def _need(*modules: str, extra: str) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install 'diag-lib[{extra}]'")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; mistakes of the user are one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a terminal without an interval's "≥" is no failure
    try:
        code = app(args=list(sys.argv[1:] if argv is None else argv), prog_name="diag", standalone_mode=False)
    except UserError as error:
        return _complain(str(error), WRONG_INPUT)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except SystemExit as stop:
        # The option parser ends so, with 1, when a pipe is closed (`diag doctor | head`); a shell says 141.
        if isinstance(stop.__context__, BrokenPipeError):
            return UNREAD
        raise
    except Exception as error:
        if (text := usage_line(error)) is not None:
            return _complain(text, WRONG_INPUT)
        if isinstance(error, OSError) and error.errno in files.USERS:
            return _complain(files.disk_line(error), WRONG_INPUT)
        traceback.print_exc()
        if _lost_a_process(error):
            return _complain(
                "another process of this training is gone (killed, preempted or failed, see above); "
                "the same command continues at the last epoch",
                STEP_FAILED,
            )
        return _complain("this is a fault in diag itself; please report it with the lines above", STEP_FAILED)
    if code == INTERRUPTED:
        return _complain("interrupted; the same command continues where it stopped", INTERRUPTED)
    return int(code or DONE)


def _lost_a_process(error: Exception) -> bool:
    """Whether, under torchrun, the backend says that another process no longer answers."""
    said = str(error).lower()
    return "TORCHELASTIC_RUN_ID" in os.environ and any(
        name in said for name in ("gloo", "nccl", "connection")
    )


def _complain(text: str, code: int) -> int:
    typer.echo(f"diag: {one_line(text)}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
