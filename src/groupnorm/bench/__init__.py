"""How fast the kernels are, how exact, and against whom: ``groupnorm bench``.

.. code-block:: text

    cases, tensors          what is timed, as data; its inputs, hostile ones among them
    contenders              who is timed
    check                   the error against float64, looked at before any timing
    timing, memory          interleaved rounds; memory that is new, kept, or at its peak
    measure                 one case: checked, then timed
    calls, rates            what a call costs without any work, and an element without memory
    accuracy                hostile input; what is kept for the backward pass
    networks, steps         whole models, before and after
    machine, store          what a figure depends on; a file of results for each device
    conduct                 measures what is not measured yet
    judge, bounds           the targets, met or missed; what bounds each case
    show, figure, page      the terminal, the picture, docs/speed.md
"""
