"""The command line: thin commands over the library, one-line errors (exit 2), progress on stderr.

Heavy imports happen inside commands, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from tagsteer.errors import TagsteerError

app = typer.Typer(
    name="tagsteer",
    help="Name SAE features from tagged documents, steer language models with them, and measure the steering.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _root(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error (may stand anywhere)."),
) -> None:
    del debug  # taken out of the arguments by `main`


def main(arguments: list[str] | None = None) -> None:
    """Run a command; users' mistakes end in one line and exit status 2, an interrupt in 130."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        status = app(words, standalone_mode=False)
    except TagsteerError as error:
        if debug:
            raise
        print(f"tagsteer: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        print("\ntagsteer: interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if debug:
            raise
        print(
            f"tagsteer: {error.strerror or error}{f': {error.filename}' if error.filename else ''}",
            file=sys.stderr,
        )
        sys.exit(2)
    except Exception as error:
        # Wrong words on the command line: click's and typer's own exceptions know how to show themselves.
        if not hasattr(error, "exit_code") or not hasattr(error, "show"):
            raise
        error.show()
        sys.exit(error.exit_code)
    sys.exit(status if isinstance(status, int) else 0)


@contextmanager
def terminal(decisions: bool = True) -> Iterator[None]:
    """Progress bars, and each decision with its reason as a dim line, both on stderr."""
    from rich.console import Console
    from rich.text import Text

    from tagsteer.progress import show_progress

    console = Console(stderr=True)

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            style = "dim" if record.levelno < logging.WARNING else "yellow"
            console.print(Text(record.getMessage(), style=style), soft_wrap=True)

    logger, handler = logging.getLogger("tagsteer"), Lines()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if decisions else logging.WARNING)
    try:
        with show_progress(console):
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


# Each module adds its commands to `app`.
from tagsteer.cli import judging, runs, steering, tools  # noqa: E402, F401

# In the help, stages stand in their order.
_ORDER = ("demo", "run", "show", "corpus", "extract", "score", "select", "steer", "judge", "evaluate", "report",
          "generate", "chat", "train-sae", "train-judge", "doctor")  # fmt: skip
app.registered_commands.sort(key=lambda c: _ORDER.index(c.name or c.callback.__name__))  # type: ignore[union-attr]
