# Strips the literals from a query text: lexer.strip by hand, byte for byte the same. It tells the rules.

cdef inline bint _is_break(unsigned char byte) noexcept nogil:
    return byte == c'\n' or byte == c'\r'


cdef inline Cursor _line_comment_end(Cursor at, Cursor end) noexcept nogil:
    while at < end and not _is_break(at[0]):
        at += 1
    return at


cdef Cursor _comment_end(Cursor at, Cursor end) noexcept nogil:
    cdef int depth = 1
    while at + 1 < end:
        if at[0] == c'/' and at[1] == c'*':
            depth += 1
            at += 2
        elif at[0] == c'*' and at[1] == c'/':
            depth -= 1
            at += 2
            if depth == 0:
                return at
        else:
            at += 1
    return NULL


cdef Cursor _word_end(Cursor at, Cursor end, const char *word, Py_ssize_t length) noexcept nogil:
    # Behind the word, in any case, and the space before it; NULL if it does not stand there.
    cdef Py_ssize_t i
    while at < end and CLASS[at[0]] == SPACE:
        at += 1
    if end - at < length:
        return NULL
    for i in range(length):
        if LOWER[at[i]] != <unsigned char>word[i]:
            return NULL
    return at + length


cdef bint _is_hint(Cursor at, Cursor end) noexcept nogil:
    # Whether a comment says no more than `pgshunt: primary`.
    at = _word_end(at, end, b"pgshunt:", 8)
    if at != NULL:
        at = _word_end(at, end, b"primary", 7)
    return at != NULL and _word_end(at, end, b"", 0) == end


cdef Cursor _continuation(Cursor at, Cursor end) noexcept nogil:
    # Where the next part of a string begins, behind its quote; NULL if the string is over.
    cdef Cursor line
    while at < end and not _is_break(at[0]):
        if at + 1 < end and at[0] == c'-' and at[1] == c'-':
            at = _line_comment_end(at, end)
        elif CLASS[at[0]] == SPACE:
            at += 1
        else:
            return NULL
    while at < end:
        if CLASS[at[0]] == SPACE:
            at += 1
        elif at[0] == c'\'':
            return at + 1
        elif at + 1 < end and at[0] == c'-' and at[1] == c'-':
            line = _line_comment_end(at, end)
            if line == end:
                return NULL
            at = line + 1
        else:
            return NULL
    return NULL


cdef Cursor _string_end(Cursor at, Cursor end, unsigned char prefix) noexcept nogil:
    # `at` stands behind the opening quote; `prefix` is e, b, x or 0. NULL if the string does not end.
    cdef bint escapes = prefix == c'e'
    cdef bint doubles = prefix != c'b' and prefix != c'x'
    cdef Cursor more
    while at < end:
        if at[0] == c'\'':
            at += 1
            if doubles and at < end and at[0] == c'\'':
                at += 1
                continue
            more = _continuation(at, end)
            if more == NULL:
                return at
            at = more
        elif escapes and at[0] == c'\\':
            if end - at < 2:
                return NULL
            at += 2
        else:
            at += 1
    return NULL


cdef Cursor _quoted_name_end(Cursor at, Cursor end) noexcept nogil:
    while at < end:
        if at[0] == c'"':
            at += 1
            if at == end or at[0] != c'"':
                return at
        at += 1
    return NULL


cdef Cursor _dollar_string_end(Cursor start, Cursor end) noexcept nogil:
    # `start` stands on the first dollar. NULL if no string starts here, or if it does not end.
    cdef Cursor at = start + 1
    cdef Py_ssize_t length
    if at < end and CLASS[at[0]] == NAME:
        while at < end and (CLASS[at[0]] == NAME or CLASS[at[0]] == DIGIT):
            at += 1
    if at >= end or at[0] != c'$':
        return NULL
    at += 1
    length = at - start
    while end - at >= length:
        at = <Cursor>memchr(at, c'$', end - at)
        if at == NULL or end - at < length:
            return NULL
        if memcmp(at, start, length) == 0:
            return at + length
        at += 1
    return NULL


cdef Cursor _parameter_end(Cursor at, Cursor end) noexcept nogil:
    # `at` stands on the first digit. NULL if junk follows.
    while at < end and CLASS[at[0]] == DIGIT:
        at += 1
    if at < end and CLASS[at[0]] == NAME:
        return NULL
    return at


cdef inline bint _is_hex(unsigned char byte) noexcept nogil:
    return CLASS[byte] == DIGIT or c'a' <= LOWER[byte] <= c'f'


cdef inline bint _in_base(unsigned char byte, unsigned char base) noexcept nogil:
    if base == c'x':
        return _is_hex(byte)
    return c'0' <= byte <= (c'7' if base == c'o' else c'1')


cdef Cursor _based_digits(Cursor at, Cursor end, unsigned char base) noexcept nogil:
    # (_?digit)*
    while at < end:
        if _in_base(at[0], base):
            at += 1
        elif at[0] == c'_' and at + 1 < end and _in_base(at[1], base):
            at += 2
        else:
            break
    return at


cdef Cursor _digits(Cursor at, Cursor end) noexcept nogil:
    # digit(_?digit)*, or nothing
    if at == end or CLASS[at[0]] != DIGIT:
        return at
    at += 1
    while at < end:
        if CLASS[at[0]] == DIGIT:
            at += 1
        elif at[0] == c'_' and at + 1 < end and CLASS[at[1]] == DIGIT:
            at += 2
        else:
            break
    return at


