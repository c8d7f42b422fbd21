"""Migrations as SQL, for the store and for people with tools of their own."""

from typing import Final

from workers_module.store.migrate import Migration, between, read_migrations

PACKAGE: Final = "workers_module.store.postgres"


def script(migration: Migration, schema: str) -> str:
    """Return a migration as SQL that also records it; to be run in one transaction."""
    return (
        f'CREATE SCHEMA IF NOT EXISTS "{schema}";\n'
        f'SET LOCAL search_path = "{schema}", pg_catalog;\n'
        "CREATE TABLE IF NOT EXISTS meta (key text PRIMARY KEY, value text NOT NULL);\n"
        f"{migration.sql}\n"
        f"INSERT INTO meta (key, value) VALUES ('schema', '{migration.number}'), ('min_code', '{migration.min_code}')\n"
        "ON CONFLICT (key) DO UPDATE SET value = excluded.value;\n"
    )


def whole_script(schema: str, after: int, up_to: int | None) -> str:
    """Return what leads from one schema to another, a transaction each."""
    pieces = between(read_migrations(PACKAGE), after, up_to)
    return "".join(f"-- {piece.number:04} {piece.name}\nBEGIN;\n{script(piece, schema)}COMMIT;\n\n" for piece in pieces)
