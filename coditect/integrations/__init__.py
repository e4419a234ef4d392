"""Bridges to agents and protocols of others, one package for each; each has an extra of its own and is loaded by use.

The programs that offer a bridge (`coditect api`) import it; nothing below does.
"""
