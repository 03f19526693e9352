"""What a person sees: one line at the end of each stage, a line now and then in between, and nothing twice."""

import io
import re

import pytest
from conftest import Written
from rich.console import Console

from pipeline import progress
from pipeline.progress import Display

FIRST, SECOND = Written((("a", "1"),)), Written((("b", "2"),))


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: ``clock[0]`` is the time."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def shown(terminal=False):
    text = io.StringIO()
    return text, Display(Console(file=text, force_terminal=terminal, width=100, legacy_windows=False), 2)


def test_stages_are_counted_as_they_end_whatever_their_order(clock):
    text, display = shown()
    with display:
        display.start(FIRST)
        display.start(SECOND)
        clock[0] += 2.5
        display.done(SECOND, computed=True)
        display.done(FIRST, computed=False)
    assert text.getvalue().splitlines() == [
        "[1/2]  written  2.5 s",
        "[2/2]  written  made meanwhile by another process",
    ]


def test_a_failure_is_told_with_its_reason_and_counts_as_an_end():
    text, display = shown()
    with display:
        display.start(FIRST)
        display.failed(FIRST, "it [diverged]; lower the rate")
        display.start(SECOND)
        display.done(SECOND, computed=True)
    lines = text.getvalue().splitlines()
    assert lines[0] == "FAILED  written: it [diverged]; lower the rate" and lines[1].startswith("[2/2]")


def test_between_start_and_end_there_is_a_line_every_ten_seconds(clock):
    text, display = shown()
    with display:
        display.start(FIRST)
        for step in range(1, 31):  # a report every second
            clock[0] += 1
            display.report(FIRST, step, 100, {"loss": 0.5, "rate": 250.4})
    lines = text.getvalue().splitlines()
    assert [re.search(r"(\d+)/100", line)[1] for line in lines] == ["11", "22"]
    assert "loss 0.500" in lines[0] and "rate 250" in lines[0]
    assert lines[0].endswith("89 s left"), "11 steps took 11 seconds, 89 steps are left"


def test_a_report_that_arrives_after_the_end_is_dropped():
    text, display = shown()
    with display:
        display.start(FIRST)
        display.done(FIRST, computed=True)
        before = text.getvalue()
        display.report(FIRST, 5, 10, {})
        assert text.getvalue() == before


def test_a_terminal_gets_bars_and_no_lines_in_between(clock):
    text, display = shown(terminal=True)
    with display:
        display.start(FIRST)
        clock[0] += 60
        display.report(FIRST, 5, 10, {"loss": 1.0})
        display.done(FIRST, computed=True)
    assert "5/10" not in text.getvalue() and "[1/2]" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())
