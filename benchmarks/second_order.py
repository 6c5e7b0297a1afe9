"""Second-order methods: conditions, tails, manifolds, few bits, for docs/second_order.md.

    python benchmarks/second_order.py                      # half an hour; writes docs/second_order.md and its picture
    python benchmarks/second_order.py --part conditions    # one part, printed: conditions, tails, manifolds, losses

Finished runs are kept in --output, and found there when it is started again.
"""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import steepest
from steepest import EGN, KFAC, PSGD, SGD, SOAP, SPD, Adam, FixedRank, LazyNewton, Shampoo, ShampooSquared, Stiefel
from steepest.compare.figures import COLORS
from steepest.compare.job import Job, load_text
from steepest.compare.methods import methods
from steepest.compare.results import against
from steepest.compare.settings import Settings
from steepest.runs import files
from steepest.runs.pictures import picture
from steepest.runs.settings import SETTINGS

PAGE = Path(__file__).parent.parent / "docs" / "second_order.md"
CONDITIONS = (1.0, 1e3, 1e6)
SAMPLES = 6000
FALL = 20
RATES = tuple(10 ** (k / 2) for k in range(-5, 2))
COMMON: dict[str, Any] = {"seeds": 3, "threads": 1}
OPTIMIZERS = (
    "adamw",
    "soap",
    "shampoo:beta=0.95+every=10",
    "shampoo:beta=0.95+every=10+graft=adam",
    "shampoo:power=0.5+beta=0.95+every=10+graft=adam",
    "shampoo4bit:bits=32+every=5+roots_every=25",
    "shampoo4bit:bits=4+every=5+roots_every=25",
    "psgd",
)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum(n: int, condition: float, seed: int) -> Tensor:
    """Symmetric, with eigenvalues from 1 to 1 / condition, evenly on a logarithmic scale."""
    q = torch.linalg.qr(randn(n, n, seed=seed))[0]
    return (q * torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)) @ q.mT


# Conditions. ----------------------------------------------------------------------------------------------------------


def conditions() -> dict[str, list[list[float]]]:
    """For each method and condition of A (x) B the error |X| / |X_0| of descent on tr(A X B X^T) / 2.

    Shampoo^2 and PSGD first see gradients at independent normal points, as noise shows them around a minimum, and then
    keep their factors; K-FAC sees a linear layer's inputs of covariance B, and outputs weighted by A.
    """
    methods = {"Shampoo^2": whitened_by(squared), "PSGD": whitened_by(psgd), "K-FAC": kfac, "SGD": gradient}
    halves = [[spectrum(6, c**0.5, seed) for seed in (1, 2)] for c in CONDITIONS]
    return {name: [method(a, b) for a, b in halves] for name, method in methods.items()}


def squared(x: nn.Parameter) -> Any:
    return ShampooSquared([x], lr=0.0, momentum=0.0, eps=1e-14, every=SAMPLES)


def psgd(x: nn.Parameter) -> Any:
    return PSGD([x], lr=0.0, momentum=0.0, clip=(1e9, 1e9))


def whitened_by(build: Callable[[nn.Parameter], Any]) -> Callable[[Tensor, Tensor], list[float]]:
    def curve(a: Tensor, b: Tensor) -> list[float]:
        x = nn.Parameter(torch.zeros(6, 6, dtype=torch.float64))
        optimizer = build(x)
        (group,) = optimizer.param_groups
        for t in range(SAMPLES + 1):
            if "lr_preconditioner" in group:
                group["lr_preconditioner"] = 0.1 * 0.005 ** (t / SAMPLES)
            x.grad = a @ randn(6, 6, seed=t + 1) @ b
            optimizer.step()
        group["every"] = 10**9
        return descend(x, optimizer, a, b)

    return curve


def descend(x: nn.Parameter, optimizer: Any, a: Tensor, b: Tensor) -> list[float]:
    """The error after each step, at the rate for which the first step takes a fifth of it."""
    start = randn(6, 6, seed=0)

    def error(lr: float, steps: int) -> list[float]:
        x.data.copy_(start)
        for group in optimizer.param_groups:
            group["lr"] = lr
        found = []
        for _ in range(steps):
            x.grad = a @ x.detach() @ b
            optimizer.step()
            found.append((x.detach().norm() / start.norm()).item())
        return found

    unit = (error(1.0, 1), x.detach() - start)[1]
    lr = 0.2 * start.norm().item() ** 2 / -(unit * start).sum().item()
    return error(lr, FALL)


