"""Workflows as documents: files in YAML or JSON, the schema that checks them, and the frozen values made from them.

`file` reads text, `schema` checks it, `reader` makes the definition, and `document` writes one back.
"""
