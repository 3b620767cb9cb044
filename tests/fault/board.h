/* tests/fault/board.h - what the driver (faults.py) and the process under test share.
 *
 *   faults.py ── arms a site, any time ──► struct fault_board ◄── every wrapped call finds its site
 *        reads sites and counts                 (a mapped file)       here, counts, and may fail
 *
 * A *site* is one wrapped function called over one chain of our own functions: what one line of Gantry
 * does on behalf of one caller. The chain is the return addresses within the program, counted from
 * where it is loaded, so a site has the same id in every process. Libraries that answer a failed
 * call with a code (C library, jansson, protobuf-c, pcre2, utf8proc) are looked through: their caller
 * is the site. A call that another library (gRPC, MPI ...) makes is that library's: its site is the
 * place in it, and how it takes a failure is not ours to change. */
#ifndef FAULT_BOARD_H
#define FAULT_BOARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    FAULT_FRAMES = 6, /* of the chain: the nearest callers */
    FAULT_SITES = 1 << 13,
    FAULT_SHORT = 10001, /* instead of an errno: the call does half of what it was asked */
};

struct fault_site {
    _Atomic uint64_t id; /* 0: free */
    _Atomic uint64_t calls, hits;
    _Atomic int64_t
        countdown;         /* set by the driver; > 0: this many more calls, the last one fails */
    _Atomic int64_t again; /* so many behind that one fail as well */
    _Atomic int64_t error; /* errno, or FAULT_SHORT */
    _Atomic uint64_t is_named;     /* the rest is written */
    char call[24];                 /* "malloc" */
    char library[24];              /* "" : ours */
    uint32_t frames[FAULT_FRAMES]; /* nearest first; 0: none */
};

struct fault_board {
    _Atomic uint64_t hits, pid; /* of all sites; the process that was hit last */
    _Atomic uint64_t n_lost;    /* calls whose site found no room */
    _Atomic uint64_t padding;
    struct fault_site sites[FAULT_SITES];
};

/* 0, or how the call that `caller` made must fail now. Counts it. */
int fault_now(const char *call, const void *caller);

/* As fault_now, for what makes blocks: also whether the caller is ours, and its site. */
int fault_alloc_now(const char *call, const void *caller, uint64_t *site_p);

/* Is a board mapped, and is this the process that maps it (not a child of it before its exec)? */
bool fault_is_on(void);

/* The blocks that our own sites hold, in GANTRY_FAULT_FILE.PID (live.c). */
void live_begin(const char *path);
void live_add(const void *block, size_t bytes, uint64_t site);
void live_remove(const void *block);
void live_pause(
    bool is_paused); /* this thread's new blocks do not count: the C library keeps them */

#endif
