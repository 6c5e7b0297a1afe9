"""A model's parameters sorted for an optimiser: points, pairs, matrices and the rest."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from steepest.manifolds.base import Manifold
from steepest.manifolds.fixed_rank import FixedRank
from steepest.optim.constrain import Constraint, constraints, contradiction, members


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
    lora: Manifold | None = FixedRank(turn=0.03),  # noqa: B008  (a frozen value)
    other: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Parameter groups of everything in `model` that requires a gradient, for any optimiser of this library.

    In this order: parameters that `constrain` put on a manifold; pairs of LoRA factors, as one point W = B A each;
    weights of linear and convolution layers, as matrices; the rest: embeddings, output heads, norms, biases, which Muon
    and Shampoo leave to AdamW. A head is a weight that is tied to an embedding, is the model's output embedding
    (`get_output_embeddings()` of transformers), or has the shape of the model's largest embedding. Biases, gains and
    other vectors, class tokens among them, get weight decay 0.

    Args:
        model: any module; PEFT's LoRA layers are recognised by their `lora_A` and `lora_B`.
        lora: the manifold of a pair of LoRA factors; None leaves them as two matrices.
        other: names or patterns (`"*.head.weight"`) that go to the rest, whatever they look like; a parameter that
            `constrain` put on a manifold stays there.

    Returns:
        Dictionaries with `params`, `param_names`, `role` ("point", "matrix" or "other"), `geometry`, `matrix`, `sizes`,
        and nothing else: add `lr` or any other option of the optimiser to them as you like.

    >>> groups = param_groups(torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 2)))
    >>> [(g["role"], g["param_names"]) for g in groups]
    [('matrix', ['1.weight']), ('other', ['0.weight']), ('other', ['1.bias'])]
    """
    patterns = (other,) if isinstance(other, str) else tuple(other)
    model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
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
        **(c.options() if c else {"role": entry.role, "geometry": None, "matrix": None, "sizes": {}}),
    }
    return group if entry.decays else group | {"weight_decay": 0.0}


def _entries(model: nn.Module, lora: Manifold | None, other: tuple[str, ...]) -> Iterator[Entry]:
    """Every trainable parameter once; a tied one under its first name, as a matrix only if no user of it is a table."""
    done: set[int] = set()
    heads = _heads(model)

    def fresh(tensors: Iterable[Tensor]) -> bool:
        ids = {id(t) for t in tensors}
        take = all(t.requires_grad for t in tensors) and not ids & done
        done.update(ids if take else ())
        return take

    def listed(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, o) for o in other)

    for prefix, module, names, constraint in _declared(model):
        tensors = members(module, names)
        if fresh(tensors):
            point = tuple(clean(f"{prefix}.{n}") for n in names)
            yield Entry(point, tensors, constraint.options()["role"], constraint)
    for prefix, module in model.named_modules():
        for names, constraint in _lora_pairs(module, lora):
            pair, tensors = tuple(clean(f"{prefix}.{n}") for n in names), members(module, names)
            if not any(map(listed, pair)) and fresh(tensors):
                yield Entry(pair, tensors, "point", constraint)
    for prefix, module in model.named_modules():
        for name, p in module.named_parameters(prefix, recurse=False):
            if not fresh((p,)):
                continue
            full = clean(name)
            pattern = _matrix_pattern(module, name.rpartition(".")[2], p)
            if pattern is None or id(p) in heads or listed(full):
                yield Entry((full,), (p,), "other", None, decays=sum(n > 1 for n in p.shape) > 1)
            else:
                plain = None if pattern == "" else _axes(pattern)
                yield Entry((full,), (p,), "matrix", plain)


def _declared(model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[str, ...], Constraint]]:
    """What `constrain` declared in the model, refused where it makes no sense any more."""
    said: dict[int, Constraint] = {}
    for prefix, module in model.named_modules():
        for names, constraint in constraints(module).items():
            tensors, label = members(module, names), clean(f"{prefix}.{names[0]}")
            if not tensors:
                raise ValueError(
                    f"{label}: was constrained to {constraint.manifold}, and is a parameter no more (pruning and "
                    "parametrisations take its place); constrain after that, or not at all."
                )
            if len({t.requires_grad for t in tensors}) > 1:
                raise ValueError(
                    f"{label}: some tensors of this point of {constraint.manifold} are frozen; freeze all or none"
                )
            for t in tensors:
                if said.setdefault(id(t), constraint) != constraint:
                    raise ValueError(contradiction(module, names, constraint, said[id(t)]))
            yield prefix, module, names, constraint


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
    if isinstance(module, nn.MultiheadAttention) and name.endswith("proj_weight"):
        return "(s o) i -> s o i" if name == "in_proj_weight" else ""
    if type(module).__name__ == "Conv1D" and name == "weight" and p.ndim == 2:  # GPT-2's layer, of transformers
        return "i o -> o i"
    return "" if isinstance(module, nn.Linear) and name == "weight" and p.ndim == 2 else None


def _heads(model: nn.Module) -> set[int]:
    """Ids of weights that write to a vocabulary."""
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    output = getattr(model, "get_output_embeddings", lambda: None)()
    largest = max((tuple(t.shape) for t in tables), default=None)  # the vocabulary, rather than positions
    heads = {id(t) for t in (*tables, getattr(output, "weight", None))}
    return heads | {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and m.weight.shape == largest}


def _lora_pairs(module: nn.Module, lora: Manifold | None) -> Iterator[tuple[tuple[str, str], Constraint]]:
    """Names and geometry of the factor pairs of a PEFT LoRA layer, one pair for each of its adapters."""
    if lora is None:
        return
    for names in _lora_names(module):
        pair = Constraint(lora, *_lora_patterns(module, names))
        if not lora.shape_error(pair.point(members(module, names))):  # r may exceed a side of W
            yield names, pair


def _lora_names(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of B and of A, for each adapter."""
    layers = [getattr(module, name, None) for name in ("lora_B", "lora_A")]
    if all(isinstance(t, nn.ModuleDict) for t in layers):
        yield from ((f"lora_B.{adapter}.weight", f"lora_A.{adapter}.weight") for adapter in layers[0] or ())
    tables = [getattr(module, name, None) for name in ("lora_embedding_B", "lora_embedding_A")]
    if all(isinstance(t, nn.ParameterDict) for t in tables):
        yield from ((f"lora_embedding_B.{adapter}", f"lora_embedding_A.{adapter}") for adapter in tables[0] or ())


def _lora_patterns(module: nn.Module, names: tuple[str, str]) -> tuple[tuple[str | None, str | None], dict[str, int]]:
    """Patterns of B and of A, and their sizes."""
    if (experts := getattr(module, "num_experts", 1)) > 1:  # PEFT's `target_parameters` keep all experts in one layer
        return ("o (r e) -> e o r", "(e r) i -> e r i"), {"e": experts}
    ndim = module.get_parameter(names[0]).ndim
    return ((None, None) if ndim == 2 else (CONVOLUTION[ndim], CONVOLUTION[ndim])), {}


WRAPPERS = {"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}


def clean(name: str) -> str:
    """A parameter's name without the components that wrappers (FSDP, torch.compile, checkpointing) put in."""
    return ".".join(part for part in name.split(".") if part and part not in WRAPPERS)
