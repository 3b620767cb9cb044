/* partition/rates_file.h - rates as a small text file.
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
 * `host=*` is any host that has no line of its own. A device has recorded_layer_us beside layer_us. Numbers have
 * the units that their keys name (G and M are powers of ten, mib is 2^20 bytes); in memory they are in bytes,
 * seconds and operations (rates.h).
 *
 * Bytes in, bytes out: no files here. */
#ifndef PARTITION_RATES_FILE_H
#define PARTITION_RATES_FILE_H

#include "base/buf.h"
#include "partition/rates.h"

enum {
    RATES_FILE_BYTES_MAX = 16 << 20,
    RATES_WORD_BYTES_MAX = 256 /* KEY=VALUE, with its end */
};

struct rates_text {
    const char *name; /* for the sentence; borrowed */
    const char *data; /* [len] borrowed, no NUL behind it needed */
    size_t len;
};

/* All of a file; the caller owns *rates_p (rates_fini). ST_ERR_FORMAT, ST_ERR_LIMIT: the sentence names
 * file, line, word and what is allowed. */
status rates_parse(const struct rates_text *text, struct rates *rates_p, struct err *err);

/* Lines of the file, appended: the head, an entry, a link. ST_ERR_NOMEM or the buffer's own limit. */
status rates_print_head(struct buf *out);
status rates_print_entry(const struct rates_entry *e, struct buf *out);
status rates_print_link(bool is_across, const struct rates_link *l, struct buf *out);

#endif
