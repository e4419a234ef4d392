"""The start of the command line by ``python -m coditect``."""

from coditect.cli.main import main

if __name__ == "__main__":
    main()
