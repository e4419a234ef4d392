"""Mutants: mistakes that somebody could make in the product, each of which the proofs must notice.

A mutant is a replacement of a few words in the source of one module. It is made from outside, while that module is
imported: nothing of the product knows of it, and no setting of the product can ask for it.

``mutant``   what a mutant is, and the hook that makes the replacement
``ledger``   the mutants of the ledger and of what records results
``shards``   those of shards, leases, the shard worker, and what brings commands to it
``agent``    those of agents, clients and the wire
``mends``    those that take back what was mended after it had gone wrong in real use
``table``    all of them by name
``mutated``  ``python -m dispatcher.chaos.mutants.mutated NAME MODULE ...``: runs a module with a mutant in it
``seeds``    plays seeds of the simulation and writes what broke, as a program
``hunt``     looks for what catches a mutant, in processes of their own
``python -m dispatcher.chaos.mutants``  is `make mutants`
"""
