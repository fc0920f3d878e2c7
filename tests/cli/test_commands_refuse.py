"""What commands refuse in a sentence: a request, an output or a server that cannot be."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

CRUCIBLE = [sys.executable, "-c", "from crucible_trio.cli import main; main()"]
ASK = ["ask", "--engine", "replay", "--replay-speed", "inf"]


def run(*arguments: str, shell: str = "") -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    command = ["sh", "-c", f'"$@" {shell}', "sh", *CRUCIBLE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "shell", "sentence"),
    [
        (
            [*ASK, "--max-output-tokens", "99999999", "x"],
            "",
            "max_output_tokens is over this server's maximum, 32768",
        ),
        ([*ASK, "x"], ">&-", "standard output is closed"),
        (
            ["ask", "--engine", "replay", "--base-url", "http://127.0.0.1:9", "x"],
            "",
            "--base-url is for --engine upstream",
        ),
        (["serve", "--engine", "replay", "--model", "m"], "", "--model is for --engine local or upstream, and not for"),
        (
            ["serve", "--engine", "local", "--replay-speed", "2"],
            "",
            "--replay-speed is for --engine replay, and not for",
        ),
        (["ask", "--base-url", "http://127.0.0.1:9", "--replay-speed", "2", "x"], "", "and not for upstream"),
        (["check", "http://127.0.0.1:9", "--key", "s3\ncret"], "", "the key of --key or CRUCIBLE_KEY must be 1 to 255"),
        (["check", "http://127.0.0.1:9", "--key="], "", "the key of --key or CRUCIBLE_KEY must be 1 to 255"),
        (["check", "http://127.0.0.1:9", "--timeout", "nan"], "", "must be a finite number"),
        (["check", "http://127.0.0.1:9", "--timeout", "0"], "", "x>0"),
        (["check", "http://u:s3cret@127.0.0.1:9"], "", "URL must look like http://127.0.0.1:8000, without a user"),
    ],
)
def test_a_sentence_and_exit_code_2(arguments: list[str], shell: str, sentence: str) -> None:
    code, _, said = run(*arguments, shell=shell)
    assert code == 2
    assert sentence in said.splitlines()[-1]
    assert "Traceback" not in said
    assert "s3" not in said


def test_an_answer_that_cannot_be_written_is_a_sentence() -> None:
    said = "lost the stream: cannot write to standard output: No space left on device\n"
    assert run(*ASK, "x", shell=">/dev/full") == (1, "", said)


def test_no_trace_hides_the_trace_of_a_pipeline_in_this_process() -> None:
    with_trace = run(*ASK, "--mode", "deep", "x")[1]
    without = run(*ASK, "--mode", "deep", "--no-trace", "x")[1]
    assert with_trace.startswith("Reasoning\n")
    assert without
    assert with_trace.endswith(f"\n\nAnswer\n{without}")
