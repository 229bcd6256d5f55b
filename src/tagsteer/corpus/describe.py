"""What a corpus holds, as a table: documents, labels, labels by support, and what was skipped and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tagsteer.corpus.store import Corpus

if TYPE_CHECKING:
    import polars as pl

THRESHOLDS = (1, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def describe(corpus: Corpus, thresholds: tuple[int, ...] = THRESHOLDS) -> pl.DataFrame:
    """Rows of (section, item, count, detail), in the order in which a person reads them.

    Sections: documents, labels, support (labels with at least n documents, up to the first n that none has),
    frequent (the ten labels with most documents), skipped (reason, count and the first places).
    """
    import numpy as np
    import polars as pl

    support = corpus.support
    per_document = np.diff(corpus.label_matrix.indptr)
    rows: list[tuple[str, str, int, str]] = [("documents", "documents", len(corpus), corpus.source)]
    if corpus.has_texts:
        lengths = np.fromiter(map(len, corpus.texts), dtype=np.int64, count=len(corpus))
        median, longest = int(np.median(lengths)), int(lengths.max())
        rows.append(
            ("documents", "characters", int(lengths.sum()), f"median {median:,}, longest {longest:,}")
        )
    if unlabelled := int((per_document == 0).sum()):
        rows.append(("documents", "documents without a label", unlabelled, ""))
    mean = per_document.mean()
    rows.append(("labels", "labels", len(corpus.label_names), f"{mean:.2f} per document"))
    for n in thresholds:
        count = int((support >= n).sum())
        rows.append(("support", f"labels with {n:,} or more documents", count, ""))
        if not count:
            break
    for i in np.argsort(-support, kind="stable")[:10]:
        rows.append(("frequent", corpus.label_names[i], int(support[i]), ""))
    for reason, count, examples in corpus.skipped:
        rows.append(("skipped", reason, count, "; ".join(examples)))
    schema = {"section": pl.String, "item": pl.String, "count": pl.Int64, "detail": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")
