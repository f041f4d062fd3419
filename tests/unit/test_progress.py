"""Progress of long work."""

import pytest

from weighted_mtp.core import progress as module
from weighted_mtp.core.progress import Progress


class Time:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch):
    time = Time()
    monkeypatch.setattr(module, "time", time)
    return time


def lines(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_lines_when_piped(time, capsys):
    with Progress(3, "part") as progress:
        for _ in range(3):
            time.now += 20
            progress.update(1, "4 right")
    assert lines(capsys) == [
        "part 1/3  4 right  ETA 0:40",
        "part 2/3  4 right  ETA 0:20",
        "part 3/3  4 right  ETA 0:00",
    ]


def test_the_first_of_a_batch_took_as_long_as_all_of_it(time, capsys):
    """400 s for 64 programs are not 400 s for one."""
    with Progress(210, "program", done=10, together=64) as progress:
        time.now += 400
        for _ in range(63):
            progress.update()
            time.now += 10
        assert all(line.endswith("ETA –") for line in lines(capsys))
        progress.update()
        (line,) = lines(capsys)
    seconds = (400 + 630) * 136 / 64
    assert line.endswith(f"ETA {int(seconds) // 60}:{int(seconds) % 60:02d}")


def test_less_than_a_batch_has_an_estimate_at_its_end(time, capsys):
    with Progress(2, "text", together=64) as progress:
        time.now += 30
        progress.update(2)
    assert lines(capsys)[-1].endswith("ETA 0:00")


def test_a_bar_shows_no_estimate_before_that_either(monkeypatch):
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(8, "text", together=4) as progress:
        assert progress._bar is not None
        assert "remaining" not in str(progress._bar.bar_format)
        progress.update(3)
        assert progress._bar.bar_format is not None
        progress.update(1)
        assert progress._bar.bar_format is None
