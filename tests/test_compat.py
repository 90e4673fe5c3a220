"""Laws of the layers of other projects: everything that they return equals its formula in float64, written out here."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vqvae.compat import sonnet, vq_layer
from vqvae.compat.vq_layer import CosineKnnVectorQuantization, CosineVectorQuantization, VectorQuantization
from vqvae.errors import UserError

Array = np.ndarray[Any, Any]
BATCH, ROWS, WIDTH, CODES = 3, 5, 8, 7


def filled(codes: Any) -> Callable[[Tensor], Tensor]:
    """An initializer that sets the codes."""
    return lambda weight: weight.copy_(torch.as_tensor(codes, dtype=torch.float32))


def inputs(seed: int = 0, requires_grad: bool = False) -> Tensor:
    return torch.randn(BATCH, ROWS, WIDTH, generator=torch.Generator().manual_seed(seed)).requires_grad_(requires_grad)


def numbers(x: Tensor) -> Array:
    return x.detach().double().numpy()


def norms(a: Array, b: Array, order: float) -> Array:
    """a (N, w), b (n, w) -> |a_i - b_k| (N, n)."""
    return np.linalg.norm(a[:, None] - b, ord=order, axis=2)


def close(found: Tensor, expected: Any) -> None:
    np.testing.assert_allclose(numbers(found), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2, math.inf])
@pytest.mark.parametrize("splits", [1, 2])
def test_every_endpoint_of_vector_quantization_is_its_formula(order: float, splits: int) -> None:
    layer = VectorQuantization(CODES, WIDTH, lookup_ord=order, num_splits=splits)
    x = inputs()
    out = layer(x)
    codes, pieces = numbers(layer.codebook.weight), numbers(x).reshape(-1, WIDTH // splits)
    distance = norms(pieces, codes, order)
    chosen = distance.argmin(1)
    between = norms(codes, codes, order)
    close(out.layer_out, codes[chosen].reshape(BATCH, ROWS, WIDTH))
    close(out.emb_space, codes)
    assert out.access_count.tolist() == np.bincount(chosen, minlength=CODES).tolist()
    close(out.distance, distance.reshape(BATCH, ROWS * splits, CODES))
    close(out.emb_spacing, [between[i, j] for i in range(CODES) for j in range(i + 1, CODES)])
    close(out.emb_closest_spacing, [min(between[i, j] for j in range(CODES) if j != i) for i in range(CODES)])
    assert out.replace_embeds is None
    close(layer.losses["alpha"], 0.1 * distance.min(1).mean())
    close(layer.losses["beta"], 1e-4 * distance.sum(1).mean())
    np.testing.assert_allclose(float(layer.losses["coulomb"].detach()), -1e-6 * between.mean(1).sum(), rtol=1e-5)
    assert torch.equal(layer(x, return_endpoints=False), out.layer_out)


@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_losses_move_codes_by_the_gradients_of_their_formulas_and_the_input_gets_that_of_the_output(
    order: float,
) -> None:
    layer = VectorQuantization(CODES, WIDTH, 0.3, 0.02, 0.5, order, coulomb_bound=3.0)
    x = inputs(requires_grad=True)
    upstream = inputs(1)
    out = layer(x)
    ((out.layer_out * upstream).sum() + sum(layer.losses.values())).backward()
    assert torch.equal(x.grad, upstream)
    codes = layer.codebook.weight.detach().double().requires_grad_()
    distance = (x.detach().double().view(-1, 1, WIDTH) - codes).norm(p=order, dim=2)
    between = (codes[:, None] - codes + 1e-12).norm(p=order, dim=2).clamp_max(3.0)
    loss = 0.3 * distance.amin(1).mean() + 0.02 * distance.sum(1).mean() - 0.5 * between.mean(1).sum()
    (expected,) = torch.autograd.grad(loss, codes)
    assert layer.codebook.weight.grad is not None
    close(layer.codebook.weight.grad, expected.numpy())


def test_the_published_cases_of_the_original_layer_hold() -> None:
    codes = [[1.0, 0.5], [0.0, 0.0]]
    for order, x, expected in (
        (1, [[-0.5, 3.0], [3.0, -3.0]], [[0.0, 0.0], [1.0, 0.5]]),
        (2, [[-0.5, 3.0], [3.0, -3.0]], [[1.0, 0.5], [1.0, 0.5]]),
        (math.inf, [[0.0, 5.0], [3.0, -3.0]], [[1.0, 0.5], [0.0, 0.0]]),
    ):
        layer = VectorQuantization(2, 2, lookup_ord=order, embedding_initializer=filled(codes))
        assert layer(torch.tensor([x])).layer_out[0].tolist() == expected
    book = [[1.1, 1.0], [2.1, 2.1], [5.0, 5.0], [6.0, 7.0], [-3.0, -3.0]]
    layer = VectorQuantization(5, 4, num_splits=2, embedding_initializer=filled(book))
    out = layer(torch.tensor([[[1, 1, 4.5, 5]], [[2, 2, -5, -3]], [[2.2, 2.2, 1, 1]]]))
    close(out.layer_out[:, 0], [[1.1, 1, 5, 5], [2.1, 2.1, -3, -3], [2.1, 2.1, 1.1, 1]])
    assert out.access_count.tolist() == [2, 2, 1, 0, 1]
    spaced = VectorQuantization(4, 2, lookup_ord=1, embedding_initializer=filled([[3, 3], [1, 2], [5, -1], [0, 0]]))
    assert spaced(torch.zeros(1, 1, 2)).emb_spacing.tolist() == [3, 6, 6, 7, 3, 6]


def test_the_least_used_codes_become_the_farthest_inputs_of_all_training_forwards_since_the_last_time() -> None:
    diagonal = [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
    layer = VectorQuantization(3, 2, lookup_ord=1, num_replaced=1, embedding_initializer=filled(diagonal))
    out = None
    for value in (0.1, 10.0, 1.1):
        out = layer(torch.full((1, 1, 2), value))
    layer.eval()(torch.full((1, 1, 2), 99.0))  # is not remembered
    layer.train()
    (rows,) = out.replace_embeds().values()
    assert rows.tolist() == [True, False, False]  # all are used once: the lowest index
    assert layer.codebook.weight.tolist() == [[10.0, 10.0], [1.0, 1.0], [2.0, 2.0]]
    assert not next(iter(out.replace_embeds().values())).any()  # nothing was seen since
    layer(torch.tensor([[[9.0, 9.0], [1.0, 1.0], [0.0, 0.5]]]))
    out.replace_embeds()  # code 2 has no use since, and the first input the largest distance
    assert layer.codebook.weight.tolist() == [[10.0, 10.0], [1.0, 1.0], [9.0, 9.0]]


def test_codes_start_from_the_first_pieces_of_a_batch_if_there_are_enough() -> None:
    layer, x = VectorQuantization(CODES, WIDTH, num_splits=2), inputs()
    layer(x).emb_space_batch_init()
    assert torch.equal(layer.codebook.weight, x.reshape(-1, 4)[:CODES])
    with pytest.raises(UserError, match="4 latent vectors cannot start 7 codes"):
        layer(x[:1, :2]).emb_space_batch_init()


@pytest.mark.parametrize("reduction", ["pca-batch", "pca-emb-space"])
@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_principal_axes_of_this_batch_decide_and_output_and_losses_stay_in_full_space(
    reduction: str, order: float
) -> None:
    torch.manual_seed(3)
    layer = VectorQuantization(CODES, WIDTH, lookup_ord=order, dim_reduction=reduction, num_dim_reduction_components=2)
    for seed in (0, 1):
        x = inputs(seed) * torch.linspace(0.1, 2, WIDTH)
        out = layer(x)
        codes, vectors = numbers(layer.codebook.weight), numbers(x).reshape(-1, WIDTH)
        basis = np.concatenate([codes, vectors]) if reduction == "pca-batch" else codes
        axes = np.linalg.svd(basis - basis.mean(0))[2][:2].T
        if order != 2:  # axes have no sign, which does not matter, and norms but the euclidean depend on nothing else
            axes = axes * np.sign((axes * numbers(layer.lookup.axes)).sum(0))
        reduced = norms((vectors - basis.mean(0)) @ axes, (codes - basis.mean(0)) @ axes, order)
        np.testing.assert_allclose(numbers(out.distance).reshape(-1, CODES), reduced, rtol=1e-3, atol=1e-4)
        chosen = reduced.argmin(1)
        close(out.layer_out, codes[chosen].reshape(x.shape))
        close(layer.losses["alpha"], 0.1 * norms(vectors, codes, order)[np.arange(len(vectors)), chosen].mean())
        close(layer.losses["beta"], 1e-4 * norms(vectors, codes, order).sum(1).mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_layers_take_batches_of_nothing_and_of_any_precision(dtype: torch.dtype) -> None:
    for layer in (VectorQuantization(CODES, WIDTH, num_replaced=2), CosineVectorQuantization(CODES, WIDTH)):
        assert layer(torch.zeros(0, ROWS, WIDTH, dtype=dtype)).layer_out.shape == (0, ROWS, WIDTH)
        out = layer(inputs().to(dtype))
        assert out.layer_out.dtype == dtype
        torch.testing.assert_close(out.layer_out, layer(inputs().to(dtype).float()).layer_out.to(dtype))
    averages = sonnet.VectorQuantizerEMA(WIDTH, CODES, 0.25, 0.9)
    assert averages(inputs().to(dtype), is_training=False)["quantize"].dtype == dtype


def cosines(x: Array, codes: Array) -> Array:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (codes / np.linalg.norm(codes, axis=1, keepdims=True)).T


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("threshold", [-1.0, 0.4, 1.1])
def test_every_endpoint_of_the_cosine_form_is_its_formula(splits: int, threshold: float) -> None:
    layer = CosineVectorQuantization(CODES, WIDTH, threshold, num_splits=splits)
    x = inputs(requires_grad=True)
    out = layer(x)
    codes, pieces = numbers(layer.codebook.weight), numbers(x).reshape(-1, WIDTH // splits)
    similarity = cosines(pieces, codes)
    same = similarity.max(1) < threshold
    expected = np.where(same[:, None], pieces, codes[similarity.argmax(1)])
    close(out.layer_out, expected.reshape(x.shape))
    close(out.emb_space, codes)
    close(out.percentage_identity_mapped, same.mean())
    close(out.similarity_values, similarity.max(1))
    out.layer_out.sum().backward()
    gradient = np.zeros(len(pieces)) if x.grad is None else numbers(x.grad).reshape(len(pieces), -1)[:, 0]
    assert gradient.tolist() == same.astype(float).tolist()  # none where a code is taken


def test_similarities_of_the_published_case_hold() -> None:
    codes = [[1, 0.5, 0.5], [1, 1, 3], [1, 5, 1]]
    out = CosineVectorQuantization(3, 3, embedding_initializer=filled(codes))(torch.eye(3)[None])
    close(out.similarity_values, [1 / 1.5**0.5, 5 / 27**0.5, 3 / 11**0.5])


@pytest.mark.parametrize("majority", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("threshold", [-1.0, 0.5])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_every_endpoint_of_the_vote_is_its_formula(k: int, threshold: float, majority: float) -> None:
    labels = np.array([2, 0, 1, 1, 2, 0, 1])
    layer = CosineKnnVectorQuantization(
        CODES, WIDTH, threshold, emb_labels=torch.tensor(labels), k=k, majority_threshold=majority
    )
    x = inputs()
    out = layer(x)
    codes, vectors = numbers(layer.codebook.weight), numbers(x).reshape(-1, WIDTH)
    similarity = cosines(vectors, codes)
    votes = [np.bincount(labels[np.argsort(-row)[:k]], minlength=3) for row in similarity]
    first = [int(np.flatnonzero(labels == vote.argmax())[0]) for vote in votes]
    same = np.array([vote.max() / k < majority for vote in votes]) | (similarity.max(1) < threshold)
    close(out.layer_out, np.where(same[:, None], vectors, codes[first]).reshape(x.shape))
    close(out.percentage_identity_mapped, same.mean())
    close(out.similarity_values, similarity.max(1))


def test_the_original_names_make_the_layers_and_mistakes_are_told() -> None:
    assert vq_layer.vector_quantization(4, 2)(torch.zeros(1, 1, 2)).emb_space.shape == (4, 2)
    assert vq_layer.cosine_vector_quantization(4, 2)(torch.ones(1, 1, 2)).emb_space.shape == (4, 2)
    knn = vq_layer.cosine_knn_vector_quantization(4, 2, emb_labels=[0, 0, 1, 1], k=2)
    assert knn(torch.ones(1, 1, 2)).emb_space.shape == (4, 2)
    for wrong, message in (
        (lambda: VectorQuantization(4, 2)(torch.zeros(1, 2)), r"of shape \(B, r, 2\), got \(1, 2\)"),
        (lambda: VectorQuantization(4, 2, num_splits=3), "num_splits=3 does not divide q=2"),
        (lambda: VectorQuantization(4, 2, lookup_ord=3), "lookup_ord must be one of 1, 2, inf, got 3"),
        (lambda: VectorQuantization(4, 2, dim_reduction="pca-batch"), "go together"),
        (lambda: CosineKnnVectorQuantization(4, 2, emb_labels=[0, 1], k=1), "2 labels for 4 codes"),
        (lambda: sonnet.VectorQuantizer(4, 8)(torch.zeros(2, 3), is_training=True), "4 channels in their last dim"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()


def test_a_layer_that_has_run_can_be_copied_and_goes_on_from_its_state() -> None:
    layer = VectorQuantization(CODES, WIDTH, num_replaced=2, dim_reduction="pca-batch", num_dim_reduction_components=3)
    layer(inputs())
    other = copy.deepcopy(layer)
    fresh = VectorQuantization(CODES, WIDTH, num_replaced=2, dim_reduction="pca-batch", num_dim_reduction_components=3)
    fresh.load_state_dict(layer.state_dict())
    for one in (layer, other, fresh):
        one(inputs(1)).replace_embeds()
    assert torch.equal(layer.codebook.weight, other.codebook.weight)
    assert torch.equal(layer.codebook.weight, fresh.codebook.weight)


# ---- Sonnet


def expected_outputs(x: Array, codes: Array) -> tuple[Array, dict[str, Any]]:
    """x (N, D), codes (K, D) -> indices (N,), and what both layers return but the loss."""
    indices = norms(x, codes, 2).argmin(1)
    encodings = np.eye(len(codes))[indices]
    p = encodings.mean(0)
    perplexity = np.exp(-(p * np.log(p + 1e-10)).sum())
    return indices, {"quantize": codes[indices], "perplexity": perplexity, "encodings": encodings}


def check_outputs(out: Any, x: Tensor, expected: dict[str, Any], indices: Array) -> None:
    assert isinstance(out, dict)
    assert set(out) == {"quantize", "loss", "perplexity", "encodings", "encoding_indices"}
    assert out["encoding_indices"].tolist() == indices.reshape(x.shape[:-1]).tolist()
    for name, value in expected.items():
        close(out[name], value.reshape(x.shape) if name == "quantize" else value)
    assert torch.equal(dict(out)["encodings"], out.get("encodings"))
    assert all(isinstance(value, Tensor) for value in dict(out.items()).values())


@pytest.mark.parametrize("training", [True, False])
def test_sonnets_vector_quantizer_is_its_formula(training: bool) -> None:
    layer = sonnet.VectorQuantizer(embedding_dim=WIDTH, num_embeddings=CODES, commitment_cost=0.3)
    x, upstream = inputs(requires_grad=True), inputs(1)
    out = layer(x, is_training=training)
    codes, flat = numbers(layer.embeddings.t()), numbers(x).reshape(-1, WIDTH)
    assert np.abs(codes).max() <= (3 / WIDTH) ** 0.5  # Sonnet's start
    indices, expected = expected_outputs(flat, codes)
    check_outputs(out, x, expected | {"loss": 1.3 * np.square(flat - codes[indices]).mean()}, indices)
    assert torch.equal(layer.quantize(out["encoding_indices"]), out["quantize"])
    ((out["quantize"] * upstream).sum() + out["loss"]).backward()
    assert x.grad is not None
    close(x.grad.view(-1, WIDTH), numbers(upstream).reshape(-1, WIDTH) + 0.6 * (flat - codes[indices]) / flat.size)
    pull = np.zeros_like(codes)
    np.add.at(pull, indices, 2 * (codes[indices] - flat) / flat.size)
    (weight,) = layer.parameters()
    assert weight.grad is not None
    close(weight.grad, pull)


def test_sonnets_moving_averages_are_their_formula_in_training_and_stay_in_evaluation() -> None:
    decay, epsilon, cost = 0.9, 1e-5, 0.25
    layer = sonnet.VectorQuantizerEMA(WIDTH, CODES, cost, decay, epsilon)
    codes = numbers(layer.embeddings.t())
    count, total = np.zeros(CODES), np.zeros((CODES, WIDTH))
    for step in range(1, 6):
        x = inputs(step)
        flat = numbers(x).reshape(-1, WIDTH)
        indices, expected = expected_outputs(flat, codes)
        expected["loss"] = cost * np.square(flat - codes[indices]).mean()
        check_outputs(layer(x, is_training=False), x, expected, indices)
        close(layer.embeddings.t(), codes)
        check_outputs(layer(x, is_training=True), x, expected, indices)  # of the codes before they move
        count = decay * count + (1 - decay) * expected["encodings"].sum(0)
        total = decay * total + (1 - decay) * expected["encodings"].T @ flat
        debiased = count / (1 - decay**step)
        smoothed = (debiased + epsilon) / (debiased.sum() + CODES * epsilon) * debiased.sum()
        codes = total / (1 - decay**step) / smoothed[:, None]
        np.testing.assert_allclose(numbers(layer.embeddings.t()), codes, rtol=1e-4, atol=1e-5)


def test_sonnets_first_step_of_the_published_numbers_holds_and_a_batch_of_nothing_moves_nothing() -> None:
    layer = sonnet.VectorQuantizerEMA(2, 3, 0.25, decay=0.9)
    layer.quantizer.codebook.start(torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]))
    layer(torch.zeros(0, 2), is_training=True)
    assert layer.embeddings.t().tolist() == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
    layer(torch.tensor([[0.1, 0.1], [1.1, 1.1], [10, 10], [0.2, 0]]), is_training=True)
    expected = [[0.1500004, 0.0500001], [1.0999973, 1.0999973], [9.999975, 9.999975]]
    torch.testing.assert_close(layer.embeddings.t(), torch.tensor(expected), rtol=0, atol=2e-6)
