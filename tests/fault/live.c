/* tests/fault/live.c - the blocks that our own sites hold now, in a file that outlives the process.
 *
 * An open table by address, probed linearly; a removed entry is closed by shifting back those behind it.
 * The driver sums it by site: what has grown between two quiet moments, or is left when a start has
 * failed, is a leak. */
#include "board.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LIVE_SLOTS = 1 << 18 }; /* the demo model's tokenizer holds some tens of thousands */

struct live_block {
    uint64_t at, bytes, site; /* at 0: free */
};

struct live_table {
    uint64_t n, n_lost; /* n_lost: found no room */
    struct live_block blocks[LIVE_SLOTS];
};

static struct live_table *table;
static _Thread_local bool paused __attribute__((tls_model("initial-exec")));
static atomic_flag busy = ATOMIC_FLAG_INIT;

void live_begin(const char *path)
{
    char name[512];

    snprintf(name, sizeof(name), "%s.%ld", path, (long)getpid());
    const int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        return;
    }
    if (ftruncate(fd, sizeof(*table)) == 0) {
        void *at = mmap(NULL, sizeof(*table), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        table = at != MAP_FAILED ? at : NULL;
    }
    close(fd);
}

void live_pause(bool is_paused)
{
    paused = is_paused;
}

static uint64_t home(uint64_t at)
{
    return (at >> 4) * 0x9e3779b97f4a7c15u >> (64 - 18);
}

static void lock(void)
{
    while (atomic_flag_test_and_set_explicit(&busy, memory_order_acquire)) {
    }
}

static void unlock(void)
{
    atomic_flag_clear_explicit(&busy, memory_order_release);
}

void live_add(const void *block, size_t bytes, uint64_t site)
{
    if (table == NULL || block == NULL || site == 0 || paused || !fault_is_on()) {
        return;
    }
    lock();
    if (table->n >= LIVE_SLOTS / 2) {
        table->n_lost++;
    } else {
        uint64_t i = home((uint64_t)(uintptr_t)block);
        while (table->blocks[i].at != 0) {
            i = (i + 1) % LIVE_SLOTS;
        }
        table->blocks[i] = (struct live_block){ (uint64_t)(uintptr_t)block, bytes, site };
        table->n++;
    }
    unlock();
}

/* Those behind a hole that may stand nearer to their home move into it. */
static void close_hole(uint64_t hole)
{
    for (uint64_t i = (hole + 1) % LIVE_SLOTS; table->blocks[i].at != 0; i = (i + 1) % LIVE_SLOTS) {
        const uint64_t wanted = home(table->blocks[i].at);
        if ((i - wanted) % LIVE_SLOTS >= (i - hole) % LIVE_SLOTS) {
            table->blocks[hole] = table->blocks[i];
            hole = i;
        }
    }
    table->blocks[hole] = (struct live_block){ 0 };
}

void live_remove(const void *block)
{
    const uint64_t at = (uint64_t)(uintptr_t)block;

    if (table == NULL || at == 0 || !fault_is_on()) {
        return;
    }
    lock();
    uint64_t i = home(at);
    while (table->blocks[i].at != 0 && table->blocks[i].at != at) {
        i = (i + 1) % LIVE_SLOTS;
    }
    if (table->blocks[i].at == at) {
        close_hole(i);
        table->n--;
    }
    unlock();
}
