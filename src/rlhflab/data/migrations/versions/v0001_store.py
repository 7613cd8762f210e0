"""The first tables, and the triggers that keep what was said."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

KEPT = ("comparisons", "judgments")
"""Tables whose rows are only appended."""
UNIQUE = {"comparisons": ("id", "key"), "judgments": ("id", "submission", "corrects")}
"""What `INSERT OR REPLACE` of SQLite would delete a row by."""


def upgrade() -> None:
    """Create everything."""
    _comparisons()
    _assignments()
    _judgments()
    op.create_table("settings", sa.Column("name", sa.String(32), primary_key=True),
                    sa.Column("value", sa.Text, nullable=False))
    for table in KEPT:
        if op.get_context().dialect.name == "postgresql":
            _refuse_in_postgresql(table)
        else:
            _refuse_in_sqlite(table)


def _comparisons() -> None:
    op.create_table(
        "comparisons",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("key", sa.String(64), nullable=False, unique=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("prompt_id", "messages", "facts", "a")),
        sa.Column("b", sa.Text),
        sa.Column("gold", sa.String(8)),
        sa.Column("meta", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("added_at", sa.String(32), nullable=False))
    _partial_index("ix_comparisons_gold", "comparisons", ["id"], "gold IS NOT NULL")
    op.create_table(
        "standing",
        sa.Column("comparison_id", sa.Integer, sa.ForeignKey("comparisons.id"), primary_key=True, autoincrement=False),
        sa.Column("waiting", sa.Integer, nullable=False),
        sa.Column("conflict", sa.Integer, nullable=False))
    _partial_index("ix_standing_waiting", "standing", ["comparison_id"], "waiting > 0")
    _partial_index("ix_standing_conflict", "standing", ["comparison_id"], "conflict > 0")


def _assignments() -> None:
    op.create_table(
        "annotators",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("cursor", sa.Integer, nullable=False),
        sa.Column("enrolled_at", sa.String(32), nullable=False))
    op.create_table(
        "assignments",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("token", sa.String(64), nullable=False, unique=True),
        sa.Column("comparison_id", sa.Integer, sa.ForeignKey("comparisons.id"), nullable=False),
        sa.Column("annotator", sa.String(64), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("shown_first", sa.String(1)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("given_at", sa.String(32), nullable=False),
        sa.UniqueConstraint("comparison_id", "annotator", "purpose", name="uq_assignments_once"))
    op.create_index("ix_assignments_annotator", "assignments", ["annotator", "purpose", "state", "id"])
    _partial_index("ix_assignments_open", "assignments", ["state", "given_at"], "state = 'open'")


def _judgments() -> None:
    op.create_table(
        "judgments",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("submission", sa.String(64), nullable=False, unique=True),
        sa.Column("comparison_id", sa.Integer, sa.ForeignKey("comparisons.id"), nullable=False),
        sa.Column("assignment_id", sa.Integer, sa.ForeignKey("assignments.id"), nullable=False),
        sa.Column("annotator", sa.String(64), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("verdict", sa.String(8)),
        sa.Column("strength", sa.Float, nullable=False),
        sa.Column("tags", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("shown_first", sa.String(1)),
        sa.Column("seconds", sa.Float),
        sa.Column("at", sa.String(32)),
        sa.Column("corrects", sa.Integer, sa.ForeignKey("judgments.id"), unique=True),
        sa.Column("author", sa.String(64), nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("written_at", sa.String(32), nullable=False))
    op.create_index("ix_judgments_comparison", "judgments", ["comparison_id"])
    op.create_index("ix_judgments_assignment", "judgments", ["assignment_id"])
    op.create_index("ix_judgments_annotator", "judgments", ["annotator", "id"])


def _partial_index(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def _refuse_in_sqlite(table: str) -> None:
    for change in ("UPDATE", "DELETE"):
        op.execute(f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} "
                   f"BEGIN SELECT RAISE(ABORT, '{table} are only appended'); END")
    # A replaced row is deleted without a trigger unless a connection asked for it, so replacing is refused too.
    same = " OR ".join(f"{column} = NEW.{column}" for column in UNIQUE[table])
    op.execute(f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
               f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) "
               f"BEGIN SELECT RAISE(ABORT, '{table} are only appended, and this one is there'); END")


def _refuse_in_postgresql(table: str) -> None:
    op.execute(f"CREATE FUNCTION {table}_refuse() RETURNS trigger LANGUAGE plpgsql AS "
               f"$$ BEGIN RAISE EXCEPTION '{table} are only appended'; END $$")
    op.execute(f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table} "
               f"FOR EACH ROW EXECUTE FUNCTION {table}_refuse()")
    op.execute(f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
               f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_refuse()")
