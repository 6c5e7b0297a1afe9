"""Rows and columns of gradients, normalised, with as little state as can be."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from steepest.norms import Columns, Rows
from steepest.optim.listing import MATRICES
from steepest.optim.matrix_optimizer import MatrixOptimizer
from steepest.optim.options import MatrixShared, options
from steepest.transforms import Chain, Dualize, Momentum, ShapeScale, WeightDecay, chain


class SCALE(MatrixOptimizer):
    """Gradients with what one output neuron reads normalised to root mean square one; momentum for the head alone, and
    no other state for matrices.

    Matrices, points and heads are normalised row by row (out x in: the paper's columns), an embedding, tokens x
    features, column by column. A head that is tied to an embedding counts as a head. Vectors go to AdamW.

    Args:
        params: best `param_groups(model)`, which knows embeddings and heads.
        lr: learning rate of all but vectors; entries of a step are about lr.
        momentum: factor of the average of the head's gradients.
        weight_decay: decoupled decay.
        shared: see `MatrixShared`.

    Glentis, Li, Han and Hong 2025 (2506.16659), algorithm 1.

    >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 9))
    >>> optimizer = SCALE(param_groups(model), lr=1e-3)
    """

    roles: ClassVar[tuple[str, ...]] = (*MATRICES, "embedding", "head")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """The head's momentum, rows or columns of root mean square one, decay."""
        momentum = [Momentum(group["momentum"])] if group["role"] == "head" else []
        norm, length = (Columns(), "columns") if group["role"] == "embedding" else (Rows(), "rows")
        return chain(*momentum, Dualize(norm), ShapeScale(length), WeightDecay(group["weight_decay"]))
