"""``python -m coditect.local``: the supervisor in the background, which `coditect up --detach` starts."""

from coditect.local.up import serve_detached

if __name__ == "__main__":
    serve_detached()
