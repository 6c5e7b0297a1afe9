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
from steepest.finetune import checkpoint

COMMAND = [sys.executable, "-c", "from steepest.cli import app; app()", "finetune"]


def as_arguments(options: dict) -> list[str]:
    return [part for name, value in options.items() if name != "measure_every" for part in (_flag(name), str(value))]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def test_help_tells_every_option_without_loading_the_heavy_packages():
    code = "import sys\nfrom steepest.cli import build\nbuild()\nprint([m for m in ('transformers', 'peft') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    text = CliRunner().invoke(build(), ["finetune", "--help"], env={"COLUMNS": "200"}).output
    for flag in ("--model", "--data", "--optimizer", "--geometry", "--resume", "--no-baseline", "--output"):
        assert flag in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optimizer", "adm"], "'adam'"),
        (["--data", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--resume"], "no interrupted run"),
        (["--steps", "many"], "--steps"),
        (["--unheard-of"], "unheard-of"),
    ],
)
def test_mistake_gives_one_message_and_exit_code_2(tmp_path, arguments, words):
    result = CliRunner().invoke(build(), ["finetune", "--output", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_a_checkpoint_and_tells_how_to_go_on(tmp_path, options, signum, code):
    options |= {"steps": 100_000, "save_every": 5}
    command = [*COMMAND, *as_arguments(options), "--output", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    latest = tmp_path / "runs" / "chosen" / "latest.json"
    try:
        wait_for(latest, process)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert errors.strip().splitlines()[-1].endswith(f"go on with: steepest finetune --resume --output {tmp_path}")
    assert "Traceback" not in errors
    assert checkpoint.load(latest.parent).step >= 5


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not path.is_file():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