def gradient(a: Tensor, b: Tensor) -> list[float]:
    x = nn.Parameter(torch.zeros(6, 6, dtype=torch.float64))
    return descend(x, SGD([x], lr=0.0), a, b)


def kfac(a: Tensor, b: Tensor) -> list[float]:
    """A layer W on inputs of covariance B, with the loss tr(A W B W^T) / 2, from a start that is the same once A and B
    are taken out; output gradients are sampled from a Gaussian whose covariance, A, is then the Fisher matrix. The
    error is the root of the loss."""
    layer, count = nn.Linear(6, 6, bias=False).double(), 4096
    optimizer = SGD(layer.parameters(), lr=0.2)
    preconditioner = KFAC(layer, damping=1e-18, decay=0.0, fisher="sampled").attach(optimizer)
    roots = [torch.linalg.cholesky(s) for s in (a, b)]
    layer.weight.data.copy_(torch.linalg.solve(roots[0].mT, randn(6, 6, seed=0)) @ torch.linalg.inv(roots[1]))
    inputs, noise = (randn(count, 6, seed=seed) @ root.mT for seed, root in zip((4, 3), reversed(roots), strict=True))
    errors = []
    for _ in range(FALL + 1):
        with preconditioner.sampling():
            (layer(inputs) * noise).sum(1).mean().backward()
        optimizer.zero_grad()
        out = layer(inputs)
        loss = (out @ a * out).sum() / (2 * count)
        loss.backward()
        optimizer.step()
        errors.append(loss.item() ** 0.5)
    return [e / errors[0] for e in errors[1:]]


# Tails. ---------------------------------------------------------------------------------------------------------------


def tails() -> dict[str, list[float]]:
    """Distances to the solution: of a small network that fits its data exactly, and of a logistic regression."""
    return {
        "EGN, regression without residual": egn_tail(),
        **{f"LazyNewton, Hessian every {'' if m == 1 else f'{m} '}step{'s'[: m - 1]}": newton_tail(m) for m in (1, 3)},
    }


def egn_tail() -> list[float]:
    """Of the loss, as weights are not unique: its root."""
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(randn(*p.shape, seed=i))
        x = randn(40, 3, seed=10)
        y = model(x)
        for i, p in enumerate(model.parameters()):
            p.add_(0.2 * randn(*p.shape, seed=20 + i))
    egn = EGN(model, SGD(model.parameters(), lr=1.0), loss="squared", damping=1e-2, adaptive=True)
    return [egn.step(x, y).item() ** 0.5 for _ in range(25)]


def newton_tail(every: int) -> list[float]:
    x, w = randn(60, 6, seed=1), nn.Parameter(torch.zeros(6, dtype=torch.float64))
    y = (x @ randn(6, seed=2) + randn(60, seed=3) > 0).double()

    def loss() -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(x @ w, y) + 1e-3 * w.square().sum()

    def run(steps: int, period: int) -> list[Tensor]:
        w.data.zero_()
        newton = LazyNewton([w], every=period, smoothness=0.1)
        return [(newton.step(loss), w.detach().clone())[1] for _ in range(steps)]

    solution = run(40, 1)[-1]
    return [(v - solution).norm().item() for v in run(12, every)]


# Manifolds. -----------------------------------------------------------------------------------------------------------

PLACES = {
    "Stiefel(20, 5)": (Stiefel(), (20, 5)),
    "SPD(10)": (SPD(), (10, 10)),
    "FixedRank(20 x 16, 4)": (FixedRank(), ((20, 4), (4, 16))),
}
METHODS: dict[str, Callable[[Any, float], Any]] = {
    "Adam": lambda p, lr: Adam(p, lr),
    "Adam, betas 0.95": lambda p, lr: Adam(p, lr, betas=(0.95, 0.95)),
    "Shampoo": lambda p, lr: Shampoo(p, lr, beta=0.95),
    "SOAP": lambda p, lr: SOAP(p, lr, weight_decay=0.0),
}
STEPS = 400


