"""How numbers and hostile text are written on the page: nothing invisible stays invisible, missing is a dash.

Knows strings and numbers only. Escaping for HTML is jinja2's work, neutralising formulas that of tables.py.
"""

from __future__ import annotations

import math
import re
from typing import Any

MISSING = "\N{EN DASH}"

# Controls (all but newline and tab), bidirectional marks, invisible format characters, line separators, lone
# surrogates, tag characters and noncharacters. The joiners U+200C and U+200D stay: scripts and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\ud800-\udfff"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def visible(text: Any) -> str:
    """Text with every invisible or direction-changing character shown as ⟨U+XXXX⟩; newlines and tabs stay.

    >>> visible("a\\u202eb")
    'a⟨U+202E⟩b'
    """
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", str(text).replace("\r\n", "\n"))


def token(piece: Any) -> str:
    """A token by itself: blanks as ␣, newlines as ⏎, tabs as ⇥."""
    return visible(piece).replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅"


def one_line(text: Any, longest: int = 90) -> str:
    """Visible text on one line, cut with … where longer."""
    line = " ".join(visible(text).split())
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def known(value: Any) -> bool:
    """Whether there is a number to show: not None, not NaN."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def number(value: Any, digits: int = 2) -> str:
    """A number with fixed decimals; a dash for a missing one.

    >>> number(0.123), number(None), number(12)
    ('0.12', '–', '12')
    """
    if not known(value):
        return MISSING
    shown = f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"
    return shown.replace("-", "\N{MINUS SIGN}")


def small(value: Any) -> str:
    """A p-value, q-value or output score, of any size, with two significant digits.

    >>> small(0.00042), small(0.05), small(0.0)
    ('4.2e-4', '0.050', '0')
    """
    if not known(value):
        return MISSING
    if value == 0:
        return "0"
    if abs(value) >= 0.001:
        return f"{value:.3f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def strength(value: Any) -> str:
    """A strength without needless zeros.

    >>> strength(1.5), strength(2.0)
    ('1.5', '2')
    """
    return f"{value:g}" if known(value) else MISSING


def interval(low: Any, high: Any, digits: int = 2) -> str:
    """ "0.10 to 0.20"; empty where there is none."""
    return f"{number(low, digits)} to {number(high, digits)}" if known(low) and known(high) else ""


def plural(n: int, noun: str) -> str:
    """
    >>> plural(1, "pair"), plural(1200, "pair")
    ('1 pair', '1,200 pairs')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


METHODS = {
    "steered": "Steered",
    "unsteered": "Unsteered",
    "random": "Random feature",
    "prompt": "Prompt steering",
}


def method_name(method: str) -> str:
    """What the page calls a method."""
    return METHODS.get(method) or visible(method)
