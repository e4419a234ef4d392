"""The breakers, rates and concurrency limits of an agent's capabilities, each of which can hold a task back.

The agent's runtime calls the package, which imports the intake, the registry's port and the layers below the agent.
"""