def manifolds() -> dict[str, dict[str, dict[str, float]]]:
    """tr(A D B D^T) / 2 with D = W(x) - W(y) and A, B of condition 1e3 each, at the best rate of a sweep: what is left
    after 400 steps, and how many it took to a thousandth."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for place in PLACES:
        found[place] = {}
        for name, build in METHODS.items():
            left, lr, to = min(weighted(place, build, lr) for lr in RATES)
            found[place][name] = {"left": left, "lr": lr, "steps": to}
    return found


def weighted(place: str, build: Callable[[Any, float], Any], lr: float) -> tuple[float, float, float]:
    manifold, shape = PLACES[place]
    generator = torch.Generator().manual_seed(0)
    x, y = (manifold.random_point(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    pair = isinstance(x, tuple)
    params = [nn.Parameter(t) for t in (x if pair else (x,))]
    target = y[0] @ y[1] if pair else y
    a = spectrum(target.shape[0], 1e3, 1)
    b = a if place.startswith("SPD") else spectrum(target.shape[1], 1e3, 2)
    optimizer = build([{"params": params, "geometry": manifold, "role": "point"}], lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        d = (params[0] @ params[1] if pair else params[0]) - target
        loss = (a @ d @ b * d).sum() / 2
        loss.backward()
        losses.append(loss.item())
        try:
            optimizer.step()
        except ValueError:
            return math.inf, lr, math.inf
        schedule.step()
    left = losses[-1] / losses[0]
    to = next((i for i, value in enumerate(losses) if value < 1e-3 * losses[0]), math.inf)
    return (left if left == left else math.inf), lr, to


# Losses. --------------------------------------------------------------------------------------------------------------


def losses(output: Path) -> Any:
    """`steepest compare` of them all."""
    if (output / "results.json").is_file():
        return files.read_json(output / "results.json")
    settings = Settings.of(output, COMMON | {"optimizers": list(OPTIMIZERS)}, resume=(output / SETTINGS).is_file())
    files.make_folder(output)
    files.write_json(output / SETTINGS, settings.to_json())
    job = Job(settings, output, load_text(settings, output, resume=False), lambda line: print(line, flush=True))
    return job.run(methods(settings), {})


# The page. ------------------------------------------------------------------------------------------------------------


def page(found: dict[str, Any]) -> str:
    results = found["losses"]
    s = results["settings"]
    return filled(f"""# Second-order methods

Written by `python benchmarks/second_order.py`. torch {torch.__version__}, one thread, steepest {steepest.__version__}.
Times of steps are in [speed.md](speed.md).

![Errors at three conditions, and tails](second_order.png)

## Conditions

f(X) = tr(A X B X^T) / 2 with X 6 x 6 and A (x) B of condition 1, 1e3 and 1e6; the error |X| / |X_0| over {FALL} steps,
at the rate at which the first takes a fifth of it. Whitening gradients (Shampoo^2, PSGD) gives Newton's step where
their covariance is the square of the Hessian, as it is for gradients at independent normal points: {SAMPLES} of them
come first, and then the factors stay. K-FAC has a layer's inputs of covariance B, and output gradients sampled from a
Gaussian of covariance A; its error is the root of the loss.

| | error at the end, conditions 1, 1e3, 1e6 | largest gap to condition 1 |
|---|---|--:|
{condition_rows(found["conditions"])}

## Tails

Distance to the solution after each step; of EGN, whose weights have many, the root of the loss.

{tail_lines(found["tails"])}

## On manifolds, in the same frame

tr(A D B D^T) / 2 with D = W(x) - W(y) for a given point y, A and B of condition 1e3 each, {STEPS} steps of a cosine
schedule at the best of the rates 10^(k/2) from {RATES[0]:.2g} to {RATES[-1]:.2g}: the share of the loss that is left,
and the steps to a thousandth of it.

| point | {" | ".join(METHODS)} |
|---|{"--:|" * len(METHODS)}
{place_rows(found["manifolds"])}

## Losses and bits

`steepest compare --seeds {s["seeds"]} --threads 1 --optimizers ...`: a transformer of width {s["width"]}, {s["tokens"]}
characters, each method at its best rate of a sweep; mean and standard deviation over {s["seeds"]} seeds.

| method | lr | held-out loss | state, bytes for each parameter | of a step, ms in the optimiser |
|---|--:|--:|--:|--:|
{loss_rows(results)}

