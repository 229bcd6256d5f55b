"""Real questions and real tags: with words as features, a tag's best feature should be its own word.

The words stand in for an autoencoder's features, so what the right answer is can be read off the names.
"""

from __future__ import annotations

import csv

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp

from tagsteer.label.matching import find_matches

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def cooking(shared):
    """Share of each question's words [docs, words], tags with 50 or more questions [docs, tags], both names."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.preprocessing import MultiLabelBinarizer

    with open(
        shared / "stackexchange" / "cooking_questions" / "cooking.csv", encoding="utf-8", newline=""
    ) as file:
        rows = list(csv.DictReader(file))
    binarizer, counter = MultiLabelBinarizer(sparse_output=True), CountVectorizer(min_df=3)
    tags = sp.csr_matrix(binarizer.fit_transform([row["tags"].split() for row in rows]))
    words = counter.fit_transform([f"{row['title']} {row['content']}" for row in rows]).astype(np.float32)
    words.data /= np.repeat(np.asarray(words.sum(1)).ravel(), np.diff(words.indptr))
    keep = np.asarray(tags.sum(0)).ravel() >= 50
    return words, tags[:, keep], counter.get_feature_names_out(), binarizer.classes_[keep]


def test_tags_find_their_own_words(cooking):
    words, tags, vocabulary, names = cooking
    assert tags.shape == (15_404, 161)
    matches = find_matches(words, tags, label_names=list(names), k=5, n_permutations=9)
    best = matches.table.group_by("label", maintain_order=True).first()
    own = [vocabulary[f][:4] == name[:4] for f, name in zip(best["feature"], best["label_name"], strict=True)]
    assert np.mean(own) > 0.75  # "barbecue" is found as "bbq", "cheese-making" as "rennet"
    # Chosen for being high, a score falls on other documents; a real match does not fall to nothing.
    drop = best["precision"].mean() - best["heldout_precision"].mean()
    assert 0.0 < drop < 0.15 and best["heldout_f1"].mean() > 0.15
    plain = find_matches(words, tags, prior=None, k=1, heldout=0, n_permutations=0).table
    sushi = plain.filter(pl.col("label") == list(names).index("sushi")).row(0, named=True)
    assert vocabulary[sushi["feature"]] == "sushi" and sushi["f1"] > 0.85


def test_shuffled_tags_find_nothing(cooking):
    words, tags, _, _ = cooking
    shuffled = tags[np.random.default_rng(5).permutation(tags.shape[0])]
    table = find_matches(words, shuffled, k=5, n_permutations=19, n_bootstrap=1).table
    found = table.filter(pl.col("q_value") <= 0.05)["label"].n_unique()
    assert found <= 0.1 * tags.shape[1]  # 5 % expected
    assert table["heldout_precision"].mean() < 0.05 < table["precision"].mean()
