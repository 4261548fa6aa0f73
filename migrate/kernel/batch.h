/* A batch body, decoded in private memory: what records.c makes and apply.c writes. */
#ifndef MIGRATE_KERNEL_BATCH_H
#define MIGRATE_KERNEL_BATCH_H

#include "internal.h"

/* One record that is to change RAM. */
struct landing {
    uint64_t page;
    const uint8_t *content; /* in the body, the cache, the arena, or zero_page; NULL: RAM keeps what it has */
    struct mk_u128 digest;
    struct place place;
    size_t block;
};

struct batch {
    struct landing *landings; /* room for max_records */
    size_t count;
    uint8_t *arena; /* decoded pages that cannot stay in the cache; made when the first comes */
    size_t arena_used;
    bool ascending; /* no page occurs twice, and they are in order */
    uint64_t zero, normal, xbzrle;
};

/* Parse, decode, digest; the cache follows. On MK_RECORD or MK_MEMORY, *error is set. */
enum mk_status batch_decode(const struct mk_apply *request, struct batch *batch, struct mk_error *error);
void batch_free(struct batch *batch);

#endif
