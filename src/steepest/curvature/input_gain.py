"""Gains and whitening of a layer's inputs."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from steepest.checks import check_range
from steepest.curvature.base import LayerPreconditioner
from steepest.curvature.bucket import State
from steepest.curvature.kfac import averaged, damped_inverse, mean_eigenvalue
from steepest.curvature.options import Shared, options


class InputWhitening(LayerPreconditioner):
    """D A^-1 for a layer's gradient D, with A = E[a a^T] of its inputs: what gradient descent would do if the inputs
    were white, a -> A^-1/2 a, so that no linear change of the inputs changes the training.

    It is K-FAC without the factor of the outputs, and needs no gradients of these.

    Args:
        model: any module; see `LayerPreconditioner`.
        damping: added to A's diagonal, relative to the mean of it.
        decay: of the average of A over steps, as for `KFAC`.
        shared: see `steepest.curvature.options.Shared`.

    Robinson, Manry, Malalur and Yu 2016, "Properties of a batch training algorithm for feedforward networks" (Neural
    Processing Letters), and Rane et al. 2023 (2303.17732), show that their "hidden weight optimisation" is this.

    >>> model = torch.nn.Linear(4, 2)
    >>> whitening = InputWhitening(model).attach(SGD(model.parameters(), lr=0.1))
    >>> whitening
    InputWhitening(1 layer, damping=0.001, decay=0.95)
    """

    def __init__(self, model: nn.Module, damping: float = 1e-3, decay: float = 0.95, **shared: Unpack[Shared]) -> None:
        check_range("damping", damping)
        check_range("decay", decay, 0, 1, open_high=True)
        super().__init__(model, options(locals()))

    def _start(self, like: Tensor) -> State:
        n = like.shape[-1]
        inverse = torch.eye(n, dtype=like.dtype, device=like.device).repeat(len(like), 1, 1)
        return {"updates": like.new_zeros(len(like)), "inputs": like.new_zeros(len(like), n, n), "inverse": inverse}

    def _observe(self, state: State, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return a.mT @ a, g.new_zeros(())

    def _update(self, state: State, a: Tensor, g: Tensor, shape: tuple[int, int]) -> State:
        count, a = averaged(state, "inputs", a, self.options["decay"])
        inverse = damped_inverse(a, self.options["damping"] * mean_eigenvalue(a), state["inverse"])
        return {"updates": count, "inputs": a, "inverse": inverse}

    def _apply(self, state: State, g: Tensor) -> Tensor:
        return g @ state["inverse"]

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        """As it comes; now and then."""
        return [{}, {"every": 2, "damping": 0.1}]


class InputGain(LayerPreconditioner):
    """D diag(r) for a layer's gradient D: a gain for each input, of which all together are Newton's step along these
    n directions.

    For W - D diag(r) the loss falls by q^T r, q_j = |D_j|^2 with the columns D_j of D, and bends by r^T H r / 2 with
    H = A * (D^T G D), entry by entry, where A = E[a a^T] and G = E[g g^T] are the factors of `KFAC`. So r = H^-1 q, and
    the learning rate is 1 where the curvature is right. H is positive semidefinite by Schur's product theorem.

    Costs a Cholesky decomposition of an n x n matrix at every step.

    Args:
        model: any module; see `LayerPreconditioner`.
        damping: added to H's diagonal, relative to the mean of it.
        decay: of the averages of A and G over steps, as for `KFAC`.
        shared: see `steepest.curvature.options.Shared`.

    Rane et al. 2023, "Optimal input gain" (2303.17732): gains by Newton's method with the Gauss-Newton Hessian of a
    network with one hidden layer. Chosen here: that Hessian by its Kronecker factors, which hooks can see in any layer
    (exact for one linear layer and squared errors, with fisher="sampled"); all layers alike, where theirs solves for
    the output weights.

    >>> model = torch.nn.Linear(4, 2)
    >>> gains = InputGain(model, damping=1e-2).attach(SGD(model.parameters(), lr=0.5))
    """

    linear = False

    def __init__(self, model: nn.Module, damping: float = 1e-3, decay: float = 0.95, **shared: Unpack[Shared]) -> None:
        check_range("damping", damping)
        check_range("decay", decay, 0, 1, open_high=True)
        super().__init__(model, options(locals()))

    def _start(self, like: Tensor) -> State:
        count, m, n = like.shape
        zeros = {"inputs": like.new_zeros(count, n, n), "outputs": like.new_zeros(count, m, m)}
        return {"updates": like.new_zeros(count), **zeros}

    def _observe(self, state: State, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return a.mT @ a, g.mT @ g

    def _update(self, state: State, a: Tensor, g: Tensor, shape: tuple[int, int]) -> State:
        count, a = averaged(state, "inputs", a, self.options["decay"])
        return {"updates": count, "inputs": a, "outputs": averaged(state, "outputs", g, self.options["decay"])[1]}

    def _apply(self, state: State, g: Tensor) -> Tensor:
        unit = g / g.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)  # r does not change by it
        h = state["inputs"] * (unit.mT @ state["outputs"] @ unit)
        inverse = damped_inverse(h, self.options["damping"] * mean_eigenvalue(h), torch.zeros_like(h))
        gains = unit.square().sum(-2, keepdim=True) @ inverse
        return g * torch.where((gains != 0).any(-1, keepdim=True), gains, 1)

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        """As it comes; now and then."""
        return [{}, {"every": 2, "damping": 0.1}]
