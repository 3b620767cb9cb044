/* tests/sim/sim_world.c - one seed: its shape, its history, its end.
 *
 *   faults and requests ─► healed ─► all answers are there, all replicas are back ─► probes ─► stop
 *
 * Everything after "healed" must happen within bounds. Some seeds stop the service in the middle of
 * it all instead. */
#include "coordinator/coord.h"
#include "sim/sim_disk.h"
#include "sim/sim_job.h"
#include "unit/coordinator/bytes_tok.h"

#include <stdlib.h>
#include <string.h>

enum { LOOK_MS = 50, LIVE_S = 240, PROBE_S = 120, STOP_S = 30, LET_GO_S = 20 };

/* ---- shape ---- */

static void draw_model(struct sim *s, struct sim_rng *r)
{
    static const struct {
        uint32_t tp, pp;
    } cuts[] = { { 1, 1 }, { 1, 1 }, { 1, 1 }, { 2, 1 }, { 1, 2 }, { 2, 2 } };
    struct sim_shape *h = &s->shape;
    const uint32_t i = rng_below(r, ARRAY_LEN(cuts));

    h->tp = cuts[i].tp;
    h->pp = cuts[i].pp;
    h->n_ranks = h->tp * h->pp;
    h->ctx_max = rng_in(r, 24, 200);
    h->kv_tokens = (h->ctx_max + KERN_KV_BLOCK - 1) / KERN_KV_BLOCK * KERN_KV_BLOCK;
    h->kv_tokens += rng_below(r, 12) * KERN_KV_BLOCK;
    h->seqs_max = rng_in(r, 1, 8);
    h->rows_max = rng_in(r, h->seqs_max, 64);
    h->chunk_max = rng_chance(r, 500) ? 0 : rng_in(r, 1, h->rows_max);
    h->prefix_cache = rng_chance(r, 800);
    h->ahead = h->pp == 1 && rng_chance(r, 400);
    h->step_ns = rng_ns(r, 2 * NS_PER_MS, 20 * NS_PER_MS);
}

/* --journal, and how often the coordinator dies. */
static void draw_journal(struct sim_shape *h, struct sim_rng *r, bool is_large)
{
    h->journal = rng_chance(r, is_large ? 250 : 500);
    if (!h->journal) {
        return;
    }
    h->resume_s = rng_in(r, 1, 8);
    h->orphan_s = rng_chance(r, 900) ? rng_in(r, 5, 20) : 0;
    h->segment_bytes = rng_chance(r, 700) ? rng_in(r, 200, 20000) : 1 << 20;
    h->n_deaths = h->is_fair ? 0 : rng_below(r, 5);
}

static void draw_shape(struct sim *s, uint32_t n_replicas)
{
    struct sim_shape *h = &s->shape;
    struct sim_rng *r = &s->rng;
    const bool is_large = s->seed % 20 == 0;

    draw_model(s, r);
    h->n_replicas = is_large ? rng_in(r, 100, 200) : rng_in(r, rng_chance(r, 150) ? 1 : 4, 20);
    h->n_replicas = n_replicas != 0 ? n_replicas : h->n_replicas;
    h->queue_max = rng_in(r, 2, is_large ? 512 : 128);
    h->n_requests = is_large ? rng_in(r, 100, 400) : rng_in(r, 5, 60);
    h->burst_per_mille = rng_chance(r, 300) ? 900 : 100;
    h->n_faults = is_large ? rng_in(r, 10, 100) : rng_below(r, 16);
    h->healed_ns = s->now_ns + rng_ns(r, 2 * NS_PER_S, 20 * NS_PER_S);
    h->retries = rng_chance(r, 500) ? 1000 : rng_below(r, 4);
    h->restarts = rng_chance(r, 700) ? 1000 : rng_below(r, 4);
    h->hang_ns = rng_ns(r, 2 * NS_PER_S, 5 * NS_PER_S);
    h->start_ns = rng_ns(r, 8 * NS_PER_S, 15 * NS_PER_S);
    h->public_queue_max = rng_chance(r, 300) ? rng_in(r, 1, 8) : UINT32_MAX;
    h->control_queue_max = rng_chance(r, 100) ? rng_in(r, 4, 32) : UINT32_MAX;
    h->start_fails_per_mille = rng_chance(r, 300) ? 300 : 0;
    if (!is_large && rng_chance(r, 200)) { /* few replicas, little memory, much to do */
        h->n_replicas = n_replicas != 0 ? n_replicas : rng_in(r, 1, 3);
        h->n_requests = rng_in(r, 40, 120);
        h->kv_tokens = (h->ctx_max + KERN_KV_BLOCK - 1) / KERN_KV_BLOCK * KERN_KV_BLOCK;
        h->kv_tokens += rng_below(r, 4) * KERN_KV_BLOCK;
        h->burst_per_mille = 900;
    }
    h->canary_ns = rng_chance(r, 400) ? rng_ns(r, NS_PER_S / 2, 5 * NS_PER_S) : 0;
    h->broken_per_mille = h->canary_ns != 0 && rng_chance(r, 300) ? 200 : 0;
    h->n_joins = rng_chance(r, 300) ? rng_in(r, 1, 4) : 0;
    h->is_fair = rng_chance(r, 50);
    if (h->is_fair) {
        h->n_faults = 0;
        h->start_fails_per_mille = 0;
        h->broken_per_mille = 0;
    }
    h->stops_early = rng_chance(r, 150);
    h->stop_ns = rng_ns(r, s->now_ns, h->healed_ns);
    h->grace_ns = rng_chance(r, 500) ? 0 : rng_ns(r, 0, 10 * NS_PER_S);
    draw_journal(h, r, is_large);
}

