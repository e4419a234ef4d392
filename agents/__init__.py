"""The reference fleet: real agents, each small, built on nothing but the public `coditect`.

Run one with ``coditect agent run agents/reviewer.py``, watch all of them with ``python -m agents.demo``.
They are not part of the wheel; take them as examples for your own.
"""
