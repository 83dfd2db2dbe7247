"""Whatever stands in a file, examining it ends in a report."""

import string
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pgshunt.config import Config, examine
from pgshunt.config.model import Admin, Auth, Database, Listen, Pools, Service, User

KEYS = sorted(
    {
        key
        for section in (Config, Admin, Auth, Database, Listen, Pools, Service, User)
        for key in section.model_fields
    }
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70_000),
    st.sampled_from(
        ["", "${NOPE}", "${X:-1}", "127.0.0.1", "auth_db", "users", "trust", "validate", "a.b.c", "*"]
    ),
    st.text(string.printable, max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS) | st.text(string.ascii_letters, max_size=4), inner, max_size=4
        )
    ),
    max_leaves=20,
)
SECTIONS = st.fixed_dictionaries(
    {"version": st.just(1), "shared": VALUES, "control": VALUES},
    optional={key: VALUES for key in Config.model_fields if key not in ("version", "shared", "control")},
)
MINIMAL = {
    "version": 1,
    "shared": {"dbname": "monolith", "primary": {"host": "127.0.0.1"}},
    "control": {"user": "pgshunt"},
}


def examined(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f.yaml")
        path.write_text(text, encoding="utf-8")
        report = examine(path, {})
    assert report.config is not None or report.problems
    assert str(report.problems)
    for problem in report.problems:
        assert str(problem)
        assert problem.remedy


def dumped(values: object) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f.yaml")
        YAML(typ="safe").dump(values, path)
        return path.read_text(encoding="utf-8")


@given(SECTIONS)
def test_any_sections_end_in_a_report(values: dict[str, object]) -> None:
    examined(dumped(values))


@given(st.dictionaries(st.sampled_from(sorted(Config.model_fields)), VALUES, max_size=3))
def test_any_change_of_a_good_file_ends_in_a_report(values: dict[str, object]) -> None:
    examined(dumped({**MINIMAL, **values}))


@given(
    st.text(st.characters(codec="utf-8"), max_size=60) | st.text("a:-[]{}&*!|>'\"%@`#,? \n\t0", max_size=40)
)
def test_any_text_ends_in_a_report(text: str) -> None:
    examined(text)
