/* coordinator/cli/durable.c - see durable.h. */
#include "coordinator/cli/durable.h"

#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { END_S = 15, EPOCH_SHIFT = 40, TRY_AGAIN_S = 5 };

/* ---- what was there ---- */

static bool is_here(const struct service_state *last, const struct service_state *now)
{
    return strcmp(last->host, now->host) == 0 && strcmp(last->boot_id, now->boot_id) == 0;
}

/* The jobs of a coordinator whose ranks cannot be taken over. Blocks until nothing is left. */
static void end_jobs(const struct durable *d)
{
    const uint64_t start = clock_now_ns(clock_real());

    for (uint32_t i = 0; i < d->last.n_replicas; i++) {
        const struct service_replica *r = &d->last.replicas[i];
        const struct launch_adoption a = { .pid = r->pid, .start_ticks = r->start_ticks };
        struct launch *l = NULL;
        struct err err = ERR_INIT;
        int code;

        if (r->pid == 0 || launch_adopt(&a, &l, &err) != ST_OK) {
            continue;
        }
        printf("ending the ranks of mpirun (pid %d): host, build, plan or replicas have changed\n",
               r->pid);
        fflush(stdout);
        for (;;) {
            const uint64_t now = clock_now_ns(clock_real());
            launch_end(l, now);
            if (launch_poll(l, &code) == ST_END || now - start > END_S * NS_PER_S) {
                break;
            }
            usleep(20000);
        }
        launch_destroy(l);
    }
}

static status decide(struct durable *d, const struct serve_setup *setup, struct err *err)
{
    const struct serve_args *a = d->args;
    const struct service_state *last = &d->last;
    const bool is_same = d->has_last && is_here(last, &d->now) && a->announce_fd == 0 &&
                         strcmp(last->build, d->now.build) == 0 &&
                         last->plan_digest == setup->plan->digest &&
                         last->n_replicas == a->replicas && a->replicas != 0;
    uint32_t newest = 0;

    for (uint32_t i = 0; i < last->n_replicas; i++) {
        newest = MAX(newest, last->replicas[i].generation);
    }
    d->first_generation = newest + 1;
    if (d->has_last && !is_same && is_here(last, &d->now)) {
        end_jobs(d);
    }
    if (!is_same) {
        return ST_OK;
    }
    d->adopted = calloc(a->replicas, sizeof(*d->adopted));
    if (d->adopted == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for %u replicas", a->replicas);
    }
    for (uint32_t i = 0; i < a->replicas; i++) {
        const struct service_replica *r = &last->replicas[i];
        const bool runs = r->pid != 0 || a->external_ranks != 0;
        d->adopted[i] = (struct coord_adopted){ r->generation + (runs ? 0u : 1u), runs };
        d->takes_over = d->takes_over || runs;
    }
    return ST_OK;
}

static status last_read(struct durable *d, struct err *err)
{
    const status st = service_state_read(d->args->journal, &d->last, err);

    d->has_last = st == ST_OK;
    if (st == ST_ERR_NOT_FOUND) {
        memset(err, 0, sizeof(*err));
        return ST_OK;
    }
    return st;
}

status durable_open(struct durable *d, const struct serve_args *args,
                    const struct serve_setup *setup, struct err *err)
{
    const struct journal_disk_config config = { .dir = args->journal };
    char *path;

    memset(d, 0, sizeof(*d));
    d->first_generation = 1;
    if (args->journal == NULL) {
        return ST_OK;
    }
    d->args = args;
    status st = journal_disk_open(&config, &d->disk, &d->image, err);
    if (st < 0) {
        return st;
    }
    service_state_here(&d->now);
    snprintf(d->now.build, sizeof(d->now.build), "%s", msg_build());
    d->now.plan_digest = setup->plan->digest;
    path = realpath(args->journal, NULL);
    if (path == NULL) {
        return err_set_errno(err, errno == ENOMEM ? ST_ERR_NOMEM : ST_ERR_IO, errno, "journal %s",
                             args->journal);
    }
    if (snprintf(d->run_dir, sizeof(d->run_dir), "%s/run", path) >= (int)sizeof(d->run_dir)) {
        free(path);
        return err_set(err, ST_ERR_ARG, "journal %s: the path is too long", args->journal);
    }
    free(path);
    st = last_read(d, err);
    if (st == ST_OK) {
        d->now.epoch = d->last.epoch + 1;
        st = decide(d, setup, err);
    }
    return st;
}

/* ---- to the others ---- */

