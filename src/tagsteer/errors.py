"""The one error that is meant for users: what was given, what was wanted, and the next step, in one line."""

from __future__ import annotations


class TagsteerError(ValueError):
    """A mistake in input, configuration or files; the command line prints it without a traceback (exit 2)."""


def one_of(value: object, choices: list[str], what: str) -> TagsteerError:
    """Error for a value outside a closed list, naming the nearest valid ones."""
    import difflib

    near = difflib.get_close_matches(str(value), choices, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(choices[:12])}"
    more = f" (and {len(choices) - 12} more)" if len(choices) > 12 and not near else ""
    return TagsteerError(f"unknown {what} {value!r}: {hint}{more}")
