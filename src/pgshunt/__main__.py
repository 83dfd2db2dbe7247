"""Where everything starts: `pgshunt …` and `python -m pgshunt …`."""

import sys

import click

from pgshunt.admin.cli import Exit, cli, main

__all__ = ["main"]


@cli.command()
@click.option("--fast", is_flag=True, help="Without pauses.")
@click.option("--json", "as_json", is_flag=True, help="End standard output with one JSON document.")
def demo(fast: bool, as_json: bool) -> None:
    """Show the whole story on throwaway PostgreSQL servers."""
    try:
        from pgshunt.demo.run import run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pgshunt"):
            raise
        click.echo(f"pgshunt: the demo needs {error.name}: pip install 'pgshunt[demo]'", err=True)
        sys.exit(Exit.FAILED)
    sys.exit(run(fast, as_json))


if __name__ == "__main__":
    main()
