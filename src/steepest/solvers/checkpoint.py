"""A run in a file: written whole or not at all, read without unpickling anything but tensors and plain values."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch

from steepest.manifolds.tensors import as_tuple
from steepest.runs.files import atomic
from steepest.solvers.base import State
from steepest.solvers.problem import Evaluations, Iterate, Problem
from steepest.solvers.result import Record
from steepest.spec import Spec

FORMAT = 1


class Checkpoint:
    """Where a run is kept, if anywhere."""

    def __init__(self, path: str | Path | None, every: float, problem: Problem, method: Spec) -> None:
        self.path = None if path is None else Path(path)
        self.every, self.problem, self.method = every, problem, method
        self.last = time.monotonic()

    def save(self, at: Iterate, state: State, history: list[Record], seconds: float, final: bool) -> None:
        """Write the file, if it is time."""
        if self.path is None or not (final or time.monotonic() - self.last >= self.every):
            return
        content = {
            "format": FORMAT,
            "method": self.method.to_spec(),
            "manifold": self.problem.manifold.to_spec(),
            "seed": self.problem.seed,
            "x": list(as_tuple(at.x)),
            "value": at.value,
            "state": state,
            "history": [tuple(record) for record in history],
            "evaluations": vars(self.problem.evaluations),
            "seconds": seconds,
        }
        with atomic(self.path) as temporary:
            torch.save(content, temporary)
        self.last = time.monotonic()

    def load(self, x0: Any) -> tuple[Iterate, State, list[Record], float] | None:
        """The run in the file, on the device of x0, wherever it was saved; None where there is no file."""
        if self.path is None or not self.path.exists():
            return None
        device = as_tuple(x0)[0].device
        try:
            content = torch.load(self.path, map_location=device, weights_only=True)
        except Exception as error:
            raise ValueError(f"checkpoint: {self.path} cannot be read ({error}); remove it to start anew") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"checkpoint: {self.path} is no run of this version's solvers; choose another file")
        for name, mine in (("method", self.method.to_spec()), ("manifold", self.problem.manifold.to_spec())):
            self._same(name, content[name], mine)
        self._same("seed", content["seed"], self.problem.seed)
        x = tuple(content["x"])
        at = self.problem.at(x if len(x) > 1 else x[0])
        if not math.isclose(at.value, content["value"], rel_tol=1e-4, abs_tol=1e-6):
            self._same("value of the function at its point", content["value"], at.value)
        self.problem.evaluations = Evaluations(**content["evaluations"])
        return at, content["state"], [Record(*record) for record in content["history"]], content["seconds"]

    def _same(self, name: str, kept: Any, mine: Any) -> None:
        if kept != mine:
            raise ValueError(
                f"checkpoint: {self.path} is of another run: its {name} is {kept}, this run's {mine}. Choose another "
                "file, or remove this one."
            )
