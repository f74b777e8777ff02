"""What is wrong with a value, in one line that names the key and what is allowed?"""

import difflib
import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError


def explain(error: ValidationError) -> str:
    """The first problem of a validation error as one line naming the key and what is allowed."""
    first = error.errors()[0]
    place = [
        str(part)
        for part in first["loc"]
        if not str(part).startswith(("function-", "literal[", "constrained-"))
    ]
    key = ".".join(part for part in place if part not in {"str", "int", "is-instance[Path]"})
    value = first.get("input")
    context = first.get("ctx", {})
    match first["type"]:
        case "literal_error":
            options = re.findall(r"'([^']*)'", context["expected"])
            hint = suggestion(value, options) if isinstance(value, str) else ""
            return f"{key}: {show(value)} is not allowed{hint}; allowed: {', '.join(options)}"
        case "value_error":
            return f"{key}: {context['error']}" if key else str(context["error"])
        case kind if kind.endswith("_type"):
            expected = kind.removesuffix("_type")
            names = {
                "int": "a whole number",
                "float": "a number",
                "string": "text",
                "list": "a list",
                "bool": "true/false",
            }
            return f"{key}: {names.get(expected, expected)} is expected, found {kind_of(value)} {show(value)}"
    if first["type"] in {"too_short", "too_long"}:
        side, count = (
            ("at least", "min_length") if first["type"] == "too_short" else ("at most", "max_length")
        )
        return f"{key}: {show(value)} is not allowed; it must have {side} {context[count]} entries"
    return f"{key}: {show(value)} is not allowed; it must be {first['msg'].removeprefix('Input should be ')}"


def suggestion(value: Any, options: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(value), options, n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def kind_of(value: Any) -> str:
    kinds = {
        dict: "a mapping",
        list: "a list",
        str: "text",
        bool: "true/false",
        int: "a number",
        float: "a number",
    }
    return "nothing" if value is None else kinds.get(type(value), type(value).__name__)


def show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
