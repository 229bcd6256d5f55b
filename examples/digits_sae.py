"""Name the features of a sparse autoencoder on pictures: no text and no language model anywhere.

    python examples/digits_sae.py

Trains a small TopK autoencoder on scikit-learn's 1,797 handwritten digits (8 × 8 pixels), takes each
picture as a "document" whose only position gives the activations, and labels the features with the digits
and two properties of their shape. Features and thresholds are found on 70 % of the pictures and measured on
the others; the labels are shuffled 99 times to tell how good chance is. The best features are drawn as what
they add to a picture.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from tagsteer.corpus.store import Corpus
from tagsteer.label.matching import find_matches

D_SAE, K, STEPS, BATCH = 128, 6, 1500, 256
SHADES = " .:-=+*#%@"


def train(pictures: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A TopK autoencoder: activations [n, D_SAE], decoder rows [D_SAE, 64], share of variance explained."""
    torch.manual_seed(seed)
    mean = pictures.mean(0)
    x_all = pictures - mean
    decoder = torch.nn.functional.normalize(torch.randn(D_SAE, x_all.shape[1]), dim=1).requires_grad_()
    encoder = decoder.detach().T.clone().requires_grad_()
    bias = torch.zeros(D_SAE, requires_grad=True)
    optimizer = torch.optim.Adam([decoder, encoder, bias], lr=2e-3)

    def encode(x: torch.Tensor) -> torch.Tensor:
        values, index = torch.relu(x @ encoder + bias).topk(K, dim=1)
        return torch.zeros(len(x), D_SAE).scatter(1, index, values)

    for _ in range(STEPS):
        x = x_all[torch.randint(len(x_all), (BATCH,))]
        loss = (x - encode(x) @ decoder).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True)
    with torch.no_grad():
        a = encode(x_all)
        explained = 1 - (x_all - a @ decoder).square().sum() / x_all.square().sum()
    return a, decoder.detach(), float(explained)


def drawing(row: np.ndarray) -> list[str]:
    """An 8 × 8 decoder row as eight lines; what it takes away is left blank."""
    level = np.clip(row / row.max(), 0, 0.999).reshape(8, 8)
    return ["".join(SHADES[int(v * len(SHADES))] * 2 for v in line) for line in level]


def main() -> None:
    digits = load_digits()
    pictures = torch.tensor(digits.data / 16, dtype=torch.float32)
    a, decoder, explained = train(pictures)
    print(f"autoencoder: {D_SAE} features, {K} active per picture, {explained:.0%} of the variance explained")

    names = [f"digit {d}" for d in range(10)] + ["has a loop", "only straight strokes"]
    one_hot = np.eye(10, dtype=np.uint8)[digits.target]
    loop, straight = one_hot[:, [0, 6, 8, 9]].sum(1), one_hot[:, [1, 4, 7]].sum(1)
    labels = np.column_stack([one_hot, loop, straight])
    corpus, activations = Corpus.from_arrays(
        a.numpy(), labels, label_names=names, source="scikit-learn digits"
    )

    # The activation itself is the frequency here, and every distinct one may be the threshold.
    matches = find_matches(
        activations, corpus.label_matrix, label_names=corpus.label_names, k=3, thresholds="exact",
        prior=0.01, n_permutations=99, decoder=decoder,
    )  # fmt: skip
    best = matches.table.group_by("label", maintain_order=True).first().sort("label").to_dicts()
    print(f"\n{'label':22} feature  F1 found  F1 held out (95 %)     precision  recall  q")
    for row in best:
        print(
            f"{row['label_name']:22} {row['feature']:7d} {row['f1']:9.2f} {row['heldout_f1']:7.2f}"
            f" ({row['heldout_f1_low']:.2f} to {row['heldout_f1_high']:.2f})"
            f" {row['heldout_precision']:12.2f} {row['heldout_recall']:7.2f}  {row['q_value']:.3f}"
        )
    for start in range(0, 10, 5):
        some = best[start : start + 5]
        print("\n" + "  ".join(f"{row['label_name']:16}" for row in some))
        for lines in zip(*(drawing(decoder[row["feature"]].numpy()) for row in some), strict=True):
            print("  ".join(lines))


if __name__ == "__main__":
    main()
