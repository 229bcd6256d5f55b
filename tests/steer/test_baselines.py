"""Each baseline behind the one interface: keys, pairs, real export files, a misbehaving server, planted directions."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import polars as pl
import pytest
import scipy.sparse
import torch

from tagsteer.errors import TagsteerError
from tagsteer.lm.hooks import residuals_at
from tagsteer.steer.baselines.difference_of_means import (
    Direction,
    difference_of_means,
    fit_directions,
    steering_vectors,
)
from tagsteer.steer.baselines.methods import Pair, Settings, feature_pairs, unique_items
from tagsteer.steer.baselines.neuronpedia import (
    NamedFeature,
    NeuronpediaAPI,
    np_random,
    random_from_api,
    read_labels,
)
from tagsteer.steer.baselines.plain_f1 import plain_f1
from tagsteer.steer.baselines.prompt_steering import prompt_steering
from tagsteer.steer.baselines.random_features import random_features
from tagsteer.steer.baselines.unsteered import unsteered
from tagsteer.steer.generate import Engine
from tagsteer.steer.instructions import load_instructions
from tagsteer.steer.interventions import NOTHING, addition, clamp
from tagsteer.steer.prompting import SteeringPrompts, prompt_ids
from tests.steer.helpers import LAYER, small_sae, texts

INSTRUCTIONS = load_instructions().sample(3)


@pytest.fixture
def settings(tiny_llama):
    return Settings(model=tiny_llama, max_activations=np.arange(24.0), max_new_tokens=4)


def test_our_pairs_give_one_item_per_strength_and_instruction(settings):
    method = feature_pairs("sae", [Pair("fish", 4), Pair("cake", 5)], settings, "calibrated F1")
    cells = list(method.cells([0.5, 2], INSTRUCTIONS))
    assert len(cells) == 2 * 3 * 2
    assert cells[0].item.intervention == clamp({4: 2.0}) and cells[-1].item.intervention == clamp({5: 10.0})
    assert cells[0].item.key == ("sae", "fish", 4, 0.5, INSTRUCTIONS[0].id)
    assert cells[0].item.prompt_ids == prompt_ids(settings.model, INSTRUCTIONS[0].text)
    assert len(unique_items(cells)) == 12 and len(unique_items(cells, done=[cells[3].item.key])) == 11
    found = texts(Engine(settings.model, small_sae(), batch_size=5), unique_items(cells))
    assert set(found) == {cell.item.key for cell in cells}
    by_pair = list(
        method.cells([1], lambda pair: INSTRUCTIONS[:1] if pair.label == "fish" else INSTRUCTIONS[1:])
    )
    assert [(c.pair.label, c.instruction.id) for c in by_pair] == [
        ("fish", INSTRUCTIONS[0].id),
        *(("cake", i.id) for i in INSTRUCTIONS[1:]),
    ]
    with pytest.raises(TagsteerError, match="max activation of feature 0 is 0"):
        list(feature_pairs("sae", [Pair("x", 0)], settings, "").cells([1], INSTRUCTIONS))


def test_unsteered_texts_are_shared_by_all_labels(settings):
    method = unsteered(["fish", "cake", "fish"], settings)
    cells = list(method.cells([0.5, 2], INSTRUCTIONS))
    assert len(cells) == 2 * 3 and len(unique_items(cells)) == 3
    assert all(c.item.intervention == NOTHING and c.strength is None for c in cells)


def test_prompt_steering_asks_before_the_instruction(settings):
    method = prompt_steering(["fish"], settings, SteeringPrompts())
    cell = next(method.cells([1], INSTRUCTIONS))
    said = settings.model.tokenizer.decode(cell.item.prompt_ids)
    assert "'fish', even if it is unrelated" in said
    assert f"makes little sense there.\n\nQuestion: {INSTRUCTIONS[0].text}" in said
    assert "no LLM asked" in method.provenance and cell.item.intervention == NOTHING


def test_random_features_belong_to_the_label_and_the_seed(settings):
    one = random_features(["a", "b", "c"], range(1000), settings, taken=[7])
    assert [p.feature for p in random_features(["a"], range(1000), settings, taken=[7]).pairs] == [
        one.pairs[0].feature
    ]
    assert one.pairs != random_features(["a", "b", "c"], range(1000), settings, taken=[7], seed=1).pairs
    full = random_features(list("abcdefgh"), range(10), settings, taken=[3, 7])
    assert sorted(p.feature for p in full.pairs) == [0, 1, 2, 4, 5, 6, 8, 9]
    with pytest.raises(TagsteerError, match="8 labels but only 2 features"):
        random_features(list("abcdefgh"), [1, 2], settings)


def test_plain_f1_takes_the_best_feature_and_leaves_gaps_open(settings):
    rows = [
        ("a", 3, 0.5),
        ("a", 2, 0.5),
        ("a", 1, 0.4),
        ("b", 9, float("nan")),
        ("b", 8, 0.1),
        ("c", 1, None),
    ]
    table = pl.DataFrame(rows, schema=["label", "feature", "f1"], orient="row")
    method = plain_f1(["b", "a", "c"], table, settings)
    assert method.pairs == (Pair("b", 8), Pair("a", 2)) and "1 labels without one" in method.provenance
    assert plain_f1(["a"], [dict(zip(("label", "feature", "f1"), rows[0], strict=True))], settings).pairs == (
        Pair("a", 3),
    )


@pytest.mark.shared
def test_real_axbench_metadata_is_read(shared, settings):
    named = read_labels(shared / "axbench" / "concept500" / "prod_2b_l20_v1" / "metadata.jsonl")
    first = json.loads(
        (shared / "axbench" / "concept500" / "prod_2b_l20_v1" / "metadata.jsonl").read_text().splitlines()[0]
    )
    assert len(named) == 500 and named[0].label == first["concept"].strip()
    assert first["ref"].endswith(f"/{named[0].feature}")
    method = np_random(named, settings, n=100)
    assert len(set(method.pairs)) == 100 and method.pairs == np_random(reversed(named), settings, n=100).pairs
    with pytest.raises(TagsteerError, match="has 500"):
        np_random(named, settings, n=501)


def test_neuronpedia_exports_are_read_first_label_first(tmp_path):
    rows = [
        {"modelId": "m", "layer": "20-res", "index": "7", "description": " fish "},
        {"modelId": "m", "layer": "20-res", "index": "7", "description": "water"},
        {"modelId": "m", "layer": "20-res", "index": 9, "description": "cake"},
    ]
    wanted = [NamedFeature(7, "fish"), NamedFeature(9, "cake")]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert all(read_labels(path) == wanted for path in tmp_path.iterdir())
    for content, words in [
        ('[{"index": "x", "description": "d"}]', "entry 0"),
        ("[]", "no labelled"),
        ("{", "not valid JSON"),
    ]:
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(TagsteerError, match=words):
            read_labels(tmp_path / "a.json")
    with pytest.raises(TagsteerError, match="cannot read"):
        read_labels(tmp_path / "none.json")


@pytest.fixture
def server(monkeypatch):
    """Answers features as Neuronpedia does; odd numbers have no label, 500 fails, 501 is not JSON."""
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            index = int(self.path.rsplit("/", 1)[1])
            asked.append((self.path, self.headers.get("X-Api-Key")))
            explanations = [] if index % 2 else [{"description": f"label {index}"}, {"description": "second"}]
            body = json.dumps(
                {"explanations": explanations, "activations": [{"maxValue": index / 2}], "huge": "x" * 10_000}
            )
            self.send_response({500: 500, 403: 403}.get(index, 200))
            self.end_headers()
            self.wfile.write(b"<html>" if index == 501 else body.encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("NEURONPEDIA_API_KEY", "secret")
        yield f"http://127.0.0.1:{http.server_port}", asked
        http.shutdown()
        thread.join()


def test_the_api_is_asked_once_per_feature_and_the_key_is_not_kept(server, tmp_path):
    url, asked = server
    api = NeuronpediaAPI("gemma-2-2b", "20-res", tmp_path, url=url, pause=0)
    assert api.feature(8) == api.feature(8) == NamedFeature(8, "label 8", 4.0)
    assert asked == [("/gemma-2-2b/20-res/8", "secret")]
    assert api.feature(0) == NamedFeature(0, "label 0", None) and api.feature(3) is None
    found = random_from_api(api, range(40), n=5)
    assert len({f.feature for f in found}) == 5 and found == random_from_api(api, range(40), n=5)
    assert len(asked) == len(set(asked))
    stored = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert "secret" not in stored and len(stored) < 5000
    for index, words in [(500, "answered 500"), (501, "gave no answer"), (403, "set NEURONPEDIA_API_KEY")]:
        for _ in range(2):  # refusals are not cached
            with pytest.raises(TagsteerError, match=words):
                api.feature(index)
    assert sum(path.endswith("/500") for path, _ in asked) == 2
    with pytest.raises(TagsteerError, match="only 0 of 3"):
        random_from_api(api, [1, 3, 5], n=1)
    with pytest.raises(TagsteerError, match="no part of a Neuronpedia address"):
        NeuronpediaAPI("../etc", "x", tmp_path)


def test_difference_of_means_is_a_unit_vector_and_is_added(settings):
    v = difference_of_means(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.0]))
    torch.testing.assert_close(v, torch.tensor([0.6, 0.8]))
    for bad in (torch.zeros(2), torch.tensor([float("nan"), 0.0])):
        with pytest.raises(TagsteerError, match="two different, finite means"):
            difference_of_means(bad, torch.zeros(2))
    wide = torch.ones(settings.model.d_model)
    method = steering_vectors({"fish": Direction(wide, 3.0), "cake": Direction(-wide)}, settings)
    item = method.item(method.pairs[0], 2.0, INSTRUCTIONS[0])
    assert item.intervention == addition({"mean:fish": 6.0})
    engine = Engine(settings.model, layer=LAYER, vectors=method.vectors)
    assert texts(engine, [item])[item.key].finish in ("eos", "length")
    with pytest.raises(TagsteerError, match="mean:cake is missing"):
        method.item(method.pairs[1], 2.0, INSTRUCTIONS[0])


def test_directions_equal_means_over_documents_one_by_one(tiny_llama):
    documents = ["fish swim", "a cake", "fish and cake", "nothing at all", "fishes", "cakes, cakes"]
    y = scipy.sparse.csr_matrix(np.array([[1, 0], [0, 1], [1, 1], [0, 0], [1, 0], [0, 1]], dtype=np.uint8))
    found = fit_directions(tiny_llama, LAYER, documents, y, {"fish": 0, "cake": 1}, tokens_per_batch=30)
    x = []
    for text in documents:
        ids = torch.tensor([tiny_llama.encode(text)])
        x.append(residuals_at(tiny_llama, [LAYER], ids, torch.ones_like(ids))[0][0, 1:])  # without BOS
    means = torch.stack([d.mean(0) for d in x])
    for column, name in enumerate(("fish", "cake")):
        has = torch.tensor(y.toarray()[:, column] == 1)
        v = means[has].mean(0) - means[~has].mean(0)
        v = v / v.norm()
        torch.testing.assert_close(found[name].vector, v, rtol=1e-4, atol=1e-5)
        top = max(float((d @ v).max()) for d, h in zip(x, has, strict=True) if h)
        assert found[name].max_projection == pytest.approx(top, rel=1e-4)
    with pytest.raises(TagsteerError, match="'fish' is on 3 of 3"):
        fit_directions(
            tiny_llama, LAYER, documents[:3], scipy.sparse.csr_matrix(np.ones((3, 1))), {"fish": 0}
        )
