"""Commands that show what there is: models, list."""

from rlhflab.commands.shared import Json, print_table, quietly


def models_command(*, as_json: Json = False) -> None:
    """Show the models known by name, and which of them are here.

    Args:
        as_json: Print them as JSON.
    """
    from rlhflab.model.load import known_models

    print_table(quietly(known_models), as_json)


def list_command(what: str | None = None, /, *, as_json: Json = False) -> None:
    """Show the keys of a run file of one kind, or the entries of a catalogue.

    Args:
        what: A name that `rlhflab list` shows.
        as_json: Print the rows as JSON.
    """
    from rlhflab.listing import as_columns, listing, overview

    rows = overview() if what is None else quietly(lambda: listing(what))
    print_table(rows if as_json else as_columns(rows), as_json)
