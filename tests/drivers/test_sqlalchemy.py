"""SQLAlchemy 2 on each of its drivers: sessions, pools, bulk work, reflection; migrations by Alembic."""

from __future__ import annotations

import asyncio
import datetime
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import pytest
import sqlalchemy as sa
from drivers.sides import Run, Sides
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload

DRIVERS = ("psycopg", "psycopg2", "pg8000")

MIGRATIONS = {
    "0001": """
    op.create_table('shelf', sa.Column('id', sa.Integer, primary_key=True), sa.Column('label', sa.Text))
    op.bulk_insert(sa.table('shelf', sa.column('label', sa.Text)), [{'label': 'first'}])
""",
    "0002": """
    op.execute("CREATE TYPE size AS ENUM ('small', 'large')")
    op.add_column('shelf', sa.Column('size', sa.Enum(name='size', create_type=False)))
""",
    "0003": """
    op.create_index('shelf_label', 'shelf', ['label'], unique=True)
    with op.get_context().autocommit_block():
        op.execute('CREATE INDEX CONCURRENTLY shelf_size ON shelf (size)')
""",
    "0004": """
    op.execute('SELECT 1 / 0')
""",
}


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    session: Mapped[int]
    name: Mapped[str]
    token: Mapped[uuid.UUID]
    traits: Mapped[dict[str, Any]] = mapped_column(postgresql.JSONB)
    tags: Mapped[list[str]] = mapped_column(postgresql.ARRAY(sa.Text))
    born: Mapped[datetime.datetime] = mapped_column(sa.DateTime(timezone=True))
    fee: Mapped[Decimal] = mapped_column(sa.Numeric(10, 2))
    books: Mapped[list[Book]] = relationship(back_populates="author", order_by="Book.title")


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(sa.ForeignKey("author.id"))
    author: Mapped[Author] = relationship(back_populates="books")
    __table_args__ = (sa.UniqueConstraint("author_id", "title"),)


@pytest.fixture(scope="module", autouse=True)
def tables(sides: Sides) -> None:
    engine = sa.create_engine(url(sides.run(sides.proxy_port), "psycopg"))
    Base.metadata.create_all(engine)
    engine.dispose()


def url(run: Run, driver: str) -> sa.URL:
    name = f"postgresql+{driver}"
    return sa.URL.create(name, run.user, run.password, run.host, run.port, run.database.dbname)


@contextmanager
def engine_of(run: Run, driver: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url(run, driver), pool_size=2, max_overflow=0, pool_pre_ping=True)
    try:
        yield engine
    finally:
        engine.dispose()


def authors(number: int) -> list[Author]:
    return [
        Author(
            session=number,
            name=f"author {index} é",
            token=uuid.UUID(int=index),
            traits={"index": index, "nothing": None},
            tags=["x", 'quote "'],
            born=datetime.datetime(2024, 2, 29, 12, index, tzinfo=datetime.UTC),
            fee=Decimal("1.25") * index,
            books=[Book(title=f"{letter} of {index}") for letter in "ABC"],
        )
        for index in range(20)
    ]


def told(author: Author) -> Any:
    fields = (author.name, author.token, author.traits, author.tags, author.born, author.fee)
    return fields, [book.title for book in author.books]


def emptied(session: Session, run: Run) -> None:
    mine = sa.select(Author.id).where(Author.session == run.number)
    session.execute(sa.delete(Book).where(Book.author_id.in_(mine)))
    session.execute(sa.delete(Author).where(Author.session == run.number))


@pytest.mark.parametrize("driver", DRIVERS)
def test_orm(driver: str, sides: Sides) -> None:
    def programme(run: Run) -> Any:
        answers: list[Any] = []
        with engine_of(run, driver) as engine:
            with Session(engine) as session, session.begin():
                emptied(session, run)
                session.add_all(authors(run.number))
            every = sa.select(Author).where(Author.session == run.number).order_by(Author.name)
            with Session(engine) as session:
                answers += map(told, session.scalars(every.options(selectinload(Author.books))))
                first = session.scalars(every).first()
                assert first is not None
                first.fee += 1
                first.books.pop()
                with pytest.raises(DBAPIError) as caught:
                    session.flush()  # a book without an author
                answers.append(getattr(caught.value.orig, "sqlstate", None) or type(caught.value).__name__)
                session.rollback()
                with session.begin_nested():
                    first.name = "renamed"
                inner = session.begin_nested()
                session.add(Book(title="A of 0", author_id=first.id))
                with pytest.raises(DBAPIError):
                    session.flush()
                inner.rollback()
                session.commit()
                answers += [
                    told(first),
                    session.scalar(sa.select(sa.func.count()).select_from(every.subquery())),
                ]
            with Session(engine) as session:
                for part in session.scalars(every.execution_options(yield_per=6)).partitions():
                    answers.append([author.name for author in part])
                raised = sa.update(Author).where(Author.session == run.number).values(fee=Author.fee * 2)
                answers.append(sorted(session.scalars(raised.returning(Author.fee))))
                session.rollback()
        return answers

    sides.compare(programme)


