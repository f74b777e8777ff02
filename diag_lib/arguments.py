"""What did the user type, which line helps if it is a mistake, and how do results read in a terminal?"""

import contextlib
import difflib
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diag_lib.errors import UserError
from diag_lib.evidence import STEPS, RunFolder, mappings

if TYPE_CHECKING:
    from diag_lib.settings import Settings
    from diag_lib.statistics import Auc


def parse_steps(text: str | None) -> tuple[str, ...]:
    """`"01,03-05"`, `"audit,teacher"` or `"teacher-baseline"` to step names in running order; None is all."""
    if text is None:
        return STEPS
    chosen: set[int] = set()
    for part in (part.strip() for part in text.split(",")):
        first, dash, last = part.partition("-")
        start = _step_number(first, text)
        end = _step_number(last, text) if dash else start
        if end < start:
            raise UserError(f"--steps {text!r}: {part} runs backwards; write {last}-{first}")
        chosen.update(range(start, end + 1))
    return tuple(STEPS[number] for number in sorted(chosen))


def _step_number(text: str, whole: str) -> int:
    name = text.strip().lower()
    number, _, rest = name.partition("_")  # 02_teacher, as the notebook is called
    if re.fullmatch(r"0?[0-6]", number) and rest in ("", STEPS[int(number)]):
        return int(number)
    if name in STEPS:
        return STEPS.index(name)
    listed = ", ".join(f"{index:02d} {step}" for index, step in enumerate(STEPS))
    raise UserError(
        f"--steps {whole!r}: no step {text!r}{suggestion(name, STEPS)}; steps: {listed}; a range: 03-05"
    )


def load_settings(config: str | None, preset: str | None, assignments: Sequence[str]) -> "Settings":
    """The settings of a command line.

    CONFIG, a preset or (with `--set dataset.root=...` alone) `base`; a preset beside CONFIG lays its
    training part over it; `--set` comes last.
    """
    from diag_lib.settings import load, parse_assignments, preset_names

    overrides = parse_assignments(assignments)
    if preset is not None and preset not in preset_names():
        near = suggestion(preset, preset_names())
        raise UserError(f"--preset {preset!r}: no such preset{near}; presets: {', '.join(preset_names())}")
    if config is None and preset is None and "dataset.root" not in overrides:
        load("base", overrides)  # a mistyped key is the likelier reason, and has a message of its own
        names = ", ".join(preset_names())
        raise UserError(
            f"name a settings file or a preset ({names}), e.g. diag run my.yaml, or --set dataset.root=FOLDER"
        )
    if config is not None and Path(config).is_dir() and config not in preset_names():
        raise UserError(f"{config}: is a folder; for the images in it: diag run --set dataset.root={config}")
    if config is None or preset is None:
        return load(config or preset or "base", overrides)
    return load(config, {**_training_overrides(preset), **overrides})


def default_out(settings: "Settings") -> Path:
    """`reports/<settings name>`."""
    return Path("reports") / settings.name


def named_out(out: Path | None) -> Path | None:
    """The run folder as given, `~` for the home folder.

    Raises `UserError` for a folder in which the command is at work (an empty name means the current one) and that is
    no run: dozens of files would be strewn among others.
    """
    if out is None:
        return None
    with contextlib.suppress(RuntimeError):  # no home, or no such user: then it is a name like any other
        out = out.expanduser()
    if Path.cwd().is_relative_to(out.resolve()) and not (out / "run.json").is_file():
        raise UserError(
            "--out is empty, the current folder or one above it, and holds no run; name a folder of its own"
        )
    return out


def named_run(run: Path) -> Path:
    """The folder of a run that is named by its path, or by the name it has below `reports`."""
    below = Path("reports") / run
    return below if not run.exists() and (below / "settings.yaml").is_file() else run


def _training_overrides(preset: str) -> dict[str, Any]:
    """The preset's training part as dotted keys: data and models stay those of CONFIG."""
    from diag_lib.plain_yaml import parse_yaml
    from diag_lib.settings import dotted

    text = (files("diag_lib") / "presets" / f"{preset}.yaml").read_text(encoding="utf-8")
    tree = parse_yaml(text, f"preset {preset}") or {}
    return dotted({"training": tree.get("training", {})})


