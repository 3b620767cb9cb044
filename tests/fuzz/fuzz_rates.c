/* tests/fuzz/fuzz_rates.c - any bytes as a file of rates: numbers that can be divided by, names that end, and
 * what is printed of them is read again; or a sentence of printable characters (it goes into logs). */
#include "partition/rates_file.h"

#include <math.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_points(const struct rates_points *p)
{
    for (uint32_t i = 0; i < p->n; i++) {
        ASSERT(isfinite(p->at[i].bytes_s) && p->at[i].bytes_s > 0 && p->at[i].rows != 0);
        ASSERT(i == 0 || p->at[i].rows > p->at[i - 1].rows);
    }
}

static void check_entry(const struct rates *r, const struct rates_entry *e)
{
    const struct rates_key key = { e->host, e->cuda_version, e->fmt };

    ASSERT(memchr(e->host, '\0', sizeof(e->host)) != NULL && e->host[0] != '\0');
    ASSERT(e->weights.n != 0 && e->weights.n <= RATES_POINTS_MAX);
    ASSERT(e->cached.n <= RATES_POINTS_MAX && (e->cached.n == 0) == (e->cached_bytes == 0));
    check_points(&e->weights);
    check_points(&e->cached);
    ASSERT(e->kv_bytes_s > 0 && e->vector_bytes_s > 0 && e->scan_ids_s > 0 && e->layer_s > 0);
    ASSERT(e->recorded_layer_s >= 0);
    ASSERT(isfinite(rates_weights_s(e, 1 << 20, 1 << 30, 7)) && rates_find(r, &key) != NULL);
    ASSERT(isfinite(rates_scores_s(&e->decode, 1, 64)) &&
           isfinite(rates_scores_s(&e->prompt, 1, 64)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct rates_text text = { "rates", (const char *)data, size };
    struct buf out = BUF_INIT;
    struct rates r, again;
    struct err err = ERR_INIT;

    if (rates_parse(&text, &r, &err) != ST_OK) {
        ASSERT(err.text[0] != '\0');
        for (const char *p = err.text; *p; p++) {
            ASSERT(*p >= ' ' && *p <= '~');
        }
        return 0;
    }
    ASSERT(r.n != 0 && r.n <= RATES_ENTRIES_MAX);
    ASSERT(r.on_host.latency_s > 0 && r.across.bytes_s > 0);
    status st = rates_print_head(&out);
    for (uint32_t i = 0; i < r.n; i++) {
        check_entry(&r, &r.entries[i]);
        st = st == ST_OK ? rates_print_entry(&r.entries[i], &out) : st;
    }
    const struct rates_text printed = { "printed", out.data, out.len };
    ASSERT(st != ST_OK || rates_parse(&printed, &again, &err) != ST_OK || again.n == r.n);
    if (st == ST_OK && err.text[0] == '\0') {
        rates_fini(&again);
    }
    rates_fini(&r);
    buf_fini(&out);
    return 0;
}
