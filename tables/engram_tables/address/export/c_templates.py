"""The C text of an exported header, with places for names ($p, $P) and constants: `c_header.py` fills them in."""

from __future__ import annotations

OPENING = """\
/* Which rows of a hashed n-gram table belong to each token.
 *
$facts
 *
 * Written by `engram spec export --as c`; do not edit. Use it, change it and pass it on without conditions.
 *
 *   ${p}_state state;
 *   ${p}_start(&state);
 *   ${p}_hash(&state, ids, n_tokens, rows, keys);
 *
 * The first call begins a sequence, the second hashes its next tokens, few or many. The state copies as a struct and
 * is all that a sequence keeps between calls. Compile with optimisation: it turns remainders into multiplications.
 *
 * With ENGRAM_SELF_TEST defined there is a self-test over golden cases, ${p}_self_test;
 * with ENGRAM_SELF_TEST_MAIN defined, this header is a program that runs it.
 */
#ifndef $guard
#define $guard

#ifdef ${P}_FINGERPRINT
#error "another spec has this prefix already: export one of the two under another prefix"
#endif

#include <stddef.h>
#include <stdint.h>
"""

CONSTANTS = """\
/* SHA-256 of the addressing, and of the vocabulary's map of token ids to canonical ids ("" where not stated). */
#define ${P}_FINGERPRINT "$fingerprint"
#define ${P}_VOCAB_SHA256 $vocab_sha256

/* Ids run from 0 to CANONICAL_SIZE - 1; -1 is a position that takes no part (an image span, for instance). */
#define ${P}_CANONICAL_SIZE INT64_C($canonical_size)
/* Hashed where the history is missing, dead or behind a boundary. */
#define ${P}_FILL_ID INT64_C($fill_id)

/* How many there are of each; a column is one order and head, order-major. */
#define ${P}_LAYERS $n_layers
#define ${P}_COLUMNS $n_columns
#define ${P}_ORDERS $n_orders
#define ${P}_KEY_WORDS $key_words
/* The longest n-gram. */
#define ${P}_MAX_ORDER $max_order

/* Initialisers of arrays: the n and the heads of each order; the id and the table's rows of each layer. */
#define ${P}_ORDER_LENGTHS {$orders}
#define ${P}_ORDER_HEADS {$heads}
#define ${P}_LAYER_IDS {$layer_ids}
#define ${P}_LAYER_ROWS {$layer_rows}
"""

STATE_USED = "The last ids of a sequence, oldest first, -1 where dead or before its start."
STATE_UNUSED = "Not used: no id before the current one is looked at."

STATE = """\
/* $purpose */
typedef struct ${p}_state {
    int64_t before[$n_state];
} ${p}_state;

/* Begin a sequence. */
static inline void ${p}_start(${p}_state *state)
{
    size_t i;
    for (i = 0; i < $n_state; ++i)
        state->before[i] = -1;
}

/* The last ids, newest first, and how many of them the next token sees. */
typedef struct ${p}_window {
    uint64_t ids[$max_order];
    size_t n_visible;
} ${p}_window;
"""

REPLACE = """\
/* The id that is hashed in the place of another: ids within some ranges are hashed as one. */
static inline uint64_t ${p}_hashed_id(uint64_t id)
{
$starts
$stops
    size_t low = 0, high = $n_ranges;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (stop[middle] <= id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < $n_ranges && start[low] <= id ? UINT64_C($replacement) : id;
}
"""

BOUNDARY = """\
/* Whether later tokens do not see past this id. */
static inline int ${p}_is_boundary(uint64_t id)
{
$boundaries
    size_t i = 0;
    while (i < $n_boundaries && boundary[i] < id)
        ++i;
    return i < $n_boundaries && boundary[i] == id;
}
"""

AT_BOUNDARY = """\
        if (${p}_is_boundary(window->ids[0])) {
${closed}            window->n_visible = $visible;
        }
"""

