/* tests/sim/sim_orphan.c - worker/ctrl_orphan.c, played: a rank whose coordinator is gone, and may come back.
 *
 *   welcome ──the stream breaks──► orphan ──redial: 0.2 s .. 2 s apart──► welcome (hello, ready again)
 *                                    └── grace over, refused, told to stop ──► it ends itself */
#include "sim/sim_disk.h"
#include "sim/sim_job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t delay_first_ns = 200 * NS_PER_MS, delay_max_ns = 2 * NS_PER_S;

void orphan_welcome(struct sim_rank *r, uint32_t grace_s, const char *control_file)
{
    snprintf(r->control_file, sizeof(r->control_file), "%s",
             control_file != NULL ? control_file : "");
    r->grace_s = grace_s;
    r->delay_ns = delay_first_ns;
    r->is_orphan = false;
    r->epoch = r->job->sim->epoch;
}

/* What the file says, else where the last one was. */
static uint16_t address_of(const struct sim_rank *r)
{
    char text[64];

    if (r->control_file[0] != '\0' &&
        sim_disk_text(r->job->sim->disk, r->control_file, text, sizeof(text)) &&
        strncmp(text, "sim:", 4) == 0 && strchr(text, '\n') != NULL) {
        return (uint16_t)strtoul(text + 4, NULL, 10);
    }
    return r->port;
}

static void redial(void *arg);

static void try_later(struct sim_rank *r)
{
    struct sim *s = r->job->sim;

    if (s->now_ns >= r->until_ns) {
        sim_note(s, "grace over", r->job->replica, r->index);
        rank_ends_itself(r);
        return;
    }
    sim_at(s, MIN(s->now_ns + r->delay_ns, r->until_ns), redial, r);
    r->delay_ns = MIN(r->delay_ns * 3 / 2, delay_max_ns);
}

/* The call was opened and neither a welcome nor its end has come. */
static void until(void *arg)
{
    struct sim_rank *r = arg;

    if (r->state != RANK_GONE && r->is_orphan && r->job->sim->now_ns >= r->until_ns) {
        rank_ends_itself(r);
    }
}

static void redial(void *arg)
{
    struct sim_rank *r = arg;
    struct sim *s = r->job->sim;

    if (r->state == RANK_GONE || !r->is_orphan) {
        return;
    }
    if (r->is_held) {
        sim_after(s, NS_PER_S / 10, redial, r);
        return;
    }
    if (s->now_ns >= r->until_ns) {
        try_later(r);
        return;
    }
    rank_attach(r, address_of(r));
    sim_at(s, r->until_ns, until, r);
}

bool orphan_begin(struct sim_rank *r, status st)
{
    struct sim *s = r->job->sim;

    if ((r->epoch == 0 && !r->is_orphan) || r->grace_s == 0 || r->was_told_to_stop ||
        st != ST_ERR_UNAVAILABLE) {
        return false;
    }
    if (!r->is_orphan) {
        sim_note(s, "orphan", r->job->replica, r->index);
        r->is_orphan = true;
        r->until_ns = s->now_ns + r->grace_s * NS_PER_S;
        if (r->index == 0) {
            leader_fence(r->job);
        }
    }
    try_later(r);
    return true;
}
