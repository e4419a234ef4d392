"""The command ``python -m dispatcher``, which runs the control plane until SIGTERM or SIGINT."""

import sys

from coditect.aio.launch import begin_program

if __name__ == "__main__":
    begin_program()
    from dispatcher.program import main  # a signal may come while it is imported

    sys.exit(main())
