"""Where everything starts: `pgshunt …` and `python -m pgshunt …`."""

from pgshunt.admin.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
