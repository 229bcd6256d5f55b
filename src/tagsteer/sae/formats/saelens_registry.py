"""SAELens' registry: "saelens:release/sae_id", any SAE of its pretrained_saes.yaml. Needs the extra
`saelens`.

The registry says where the files are. Formats that tagsteer reads itself are read from those files, because
some of sae-lens' converters lose something (sparsify's decoder, Llama Scope's decoder norms); the rest goes
through sae-lens and its state dict.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

from tagsteer.errors import TagsteerError, one_of
from tagsteer.sae.formats import saelens
from tagsteer.sae.formats.assemble import Request
from tagsteer.sae.sae import SAE

FORMAT = "SAELens registry"
_OWN = ("sparsify", "gemma_2", "gemma_3", "llama_scope", "llama_scope_r1_distill", "dictionary_learning_1")


def load(name: str, request: Request) -> SAE:
    """The SAE of a release, with the registry's L0 and explained variance on its card."""
    directory = _directory()
    release, sae_id = _split(name, list(directory))
    entry = directory[release]
    if sae_id not in entry.saes_map:
        raise one_of(sae_id, list(entry.saes_map), f"SAE of the release {release}")
    if entry.conversion_func in _OWN:
        from tagsteer.sae.formats import load as load_files
        from tagsteer.sae.formats.files import open_files
        from tagsteer.sae.hub import fetch

        place = f"{entry.repo_id}/{entry.saes_map[sae_id]}"
        sae = load_files(open_files(fetch(place), place), request)
    else:
        sae = _through_saelens(release, sae_id, request)
    # 0 and 1 stand for "unknown" in the registry's tables.
    known = {
        "l0": entry.expected_l0.get(sae_id) or None,
        "explained_variance": entry.expected_var_explained.get(sae_id, 1.0) % 1.0 or None,
        "neuronpedia": entry.neuronpedia_id.get(sae_id),
        "model": entry.model,
    }
    card = sae.card | {k: v for k, v in known.items() if v is not None}
    return dataclasses.replace(sae, source=f"saelens:{release}/{sae_id}", card=card)


def from_object(peer: Any, source: str, request: Request) -> SAE:
    """A live `sae_lens.SAE`, by its config and state dict."""
    return saelens.from_state(peer.cfg.to_dict(), peer.state_dict(), source, request)


def _through_saelens(release: str, sae_id: str, request: Request) -> SAE:
    import sae_lens

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a missing norm factor is refused by from_state
        try:
            peer = sae_lens.SAE.from_pretrained(release, sae_id, device="cpu", dtype="float32")
        except (OSError, ValueError) as error:
            raise TagsteerError(
                f"sae-lens cannot load {release}/{sae_id}: {str(error).splitlines()[0]}"
            ) from error
    return from_object(peer, f"saelens:{release}/{sae_id}", request)


def _split(name: str, releases: list[str]) -> tuple[str, str]:
    """Release and id: the longest release that the name begins with, since both may contain slashes."""
    fitting = [r for r in releases if name.startswith(r + "/")]
    if not fitting:
        raise one_of(name.partition("/")[0], releases, "SAELens release")
    release = max(fitting, key=len)
    return release, name.removeprefix(release + "/")


def _directory() -> dict[str, Any]:
    try:
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
    except ImportError as error:
        raise TagsteerError(
            "names with 'saelens:' need its registry: pip install 'tagsteer[saelens]'"
        ) from error
    return get_pretrained_saes_directory()
