"""The breakers, rates and concurrency keys of an agent's capabilities, which must let an execution pass to begin.

The agent's runtime calls the package, which imports the intake, the registry's port and the layers below the agent.
"""
