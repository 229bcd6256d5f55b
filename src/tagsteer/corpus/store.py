"""The corpus: documents, their labels as a sparse 0/1 matrix, where they came from and what was left out.

Saved as Parquet and npz, never pickled. Knows nothing of dumps, tables or models: each source has its own
file, and the `from_*` methods only point to it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from tagsteer.corpus.labels import Skipped
from tagsteer.corpus.texts import Texts
from tagsteer.errors import TagsteerError

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_matrix

    from tagsteer.corpus.arrays import ArrayCorpus

__all__ = ["Corpus", "Skipped"]

_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Corpus:
    """n_docs documents and the labels that people gave them.

    `label_matrix` is [n_docs, n_labels], uint8, 1 where the document has the label; `label_names` go with its
    columns and are unique. `texts` is empty (and `has_texts` false) for activations that came without text.
    Parts that don't fit together are a TagsteerError.
    """

    texts: Sequence[str]
    ids: Sequence[str]
    label_names: tuple[str, ...]
    label_matrix: csr_matrix
    source: str
    skipped: Skipped = field(default_factory=Skipped)

    def __post_init__(self) -> None:
        n_docs, n_labels = self.label_matrix.shape
        if not n_docs:
            raise TagsteerError(f"{self.source}: no usable document{_reasons(self.skipped)}")
        texts, ids, names = len(self.texts), len(self.ids), len(self.label_names)
        if ids != n_docs or texts not in (0, n_docs) or names != n_labels:
            raise TagsteerError(
                f"{self.source}: {texts} texts, {ids} ids and {names} label names do not fit a label matrix "
                f"of {n_docs} documents × {n_labels} labels"
            )
        if len(set(self.label_names)) != n_labels:
            twice = next(name for name in self.label_names if self.label_names.count(name) > 1)
            raise TagsteerError(f"{self.source}: label name {twice!r} is used twice: rename one of them")

    @classmethod
    def from_stackexchange(cls, path: str | Path, **options: Any) -> Corpus:
        """A Stack Exchange dump (.7z, folder or Posts.xml): see `tagsteer.corpus.stackexchange`."""
        from tagsteer.corpus.stackexchange import from_stackexchange

        return from_stackexchange(path, **options)

    @classmethod
    def from_table(cls, path: str | Path, text: str | Sequence[str], labels: str, **options: Any) -> Corpus:
        """CSV, JSONL or Parquet with text columns and a label column: see `tagsteer.corpus.tables`."""
        from tagsteer.corpus.tables import from_table

        return from_table(path, text, labels, **options)

    @classmethod
    def from_wordnet(cls, path: str | Path | None = None) -> Corpus:
        """The 82,115 nouns of WordNet 3.0, labelled by their hypernyms: see `tagsteer.corpus.wordnet`."""
        from tagsteer.corpus.wordnet import from_wordnet

        return from_wordnet(path)

    @classmethod
    def from_arrays(cls, activations: Any, labels: Any, **options: Any) -> ArrayCorpus:
        """Activations and labels of any modality; returns (corpus, matrix): see `tagsteer.corpus.arrays`."""
        from tagsteer.corpus.arrays import from_arrays

        return from_arrays(activations, labels, **options)

    def __len__(self) -> int:
        return self.label_matrix.shape[0]

    def __repr__(self) -> str:
        return f"Corpus({len(self):,} documents, {len(self.label_names):,} labels, from {self.source})"

    @property
    def has_texts(self) -> bool:
        """Whether there are texts to read; activations of other modalities come without."""
        return len(self.texts) > 0

    @property
    def support(self) -> np.ndarray:
        """Number of documents of every label, int64 [n_labels]."""
        import numpy as np

        return np.bincount(self.label_matrix.indices, minlength=len(self.label_names)).astype(np.int64)

    def label_index(self, name: str) -> int:
        """Column of a label; an unknown name is an error that names its neighbours."""
        from tagsteer.errors import one_of

        try:
            return self.label_names.index(name)
        except ValueError:
            raise one_of(name, list(self.label_names), "label") from None

    def with_min_support(self, n: int) -> Corpus:
        """The same documents with the labels that n or more of them have; an error when none is left."""
        import numpy as np

        support = self.support
        keep = np.flatnonzero(support >= n)
        if not len(keep):
            top = (
                f"{support.max()} ({self.label_names[int(support.argmax())]})"
                if len(support)
                else "none at all"
            )
            raise TagsteerError(
                f"no label has {n} or more of the {len(self):,} documents of {self.source}: "
                f"the largest support is {top}; ask for less or bring more documents"
            )
        return self.with_labels(keep)

    def with_labels(self, columns: Sequence[int] | np.ndarray) -> Corpus:
        """The same documents with only the labels in those columns, in that order."""
        names = tuple(self.label_names[int(i)] for i in columns)
        return replace(self, label_names=names, label_matrix=self.label_matrix[:, columns].tocsr())

    def subset(self, doc_indices: Sequence[int] | np.ndarray) -> Corpus:
        """The documents at those positions, in that order; labels keep their columns."""
        import numpy as np

        wanted = np.asarray(doc_indices)
        if wanted.dtype == bool or wanted.ndim != 1 or not np.issubdtype(wanted.dtype, np.integer):
            raise TagsteerError(
                f"document indices are {wanted.dtype} of shape {wanted.shape}: pass one list of positions"
            )
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise TagsteerError(
                f"document {wanted.max()} of {len(self)}: positions go from 0 to {len(self) - 1}"
            )

        def pick(strings: Sequence[str]) -> Sequence[str]:
            if isinstance(strings, Texts):
                return strings.take(wanted)
            return [strings[i] for i in wanted] if len(strings) else strings

        return replace(
            self, texts=pick(self.texts), ids=pick(self.ids), label_matrix=self.label_matrix[wanted].tocsr()
        )

    def sample(self, n: int, seed: int) -> Corpus:
        """n documents drawn without replacement, in their old order; the same seed draws the same."""
        import numpy as np

        if not 0 < n <= len(self):
            raise TagsteerError(f"cannot sample {n} of {len(self):,} documents: ask for 1 to {len(self):,}")
        return self.subset(np.sort(np.random.default_rng(seed).choice(len(self), size=n, replace=False)))

    def save(self, folder: str | Path) -> None:
        """Write documents.parquet (id, text), label_matrix.npz, labels.parquet (label, name, support),
        corpus.json.

        corpus.json comes last: a folder that has it is complete.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq
        from scipy.sparse import save_npz

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        (target / "corpus.json").unlink(missing_ok=True)
        names = pa.array(self.label_names, pa.large_string())
        labels = pa.table(
            {"label": np.arange(len(names), dtype=np.int32), "name": names, "support": self.support}
        )
        _put(target / "documents.parquet", self._write_documents)
        _put(target / "labels.parquet", lambda path: pq.write_table(labels, path))
        _put(target / "label_matrix.npz", lambda path: save_npz(path, self.label_matrix))
        about = {
            "format": _FORMAT,
            "source": self.source,
            "documents": len(self),
            "labels": len(self.label_names),
            "has_texts": self.has_texts,
            "skipped": {
                "counts": dict(self.skipped.counts),
                "examples": {reason: list(places) for reason, places in self.skipped.examples.items()},
            },
        }
        text = json.dumps(about, indent=1, ensure_ascii=False)
        _put(target / "corpus.json", lambda path: path.write_text(text, "utf-8"))

    def _write_documents(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        string = pa.large_string()
        with pq.ParquetWriter(
            path, pa.schema([("id", string), ("text", string)]), compression="zstd"
        ) as writer:
            for start in range(0, len(self), 8192):
                rows = slice(start, start + 8192)
                ids = list(self.ids[rows])
                texts = list(self.texts[rows]) if self.has_texts else [None] * len(ids)
                writer.write_table(pa.table({"id": pa.array(ids, string), "text": pa.array(texts, string)}))

    @classmethod
    def load(cls, folder: str | Path) -> Corpus:
        """Read what `save` wrote; a folder without it, or with parts that don't fit, is an error."""
        import pyarrow as pa
        import pyarrow.parquet as pq
        from scipy.sparse import load_npz

        target = Path(folder)
        if not (target / "corpus.json").is_file():
            raise TagsteerError(
                f"{target} holds no corpus.json: run `tagsteer corpus` first, or name its folder"
            )
        try:
            about = json.loads((target / "corpus.json").read_text("utf-8"))
            documents = pq.read_table(target / "documents.parquet", memory_map=True)
            with (target / "label_matrix.npz").open("rb") as stream:
                matrix = load_npz(stream).tocsr()
            names = tuple(pq.read_table(target / "labels.parquet", columns=["name"]).column(0).to_pylist())
            skipped = Skipped(
                about["skipped"]["counts"],
                {reason: tuple(places) for reason, places in about["skipped"]["examples"].items()},
            )
            texts: Sequence[str] = Texts(documents.column("text")) if about["has_texts"] else ()
            return cls(texts, Texts(documents.column("id")), names, matrix, about["source"], skipped)
        except TagsteerError:
            raise
        except (OSError, ValueError, KeyError, TypeError, BadZipFile, pa.ArrowException) as error:
            raise TagsteerError(
                f"{target} is not a readable corpus ({error}): run `tagsteer corpus` again"
            ) from error


def _put(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the target and rename: a killed run leaves no half file under the final name."""
    partial = path.with_name("partial-" + path.name)
    write(partial)
    os.replace(partial, path)


def _reasons(skipped: Skipped) -> str:
    return f": {skipped.first()}" if skipped.total else ""
