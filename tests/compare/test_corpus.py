"""Text as numbers, batches, and what is held out."""

import pytest
import torch

from steepest.compare import corpus
from steepest.runs.errors import UserError


def decoded(found: corpus.Corpus, tokens: torch.Tensor) -> str:
    return "".join(found.characters[i] for i in tokens.tolist())


def test_text_comes_back_and_its_end_is_held_out(text):
    found = corpus.load(str(text), 16)
    whole = text.read_text()
    assert decoded(found, found.train) + decoded(found, found.valid) == whole
    assert len(found.valid) == int(0.05 * len(whole))


def test_rare_characters_become_the_unknown_one():
    found = corpus.encode("x", "ab" * 200_000 + "é", 16)
    assert found.characters == corpus.UNKNOWN + "ab"
    assert found.valid[-1] == 0


def test_batches_depend_on_seed_and_step_alone(text):
    found = corpus.load(str(text), 16)
    x, y = found.batch(1, 5, 3, 16)
    torch.manual_seed(123)
    again, _ = found.batch(1, 5, 3, 16)
    assert torch.equal(x, again)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert not torch.equal(x, found.batch(1, 6, 3, 16)[0])
    assert not torch.equal(x, found.batch(2, 5, 3, 16)[0])
    assert decoded(found, x[0]) in text.read_text()


def test_held_out_windows_are_spread_over_the_tail(text):
    found = corpus.load(str(text), 16)
    x, y = found.held_out(128, 16)
    assert x.shape == y.shape == (8, 16)
    tail = decoded(found, found.valid)
    places = [tail.index(decoded(found, torch.cat([a, b[-1:]]))) for a, b in zip(x, y, strict=True)]
    assert places[0] == 0
    assert places[-1] > 0.9 * (len(tail) - 17)
    assert found.held_out(10**9, 16)[0].numel() <= len(found.valid)


def test_standard_library_is_a_few_million_characters_in_a_fixed_order():
    text = corpus.standard_library()
    assert len(text) > 2_000_000
    assert text == corpus.standard_library()
    assert "def" in text[-100_000:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file. Give the path of a text file"),
        (b"short", r"5 characters are too few.*Give at least 361"),
        (b"\xff\xfe" * 400, "not UTF-8 text"),
    ],
)
def test_unusable_file_is_named(tmp_path, content, message):
    path = tmp_path / "t.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        corpus.load(str(path), 16)
    assert f"--data {path}" in str(caught.value)
