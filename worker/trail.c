/* worker/trail.c - see trail.h. */
#include "worker/trail.h"

#include "base/clock.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <unistd.h>

enum { LINE_BYTES = 320, ALT_STACK_BYTES = 64 * 1024 };

/* ---- writing a step down ---- */

static void put(_Atomic uint64_t *at, uint64_t v)
{
    atomic_store_explicit(at, v, memory_order_relaxed);
}

static uint64_t get(const _Atomic uint64_t *at)
{
    return atomic_load_explicit(at, memory_order_relaxed);
}

void trail_begin(struct trail *t, const struct trail_note *note)
{
    const uint64_t n = get(&t->n);
    struct trail_step *s = &t->steps[n % TRAIL_STEPS];

    put(&s->id, note->id);
    put(&s->digest, note->digest);
    atomic_store_explicit(&s->n_rows, note->n_rows, memory_order_relaxed);
    atomic_store_explicit(&s->n_seqs, note->n_seqs, memory_order_relaxed);
    put(&s->begin_ns, clock_now_ns(clock_real()));
    put(&s->end_ns, 0);
    put(&s->op_seq, 0);
    put(&t->n, n + 1);
}

void trail_end(struct trail *t, const struct coll_watch *watch)
{
    const uint64_t n = get(&t->n);
    struct trail_step *s = &t->steps[(n - 1) % TRAIL_STEPS];

    if (n > 1 && get(&t->steps[(n - 2) % TRAIL_STEPS].end_ns) == 0) {
        s = &t->steps[(n - 2) % TRAIL_STEPS]; /* one was begun ahead of its end */
    }
    put(&s->op_seq, get(&watch->seq));
    put(&s->end_ns, clock_now_ns(clock_real()));
}

/* ---- text, async-signal-safe ---- */

struct line {
    size_t len;
    char data[LINE_BYTES];
};

static void add_text(struct line *l, const char *text)
{
    while (*text != '\0' && l->len + 1 < LINE_BYTES) {
        l->data[l->len++] = *text++;
    }
}

static void add_number(struct line *l, uint64_t v, uint32_t base, uint32_t width)
{
    char digits[24];
    uint32_t n = 0;

    do {
        digits[n++] = "0123456789abcdef"[v % base];
        v /= base;
    } while (v != 0);
    while (n < width) {
        digits[n++] = '0';
    }
    while (n > 0 && l->len + 1 < LINE_BYTES) {
        l->data[l->len++] = digits[--n];
    }
}

static void add_seconds(struct line *l, uint64_t ns)
{
    add_number(l, ns / NS_PER_S, 10, 1);
    add_text(l, ".");
    add_number(l, ns % NS_PER_S / NS_PER_US, 10, 6);
    add_text(l, " s");
}

static void line_begin(struct line *l, int rank)
{
    l->len = 0;
    add_text(l, "trail r");
    add_number(l, (uint64_t)rank, 10, 1);
    add_text(l, " ");
}

static void line_end(struct line *l, int fd)
{
    l->data[l->len++] = '\n'; /* add_text and add_number leave room for it */
    if (write(fd, l->data, l->len) < 0) {
        return; /* nowhere to say it */
    }
}

/* What the rank is in now: of the newest step, which has not ended. */
static void add_watch(struct line *l, const struct coll_watch *watch, uint64_t now)
{
    const uint64_t since = get(&watch->since_ns);
    const uint32_t op = atomic_load_explicit(&watch->op, memory_order_relaxed);
    const uint32_t peer = atomic_load_explicit(&watch->peer, memory_order_relaxed);

    if (op == COLL_OP_NONE) {
        add_text(l, " runs, exchanges to #");
        add_number(l, get(&watch->seq), 10, 1);
        return;
    }
    add_text(l, " runs, in ");
    add_text(l, coll_op_name(op));
    add_text(l, " #");
    add_number(l, get(&watch->seq), 10, 1);
    if (since != 0 && peer != COLL_PEER_NONE) {
        add_text(l, " for rank ");
        add_number(l, peer, 10, 1);
    }
    if (since != 0) {
        add_text(l, " since ");
        add_seconds(l, clock_since(now, since));
    }
}

