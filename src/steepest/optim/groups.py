"""A model's parameters sorted for an optimiser: points, pairs, matrices and the rest."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from steepest.manifolds.base import Manifold
from steepest.manifolds.fixed_rank import FixedRank
from steepest.optim.constrain import Constraint, constraints


class Entry(NamedTuple):
    """One point: its tensors, their full names, what it is, and whether it should decay."""

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    role: str
    constraint: Constraint | None
    decays: bool = True


CONVOLUTION = {3: "o i w -> o (i w)", 4: "o i h w -> o (i h w)", 5: "o i d h w -> o (i d h w)"}
TRANSPOSED = {3: "i o w -> o (i w)", 4: "i o h w -> o (i h w)", 5: "i o d h w -> o (i d h w)"}


def param_groups(
    model: nn.Module,
    *,
    lora: Manifold | None = FixedRank(),
    other: Iterable[str] = (),  # noqa: B008  (a frozen value)
) -> list[dict[str, Any]]:
    """Parameter groups of everything in `model` that requires a gradient, for any optimiser of this library.

    In this order: parameters that `constrain` put on a manifold; pairs of LoRA factors, as one point W = B A each; weights
    of linear and convolution layers, as matrices; the rest: embeddings, output heads, norms, biases, which Muon and
    Shampoo leave to AdamW. A head is a weight that is tied to an embedding, is the model's output embedding
    (`get_output_embeddings()` of transformers), or has the shape of the model's largest embedding. Biases, gains and other
    vectors get weight decay 0.

    Args:
        model: any module; PEFT's LoRA layers are recognised by their `lora_A` and `lora_B`.
        lora: the manifold of a pair of LoRA factors; None leaves them as two matrices.
        other: names or patterns (`"*.head.weight"`) that go to the rest, whatever they look like.

    Returns:
        Dictionaries with `params`, `param_names`, `role` ("point", "matrix" or "other"), `geometry`, `matrix`, `sizes`,
        and nothing else: add `lr` or any other option of the optimiser to them as you like.

    >>> groups = param_groups(torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 2)))
    >>> [(g["role"], g["param_names"]) for g in groups]
    [('matrix', ['1.weight']), ('other', ['0.weight']), ('other', ['1.bias'])]
    """
    patterns = tuple(other)
    sorted_: dict[Any, dict[str, Any]] = {}
    for entry in _entries(model, lora, patterns):
        group = _as_group(entry)
        key = ("point", "matrix", "other").index(entry.role), repr({k: v for k, v in group.items() if k[:5] != "param"})
        found = sorted_.setdefault(key, group)
        if found is not group:
            found["params"] += group["params"]
            found["param_names"] += group["param_names"]
    return [sorted_[key] for key in sorted(sorted_, key=lambda k: k[0])]


def _as_group(entry: Entry) -> dict[str, Any]:
    c = entry.constraint
    group: dict[str, Any] = {
        "params": list(entry.tensors),
        "param_names": list(entry.names),
        "role": entry.role,
        "geometry": c.manifold.to_spec() if c and entry.role == "point" else None,
        "matrix": list(c.matrix) if c else None,
        "sizes": dict(c.sizes) if c else {},
    }
    return group if entry.decays else group | {"weight_decay": 0.0}


def _entries(model: nn.Module, lora: Manifold | None, other: tuple[str, ...]) -> Iterator[Entry]:
    """Every trainable parameter once; a tied one under its first name, as a matrix only if no user of it is a table."""
    done: set[int] = set()
    heads = _heads(model)

    def fresh(names: Iterable[str], tensors: Iterable[Tensor]) -> bool:
        ids = {id(t) for t in tensors}
        take = all(t.requires_grad for t in tensors) and not ids & done
        done.update(ids if take else ())
        return take

    for prefix, module in model.named_modules():
        for names, constraint in [*constraints(module).items(), *_lora_pairs(module, lora)]:
            tensors = tuple(module.get_parameter(n) for n in names)
            full = tuple(clean(f"{prefix}.{n}") for n in names)
            if fresh(full, tensors):
                role = "matrix" if type(constraint.manifold).__name__ == "Euclidean" else "point"
                yield Entry(full, tensors, role, constraint)
    for prefix, module in model.named_modules():
        for name, p in module.named_parameters(prefix, recurse=False):
            full = clean(name)
            if not fresh((full,), (p,)):
                continue
            pattern = _matrix_pattern(module, name.rpartition(".")[2], p)
            listed = any(fnmatch.fnmatchcase(full, o) for o in other)
            if pattern is None or id(p) in heads or listed:
                yield Entry((full,), (p,), "other", None, decays=p.ndim >= 2)
            else:
                plain = None if pattern == "" else _axes(pattern)
                yield Entry((full,), (p,), "matrix", plain)


def _axes(pattern: str) -> Constraint:
    from steepest.manifolds.euclidean import Euclidean

    sizes = {"s": 3} if pattern.startswith("(s") else {}
    return Constraint(Euclidean(), (pattern,), sizes)


def _matrix_pattern(module: nn.Module, name: str, p: Tensor) -> str | None:
    """Pattern of a weight that acts as a matrix, "" where it is one as it stands, None where it is something else."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd) and name == "weight":
        return TRANSPOSED[p.ndim]
    if isinstance(module, nn.modules.conv._ConvNd) and name == "weight":
        return CONVOLUTION[p.ndim]
    if isinstance(module, nn.MultiheadAttention) and name == "in_proj_weight":
        return "(s o) i -> s o i"
    linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # the latter: GPT-2's, of transformers
    return "" if linear and name == "weight" and p.ndim == 2 else None


def _heads(model: nn.Module) -> set[int]:
    """Ids of weights that write to a vocabulary."""
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    output = getattr(model, "get_output_embeddings", lambda: None)()
    largest = max((tuple(t.shape) for t in tables), default=None)  # the vocabulary, rather than positions
    heads = {id(t) for t in tables} | ({id(output.weight)} if hasattr(output, "weight") else set())
    return heads | {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and m.weight.shape == largest}


def _lora_pairs(module: nn.Module, lora: Manifold | None) -> Iterator[tuple[tuple[str, str], Constraint]]:
    """Names and geometry of the factor pairs of a PEFT LoRA layer, one pair for each of its adapters."""
    if lora is None:
        return
    tables = [getattr(module, name, None) for name in ("lora_B", "lora_A")]
    if all(isinstance(t, nn.ModuleDict) for t in tables):
        for adapter in tables[0]:  # type: ignore[union-attr]
            names = (f"lora_B.{adapter}.weight", f"lora_A.{adapter}.weight")
            ndim = module.get_parameter(names[0]).ndim
            patterns = (None, None) if ndim == 2 else (CONVOLUTION[ndim], CONVOLUTION[ndim])
            pair = Constraint(lora, patterns, {})
            if not lora.shape_error(pair.point([module.get_parameter(n) for n in names])):  # r may exceed a side of W
                yield names, pair
    tables = [getattr(module, name, None) for name in ("lora_embedding_B", "lora_embedding_A")]
    if all(isinstance(t, nn.ParameterDict) for t in tables):
        for adapter in tables[0]:  # type: ignore[union-attr]
            yield (f"lora_embedding_B.{adapter}", f"lora_embedding_A.{adapter}"), Constraint(lora, (None, None), {})


WRAPPERS = {"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}


def clean(name: str) -> str:
    """A parameter's name without the components that wrappers (FSDP, torch.compile, checkpointing) put in."""
    return ".".join(part for part in name.split(".") if part and part not in WRAPPERS)
