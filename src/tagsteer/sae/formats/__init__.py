"""One file per SAE file format, each from files to the one SAE type. Nothing here knows models or text.

A format is a module with FORMAT, recognises(files) and load(files, request); the first that recognises the
contents reads them.
"""

from __future__ import annotations

import dataclasses

from tagsteer.errors import TagsteerError
from tagsteer.sae.formats import (
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    native,
    openmoss,
    saelens,
    sparsify,
)
from tagsteer.sae.formats.assemble import Request
from tagsteer.sae.formats.files import Files
from tagsteer.sae.sae import SAE

# From the most explicit marks to the fewest: Gemma Scope 1 has nothing but the names of its tensors.
FORMATS = (native, openmoss, saelens, sparsify, dictionary_learning, gemma_scope_2, gemma_scope)


def load(files: Files, request: Request) -> SAE:
    """Read the SAE with the format that its contents show; an unknown one is an error saying what was seen."""
    for form in FORMATS:
        if form.recognises(files):
            sae = form.load(files, request)
            # Our own files keep the card they were saved with, whose format is that of their origin.
            return (
                sae if form is native else dataclasses.replace(sae, card={"format": form.FORMAT} | sae.card)
            )
    configs = (
        ", ".join(f"{name} ({', '.join(list(c)[:6])})" for name, c in files.configs.items())
        or "no JSON beside it"
    )
    raise TagsteerError(
        f"{files.weights} is in no known format: it holds {', '.join(sorted(files.arrays)[:12])}, "
        f"with {configs}; "
        f"known are {', '.join(f.FORMAT for f in FORMATS)}; "
        "give load_sae(..., converter=function) for another"
    )
