/* coordinator/cli/allocation.c - see allocation.h. */
#include "coordinator/cli/allocation.h"

#include "base/clock.h"
#include "base/fd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { END_S = 10, END_KILLED_S = 2 }; /* what the end of ranks and mpirun may take */

/* A node asked for with one task and several GPUs holds a rank per GPU. */
static uint32_t slots_of(const struct allocation *x, const struct slurm_node *node)
{
    return x->slots_are_gpus ? node->gpus : node->tasks;
}

static void count(const struct allocation_wish *wish, struct allocation *x)
{
    const struct slurm_job *job = &x->job;
    bool one_each = true, gpus = wish->uses_gpus;

    for (uint32_t i = 0; i < job->n_nodes; i++) {
        one_each = one_each && job->nodes[i].tasks == 1;
        gpus = gpus && job->nodes[i].gpus > 1;
    }
    x->slots_are_gpus = one_each && gpus;
    x->node_slots_min = UINT32_MAX;
    x->threads = UINT32_MAX;
    x->slot_memory_bytes = UINT64_MAX;
    for (uint32_t i = 0; i < job->n_nodes; i++) {
        const struct slurm_node *n = &job->nodes[i];
        const uint32_t slots = MAX(slots_of(x, n), 1u);
        x->n_slots += slots;
        x->node_slots_min = MIN(x->node_slots_min, slots);
        x->threads = MIN(x->threads, n->cpus == 0 ? 0 : MAX(n->cpus / slots, 1u));
        x->slot_memory_bytes = MIN(x->slot_memory_bytes, n->memory_bytes / slots);
    }
}

/* ---- the hostfile ---- */

static const char rack_chars[] =
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_";

static status hostfile_write(const struct allocation_wish *wish, struct allocation *x,
                             struct err *err)
{
    const char *tmp = wish->tmp_dir != NULL ? wish->tmp_dir : getenv("TMPDIR");
    struct buf text = BUF_INIT;
    status st = ST_OK;

    for (uint32_t i = 0; st == ST_OK && i < x->job.n_nodes; i++) {
        const struct slurm_node *node = &x->job.nodes[i];
        const char *rack = node->rack; /* "": not known, or nothing that a host list can say */
        if (rack[strspn(rack, rack_chars)] != '\0') {
            rack = "";
        }
        st = buf_printf(&text, "%s slots=%u%s%s\n", node->name, slots_of(x, node),
                        rack[0] != '\0' ? " rack=" : "", rack);
    }
    if (st != ST_OK) {
        buf_fini(&text);
        return err_set(err, st, "no memory for a host list of %u nodes", x->job.n_nodes);
    }
    const int n = snprintf(x->hostfile, sizeof(x->hostfile), "%s/gantry-hosts-XXXXXX",
                           tmp != NULL && tmp[0] == '/' ? tmp : "/tmp");
    const int fd = n < (int)sizeof(x->hostfile) ? mkstemp(x->hostfile) : -1;
    if (fd < 0 || fd_write_all(fd, text.data, text.len) != ST_OK) {
        st =
            err_set_errno(err, ST_ERR_IO, errno, "the host list %s cannot be written", x->hostfile);
    }
    if (fd >= 0) {
        close(fd);
    }
    buf_fini(&text);
    return st;
}

/* mpirun takes its slots from this variable and only filters them by the hostfile: where a slot is
 * not a task, it has to be told. */
static status slots_word_make(struct allocation *x, struct err *err)
{
    status st = buf_append_str(&x->slots_word, "SLURM_TASKS_PER_NODE=");

    for (uint32_t i = 0; st == ST_OK && i < x->job.n_nodes; i++) {
        st = buf_printf(&x->slots_word, "%s%u", i == 0 ? "" : ",", slots_of(x, &x->job.nodes[i]));
    }
    x->env[0] = x->slots_word.data;
    return st == ST_OK ? st : err_set(err, st, "no memory for the slots of the allocation");
}

/* ---- time ---- */

static uint64_t left_s(const struct allocation *x)
{
    const uint64_t now = (uint64_t)time(NULL);

    return x->job.end_s > now ? x->job.end_s - now : 0;
}

uint64_t allocation_drain_at_ns(const struct allocation *x, uint32_t wall_margin_s)
{
    const uint64_t left = left_s(x);

    if (!x->is_used || x->job.end_s == 0) {
        return 0;
    }
    return clock_now_ns(clock_real()) +
           (left > wall_margin_s ? left - wall_margin_s : 0) * NS_PER_S;
}

uint32_t allocation_wall_grace_s(uint32_t wall_margin_s)
{
    return wall_margin_s > 2 * END_S ? wall_margin_s - END_S : wall_margin_s / 2;
}

uint32_t allocation_kill_grace_s(const struct allocation *x)
{
    if (!x->is_used || x->kill_wait_s == 0) {
        return UINT32_MAX;
    }
    return (uint32_t)(x->kill_wait_s > 2 * END_KILLED_S ? x->kill_wait_s - END_KILLED_S
                                                        : x->kill_wait_s / 2);
}

/* ---- ---- */

