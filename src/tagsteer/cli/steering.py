"""Commands for a quick look at steering: generate, chat."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tagsteer.cli import app, terminal
from tagsteer.errors import TagsteerError, one_of

if TYPE_CHECKING:
    from tagsteer.cli.known import Choice, Known
    from tagsteer.steer.steerer import Steerer

_MODEL = typer.Option(None, help="Embedded name, hub id or folder; default: the run's.")
_SAE = typer.Option(None, help="Embedded name, hub id with file, folder or file; default: the run's.")
_RUN = typer.Option(
    None, "--run", help="Run folder that labels and max activations are read from; default: runs/demo."
)
_FEATURE = typer.Option(None, help="Feature to steer, by its number.")
_LABEL = typer.Option(None, help="Label to steer, as a run has named it.")
_LAYER = typer.Option(None, help="Layer, where the SAE's file does not say it.")
_STRENGTH = typer.Option(
    None, help="Multiple of the feature's max activation; default: the run's choice, else 1."
)
_ABSOLUTE = typer.Option(False, "--absolute", help="The strength is an activation, not a multiple.")
_TOKENS = typer.Option(128, min=1, help="Longest answer.")
_TEMPERATURE = typer.Option(None, min=0.0, help="0 is greedy; default: the run's, else 1.")


@app.command()
def generate(
    prompt: str = typer.Argument(..., help="What to ask the model; - reads it from the standard input."),
    feature: int | None = _FEATURE,
    label: str | None = _LABEL,
    strength: float | None = _STRENGTH,
    absolute: bool = _ABSOLUTE,
    run: Path | None = _RUN,
    model: str | None = _MODEL,
    sae: str | None = _SAE,
    layer: int | None = _LAYER,
    max_new_tokens: int = _TOKENS,
    temperature: float | None = _TEMPERATURE,
    seed: int = typer.Option(0),
) -> None:
    """Answer a prompt while a feature, or the feature of a label, is steered."""
    from tagsteer.cli.known import Known

    if prompt == "-":
        prompt = sys.stdin.read().strip()
    known = Known(run, model, sae, layer)
    choice = known.choose(feature, label, strength, absolute)
    steerer = load_steerer(known, choice)
    options = _sampling(known, temperature, max_new_tokens)
    try:
        for piece in _answer(steerer, prompt, choice, seed, options):
            print(_shown(piece), end="", flush=True)
    except KeyboardInterrupt:
        print()
        raise typer.Exit(130) from None
    print()


@app.command()
def chat(
    feature: int | None = _FEATURE,
    label: str | None = _LABEL,
    strength: float | None = _STRENGTH,
    absolute: bool = _ABSOLUTE,
    run: Path | None = _RUN,
    model: str | None = _MODEL,
    sae: str | None = _SAE,
    layer: int | None = _LAYER,
    max_new_tokens: int = _TOKENS,
    temperature: float | None = _TEMPERATURE,
    seed: int = typer.Option(0),
) -> None:
    """Talk to the steered model; /help lists what changes it. Ctrl-C ends an answer, /quit the conversation."""
    from tagsteer.cli.known import Known

    known = Known(run, model, sae, layer)
    choice = known.choose(feature, label, strength, absolute)
    steerer = load_steerer(known, choice)
    talk = Conversation(known, steerer, choice, seed, _sampling(known, temperature, max_new_tokens))
    interactive = sys.stdin.isatty()
    print(f"{talk.state()}. /help lists commands, /quit ends.")
    for line in _lines(interactive):
        if not talk.hear(line):
            return
        if not interactive and talk.stopped:
            raise typer.Exit(130)


def _lines(interactive: bool) -> Iterator[str]:
    """What is typed or piped in, line by line; ends with the input, and with Ctrl-C at the prompt."""
    if not interactive:
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="replace")
        yield from (line.strip() for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, with it input() knows arrow keys and earlier lines
    while True:
        try:
            yield input("\nyou> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            raise typer.Exit(130) from None


class Conversation:
    """Turns so far and how they are steered; `hear` takes a line and prints what comes of it."""

    def __init__(
        self, known: Known, steerer: Steerer, choice: Choice, seed: int, options: dict[str, Any]
    ) -> None:
        self.known, self.steerer, self.choice, self.seed, self.options = known, steerer, choice, seed, options
        self.turns: list[tuple[str, str]] = []
        self.active = True
        self.stopped = False
        """Whether the last answer was ended by Ctrl-C."""
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/label": (self._label, "NAME  steer another label, at its chosen strength"),
            "/feature": (self._feature, "NUMBER  steer another feature"),
            "/strength": (self._strength, "X  steer further or less"),
            "/off": (self._off, "  talk to the unsteered model"),
            "/on": (self._on, "  steer again"),
            "/reset": (self._reset, "  forget the conversation"),
            "/help": (self._help, "  this list"),
        }

    def state(self) -> str:
        return str(self.choice) if self.active else "unsteered"

    def hear(self, line: str) -> bool:
        """Answer a line or obey a command; False ends the conversation."""
        word, _, rest = line.partition(" ")
        self.stopped = False
        try:
            if word == "/quit":
                return False
            if line.startswith("/"):
                if word not in self._commands:
                    raise one_of(word, [*self._commands, "/quit"], "command")
                self._commands[word][0](rest.strip())
                print(self.state())
            elif line:
                self._say(line)
        except TagsteerError as error:
            print(f"tagsteer: {error}")
        return True

    def _say(self, line: str) -> None:
        turns = [*self.turns, ("user", line)]
        answer = ""
        choice = self.choice if self.active else None
        try:
            for piece in _answer(self.steerer, turns, choice, self.seed + len(turns), self.options):
                print(_shown(piece), end="", flush=True)
                answer += piece
        except KeyboardInterrupt:
            print(" [stopped]", end="")
            self.stopped = True
        print()
        # Only whole exchanges are kept: templates refuse a question that follows a question.
        if answer:
            self.turns = [*turns, ("assistant", answer)]

    def _label(self, rest: str) -> None:
        self.choice, self.active = self.known.choose(None, rest, None, False), True

    def _feature(self, rest: str) -> None:
        if not rest.isdecimal():
            raise TagsteerError(f"/feature {rest}: give the number of a feature")
        import dataclasses

        choice = dataclasses.replace(self.choice, feature=int(rest), label=None)
        self.steerer.sae.row(choice.feature)
        self.known.check(choice)
        self.choice, self.active = choice, True

    def _strength(self, rest: str) -> None:
        import math

        try:
            value = float(rest)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise TagsteerError(f"/strength {rest}: give a number")
        self.choice, self.active = self.known.with_strength(self.choice, value), True

    def _off(self, _: str) -> None:
        self.active = False

    def _on(self, _: str) -> None:
        self.active = True

    def _reset(self, _: str) -> None:
        self.turns = []

    def _help(self, _: str) -> None:
        for name, (_command, what) in self._commands.items():
            print(f"{name} {what}")
        print("/quit   end")


def _answer(
    steerer: Steerer, prompt: Any, choice: Choice | None, seed: int, options: dict[str, Any]
) -> Iterator[str]:
    """Pieces of an answer."""
    if choice is None:
        return steerer.stream(prompt, None, seed=seed, **options)
    steering = {choice.feature: choice.strength}
    return steerer.stream(prompt, steering, unit=choice.unit, kind=choice.kind, seed=seed, **options)


def _sampling(known: Known, temperature: float | None, max_new_tokens: int) -> dict[str, Any]:
    """Sampling as in the run, so that texts are like those its strengths were chosen on."""
    steer = None if known.config is None else known.config.steer
    if temperature is None:
        temperature = 1.0 if steer is None else steer.temperature
    top_k = None if steer is None else steer.top_k
    return {"temperature": temperature, "top_k": top_k, "max_new_tokens": max_new_tokens}


def load_steerer(known: Known, choice: Choice) -> Steerer:
    """The model and SAE, with the max activations that the choice needs."""
    from tagsteer.lm.model import load_model
    from tagsteer.sae.loading import load_sae
    from tagsteer.steer.steerer import Steerer

    with terminal(decisions=False):
        m, s = known.model, known.sae
        model = load_model(m.name, m.device, m.dtype, m.device_map)
        layer = None if s.layer is None else model.layer_index(s.layer)
        sae = load_sae(s.name, layer=layer, device=str(model.device))
        sae.row(choice.feature)
        maxima = known.maxima if choice.unit == "max_activation" else {}
        return Steerer(model, sae, maxima, layer=layer)


def _shown(text: str) -> str:
    """Text of a model as a terminal may have it: its control characters do nothing there."""
    if not sys.stdout.isatty():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
