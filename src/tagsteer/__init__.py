"""Name the features of sparse autoencoders from tagged documents, steer language models with them, and measure it.

Public names are loaded when first used, so that `import tagsteer` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Corpus": "tagsteer.corpus.store",
    "SAE": "tagsteer.sae.sae",
    "Steerer": "tagsteer.steer.steerer",
    "TagsteerError": "tagsteer.errors",
    "calibrated_f1": "tagsteer.label.calibration",
    "extract_frequencies": "tagsteer.label.frequencies",
    "load_model": "tagsteer.lm.model",
    "load_sae": "tagsteer.sae.loading",
    "output_scores": "tagsteer.label.output_score",
    "overall_score": "tagsteer.evaluate.scores",
    "parse_rating": "tagsteer.judge.rubric",
    "sample_instructions": "tagsteer.evaluate.protocols",
    "score_features": "tagsteer.label.scoring",
    "select_pairs": "tagsteer.label.selection",
}

__all__ = [
    "SAE",
    "Corpus",
    "Steerer",
    "TagsteerError",
    "calibrated_f1",
    "extract_frequencies",
    "load_model",
    "load_sae",
    "output_scores",
    "overall_score",
    "parse_rating",
    "sample_instructions",
    "score_features",
    "select_pairs",
]

if TYPE_CHECKING:
    from tagsteer.corpus.store import Corpus
    from tagsteer.errors import TagsteerError
    from tagsteer.evaluate.protocols import sample_instructions
    from tagsteer.evaluate.scores import overall_score
    from tagsteer.judge.rubric import parse_rating
    from tagsteer.label.calibration import calibrated_f1
    from tagsteer.label.frequencies import extract_frequencies
    from tagsteer.label.output_score import output_scores
    from tagsteer.label.scoring import score_features
    from tagsteer.label.selection import select_pairs
    from tagsteer.lm.model import load_model
    from tagsteer.sae.loading import load_sae
    from tagsteer.sae.sae import SAE
    from tagsteer.steer.steerer import Steerer


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tagsteer' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
