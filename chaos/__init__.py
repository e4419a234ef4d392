"""Chaos proves the product's promises: it injects faults, records histories, and checks them by pure functions.

It stands on top of the product, which does not know it, and is not in the wheel.

``history``        the lines that processes write about their operations; ``recorder`` the ports that write them
``capacity``       a capacity that sends each ready node to the backlog
``failpoints``     the orders to end a process at a point of a port
``checks``         the promises, each a function of a history's index
``load``           the work of a run, and the agents that execute it
``run``            a run of real processes, of `dispatcher` and `agent`; ``simulation`` a run in virtual time
``nemesis``        the faults of a run; ``simulated_nemesis`` those of a simulation, whose store and task graph are
                   ``simulated_store`` and ``simulated_task_graph``
``mutants``        mistakes to plant in the product, each of which an invariant must catch
``autonomy``       how many workflows need no person, with one fault a second
"""
