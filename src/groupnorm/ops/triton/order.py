"""Programs of one launch that wait for one another, without a barrier across the grid.

Each program takes a ticket when it starts. With ticket t it first makes block t of the first pass, which waits for
nothing, and then block ``t - lead`` of the second pass, once the whole span of that block has been through the first.
Tickets are taken in the order in which programs start, whatever order the device starts them in. So whoever waits,
waits for programs that run already and have only work before them that waits for nothing: this cannot deadlock, however
few programs fit the device at once. Results do not depend on the order.

    counters[0]      tickets taken
    counters[1 + s]  blocks of span s that are through the first pass; one more when the span is settled
"""

# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def take_ticket(counters):
    """The next number, from 0."""
    return tl.atomic_add(counters, 1, sem="relaxed")


@triton.jit
def arrive(counter):
    """Count this program; what it wrote is visible to whoever sees the count. How many there were before."""
    tl.debug_barrier()  # all threads of the program have written before the one that counts
    return tl.atomic_add(counter, 1, sem="acq_rel")


@triton.jit
def wait(counter, count):
    """Wait until ``count`` programs have arrived; what they wrote is visible from here on."""
    while tl.atomic_add(counter, 0, sem="acquire") < count:
        pass
    tl.debug_barrier()
