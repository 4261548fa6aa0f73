/* RAM sections of a hostile QEMU: never a byte read or written outside, and pieces give what the whole gives. */
#define _GNU_SOURCE /* memfd_create */
#include <sys/mman.h>
#include <unistd.h>

#include "common.h"

enum { PAGE = 1024, PAGES = 20, BLOCKS = 2, BODY = 16 << 10, LIST = 24 };

struct state {
    struct mk_ram ram;
    uint8_t content[16], seen[16];
    uint64_t counts[BLOCKS * MK_WALK_COUNTERS];
};

static void state_init(struct state *state)
{
    struct mk_block blocks[BLOCKS] = {
        {.first_page = 0, .pages = PAGES, .name_length = 1, .name = "a"},
        {.first_page = 64, .pages = PAGES / 2, .name_length = 2, .name = "bb"},
    };
    bool no_memory;
    for (size_t i = 0; i < BLOCKS; i++) {
        blocks[i].fd = memfd_create("fuzz", 0);
        CHECK(blocks[i].fd >= 0);
        CHECK(ftruncate(blocks[i].fd, (off_t)(blocks[i].pages * PAGE)) == 0);
    }
    memset(state, 0, sizeof *state);
    CHECK(mk_ram_init(&state->ram, PAGE, 64, blocks, BLOCKS, &no_memory) == NULL);
    CHECK(!no_memory);
}

static void state_free(struct state *state)
{
    for (size_t i = 0; i < BLOCKS; i++)
        close(state->ram.blocks[i].fd);
    mk_ram_free(&state->ram);
}

/* Mostly legal records, and anything. */
static size_t make_body(struct random *random, uint8_t *to)
{
    static const uint16_t types[] = {0x02, 0x02, 0x08, 0x40, 0x40, 0x40, 0x100, 0x10, 0x200, 0x80, 0x04};
    size_t length = 0;
    while (length + 2 * PAGE < BODY && !one_in(random, 40)) {
        unsigned type = types[below(random, one_in(random, 10) ? 11 : 7)];
        bool named = length == 0 || one_in(random, 4);
        uint64_t word = below(random, PAGES + one_in(random, 60)) * PAGE | type | (named ? 0 : 0x20);
        for (int shift = 56; shift >= 0; shift -= 8)
            to[length++] = (uint8_t)(word >> shift);
        if (type == 0x10 || type == 0x200)
            continue;
        if (named) {
            bool second = word / PAGE < PAGES / 2 && one_in(random, 2);
            memcpy(to + length, second ? "\2bb" : "\1a", second ? 3 : 2);
            length += second ? 3 : 2;
        }
        if (type == 0x02) {
            to[length++] = one_in(random, 100);
        } else if (type == 0x08) {
            if (one_in(random, 4))
                memset(to + length, 0, PAGE);
            else
                random_bytes(random, to + length, PAGE);
            length += PAGE;
        } else if (type == 0x100) {
            uint8_t bytes = (uint8_t)(one_in(random, 30) ? 0 : 1 + below(random, 100));
            memset(to + length, 0, 3);
            to[length + 3] = bytes;
            random_bytes(random, to + length + 4, bytes);
            length += 4u + bytes;
        } else {
            uint8_t run = (uint8_t)(1 + below(random, 100));
            to[length++] = 1;
            to[length++] = 0;
            to[length++] = (uint8_t)(run + 2);
            to[length++] = (uint8_t)below(random, 128);
            to[length++] = run;
            random_bytes(random, to + length, run);
            length += run;
        }
    }
    if (one_in(random, 3))
        to[below(random, length)] ^= (uint8_t)(1u << below(random, 8));
    return length;
}

/* Walks all of it in pieces of at most `piece` new bytes; returns where it came to rest. */
static enum mk_status walk_all(
    struct random *random, struct state *state, const uint8_t *body, size_t length, size_t piece, bool list,
    uint64_t *rest)
{
    size_t at = 0, fed = 0, block = BLOCKS;
    uint64_t after = 0;
    bool compressed = false;
    for (;;) {
        struct mk_listed *rows = list ? exactly(LIST * sizeof *rows) : NULL;
        uint8_t *tight = exactly(fed - at);
        struct mk_error error;
        struct mk_walked done;
        memcpy(tight, body + at, fed - at);
        struct mk_walk walk = {
            .ram = &state->ram, .body = tight, .length = fed - at, .block = block, .content = state->content,
            .seen = state->seen, .rounds = list, .after = after,
            .counts = state->counts, .apply = !list, .list = rows, .list_room = list ? LIST : 0,
            .compressed = compressed,
        };
        enum mk_status status = mk_walk(&walk, &done, &error);
        CHECK(status == MK_OK || (status == MK_RECORD && error.at < fed - at));
        CHECK(done.consumed <= fed - at && done.listed <= LIST && done.block <= BLOCKS);
        free(tight);
        free(rows);
        at += done.consumed;
        block = done.block;
        CHECK(list || done.stop != MK_WALK_ROUND);
        after = done.stop == MK_WALK_ROUND ? 0 : done.after;
        *rest = at;
        if (status != MK_OK)
            return status;
        if (done.stop == MK_WALK_KIND) {
            compressed = !compressed;
        } else if (done.consumed == 0 && done.stop != MK_WALK_ROUND) {
            if (fed == length)
                return MK_OK;
            size_t more = 1 + below(random, piece);
            fed = more < length - fed ? fed + more : length;
        }
    }
}

