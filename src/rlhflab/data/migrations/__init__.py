"""Migrations of the annotation store, a list that is only appended to. `tables.migrate` runs them at opening."""
