"""A model's parameters sorted for an optimiser: points, pairs, matrices and the rest."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from steepest.manifolds.base import Manifold
from steepest.manifolds.fixed_rank import FixedRank
from steepest.optim.constrain import Constraint, constraints, contradiction, members
from steepest.optim.layers import axes, is_matrix
from steepest.optim.listing import ROLES
from steepest.optim.lora import lora_pairs
from steepest.optim.peft_layers import peft_points, settle


class Entry(NamedTuple):
    """One point: its tensors, their full names, what it is, and whether it should decay."""

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    role: str
    constraint: Constraint | None
    decays: bool = True


def param_groups(
    model: nn.Module,
    *,
    lora: Manifold | None = FixedRank(turn=0.03),  # noqa: B008  (a frozen value)
    adapters: bool = True,
    other: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Parameter groups of everything in `model` that requires a gradient, for any optimiser of this library.

    In this order: parameters that `constrain` put on a manifold, pairs of LoRA factors, as one point W = B A each, and
    what other adapters of PEFT's have on manifolds (role "point"); weights of linear and convolution layers ("matrix");
    what Muon and its kind leave to AdamW: embeddings ("embedding"), output heads ("head"), norms, biases and all else
    ("other"). A head is a weight that is tied to an embedding, is the model's output embedding
    (`get_output_embeddings()` of transformers), or has the shape of the model's largest embedding. Biases, gains and
    other vectors, class tokens among them, get weight decay 0.

    Args:
        model: any module; PEFT's LoRA layers are recognised by their `lora_A` and `lora_B`.
        lora: the manifold of a pair of LoRA factors; None leaves them as two matrices.
        adapters: put what PEFT's other adapters normalise on its manifold: HRA's and DeLoRA's vectors on spheres,
            AdaLoRA's singular vectors and PaRa's basis on those of orthonormal columns. They are moved there now, as by
            `constrain`, which leaves the model as it is up to rounding; `steepest.optim.peft_layers` says more.
        other: names or patterns (`"*.gate.weight"`) that get the role "other", whatever they look like; a parameter
            that `constrain` put on a manifold stays there.

    Returns:
        Dictionaries with `params`, `param_names`, `role`, `geometry`, `matrix`, `sizes`,
        and nothing else: add `lr` or any other option of the optimiser to them as you like.

    >>> groups = param_groups(torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 2)))
    >>> [(g["role"], g["param_names"]) for g in groups]
    [('matrix', ['1.weight']), ('embedding', ['0.weight']), ('other', ['1.bias'])]

    Riemannian-preconditioned LoRA (Zhang and Pilanci 2024, 2402.02347) is `SGD` on these groups, without their damping:
    an adapter as PEFT makes it, and one line.

    >>> import peft
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6))
    >>> model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"]))
    >>> optimizer = SGD(param_groups(model), lr=0.1)  # or AdamW, Muon, ..., which no scaling of the factors changes
    >>> optimizer.param_groups[0]["geometry"]
    {'kind': 'FixedRank', 'turn': 0.03}
    """
    patterns = (other,) if isinstance(other, str) else tuple(other)
    model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    sorted_: dict[Any, dict[str, Any]] = {}
    for entry in _entries(model, lora, adapters, patterns):
        group = _as_group(entry)
        key = ROLES.index(entry.role), repr({k: v for k, v in group.items() if k[:5] != "param"})
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


def _entries(model: nn.Module, lora: Manifold | None, adapters: bool, other: tuple[str, ...]) -> Iterator[Entry]:
    """Every trainable parameter once; a tied one under its first name, as a matrix only if no user of it is a table."""
    done: set[int] = set()
    tables = _tables(model)

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
        for names, constraint in lora_pairs(module, lora):
            pair, tensors = tuple(clean(f"{prefix}.{n}") for n in names), members(module, names)
            if not any(map(listed, pair)) and fresh(tensors):
                yield Entry(pair, tensors, "point", constraint)
    for prefix, module in model.named_modules() if adapters else ():
        for names, constraint in peft_points(module):
            point, tensors = tuple(clean(f"{prefix}.{n}") for n in names), members(module, names)
            if not any(map(listed, point)) and fresh(tensors):
                settle(constraint, point, tensors)
                yield Entry(point, tensors, "point", constraint)
    for prefix, module in model.named_modules():
        for name, p in module.named_parameters(prefix, recurse=False):
            if not fresh((p,)):
                continue
            full, own = clean(name), name.rpartition(".")[2]
            if listed(full) or id(p) in tables or not is_matrix(module, own, p):
                role = "other" if listed(full) else tables.get(id(p), "other")
                yield Entry((full,), (p,), role, None, decays=sum(n > 1 for n in p.shape) > 1)
            else:
                yield Entry((full,), (p,), "matrix", axes(module, own, p))


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


def _tables(model: nn.Module) -> dict[int, str]:
    """Roles of the weights that read from a vocabulary, or write to one, by their ids."""
    read = [m.weight for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    largest = max((tuple(t.shape) for t in read), default=None)  # the vocabulary, rather than positions
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    ids = {id(t) for t in read}
    written = [t for t in linear if t.shape == largest or id(t) in ids]
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return dict.fromkeys(ids, "embedding") | {id(t): "head" for t in (*written, getattr(output, "weight", None))}


WRAPPERS = {"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}


def clean(name: str) -> str:
    """A parameter's name without the components that wrappers (FSDP, torch.compile, checkpointing) put in."""
    return ".".join(part for part in name.split(".") if part and part not in WRAPPERS)
