"""Speed of exp, log, dist, steps and transport beside other libraries: the first half of docs/speed.md.

Positive definite matrices, Stiefel and Grassmann, from one small matrix to ten thousand, float32 and float64, on one
thread (CPU time) and on two (wall time). Every result is compared with a float64 formula of its own (`problems`).

    python benchmarks/primitives.py            # half an hour; writes docs/speed.json, docs/speed.md, docs/speed.png
    python benchmarks/primitives.py --quick --output /tmp/speed.json     # minutes
"""

from __future__ import annotations

import speed_page
from harness import Effort, arguments, measure
from peers import DISTRIBUTIONS, LIBRARIES
from problems import cells, judge


def main() -> None:
    options = arguments(__doc__ or "")
    effort = Effort(rounds=3, seconds=0.01, limit=5) if options.quick else Effort()
    chosen = [cell for cell in cells() if options.only in str(cell)]
    measure("primitives", options, effort, chosen, LIBRARIES, judge, DISTRIBUTIONS)
    speed_page.write(options.output)


if __name__ == "__main__":
    main()
