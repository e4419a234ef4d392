"""Wrappers between a dispatcher and its ports, which record what happens there, or make a fault happen there.

``history``  the lines that processes write about their operations
``ports``    broker, store and task graph that record real operations, and where a process may be made to die
``watch``    the demands of the environment, as a value; nothing by default
"""