@pytest.mark.parametrize("driver", DRIVERS)
def test_core(driver: str, sides: Sides) -> None:
    def programme(run: Run) -> Any:
        answers: list[Any] = []
        with engine_of(run, driver) as engine:
            for _ in range(3):
                for level in ("SERIALIZABLE", "AUTOCOMMIT", "READ COMMITTED"):
                    with engine.connect().execution_options(isolation_level=level) as connection:
                        answers.append(connection.scalar(sa.text("SHOW transaction_isolation")))
                        answers.append(connection.get_isolation_level())
            inspector = sa.inspect(engine)
            answers.append([column["name"] for column in inspector.get_columns("account")])
            answers.append([str(column["type"]) for column in inspector.get_columns("author")])
            answers += [inspector.get_foreign_keys("book"), inspector.get_unique_constraints("book")]
            with engine.begin() as connection:
                account = sa.table("account", *map(sa.column, ("session", "id", "owner", "balance")))
                rows = [
                    {"session": run.number, "id": 3000 + n, "owner": f"many {n}", "balance": n}
                    for n in range(1500)
                ]
                connection.execute(sa.delete(account).where(account.c.session == run.number))
                connection.execute(sa.insert(account), rows)
                stream = connection.execution_options(stream_results=True).execute(
                    sa.select(account.c.id).where(account.c.session == run.number).order_by(account.c.id)
                )
                answers.append([len(part) for part in stream.partitions(400)])
        return answers

    sides.compare(programme)


def test_asyncpg(sides: Sides) -> None:
    """Its prepared statements outlive the transactions they were made in."""

    async def work(run: Run) -> Any:
        answers: list[Any] = []
        engine = create_async_engine(url(run, "asyncpg"), pool_size=2, max_overflow=0)
        every = sa.select(Author).where(Author.session == run.number).order_by(Author.name)
        async with AsyncSession(engine) as session, session.begin():
            await session.run_sync(emptied, run)
            session.add_all(authors(run.number))

        async def look() -> list[Any]:
            async with AsyncSession(engine) as session:
                found = await session.scalars(every.options(selectinload(Author.books)))
                return [told(author) for author in found]

        for _ in range(3):
            answers += await asyncio.gather(look(), look())
        async with AsyncSession(engine) as session:
            result = await session.stream_scalars(every.execution_options(yield_per=6))
            answers.append([author.name async for author in result])
        await engine.dispose()
        return answers

    sides.compare(lambda run: asyncio.run(work(run)))


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    """A directory as `alembic init` makes it, with one file for each of MIGRATIONS."""
    (tmp_path / "versions").mkdir()
    (tmp_path / "script.py.mako").write_text("")
    (tmp_path / "env.py").write_text(
        "from alembic import context\nfrom sqlalchemy import create_engine, pool\n"
        "engine = create_engine(context.config.get_main_option('sqlalchemy.url'), poolclass=pool.NullPool)\n"
        "with engine.connect() as connection:\n"
        "    context.configure(connection=connection, transaction_per_migration=True)\n"
        "    with context.begin_transaction():\n        context.run_migrations()\n"
    )
    for number, step in MIGRATIONS.items():
        before = f"{int(number) - 1:04}" if number != "0001" else None
        undo = "op.drop_table('shelf')" if before is None else "op.execute('SELECT 1')"
        (tmp_path / "versions" / f"{number}.py").write_text(
            "import sqlalchemy as sa\nfrom alembic import op\n"
            f"revision = {number!r}\ndown_revision = {before!r}\n"
            f"def upgrade():{step}\ndef downgrade():\n    {undo}\n"
        )
    return tmp_path


@pytest.mark.parametrize("driver", ("psycopg", "psycopg2"))
def test_alembic(driver: str, sides: Sides, migrations: Path) -> None:
    """Up to the last step, which fails and leaves the one before it in force; then all the way down."""

    def programme(run: Run) -> Any:
        config = alembic.config.Config()
        config.set_main_option("script_location", str(migrations))
        config.set_main_option(
            "sqlalchemy.url", url(run, driver).render_as_string(hide_password=False).replace("%", "%%")
        )
        alembic.command.upgrade(config, "0003")
        with pytest.raises(DBAPIError):
            alembic.command.upgrade(config, "head")
        with engine_of(run, driver) as engine:
            inspector = sa.inspect(engine)
            answers = [
                [(column["name"], str(column["type"])) for column in inspector.get_columns("shelf")],
                sorted(index["name"] or "" for index in inspector.get_indexes("shelf")),
            ]
            with engine.begin() as connection:
                answers.append([*connection.execute(sa.text("SELECT * FROM shelf, alembic_version"))])
        alembic.command.downgrade(config, "base")
        run.database.execute("DROP TYPE size; DROP TABLE alembic_version")
        return answers

    sides.compare(programme, at_once=1)
