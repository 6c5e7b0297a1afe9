"""A norm for every role."""

from __future__ import annotations

from typing import Any, Unpack

from steepest.norms import Frobenius, Max, Norm, Spectral
from steepest.optim.matrix_optimizer import RoleOptimizer
from steepest.optim.options import Shared, options
from steepest.transforms import Chain, Dualize, Momentum, Scale, ShapeScale, WeightDecay, chain


class Scion(RoleOptimizer):
    """Steepest descent, or conditional gradients, with the norm that fits what a parameter is: spectral for matrices,
    the largest entry for embeddings and heads, root mean square for vectors; one learning rate that holds at any width.

    Args:
        params: best `param_groups(model)`, which knows the roles.
        lr: learning rate of all.
        momentum: factor of the average of gradients (the authors' code takes one minus that).
        norm: of matrices and points.
        radius: length of the steps of matrices, in units of sqrt(m / n) for a matrix m x n. Points move by lr alone: a
            manifold has a size of its own.
        table_radius: of embeddings and heads; a step of a head has entries of table_radius / n.
        vector_radius: of biases and gains, as the root mean square of the step's entries.
        constrained: keep every plain parameter in the ball of its radius, x <- (1 - lr) x - lr radius d; else
            x <- x - lr radius d. A model must start inside: scale its initial weights down if they are larger.
        weight_decay: decoupled decay, besides what keeps the ball.
        shared: see `Shared`.

    Pethick et al. 2025 (2502.07529), algorithms 1 and 2; radii of the authors' code for nanoGPT.

    >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 9))
    >>> optimizer = Scion(param_groups(model), lr=2**-12)
    >>> [g["role"] for g in optimizer.param_groups]
    ['matrix', 'embedding', 'head', 'other']
    """

    def __init__(
        self,
        params: Any,
        lr: float = 2**-12,
        momentum: float = 0.9,
        norm: Norm | dict[str, Any] = Spectral(),  # noqa: B008  (a frozen value)
        radius: float = 50.0,
        table_radius: float = 3000.0,
        vector_radius: float = 1.0,
        constrained: bool = True,
        weight_decay: float = 0.0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, options(locals()))

    def chain(self, group: dict[str, Any]) -> Chain:
        """Momentum, the role's dual map and length, decay towards zero."""
        spectral = Norm.from_spec(group["norm"])
        steps: dict[str, tuple[Norm, str, float]] = {
            "point": (spectral, "none", 1.0),
            "matrix": (spectral, "spectral", group["radius"]),
            "embedding": (Max(), "input", group["table_radius"]),
            "head": (Max(), "input", group["table_radius"]),
            "other": (Frobenius(), "rms", group["vector_radius"]),
        }
        role = "point" if group["geometry"] else group["role"]
        norm, convention, radius = steps[role]
        ball = WeightDecay(float(group["constrained"] and role != "point"))
        decay = WeightDecay(group["weight_decay"])
        return chain(Momentum(group["momentum"]), Dualize(norm), ShapeScale(convention), Scale(radius), ball, decay)
