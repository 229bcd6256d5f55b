"""Features with Neuronpedia's own labels, the paper's "NP random": from export files, AxBench's metadata or the API.

Knows these files and one web address; must not know the rest of steering. The API key comes from the environment
(NEURONPEDIA_API_KEY) and is never written; replies are cached on disk, refusals are not.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagsteer.errors import TagsteerError
from tagsteer.steer.baselines.methods import Method, Pair, Settings, feature_pairs

log = logging.getLogger("tagsteer.steer")

URL = "https://www.neuronpedia.org/api/feature"
KEY_VARIABLE = "NEURONPEDIA_API_KEY"


@dataclass(frozen=True, slots=True)
class NamedFeature:
    """A feature and the label Neuronpedia gives it; max_activation where the source says it."""

    feature: int
    label: str
    max_activation: float | None = None


def read_labels(path: str | Path) -> list[NamedFeature]:
    """Features with labels from a Neuronpedia export (.json, .jsonl, each also .gz) or an AxBench metadata.jsonl.

    Entries have `index` and `description` (export), or `ref` ending in the index and `concept` (AxBench). The first
    label of a feature counts, as in AxBench. Raises TagsteerError naming the first entry that has neither.
    """
    path = Path(path).expanduser()
    found: dict[int, NamedFeature] = {}
    for row, entry in enumerate(_entries(path)):
        named = _named(entry) if isinstance(entry, dict) else None
        if named is None:
            raise TagsteerError(
                f"entry {row} of {path} is {str(entry)[:80]!r}: wanted index and description (a Neuronpedia export), "
                "or ref and concept (AxBench's metadata.jsonl)"
            )
        found.setdefault(named.feature, named)
    if not found:
        raise TagsteerError(f"{path} holds no labelled feature")
    return list(found.values())


def _entries(path: Path) -> Iterator[Any]:
    opened = gzip.open if path.suffix == ".gz" else open
    whole = path.name.removesuffix(".gz").endswith(".json")
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            if whole:
                entries = json.load(lines)
                yield from entries if isinstance(entries, list) else [entries]
            else:
                yield from (json.loads(line) for line in lines if line.strip())
    except OSError as error:
        raise TagsteerError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise TagsteerError(f"{path} is not valid JSON: {error}") from error


def _named(entry: dict[str, Any]) -> NamedFeature | None:
    """One entry of either kind; None if it is neither."""
    if "ref" in entry and "concept" in entry:
        index, label = str(entry["ref"]).rstrip("/").rsplit("/", 1)[-1], entry["concept"]
    else:
        index, label = str(entry.get("index", "")), entry.get("description")
    if not re.fullmatch(r"\d+", index) or not isinstance(label, str) or not label.strip():
        return None
    return NamedFeature(int(index), label.strip())


class NeuronpediaAPI:
    """Asks neuronpedia.org for features of one SAE, politely and only once each.

    model, source: as in the address of a feature's page, "gemma-2-2b" and "20-gemmascope-res-16k". cache: folder
    for replies. Raises TagsteerError with what the server said.
    """

    def __init__(
        self,
        model: str,
        source: str,
        cache: Path,
        *,
        url: str = URL,
        pause: float = 0.2,
        timeout: float = 30.0,
    ) -> None:
        for part in (model, source):
            if not re.fullmatch(r"[A-Za-z0-9._-]+", part):
                raise TagsteerError(
                    f"{part!r} is no part of a Neuronpedia address: wanted e.g. 'gemma-2-2b', '20-gemmascope-res-16k'"
                )
        self._address = f"{url}/{model}/{source}"
        self._folder = cache / model / source
        self._pause, self._timeout = pause, timeout

    def feature(self, index: int) -> NamedFeature | None:
        """The first label and the max activation of a feature; None where Neuronpedia has no label for it."""
        data = self._reply(int(index))
        labels = [e.get("description") for e in data.get("explanations") or []]
        label = next((text.strip() for text in labels if isinstance(text, str) and text.strip()), None)
        if label is None:
            return None
        top = next((a.get("maxValue") for a in data.get("activations") or []), data.get("maxActApprox"))
        positive = isinstance(top, int | float) and top > 0
        return NamedFeature(int(index), label, float(top) if positive else None)  # type: ignore[arg-type]

    def _reply(self, index: int) -> dict[str, Any]:
        stored = self._folder / f"{index}.json"
        if stored.exists():
            return json.loads(stored.read_text(encoding="utf-8"))
        request = urllib.request.Request(f"{self._address}/{index}", headers={"User-Agent": "tagsteer"})
        if key := os.environ.get(KEY_VARIABLE):
            request.add_unredirected_header("X-Api-Key", key)
        time.sleep(self._pause)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                data = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            hint = f"; set {KEY_VARIABLE}" if error.code in (401, 403) else ""
            raise TagsteerError(
                f"{self._address}/{index} answered {error.code} {error.reason}{hint}, or give an export file"
            ) from error
        except (OSError, ValueError) as error:
            raise TagsteerError(
                f"{self._address}/{index} gave no answer ({error}): give an export file instead"
            ) from error
        if not isinstance(data, dict):
            raise TagsteerError(
                f"{self._address}/{index} answered a {type(data).__name__}, wanted an object: is the address right?"
            )
        # Only what is used is kept: whole replies are megabytes of activations.
        kept = {
            "explanations": [{"description": e.get("description")} for e in data.get("explanations") or []],
            "activations": [{"maxValue": a.get("maxValue")} for a in (data.get("activations") or [])[:1]],
            "maxActApprox": data.get("maxActApprox"),
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = stored.with_name(f"{stored.name}.{os.getpid()}.tmp")
        fresh.write_text(json.dumps(kept), encoding="utf-8")
        os.replace(fresh, stored)
        return kept


def random_from_api(
    api: NeuronpediaAPI, candidates: Sequence[int], n: int = 100, seed: int = 0
) -> list[NamedFeature]:
    """n random features of `candidates` that have a label, asking for one after another."""
    import numpy as np

    found: list[NamedFeature] = []
    asked = 0
    for row in np.random.RandomState(seed).permutation(len(candidates)):
        if len(found) == n:
            break
        asked += 1
        named = api.feature(int(candidates[row]))
        if named is not None:
            found.append(named)
    if len(found) < n:
        raise TagsteerError(
            f"only {len(found)} of {asked} features have a label on Neuronpedia, {n} were wanted"
        )
    log.info("%d labelled features from Neuronpedia, %d asked for", n, asked)
    return found


def np_random(
    named: Iterable[NamedFeature],
    settings: Settings,
    *,
    n: int | None = 100,
    seed: int = 0,
    source: str = "Neuronpedia",
) -> Method:
    """The paper's baseline "NP random": n random features under Neuronpedia's labels (None: all that were given)."""
    import numpy as np

    known = sorted(named, key=lambda f: f.feature)
    if n is not None:
        if n > len(known):
            raise TagsteerError(
                f"{n} features with Neuronpedia's labels were asked for, {source} has {len(known)}"
            )
        known = [known[row] for row in np.random.RandomState(seed).permutation(len(known))[:n]]
    pairs = [Pair(f.label, f.feature) for f in known]
    return feature_pairs(
        "NP random", pairs, settings, f"{len(pairs)} random features with labels from {source}, seed {seed}"
    )
