"""The command line: messages, exit codes, signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steepest.cli import build
from steepest.compare import figures

COMMAND = [sys.executable, "-c", "from steepest.cli import app; app()", "compare"]


def as_arguments(options: dict) -> list[str]:
    given = {k: v for k, v in options.items() if k not in ("evaluations", "eval_tokens")}
    return [part for name, value in given.items() for part in ("--" + name.replace("_", "-"), str(value))]


def test_help_tells_every_option():
    text = CliRunner().invoke(build(), ["compare", "--help"], env={"COLUMNS": "200"}).output
    names = "optimizers data tokens batch-size context width layers heads seeds lrs lr-factor extend warmup schedule"
    for name in f"{names} adamw-lr weight-decay geometry device dtype threads output resume seed".split():
        assert f"--{name} " in text


def test_two_optimizers_end_to_end(tmp_path, options, monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda results: {})  # test_job looks at the pictures
    arguments = [*as_arguments(options | {"optimizers": "adamw,muon", "seeds": 2}), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(build(), ["compare", *arguments])
    assert result.exit_code == 0, result.output
    assert "reached the lowest held-out loss" in result.output
    assert "What came out" in (tmp_path / "out" / "report.html").read_text()
    again = CliRunner().invoke(build(), ["compare", *arguments])
    assert again.exit_code == 2
    assert "holds a run already" in again.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optimizers", "adm"], "'adam'"),
        (["--data", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--resume"], "no interrupted run"),
        (["--tokens", "many"], "--tokens"),
        (["--unheard-of"], "unheard-of"),
    ],
)
def test_mistake_gives_one_message_and_exit_code_2(tmp_path, arguments, words):
    result = CliRunner().invoke(build(), ["compare", "--output", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_signal_keeps_finished_runs_and_tells_how_to_go_on(tmp_path, options):
    given = options | {"optimizers": "sgd", "seeds": 100_000, "lrs": 1}
    folder = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, *as_arguments(given), "--output", str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        wait_for_run(folder, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1].endswith(f"go on with: steepest compare --resume --output {folder}")
    assert "Traceback" not in errors
    assert list(folder.rglob("lr*.json"))
    assert not list(folder.rglob("*.tmp"))


def wait_for_run(folder: Path, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not list(folder.rglob("lr*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
