"""Reads the nodes of a parse tree out of libpg_query's JSON, and comes by them; `nodes.py` is the same in Python."""

from cpython.dict cimport PyDict_GetItem, PyDict_Next
from cpython.long cimport PyLong_FromLongLong
from cpython.ref cimport PyObject
from libc.stdlib cimport strtoll
from libc.string cimport memcmp, strncmp

import json
import sys

from pgshunt.routing.nodes import FIELDS

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *length) except NULL

cdef enum:
    NAMES = 4096                      # kept, one for each hash; the schema has 1200

cdef dict fields_of = FIELDS
cdef str location = sys.intern("location")
cdef str string_kind = sys.intern("String")
cdef list names = [""] * NAMES
cdef const char *texts[NAMES]
cdef Py_ssize_t lengths[NAMES]


def read(bytes text, int levels_max):
    """The tree of a JSON text. Raises RecursionError if it is deeper, ValueError if it is no JSON of
    libpg_query's, which has no spaces.
    """
    cdef const char *at = text        # a 0 stands behind it
    return _value(&at, levels_max)


cdef object _value(const char **at, int levels):
    cdef const char *start = at[0]
    cdef const char *end
    cdef char first = start[0]
    cdef long long number
    if first == c'{' or first == c'[':
        if levels == 0:
            raise RecursionError("the tree is too deep")
        return _object(at, levels - 1) if first == c'{' else _array(at, levels - 1)
    if first == c'"':
        return _string(at)
    if strncmp(start, "true", 4) == 0:
        at[0] += 4
        return True
    if strncmp(start, "false", 5) == 0:
        at[0] += 5
        return False
    number = strtoll(start, <char **>&end, 10)
    if end == start:
        raise ValueError("no JSON")
    at[0] = end
    return PyLong_FromLongLong(number)


cdef object _object(const char **at, int levels):
    """The fields of a message; a tuple where it is a node: its kind begins with a capital."""
    cdef bint is_node = at[0][1] == c'"' and c'A' <= at[0][2] <= c'Z'
    cdef dict fields
    cdef str name
    at[0] += 1
    if is_node:
        name = _name(at)
        value = _text(at) if name is string_kind else _value(at, levels)
        _pass(at, c'}')
        return value if name is string_kind else (name, value)
    fields = {}
    if _passes(at, c'}'):
        return fields
    while True:
        name = _name(at)
        if name is location and at[0][0] != c'"':
            strtoll(at[0], <char **>at, 10)
        else:
            fields[name] = _value(at, levels)
        if not _passes(at, c','):
            _pass(at, c'}')
            return fields


cdef list _array(const char **at, int levels):
    cdef list values = []
    at[0] += 1
    if _passes(at, c']'):
        return values
    while True:
        values.append(_value(at, levels))
        if not _passes(at, c','):
            _pass(at, c']')
            return values


cdef str _text(const char **at):
    """What is in a String."""
    cdef str text = ""
    _pass(at, c'{')
    if not _passes(at, c'}'):
        _name(at)
        text = _string(at)
        _pass(at, c'}')
    return text


cdef str _string(const char **at):
    cdef const char *start = at[0] + 1
    cdef const char *end = start
    cdef bint is_plain = True
    _pass(at, c'"')
    while end[0] != c'"':
        if end[0] == c'\\':
            is_plain = False
            end += 1
        if end[0] == 0:
            raise ValueError("no JSON")
        end += 1
    at[0] = end + 1
    return start[:end - start].decode() if is_plain else json.loads((start - 1)[:end - start + 2].decode())


cdef str _name(const char **at):
    """A name of the schema, which has no escapes, and the colon behind it; always the same object."""
    cdef const char *start = at[0] + 1
    cdef const char *end = start
    cdef Py_ssize_t length
    cdef unsigned int number = 0
    _pass(at, c'"')
    while end[0] != c'"':
        if end[0] == 0:
            raise ValueError("no JSON")
        number = number * 31 + <unsigned char>end[0]
        end += 1
    at[0] = end + 1
    _pass(at, c':')
    number %= NAMES
    length = end - start
    if length != lengths[number] or memcmp(texts[number], start, length) != 0:
        names[number] = sys.intern(start[:length].decode())
        texts[number] = PyUnicode_AsUTF8AndSize(names[number], &lengths[number])
    return <str>names[number]


cdef inline bint _passes(const char **at, char expected) noexcept:
    if at[0][0] != expected:
        return False
    at[0] += 1
    return True


cdef inline int _pass(const char **at, char expected) except -1:
    if not _passes(at, expected):
        raise ValueError("no JSON")
    return 0


def push_fields(str kind, dict fields, names, list stack):
    """What is in a message comes next."""
    _push(<dict>fields_of[kind], fields, names, stack)


def come_by(found, root, names, dict visits):
    """Call for each node in `root` the visit of its kind; what is in one that has none comes next."""
    cdef list stack = [(root, names)] if type(root) is tuple else []
    cdef tuple item, node
    cdef PyObject *visit
    while stack:
        item = <tuple>stack.pop()
        node = <tuple>item[0]
        visit = PyDict_GetItem(visits, node[0])
        if visit != NULL:
            (<object>visit)(found, node[1], item[1], stack)
        else:
            _push(<dict>fields_of[node[0]], <dict>node[1], item[1], stack)


cdef int _push(dict inner, dict fields, object names, list stack) except -1:
    cdef PyObject *name
    cdef PyObject *value
    cdef PyObject *kind
    cdef Py_ssize_t at = 0
    if not inner:
        return 0
    while PyDict_Next(fields, &at, &name, &value):
        kind = PyDict_GetItem(inner, <object>name)
        if kind == NULL:
            continue
        if type(<object>value) is list:
            for node in <list>value:
                if type(node) is tuple:
                    stack.append((node, names))
        elif type(<object>value) is tuple:
            stack.append((<object>value, names))
        elif type(<object>value) is dict and <object>kind != "Node":
            stack.append(((<object>kind, <object>value), names))
    return 0
