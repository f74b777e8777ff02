"""`python -m docs.make_licences`: writes licences.md and constraints/highest.txt from the installed packages.

To be run in a `.venv` made anew, which holds the newest versions. Exits with 1, naming them, when a
dependency is missing, its licence is not known, or is none of those that an MIT-licensed package may require.
"""

import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).parent
PAGE, PYPROJECT = HERE / "licences.md", HERE.parent / "pyproject.toml"
HIGHEST = HERE.parent / "constraints" / "highest.txt"

NVIDIA = "LicenseRef-NVIDIA-Proprietary"
# Permissive, or (MPL) copyleft for their own files only: nothing in them reaches a package that merely imports them.
ALLOWED = frozenset(
    [
        "0BSD",
        "Apache-2.0",
        "BSD",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "CC0-1.0",
        "HPND",
        "ISC",
        "MIT",
        "MIT-0",
        "MIT-CMU",
        "MPL-2.0",
        "PSF-2.0",
        "Unlicense",
        "Zlib",
    ]
)
# What packages write instead of an SPDX identifier, in lower case. Plain "BSD" does not say how many clauses.
SPELLINGS = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache license": "Apache-2.0",
    "apache-2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "boost software license 1.0 (bsl-1.0)": "BSL-1.0",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd license": "BSD",
    "historical permission notice and disclaimer (hpnd)": "HPND",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "new bsd": "BSD-3-Clause",
    "new bsd license": "BSD-3-Clause",
    "nvidia proprietary software": NVIDIA,
    "other/proprietary license": NVIDIA,
    "psf": "PSF-2.0",
    "psfl": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "the unlicense (unlicense)": "Unlicense",
    "zlib/libpng license": "Zlib",
}
IDENTIFIERS = {name.lower(): name for name in (*ALLOWED, NVIDIA)}
NO_STATEMENT = {"", "unknown", "dual license"}
# Metadata without a licence; read in the package itself.
SILENT = {"cuda-toolkit": NVIDIA}  # an empty package whose requirements are NVIDIA's libraries


@dataclass(frozen=True)
class Package:
    """An installed dependency: its licence as an SPDX expression (None: not known), and what it is needed for."""

    name: str
    version: str
    licence: str | None
    needed_for: str  # core, or the first extra that brings it


def dependencies(
    groups: Mapping[str, Collection[str]], without: Collection[str] = ()
) -> tuple[list[Package], list[str]]:
    """What the requirements in `groups` (by name: core, extras) bring here, and the names that are not installed.

    Markers are those of this interpreter and system. Packages in `without` are left out, with what only they bring.
    """
    found: dict[str, Package] = {}
    missing: set[str] = set()
    seen: set[tuple[str, str]] = set()
    for group, requirements in groups.items():
        waiting = [Requirement(text) for text in requirements]
        while waiting:
            wanted = waiting.pop()
            name = canonicalize_name(wanted.name)
            new = {(name, extra) for extra in ("", *wanted.extras)} - seen
            if name in without or not new:
                continue
            seen |= new
            try:
                installed = distribution(wanted.name)
            except PackageNotFoundError:
                missing.add(name)
                continue
            found.setdefault(name, Package(name, installed.version, licence_of(installed), group))
            waiting += [part for _, extra in new for part in _requirements(installed, extra)]
    return sorted(found.values(), key=lambda package: package.name), sorted(missing)


