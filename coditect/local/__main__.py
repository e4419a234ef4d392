"""``python -m coditect.local``: the supervisor in the background, which `coditect up --detach` starts."""

from coditect.aio.launch import begin_program
from coditect.local.up import serve_detached

if __name__ == "__main__":
    begin_program()
    serve_detached()
