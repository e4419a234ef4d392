"""The guards of an agent's capabilities: breakers, rates and keys, without which no guarded execution begins.

The agent's runtime calls the package, which imports the intake, the registry's port and the layers below the agent.
"""
