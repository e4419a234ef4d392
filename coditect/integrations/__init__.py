"""Bridges to foreign agents and protocols: one package for each, with a pip extra of its own, imported when it is used.

The programs that offer a bridge (`coditect api`) import it; nothing below does.
"""
