"""Live events: what happens in the fleet, for streams of server-sent events and for WebSockets.

One subscription to the broker (`feed.py`) fills one window of numbered frames (`window.py`), and each stream
(`stream.py`) is a position in that window and a filter. Where events may be missing, the window has a gap, which every
stream passes on. The package knows no web framework; its faces are in `coditect/api/routes/events.py`.
"""
