"""Results that nobody measured, for what is made of results."""

import random
import resource

import torch

from groupnorm.bench import rates
from groupnorm.bench.cases import listed
from groupnorm.bench.machine import stamp
from groupnorm.bench.measure import BACKWARD, BOTH, FORWARD, PASSES, WARM
from groupnorm.bench.store import Results

CPU = {"device": "cpu", "name": "Test CPU @ 2 GHz", "l2": 2 << 20, "instructions": "AVX512", "threads": 2}
GPU = {"device": "cuda", "name": "Test GPU", "l2": 50 << 20, "cuda": "13.0"}
STAMPED = {"date": "2030-01-02"}


def results(path, machine=CPU):
    return Results(path, {"machine": machine})


def entry(*, phases, others=0.0):
    """A measured case; ``phases`` gives for each its ratios."""
    timings = {}
    for phase, ratios in phases.items():
        passes = PASSES[phase.removesuffix(WARM)]
        seconds = {"groupnorm": [0.9e-3, 1e-3, 1.2e-3]} | {name: [r * 1e-3] * 3 for name, r in ratios.items()}
        timings[phase] = {"rounds": 5, "seconds": seconds, "ratios": ratios, "gbs": 10.0, "others": others}
        if "copy" in ratios:
            timings[phase]["of_copy"] = passes / 2 * ratios["copy"]
    errors = {key: {"y": 1.0, "dx": 1.0} for key in ("torch", "groupnorm")}
    return {"status": "measured", "errors": errors, "out": {}, "timings": timings, "stamp": stamp(), **STAMPED}


def on_cpu(forward=2.5, both=3.5, compiled=1.5, copied=0.8, copied_both=0.5, **options):
    phases = {
        FORWARD: {"torch": forward, "compile": compiled},
        FORWARD + WARM: {"copy": copied, "torch": forward},
        BOTH: {"torch": both, "compile": compiled},
        BOTH + WARM: {"copy": copied_both, "torch": both},
    }
    return entry(phases=phases, **options)


def on_gpu(forward=0.9, backward=0.8, both=3.5, compiled=1.2):
    phases = {
        FORWARD: {"copy": forward, "torch": 3.0, "compile": compiled},
        BACKWARD: {"copy": backward / 1.5, "torch": 3.0, "compile": compiled},
        BOTH: {"copy": 0.3, "torch": both, "compile": compiled},
    }
    return entry(phases=phases)


def of_kernels(call, element):
    """Every kind of kernel alike: seconds of a call, and of an element."""
    times = {size: [call + element * shape.elements] * 3 for size, shape in rates._SHAPES.items()}
    return {kind: {"timings": {phase: {"seconds": times} for phase in (FORWARD, BOTH)}} for kind in rates.KINDS}


def full(path, seed=0):
    """Every case of a CPU, at random, some of them losing."""
    generator, found = random.Random(seed), results(path)
    for case in listed():
        numbers = [generator.lognormvariate(mean, 0.4) for mean in (0.9, 1.2, 0.4, -0.3, -0.7)]
        found["cases"][case.key] = on_cpu(*numbers)
    return found


def faults(times):
    """Page faults of a tensor of 64 MiB, above what an allocator keeps by itself, that is made, written and freed."""
    found = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(4096, 4096)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return found
