/* cluster/rpc_grpc_timer.c - the loop's timers: a binary heap over timers that their owners keep.
 *
 * gRPC's C API has no alarm object, so the earliest time here becomes the deadline of the wait on
 * the completion queue. The heap holds copies of the times: an owner that scribbles in its struct
 * cannot break the order. `i_heap` in the timer is its place, 0 for none, so moving and disarming
 * need no search. */
#include "cluster/rpc_grpc.h"

#include <stdlib.h>

static bool before(const struct rpc_timer_slot *a, const struct rpc_timer_slot *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->seq < b->seq;
}

static void place(struct rpc_loop *loop, uint32_t i, struct rpc_timer_slot slot)
{
    loop->heap[i] = slot;
    slot.timer->i_heap = i;
}

static void sift_up(struct rpc_loop *loop, uint32_t i, struct rpc_timer_slot slot)
{
    while (i > 1 && before(&slot, &loop->heap[i / 2])) {
        place(loop, i, loop->heap[i / 2]);
        i /= 2;
    }
    place(loop, i, slot);
}

static void sift_down(struct rpc_loop *loop, uint32_t i, struct rpc_timer_slot slot)
{
    for (;;) {
        uint32_t child = 2 * i;

        if (child > loop->heap_count) {
            break;
        }
        if (child < loop->heap_count && before(&loop->heap[child + 1], &loop->heap[child])) {
            child++;
        }
        if (!before(&loop->heap[child], &slot)) {
            break;
        }
        place(loop, i, loop->heap[child]);
        i = child;
    }
    place(loop, i, slot);
}

static void drop(struct rpc_loop *loop, struct rpc_timer *timer)
{
    const uint32_t i = timer->i_heap;
    const struct rpc_timer_slot last = loop->heap[loop->heap_count];

    ASSERT(i <= loop->heap_count && loop->heap[i].timer == timer);
    loop->heap_count--;
    timer->i_heap = 0;
    if (last.timer == timer) {
        return;
    }
    if (i > 1 && before(&last, &loop->heap[i / 2])) {
        sift_up(loop, i, last);
    } else {
        sift_down(loop, i, last);
    }
}

status rpc_timers_grow(struct rpc_loop *loop)
{
    const uint32_t cap = loop->heap_cap == 0 ? 64 : loop->heap_cap * 2;
    struct rpc_timer_slot *heap = realloc(loop->heap, cap * sizeof(*heap));

    if (heap == NULL) {
        return ST_ERR_NOMEM;
    }
    loop->heap = heap;
    loop->heap_cap = cap;
    return ST_OK;
}

status rpc_timer_set(struct rpc_loop *loop, struct rpc_timer *timer, uint64_t at_ns)
{
    ASSERT_ON_LOOP(loop);
    if (timer->i_heap != 0) {
        drop(loop, timer);
    }
    timer->at_ns = at_ns;
    if (at_ns == CLOCK_NEVER) {
        return ST_OK;
    }
    ASSERT(timer->fn != NULL);
    if (loop->heap_count + 1 >= loop->heap_cap && rpc_timers_grow(loop) != ST_OK) {
        return ST_ERR_NOMEM;
    }
    /* A timer that re-arms itself for a time already past would be run again and again in one pass,
     * and keep the others and the events out: from inside a pass "at once" is the next pass. */
    if (loop->pass_ns != 0 && at_ns <= loop->pass_ns) {
        at_ns = loop->pass_ns + 1;
    }
    loop->heap_count++;
    sift_up(loop, loop->heap_count,
            (struct rpc_timer_slot){ .at_ns = at_ns, .seq = loop->heap_seq++, .timer = timer });
    return ST_OK;
}

uint64_t rpc_timers_run(struct rpc_loop *loop)
{
    if (loop->heap_count == 0) {
        return CLOCK_NEVER;
    }
    loop->pass_ns = clock_now_ns(clock_real());
    while (loop->heap_count > 0 && loop->heap[1].at_ns <= loop->pass_ns) {
        struct rpc_timer *timer = loop->heap[1].timer;

        drop(loop, timer);
        timer->fn(timer->arg);
    }
    loop->pass_ns = 0;
    return loop->heap_count > 0 ? loop->heap[1].at_ns : CLOCK_NEVER;
}
