"""The chaos tests of the product's promises: injected faults, recorded histories, and functions that check them.

``history_index``  a history sorted by its subjects
``invariants``     the promises, each a function of a history's index
``check``          the results of the checks, and their statistical confidence
``load``           the work of a run, and the agents that execute it
``run``            a run of real processes; ``simulation`` a run in virtual time
``nemesis``        the faults of a run; ``simulated_nemesis`` those of a simulation
"""
