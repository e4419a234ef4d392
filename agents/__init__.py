"""The reference fleet: small agents that do real work, written with the public names of `coditect`.

Run one with ``coditect agent run agents/reviewer.py``, watch all of them with ``python -m agents.demo``.
The agents are not part of the wheel; they serve as examples.
"""
