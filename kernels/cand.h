/* kernels/cand.h - the n best of a stream of candidates in (logit descending, id ascending).
 *
 * A heap whose root is the worst one kept, in the caller's array; cand_heap_sort turns it into the
 * sorted list in place. */
#ifndef KERNELS_CAND_H
#define KERNELS_CAND_H

#include "kernels/kern.h"

struct cand_heap {
    struct kern_cand
        *at; /* [max], borrowed; heap order: no child is worse than its parent's rank */
    uint32_t n, max;
};

/* a comes before b in the answer */
static inline bool cand_before(struct kern_cand a, struct kern_cand b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static inline void cand_sift_down(struct kern_cand *at, uint32_t n, uint32_t i, struct kern_cand c)
{
    for (;;) {
        uint32_t child = 2 * i + 1;

        if (child >= n) {
            break;
        }
        if (child + 1 < n && cand_before(at[child], at[child + 1])) {
            child++; /* the worse of the two */
        }
        if (!cand_before(c, at[child])) {
            break;
        }
        at[i] = at[child];
        i = child;
    }
    at[i] = c;
}

static inline void cand_heap_add(struct cand_heap *h, struct kern_cand c)
{
    if (h->n < h->max) {
        uint32_t i = h->n++;

        while (i > 0 && cand_before(h->at[(i - 1) / 2], c)) {
            h->at[i] = h->at[(i - 1) / 2];
            i = (i - 1) / 2;
        }
        h->at[i] = c;
    } else if (cand_before(c, h->at[0])) {
        cand_sift_down(h->at, h->n, 0, c);
    }
}

static inline void cand_heap_sort(struct cand_heap *h)
{
    while (h->n > 1) {
        const struct kern_cand worst = h->at[0], last = h->at[h->n - 1];

        h->n--;
        cand_sift_down(h->at, h->n, 0, last);
        h->at[h->n] = worst;
    }
}

#endif
