/* The rules once more, as plainly as they can be written: what the kernel is compared with. */
#ifndef FUZZ_ORACLE_H
#define FUZZ_ORACLE_H

#include "kernel.h"

uint32_t oracle_crc32c(const uint8_t *data, size_t length, uint32_t value);
struct mk_u128 oracle_page_digest(const struct mk_keys *keys, const uint8_t *page);
struct mk_u128 oracle_add(struct mk_u128 a, struct mk_u128 b);
/* qemu-ram-stream.md 3.3, byte by byte, with joined gaps. */
int oracle_encode(
    const uint8_t *old, const uint8_t *new, size_t length, uint8_t *out, size_t limit, size_t gap);
/* qemu-ram-stream.md 3.4. */
int64_t oracle_decode(const uint8_t *delta, size_t delta_length, uint8_t *page, size_t length);

/* What mk_apply must make of a body. */
struct verdict {
    const char *rule; /* NULL: legal */
    uint64_t at;
    uint64_t records, zero, normal, xbzrle;
    struct mk_u128 digest_sum;
};

/* Follow the body record by record on `ram_image` (total_pages pages, one after the other), `digests` and a
 * cache that the caller has copied; all three are changed. */
struct verdict
oracle_apply(const struct mk_apply *request, uint8_t *ram_image, uint8_t *digests, struct mk_cache *cache);

#endif
