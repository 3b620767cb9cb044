/* partition/rates.h - what hosts were measured to do, and the seconds that work takes by it.
 *
 * Rates are those of a whole host (of one device, for CUDA), in bytes, operations and seconds. Products are
 * given as the packed bytes of weights that pass in a second when so many rows are multiplied at a time: at 1
 * row that is the memory's bandwidth, at many the arithmetic. Between two points the time of a byte is a
 * straight line, beyond the last one it grows with the rows.
 *
 * The file that they are read from is rates_file.h. */
#ifndef PARTITION_RATES_H
#define PARTITION_RATES_H

#include "kernels/kern.h"

enum {
    RATES_POINTS_MAX = 12,
    RATES_ENTRIES_MAX = 16384, /* hosts times devices times formats */
    RATES_HOST_BYTES = 256,
    RATES_TEXT_BYTES = 64
};

struct rates_point {
    uint32_t rows;
    double bytes_s; /* packed bytes of weights that pass in a second */
};

struct rates_points {
    uint32_t n;
    struct rates_point at[RATES_POINTS_MAX]; /* [n], rows ascending */
};

/* Attention. A score is one query head at one position: something for itself (an exponential), and
 * 4 operations for each element of the head. */
struct rates_scores {
    double scores_s, flops;
};

struct rates_entry {
    char host[RATES_HOST_BYTES]; /* "*": any that has none of its own */
    uint32_t cuda_version;       /* 90: one device of that capability; 0: the host's processors */
    enum kern_fmt fmt;
    uint32_t threads;
    char kernels[RATES_TEXT_BYTES], measured[RATES_TEXT_BYTES]; /* for people; "": not said */
    uint64_t memory_bytes;                                      /* 0: not said */
    struct rates_points weights;                                /* from memory */
    uint64_t cached_bytes;      /* so many bytes stay in the caches; 0: none do */
    struct rates_points cached; /* then; n 0: none */
    double kv_bytes_s;          /* K and V read by a decode row, where reading them is the work */
    struct rates_scores decode; /* attention of decode rows, where computing is the work */
    struct rates_scores prompt; /* of many rows of one stream */
    double vector_bytes_s;      /* norms, rotations, activations: bytes read and written */
    double scan_ids_s;          /* from logits to a token: ids looked at */
    double layer_s;             /* of a layer, whatever its size */
    double
        recorded_layer_s; /* the same in a recorded step; 0: not measured, or nothing is recorded */
};

struct rates_link {
    double latency_s, bytes_s; /* one way */
    bool is_measured;          /* else an assumption of ours (links_assume, rates_file.c) */
};

struct rates {
    struct rates_entry *entries; /* [n] owned */
    uint32_t n;
    struct rates_link on_host, across; /* between ranks of one host, of two */
};

void rates_fini(struct rates *rates); /* zeroed storage is fine */

/* Which entry is asked for. */
struct rates_key {
    const char *host;
    uint32_t cuda_version; /* 0: CPU */
    enum kern_fmt fmt;
};
/* That host's own, else the one of any host ("*"); else NULL. Borrowed. */
const struct rates_entry *rates_find(const struct rates *rates, const struct rates_key *key);
/* The slowest of all hosts that have that device and format; NULL: none has. */
const struct rates_entry *rates_slowest(const struct rates *rates, const struct rates_key *key);

/* Seconds for `bytes` of packed weights in products of n_rows rows, out of `total` that are held. */
double rates_weights_s(const struct rates_entry *e, uint64_t bytes, uint64_t total,
                       uint32_t n_rows);
/* Seconds of so many scores of heads of that size. */
double rates_scores_s(const struct rates_scores *s, double n, uint32_t head_dim);
/* At so many rows: does reading the weights bound a product, or the arithmetic? */
bool rates_reading_bounds(const struct rates_entry *e, uint64_t total, uint32_t n_rows);

#endif
