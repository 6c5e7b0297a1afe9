"""The two tasks: find the text that belongs to a text, or name its class. Each has a loss, a score and baselines."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steepest.finetune.data import Row, Split, subset
from steepest.finetune.encoder import Encoder, embed, tokenize
from steepest.finetune.scores import Scores
from steepest.finetune.settings import Settings
from steepest.runs.errors import UserError

QUERY_TOKENS = 32
"""Length at which a query is cut; what is searched has a length of its own."""


class Task(abc.ABC):
    """Rows to train on, rows held out, and what is asked of the model. All texts are tokenised once."""

    kind: ClassVar[str]
    normalize: ClassVar[bool]
    """Whether the model's vectors have norm one."""
    question: ClassVar[str]
    """What the score measures, in words."""

    train: list[Row]
    test: list[Row]

    def model(self, backbone: nn.Module, pad: int) -> nn.Module:
        """What is trained: the encoder, and a head where the task has one."""
        return Encoder(backbone, self.normalize, pad)

    @abc.abstractmethod
    def loss(self, model: nn.Module, rows: list[int]) -> Tensor:
        """Training loss of a batch of training rows."""

    @abc.abstractmethod
    def evaluate(self, model: nn.Module) -> Scores:
        """Score of the model on the held-out rows."""

    def prepare(self, model: nn.Module) -> None:  # noqa: B027  (most tasks have nothing to fit)
        """Fit a head to the vectors of the pre-trained model."""

    def frozen(self, model: nn.Module) -> Scores:
        """Score of the pre-trained model, before any training; a head is fitted to its vectors."""
        self.prepare(model)
        return self.evaluate(model)

    @abc.abstractmethod
    def tfidf(self) -> Scores:
        """Score without any neural network, from weighted counts of words."""


class Search(Task):
    """For each text find the one that belongs to it, by the cosine of the two vectors.

    Trained with InfoNCE in both directions: the other pairs of a batch are the wrong answers (van den Oord, Li and
    Vinyals 2018, 1807.03748).
    """

    kind = "search"
    normalize = True
    question = "For each held-out query, at which place of the ranking is the text that belongs to it?"

    def __init__(self, split: Split, tokenizer: Any, settings: Settings) -> None:
        self.train, self.test = split.train, subset(split.test, settings.eval_size)
        self.temperature = settings.temperature
        self.candidates = list(dict.fromkeys(row.target for row in self.test))
        self.right = torch.tensor([self.candidates.index(row.target) for row in self.test])

        def ids(texts: list[str], limit: int) -> list[list[int]]:
            return tokenize(tokenizer, texts, min(limit, settings.max_tokens))

        self.train_ids = (
            ids([r.text for r in self.train], QUERY_TOKENS),
            ids([r.target for r in self.train], settings.max_tokens),
        )
        self.test_ids = ids([r.text for r in self.test], QUERY_TOKENS), ids(self.candidates, settings.max_tokens)

    def loss(self, model: nn.Module, rows: list[int]) -> Tensor:
        """InfoNCE of the batch's n pairs, averaged over both directions."""
        queries, targets = (model([side[i] for i in rows]) for side in self.train_ids)  # (n, d) each
        logits = queries @ targets.mT / self.temperature  # (n, n)
        logits = logits.masked_fill(self._also_right(rows).to(logits.device), -torch.inf)
        right = torch.arange(len(rows), device=logits.device)
        return (F.cross_entropy(logits, right) + F.cross_entropy(logits.mT, right)) / 2

    def _also_right(self, rows: list[int]) -> Tensor:
        """Which pairs `(n, n)` of a batch share a text with another pair, and so are no wrong answers."""
        same = [
            [
                i != j and (self.train[i].text == self.train[j].text or self.train[i].target == self.train[j].target)
                for j in rows
            ]
            for i in rows
        ]
        return torch.tensor(same)

    def evaluate(self, model: nn.Module) -> Scores:
        """Cosines of all held-out queries with all held-out candidates."""
        queries, targets = (embed(model, side) for side in self.test_ids)
        return self._scores(queries @ targets.mT)

    def tfidf(self) -> Scores:
        """The same ranking by TF-IDF vectors; the weights are learnt from the training texts."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(sublinear_tf=True).fit([t for row in self.train for t in (row.text, row.target)])
        queries, targets = (vectorizer.transform(texts) for texts in ([r.text for r in self.test], self.candidates))
        return self._scores(torch.from_numpy((queries @ targets.T).toarray()))

    def _scores(self, similarity: Tensor) -> Scores:
        """From similarities (queries, candidates); candidates that tie share their mean rank."""
        own = similarity.gather(1, self.right[:, None])
        ranks = 1 + (similarity > own).sum(1) + ((similarity == own).sum(1) - 1) / 2
        reciprocal = (1 / ranks.double()).tolist()
        metrics = {
            "MRR": sum(reciprocal) / len(reciprocal),
            "recall@1": (ranks <= 1).double().mean().item(),
            "recall@5": (ranks <= 5).double().mean().item(),
        }
        answers = [self.candidates[i] for i in similarity.argmax(1).tolist()]
        return Scores(metrics, reciprocal, answers, (ranks <= 1).tolist())


class Classifier(nn.Module):
    """The encoder and a linear head, texts -> logits `(n, classes)`."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        width = encoder.backbone.config.hidden_size  # type: ignore[union-attr]
        self.encoder = encoder
        self.head = nn.Linear(width, classes, device=encoder.device)  # type: ignore[arg-type]

    def forward(self, texts: list[list[int]]) -> Tensor:
        """Logits of each text."""
        return self.head(self.encoder(texts))