{bit_line(results)}
""")


def filled(text: str) -> str:
    """With even lines in paragraphs."""
    lines = (x if x[:1] in "#|!-" else textwrap.fill(x, 120, break_on_hyphens=False) for x in paragraphs(text))
    return "\n".join(lines) + "\n"


def paragraphs(text: str) -> list[str]:
    """Lines, those of a paragraph as one."""
    out = [""]
    for line in text.strip().split("\n"):
        if not line or line[0] in "#|!-" or not out[-1] or out[-1][0] in "#|!-":
            out.append(line)
        else:
            out[-1] += " " + line
    return out[1:]


def condition_rows(found: dict[str, list[list[float]]]) -> str:
    rows = []
    for name, curves in found.items():
        ends = ", ".join(f"{curve[-1]:.3g}" for curve in curves)
        apart = gap(curves)
        rows.append(f"| {name} | {ends} | {f'{apart:.1%}' if apart < 10 else 'none in common'} |")
    return "\n".join(rows)


def gap(curves: list[list[float]]) -> float:
    """By how much curves differ from the first, at most."""
    first, *rest = (torch.tensor(curve) for curve in curves)
    return max((curve / first - 1).abs().max().item() for curve in rest)


def tail_lines(found: dict[str, list[float]]) -> str:
    return "\n".join(f"- {name}: {', '.join(f'{e:.1e}' for e in errors)}" for name, errors in found.items())


def place_rows(found: dict[str, Any]) -> str:
    def cell(one: dict[str, float]) -> str:
        return f"{one['left']:.1e}, {one['steps'] if one['steps'] < STEPS else 'not within'} steps (lr {one['lr']:.2g})"

    return "\n".join(f"| {place} | {' | '.join(map(cell, row.values()))} |" for place, row in found.items())


def loss_rows(results: dict[str, Any]) -> str:
    rows = []
    for m in results["methods"]:
        t = m["summary"]
        rows.append(
            f"| {m['name']} | {m['lr']:.3g} | {t['loss']:.4f} ± {t['sd']:.4f} | "
            f"{t['state_bytes_per_parameter']:.2f} | {t['timing']['optimizer_ms']:.1f} |"
        )
    return "\n".join(rows)


def bit_line(results: dict[str, Any]) -> str:
    four, full = (next(m for m in results["methods"] if f"bits {b}" in m["name"]) for b in (4, 32))
    change = four["summary"]["loss"] / full["summary"]["loss"] - 1
    low, high = against(four, full)["interval"]
    return (
        f"With 4 bits the loss is {change:+.2%} of that with 32 (the difference is {low:+.4f} to {high:+.4f}), with "
        f"{four['summary']['state_bytes_per_parameter']:.1f} bytes of state for each parameter instead of "
        f"{full['summary']['state_bytes_per_parameter']:.1f}, those of AdamW for embedding, head and norms included."
    )


def draw(found: dict[str, Any]) -> bytes:
    """Curves at three conditions for each method; tails."""
    with picture((10, 4.2)) as (figure, buffer):
        left, right = figure.subplots(1, 2)
        for i, (name, curves) in enumerate(found["conditions"].items()):
            for curve, style in zip(curves, ("-", "--", ":"), strict=True):
                label = name if style == "-" else None
                left.semilogy(range(1, len(curve) + 1), curve, style, color=COLORS[i], label=label)
        left.set(xlabel="step", ylabel="error", title="Condition 1 (solid), 1e3 (dashed), 1e6 (dotted)", ylim=(5e-3, 3))
        left.legend()
        for i, (name, errors) in enumerate(found["tails"].items()):
            right.semilogy(range(1, len(errors) + 1), errors, ".-", color=COLORS[i], label=name)
        right.set(xlabel="step", ylabel="error", title="Tails", ylim=(1e-17, 1e6))
        right.legend(loc="upper right")
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/second_order"), help="folder of the runs")
    parser.add_argument(
        "--part", choices=["conditions", "tails", "manifolds", "losses"], help="this part only, printed"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    jobs: dict[str, Callable[[], Any]] = {
        "conditions": conditions,
        "tails": tails,
        "manifolds": manifolds,
        "losses": lambda: losses(args.output / "losses"),
    }
    if args.part is not None:
        found = jobs[args.part]()
        print(condition_rows(found) if args.part == "conditions" else found)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    cache = args.output / "parts.json"
    known = files.read_json(cache) if cache.is_file() else {}
    for part in ("conditions", "tails", "manifolds"):
        if part not in known:
            files.write_json(cache, known := known | {part: jobs[part]()})
    found = known | {"losses": jobs["losses"]()}
    files.write_text(PAGE, page(found))
    PAGE.with_suffix(".png").write_bytes(draw(found))


if __name__ == "__main__":
    main()
