"""The HTTP API: the use cases of `coditect/operations` below `/v1`, for browsers, scripts and other platforms.

`coditect api` runs it (`program.py`, the composition root). `application.py` makes the application from what it is
given; `routes/` has the routes, by nouns of the command line, `access.py` says who may do what, and `problems.py` makes
an answer of every error. The package imports what stands below it, and alone imports FastAPI, Starlette and uvicorn.
"""
