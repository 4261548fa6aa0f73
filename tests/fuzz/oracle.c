#include "oracle.h"

#include "common.h"

uint32_t oracle_crc32c(const uint8_t *data, size_t length, uint32_t value)
{
    uint32_t crc = ~value;
    for (size_t i = 0; i < length; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0x82f63b78 : crc >> 1;
    }
    return ~crc;
}

__extension__ typedef unsigned __int128 wide;

static struct mk_u128 narrow(wide value)
{
    return (struct mk_u128){(uint64_t)value, (uint64_t)(value >> 64)};
}

static uint64_t le64(const uint8_t *at)
{
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--)
        value = value << 8 | at[i];
    return value;
}

struct mk_u128 oracle_page_digest(const struct mk_keys *keys, const uint8_t *page)
{
    wide sum = 0;
    for (size_t i = 0; i < keys->page_size / 8; i += 2) {
        wide factor = le64(page + 8 * i) ^ keys->page_key[i];
        uint64_t other = le64(page + 8 * i + 8) ^ keys->page_key[i + 1];
        for (int bit = 0; bit < 64; bit++)
            if (other >> bit & 1)
                sum ^= factor << bit;
    }
    return narrow(sum);
}

struct mk_u128 oracle_add(struct mk_u128 a, struct mk_u128 b)
{
    return narrow(((wide)a.hi << 64 | a.lo) + ((wide)b.hi << 64 | b.lo));
}

static size_t write_length(uint8_t *out, size_t length)
{
    out[0] = (uint8_t)(length & 0x7f);
    if (length < 128)
        return 1;
    out[0] |= 0x80;
    out[1] = (uint8_t)(length >> 7);
    return 2;
}

int oracle_encode(
    const uint8_t *old, const uint8_t *new, size_t length, uint8_t *out, size_t limit, size_t gap)
{
    size_t i = 0, size = 0;
    while (i < length) {
        uint8_t head[2];
        if (size + 2 > limit)
            return -1;
        size_t from = i;
        while (i < length && old[i] == new[i])
            i++;
        if (i == length)
            break;
        size_t head_size = write_length(head, i - from);
        if (size + head_size + 2 > limit)
            return -1;
        memcpy(out + size, head, head_size);
        size += head_size;
        from = i;
        for (;;) {
            while (i < length && old[i] != new[i])
                i++;
            size_t next = i;
            while (next < length && old[next] == new[next])
                next++;
            if (next == length || next - i > gap)
                break;
            i = next;
        }
        head_size = write_length(head, i - from);
        if (size + head_size + (i - from) > limit)
            return -1;
        memcpy(out + size, head, head_size);
        memcpy(out + size + head_size, new + from, i - from);
        size += head_size + (i - from);
    }
    return (int)size;
}

static bool read_length(const uint8_t *delta, size_t length, size_t *at, size_t *value)
{
    if (length - *at < 2)
        return false;
    *value = delta[*at] & 0x7f;
    if (delta[(*at)++] & 0x80) {
        if (delta[*at] & 0x80)
            return false;
        *value |= (size_t)delta[(*at)++] << 7;
    }
    return true;
}

int64_t oracle_decode(const uint8_t *delta, size_t delta_length, uint8_t *page, size_t length)
{
    size_t i = 0, done = 0, run;
    while (i < delta_length) {
        size_t from = i;
        if (!read_length(delta, delta_length, &i, &run) || (from > 0 && run == 0))
            return -1;
        done += run;
        if (done > length || !read_length(delta, delta_length, &i, &run) || run == 0)
            return -1;
        if (done + run > length || i + run > delta_length)
            return -1;
        for (size_t j = 0; j < run; j++)
            page[done++] = delta[i++];
    }
    return (int64_t)done;
}

static uint64_t be64(const uint8_t *at)
{
    uint64_t value = 0;
    for (int i = 0; i < 8; i++)
        value = value << 8 | at[i];
    return value;
}

static struct mk_u128 digest_in(const uint8_t *digests, uint64_t page)
{
    return (struct mk_u128){le64(digests + 16 * page), le64(digests + 16 * page + 8)};
}

