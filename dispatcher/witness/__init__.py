"""What stands between a dispatcher and its ports when somebody wants to know, or to break, what happens there.

``history``  the lines that processes write about what they do
``ports``    broker, store and task graph that note what really happens, and where a process may be made to die
``watch``    what the environment asks for, as a value; nothing by default
"""
