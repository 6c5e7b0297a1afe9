"""The command line: messages, exit codes, signals."""

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
    heavy = "[m for m in ('transformers', 'peft', 'sklearn') if m in sys.modules]"
    code = f"import sys; from steepest.cli import build; build(); print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    text = CliRunner().invoke(build(), ["finetune", "--help"], env={"COLUMNS": "200"}).output
    for flag in (
        "--model",
        "--data",
        "--optimizer",
        "--adapter",
        "--adapter-option",
        "--calibration-batches",
        "--geometry",
        "--resume",
        "--no-baseline",
        "--output",
    ):
        assert flag in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optimizer", "adm"], "'adam'"),
        (["--adapter", "hra", "--adapter-option", "r=2", "--adapter-option", "strct=true"], "'strict'"),
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


@pytest.mark.parametrize(
    "codes", [{signal.SIGINT: 130}, pytest.param({signal.SIGTERM: 143}, marks=pytest.mark.slow)], ids=str
)
def test_signal_saves_a_checkpoint_and_tells_how_to_go_on(tmp_path, options, codes):
    arguments = as_arguments(options | {"steps": 100_000, "save_every": 5})
    running = {signum: start([*arguments, "--output", str(tmp_path / signum.name)]) for signum in codes}
    try:
        for signum, process in running.items():
            folder = tmp_path / signum.name / "runs" / "chosen"
            wait_for(folder / "latest.json", process)
            process.send_signal(signum)
            _, errors = process.communicate(timeout=120)
            assert process.returncode == codes[signum]
            advice = f"go on with: steepest finetune --resume --output {tmp_path / signum.name}"
            assert errors.strip().splitlines()[-1].endswith(advice)
            assert "Traceback" not in errors
            assert checkpoint.load(folder).step >= 5
    finally:
        for process in running.values():
            process.kill()


def start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not path.is_file():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
