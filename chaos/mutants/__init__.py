"""Mutants: plausible mistakes in the product, each of which the simulation must notice.

A mutant is a replacement of a few words in the source of one module. The replacement is made while that module is
imported: the product does not know of mutants, and no setting of the product can ask for one.

``mutant``   the mutant as a value, and the hook that makes the replacement
``table``    all mutants by name
``mutated``  ``python -m chaos.mutants.mutated NAME MODULE ...``: runs a module with a mutant in it
``seeds``    plays seeds of the simulation and prints the violations, as a program
``hunt``     searches for the seed that catches a mutant, in processes of their own
``python -m chaos.mutants``  is `make mutants`
"""