def _requirements(installed: Distribution, extra: str) -> Iterator[Requirement]:
    """What `installed` requires on this system, with one of its extras (or none: an empty name)."""
    for requirement in map(Requirement, installed.requires or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def licence_of(installed: Distribution) -> str | None:
    """The licence that the metadata states as an SPDX expression, None if it states none that is known.

    An expression stands for itself. Otherwise the licence field and the classifiers must *both* hold, as they sometimes
    contradict each other.
    """
    metadata = installed.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    field = str(metadata.get("License") or "").strip()
    stated = [_known(line) for line in _statements(field)]
    stated += [
        _known(classifier)
        for classifier in metadata.get_all("Classifier") or ()
        if classifier.startswith("License ::") and classifier != "License :: OSI Approved"
    ]
    if not stated:
        return SILENT.get(canonicalize_name(installed.name))
    known = [licence for licence in stated if licence]
    if len(known) < len(stated):
        return None
    exact = {licence for licence in known if licence != "BSD"}
    vague = {"BSD"} if "BSD" in known and not any(licence.startswith("BSD-") for licence in exact) else set()
    return " AND ".join(sorted(exact | vague))


def _statements(field: str) -> list[str]:
    """The licence field as statements: none for a whole text, unless its title is a licence's name."""
    lines = field.splitlines()
    if field.lower() in NO_STATEMENT or (len(lines) > 1 and _known(lines[0]) is None):
        return []
    return lines[0].split(" AND ")


def _known(text: str) -> str | None:
    """The SPDX identifier of a licence that is written in one of the usual ways, also as a classifier."""
    lower = text.rsplit(" :: ", 1)[-1].strip().lower()
    return SPELLINGS.get(lower) or IDENTIFIERS.get(lower)


def is_allowed(expression: str, allowed: Collection[str] = ALLOWED) -> bool:
    """Whether an SPDX expression leaves a choice of licences that are all allowed.

    Where there are brackets, every licence named must be allowed: stricter than the expression, never laxer.
    """
    bracketed = "(" in expression
    text = expression.replace("(", "").replace(")", "")
    choices = [text.replace(" OR ", " AND ")] if bracketed else text.split(" OR ")
    # `X WITH exception` permits more than X alone.
    return any(
        all(part.split(" WITH ")[0].strip() in allowed for part in choice.split(" AND "))
        for choice in choices
    )


def problems(groups: Mapping[str, Collection[str]]) -> list[str]:
    """One line for each dependency that is missing, or whose licence is unknown or not allowed.

    NVIDIA's libraries are accepted where PyTorch, and nothing else, asks for them.
    """
    packages, missing = dependencies(groups)
    beside_torch = {package.name for package in dependencies(groups, without={"torch"})[0]}
    lines = [f"{name}: not installed, so its licence cannot be read" for name in missing]
    for package in packages:
        allowed = ALLOWED if package.name in beside_torch else ALLOWED | {NVIDIA}
        if package.licence is None:
            lines.append(f"{package.name} {package.version}: its metadata states no known licence")
        elif not is_allowed(package.licence, allowed):
            lines.append(
                f"{package.name} {package.version}: {package.licence} is not on the list of allowed licences"
            )
    return lines


def project_groups() -> dict[str, list[str]]:
    """This project's requirements: core, then each extra. Extras that only combine others add nothing of their own."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    named = {"core": project["dependencies"], **project["optional-dependencies"]}
    own = canonicalize_name(project["name"])
    return {
        group: [text for text in texts if canonicalize_name(Requirement(text).name) != own]
        for group, texts in named.items()
    }


HEAD = """# Licences of the dependencies

diag-lib is under the [MIT licence](../LICENSE) and ships none of these packages; pip fetches them. The page is made
from their installed metadata by `python -m docs.make_licences`, and a test fails when a dependency comes with a
licence that is unknown or not on the list: {allowed}.

*Needed for* is `core`, or the extra that brings the package; `dev` is for work on the project alone. The list is for
{system}, in the versions of [constraints/highest.txt](../constraints/highest.txt); other systems leave out what is only
for Linux and add a few packages of their own.
"""
NVIDIA_PART = """
## NVIDIA's libraries

PyTorch's default Linux build requires these. They are **not open source**: NVIDIA's licences (in the packages) allow
use, and passing them on only on NVIDIA's conditions, which whoever shares an environment or a container image that
holds them has to read and keep. Nothing but PyTorch needs them here, so its CPU-only build, as in
`make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu`, leaves all of them out.
"""
LIMITS = """
## What this does not tell

The metadata is its authors' word. Binary wheels carry libraries of others, with notices of their own in the wheel: for
instance GCC's runtime libraries, under GPL-3.0 with the runtime exception, in SciPy and scikit-learn.
MPL-2.0 asks that changes to the package's own files stay open; using it unchanged asks for nothing more.
"""


def page() -> str:
    """The whole page, from what is installed."""
    packages, _ = dependencies(project_groups())
    nvidia = [package for package in packages if package.licence and NVIDIA in package.licence]
    others = [package for package in packages if package not in nvidia]
    head = HEAD.format(allowed=", ".join(sorted(ALLOWED)), system=_system())
    parts = [head, _table(others)]
    if nvidia:
        parts += [NVIDIA_PART, _table(nvidia)]
    return "\n".join([*parts, LIMITS])


def _system() -> str:
    return f"Python {sys.version_info.major}.{sys.version_info.minor} on {sys.platform}"


def _table(packages: Collection[Package]) -> str:
    rows = [f"| {p.name} | {p.version} | {p.licence or 'unknown'} | {p.needed_for} |" for p in packages]
    return "\n".join(["| package | version | licence | needed for |", "|---|---|---|---|", *rows])


HIGHEST_HEAD = """# The newest versions of the direct dependencies that the tests pass with (Python 3.11, Linux).
# Written by `python -m docs.make_licences` in a .venv that was made anew.
"""


def highest() -> str:
    """The constraints file of the installed versions of what the project itself requires."""
    lines = {
        f"{Requirement(text).name}=={Version(distribution(Requirement(text).name).version).public}"
        for texts in project_groups().values()
        for text in texts
    }
    return HIGHEST_HEAD + "".join(f"{line}\n" for line in sorted(lines, key=str.lower))


def main() -> int:
    """Write both files; 1 when a licence is in the way."""
    found = problems(project_groups())
    for line in found:
        print(line, file=sys.stderr)
    if not found:
        PAGE.write_text(page(), encoding="utf-8")
        HIGHEST.write_text(highest(), encoding="utf-8")
        print(f"{PAGE}: {len(dependencies(project_groups())[0])} packages")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
