"""How long a step is for a matrix of a given shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from steepest.transforms.base import Context, State, Transform, as_matrix

CONVENTIONS: dict[str, Callable[[int, int], float]] = {
    "none": lambda m, n: 1.0,
    "keller_jordan": lambda m, n: max(1.0, m / n) ** 0.5,
    "moonlight": lambda m, n: 0.2 * max(m, n) ** 0.5,
    "spectral": lambda m, n: (m / n) ** 0.5,
    "rows": lambda m, n: n**0.5,
    "columns": lambda m, n: m**0.5,
    "rms": lambda m, n: (m * n) ** 0.5,
    "input": lambda m, n: 1 / n,
}
"""Factor on a step of an m x n (out x in) matrix, by the name of its convention."""
CONVENTIONS |= {"original": CONVENTIONS["keller_jordan"], "match_rms_adamw": CONVENTIONS["moonlight"]}


@dataclasses.dataclass(frozen=True)
class ShapeScale(Transform):
    """h times a factor of its shape m x n, out x in. The same learning rate means different things under each:

    - "none": 1; singular values of the step are one.
    - "keller_jordan": sqrt(max(1, m/n)), of Jordan's Muon; torch.optim.Muon calls it "original".
    - "moonlight": 0.2 sqrt(max(m, n)), of Liu et al. 2025 (2502.16982): the step's entries have the root mean square of
      AdamW's, and AdamW's learning rates hold; torch.optim.Muon calls it "match_rms_adamw".
    - "original", "match_rms_adamw": the same two by torch's names.
    - "spectral": sqrt(m/n), of Dion: the norm of maps from root mean square to root mean square.

    And for steps normalised otherwise:

    - "rows", "columns", "rms": sqrt(n), sqrt(m), sqrt(m n): rows, columns or the whole, of length one, get root mean
      square one.
    - "input": 1/n: a step of signs changes no output by more than the inputs' largest entry.
    """

    convention: str = "keller_jordan"

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS:
            raise ValueError(f"scale: unknown {self.convention!r}, expected one of {', '.join(CONVENTIONS)}")

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The scaled step; a vector counts as a column."""
        factor = CONVENTIONS[self.convention](*as_matrix(h, ctx.ndim).shape[-2:])
        return h if factor == 1 else h * factor

    @classmethod
    def examples(cls) -> list[Transform]:
        """Every convention."""
        return [cls(name) for name in CONVENTIONS]
