"""Bridges to foreign agents and protocols, one package for each; their libraries are optional (extras of pip).

The programs that offer a bridge (`coditect api`) import it; nothing below does.
"""
