/* Page digests (NH), their places in the root (SipHash-2-4 keyed NH), digest arrays. */
#include <stdlib.h>

#include "internal.h"

int mk_keys_init(
    struct mk_keys *keys, uint32_t page_size, const uint8_t *page_key, const uint8_t *root_key)
{
    keys->page_size = page_size;
    keys->page_shift = (unsigned)__builtin_ctz(page_size);
    keys->root_key[0] = load_le64(root_key);
    keys->root_key[1] = load_le64(root_key + 8);
    keys->page_key = aligned_alloc(64, page_size);
    if (!keys->page_key)
        return -1;
    for (size_t i = 0; i < page_size / 8; i++)
        keys->page_key[i] = load_le64(page_key + 8 * i);
    keys->zero_digest = mk_page_digest(keys, zero_page);
    return 0;
}

void mk_keys_free(struct mk_keys *keys)
{
    free(keys->page_key);
    keys->page_key = NULL;
}

struct mk_u128 mk_page_digest(const struct mk_keys *keys, const uint8_t *page)
{
    const uint64_t *key = keys->page_key;
    size_t words = keys->page_size / 8;
    wide even = 0, odd = 0; /* two sums: the additions of one wait for each other */
    for (size_t i = 0; i < words; i += 4) {
        const uint8_t *at = page + 8 * i;
        even += (wide)(load_le64(at) + key[i]) * (load_le64(at + 8) + key[i + 1]);
        odd += (wide)(load_le64(at + 16) + key[i + 2]) * (load_le64(at + 24) + key[i + 3]);
    }
    return narrow(even + odd);
}

static inline uint64_t rotate(uint64_t value, int bits)
{
    return value << bits | value >> (64 - bits);
}

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

/* SipHash-2-4 of one 64-bit number, 8 bytes little-endian. */
static inline uint64_t siphash(const uint64_t key[2], uint64_t number)
{
    uint64_t v[4] = {
        key[0] ^ 0x736f6d6570736575,
        key[1] ^ 0x646f72616e646f6d,
        key[0] ^ 0x6c7967656e657261,
        key[1] ^ 0x7465646279746573,
    };
    uint64_t length = (uint64_t)8 << 56;
    v[3] ^= number;
    sip_round(v);
    sip_round(v);
    v[0] ^= number;
    v[3] ^= length;
    sip_round(v);
    sip_round(v);
    v[0] ^= length;
    v[2] ^= 0xff;
    for (int i = 0; i < 4; i++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

struct place place_of(const struct mk_keys *keys, uint64_t page)
{
    return (struct place){siphash(keys->root_key, 2 * page), siphash(keys->root_key, 2 * page + 1)};
}

struct mk_u128 mk_term(const struct mk_keys *keys, uint64_t page, struct mk_u128 digest)
{
    return term_at(place_of(keys, page), digest);
}

struct mk_u128 mk_root(const struct mk_keys *keys, const uint8_t *digests, uint64_t first, uint64_t count)
{
    wide sum = 0;
    for (uint64_t page = first; page < first + count; page++)
        sum += widen(mk_term(keys, page, digest_at(digests, page)));
    return narrow(sum);
}

void mk_set_digests(uint8_t *digests, uint64_t first, uint64_t count, struct mk_u128 digest)
{
    for (uint64_t page = first; page < first + count; page++)
        set_digest(digests, page, digest);
}
