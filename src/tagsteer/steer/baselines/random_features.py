"""Random features under the same labels: how far does steering with anything at all go?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from tagsteer.errors import TagsteerError
from tagsteer.steer.baselines.methods import Method, Pair, Settings, feature_pairs


def random_features(
    labels: Iterable[str],
    candidates: Sequence[int],
    settings: Settings,
    *,
    seed: int = 0,
    taken: Iterable[int] = (),
) -> Method:
    """One random feature of `candidates` (those that fire at all) for each label, none of those `taken`, no two alike.

    A label's feature depends on the label, the seed and the candidates, not on the other labels, unless it is
    already given away: then the next in the label's own order. Raises TagsteerError when candidates run out.
    """
    labels = list(dict.fromkeys(labels))
    used = {int(feature) for feature in taken}
    pool = sorted({int(feature) for feature in candidates} - used)
    if len(pool) < len(labels):
        raise TagsteerError(
            f"{len(labels)} labels but only {len(pool)} features to draw from: give more candidates"
        )
    pairs, given = [], set()
    for label in labels:
        order = (_draw(label, seed, attempt) % len(pool) for attempt in range(1_000_000))
        feature = next(pool[row] for row in order if pool[row] not in given)
        given.add(feature)
        pairs.append(Pair(label, feature))
    return feature_pairs("random", pairs, settings, f"random features of {len(pool):,}, seed {seed}")


def _draw(label: str, seed: int, attempt: int) -> int:
    digest = hashlib.blake2b(f"{seed}\0{attempt}\0{label}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