def suggestion(name: str, known: Sequence[str]) -> str:
    """` (did you mean teacher?)` when one of the known names is near, else nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def usage_line(error: Exception) -> str | None:
    """One line for a mistake the option parser found, else None.

    The parser is click's or typer's own, depending on typer's version, so errors are told by their shape.
    """
    describe = getattr(error, "format_message", None)
    if describe is None:
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "diag"
    text = str(describe()).replace("Value error, ", "").rstrip(".")
    if type(error).__name__ == "NoSuchOption" and context:
        name = str(getattr(error, "option_name", ""))
        known = [option for parameter in context.command.params for option in parameter.opts]
        options = [option for option in known if option.startswith("-")]
        near = suggestion(name, options) or f"; options: {', '.join(options)}"
        text = f"{command} has no option {name}{near}"
    return text if "did you mean" in text.lower() else f"{text}; see {command} --help"


def one_line(text: str) -> str:
    """The text on one line; what a terminal would obey rather than show is spelled out."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(text.split()))


def verdict_lines(folder: RunFolder) -> Iterator[str]:
    """The verdict's summary and a line a cause, nothing where there is no verdict."""
    verdict = folder.read_json("verdict.json")
    if not isinstance(verdict, dict):
        return
    yield one_line(f"Verdict: {verdict.get('summary', '')}")
    for number, cause in enumerate(mappings(verdict, "causes"), 1):
        fix = cause.get("fix")
        told = fix.get("text", "") if isinstance(fix, dict) else ""
        yield "  " + one_line(f"{number}. {cause.get('id')} ({cause.get('status')}): {told}")


def finding_lines(
    folder: RunFolder, steps: Sequence[str], severities: Sequence[str] = ("error", "warning")
) -> Iterator[str]:
    """A line for each error and warning that these steps found, in the order of the severities."""
    found = [
        finding
        for step in steps
        for finding in mappings(folder.read_json(f"evidence/{step}.json"), "findings")
    ]
    for severity in severities:
        for finding in found:
            if finding.get("severity") == severity:
                yield one_line(f"{severity}: {finding.get('message', '')} ({finding.get('id')})")


def short(path: Path) -> str:
    """A path relative to the working directory where it lies inside."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def interval(auc: "Auc") -> str:
    """`0.843 [0.802, 0.877]`, or why there is none."""
    if not auc.defined:
        return "undefined (the scores are constant or not finite, or a class is missing)"
    return f"{auc.value:.3f} [{auc.ci[0]:.3f}, {auc.ci[1]:.3f}]"


def complete_steps(incomplete: str) -> list[str]:
    """Step names for the shell's completion."""
    return [name for name in STEPS if name.startswith(incomplete)]


def complete_presets(incomplete: str) -> list[str]:
    """Preset names for the shell's completion."""
    from diag_lib.settings import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


def complete_arms(incomplete: str) -> list[str]:
    """Arm ids for the shell's completion."""
    from diag_lib.training import ARMS

    return [name for name in ARMS if name.startswith(incomplete)]


def complete_config(incomplete: str) -> list[str]:
    """Presets, and the YAML files and folders below what is typed, for the shell's completion."""
    folder, slash, start = incomplete.rpartition("/")
    place = Path(folder or slash or ".").expanduser()
    try:
        entries = sorted(place.iterdir())
    except OSError:
        entries = []
    shown = [
        f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in entries
        if entry.name.startswith(start)
        and not (entry.name.startswith(".") and not start)
        and (entry.is_dir() or entry.suffix in (".yaml", ".yml"))
    ]
    return [*complete_presets(incomplete), *shown]


def complete_keys(incomplete: str) -> list[str]:
    """Settings keys with their `=`, for the shell's completion of `--set`."""
    from diag_lib.settings import Settings, dotted

    return [f"{key}=" for key in dotted(Settings().to_dict()) if key.startswith(incomplete)]


def complete_faults(incomplete: str) -> list[str]:
    """Ids of the faults that can be injected, for the shell's completion."""
    from diag_lib.faults import FAULTS, VARIANTS

    return [name for name in (*FAULTS, *VARIANTS) if name.startswith(incomplete)]
