"""`python -m gancore` is `gan`."""

from gancore.cli import main

if __name__ == "__main__":
    main()
