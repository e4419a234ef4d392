"""The benchmarks of what Coditect costs, run by `python -m benchmarks` or `make bench`.

::

    __main__    the command
    runner      private servers, then one part after another, then the report
    parts/      the measurements: each part has `measure` (needs servers) and a pure `verdict`
    programs/   the measured processes: our client and agent, and those of the other sides
    stage       private servers and the programs on them; everything started is stopped
    profiling   py-spy on client and agent, and the shares of time by room (a library or module)
    charts, plots                      a plot's contents as values, and its drawing
    verdict, figures, report, machine  values, statistics, tables

Start reading at `parts/throughput.py`; README.md says how to read the results.
"""
