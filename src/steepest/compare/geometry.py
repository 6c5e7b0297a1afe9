"""What --geometry does to the model before any optimiser sees it."""

from __future__ import annotations

from steepest.compare.model import GPT


def apply(geometry: str, model: GPT) -> GPT:
    """The model itself; under "orthogonal" its attention's projections are then orthogonal matrices, and its embeddings
    unit vectors, and optimisers of this library keep them so."""
    from steepest import Oblique, Stiefel, constrain

    if geometry == "orthogonal":
        for block in model.blocks:
            for name in "qkvo":
                constrain(getattr(block.attention, name), "weight", Stiefel())
        constrain(model.embedding, "weight", Oblique(), matrix="v d -> d v")
    return model
