"""What a name may be: embedded, a path, a hub id; and what loading says."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from tagsteer.errors import TagsteerError
from tagsteer.sae import loading
from tagsteer.sae.formats.files import open_arrays, pick
from tagsteer.sae.formats.sites import Site, layer_in_path, read_site
from tagsteer.sae.loading import load_sae
from tagsteer.sae.sae import SAE
from tests.sae import layouts, layouts_linear
from tests.sae.layouts import D_MODEL, D_SAE, saelens, weights


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Two shipped SAEs of a made-up model."""
    root = tmp_path / "saes"
    for n, name in enumerate(["layer-12-l0-16", "layer-22-l0-64"]):
        w = {
            k: torch.from_numpy(v) for k, v in weights(n).items() if k in ("W_enc", "W_dec", "b_enc", "b_dec")
        }
        SAE("relu", **w, layer=int(name[6:8]), card={"l0": float(name[-2:])}).save(root / "some-model" / name)
    (root / "index.toml").write_text('["some-model"]\ndefault = "layer-22-l0-64"\n')
    monkeypatch.setattr(loading, "_assets", lambda: root)
    return root


@pytest.mark.usefixtures("shipped")
def test_embedded_names():
    assert load_sae("some-model", device="cpu").layer == 22
    assert load_sae("some-model/layer-12-l0-16", device="cpu").card["l0"] == 16
    assert loading.embedded_saes() == {"some-model": ["layer-22-l0-64", "layer-12-l0-16"]}
    with pytest.raises(TagsteerError, match="layer-12-l0-16"):
        load_sae("some-model/layer-12-l0-61", device="cpu")


def test_the_package_names_its_default():
    assert "smollm2-135m-instruct" in loading.embedded_saes()


def test_files_and_folders_and_what_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO, "tagsteer.sae")
    case = layouts.gemma_scope(tmp_path)
    assert (
        load_sae(case.path.parent, device="cpu").layer == load_sae(str(case.path), device="cpu").layer == 20
    )
    assert "jumprelu SAE, d_model 12, d_sae 40, resid_post of layer 20" in caplog.text
    assert "format Gemma Scope" in caplog.text
    assert load_sae(case.path, device="cpu").card == {
        "format": "Gemma Scope",
        "model": "google/gemma-2-2b",
        "l0": 71.0,
    }


def test_the_layer_is_asked_for_when_nobody_says_it(tmp_path, caplog):
    np.savez(
        tmp_path / "x.npz", **{k: weights()[k] for k in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
    )
    assert load_sae(tmp_path / "x.npz", device="cpu").layer is None
    assert "pass layer=" in caplog.text
    assert load_sae(tmp_path / "x.npz", layer=9, device="cpu").layer == 9


def test_another_site_than_the_residual_stream_encodes_but_has_no_layer(tmp_path, caplog):
    case = saelens(tmp_path, "standard", metadata={})
    config = (tmp_path / "cfg.json").read_text().replace("blocks.7.hook_resid_post", "blocks.7.hook_mlp_out")
    (tmp_path / "cfg.json").write_text(config)
    sae = load_sae(case.path, device="cpu")
    assert (sae.hook, sae.layer) == ("blocks.7.hook_mlp_out", None)
    assert "not the residual stream" in caplog.text
    with pytest.raises(TagsteerError, match="residual stream"):
        load_sae(case.path, layer=7, device="cpu")


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("blocks.12.hook_resid_post", Site(layer=12)),
        ("blocks.12.hook_resid_pre", Site(layer=11)),
        ("blocks.0.hook_resid_pre", Site("blocks.0.hook_resid_pre")),
        ("model.layers.12.output", Site(layer=12)),
        ("model.layers.12", Site(layer=12)),
        ("layers.12", Site(layer=12)),
        ("transformer.h.3", Site(layer=3)),
        ("gpt_neox.layers.3", Site(layer=3)),
        ("resid_post_layer_8", Site(layer=8)),
        ("layers.5.mlp", Site("layers.5.mlp")),
        ("blocks.7.attn.hook_z", Site("blocks.7.attn.hook_z")),
        (None, Site(assumed=True)),
    ],
)
def test_sites(name, site):
    assert read_site(name) == site


def test_layers_in_paths():
    assert layer_in_path(("a", "layer_20", "width_16k")) == 20
    assert layer_in_path(("layer_10_width_262k_l0_small",)) == 10
    assert layer_in_path(("player_20", "layers")) is None


def test_a_factor_that_the_files_do_not_say(tmp_path):
    """input_scale stands in for SAELens' missing norm factor."""
    known = saelens(
        tmp_path / "known", "jumprelu", normalize_activations="expected_average_only_in", scaler=0.37
    )
    silent = saelens(tmp_path / "silent", "jumprelu", normalize_activations="expected_average_only_in")
    x = torch.from_numpy(layouts.residuals())
    got = load_sae(silent.path, input_scale=0.37, device="cpu", dtype="float64").encode(x)
    torch.testing.assert_close(got, torch.from_numpy(known.encode(x.numpy())))


