"""A covariance matrix from a few expensive samples and many cheap ones, without losing positive definiteness.

An expensive model gives samples of a random vector, a cheap one gives correlated but biased samples of it. With n
expensive and N > n cheap samples, the first n of both driven by the same inputs, a control variate corrects the sample
covariance of the expensive model by what the cheap one reveals of its sampling error:

    Euclidean:      C_high +     a (C_low_many -     C_low_few),
    log-Euclidean:  exp(log C_high + a (log C_low_many - log C_low_few)).

The first may be indefinite, and then is no covariance at all. The second is the first in the tangent space at the
identity of the log-Euclidean metric: it is positive definite always, and as cheap.

Maurais, Alsup, Peherstorfer and Marzouk 2023 (2301.13749). The problems here are a synthetic stand-in for theirs:
Gaussian vectors x = A z and their cheap copies y = A (z + noise) B, a whole batch at a time.

Run it: python examples/multifidelity_covariance.py
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest import SPD


@dataclasses.dataclass(frozen=True)
class Study:
    """What an experiment has measured, as means over the batch of problems."""

    log_error: dict[str, float]
    """Log-Euclidean distance to the true covariance, of the estimators that are always positive definite."""
    frobenius_error: dict[str, float]
    """Frobenius distance to the true covariance, relative to its norm."""
    indefinite: int
    """How many of the Euclidean multi-fidelity estimates are not positive definite."""
    problems: int
    """The size of the batch."""


def covariance(samples: Tensor) -> Tensor:
    """Sample covariance of centred vectors, `(*b, samples, n)` -> `(*b, n, n)`."""
    return samples.mT @ samples / samples.shape[-2]


def experiment(
    problems: int = 500,
    n: int = 6,
    expensive: int = 12,
    cheap: int = 400,
    ratio: float = 0.005,
    weight: float = 0.9,
    noise: float = 0.15,
    seed: int = 0,
) -> Study:
    """Estimate the covariance of each of a batch of random Gaussians, three ways at one price.

    Args:
        problems: size of the batch.
        n: length of the vectors.
        expensive: number of expensive samples, more than n so that their covariance has full rank.
        cheap: number of cheap samples in all.
        ratio: price of a cheap sample in expensive ones.
        weight: a, of the control variate; one for models that correlate perfectly.
        noise: of the cheap model, relative to its input.
        seed: of everything random.
    """
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(problems, *shape, dtype=torch.float64, generator=generator)

    # The truth: eigenvalues over two decades. The cheap model is biased: it distorts the vectors by B.
    eigenvalues = torch.logspace(-1, 1, n, dtype=torch.float64)
    root = torch.linalg.qr(randn(n, n))[0] * eigenvalues.sqrt()
    distortion = torch.eye(n, dtype=torch.float64) + 0.1 * randn(n, n)
    # The same money spent on expensive samples alone buys a few more of them.
    single = covariance(randn(expensive + round(ratio * cheap), n) @ root.mT)
    z = randn(cheap, n)
    cheap_samples = (z + noise * randn(cheap, n)) @ root.mT @ distortion
    few, many = covariance(cheap_samples[:, :expensive]), covariance(cheap_samples)
    combined = multifidelity(covariance(z[:, :expensive] @ root.mT), few, many, weight)
    return judged(root @ root.mT, {"expensive only": single, **combined})


def multifidelity(high: Tensor, few: Tensor, many: Tensor, weight: float) -> dict[str, Tensor]:
    """Both estimates, from the covariances of the expensive samples, of their cheap copies and of all cheap samples."""
    spd = SPD("log-euclidean")
    # Logarithms at the identity are matrix logarithms, and the metric is flat, so tangent vectors there simply add.
    identity = torch.eye(high.shape[-1], dtype=high.dtype).expand_as(high)
    correction = spd.log(identity, many) - spd.log(identity, few)
    log_euclidean = spd.exp(identity, spd.log(identity, high) + weight * correction)
    return {"log-Euclidean": log_euclidean, "Euclidean": high + weight * (many - few)}


def judged(truth: Tensor, estimates: dict[str, Tensor]) -> Study:
    """Mean errors of the estimates."""

    def frobenius(estimate: Tensor) -> float:
        return (torch.linalg.matrix_norm(estimate - truth) / torch.linalg.matrix_norm(truth)).mean().item()

    definite = {name: e for name, e in estimates.items() if name != "Euclidean"}
    return Study(
        log_error={name: SPD("log-euclidean").dist(truth, e).mean().item() for name, e in definite.items()},
        frobenius_error={name: frobenius(e) for name, e in estimates.items()},
        indefinite=int((torch.linalg.eigvalsh(estimates["Euclidean"])[:, 0] <= 0).sum()),
        problems=len(truth),
    )


def main() -> None:
    """Print the errors of the three estimators."""
    study = experiment()
    print(f"{study.problems} problems, mean errors at equal cost:")
    print(f"{'':16}{'log-Euclidean':>15}{'Frobenius':>12}")
    for name, error in study.frobenius_error.items():
        log = f"{study.log_error[name]:.3f}" if name in study.log_error else "-"
        print(f"{name:16}{log:>15}{error:12.3f}")
    print(f"Euclidean estimates that are not positive definite: {study.indefinite} of {study.problems}")


if __name__ == "__main__":
    main()