SEE = """\
/* Let the window take in an id; seen: what its n-grams hold, newest first. */
static inline void ${p}_see(${p}_window *window, int64_t id, uint64_t *seen)
{
    size_t back, n_seen = 0;
    for (back = $n_before; back > 0; --back)
        window->ids[back] = window->ids[back - 1];
    window->ids[0] = UINT64_C($fill_id);
    if (id < 0) {
        window->n_visible = 0;
    } else {
        window->ids[0] = $hashed_id;
        n_seen = ++window->n_visible;
$boundary_rule    }
    for (back = 0; back < $max_order; ++back)
        seen[back] = back < n_seen ? window->ids[back] : UINT64_C($fill_id);
}
"""

SIGNED_REMAINDER = """\
/* The non-negative remainder of a signed 32-bit word, in unsigned arithmetic. */
static inline uint64_t ${p}_remainder(uint64_t word, uint64_t modulus)
{
    if (word < UINT64_C(0x80000000))
        return word % modulus;
    return modulus - 1 - (UINT64_C(0xffffffff) - word) % modulus;
}
"""

PACK = """\
/* The keys of a token, the same for every layer: the ids of each order, newest in the lowest bits, $id_bits each. */
static inline void ${p}_pack(const uint64_t *seen, uint64_t *keys)
{
$words
}
"""

LAYER = """\
/* The part of layer $layer_id in the rows and keys of a token. */
static inline void ${p}_layer_$layer_id(const uint64_t *seen, int64_t *rows, uint64_t *keys)
{
$constants
    if (rows != NULL) {
$rows
    }
    if (keys != NULL) {
$keys
    }
}
"""

HASH = """\
/* Hash the next tokens of a sequence.
 *
 *   ids     [n_tokens], -1 where dead
 *   rows    [n_tokens][LAYERS][COLUMNS], row ids global within their layer
 *   keys    [n_tokens][LAYERS][ORDERS][KEY_WORDS], least significant word first: n-grams of one order with equal keys
 *           own the same rows
 *
 * Either result may be NULL, and both are where ids before the first token of interest are taken in. The arrays do
 * not overlap. Returns 0, or 1 + the position of the first id that is out of range, with nothing written or taken in.
 */
static inline size_t ${p}_hash(
    ${p}_state *state, const int64_t *ids, size_t n_tokens,
    int64_t *rows, uint64_t *keys)
{
    ${p}_window window = {{0}, 0};
    uint64_t seen[$max_order];
    size_t i, back;
    for (i = 0; i < n_tokens; ++i)
        if (ids[i] < -1 || ids[i] >= INT64_C($canonical_size))
            return i + 1;
    if (rows != NULL || keys != NULL) {
        for (back = $n_before; back > 0; --back)
            ${p}_see(&window, state->before[$n_before - back], seen);
        for (i = 0; i < n_tokens; ++i) {
            ${p}_see(&window, ids[i], seen);
$calls
            if (rows != NULL)
                rows += $token_rows;
            if (keys != NULL)
                keys += $token_keys;
        }
    }
    for (back = $n_before; back > 0; --back)
        state->before[$n_before - back] =
            n_tokens >= back ? ids[n_tokens - back] : state->before[$n_before - back + n_tokens];
    return 0;
}
"""

