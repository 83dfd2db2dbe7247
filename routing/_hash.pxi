# Hashes texts, keyed by two secrets of the process, so that nobody outside can make texts collide.

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    /* 64 x 64 -> 128 bit multiplication, its halves folded into one, as in wyhash (public domain). */
    static inline uint64_t shapes_mix(uint64_t a, uint64_t b) {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }

    static inline uint64_t shapes_word(const unsigned char *at) {
        uint64_t word;
        memcpy(&word, at, 8);
        return word;
    }

    /* 16 bytes a step. The last 16 overlap those before; a shorter text is padded with zeros, and its
       length, which is part of the hash, tells it from one that ends in zeros. */
    static inline uint64_t shapes_hash(const char *text, Py_ssize_t length, uint64_t seed, uint64_t secret) {
        const unsigned char *at = (const unsigned char *)text;
        unsigned char last[16] = {0};
        Py_ssize_t left = length;
        uint64_t hash = seed ^ shapes_mix((uint64_t)length ^ secret, 0x9E3779B97F4A7C15ULL);
        for (; left > 16; left -= 16, at += 16)
            hash = shapes_mix(shapes_word(at) ^ secret, shapes_word(at + 8) ^ hash);
        if (length > 16)
            memcpy(last, at + left - 16, 16);
        else
            memcpy(last, at, (size_t)left);
        hash = shapes_mix(shapes_word(last) ^ secret, shapes_word(last + 8) ^ hash);
        return shapes_mix(hash ^ secret, seed ^ 0xE7037ED1A0B428DBULL);
    }
    """
    uint64_t shapes_hash(const char *text, Py_ssize_t length, uint64_t seed, uint64_t secret) noexcept nogil
