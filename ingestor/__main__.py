"""`python -m ingestor` is `ingestor`."""

from ingestor.cli.main import main

if __name__ == "__main__":
    main()
