# What each byte of a query text may begin or belong to, as PostgreSQL's scanner (scan.l) sees it.

ctypedef const unsigned char *Cursor

cdef enum:
    OTHER = 0          # no token starts with it: no key
    SPACE = 1
    NAME = 2
    DIGIT = 3
    QUOTE = 4
    NAME_QUOTE = 5
    DOLLAR = 6
    DOT = 7
    OPERATOR = 8
    SELF = 9
    COMMA = 10
    CLOSE = 11

cdef unsigned char CLASS[256]
cdef unsigned char LOWER[256]
cdef unsigned char FOLDED[256]    # as it stands in a folded name; 0 for what ends a name


cdef void _fill_classes() noexcept:
    cdef int byte
    for byte in range(256):
        CLASS[byte] = NAME if byte >= 0x80 else OTHER
        LOWER[byte] = byte
    for byte in b" \t\n\r\f\v":
        CLASS[byte] = SPACE
    for byte in range(26):
        CLASS[c'A' + byte] = CLASS[c'a' + byte] = NAME
        LOWER[c'A' + byte] = c'a' + byte
    CLASS[c'_'] = NAME
    for byte in b"0123456789":
        CLASS[byte] = DIGIT
    for byte in b"~!@#^&|`?+-*/%<>=":
        CLASS[byte] = OPERATOR
    for byte in b"([];:":
        CLASS[byte] = SELF
    CLASS[c'\''] = QUOTE
    CLASS[c'"'] = NAME_QUOTE
    CLASS[c'$'] = DOLLAR
    CLASS[c'.'] = DOT
    CLASS[c','] = COMMA
    CLASS[c')'] = CLOSE
    for byte in range(256):
        FOLDED[byte] = LOWER[byte] if CLASS[byte] == NAME or CLASS[byte] == DIGIT or byte == c'$' else 0


_fill_classes()
