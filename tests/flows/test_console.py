"""What is printed where, and how it looks when no one watches."""

import io
import threading
import time

import pytest

from flows import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_results_go_to_stdout_and_the_rest_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.finished("Did it.", [("where", "here"), ("also", "there")], ["one", "two"])
    console.note("aside")
    console.show_error("It broke.", "Mend it.")
    captured = capsys.readouterr()
    assert captured.out == "Did it.\n  where  here\n  also   there\nNext: one\n      two\n"
    assert captured.err == "aside\nError: It broke.\nMend it.\n"


def test_markup_and_long_lines_come_out_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    line = "[bold]/a/path/[x]/" + "y" * 400
    console.say(line)
    console.show_error(line)
    captured = capsys.readouterr()
    assert captured.out == line + "\n"
    assert captured.err == f"Error: {line}\n"


def test_tables_are_plain_text_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(("name", "count"), [("a [red]b", 3), (None, 14)], right=("count",))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["name", "count"], ["a", "[red]b", "3"], ["-", "14"]]
    assert "\x1b" not in "".join(lines)


def test_colours_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, pipe = Terminal(), io.StringIO()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stderr", screen)
    console.show_error("It broke.")
    monkeypatch.setattr("sys.stderr", pipe)
    console.show_error("It broke.")
    assert "\x1b[" in screen.getvalue()
    assert pipe.getvalue() == "Error: It broke.\n"


def test_progress_is_one_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("Counting") as report:
        for i in range(100):
            report("counting", i, 100)
    assert capsys.readouterr().err == "Counting ...\n"


def test_progress_in_a_pipe_says_now_and_then_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.02)
    said = ""
    with console.progress("Training") as report:
        for label, done, wanted in (("", 0, "0 of 4,000 (0%)"), ("epoch 1", 1200, "epoch 1, 1,200 of 4,000 (30%)")):
            report(label, done, 4000)
            deadline = time.monotonic() + 20
            while f"Training: {wanted}, 0 min" not in said and time.monotonic() < deadline:
                said += capsys.readouterr().err
            assert f"Training: {wanted}, 0 min" in said
    assert all(thread.name != "progress" for thread in threading.enumerate())


def test_progress_on_a_terminal_shows_each_label(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("sys.stderr", screen)
    with console.progress("Counting") as report:
        report("check", 1, 2)
        report("upload", 1, None)
    assert "check" in screen.getvalue()
    assert "upload" in screen.getvalue()


def test_waiting_says_each_change_once_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with console.waiting("Starting") as tell:
        tell("one")
        tell("one")
        tell("two")
    assert capsys.readouterr().err == "Starting ...\none ...\ntwo ...\n"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1536, "1.5 kB"), (8_600_000, "8.6 MB"), (3 * 10**13, "30.0 TB")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert console.size(count) == text