cdef inline bint _is_junk(Cursor at, Cursor end) noexcept nogil:
    return at < end and (CLASS[at[0]] == NAME or CLASS[at[0]] == DIGIT)


cdef Cursor _number_end(Cursor at, Cursor end) noexcept nogil:
    # NULL if junk follows the number.
    cdef Cursor mark
    cdef unsigned char base
    if at[0] == c'0' and at + 1 < end:
        base = LOWER[at[1]]
        if base == c'x' or base == c'o' or base == c'b':
            mark = _based_digits(at + 2, end, base)
            if mark == at + 2 or _is_junk(mark, end):
                return NULL
            return mark
    at = _digits(at, end)
    if at < end and at[0] == c'.' and (at + 1 == end or at[1] != c'.'):
        at = _digits(at + 1, end)
    if at < end and LOWER[at[0]] == c'e':
        mark = at + 1
        if mark < end and (mark[0] == c'+' or mark[0] == c'-'):
            mark += 1
        if mark == end or CLASS[mark[0]] != DIGIT:
            return NULL
        at = _digits(mark, end)
    if _is_junk(at, end):
        return NULL
    return at


cdef Py_ssize_t _write_hint(unsigned char *key, Py_ssize_t out) noexcept nogil:
    # As a token that has space before it; the length of what was written.
    cdef Py_ssize_t gap = 1 if out and key[out - 1] != c'(' else 0
    key[out] = c' '
    memcpy(key + out + gap, b"/*pgshunt: primary*/", 20)
    return gap + 20


cdef Py_ssize_t strip(Cursor at, Py_ssize_t length, unsigned char *key, Literals *literals) noexcept nogil:
    """Write the key of the text into `key`, which has room for twice `length`; its length, or -1.

    `literals`, where it is not NULL, learns where the plain ones stand.
    """
    cdef Cursor text = at
    cdef Cursor end = at + length
    cdef Cursor stop
    cdef Py_ssize_t out = 0, literal_end = 0, group_end = 0
    cdef bint gap = False, literal, alone
    cdef unsigned char kind
    while at < end:
        kind = CLASS[at[0]]
        stop = at + 1
        literal = False
        if kind == SPACE:
            gap = True
            at = stop
            continue
        if kind == OPERATOR and stop < end:
            if at[0] == c'-' and stop[0] == c'-':
                at = _line_comment_end(stop, end)
                if at - stop > 15 and _is_hint(stop + 1, at):
                    out += _write_hint(key, out)
                gap = True
                continue
            if at[0] == c'/' and stop[0] == c'*':
                at = _comment_end(stop + 1, end)
                if at == NULL:
                    return -1
                if at - stop > 15 and _is_hint(stop + 1, at - 2):
                    out += _write_hint(key, out)
                gap = True
                continue
        if kind == NAME:
            if stop < end and stop[0] == c'\'':
                literal = LOWER[at[0]] == c'e' or LOWER[at[0]] == c'b' or LOWER[at[0]] == c'x'
                if literal:
                    stop = _string_end(stop + 1, end, LOWER[at[0]])
            elif end - at > 2 and LOWER[at[0]] == c'u' and at[1] == c'&':
                if at[2] == c'"':
                    return -1
                if at[2] == c'\'':
                    literal = True
                    stop = _string_end(at + 3, end, 0)
        elif kind == QUOTE:
            literal = True
            stop = _string_end(stop, end, 0)
        elif kind == DIGIT or (kind == DOT and stop < end and CLASS[stop[0]] == DIGIT):
            literal = True
            stop = _number_end(at, end)
        elif kind == DOLLAR:
            literal = True
            stop = _dollar_string_end(at, end) if stop == end or CLASS[stop[0]] != DIGIT else _parameter_end(stop, end)
        if literal:
            if stop == NULL:
                return -1
            if literals != NULL:
                _note_literal(literals, text, at, stop)
            at = stop
            if literal_end and out == literal_end + 1 and key[literal_end] == c',':
                out = literal_end
                gap = False
                continue
            if gap and out and key[out - 1] != c'(':
                key[out] = c' '
                out += 1
            gap = False
            key[out] = c'?'
            out += 1
            literal_end = out
            continue

        alone = kind == CLOSE and literal_end == out and out > 1 and key[out - 2] == c'('
        if alone and group_end and out == group_end + 4 and memcmp(key + group_end, b", (?", 4) == 0:
            out = group_end
            literal_end = group_end - 1
            at = stop
            gap = False
            continue
        if gap and kind != COMMA and kind != CLOSE and out and key[out - 1] != c'(':
            key[out] = c' '
            out += 1
        gap = kind == COMMA
        if kind == NAME:
            while at < end and FOLDED[at[0]]:
                key[out] = FOLDED[at[0]]
                out += 1
                at += 1
        elif kind == OPERATOR:
            while at < end and CLASS[at[0]] == OPERATOR:
                if at + 1 < end and ((at[0] == c'-' and at[1] == c'-') or (at[0] == c'/' and at[1] == c'*')):
                    break
                key[out] = 1 if at[0] == c'?' else at[0]
                out += 1
                at += 1
        elif kind == OTHER:
            return -1
        else:
            if kind == NAME_QUOTE:
                stop = _quoted_name_end(stop, end)
                if stop == NULL:
                    return -1
            elif kind == DOT and stop < end and stop[0] == c'.':
                stop += 1
            memcpy(key + out, at, stop - at)
            out += stop - at
            at = stop
            if alone:
                group_end = out
    return out
