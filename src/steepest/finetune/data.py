"""Texts to train on: the standard library's own documentation, or a table of the user's; and their split.

Rows belong to groups (the module that a docstring comes from, say), and a group is wholly in the training part or
wholly held out, so that nothing leaks from one part into the other.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steepest.runs.errors import UserError

HELD_OUT = 1 / 3
"""Share of the groups that is held out."""

SKIPPED_FOLDERS = {
    "test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "ensurepip", "__pycache__",
}  # fmt: skip
QUERY_WORDS = range(4, 41)
MIN_ANSWER_WORDS = 8
MAX_ANSWER_WORDS = 80


@dataclass(frozen=True)
class Row:
    """One example: a text and what belongs to it, either the text to be found (`search`) or a label."""

    text: str
    target: str
    group: str


@dataclass(frozen=True)
class Split:
    """Rows to train on and rows held out; no group is in both."""

    kind: str
    """`search` or `classification`."""
    source: str
    """Where the rows come from, in words."""
    train: list[Row]
    test: list[Row]


def load(path: str | None) -> Split:
    """The rows of a table, or of the standard library's documentation where no path is given, split by group."""
    if path is None:
        return split("search", "documentation of the Python standard library", standard_library())
    kind, rows = read_table(Path(path))
    return split(kind, str(path), rows)


def split(kind: str, source: str, rows: list[Row]) -> Split:
    """Hold out a third of the groups. Which ones, a hash of their names decides: the same on every machine and seed."""
    rows = list(dict.fromkeys(rows))
    groups = sorted({row.group for row in rows}, key=_digest)
    if len(groups) < 3:
        raise UserError(
            f"{source}: {len(groups)} group(s) of rows, but a split by group needs at least 3; add more rows."
        )
    held_out = set(groups[: max(1, round(len(groups) * HELD_OUT))])
    train = [row for row in rows if row.group not in held_out]
    test = [row for row in rows if row.group in held_out]
    return Split(kind, source, train, test)


def subset(rows: list[Row], size: int) -> list[Row]:
    """At most `size` rows, chosen by a hash of their texts and kept in their order."""
    chosen = set(sorted(range(len(rows)), key=lambda i: _digest(rows[i].text))[:size])
    return [row for i, row in enumerate(rows) if i in chosen]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# The standard library's documentation. ------------------------------------------------------------------------------


def standard_library(root: Path | None = None) -> list[Row]:
    """First line and rest of every docstring and help topic below `root`, without repetitions; grouped by module.

    Sources are parsed, never imported.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    return list(_unrepeated(row for row in _entries(root) if row is not None))


def _entries(root: Path) -> Iterator[Row | None]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED_FOLDERS.intersection(parts) or parts[-1].startswith(("test_", "_test")):
            continue
        tree = _parse(path)
        if parts == ("pydoc_data", "topics"):
            yield from (as_row(text, name, "pydoc_data.topics") for name, text in _topics(tree))
        else:
            module = ".".join(parts).removesuffix(".__init__")
            yield from (as_row(text, name, module) for name, text in _docstrings(tree, module))


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return ast.Module([], [])


def _docstrings(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", module), text


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names and texts of `topics = {...}`, the help that `help("assert")` shows."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield from ast.literal_eval(node.value).items()


def as_row(text: str, name: str, group: str) -> Row | None:
    """First line and rest of a documentation text, with the object's own name taken out of the rest.

    None where the first line is a signature, or one of the two is too short to tell the entry from others.
    """
    first, _, rest = text.strip().partition("\n\n")
    query = " ".join(first.split())
    query = re.sub(r"[*=]{3,}", "", query).strip()
    rest = re.sub(r"(?<!\w)" + re.escape(name.rpartition(".")[2]) + r"(?!\w)", " ", _prose(rest))
    answer = rest.split()
    if len(query.split()) not in QUERY_WORDS or "->" in query or len(answer) < MIN_ANSWER_WORDS:
        return None
    return Row(query, " ".join(answer[:MAX_ANSWER_WORDS]), group)


def _prose(text: str) -> str:
    """The text without its interactive examples and without rules of punctuation."""
    paragraphs = (p for p in text.split("\n\n") if ">>>" not in p)
    return re.sub(r"[*=\-~_^]{3,}", " ", "\n\n".join(paragraphs))


def _unrepeated(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows whose two texts are both new."""
    seen: set[str] = set()
    for row in rows:
        keys = {row.text.lower(), row.target.lower()}
        if not keys & seen:
            seen |= keys
            yield row


# A table of the user's. ---------------------------------------------------------------------------------------------


def read_table(path: Path) -> tuple[str, list[Row]]:
    """Kind of task and rows of a CSV, TSV or JSONL file with columns `text,positive` or `text,label` (and `group`)."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"--data {path}: cannot read {path.suffix or 'a file without suffix'!r}; give a {', '.join(READERS)}."
        )
    if not path.is_file():
        raise UserError(f"--data {path}: no such file. Give the path of a CSV or JSONL file, or leave --data out.")
    try:
        records = list(reader(path))
    except UnicodeDecodeError as error:
        raise UserError(f"--data {path}: not UTF-8 text ({error}); save it as UTF-8.") from None
    if not records:
        raise UserError(f"--data {path}: no rows below the header; give at least three rows.")
    return _as_rows(path, records)


def _as_rows(path: Path, records: list[tuple[int, dict[str, Any]]]) -> tuple[str, list[Row]]:
    first_line, first = records[0]
    column = _target_column(f"--data {path}, line {first_line}", list(first))
    rows = []
    for line, record in records:
        text, target = (_cell(path, line, record, name) for name in ("text", column))
        # Without groups, rows that share what is to be found stay together; for labels, rows that share their text.
        fallback = target if column == "positive" else text
        rows.append(Row(text, target, str(record.get("group") or fallback)))
    return ("search" if column == "positive" else "classification"), rows


def _target_column(where: str, found: list[str]) -> str:
    columns = [name for name in ("positive", "label") if name in found]
    if "text" not in found or len(columns) != 1:
        raise UserError(
            f"{where}: found the columns {', '.join(map(str, found)) or 'none'}; expected `text,positive` (search) or "
            "`text,label` (classification), and if you like `group`. Rename the columns."
        )
    return columns[0]


def _cell(path: Path, line: int, record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    text = "" if value is None else str(value).strip()
    if not text:
        found = ", ".join(str(key) for key in record if key is not None)
        raise UserError(
            f"--data {path}, line {line}: column {name!r} is empty or missing (columns found: {found}); fill it in."
        )
    return text


def _read_delimited(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        for record in reader:
            if None in record:
                raise UserError(
                    f"--data {path}, line {reader.line_num}: more cells than the columns "
                    f"{', '.join(reader.fieldnames or [])}; put texts that hold the delimiter in double quotes."
                )
            yield reader.line_num, record


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"--data {path}, line {line}: not valid JSON ({error}); write one object per line."
                ) from None
            if not isinstance(record, dict):
                raise UserError(
                    f'--data {path}, line {line}: expected an object like {{"text": ...}}, found {text.strip()[:40]}.'
                )
            yield line, record


READERS: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".csv": lambda path: _read_delimited(path, ","),
    ".tsv": lambda path: _read_delimited(path, "\t"),
    ".jsonl": _read_jsonl,
}
