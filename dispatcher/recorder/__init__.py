"""Wrappers of a dispatcher's ports, which record its operations in a history, or inject faults into them.

``history``  the lines that processes write about their operations
``ports``    the wrappers of broker, store and task graph, with the failpoints at which a process ends
``watch``    the orders of the environment, as a value; none by default
"""
