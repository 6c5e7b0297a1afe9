"""Which weights of torch's layers act as matrices, and which of their axes are rows and columns."""

from __future__ import annotations

from torch import Tensor, nn

from steepest.manifolds.euclidean import Euclidean
from steepest.optim.constrain import Constraint

CONVOLUTION = {3: "o i w -> o (i w)", 4: "o i h w -> o (i h w)", 5: "o i d h w -> o (i d h w)"}
TRANSPOSED = {3: "i o w -> o (i w)", 4: "i o h w -> o (i h w)", 5: "i o d h w -> o (i d h w)"}


def is_matrix(module: nn.Module, name: str, p: Tensor) -> bool:
    """Whether the module's parameter of this name multiplies its input."""
    if isinstance(module, nn.MultiheadAttention):
        return name.endswith("proj_weight")
    if name != "weight":
        return False
    linear = p.ndim == 2 and (isinstance(module, nn.Linear) or _is_conv1d(module))
    return linear or isinstance(module, nn.modules.conv._ConvNd)


def axes(module: nn.Module, name: str, p: Tensor) -> Constraint | None:
    """How such a parameter is a matrix, out x in; None where it is one as it stands."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return Constraint(Euclidean(), (TRANSPOSED[p.ndim],), {})
    if isinstance(module, nn.modules.conv._ConvNd):
        return Constraint(Euclidean(), (CONVOLUTION[p.ndim],), {})
    if name == "in_proj_weight":  # query, key and value, fused
        return Constraint(Euclidean(), ("(s o) i -> s o i",), {"s": 3})
    return Constraint(Euclidean(), ("i o -> o i",), {}) if _is_conv1d(module) else None


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear layer, of transformers, which keeps its weight as in x out."""
    return type(module).__name__ == "Conv1D"
