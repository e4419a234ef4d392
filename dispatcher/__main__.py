"""The command ``python -m dispatcher``, which runs the control plane until SIGTERM or SIGINT."""

import gc
import sys

FEW_COLLECTIONS = 50_000
"""The garbage collector's threshold during the imports, which make many objects that stay."""

if __name__ == "__main__":
    gc.set_threshold(FEW_COLLECTIONS)

    from dispatcher.program import main

    sys.exit(main())
