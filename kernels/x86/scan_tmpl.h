/* kernels/x86/scan_tmpl.h - the summary of a row of logits. A template: needs vec_*.h and
 * ISA_FN(name) before it.
 *
 * Blocks of the vocabulary are cut over the team for (max, sum) and for the Gumbel noise, each part
 * keeping its own best; candidates are gathered by the owner, 16 ids per comparison with the worst
 * one kept. */
#include "base/compiler.h"
#include "kernels/cand.h"
#include "kernels/cpu.h"
#include "kernels/x86/vmath.h"
#include "kernels/x86/x86.h"

struct scan_job {
    const float *logits;
    uint32_t id0, n_ids;
    const struct kern_sample *params;
    struct kern_scan *scan;
    struct kern_stream *s;
};

/* 16 logits from i on, NaN and what lies past the end as -inf. */
static vf scan_load(const float *x, uint32_t i, uint32_t n)
{
    const vf lowest = vf_set1(-INFINITY);
    vf v;

    if (n - i >= 16) {
        v = vf_load(x + i);
    } else {
        v = vf_pick(vm_first(n - i), vf_load_n(x + i, n - i), lowest);
    }
    return vf_pick(vf_eq(v, v), v, lowest);
}

static struct kern_lse scan_block(const float *x, uint32_t n, float divisor)
{
    struct kern_lse r = { -INFINITY, 0.0f };
    const bool divide = divisor != 0.0f;
    const vf by = vf_set1(divisor), one = vf_set1(1.0f);
    vf max = vf_set1(-INFINITY), acc = vf_zero(), m;

    for (uint32_t i = 0; i < n; i += 16) {
        const vf v = scan_load(x, i, n);

        max = vf_max(divide ? vf_div(v, by) : v, max);
    }
    r.max = vf_max16(max) + 0.0f;
    if (r.max == -INFINITY) {
        return r;
    }
    m = vf_set1(r.max);
    for (uint32_t i = 0; i < n; i += 16) {
        const vf raw = scan_load(x, i, n), v = divide ? vf_div(raw, by) : raw;

        acc = vf_add(acc, vf_pick(vf_eq(v, m), one, vf_exp(vf_sub(v, m))));
    }
    r.sum = vf_tree16(acc);
    return r;
}

/* Best of ids [begin, end) of the slice; ties to the lower id, also when all are -inf. */
static struct kern_cand scan_gumbel(const struct scan_job *job, uint32_t begin, uint32_t end)
{
    const struct kern_sample *p = job->params;
    const vf by = vf_set1(p->temperature);
    struct kern_cand best = { -INFINITY, job->id0 + begin };
    vf top = vf_set1(-INFINITY);
    vi top_id = vi_set1(job->id0 + begin);
    float score[16];
    uint32_t id[16];

    for (uint32_t i = begin; i < end; i += 16) {
        const vi ids = vi_iota(job->id0 + i);
        const vf noise = vf_gumbel(p->seed, p->choice, p->pos, ids);
        const vf v = vf_add(vf_div(scan_load(job->logits, i, end), by), noise);
        const vm better = vf_lt(top, v);

        top = vf_pick(better, v, top);
        top_id = vi_pick(better, ids, top_id);
    }
    vf_store(score, top);
    vi_store(id, top_id);
    for (uint32_t i = 0; i < 16; i++) {
        const struct kern_cand c = { score[i], id[i] };

        best = cand_before(c, best) ? c : best;
    }
    return best;
}

static void scan_part(void *arg, uint32_t part, uint32_t n_parts)
{
    const struct scan_job *job = arg;
    const uint32_t n_blocks = (job->n_ids + KERN_VOCAB_BLOCK - 1) / KERN_VOCAB_BLOCK;
    const struct team_range cut = team_cut(n_blocks, 1, part, n_parts);
    struct kern_cand best = { -INFINITY, UINT32_MAX };

    for (uint32_t b = cut.begin; b < cut.end; b++) {
        const uint32_t begin = b * KERN_VOCAB_BLOCK;
        const uint32_t end = MIN(begin + KERN_VOCAB_BLOCK, job->n_ids);
        const float *x = job->logits + begin;

        job->scan->lse[b] = scan_block(x, end - begin, 0.0f);
        if (job->params->temperature != 0.0f) {
            job->scan->lse_temp[b] = scan_block(x, end - begin, job->params->temperature);
        }
        if (job->params->gumbel_all) {
            const struct kern_cand c = scan_gumbel(job, begin, end);

            best = cand_before(c, best) ? c : best;
        }
    }
    memcpy(stream_scratch(job->s, part), &best, sizeof best);
}

static void scan_candidates(const struct scan_job *job)
{
    struct cand_heap heap = { job->scan->cand, 0, MIN(job->params->n_cand, job->n_ids) };
    uint32_t i = 0;

    for (; i < job->n_ids; i += 16) {
        const vf v = scan_load(job->logits, i, job->n_ids);
        const bool full = heap.n == heap.max;
        /* Ids ascend, so an equal logit loses to the one that is there. */
        uint32_t hits = full ? vm_bits(vf_lt(vf_set1(heap.at[0].logit), v)) : vm_bits(vm_first(16));
        float x[16];

        if (hits == 0) {
            continue;
        }
        vf_store(x, v);
        for (; hits != 0; hits &= hits - 1) {
            const uint32_t j = (uint32_t)__builtin_ctz(hits);

            if (i + j < job->n_ids) {
                cand_heap_add(&heap, (struct kern_cand){ x[j], job->id0 + i + j });
            }
        }
    }
    cand_heap_sort(&heap);
}

static void ISA_FN(scan)(struct kern_stream *s, const float *logits, uint32_t id0, uint32_t n_ids,
                         const struct kern_sample *params, struct kern_scan *scan)
{
    struct scan_job job = { logits, id0, n_ids, params, scan, s };
    const uint32_t n_parts = s->n_threads == 1 || n_ids < RUN_INLINE / 4 ? 1 : s->n_threads;

    stream_run(s, scan_part, &job, (size_t)n_ids * 4); /* each costs several elements */
    if (params->gumbel_all) {
        struct kern_cand best = { -INFINITY, UINT32_MAX };

        for (uint32_t i = 0; i < n_parts; i++) {
            struct kern_cand c;

            memcpy(&c, stream_scratch(s, i), sizeof c);
            best = cand_before(c, best) ? c : best;
        }
        scan->gumbel = best;
        scan->gumbel_logit = logits[best.id - id0];
        if (scan->gumbel_logit != scan->gumbel_logit) {
            scan->gumbel_logit = -INFINITY;
        }
    }
    scan_candidates(&job);
}

void ISA_FN(x86_scan)(struct kern_ops *ops)
{
    ops->scan = ISA_FN(scan);
}
