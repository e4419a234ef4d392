"""The documents that command line and HTTP API answer with: plain values that JSON can express."""
