"""What Coditect costs, measured: `python -m benchmarks`, or `make bench`.

::

    __main__    the command
    runner      private servers, then one part after another, then the report
    parts/      what is measured: each part has `measure` (needs servers) and a pure `verdict`
    programs/   the processes that are measured: our client and agent, and the aio-pika pair beside them
    stage       private servers and the programs on them; everything started is stopped
    verdict, figures, report, machine    values, statistics, tables

Start reading at `parts/throughput.py`; README.md says how to read the results.
"""
