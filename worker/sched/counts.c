/* worker/sched/counts.c - see counts.h. A sorted array: it is copied into every plan that samples
 * the stream, as it lies, and changes by one entry a token. */
#include "worker/sched/counts.h"

#include <stdlib.h>
#include <string.h>

static int by_id(const void *a, const void *b)
{
    const uint32_t x = ((const struct kern_adjust *)a)->id, y = ((const struct kern_adjust *)b)->id;

    return x < y ? -1 : x > y;
}

/* Equal neighbours become one, their numbers added. */
static uint32_t merge_equal(struct kern_adjust *at, uint32_t n)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (kept != 0 && at[kept - 1].id == at[i].id) {
            at[kept - 1].n_made += at[i].n_made;
        } else {
            at[kept++] = at[i];
        }
    }
    return kept;
}

status counts_init(struct counts *c, const struct counts_from *from, uint32_t n_max)
{
    const uint32_t n = from->n_prompt + from->n_made;
    struct kern_adjust *at = malloc((size_t)MAX(n_max, n) * sizeof(*at) + 1);

    if (at == NULL) {
        return ST_ERR_NOMEM;
    }
    for (uint32_t i = 0; i < n; i++) {
        const bool is_made = i >= from->n_prompt;
        at[i] =
            (struct kern_adjust){ .id = is_made ? from->made[i - from->n_prompt] : from->prompt[i],
                                  .n_made = is_made };
    }
    qsort(at, n, sizeof(*at), by_id);
    *c = (struct counts){ .at = at, .n = merge_equal(at, n), .n_max = MAX(n_max, n) };
    return ST_OK;
}

void counts_fini(struct counts *c)
{
    free(c->at);
    *c = (struct counts){ .at = NULL };
}

void counts_add(struct counts *c, uint32_t id)
{
    uint32_t low = 0, high = c->n;

    while (low < high) { /* the first entry that is not below id */
        const uint32_t mid = low + (high - low) / 2;
        if (c->at[mid].id < id) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    if (low < c->n && c->at[low].id == id) {
        c->at[low].n_made++;
        return;
    }
    ASSERT(c->n < c->n_max);
    memmove(&c->at[low + 1], &c->at[low], (c->n - low) * sizeof(*c->at));
    c->at[low] = (struct kern_adjust){ .id = id, .n_made = 1 };
    c->n++;
}