/* ---- what the coordinator is given ---- */

static const struct tokenizer *tokenizer_get(void)
{
    static struct tokenizer *tok; /* one for all seeds: it never changes */
    struct err err = ERR_INIT;

    if (tok == NULL) {
        tok = bytes_tok_open(&err);
    }
    ASSERT(tok != NULL);
    return tok;
}

static void plan_make(struct sim *s)
{
    const struct sim_shape *h = &s->shape;
    const struct plan_request request = { .tp = h->tp,
                                          .pp = h->pp,
                                          .fmt = KERN_F32,
                                          .n_ranks = h->n_ranks,
                                          .ctx_max = h->ctx_max,
                                          .kv_tokens = h->kv_tokens,
                                          .seqs_max = h->seqs_max,
                                          .rows_max = h->rows_max };
    struct err err = ERR_INIT;

    s->desc = calloc(1, sizeof(*s->desc));
    ASSERT(s->desc != NULL);
    *s->desc = (struct model_desc){ .name = "sim",
                                    .family = "LlamaForCausalLM",
                                    .n_layers = 2,
                                    .dim = 16,
                                    .n_heads = 2,
                                    .n_kv_heads = 2,
                                    .head_dim = 8,
                                    .ffn_dim = 32,
                                    .vocab = SIM_VOCAB,
                                    .ctx_max = h->ctx_max,
                                    .norm_eps = 1e-5f,
                                    .rope = { MODEL_ROPE_PLAIN, 10000, 1, 1, 1, h->ctx_max },
                                    .bos = SIM_BOS,
                                    .n_eos = 1,
                                    .eos = { SIM_EOS } };
    if (plan_create(s->desc, &request, &s->plan, &err) != ST_OK) {
        sim_fail(s, "no plan: %s", err.text);
    }
}

/* ---- history ---- */

enum phase { PHASE_STORM, PHASE_HEAL, PHASE_PROBE, PHASE_STOP, PHASE_OVER };

struct history {
    enum phase phase;
    uint64_t bound_ns; /* the phase must be over by then */
};

static bool leaders_are_idle(const struct sim *s)
{
    for (uint32_t i = 0; i < s->shape.n_replicas; i++) {
        const struct sim_job *job = job_of(s, i);
        if (job != NULL && !job_is_given_up(job) && job->state == JOB_RUNS &&
            !leader_is_idle(job)) {
            return false;
        }
    }
    return true;
}

static bool is_quiet(const struct sim *s)
{
    return s->coord != NULL && s->n_clients_open == 0 && jobs_are_settled(s) &&
           leaders_are_idle(s) && check_n_streams(s) == 0;
}

static void look_heal(struct sim *s, struct history *h)
{
    if (s->now_ns > s->shape.healed_ns + LET_GO_S * NS_PER_S) { /* those that tried again as well */
        clients_let_go(s);
    }
    if (is_quiet(s)) {
        sim_note(s, "quiet", 0, 0);
        h->phase = PHASE_PROBE;
        h->bound_ns = s->now_ns + PROBE_S * NS_PER_S;
        if (coord_state(s->coord) == COORD_SERVING) {
            /* each of up to four choices */
            clients_probe(s,
                          MIN(MIN(s->shape.n_replicas * 2, MAX(s->shape.queue_max / 4, 1u)), 24u));
        }
    }
}

