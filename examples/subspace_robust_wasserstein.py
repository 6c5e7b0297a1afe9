"""The subspace in which two clouds of points are furthest apart, and the plan between them, as a min-max game.

The distance of two clouds x_i, y_j in a high dimension is mostly noise. Projection robust Wasserstein distance looks
for the subspace in which they differ most:

    max over subspaces U of dimension k   min over couplings pi   sum_ij pi_ij |U^T (x_i - y_j)|^2.

Both levels are manifolds: U lives on Grassmann(d, k), and pi, kept positive by an entropy of weight eps, on the doubly
stochastic matrices with Fisher's metric. `steepest.minmax` runs on their product.

The answer comes with a certificate. At the plan found, no subspace gives more than the sum of the k largest eigenvalues
of its second moments of displacement; at the subspace found, no plan gives less than the linear program does. The value
of the game lies between the two.

Paty and Cuturi 2019 (1901.08949), with the fragmented hypercube, whose value is known; Lin, Fan, Ho, Cuturi and Jordan
2020 (2006.07458); Huang, Ma and Lai 2021 (2012.05199) and Han, Mishra, Jawanpuria and Gao 2023 (2204.11418), as a
problem on manifolds.

Run it: python examples/subspace_robust_wasserstein.py
"""

from __future__ import annotations

import dataclasses

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from steepest import DoublyStochastic, Grassmann, minmax
from steepest.linalg.sinkhorn import sinkhorn
from steepest.solvers.minmax import MinMaxMethod, MinMaxResult


@dataclasses.dataclass(frozen=True)
class Clouds:
    """Two clouds of n points in d dimensions, and what is known of them."""

    x: Tensor
    y: Tensor
    subspace: Tensor
    """The planted one, `(d, k)`."""
    value: float
    """The robust distance, squared, without entropy."""


def fragmented_hypercube(n: int = 40, d: int = 6, k: int = 2, seed: int = 0) -> Clouds:
    """x uniform in the cube [-1, 1]^d, and y = x + 2 sign(x) in the first k coordinates.

    The map is the gradient of a convex function, in these coordinates too, so that moving each x to its own y is
    optimal in the space and in that subspace; in any other subspace this same plan costs less. The value is 4 k.
    """
    x = 2 * torch.rand(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1
    subspace = torch.eye(d, dtype=torch.float64)[:, :k]
    return Clouds(x, x + 2 * x.sign() @ subspace @ subspace.mT, subspace, 4.0 * k)


def cost(clouds: Clouds, u: Tensor) -> Tensor:
    """Squared distances after the projection, `(n, n)`."""
    return torch.cdist(clouds.x @ u, clouds.y @ u, compute_mode="donot_use_mm_for_euclid_dist").square()


def game(
    clouds: Clouds, entropy: float, method: MinMaxMethod | str, start: tuple[Tensor, Tensor], **options: float
) -> MinMaxResult:
    """The saddle for one weight of the entropy."""
    x, y, n = clouds.x, clouds.y, len(clouds.x)

    def f(plan: Tensor, u: Tensor) -> Tensor:
        a, b = x @ u, y @ u
        distances = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.mT
        return (plan * distances).sum() + entropy * (plan * (plan * n**2).log()).sum()

    masses = [1 / n] * n
    return minmax(f, *start, DoublyStochastic(masses, masses), Grassmann(), method, **options)


@dataclasses.dataclass(frozen=True)
class Found:
    """A plan and a subspace, with their certificate."""

    plan: Tensor
    subspace: Tensor
    lower: float
    """What the best plan gives in this subspace."""
    upper: float
    """What the best subspace gives for this plan."""
    angle: float
    """The largest angle to the planted subspace, in radians."""
    runs: list[MinMaxResult]


def solve(
    clouds: Clouds,
    entropies: tuple[float, ...] = (2.0, 0.5, 0.12),
    method: MinMaxMethod | str = "Hamiltonian",
    max_iterations: int = 200,
    tolerance: float = 1e-6,
) -> Found:
    """The game with less and less entropy, each run from the last one's subspace, and its plan for the new entropy.

    The Hamiltonian method goes to any stationary point, and under Fisher's metric gradients vanish towards the
    boundary, where plans have zeros: it must not start far from the optimal plan.

    Args:
        clouds: the points.
        entropies: weights of the entropy.
        method: of `minmax`.
        max_iterations: of each run.
        tolerance: of each run.
    """
    n, k = len(clouds.x), clouds.subspace.shape[-1]
    masses = torch.full((n,), 1 / n, dtype=torch.float64)
    u = best_subspace(clouds, masses[:, None] * masses, k)[0]
    runs = []
    for entropy in entropies:
        plan = sinkhorn(-cost(clouds, u) / entropy, masses, masses)
        runs.append(game(clouds, entropy, method, (plan, u), tolerance=tolerance, max_iterations=max_iterations))
        u = runs[-1].y
    return judged(clouds, runs[-1].x, u, runs)


def rounded(clouds: Clouds, found: Found) -> Found:
    """Without entropy: the best plan in the subspace that was found, and the best subspace for that plan."""
    plan = linear_program(cost(clouds, found.subspace))
    return judged(clouds, plan, best_subspace(clouds, plan, found.subspace.shape[-1])[0], found.runs)


def judged(clouds: Clouds, plan: Tensor, u: Tensor, runs: list[MinMaxResult]) -> Found:
    """With the certificate: the linear program at u, the eigenvalues at the plan."""
    distances = cost(clouds, u)
    lower = float((linear_program(distances) * distances).sum())
    angle = torch.linalg.svdvals(clouds.subspace - u @ (u.mT @ clouds.subspace)).max().clamp(max=1).asin()
    return Found(plan, u, lower, best_subspace(clouds, plan, u.shape[-1])[1], float(angle), runs)


def linear_program(distances: Tensor) -> Tensor:
    """The cheapest plan: a permutation, as all masses are equal."""
    rows, columns = linear_sum_assignment(distances.numpy())
    plan = torch.zeros_like(distances)
    plan[rows, columns] = 1 / len(distances)
    return plan


def best_subspace(clouds: Clouds, plan: Tensor, k: int) -> tuple[Tensor, float]:
    """Where the displacements of a plan are largest, and their sum there: the leading eigenvectors of its second
    moments."""
    shift = clouds.x[:, None] - clouds.y
    values, vectors = torch.linalg.eigh(torch.einsum("ij,ija,ijb->ab", plan, shift, shift))
    return vectors[:, -k:], float(values[-k:].sum())


def main() -> None:
    """Print what was found, and what is known."""
    clouds = fragmented_hypercube()
    found = solve(clouds)
    for run in found.runs:
        print(run)
    for name, state in (("with entropy", found), ("rounded", rounded(clouds, found))):
        print(f"{name}: the value is between {state.lower:.12f} and {state.upper:.12f}, planted {clouds.value:g}")
        print(f"{name}: largest angle to the planted subspace {state.angle:.1e}")


if __name__ == "__main__":
    main()
