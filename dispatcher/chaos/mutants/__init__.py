"""Mutants: plausible mistakes in the product, each of which the tests or the simulation must notice.

A mutant is a replacement of a few words in the source of one module. The replacement is made while that module is
imported: the product does not know of mutants, and no setting of the product can ask for one.

``mutant``   the mutant as a value, and the hook that makes the replacement
``ledger``   the mutants of the ledger and of the recording of results
``shards``   the mutants of shards, leases, the shard worker, and the sources of its commands
``time``     the mutants of timers, signals and schedules
``agent``    the mutants of agents: of their intake, their start of tasks, and their settlement
``mends``    the mutants that undo repairs of failures in real use
``table``    all mutants by name
``mutated``  ``python -m dispatcher.chaos.mutants.mutated NAME MODULE ...``: runs a module with a mutant in it
``seeds``    plays seeds of the simulation and prints the violations, as a program
``hunt``     searches for the test or seed that catches a mutant, in processes of their own
``python -m dispatcher.chaos.mutants``  is `make mutants`
"""
