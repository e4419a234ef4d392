"""The entry point of the command ``coditect`` and of ``python -m coditect``, which runs the command line."""

from coditect.aio.launch import begin_program


def main() -> None:
    """Run the program `coditect` with the arguments of the command line."""
    begin_program()
    from coditect.cli.main import main as run_command  # noqa: PLC0415 - a signal may come while it is imported

    run_command()


if __name__ == "__main__":
    main()
