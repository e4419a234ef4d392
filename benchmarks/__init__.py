"""What Coditect costs, measured: `python -m benchmarks`, or `make bench`.

::

    __main__    the command
    runner      private servers, then one part after another, then the report
    parts/      what is measured: each part has `measure` (needs servers) and a pure `verdict`
    programs/   the processes that are measured: our client and agent, and the other sides beside them
    stage       private servers and the programs on them; everything started is stopped
    profiling   py-spy on client and agent, and the shares by room
    charts, plots                      what a plot shows, and how it is drawn
    verdict, figures, report, machine  values, statistics, tables

Start reading at `parts/throughput.py`; README.md says how to read the results.
"""
