"""InfoNCE against a hand-written loss; wafers that share ids are no false negatives."""

import math

import torch

from ikddit.embedding.infonce import info_nce, retrieval, same_ids


def test_loss_is_the_textbook_cross_entropy():
    a = torch.nn.functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    b = torch.nn.functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    logits = (a @ b.T / 0.5).tolist()
    rows = sum(-math.log(math.exp(r[i]) / sum(map(math.exp, r))) for i, r in enumerate(logits)) / 3
    columns = [list(c) for c in zip(*logits, strict=True)]
    cols = sum(-math.log(math.exp(c[i]) / sum(map(math.exp, c))) for i, c in enumerate(columns)) / 3
    assert math.isclose(float(info_nce(a, b, torch.tensor(0.5))), (rows + cols) / 2, rel_tol=1e-5)


def test_shared_ids_are_not_pushed_apart():
    ids = torch.tensor([[1, 2], [1, 2], [3, 4]])
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    t = torch.tensor(0.01)
    shared = float(info_nce(vectors, vectors, t, same_ids(ids)))
    assert math.isclose(shared, 2 / 3 * math.log(2), rel_tol=1e-4)  # the two equal wafers share the target
    assert shared <= float(info_nce(vectors, vectors, t)) + 1e-6


def test_retrieval_counts_any_positive():
    a = torch.eye(4)
    b = a[[1, 0, 2, 3]]
    own = torch.eye(4, dtype=torch.bool)
    pairs = own.clone()
    pairs[0, 1] = pairs[1, 0] = True
    assert retrieval(a, b, 1, own) == 0.5
    assert retrieval(a, b, 1, pairs) == 1.0


def test_loss_with_several_positives_against_a_loop():
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.nn.functional.normalize(torch.randn(5, 4, generator=generator), dim=1) for _ in range(2))
    positive = torch.eye(5, dtype=torch.bool)
    positive[0, 1] = positive[1, 0] = positive[2, 4] = positive[4, 2] = True
    t = 0.3
    total = 0.0
    for left, right in ((a, b), (b, a)):
        for i in range(5):
            weights = [math.exp(float(left[i] @ right[j]) / t) for j in range(5)]
            partners = [j for j in range(5) if positive[i, j]]
            total -= sum(math.log(weights[j] / sum(weights)) for j in partners) / len(partners)
    assert math.isclose(float(info_nce(a, b, torch.tensor(t), positive)), total / 10, rel_tol=1e-5)
