"""Coverage-guided fuzzing: `python tests/fuzz/run.py TARGET [libFuzzer options] [CORPUS]`. Needs atheris."""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["diag_lib", "PIL", "yaml"]):
    from targets import TARGETS, seeds


def main() -> None:
    """Put the seeds into the corpus when it is empty, then fuzz until libFuzzer's options say stop."""
    name, *options = sys.argv[1:]
    folder = Path(next((o for o in options if not o.startswith("-")), f"corpus-{name}"))
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        for number, data in enumerate(seeds()[name]):
            (folder / f"seed-{number}").write_bytes(data)
    flags = [option for option in options if option.startswith("-")]
    atheris.Setup([sys.argv[0], *flags, str(folder)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