const char *durable_run_dir(const struct durable *d)
{
    if (d->args == NULL || d->args->run_dir != NULL) {
        return d->args != NULL ? d->args->run_dir : NULL;
    }
    return d->run_dir;
}

void durable_config(const struct durable *d, struct coord_config *config)
{
    if (d->args == NULL) {
        return;
    }
    config->disk = d->disk;
    config->image = &d->image;
    config->first_stream = (d->now.epoch << EPOCH_SHIFT) + 1;
    config->resume_ns = d->args->resume_window_s * NS_PER_S;
    config->orphan_ns = d->args->announce_fd == 0 ? d->args->orphan_grace_s * NS_PER_S : 0;
    config->control_file = d->control_file;
    config->adopted = d->adopted;
    config->generation = d->first_generation;
    config->handover = d->args->handover;
    config->is_successor = d->has_last;
}

const char *durable_listen(const char *listen, uint16_t port, char text[300])
{
    const char *colon = strrchr(listen, ':');

    if (port == 0 || colon == NULL || strcmp(colon, ":0") != 0 || strlen(listen) > 280) {
        return listen;
    }
    snprintf(text, 300, "%.*s:%u", (int)(colon - listen), listen, port);
    return text;
}

static void jobs_changed(void *arg)
{
    struct durable *d = arg;

    durable_write(d, d->jobs, d->coord);
}

void durable_jobs(struct durable *d, struct jobs *j)
{
    if (d->args == NULL) {
        return;
    }
    j->first_generation = d->first_generation;
    j->adopted = d->adopted;
    j->last = d->adopted != NULL ? d->last.replicas : NULL;
    j->outlive = d->args->orphan_grace_s != 0;
    j->changed = jobs_changed;
    j->changed_arg = d;
    d->jobs = j;
}

void durable_place(struct durable *d, const struct run_dir *dir)
{
    snprintf(d->now.run_dir, sizeof(d->now.run_dir), "%s", dir->path);
    snprintf(d->control_file, sizeof(d->control_file), "%s/control", dir->path);
}

status durable_begin(struct durable *d, const char *control, const struct coord *coord,
                     struct err *err)
{
    char line[304];

    if (d->args == NULL) {
        return ST_OK;
    }
    d->coord = coord;
    snprintf(line, sizeof(line), "%s\n", control);
    return file_replace(d->control_file, line, strlen(line), err);
}

void durable_write(struct durable *d, const struct jobs *j, const struct coord *coord)
{
    struct service_state *s = &d->now;
    struct err err = ERR_INIT;

    if (d->args == NULL || coord == NULL) {
        return;
    }
    s->port = coord_port(coord);
    s->control_port = coord_control_port(coord);
    snprintf(s->weights_digest, sizeof(s->weights_digest), "%s", coord_weights_digest(coord));
    if (s->replicas == NULL) {
        s->replicas = calloc(d->args->replicas + 1u, sizeof(*s->replicas));
        s->n_replicas = s->replicas != NULL ? d->args->replicas : 0;
    }
    for (uint32_t i = 0; i < s->n_replicas; i++) {
        jobs_describe(j, i, &s->replicas[i]);
    }
    const bool is_bad = service_state_write(d->args->journal, s, &err) < 0;
    if (is_bad && !d->is_stale) {
        log_error("journal", "%s; should this coordinator die, its ranks are not taken over",
                  err.text);
    }
    d->is_stale = is_bad;
}

void durable_tick(struct durable *d, uint64_t now_ns)
{
    if (d->is_stale && now_ns >= d->try_at_ns) {
        d->try_at_ns = now_ns + TRY_AGAIN_S * NS_PER_S;
        durable_write(d, d->jobs, d->coord);
    }
}

void durable_freeze(struct durable *d)
{
    if (d->disk != NULL) {
        journal_disk_freeze(d->disk);
    }
}

void durable_close(struct durable *d, bool clean, bool had_jobs)
{
    struct err err = ERR_INIT;

    if (d->args == NULL) {
        return;
    }
    for (uint32_t i = 0; i < d->now.n_replicas; i++) {
        d->now.replicas[i].pid = 0;
        d->now.replicas[i].shm_dir[0] = '\0';
    }
    if (clean) {
        service_state_remove(d->args->journal);
        unlink(d->control_file);
    } else if (had_jobs && service_state_write(d->args->journal, &d->now, &err) < 0) {
        log_warn("journal", "%s, ignoring", err.text);
    }
    journal_disk_close(d->disk, clean);
    journal_image_fini(&d->image);
    service_state_fini(&d->last);
    service_state_fini(&d->now);
    free(d->adopted);
    d->args = NULL;
}
