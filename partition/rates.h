/* partition/rates.h - what a host was measured to do, as a small text file; and the same in memory.
 *
 *   gantry-rates 1
 *   host=a device=cpu format=bf16 kernels=avx512bf16 threads=2 measured=2026-11-22T01:40:12Z memory_mib=20480
 *     weights_gb_s=1:48.1,16:40.0,256:3.9 cached_mib=16 cached_gb_s=1:90,16:60,256:4 kv_gb_s=20 decode_gflop_s=200
 *     decode_gscore_s=3 prompt_gflop_s=500 prompt_gscore_s=4 vector_gb_s=15 scan_mid_s=900 layer_us=9
 *   link=host latency_us=0.6 gb_s=7.5
 *   link=network latency_us=21 gb_s=1.1
 *
 * (an entry is one line; it is broken here). A line speaks for itself, so files of several hosts may be
 * put one behind the other; of two lines for the same thing the later one counts. "#" begins a comment.
 * `host=*` is any host that has no line of its own.
 *
 * Products are given as the packed bytes of weights that pass in a second when so many rows are
 * multiplied at a time: at 1 row that is the memory's bandwidth, at many the arithmetic. Between two
 * points the time of a byte is a straight line, beyond the last one it grows with the rows.
 *
 * Rates are those of a whole host (of one device, for CUDA). Bytes in, bytes out: no files here. */
#ifndef PARTITION_RATES_H
#define PARTITION_RATES_H

#include "base/buf.h"
#include "kernels/kern.h"

enum {
    RATES_POINTS_MAX = 12,
    RATES_ENTRIES_MAX = 16384, /* hosts times devices times formats */
    RATES_FILE_BYTES_MAX = 16 << 20,
    RATES_WORD_BYTES_MAX = 256,
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
};

struct rates_link {
    double latency_s, bytes_s; /* one way */
    bool is_measured;          /* else an assumption of ours (links_assume, rates.c) */
};

struct rates {
    struct rates_entry *entries; /* [n] owned */
    uint32_t n;
    struct rates_link on_host, across; /* between ranks of one host, of two */
};

struct rates_text {
    const char *name; /* for the sentence */
    const char *data;
    size_t len;
};

/* ST_ERR_FORMAT, ST_ERR_LIMIT: the sentence names file, line, word and what is allowed. */
status rates_parse(const struct rates_text *text, struct rates *rates_p, struct err *err);
void rates_fini(struct rates *rates); /* zeroed storage is fine */

/* Lines of the file: the head, an entry, a link. */
status rates_print_head(struct buf *out);
status rates_print_entry(const struct rates_entry *e, struct buf *out);
status rates_print_link(bool is_across, const struct rates_link *l, struct buf *out);

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
