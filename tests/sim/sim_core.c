/* tests/sim/sim_core.c - time and chance: the heap of events, the generator, the false clock. */
#include "sim/sim.h"

#include "base/hash.h"
#include "sim/sim_wrap.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>

struct sim *sim_now_running;

/* ---- chance: splitmix64 ---- */

uint64_t rng_u64(struct sim_rng *r)
{
    uint64_t z = (r->state += 0x9E3779B97F4A7C15ull);

    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

uint32_t rng_below(struct sim_rng *r, uint32_t n)
{
    return (uint32_t)((rng_u64(r) >> 32) * n >> 32);
}

uint32_t rng_in(struct sim_rng *r, uint32_t low, uint32_t high)
{
    return low + rng_below(r, high - low + 1);
}

uint64_t rng_ns(struct sim_rng *r, uint64_t low_ns, uint64_t high_ns)
{
    return low_ns + rng_u64(r) % (high_ns - low_ns + 1);
}

bool rng_chance(struct sim_rng *r, uint32_t per_mille)
{
    return rng_below(r, 1000) < per_mille;
}

uint64_t rng_delay(struct sim_rng *r, uint64_t usual_ns)
{
    const uint64_t around = rng_ns(r, usual_ns / 2, usual_ns + usual_ns / 2);

    return rng_chance(r, 20) ? around * rng_in(r, 2, 10) : around;
}

/* ---- the heap ---- */

static bool is_before(const struct sim_event *a, const struct sim_event *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->number < b->number;
}

static void push(struct sim *s, struct sim_event e)
{
    uint32_t i = ++s->n_heap;

    if (i >= s->heap_cap) {
        s->heap_cap = s->heap_cap == 0 ? 256 : s->heap_cap * 2;
        s->heap = realloc(s->heap, s->heap_cap * sizeof(*s->heap));
        ASSERT(s->heap != NULL);
    }
    e.number = s->n_numbers++;
    for (; i > 1 && is_before(&e, &s->heap[i / 2]); i /= 2) {
        s->heap[i] = s->heap[i / 2];
    }
    s->heap[i] = e;
}

static struct sim_event pop(struct sim *s)
{
    const struct sim_event first = s->heap[1], last = s->heap[s->n_heap--];
    uint32_t i = 1;

    for (uint32_t child = 2; child <= s->n_heap; child = i * 2) {
        child += child < s->n_heap && is_before(&s->heap[child + 1], &s->heap[child]);
        if (!is_before(&s->heap[child], &last)) {
            break;
        }
        s->heap[i] = s->heap[child];
        i = child;
    }
    s->heap[i] = last;
    return first;
}

void sim_at(struct sim *s, uint64_t at_ns, sim_fn fn, void *arg)
{
    push(s, (struct sim_event){ .at_ns = MAX(at_ns, s->now_ns), .fn = fn, .arg = arg });
}

void sim_after(struct sim *s, uint64_t delay_ns, sim_fn fn, void *arg)
{
    sim_at(s, s->now_ns + delay_ns, fn, arg);
}

void sim_coord_after(struct sim *s, uint64_t delay_ns, sim_fn fn, void *arg)
{
    push(s, (struct sim_event){
                .at_ns = s->now_ns + delay_ns, .fn = fn, .arg = arg, .at_coord = true });
}

void sim_coord_timer(struct sim *s, uint64_t delay_ns, sim_fn fn, void *arg)
{
    const uint64_t at_ns = s->now_ns + delay_ns;

    push(s, (struct sim_event){
                .at_ns = at_ns, .fn = fn, .arg = arg, .at_coord = true, .timer_ns = at_ns });
}

static void after(struct sim *s)
{
    if (s->is_dying) {
        serve_bury(s);
    } else {
        s->was_undurable = !serve_is_durable(s);
        check_often(s);
    }
}

/* The first event is a timer too, and was due before the loop's first one. */
static bool is_late_timer(const struct sim *s, uint64_t due_ns, uint64_t timer_ns)
{
    const struct sim_event *e = &s->heap[1];

    return e->timer_ns != 0 && e->at_ns == due_ns && e->timer_ns < timer_ns;
}

/* A process that was stopped runs its timers before it reads what has come meanwhile: gRPC's loop
 * looks at them first (cluster/rpc_grpc_loop.c). */
bool sim_step(struct sim *s)
{
    const uint64_t timer_ns = sim_timer_next(s->loop);
    const uint64_t due_ns = timer_ns == CLOCK_NEVER ? CLOCK_NEVER : MAX(timer_ns, s->coord_free_ns);

    if (s->n_heap == 0 || (due_ns <= s->heap[1].at_ns && !is_late_timer(s, due_ns, timer_ns))) {
        if (due_ns == CLOCK_NEVER) {
            return false;
        }
        s->now_ns = MAX(s->now_ns, due_ns);
        s->totals->events++;
        sim_timer_run(s->loop);
        after(s);
        return true;
    }
    struct sim_event e = pop(s);
    s->now_ns = MAX(s->now_ns, e.at_ns);
    if (e.at_coord && s->coord_free_ns > s->now_ns) {
        e.at_ns = s->coord_free_ns;
        push(s, e);
        return true;
    }
    s->totals->events++;
    e.fn(e.arg);
    if (e.at_coord || s->is_dying) {
        after(s);
    }
    return true;
}

void sim_core_init(struct sim *s, uint64_t seed)
{
    memset(s, 0, sizeof(*s));
    s->seed = seed;
    s->starting = UINT32_MAX;
    s->rng.state = seed * 0xD1342543DE82EF95ull + 1;
    s->began_ns = 1000 * NS_PER_S;
    s->now_ns = s->began_ns;
    sim_now_running = s;
}

void sim_core_fini(struct sim *s)
{
    free(s->heap);
    sim_now_running = NULL;
}

/* ---- what happened ---- */

void sim_note_bytes(struct sim *s, const void *data, size_t len)
{
    s->digest = hash64_of(data, len, s->digest);
}

void sim_note(struct sim *s, const char *what, uint64_t a, uint64_t b)
{
    const uint64_t all[4] = { s->now_ns, (uint64_t)(unsigned char)what[0] << 8 | strlen(what), a,
                              b };

    sim_note_bytes(s, all, sizeof(all));
    if (s->trace) {
        fprintf(stderr, "%10.6f  %-16s %6llu %llu\n", (double)(s->now_ns - s->began_ns) / 1e9, what,
                (unsigned long long)a, (unsigned long long)b);
    }
}

void sim_fail(struct sim *s, const char *fmt, ...)
{
    va_list ap;

    if (s->violation[0] != '\0') {
        return;
    }
    const int n = snprintf(s->violation, sizeof(s->violation),
                           "at %.6f s: ", (double)(s->now_ns - s->began_ns) / 1e9);
    va_start(ap, fmt);
    vsnprintf(s->violation + n, sizeof(s->violation) - (size_t)n, fmt, ap);
    va_end(ap);
    s->is_over = true;
    if (s->trace) {
        fprintf(stderr, "VIOLATION %s\n", s->violation);
    }
}

/* ---- the seams that are no header of ours (linked with --wrap) ---- */

int __wrap_clock_gettime(clockid_t id, struct timespec *at)
{
    if (sim_now_running == NULL) {
        return __real_clock_gettime(id, at);
    }
    *at = (struct timespec){ .tv_sec = (time_t)(sim_now_running->now_ns / NS_PER_S),
                             .tv_nsec = (long)(sim_now_running->now_ns % NS_PER_S) };
    return 0;
}

/* The coordinator is given its clock (coord_config.clock); one that reads another is a bug. */
const struct clock *__wrap_clock_real(void)
{
    fprintf(stderr, "the coordinator or the scheduler reads clock_real() instead of its clock\n");
    abort();
}

ssize_t __wrap_getrandom(void *data, size_t len, unsigned flags UNUSED)
{
    char *at = data;

    for (size_t i = 0; i < len; i++) {
        at[i] = (char)rng_u64(&sim_now_running->rng);
    }
    return (ssize_t)len;
}

uint64_t sim_real_ns(void)
{
    struct timespec now;

    __real_clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}