SELF_TEST = """\
#if defined(ENGRAM_SELF_TEST) || defined(ENGRAM_SELF_TEST_MAIN)

#include <inttypes.h>
#include <stdio.h>

/* Names, and how many ids are taken in before the tokens that are compared. */
static const struct {
    const char *name;
    size_t n_history, n_tokens;
} ${p}_golden_cases[$n_cases] = {
$cases
};

/* Case by case: the ids that are taken in, then the tokens. */
static const int64_t ${p}_golden_ids[$n_golden_ids] = {
$ids
};

static const int64_t ${p}_golden_rows[$n_golden_rows] = {
$rows
};

static const uint64_t ${p}_golden_keys[$n_golden_keys] = {
$keys
};

/* How many rows of a chunk differ from the golden ones; says so of the first, unless n_before differed already. */
static inline int ${p}_wrong_rows(
    const char *name, size_t position, size_t n_rows, const int64_t *rows, const int64_t *golden, int n_before)
{
    static const int layer_ids[$n_layers] = ${P}_LAYER_IDS;
    size_t i;
    int n_wrong = 0;
    for (i = 0; i < n_rows; ++i)
        if (rows[i] != golden[i] && n_before + n_wrong++ == 0)
            fprintf(stderr, "case %s, position %zu, layer %d, column %zu: expected row %" PRId64 ", found %" PRId64
                    "\\n", name, position + i / $token_rows, layer_ids[i % $token_rows / $n_columns], i % $n_columns,
                    golden[i], rows[i]);
    return n_wrong;
}

/* The same for words of keys. */
static inline int ${p}_wrong_keys(
    const char *name, size_t position, size_t n_keys, const uint64_t *keys, const uint64_t *golden, int n_before)
{
    static const int layer_ids[$n_layers] = ${P}_LAYER_IDS;
    size_t i;
    int n_wrong = 0;
    for (i = 0; i < n_keys; ++i)
        if (keys[i] != golden[i] && n_before + n_wrong++ == 0)
            fprintf(stderr, "case %s, position %zu, layer %d, key word %zu: expected 0x%" PRIx64 ", found 0x%" PRIx64
                    "\\n", name, position + i / $token_keys, layer_ids[i % $token_keys / $layer_keys], i % $layer_keys,
                    golden[i], keys[i]);
    return n_wrong;
}

/* Rows and words of keys that differ from the golden ones, the first of them told on stderr. */
static inline int ${p}_self_test(void)
{
    static int64_t rows[$largest_chunk * $token_rows];
    static uint64_t keys[$largest_chunk * $token_keys];
    const int64_t *ids = ${p}_golden_ids, *golden_rows = ${p}_golden_rows;
    const uint64_t *golden_keys = ${p}_golden_keys;
    size_t number, start, n_chunk, step = 0;
    int n_wrong = 0;
    for (number = 0; number < $n_cases; ++number) {
        const char *name = ${p}_golden_cases[number].name;
        const size_t n_history = ${p}_golden_cases[number].n_history;
        const size_t n_tokens = ${p}_golden_cases[number].n_tokens;
        ${p}_state state;
        ${p}_start(&state);
        if (${p}_hash(&state, ids, n_history, NULL, NULL) != 0)
            ++n_wrong;
        ids += n_history;
        for (start = 0; start < n_tokens; start += n_chunk) {
            /* Uneven chunks, so that the state between calls is tested too. */
            n_chunk = 1 + step++ % $largest_chunk;
            if (n_chunk > n_tokens - start)
                n_chunk = n_tokens - start;
            if (${p}_hash(&state, ids, n_chunk, rows, keys) != 0)
                ++n_wrong;
            n_wrong += ${p}_wrong_rows(name, start, n_chunk * $token_rows, rows, golden_rows, n_wrong);
            n_wrong += ${p}_wrong_keys(name, start, n_chunk * $token_keys, keys, golden_keys, n_wrong);
            ids += n_chunk;
            golden_rows += n_chunk * $token_rows;
            golden_keys += n_chunk * $token_keys;
        }
    }
    return n_wrong;
}

#ifdef ENGRAM_SELF_TEST_MAIN
int main(void)
{
    const int n_wrong = ${p}_self_test();
    if (n_wrong == 0)
        printf("%d rows of %d cases agree\\n", $n_golden_rows, $n_cases);
    else
        printf("%d rows and keys of %d cases differ\\n", n_wrong, $n_cases);
    return n_wrong != 0;
}
#endif

#endif
"""

CLOSING = "#endif\n"
