/* cluster/slurm_ask.c - SLURM's commands, for what the environment does not say.
 *
 * All three answers are comfort: without them a service runs as well, but cannot drain before its time is
 * over, and spreads its replicas by the order of the host list. So a command that is not there, or a
 * controller that does not answer, is a note and no failure. */
#include "cluster/slurm.h"

#include "base/clock.h"
#include "cluster/launch_process.h"
#include "cluster/slurm_text.h"

#include <string.h>

enum { TEXT_MAX = 4 << 20 };

/* The text of a command that ended well, or a note. */
static status ask(const char *const *argv, struct buf *text, struct err *note)
{
    char shown[SLURM_SHOWN_BYTES];
    int code = 0;

    buf_reset(text);
    status st = process_output(argv, SLURM_ASK_S * NS_PER_S, text, &code, note);
    if (st == ST_OK && code != 0) {
        st = err_set(note, ST_ERR_UNAVAILABLE, "%s %s: exit code %d, \"%s\"", argv[0], argv[1],
                     code, slurm_shown(text->data, strcspn(text->data, "\n"), shown));
    }
    return st;
}

void slurm_ask(struct slurm_job *job, uint64_t now_s, uint64_t *kill_wait_s_p, struct err *note)
{
    const char *const left[] = { "squeue", "-h", "-j", job->squeue_id, "-o", "%L", NULL };
    const char *const config[] = { "scontrol", "show", "config", NULL };
    const char *const topology[] = { "scontrol", "show", "topology", NULL };
    struct buf text = BUF_INIT_MAX(TEXT_MAX);
    struct err none = ERR_INIT; /* a cluster without switches is not worth a word */
    uint64_t left_s = 0;

    if (job->end_s == 0 && ask(left, &text, note) == ST_OK &&
        slurm_time_left_parse(text.data, &left_s, note) == ST_OK && left_s != 0) {
        job->end_s = now_s + left_s;
    }
    if (ask(config, &text, note) == ST_OK) {
        (void)slurm_kill_wait_parse(text.data, kill_wait_s_p, note);
    }
    if (ask(topology, &text, &none) == ST_OK) {
        (void)slurm_racks_parse(text.data, job, note);
    }
    buf_fini(&text);
}
