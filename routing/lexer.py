"""Strips the literals from a query text, so that texts which differ in nothing else share one key.

The rules are those of PostgreSQL's scanner (src/backend/parser/scan.l, version 18,
standard_conforming_strings on), written here as the patterns they are there. `_lexer.pxi` is the same
function by hand, for the hot path; the tests hold the two together.

A key keeps every token, unquoted names folded to ASCII lower case, and one space where there was white space
or a comment; around commas and inside parentheses space is made alike. A literal becomes `?`, and so does a
parameter; a list of nothing else becomes one: `IN (1, 2, $3)` reads `in (?)`, `VALUES (1, 'a'), (2, 'b')`
reads `values (?)`. A question mark in an operator is written as 0x01, so that `?` is always a literal.

A comment is white space, whatever it says, but for one that says `pgshunt: primary`, in any case and with any
space around its words: that is a hint, and stands in the key as HINT, which nothing else becomes but a quoted
name that reads like it.

A text in which anything is odd has no key: unterminated strings and comments, bytes no token starts with,
junk after a number, and U&"…" names (their UESCAPE literal changes the name). Such a text is classified
whole.

The caller knows two things this function cannot see: that standard_conforming_strings is on, and that the
client encoding is one in which no byte below 0x80 is part of a longer character (not SJIS, BIG5, GBK, UHC,
GB18030, JOHAB).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

SPACE: Final = rb"[ \t\n\r\f\v]"
NAME_START: Final = rb"[A-Za-z\x80-\xff_]"
HINT: Final = b"/*pgshunt: primary*/"
_HINT_WORDS: Final = re.compile(SPACE + rb"*pgshunt:" + SPACE + rb"*primary" + SPACE + rb"*", re.IGNORECASE)

DIGITS: Final = rb"[0-9](?:_?[0-9])*+"
LINE_COMMENT: Final = rb"--[^\n\r]*+"

NUMBER: Final = (
    rb"(?:0[xX](?:_?[0-9a-fA-F])++|0[oO](?:_?[0-7])++|0[bB](?:_?[01])++"
    rb"|(?:D\.(?!\.)(?:D)?|\.D|D)[eE][+-]?D"
    rb"|D\.(?!\.)(?:D)?|\.D|D)"
).replace(b"D", DIGITS)

TOKEN: Final = re.compile(
    rb"(?P<space>" + SPACE + rb"++)"
    rb"|(?P<line_comment>" + LINE_COMMENT + rb")"
    rb"|(?P<comment>/\*)"
    rb'|(?P<unicode_name>[uU]&")'
    rb"|(?P<escape_string>[eE]')"
    rb"|(?P<bit_string>[bBxX]')"
    rb"|(?P<string>(?:[uU]&)?')"
    rb'|(?P<quoted_name>"(?:[^"]|"")*+")'
    rb"|(?P<dollar>\$(?:" + NAME_START + rb"[A-Za-z\x80-\xff_0-9]*+)?\$)"
    rb"|(?P<param>\$[0-9]++)(?!" + NAME_START + rb")"
    rb"|(?P<number>(?>" + NUMBER + rb"))(?![A-Za-z\x80-\xff_0-9])"
    rb"|(?P<name>" + NAME_START + rb"[A-Za-z\x80-\xff_0-9$]*+)"
    rb"|(?P<operator>[~!@#^&|`?+\-*/%<>=]++)"
    rb"|(?P<self>\.\.|\.(?![0-9])|[,()\[\];:])"
)
COMMENT_EDGE: Final = re.compile(rb"/\*|\*/")
COMMENT_START: Final = re.compile(rb"/\*|--")
STRING_REST: Final = re.compile(rb"(?:[^']|'')*+'")
ESCAPE_STRING_REST: Final = re.compile(rb"(?:[^'\\]|''|\\.)*+'", re.DOTALL)
# No quote is doubled in a bit string: x'1''2' are two literals.
BIT_STRING_REST: Final = re.compile(rb"[^']*+'")
# A string goes on after white space that holds a line break: 'a' ⏎ 'b' is 'ab'.
CONTINUATION: Final = re.compile(
    rb"(?:[ \t\f\v]|" + LINE_COMMENT + rb")*+[\n\r](?:" + SPACE + rb"|" + LINE_COMMENT + rb"[\n\r])*+'"
)


STRINGS: Final = {"string": STRING_REST, "escape_string": ESCAPE_STRING_REST, "bit_string": BIT_STRING_REST}
LITERALS: Final = frozenset({*STRINGS, "dollar", "number", "param"})


def strip(text: bytes) -> bytes | None:
    """The key of `text`: what is left of it without its literals. None if it has none and must be
    classified whole.
    """
    key = _Key()
    for kind, start, end in tokens(text):
        if kind == "odd":
            return None
        if kind == "space":
            key.gap = True
        elif kind == "line_comment":
            key.add_comment(text[start + 2 : end])
        elif kind == "comment":
            key.add_comment(text[start + 2 : end - 2])
        elif kind in LITERALS:
            key.add_literal()
        elif kind == "operator":
            key.add(text[start:end].replace(b"?", b"\x01"))
        elif kind == "name":
            key.add(text[start:end].lower())
        elif text[start:end] == b")":
            key.close()
        else:
            key.add(text[start:end])
    return bytes(key.text)


def sample(key: bytes) -> bytes:
    """A text that has this key, each of its literals a short string. No two of them may touch (`??`): no
    statement of PostgreSQL's has that, and two strings would be one.
    """
    return _QUESTION.sub(lambda found: _ANSWERS.get(found[0], found[0]), key)


_QUESTION: Final = re.compile(rb'"(?:[^"]|"")*+"|[?\x01]')
_ANSWERS: Final = {b"?": b"'0'", b"\x01": b"?"}


def integers(text: bytes) -> Iterator[tuple[int, int]]:
    """(start, end) of each integer literal in `text`, and of each that is all there is in a string."""
    for kind, start, end in tokens(text):
        if kind == "string" and text[start] == 0x27 and text[start + 1 : end - 1].strip().isdigit():
            yield start + 1, end - 1
        elif kind == "number" and text[start:end].isdigit():
            yield start, end


def tokens(text: bytes) -> Iterator[tuple[str, int, int]]:
    """(kind, start, end) of each token, space and comment; "odd" is the last where the text has no key."""
    at = 0
    while at < len(text):
        token = TOKEN.match(text, at)
        if token is None or token.lastgroup is None or token.lastgroup == "unicode_name":
            yield "odd", at, at
            return
        kind, start, end = token.lastgroup, at, token.end()
        if kind in STRINGS:
            at = _string_end(text, end, STRINGS[kind])
        elif kind == "comment":
            at = _comment_end(text, end)
        elif kind == "dollar":
            found = text.find(token[0], end)
            at = 0 if found < 0 else found + end - start
        elif kind == "operator":
            cut = COMMENT_START.search(token[0])
            at = start + cut.start() if cut else end
        else:
            at = end
        if at == 0:
            yield "odd", start, start
            return
        yield kind, start, at


def _comment_end(text: bytes, at: int) -> int:
    """0 if it does not end."""
    depth = 1
    while depth:
        edge = COMMENT_EDGE.search(text, at)
        if edge is None:
            return 0
        depth += 1 if edge[0] == b"/*" else -1
        at = edge.end()
    return at


def _string_end(text: bytes, at: int, rest: re.Pattern[bytes]) -> int:
    """0 if it does not end."""
    while True:
        body = rest.match(text, at)
        if body is None:
            return 0
        more = CONTINUATION.match(text, body.end())
        if more is None:
            return body.end()
        at = more.end()


class _Key:
    """The key while it grows. The last `?` ended at `literal_end`, the last `(?)` at `group_end`."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.gap = False
        self.literal_end = 0
        self.group_end = 0

    def add(self, token: bytes) -> None:
        if self.gap and token not in (b",", b")") and self.text and not self.text.endswith(b"("):
            self.text += b" "
        self.text += token
        self.gap = token == b","

    def add_comment(self, words: bytes) -> None:
        self.gap = True
        if _HINT_WORDS.fullmatch(words):
            self.add(HINT)
            self.gap = True

    def add_literal(self) -> None:
        if self.literal_end and self.text[self.literal_end :] == b",":
            del self.text[self.literal_end :]
            self.gap = False
            return
        self.add(b"?")
        self.literal_end = len(self.text)

    def close(self) -> None:
        """Add `)`. If that ends a group of one literal right after another such group, drop the later one."""
        alone = self.literal_end == len(self.text) and self.text.endswith(b"(?")
        if alone and self.group_end and self.text[self.group_end :] == b", (?":
            del self.text[self.group_end :]
            self.literal_end = self.group_end - 1
            self.gap = False
            return
        self.add(b")")
        if alone:
            self.group_end = len(self.text)
