"""The guards of an agent's capabilities: breakers, rates and keys, which a guarded execution must pass to begin.

The agent's runtime calls the package, which imports the intake, the registry's port and the layers below the agent.
"""
