"""Bridges to foreign agents and protocols, and what they share; their libraries are optional (extras of pip).

The programs that offer a bridge (`coditect api`) import it; nothing below does.
"""