static void look(struct sim *s, struct history *h)
{
    if (s->is_stopping && h->phase < PHASE_STOP) {
        h->phase = PHASE_STOP;
        h->bound_ns = MAX(s->now_ns, s->coord_free_ns) + s->shape.grace_ns + STOP_S * NS_PER_S;
    }
    switch (h->phase) {
    case PHASE_STORM:
        if (s->now_ns >= s->shape.healed_ns) {
            sim_note(s, "healed", 0, 0);
            h->phase = PHASE_HEAL;
            h->bound_ns = MAX(s->now_ns, s->coord_free_ns) + LIVE_S * NS_PER_S;
        }
        break;
    case PHASE_HEAL:
        look_heal(s, h);
        break;
    case PHASE_PROBE:
        if (is_quiet(s)) {
            check_end(s);
            serve_check(s);
            jobs_stop(s, s->shape.grace_ns);
        }
        break;
    case PHASE_STOP:
        if (s->is_stopped) {
            clients_let_go(s);
        }
        if (s->is_stopped && s->n_clients_open == 0) {
            serve_end(s);
            h->phase = PHASE_OVER;
        }
        break;
    case PHASE_OVER:
        break;
    }
}

static void overdue(struct sim *s, const struct history *h)
{
    static const char *const names[] = { "storm", "heal", "probe", "stop", "over" };

    for (uint32_t i = 0; i < s->shape.n_replicas; i++) {
        const struct sim_job *job = job_of(s, i);
        if (job == NULL) {
            continue;
        }
        if (!sched_is_idle(job->sched)) {
            sim_note(s, "busy", i, job->generation);
            sim_note(s, job_computes(job) ? "  computes" : "  does not", job->n_out, job->n_turns);
            sim_note(s, "  turn", job->turn_at_ns / 1000, job->busy_until_ns / 1000);
        }
        sim_note(s, job->is_stuck ? "stuck job" : "job", i, job->state);
    }
    clients_note(s);
    sim_fail(s,
             "the %s does not end: %u clients wait, the service is %s, replicas are %s, leaders "
             "are %s",
             names[h->phase], s->n_clients_open, s->is_stopped ? "stopped" : "there",
             jobs_are_settled(s) ? "settled" : "not settled",
             leaders_are_idle(s) ? "idle" : "busy");
}

static void stop_early(void *arg)
{
    struct sim *s = arg;

    if (s->coord == NULL) { /* its supervisor starts it before it hears of this */
        sim_coord_after(s, NS_PER_S / 10, stop_early, s);
    } else if (!s->is_stopping) {
        jobs_stop(s, s->shape.grace_ns);
    }
}

static void play(struct sim *s)
{
    struct history h = { .bound_ns = CLOCK_NEVER };
    uint64_t look_ns = 0;

    while (!s->is_over && h.phase != PHASE_OVER) {
        if (!sim_step(s)) {
            sim_fail(s, "nothing will ever happen again");
        }
        if (s->now_ns < look_ns || s->coord_free_ns > s->now_ns) {
            continue;
        }
        look_ns = s->now_ns + LOOK_MS * NS_PER_MS;
        look(s, &h);
        if (s->now_ns > h.bound_ns) {
            overdue(s, &h);
        }
    }
}

bool sim_run(struct sim *s, uint64_t seed, uint32_t n_replicas, bool trace,
             struct sim_totals *totals)
{
    const struct tokenizer *tok = tokenizer_get();
    sim_core_init(s, seed);
    s->trace = trace;
    s->totals = totals;
    s->tok = tok;
    draw_shape(s, n_replicas);
    plan_make(s);
    if (!s->is_over) {
        serve_begin(s);
    }
    if (!s->is_over) {
        clients_begin(s);
        faults_begin(s);
        if (s->shape.stops_early) {
            sim_coord_after(s, s->shape.stop_ns - s->now_ns, stop_early, s);
        }
        play(s);
    }
    totals->seeds++;
    totals->virtual_ns += s->now_ns - s->began_ns;
    serve_free(s);
    jobs_free(s);
    faults_free(s);
    clients_free(s);
    sim_calls_free(s);
    sim_disk_destroy(s->disk);
    plan_destroy(s->plan);
    free(s->desc);
    sim_core_fini(s);
    return s->violation[0] == '\0';
}
