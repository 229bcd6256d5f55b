"""Activations and labels of any modality as a corpus without texts, and the matrix that scoring reads.

Images, proteins, board positions: whoever has activations of features per item and labels per item can name
features without a language model. Knows arrays and array files; must not know models, and never unpickles.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zipfile import BadZipFile

from tagsteer.corpus.labels import LabelBuilder
from tagsteer.corpus.store import Corpus
from tagsteer.corpus.texts import Texts
from tagsteer.errors import TagsteerError, one_of

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_matrix

log = logging.getLogger("tagsteer.corpus")

_BLOCK_VALUES = 1 << 24
_COORDINATES = ["row", "column", "value"]


class ArrayCorpus(NamedTuple):
    """A corpus (ids and labels, perhaps no texts) and `matrix`, csr float32 [n_docs, n_features]."""

    corpus: Corpus
    matrix: csr_matrix


class _Loaded(NamedTuple):
    values: Any
    columns: list[str] | None


def from_arrays(
    activations: Any,
    labels: Any,
    *,
    label_names: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    groups: Any = None,
    key: str | None = None,
    source: str | None = None,
) -> ArrayCorpus:
    """Bring activations and labels together, item by item.

    `activations`: an array or sparse matrix [n_docs, n_features], or the path of one (.npy, .npz of numpy or
    scipy, or .parquet: either one numeric column per feature, or the columns row, column, value of a sparse
    matrix; `key` names the array in an .npz of several). Without `groups` the values are taken as they are.
    With `groups`, the number of the item (0 ...) for every row, rows are positions (tokens, patches) and the
    matrix is the activation frequency: the share of the item's positions where the feature is above 0;
    [n_docs, n_positions, n_features] means the same with equal groups. `labels`: a 0/1 matrix [n_docs,
    n_labels] or its path, with `label_names` (the column names of a .parquet are names too), or a list of
    names per item. Values that are negative, NaN or infinite, labels other than 0 and 1, and lengths that do
    not fit are TagsteerErrors.
    """
    loaded = _load(activations, "activations", key)
    matrix = _frequencies(loaded.values, groups)
    names, label_matrix = _labels(labels, label_names)
    if label_matrix.shape[0] != matrix.shape[0]:
        raise TagsteerError(
            f"{matrix.shape[0]:,} items in activations {matrix.shape} but "
            f"{label_matrix.shape[0]:,} in labels {label_matrix.shape}: both need one row per item"
            + (", or pass groups=" if groups is None else "")
        )
    named = source or (str(activations) if isinstance(activations, str | Path) else "arrays in memory")
    identifiers = [str(i) for i in (range(matrix.shape[0]) if ids is None else ids)]
    corpus = Corpus(
        () if texts is None else Texts.of(texts),
        Texts.of(identifiers),
        names,
        label_matrix,
        f"{named} ({matrix.shape[1]:,} features)",
    )
    return ArrayCorpus(corpus, matrix)


def _frequencies(values: Any, groups: Any) -> csr_matrix:
    """The matrix [n_docs, n_features], from items as they are or from positions counted per item."""
    import numpy as np
    from scipy.sparse import csr_matrix

    if getattr(values, "ndim", 0) == 3:
        if groups is not None:
            raise TagsteerError(
                "groups= goes with activations [n_positions, n_features], not with three dimensions"
            )
        groups = np.repeat(np.arange(values.shape[0]), values.shape[1])
        values = values.reshape(-1, values.shape[2])
    sparse = _sparse(values, "activations")
    if groups is None:
        return sparse
    items = np.asarray(groups)
    if items.shape != (sparse.shape[0],) or not np.issubdtype(items.dtype, np.integer) or (items < 0).any():
        raise TagsteerError(
            f"groups of type {items.dtype} and shape {items.shape}: wanted the item's number, from 0, "
            f"for each of the {sparse.shape[0]:,} rows of activations"
        )
    counts = np.bincount(items)
    if not counts.all():
        raise TagsteerError(
            f"groups: item {int(np.flatnonzero(counts == 0)[0])} has no row; number items from 0 on"
        )
    fires = csr_matrix((np.ones(sparse.nnz, np.float32), sparse.indices, sparse.indptr), shape=sparse.shape)
    ones = np.ones(len(items), np.float32)
    member = csr_matrix((ones, (items, np.arange(len(items)))), shape=(len(counts), len(items)))
    fired = (member @ fires).tocsr()
    fired.data /= np.repeat(counts, np.diff(fired.indptr)).astype(np.float32)
    fired.sort_indices()
    return fired


def _labels(labels: Any, label_names: Sequence[str] | None) -> tuple[tuple[str, ...], csr_matrix]:
    """Names and the uint8 matrix, from lists of names or from a 0/1 matrix."""
    import numpy as np

    if (
        isinstance(labels, list | tuple)
        and labels
        and not isinstance(labels[0], int | float | list | np.ndarray)
    ):
        labels = list(map(_one_item, labels))
    if isinstance(labels, list) and any(isinstance(name, str) for item in labels for name in item):
        if label_names is not None:
            raise TagsteerError("label_names= goes with a 0/1 matrix; lists of names name themselves")
        builder = LabelBuilder()
        for item in labels:
            builder.append(item)
        return builder.finish()
    loaded = _load(labels, "labels", None)
    names = label_names if label_names is not None else loaded.columns
    if names is None:
        raise TagsteerError("labels came as a matrix without names: pass label_names=[...], one per column")
    matrix = _sparse(loaded.values, "labels")
    if (matrix.data != 1).any():
        odd = matrix.data[matrix.data != 1][0]
        raise TagsteerError(f"labels hold {odd:g}: wanted 0 or 1, whether the item has the label")
    if len(names) != matrix.shape[1]:
        raise TagsteerError(
            f"{len(names)} label names for {matrix.shape[1]} columns of labels: pass one per column"
        )
    return tuple(map(str, names)), matrix.astype(np.uint8)


def _one_item(item: Any) -> Any:
    if isinstance(item, str):
        raise TagsteerError(f"labels={item!r}...: wanted a list of names for every item, like [{item!r}]")
    return list(item) if isinstance(item, set | frozenset | tuple) else item


def _load(source: Any, what: str, key: str | None) -> _Loaded:
    """An array in memory as it is, or the array of a file."""
    import numpy as np

    if not isinstance(source, str | Path):
        if hasattr(source, "detach"):  # a torch tensor, without importing torch
            source = source.detach().cpu().float().numpy()
        if hasattr(source, "tocsr") or isinstance(source, np.ndarray):
            return _Loaded(source, None)
        try:
            return _Loaded(np.asarray(source), None)
        except ValueError as error:
            raise TagsteerError(f"{what}: rows of unequal length ({error}); wanted a matrix") from error
    path = Path(source).expanduser()
    if not path.is_file():
        raise TagsteerError(f"no such file: {path}; {what} may be .npy, .npz or .parquet")
    try:
        if path.suffix == ".npy":
            return _Loaded(np.load(path, mmap_mode="r", allow_pickle=False), None)
        if path.suffix == ".npz":
            return _Loaded(_npz(path, key), None)
        if path.suffix in (".parquet", ".pq"):
            return _parquet(path)
    except TagsteerError:
        raise
    except (ValueError, OSError, EOFError, KeyError, BadZipFile) as error:
        raise TagsteerError(f"{path} cannot be read as {what}: {error}") from error
    raise TagsteerError(f"{path} ends in {path.suffix!r}: {what} may be .npy, .npz or .parquet")


def _npz(path: Path, key: str | None) -> Any:
    import numpy as np
    from scipy.sparse import load_npz

    # Opened here: numpy leaves a damaged file open.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        if {"format", "shape", "data"} <= set(archive.files) and key is None:
            stream.seek(0)
            return load_npz(stream)
        if key is None and len(archive.files) != 1:
            raise TagsteerError(f"{path} holds {', '.join(archive.files)}: say key=, which of them")
        if key is not None and key not in archive.files:
            raise one_of(key, list(archive.files), f"array of {path}")
        return archive[key if key is not None else archive.files[0]]


def _parquet(path: Path) -> _Loaded:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from scipy.sparse import coo_matrix

    try:
        table = pq.read_table(path, memory_map=True)
    except pa.ArrowException as error:
        raise ValueError(str(error).splitlines()[0]) from error
    names = table.column_names
    for name in names:
        kind = table.schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise TagsteerError(
                f"column {name!r} of {path} is {kind}: wanted numbers only; drop it, or pass ids="
            )
    columns = [table.column(name).to_numpy() for name in names]
    if names == _COORDINATES:
        row, column, value = columns
        return _Loaded(coo_matrix((value, (row, column))), None)
    dense = np.empty((table.num_rows, len(names)), dtype=np.float32)
    for i, values in enumerate(columns):
        dense[:, i] = values
    return _Loaded(dense, names)


def _sparse(values: Any, what: str) -> csr_matrix:
    """csr float32 of a checked matrix; a dense one is read by blocks, so that a mapped file stays on disk."""
    import numpy as np
    from scipy.sparse import csr_matrix, vstack

    if hasattr(values, "tocsr"):
        matrix = csr_matrix(values.tocsr(), copy=True)
        matrix.sum_duplicates()
        _check(matrix.data, what)
        matrix = matrix.astype(np.float32)
        matrix.eliminate_zeros()
        return matrix
    if getattr(values, "ndim", 0) != 2 or values.dtype.kind not in "buif":
        shape, kind = getattr(values, "shape", ()), getattr(values, "dtype", type(values).__name__)
        raise TagsteerError(f"{what} of type {kind} and shape {shape}: wanted numbers in rows and columns")
    rows = max(1, _BLOCK_VALUES // max(1, values.shape[1]))
    blocks = []
    for start in range(0, values.shape[0], rows):
        block = np.asarray(values[start : start + rows])
        _check(block, what)
        blocks.append(csr_matrix(block.astype(np.float32)))
    return vstack(blocks, format="csr") if blocks else csr_matrix(values.shape, dtype=np.float32)


def _check(block: np.ndarray, what: str) -> None:
    import numpy as np

    if block.dtype.kind == "f" and not np.isfinite(block).all():
        raise TagsteerError(f"{what} hold NaN or infinite values: drop or fill those items first")
    if block.dtype.kind in "if" and block.size and block.min() < 0:
        raise TagsteerError(
            f"{what} hold {block.min():g}: a feature fires above 0, so negative values have no meaning here; "
            "rectify them (np.maximum(x, 0)) or split positive and negative parts"
        )
