# Recognises a text that differs from an earlier one in nothing but plain literals, without cutting it into tokens.
#
# A template is a text as it was sent, with the places of its literals: whole numbers of nothing but digits, and strings
# in plain quotes. Another text is of the same key if all bytes between those places are equal and a literal of the same
# sort stands at each of them: the bytes around a literal end it in one text as in the other, so the lexer goes through
# both alike. Any other literal, and all beyond the first few, have to be equal byte for byte.

cdef enum:
    TEMPLATE_SETS = 512
    TEMPLATE_BYTES_MAX = 2048


cdef inline void _note_literal(Literals *literals, Cursor text, Cursor start, Cursor stop) noexcept nogil:
    cdef Cursor at = start
    if literals.count == LITERALS_MAX:
        return
    if CLASS[start[0]] == DIGIT:
        while at < stop and CLASS[at[0]] == DIGIT:
            at += 1
        if at < stop:
            return
    elif start[0] != c'\'' or memchr(start + 1, c'\'', stop - start - 2) != NULL:
        return
    literals.starts[literals.count] = <int>(start - text)
    literals.stops[literals.count] = <int>(stop - text)
    literals.count += 1


cdef inline bint _has_digit_or_quote(Cursor at) noexcept nogil:
    """Whether there is one among eight bytes: in each, the high bit tells."""
    cdef uint64_t word, digit, quote
    memcpy(&word, at, 8)
    digit = word ^ 0x3030303030303030ULL
    digit |= (digit & 0x7f7f7f7f7f7f7f7fULL) + 0x7676767676767676ULL
    quote = word ^ 0x2727272727272727ULL
    quote |= (quote & 0x7f7f7f7f7f7f7f7fULL) + 0x7f7f7f7f7f7f7f7fULL
    return (digit & quote & 0x8080808080808080ULL) != 0x8080808080808080ULL


cdef inline Py_ssize_t _first_literal(Cursor text, Py_ssize_t length) noexcept nogil:
    """Where the first literal seems to stand, at a glance; texts of one template agree on it."""
    cdef Py_ssize_t at = 0, stop
    cdef unsigned char before
    while at < length:
        stop = min(at + 8, length)
        if stop - at == 8 and not _has_digit_or_quote(text + at):
            at = stop
            continue
        while at < stop:
            before = CLASS[text[at - 1]] if at else OTHER
            if CLASS[text[at]] == QUOTE or (
                CLASS[text[at]] == DIGIT and before != NAME and before != DIGIT and before != DOLLAR
            ):
                return at
            at += 1
    return length


cdef bint _fits(const Template *template, Cursor text, Py_ssize_t length) noexcept nogil:
    """Whether the text is the template's, or differs from it in its literals only."""
    cdef Cursor sample = <Cursor>template.text
    cdef Cursor at = text
    cdef Cursor end = text + length
    cdef Py_ssize_t behind = 0, fixed
    cdef int i
    for i in range(template.literals.count):
        fixed = template.literals.starts[i] - behind
        if end - at <= fixed or memcmp(at, sample + behind, fixed) != 0:
            return False
        at += fixed
        if sample[template.literals.starts[i]] == c'\'':
            if at[0] != c'\'':
                return False
            at = <Cursor>memchr(at + 1, c'\'', end - at - 1)
            if at == NULL:
                return False
            at += 1
        else:
            if CLASS[at[0]] != DIGIT:
                return False
            while at < end and CLASS[at[0]] == DIGIT:
                at += 1
        behind = template.literals.stops[i]
    fixed = template.length - behind
    return end - at == fixed and memcmp(at, sample + behind, fixed) == 0
