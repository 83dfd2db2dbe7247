"""Django's ORM on psycopg 3: its transactions, server-side cursors, migrations and introspection."""

from __future__ import annotations

import datetime
import threading
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import django
import pytest
from django.conf import settings
from django.db import DatabaseError, IntegrityError, connections, models, transaction
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Count, F, Prefetch, Sum, Window
from django.db.models.functions import Rank
from drivers.sides import SESSIONS, Run, Sides

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql"}},
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()

INSTALLED = "auth"  # Django follows relations of installed applications only


class Shelf(models.Model):
    session = models.IntegerField()
    label = models.TextField()
    token = models.UUIDField()
    traits = models.JSONField()
    made = models.DateTimeField()
    price = models.DecimalField(max_digits=10, decimal_places=2)
    blob = models.BinaryField()

    class Meta:
        app_label = INSTALLED
        constraints = (models.UniqueConstraint(fields=("session", "label"), name="one_label"),)


class Item(models.Model):
    shelf = models.ForeignKey(Shelf, models.CASCADE, related_name="items")
    name = models.TextField()

    class Meta:
        app_label = INSTALLED


class Connected:
    """A database of Django's for one run; connections of Django belong to a thread."""

    def __init__(self, run: Run, **more: Any) -> None:
        self.alias = f"{run.port}_{run.number}_{threading.get_ident()}"
        self._settings = {
            **connections.settings["default"],
            **{key.upper(): value for key, value in run.keywords.items()},
            "NAME": run.database.dbname,
            **more,
        }

    def __enter__(self) -> str:
        connections.settings[self.alias] = self._settings
        return self.alias

    def __exit__(self, *_: object) -> None:
        connections[self.alias].close()
        del connections[self.alias]
        del connections.settings[self.alias]


@pytest.fixture(scope="module", autouse=True)
def tables(sides: Sides) -> Iterator[None]:
    """Made through the proxy by Django's schema editor."""
    with Connected(sides.run(sides.proxy_port)) as alias, connections[alias].schema_editor() as editor:
        editor.create_model(Shelf)
        editor.create_model(Item)
    yield


def filled(alias: str, number: int) -> None:
    Shelf.objects.using(alias).filter(session=number).delete()
    shelves = Shelf.objects.using(alias).bulk_create(
        Shelf(
            session=number,
            label=f"shelf {index} é",
            token=uuid.UUID(int=index),
            traits={"index": index, "nothing": None},
            made=datetime.datetime(2024, 2, 29, 12, index, tzinfo=datetime.UTC),
            price=Decimal("1.25") * index,
            blob=bytes([0, index]) * 100,
        )
        for index in range(20)
    )
    Item.objects.using(alias).bulk_create(
        Item(shelf=shelf, name=f"{letter} of {shelf.label}") for shelf in shelves for letter in "ABC"
    )


def told(shelf: Shelf) -> Any:
    fields = (shelf.label, shelf.token, shelf.traits, shelf.made, shelf.price, bytes(shelf.blob))
    return fields, [item.name for item in shelf.items.all()]


@pytest.mark.parametrize("server_side_binding", [False, True], ids=["client binds", "server binds"])
@pytest.mark.parametrize("cursors", [False, True], ids=["held cursors", "no server-side cursors"])
def test_orm(cursors: bool, server_side_binding: bool, sides: Sides) -> None:
    """Outside a transaction Django's iterator() declares its cursor WITH HOLD, unless told not to."""

    def programme(run: Run) -> Any:
        options = {"server_side_binding": server_side_binding}
        with Connected(run, DISABLE_SERVER_SIDE_CURSORS=cursors, OPTIONS=options) as alias:
            filled(alias, run.number)
            shelves = Shelf.objects.using(alias).filter(session=run.number).order_by("made")
            items = Item.objects.using(alias).order_by("name")
            answers = [told(shelf) for shelf in shelves.prefetch_related(Prefetch("items", items))]
            answers += [shelf.label for shelf in shelves.iterator(chunk_size=6)]
            with transaction.atomic(using=alias):
                answers += [shelf.price for shelf in shelves.iterator(chunk_size=6)]
                answers.append(shelves.select_for_update().first().label)
            answers.append([*shelves.annotate(n=Count("items")).values_list("label", "n")])
            answers.append([*shelves.annotate(r=Window(Rank(), order_by=F("price").desc())).values_list("r")])
            answers.append(shelves.filter(traits__index__gte=15, items__name__startswith="A").count())
            answers.append(shelves.update(price=F("price") + 1))
            answers.append(shelves.aggregate(Sum("price")))
        return answers

    sides.compare(programme)


def test_transactions(sides: Sides) -> None:
    def programme(run: Run) -> Any:
        answers: list[Any] = []
        with Connected(run) as alias:
            filled(alias, run.number)
            first = Shelf.objects.using(alias).filter(session=run.number).order_by("made").first()
            shelves = Shelf.objects.using(alias).filter(session=run.number)
            done: list[str] = []
            with transaction.atomic(using=alias):
                transaction.on_commit(lambda: done.append("committed"), using=alias)
                shelves.filter(pk=first.pk).update(price=99)
                with pytest.raises(IntegrityError), transaction.atomic(using=alias):
                    Shelf(**{**fields(first), "pk": None}).save(using=alias)
                answers.append(shelves.get(pk=first.pk).price)
                answers.append([*done])
            with pytest.raises(DatabaseError), transaction.atomic(using=alias):
                shelves.delete()
                connections[alias].cursor().execute("SELECT 1 / 0")
            with transaction.atomic(using=alias):
                shelves.all().delete()
                transaction.set_rollback(True, using=alias)
            answers += [done, shelves.count(), shelves.get(pk=first.pk).price]
            moved, made = Shelf.objects.using(alias).update_or_create(
                session=run.number, label=first.label, defaults={"price": 7}
            )
            answers += [moved.price, made]
        return answers

    sides.compare(programme)


def fields(shelf: Shelf) -> dict[str, Any]:
    return {field.attname: getattr(shelf, field.attname) for field in shelf._meta.concrete_fields}


def test_migrations_and_introspection(sides: Sides) -> None:
    """All that django.contrib.auth needs, forth and back."""

    def programme(run: Run) -> Any:
        with Connected(run) as alias:
            connection = connections[alias]
            executor = MigrationExecutor(connection)
            executor.migrate(executor.loader.graph.leaf_nodes())
            with connection.cursor() as cursor:
                answers = [
                    sorted(table.name for table in connection.introspection.get_table_list(cursor)),
                    [*connection.introspection.get_constraints(cursor, "auth_user_groups").items()],
                    [
                        field[:5]
                        for field in connection.introspection.get_table_description(cursor, "auth_user")
                    ],
                ]
            executor = MigrationExecutor(connection)
            executor.migrate([("auth", None), ("contenttypes", None)])
            answers.append(sorted(connection.introspection.table_names()))
            with connection.cursor() as cursor:
                cursor.execute("DROP TABLE django_migrations")
        return answers

    sides.compare(programme, at_once=1)


def test_at_once_as_many_as_sessions(sides: Sides) -> None:
    """Connections that stay open beyond the pool's size take their turns."""

    def programme(run: Run) -> Any:
        with Connected(run, CONN_MAX_AGE=None) as alias:
            filled(alias, run.number)
            return [
                Shelf.objects.using(alias).filter(session=run.number, price__gte=number).count()
                for number in range(SESSIONS * 4)
            ]

    sides.compare(programme)
