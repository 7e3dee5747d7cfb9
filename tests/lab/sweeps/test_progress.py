"""What is told of a running sweep."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from groupnorm.lab.sweeps.progress import Display, Progress
from lab.synthetic import make_cell

IMAGES = {"c0ffee": 320}
EPOCHS = 2


def cells(norms=("bn", "gn"), sizes=(32, 4), seeds=2, **fields):
    grid = (make_cell(n, b, s, epochs=EPOCHS, **fields) for n in norms for b in sizes for s in range(seeds))
    return {cell.id: cell for cell in grid}


def epoch(number, cell, seconds=1.0):
    step = number * (320 // cell.batch_size)
    return {"kind": "epoch", "epoch": number, "step": step, "error": 10.0 * number, "seconds": seconds}


def ended(cell, status="finished"):
    return [*(epoch(number, cell) for number in (1, 2)), {"kind": "end", "status": status, "reason": ""}]


def progress(found, records=None, workers=2):
    return Progress(found, {name: (records or {}).get(name, []) for name in found}, IMAGES, workers)


def shown(display, *events):
    """What is printed, where nobody watches: into a pipe."""
    with display:
        for event in events:
            display.show(event)
    return display.console.file.getvalue()


def display(known, **options):
    return Display(known, Path("runs/here"), "batch_size", console=Console(file=io.StringIO(), width=100), **options)


def test_the_time_left_is_that_of_the_passes_left():
    found = cells(norms=("gn",))
    first, _, small, last = found
    known = progress(found)
    assert (known.fraction, known.seconds_left, known.ended) == (0, None, 0)
    known.take({"cell": first, **epoch(1, found[first], seconds=2.0)})  # 10 passes of 32 images: 0.2 s each
    assert known.fraction == pytest.approx(10 / (2 * 20 + 2 * 160))
    assert known.seconds_left == pytest.approx(0.2 * (10 + 20 + 2 * 160) / 2)
    known.take({"cell": small, **epoch(1, found[small], seconds=4.0)})  # 80 passes of 4 images: 0.05 s each
    known.take({"cell": small, "kind": "progress", "step": 120})
    assert known.seconds_left == pytest.approx((0.2 * (10 + 20) + 0.05 * (40 + 160)) / 2)
    known.take({"cell": last, "kind": "begin"})
    assert known.count("running") == 1
    known.take({"cell": last, "kind": "end", "status": "diverged"})
    assert (known.ended, known.count("diverged"), known.count("pending")) == (1, 1, 3)
    assert known.seconds_left == pytest.approx((0.2 * (10 + 20) + 0.05 * 40) / 2)


def test_several_passes_make_a_step():
    found = cells(norms=("bn",), sizes=(32,), seeds=1, normalization_batch=8)
    (name,) = found
    known = progress(found, workers=1)
    known.take({"cell": name, **epoch(1, found[name], seconds=4.0)})
    assert known.seconds_left == pytest.approx(4.0)


def test_what_crashed_is_left_and_what_ended_is_not():
    found = cells()
    first, second, *_ = found
    known = progress(found, {first: ended(found[first]), second: ended(found[second], "crashed")})
    assert known.done_before == known.ended == 1
    assert known.status[second] == "pending"


def test_a_pipe_is_told_at_once_how_many_cells_and_where():
    found = cells()
    first = next(iter(found))
    assert shown(display(progress(found))).startswith("8 cells in runs/here.\n")
    known = progress(found, {first: ended(found[first])})
    assert shown(display(known)).startswith("8 cells in runs/here, of which 1 was finished before.\n")
    one = cells(norms=("gn",), sizes=(32,), seeds=1)
    assert shown(display(progress(one))).startswith("1 cell in runs/here.\n")


def test_marks_of_an_unfinished_table_are_explained():
    found = cells()
    first = next(iter(found))
    assert shown(display(progress(found))).endswith("· no seed has ended\n")
    some = progress(found, {first: ended(found[first])})
    assert shown(display(some)).endswith("· no seed has ended, … some seeds are still to come\n")
    whole = progress(found, {name: ended(cell) for name, cell in found.items()})
    assert shown(display(whole)).endswith("┘\n")


def test_an_event_and_a_table_of_ten_thousand_cells_take_milliseconds():
    found = cells(seeds=2500)
    known = progress(found)
    shows = display(known)
    begin = time.process_time()
    for name, cell in list(found.items())[:500]:
        for event in ended(cell):
            shows.show({"cell": name, **event})
    for _ in range(10):
        shows.console.print(shows.render())
    assert time.process_time() - begin < 5  # with a look at all cells for each it took 30
    assert known.ended == 500