status allocation_open(const struct allocation_wish *wish, struct allocation *x, struct err *err)
{
    *x = (struct allocation){ .slots_word = BUF_INIT };
    if (!slurm_in_job(slurm_getenv, NULL)) {
        return ST_OK;
    }
    status st = slurm_job_read(slurm_getenv, NULL, &x->job, err);
    if (st == ST_OK) {
        x->is_used = true;
        x->wall_margin_s = wish->wall_margin_s;
        slurm_ask(&x->job, (uint64_t)time(NULL), &x->kill_wait_s, &x->note);
        count(wish, x);
        st = slots_word_make(x, err);
    }
    if (st == ST_OK && x->job.end_s != 0 && left_s(x) <= wish->wall_margin_s) {
        st = err_set(err, ST_ERR_DEADLINE,
                     "SLURM job %s ends in %u s, and --wall-margin is %u s: give the job a longer "
                     "limit, or a shorter margin",
                     x->job.id, (unsigned)left_s(x), wish->wall_margin_s);
    }
    if (st == ST_OK && x->job.n_nodes > 1) {
        st = hostfile_write(wish, x, err);
    }
    if (st != ST_OK) {
        allocation_close(x);
    }
    return st;
}

uint32_t allocation_replicas(const struct allocation *x, uint32_t n_ranks, bool alone)
{
    const struct slurm_job *job = &x->job;
    const uint32_t hosts = (n_ranks + x->node_slots_min - 1) / x->node_slots_min;
    uint32_t n = 0;

    if (job->n_nodes == 1) {
        return MAX(x->n_slots / n_ranks, 1u);
    }
    if (alone || hosts > 1) {
        return MAX(job->n_nodes / hosts, 1u);
    }
    for (uint32_t i = 0; i < job->n_nodes; i++) {
        n += slots_of(x, &job->nodes[i]) / n_ranks;
    }
    return MAX(n, 1u);
}

uint32_t allocation_slots_on(const struct allocation *x, const char *node)
{
    for (uint32_t i = 0; i < x->job.n_nodes; i++) {
        if (strcmp(x->job.nodes[i].name, node) == 0) {
            return slots_of(x, &x->job.nodes[i]);
        }
    }
    return 0;
}

status allocation_slots_word(const struct allocation *x, const struct host_list *hosts,
                             struct buf *out, struct err *err)
{
    status st = buf_append_str(out, "SLURM_TASKS_PER_NODE=");

    for (uint32_t i = 0; st == ST_OK && i < x->job.n_nodes; i++) {
        const struct slurm_node *node = &x->job.nodes[i];
        uint32_t slots = slots_of(x, node); /* of a node that the hostfile leaves out: no matter */
        for (uint32_t k = 0; k < hosts->n; k++) {
            slots = strcmp(hosts->hosts[k].name, node->name) == 0 ? hosts->hosts[k].slots : slots;
        }
        st = buf_printf(out, "%s%u", i == 0 ? "" : ",", slots);
    }
    return st == ST_OK ? st : err_set(err, st, "no memory for the slots of a replica");
}

void allocation_say(const struct allocation *x)
{
    const struct slurm_job *job = &x->job;
    const char *what = x->slots_are_gpus ? "GPU" : "task";

    if (!x->is_used) {
        return;
    }
    printf("SLURM job %s", job->id);
    if (job->n_restarts > 0) {
        printf(" (requeued, start %u)", job->n_restarts + 1);
    }
    printf(": %u node%s, %u rank%s at most (one for each %s)", job->n_nodes,
           job->n_nodes == 1 ? "" : "s", x->n_slots, x->n_slots == 1 ? "" : "s", what);
    if (x->threads != 0) {
        printf(", %u CPU%s a rank", x->threads, x->threads == 1 ? "" : "s");
    }
    if (x->slot_memory_bytes != 0) {
        printf(", %.1f GiB a rank", (double)x->slot_memory_bytes / (double)(1 << 30));
    }
    printf("\n  hosts:");
    for (uint32_t i = 0; i < job->n_nodes; i++) {
        printf(" %s:%u", job->nodes[i].name, slots_of(x, &job->nodes[i]));
    }
    printf("\n");
    if (job->end_s != 0) {
        printf(
            "  it ends in %u s: requests are refused from %u s before that on, and running answers "
            "then have %u s (--wall-margin)\n",
            (unsigned)left_s(x), x->wall_margin_s, allocation_wall_grace_s(x->wall_margin_s));
    }
    if (x->kill_wait_s != 0) {
        printf("  scancel: running answers have %u s (SLURM's KillWait is %u s), or --grace where "
               "that is less\n",
               allocation_kill_grace_s(x), (unsigned)x->kill_wait_s);
    }
    if (x->note.code != ST_OK) {
        printf("  not known: %s\n", x->note.text);
    }
    fflush(stdout);
}

void allocation_close(struct allocation *x)
{
    if (x->hostfile[0] != '\0') {
        unlink(x->hostfile);
    }
    slurm_job_fini(&x->job);
    buf_fini(&x->slots_word);
    x->hostfile[0] = '\0';
    x->is_used = false;
}