class Classification(Task):
    """Name the class of each text. The head starts as the logistic regression on the frozen encoder's vectors."""

    kind = "classification"
    normalize = False
    question = "How many held-out texts get their right label?"

    def __init__(self, split: Split, tokenizer: Any, settings: Settings) -> None:
        self.train, self.test = split.train, subset(split.test, settings.eval_size)
        self.labels = sorted({row.target for row in self.train})
        if len(self.labels) < 2:
            raise UserError(
                f"{split.source}: the training part has only the label {self.labels[0]!r}; give at least two."
            )
        self.classes = torch.tensor([self.labels.index(row.target) for row in self.train])
        self.train_ids, self.test_ids = (
            tokenize(tokenizer, [r.text for r in rows], settings.max_tokens) for rows in (self.train, self.test)
        )

    def model(self, backbone: nn.Module, pad: int) -> nn.Module:
        """The encoder with a head."""
        return Classifier(Encoder(backbone, self.normalize, pad), len(self.labels))

    def loss(self, model: nn.Module, rows: list[int]) -> Tensor:
        """Cross entropy of the batch."""
        logits = model([self.train_ids[i] for i in rows])
        return F.cross_entropy(logits, self.classes[rows].to(logits.device))

    def evaluate(self, model: nn.Module) -> Scores:
        """Share of right labels."""
        return self._scores([self.labels[i] for i in embed(model, self.test_ids).argmax(1).tolist()])

    @torch.no_grad()
    def prepare(self, model: nn.Module) -> None:
        """Logistic regression on the frozen vectors; the head is set to it."""
        from sklearn.linear_model import LogisticRegression

        regression = LogisticRegression(max_iter=2000).fit(embed(model.encoder, self.train_ids), self.classes)  # type: ignore[arg-type]
        weight, bias = torch.from_numpy(regression.coef_), torch.from_numpy(regression.intercept_)
        if len(self.labels) == 2:  # scikit-learn gives the difference of the two logits
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        model.head.weight.copy_(weight)  # type: ignore[union-attr, operator]
        model.head.bias.copy_(bias)  # type: ignore[union-attr, operator]

    def tfidf(self) -> Scores:
        """Logistic regression on TF-IDF vectors."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=2000))
        pipeline.fit([row.text for row in self.train], [row.target for row in self.train])
        return self._scores(pipeline.predict([row.text for row in self.test]).tolist())

    def _scores(self, predicted: list[str]) -> Scores:
        from sklearn.metrics import f1_score

        actual = [row.target for row in self.test]
        correct = [a == p for a, p in zip(actual, predicted, strict=True)]
        each = [float(c) for c in correct]
        f1 = f1_score(actual, predicted, average="macro", zero_division=0.0)
        return Scores({"accuracy": sum(each) / len(each), "macro F1": float(f1)}, each, predicted, correct)


TASKS: dict[str, type[Search] | type[Classification]] = {cls.kind: cls for cls in (Search, Classification)}
