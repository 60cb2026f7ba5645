"""`python -m app` is the command line, for where its command is not on PATH."""

from app.cli.main import main

if __name__ == "__main__":
    main()
