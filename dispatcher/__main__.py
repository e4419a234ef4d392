"""The command ``python -m dispatcher``, which runs the control plane until SIGTERM or SIGINT."""

import sys

from dispatcher.program import main

if __name__ == "__main__":
    sys.exit(main())