def test_converter(tmp_path):
    np.savez(tmp_path / "odd.npz", enc=weights()["W_enc"], dec=weights()["W_dec"])

    def convert(path):
        with np.load(path) as file:
            enc, dec = torch.from_numpy(file["enc"]), torch.from_numpy(file["dec"])
        return SAE("relu", enc, torch.zeros(D_SAE), dec, torch.zeros(D_MODEL))

    sae = load_sae(tmp_path / "odd.npz", converter=convert, features=[3, 1], layer=4, device="cpu")
    assert (sae.features.tolist(), sae.layer) == ([3, 1], 4)
    with pytest.raises(TagsteerError, match="dict"):
        load_sae(tmp_path / "odd.npz", converter=lambda _: {}, device="cpu")
    with pytest.raises(TagsteerError, match="local files"):
        load_sae("nowhere", converter=convert, device="cpu")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nonsense", "hub id"),
        ("./nowhere", "no SAE at"),
        ("/nowhere/at/all", "no SAE at"),
        ("saelens:release/id", "pip install"),
    ],
)
def test_names_of_nothing(name, words):
    pytest.importorskip("torch")
    if name.startswith("saelens:"):
        import importlib.util

        if importlib.util.find_spec("sae_lens"):
            pytest.skip("sae-lens is installed here")
    with pytest.raises(TagsteerError, match=words):
        load_sae(name, device="cpu")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"dtype": "int8"}, "int8"),
        ({"device": "abacus"}, "abacus"),
        ({"features": [D_SAE]}, "0 to 39"),
        ({"features": []}, "at least one"),
        ({"features": [2, 2]}, "once"),
    ],
)
def test_wrong_arguments(tmp_path, kwargs, words):
    case = layouts.gemma_scope(tmp_path)
    with pytest.raises(TagsteerError, match=words):
        load_sae(case.path, **{"device": "cpu"} | kwargs)


def test_stored_npz_is_mapped_not_read(tmp_path):
    """Columns come from a memory map of the archive itself, equal to what numpy reads."""
    case = layouts.gemma_scope(tmp_path)
    arrays = open_arrays(case.path)
    assert all(isinstance(arrays[n], np.memmap) for n in arrays)
    with np.load(case.path) as file:
        for n in arrays:
            np.testing.assert_array_equal(arrays[n], file[n])
        np.testing.assert_array_equal(
            pick(arrays["W_enc"], 1, np.array([3, 1])).numpy(), file["W_enc"][:, [3, 1]]
        )


def test_fortran_order_in_npz(tmp_path):
    a = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    np.savez(tmp_path / "f.npz", a=a)
    mapped = open_arrays(tmp_path / "f.npz")["a"]
    np.testing.assert_array_equal(mapped, a)
    np.testing.assert_array_equal(pick(mapped, 1, None).numpy(), a)
    np.testing.assert_array_equal(pick(mapped, 1, np.array([2, 0])).numpy(), a[:, [2, 0]])
    np.testing.assert_array_equal(pick(mapped, 0, np.array([1])).numpy(), a[[1]])


class _Hub:
    """A hub of one repository on disk."""

    def __init__(self, root, monkeypatch):
        import huggingface_hub

        self.root, self.asked = root, []
        monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_args, **_kwargs: self.names())
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def names(self):
        return sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file())

    def download(self, repo, revision=None, allow_patterns=None):
        self.asked = [repo, revision, sorted(allow_patterns or [])]
        return str(self.root)


def test_hub_folder_and_file(tmp_path, monkeypatch):
    case = layouts.gemma_scope(tmp_path)
    hub = _Hub(case.path.parents[3], monkeypatch)
    (hub.root / "layer_21").mkdir()
    (hub.root / "layer_21" / "params.npz").write_bytes(b"")
    place = "layer_20/width_16k/average_l0_71"
    for name in (
        f"google/gemma-scope-2b-pt-res/{place}/params.npz",
        f"google/gemma-scope-2b-pt-res@v2/{place}",
    ):
        sae = load_sae(name, device="cpu")
        assert (sae.layer, sae.source, sae.card["model"]) == (20, name, "google/gemma-2-2b")
        assert hub.asked == [
            "google/gemma-scope-2b-pt-res",
            "v2" if "@" in name else None,
            [f"{place}/params.npz"],
        ]
    with pytest.raises(TagsteerError, match="average_l0_71"):
        load_sae("google/gemma-scope-2b-pt-res/layer_20/width_65k", device="cpu")


def test_hub_takes_the_json_beside_the_weights(tmp_path, monkeypatch):
    layouts_linear.llama_scope(tmp_path / "L8R")
    hub = _Hub(tmp_path, monkeypatch)
    assert load_sae("fnlp/LXR-8x/L8R", device="cpu").layer == 8
    assert hub.asked[2] == ["L8R/checkpoints/final.safetensors", "L8R/hyperparams.json"]


def test_offline():
    with pytest.raises(TagsteerError, match="cannot be reached"):
        load_sae("google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz", device="cpu")


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    import huggingface_hub

    unreachable = type("ConnectError", (Exception,), {"__module__": "httpx"})

    def fails(*_args, **_kwargs):
        raise unreachable("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", fails)
    with pytest.raises(TagsteerError) as error:
        loading.load_sae("nowhere/repository/layer_1", device="cpu")
    assert "nowhere/repository" in str(error.value) and "\n" not in str(error.value)
