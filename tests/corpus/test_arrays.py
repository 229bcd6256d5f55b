"""Activations of any modality: every way in leads to the same matrix, and wrong values are refused."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import coo_matrix, csc_matrix, csr_matrix, save_npz

from tagsteer.corpus.arrays import from_arrays
from tagsteer.corpus.store import Corpus
from tagsteer.errors import TagsteerError

RNG = np.random.default_rng(0)
DENSE = np.where(RNG.random((6, 4)) < 0.5, RNG.random((6, 4)), 0).astype(np.float32)
LABELS = np.array([[1, 0], [1, 1], [0, 1], [0, 0], [1, 0], [0, 1]])
NAMES = ["cat", "dog"]


def files(folder: Path) -> dict[str, Any]:
    np.save(folder / "a.npy", DENSE)
    np.savez(folder / "one.npz", DENSE)
    np.savez(folder / "two.npz", first=DENSE, second=LABELS)
    save_npz(folder / "sparse.npz", csr_matrix(DENSE))
    pq.write_table(pa.table({f"f{i}": DENSE[:, i] for i in range(4)}), folder / "wide.parquet")
    coo = coo_matrix(DENSE)
    pq.write_table(pa.table({"row": coo.row, "column": coo.col, "value": coo.data}), folder / "long.parquet")
    return {
        "array": DENSE,
        "list": DENSE.tolist(),
        "csr": csr_matrix(DENSE),
        "csc": csc_matrix(DENSE),
        "npy": folder / "a.npy",
        "npz": str(folder / "one.npz"),
        "sparse npz": folder / "sparse.npz",
        "parquet": folder / "wide.parquet",
        "coordinates": folder / "long.parquet",
    }


def test_every_way_in_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tagsteer.corpus.arrays._BLOCK_VALUES", 8)  # two rows at a time
    for name, source in files(tmp_path).items():
        corpus, matrix = from_arrays(source, LABELS, label_names=NAMES)
        assert isinstance(matrix, csr_matrix), name
        assert matrix.dtype == np.float32
        np.testing.assert_array_equal(matrix.toarray(), DENSE, err_msg=name)
        np.testing.assert_array_equal(corpus.label_matrix.toarray(), LABELS)
        assert corpus.label_names == ("cat", "dog")
        assert not corpus.has_texts
        assert list(corpus.ids) == list("012345")
    again = from_arrays(tmp_path / "two.npz", LABELS, label_names=NAMES, key="first").matrix
    np.testing.assert_array_equal(again.toarray(), DENSE)


def test_labels_may_be_names_or_files(tmp_path: Path) -> None:
    lists = [["cat"], ["dog", "cat"], ["dog"], [], ["cat"], ["dog"]]
    np.save(tmp_path / "labels.npy", LABELS.astype(bool))
    pq.write_table(pa.table({"cat": LABELS[:, 0], "dog": LABELS[:, 1] > 0}), tmp_path / "labels.parquet")
    ways = [
        from_arrays(DENSE, lists),
        from_arrays(DENSE, tuple(map(tuple, lists))),
        from_arrays(DENSE, list(map(set, lists))),
        from_arrays(DENSE, LABELS.tolist(), label_names=NAMES),
        from_arrays(DENSE, csc_matrix(LABELS), label_names=NAMES),
        from_arrays(DENSE, tmp_path / "labels.npy", label_names=NAMES),
        Corpus.from_arrays(DENSE, tmp_path / "labels.parquet", texts=list("abcdef"), ids=list("uvwxyz")),
    ]
    for corpus, _ in ways:
        assert corpus.label_names == ("cat", "dog")
        np.testing.assert_array_equal(corpus.label_matrix.toarray(), LABELS)
    assert list(ways[-1].corpus.texts) == list("abcdef")
    assert list(ways[-1].corpus.ids) == list("uvwxyz")


def test_positions_become_frequencies() -> None:
    positions = np.where(RNG.random((3, 5, 7)) < 0.4, RNG.random((3, 5, 7)), 0)
    expected = (positions > 0).mean(axis=1)
    labels = [["x"], ["y"], ["x"]]
    np.testing.assert_allclose(from_arrays(positions, labels).matrix.toarray(), expected, rtol=1e-6)
    order = RNG.permutation(15)
    groups = np.repeat(np.arange(3), 5)[order]
    flat = positions.reshape(15, 7)[order]
    for values in (flat, csr_matrix(flat)):
        np.testing.assert_allclose(
            from_arrays(values, labels, groups=groups).matrix.toarray(), expected, rtol=1e-6
        )
    uneven = from_arrays(np.array([[1.0], [0.0], [2.0], [0.0]]), [["x"], ["y"]], groups=[0, 1, 0, 1])
    assert uneven.matrix.toarray().tolist() == [[1.0], [0.0]]


def test_torch_tensors_are_taken(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    corpus, matrix = from_arrays(torch.tensor(DENSE, dtype=torch.bfloat16), LABELS, label_names=NAMES)
    np.testing.assert_allclose(matrix.toarray(), DENSE, rtol=1e-2)
    corpus.save(tmp_path)
    assert Corpus.load(tmp_path).label_names == ("cat", "dog")


def bad(**changes: Any) -> dict[str, Any]:
    return {"activations": DENSE, "labels": LABELS, "label_names": NAMES} | changes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (bad(activations=np.full((6, 2), np.nan)), "NaN"),
        (bad(activations=csr_matrix(np.full((6, 2), np.inf))), "infinite"),
        (bad(activations=-DENSE), "negative"),
        (bad(activations=DENSE[:5]), "5 items in activations .* but 6 in labels"),
        (bad(activations=np.zeros(6)), "shape \\(6,\\)"),
        (bad(activations=np.array([["a"]])), "wanted numbers"),
        (bad(activations=[[1], [1, 2]]), "unequal length"),
        (bad(labels=LABELS * 2), "labels hold 2"),
        (bad(labels=["cat", "dog"]), "list of names for every item"),
        (bad(label_names=None), "pass label_names"),
        (bad(label_names=["cat"]), "1 label names for 2 columns"),
        (bad(label_names=["cat", "cat"]), "used twice"),
        (bad(labels=[["cat"]] * 6), "name themselves"),
        (bad(groups=[0, 1, 2]), "groups of type"),
        (bad(groups=[0, 0, 0, 2, 2, 2]), "item 1 has no row"),
        (bad(groups=[0.5] * 6), "groups of type float64"),
        (bad(activations=np.zeros((2, 3, 4)), groups=[0]), "three dimensions"),
        (bad(activations="gone.npy"), "no such file"),
    ],
)
def test_wrong_values_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TagsteerError, match=message):
        from_arrays(**arguments)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    files(tmp_path)
    with pytest.raises(TagsteerError, match="first, second: say key="):
        from_arrays(tmp_path / "two.npz", LABELS, label_names=NAMES)
    with pytest.raises(TagsteerError, match="did you mean first"):
        from_arrays(tmp_path / "two.npz", LABELS, label_names=NAMES, key="frist")
    pq.write_table(pa.table({"id": list("abc"), "f": [1, 2, 3]}), tmp_path / "text.parquet")
    with pytest.raises(TagsteerError, match=r"column 'id' .* numbers only"):
        from_arrays(tmp_path / "text.parquet", LABELS, label_names=NAMES)
    for name in ("a.npy", "one.npz", "wide.parquet"):
        (tmp_path / name).write_bytes(b"junk" * 20)
        with pytest.raises(TagsteerError, match="cannot be read"):
            from_arrays(tmp_path / name, LABELS, label_names=NAMES)
    (tmp_path / "a.txt").touch()
    with pytest.raises(TagsteerError, match=r"ends in '\.txt'"):
        from_arrays(tmp_path / "a.txt", LABELS, label_names=NAMES)


class Trap:
    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('unpickled')",))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Trap()))
    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap()], dtype=object), allow_pickle=True)
    (tmp_path / "object.npy").write_bytes(buffer.getvalue())
    np.savez(tmp_path / "object.npz", np.array([Trap()], dtype=object))
    for name in ("raw.npy", "object.npy", "object.npz"):
        with pytest.raises(TagsteerError, match="cannot be read"):
            from_arrays(tmp_path / name, LABELS, label_names=NAMES)