/* One record. Returns its end, or 0 with a rule in *rule. */
static size_t apply_record(
    const struct mk_apply *q, uint8_t *image, uint8_t *digests, struct mk_cache *cache, size_t at,
    size_t *block, struct verdict *verdict)
{
    const uint8_t *body = q->body;
    const struct mk_ram *ram = q->ram;
    uint32_t page_size = ram->page_size;
    if (verdict->records == mk_max_records(page_size))
        return verdict->rule = "too-many-records", 0;
    if (q->length - at < 8)
        return verdict->rule = "truncated", 0;
    uint64_t word = be64(body + at);
    unsigned flags = (unsigned)(word % page_size), type = flags & ~0x20u;
    at += 8;
    if (type == 0x80)
        return verdict->rule = "hook", 0;
    if (type != 2 && type != 8 && type != 0x40)
        return verdict->rule = "unknown-flags", 0;
    if (!(flags & 0x20)) {
        if (q->length - at < 1 || q->length - at - 1 < body[at])
            return verdict->rule = "truncated", 0;
        size_t length = body[at];
        for (*block = 0; *block < ram->block_count; ++*block)
            if (ram->blocks[*block].name_length == length
                && memcmp(ram->blocks[*block].name, body + at + 1, length) == 0)
                break;
        if (*block == ram->block_count)
            return verdict->rule = "unknown-block", 0;
        at += 1 + length;
    } else if (*block == ram->block_count) {
        return verdict->rule = "no-block", 0;
    }
    if (word / page_size >= ram->blocks[*block].pages)
        return verdict->rule = "bad-offset", 0;
    uint64_t page = ram->blocks[*block].first_page + word / page_size;
    if (page / ram->stripe_pages % q->lanes != q->lane)
        return verdict->rule = "wrong-lane", 0;
    uint8_t *content = image + page * page_size;
    int64_t slot = cache ? mk_cache_find(cache, page) : MK_NO_SLOT;
    if (type == 2) {
        if (q->length - at < 1)
            return verdict->rule = "truncated", 0;
        if (body[at++] != 0)
            return verdict->rule = "zero-fill", 0;
        memset(content, 0, page_size);
        verdict->zero++;
    } else if (type == 8) {
        if (q->length - at < page_size)
            return verdict->rule = "truncated", 0;
        memcpy(content, body + at, page_size);
        at += page_size;
        verdict->normal++;
    } else {
        if (q->length - at < 3)
            return verdict->rule = "truncated", 0;
        size_t length = (size_t)body[at + 1] << 8 | body[at + 2];
        if (body[at] != 1)
            return verdict->rule = "xbzrle-encoding", 0;
        at += 3;
        if (length > page_size)
            return verdict->rule = "xbzrle-length", 0;
        if (q->length - at < length)
            return verdict->rule = "truncated", 0;
        if (!cache || page_size > MK_XBZRLE_PAGE_MAX || (cache->qemu_rule && q->stage == MK_BULK))
            return verdict->rule = "xbzrle-disabled", 0;
        if (length == 0 && !cache->qemu_rule)
            return verdict->rule = "xbzrle-length", 0;
        if (slot == MK_NO_SLOT)
            return verdict->rule = "xbzrle-not-held", 0;
        if (length == 0) {
            mk_cache_touch(cache, slot, q->round);
            verdict->digest_sum =
                oracle_add(verdict->digest_sum, mk_term(q->keys, page, digest_in(digests, page)));
            verdict->records++;
            return at;
        }
        memcpy(content, mk_cache_data(cache, slot), page_size);
        if (oracle_decode(body + at, length, content, page_size) < 0)
            return verdict->rule = "xbzrle-delta", 0;
        at += length;
        verdict->xbzrle++;
    }
    struct mk_u128 digest = oracle_page_digest(q->keys, content), term = mk_term(q->keys, page, digest);
    mk_set_digests(digests, page, 1, digest);
    if (cache && page_size <= MK_XBZRLE_PAGE_MAX)
        mk_cache_put(cache, slot, page, content, term, q->round, q->stage, type == 2);
    verdict->digest_sum = oracle_add(verdict->digest_sum, term);
    verdict->records++;
    return at;
}

struct verdict
oracle_apply(const struct mk_apply *q, uint8_t *image, uint8_t *digests, struct mk_cache *cache)
{
    struct verdict verdict = {.rule = NULL};
    size_t at = 0, block = q->ram->block_count;
    while (at < q->length) {
        size_t end = apply_record(q, image, digests, cache, at, &block, &verdict);
        if (verdict.rule) {
            verdict.at = at;
            return verdict;
        }
        at = end;
    }
    verdict.at = q->length;
    return verdict;
}
