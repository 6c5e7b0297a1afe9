"""Two bars on a terminal, one for all runs and one for the run at hand; in a file, a line a run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


class Progress:
    """Context manager that shows how far the comparison is.

    Args:
        runs: how many are foreseen.
        steps: of each run.
        say: called with each line.
    """

    def __init__(self, runs: int, steps: int, say: Callable[[str], None]) -> None:
        self.runs, self.steps, self._say = runs, steps, say

    def __enter__(self) -> Progress:
        self.bar = _bar(total=self.runs, desc="all runs", unit="run", position=0)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def foresee(self, runs: int) -> None:
        """There are more runs, or fewer, than was thought."""
        self.bar.total = max(self.bar.total + runs, self.bar.n)
        self.bar.refresh()

    def done(self, line: str) -> None:
        """One run more is finished."""
        with self.bar.external_write_mode():
            self._say(line)
        self.bar.update()

    @contextlib.contextmanager
    def run(self, label: str) -> Iterator[Callable[[float], None]]:
        """The bar of one run; what is yielded is to be called after each step with its loss."""
        with _bar(total=self.steps, desc=label, unit="step", position=1, leave=False) as bar:

            def tick(loss: float) -> None:
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                bar.update()

            yield tick


def _bar(**options: Any) -> Any:
    from tqdm import tqdm

    return tqdm(disable=None, dynamic_ncols=True, **options)