void fuzz_walk(struct random *random)
{
    uint8_t *body = exactly(BODY);
    size_t length = make_body(random, body);
    struct state whole, pieces, listed;
    uint64_t ends[3];
    state_init(&whole);
    state_init(&pieces);
    state_init(&listed);
    enum mk_status status = walk_all(random, &whole, body, length, length, false, &ends[0]);
    CHECK(walk_all(random, &pieces, body, length, 300, false, &ends[1]) == status);
    CHECK(walk_all(random, &listed, body, length, length, true, &ends[2]) == status);
    CHECK(memcmp(whole.counts, pieces.counts, sizeof whole.counts) == 0);
    CHECK(memcmp(whole.content, pieces.content, sizeof whole.content) == 0);
    CHECK(memcmp(whole.seen, pieces.seen, sizeof whole.seen) == 0);
    CHECK(memcmp(whole.seen, listed.seen, sizeof whole.seen) == 0);
    for (size_t i = 0; i < BLOCKS; i++) {
        uint8_t a[PAGES * PAGE] = {0}, b[PAGES * PAGE] = {0};
        CHECK(pread(whole.ram.blocks[i].fd, a, sizeof a, 0) == pread(pieces.ram.blocks[i].fd, b, sizeof b, 0));
        CHECK(memcmp(a, b, sizeof a) == 0);
        for (uint64_t page = 0; page < whole.ram.blocks[i].pages; page++) {
            uint64_t number = whole.ram.blocks[i].first_page + page;
            bool held = whole.content[number / 8] >> number % 8 & 1;
            CHECK(held == !mk_is_zero(a + page * PAGE, PAGE));
        }
    }
    state_free(&whole);
    state_free(&pieces);
    state_free(&listed);
    free(body);
}

/* ---- pages of multifd packets -------------------------------------------------------------------------- */

/* Offsets of pages in a block, seldom ones that are beyond it or off the page; returns whether all are legal. */
static bool make_offsets(struct random *random, uint8_t *to, size_t count, uint64_t pages)
{
    bool legal = true;
    for (size_t i = 0; i < count; i++) {
        uint64_t offset = below(random, pages) * PAGE;
        if (one_in(random, 200))
            offset = one_in(random, 2) ? offset + 1 + below(random, PAGE - 1) : next_random(random) & ~(PAGE - 1ull);
        legal = legal && offset < pages * PAGE && offset % PAGE == 0;
        for (unsigned byte = 0; byte < 8; byte++)
            to[i * 8 + byte] = (uint8_t)(offset >> (56 - 8 * byte));
    }
    return legal;
}

static uint64_t offset_at(const uint8_t *offsets, size_t i)
{
    uint64_t offset = 0;
    for (unsigned byte = 0; byte < 8; byte++)
        offset = offset << 8 | offsets[i * 8 + byte];
    return offset;
}

void fuzz_land(struct random *random)
{
    struct state state;
    uint8_t model[BLOCKS][PAGES * PAGE] = {0}, held[PAGES * PAGE];
    state_init(&state);
    for (unsigned packets = 0; packets < 4; packets++) {
        size_t block = below(random, BLOCKS), normal = below(random, 12), zero = below(random, 12);
        uint64_t pages = state.ram.blocks[block].pages;
        uint8_t *offsets = exactly((normal + zero) * 8), *data = exactly(normal * PAGE);
        bool legal = make_offsets(random, offsets, normal + zero, pages);
        memset(data, 0, normal * PAGE);
        for (size_t i = 0; i < normal; i++)
            if (!one_in(random, 4))
                random_bytes(random, data + i * PAGE, PAGE);
        struct mk_walk land = {
            .ram = &state.ram, .body = data, .length = normal * PAGE, .block = block, .content = state.content,
            .seen = state.seen, .counts = state.counts, .apply = true,
        };
        struct mk_error error;
        struct mk_walked done;
        enum mk_status status = mk_land(&land, offsets, normal, zero, &done, &error);
        CHECK(status == (legal ? MK_OK : MK_RECORD));
        CHECK(legal || (error.at % 8 == 0 && error.at < (normal + zero) * 8));
        for (size_t i = 0; legal && i < normal + zero; i++) {
            uint8_t *page = model[block] + offset_at(offsets, i);
            if (i < normal)
                memcpy(page, data + i * PAGE, PAGE);
            else
                memset(page, 0, PAGE);
        }
        free(offsets);
        free(data);
    }
    for (size_t i = 0; i < BLOCKS; i++) {
        uint64_t pages = state.ram.blocks[i].pages, first = state.ram.blocks[i].first_page;
        CHECK(pread(state.ram.blocks[i].fd, held, sizeof held, 0) == (ssize_t)(pages * PAGE));
        CHECK(memcmp(held, model[i], pages * PAGE) == 0);
        for (uint64_t page = first; page < first + pages; page++)
            CHECK((state.content[page / 8] >> page % 8 & 1) == !mk_is_zero(held + (page - first) * PAGE, PAGE));
    }
    state_free(&state);
}
