"""Values come with their places, and variables change nothing but the scalar they stand in."""

import pytest

from pgshunt.config.problem import Place
from pgshunt.config.source import Source


def read(text: str, **environ: str) -> Source:
    return Source(text, "f.yaml", environ)


def test_scalars_stay_texts_and_empty_keys_are_left_out() -> None:
    source = read("a: 0123\nb: off\nc:\nd: ~\ne: ''\nf: [1, two]\n")
    assert source.values == {"a": "0123", "b": "off", "e": "", "f": ["1", "two"]}
    assert source.problems == []


def test_places_count_from_one_and_tell_keys_from_values() -> None:
    source = read("a:\n  b:\n    - x\n    - key: value\n")
    path = ("a", "b", 1, "key")
    assert source.place(path) == Place("f.yaml", 4, 12)
    assert source.place(path, key=True) == Place("f.yaml", 4, 7)


def test_the_place_of_a_missing_value_is_the_key_of_its_section() -> None:
    source = read("a:\n  b: {c: 1}\n")
    assert source.place(("a", "b", "missing")) == Place("f.yaml", 2, 3)
    assert source.place(("missing",)) == Place("f.yaml", 1, 1)


def test_an_alias_has_a_place_for_each_use() -> None:
    source = read("a: &one {h: 1}\nb: *one\n")
    assert source.values == {"a": {"h": "1"}, "b": {"h": "1"}}
    assert source.place(("b",), key=True) == Place("f.yaml", 2, 1)


@pytest.mark.parametrize(
    ("scalar", "environ", "value"),
    [
        ("${V}", {"V": "x"}, "x"),
        ("${V}", {"V": ""}, ""),
        ("${V:-d}", {}, "d"),
        ("${V:-d}", {"V": ""}, "d"),
        ("${V:-}", {}, ""),
        ("${V:-d}", {"V": "x"}, "x"),
        ("${V:?say}", {"V": "x"}, "x"),
        ("a${V}b${W}", {"V": "1", "W": "2"}, "a1b2"),
        ("$${V}", {"V": "x"}, "${V}"),
        ("$V $$ $", {"V": "x"}, "$V $$ $"),
    ],
)
def test_variables_are_substituted(scalar: str, environ: dict[str, str], value: str) -> None:
    source = read(f"a: '{scalar}'", **environ)
    assert source.values == {"a": value}
    assert source.problems == []


@pytest.mark.parametrize(
    ("scalar", "message", "remedy"),
    [
        ("${V}", "the environment variable V is not set", "set it, or write ${V:-default}"),
        ("${V:?ask the DBA}", "the environment variable V is empty or not set", "ask the DBA"),
        ("${V+x}", "'{V+x}' is not a variable", "write ${VAR}"),
        ("${1}", "'{1}' is not a variable", "write ${VAR}"),
        ("${V", "'{V' is not a variable", "write ${VAR}"),
    ],
)
def test_variables_that_cannot_be_substituted_are_problems(scalar: str, message: str, remedy: str) -> None:
    (problem,) = read(f"x: 1\na: '{scalar}'").problems
    assert problem.path == ("a",)
    assert message.replace("'{", "'${") in problem.message
    assert problem.remedy.startswith(remedy)
    assert problem.place == Place("f.yaml", 2, 4)


def test_a_variable_cannot_change_the_structure() -> None:
    source = read("a: ${V}", V="x\nb: {c: 1}")
    assert source.values == {"a": "x\nb: {c: 1}"}


def test_what_is_written_hides_what_a_variable_holds() -> None:
    assert read("a: ${V}", V="hunter2").written(("a",)) == "${V}"


def test_every_duplicate_key_is_found_and_the_first_one_counts() -> None:
    source = read("a: 1\nb: {c: 1, c: 2}\na: 2\n")
    assert source.values == {"a": "1", "b": {"c": "1"}}
    assert [(p.path, p.place.line if p.place else 0) for p in source.problems] == [
        (("b", "c"), 2),
        (("a",), 3),
    ]
    assert "line 1" in source.problems[1].remedy


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [("a: [1\nb: 2\n", 2, 2), ("a: b: c\n", 1, 5), ("a: 1\n\tb: 2\n", 2, 1), ("a: *nowhere\n", 1, 4)],
)
def test_a_syntax_error_has_its_place(text: str, line: int, column: int) -> None:
    (problem,) = read(text).problems
    assert problem.place == Place("f.yaml", line, column)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n", "a: \0\n"])
def test_a_file_that_is_no_mapping_is_one_problem(text: str) -> None:
    source = read(text)
    assert len(source.problems) == 1
    assert source.values == {}


def test_a_section_that_contains_itself_is_refused() -> None:
    (problem,) = read("a: &a\n  b: *a\n").problems
    assert problem.path == ("a", "b")
    assert problem.message == "contains itself"


def test_an_empty_file_has_no_values() -> None:
    assert read("").values == {}