static void write_step(const struct trail_step *s, const struct coll_watch *watch, int rank,
                       uint64_t now, int fd)
{
    const uint64_t begin = get(&s->begin_ns), end = get(&s->end_ns);
    struct line l;

    line_begin(&l, rank);
    add_text(&l, "step ");
    add_number(&l, get(&s->id), 10, 1);
    add_text(&l, " digest ");
    add_number(&l, get(&s->digest), 16, 16);
    add_text(&l, " rows ");
    add_number(&l, atomic_load_explicit(&s->n_rows, memory_order_relaxed), 10, 1);
    add_text(&l, " streams ");
    add_number(&l, atomic_load_explicit(&s->n_seqs, memory_order_relaxed), 10, 1);
    add_text(&l, " began ");
    add_seconds(&l, clock_since(now, begin));
    add_text(&l, " ago");
    if (end == 0) {
        add_watch(&l, watch, now);
    } else {
        add_text(&l, " took ");
        add_seconds(&l, clock_since(end, begin));
        add_text(&l, " exchanges to #");
        add_number(&l, get(&s->op_seq), 10, 1);
    }
    line_end(&l, fd);
}

void trail_write(const struct trail *t, const struct coll_watch *watch, int rank, const char *why,
                 int fd)
{
    const uint64_t now = clock_now_ns(clock_real()), n = get(&t->n);
    const uint64_t n_kept = n < TRAIL_STEPS ? n : TRAIL_STEPS;
    struct line l;

    if (n == 0) {
        return;
    }
    line_begin(&l, rank);
    add_text(&l, why);
    add_text(&l, ": ");
    add_number(&l, n_kept, 10, 1);
    add_text(&l, " steps, the newest last");
    line_end(&l, fd);
    for (uint64_t i = n - n_kept; i < n; i++) {
        write_step(&t->steps[i % TRAIL_STEPS], watch, rank, now, fd);
    }
}

/* ---- of this process ---- */

static struct {
    const struct trail *_Atomic trail; /* borrowed; NULL: none */
    const struct coll_watch *watch;
    int rank;
    atomic_flag is_told;
    struct sigaction before[NSIG]; /* of the signals that end a process */
    char stack[ALT_STACK_BYTES];
} self = { .is_told = ATOMIC_FLAG_INIT };

static void write_self(const char *why)
{
    const struct trail *t = atomic_load(&self.trail);

    if (t != NULL) {
        trail_write(t, self.watch, self.rank, why, STDERR_FILENO);
    }
}

void trail_tell(const char *why)
{
    if (!atomic_flag_test_and_set(&self.is_told)) {
        write_self(why);
    }
}

static void on_show(int sig)
{
    const int errno_before = errno;

    (void)sig;
    write_self("on SIGUSR2");
    errno = errno_before;
}

/* Then whoever had the signal before has it: MPI's stack trace, the sanitizer's, or the end. */
static void on_end(int sig)
{
    const int errno_before = errno;
    struct line l = { 0, "" };

    add_text(&l, "signal ");
    add_number(&l, (uint64_t)sig, 10, 1);
    l.data[l.len] = '\0';
    trail_tell(l.data);
    sigaction(sig, &self.before[sig], NULL);
    errno = errno_before;
    raise(sig); /* it is blocked until this handler returns */
}

static void take(int sig, void (*fn)(int), bool only_free)
{
    struct sigaction action = { .sa_handler = fn, .sa_flags = SA_ONSTACK | SA_RESTART };
    struct sigaction before;

    sigemptyset(&action.sa_mask);
    if (sigaction(sig, NULL, &before) != 0 || (only_free && before.sa_handler != SIG_DFL)) {
        return;
    }
    self.before[sig] = before;
    sigaction(sig, &action, NULL);
}

void trail_watch_signals(const struct trail *t, const struct coll_watch *watch, int rank)
{
    static const int ends[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT };
    const stack_t stack = { .ss_sp = self.stack, .ss_size = sizeof(self.stack) };

    self.watch = watch;
    self.rank = rank;
    atomic_store(&self.trail, t);
    sigaltstack(&stack, NULL); /* a stack that has run over */
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        take(ends[i], on_end, false);
    }
    take(SIGTERM, on_end, true);
    take(SIGUSR2, on_show, true);
}

void trail_forget(void)
{
    atomic_store(&self.trail, NULL);
}
