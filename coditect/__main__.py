"""The entry point of ``python -m coditect``, which runs the command line."""

from coditect.cli.main import main

if __name__ == "__main__":
    main()
