/* coordinator/cli/hosts.c - see hosts.h. */
#include "coordinator/cli/hosts.h"

#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct seat {               /* of one replica */
    struct place_run *runs; /* [n_hosts] owned, n_runs used; runs are in the order of the hosts */
    uint32_t n_runs;
    bool is_placed;
};

struct hosts {
    struct hosts_config config; /* its strings are not kept */
    enum hosts_mode mode;
    struct host_list list;   /* owned */
    uint32_t *racks;         /* [n_hosts] owned: the first host of that rack */
    uint32_t *blame;         /* [n_hosts] owned: how often in a row it did not answer */
    struct seat *seats;      /* [n_replicas] owned */
    struct place_host *view; /* [n_hosts] owned: scratch */
    struct buf text;
};

/* ---- life ---- */

/* Options of mpirun's that say where ranks go. */
static bool maps_by_itself(const char *args)
{
    static const char *const words[] = {
        "map-by", "rankfile", "npernode", "bynode", "ppr", "host"
    };

    for (size_t i = 0; args != NULL && i < ARRAY_LEN(words); i++) {
        if (strstr(args, words[i]) != NULL) {
            return true;
        }
    }
    return false;
}

static void racks_number(struct hosts *h)
{
    for (uint32_t i = 0; i < h->list.n; i++) {
        uint32_t k = 0;
        while (strcmp(h->list.hosts[k].rack, h->list.hosts[i].rack) != 0) {
            k++;
        }
        h->racks[i] = k;
    }
}

static status tables_make(struct hosts *h, struct err *err)
{
    const uint32_t n = h->list.n, n_replicas = h->config.n_replicas;
    bool ok;

    h->racks = calloc(n, sizeof(*h->racks));
    h->blame = calloc(n, sizeof(*h->blame));
    h->view = calloc(n, sizeof(*h->view));
    h->seats = calloc(n_replicas, sizeof(*h->seats));
    ok = h->racks != NULL && h->blame != NULL && h->view != NULL && h->seats != NULL;
    for (uint32_t i = 0; ok && i < n_replicas; i++) {
        h->seats[i].runs = calloc(n, sizeof(*h->seats[i].runs));
        ok = h->seats[i].runs != NULL;
    }
    return ok ? ST_OK
              : err_set(err, ST_ERR_NOMEM, "no memory for %u replicas on %u hosts", n_replicas, n);
}

status hosts_open(const struct hosts_config *config, struct hosts **hosts_p, struct err *err)
{
    struct hosts *h = calloc(1, sizeof(*h));
    status st;

    if (h == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for the hosts");
    }
    h->config = *config;
    h->text = (struct buf)BUF_INIT;
    h->mode = maps_by_itself(config->mpirun_args) ? HOSTS_DEALT
              : config->in_scheduler              ? HOSTS_WHOLE
                                                  : HOSTS_SLOTS;
    /* Until all have a place: a lost host should cost one replica. */
    h->config.alone = config->alone || !config->shares || h->mode != HOSTS_SLOTS;
    (void)((st = host_list_read(config->hostfile, &h->list, err)) || (st = tables_make(h, err)));
    if (st == ST_OK) {
        racks_number(h);
    }
    for (uint32_t i = 0; st == ST_OK && i < config->n_replicas; i++) {
        st = hosts_place(h, i, err);
        if (st != ST_OK) {
            err_prefix(err,
                       "replica %u of %u finds no place in hostfile %s (%u slots, %u hosts), add "
                       "slots, or lower --replicas, --tp or --pp: ",
                       i, config->n_replicas, config->hostfile, h->list.n_slots, h->list.n);
        }
    }
    if (st != ST_OK) {
        hosts_close(h);
        return st;
    }
    h->config.alone = config->alone || h->mode != HOSTS_SLOTS;
    *hosts_p = h;
    return ST_OK;
}

void hosts_close(struct hosts *h)
{
    if (h == NULL) {
        return;
    }
    for (uint32_t i = 0; h->seats != NULL && i < h->config.n_replicas; i++) {
        free(h->seats[i].runs);
    }
    free(h->seats);
    free(h->view);
    free(h->racks);
    free(h->blame);
    host_list_fini(&h->list);
    buf_fini(&h->text);
    free(h);
}

/* ---- places ---- */

/* The hosts as this replica finds them. */
static void view_make(struct hosts *h, uint32_t replica)
{
    for (uint32_t i = 0; i < h->list.n; i++) {
        h->view[i] = (struct place_host){ .slots = h->list.hosts[i].slots,
                                          .rack = h->racks[i],
                                          .blame = h->blame[i] };
    }
    for (uint32_t k = 0; k < h->config.n_replicas; k++) {
        const struct seat *s = &h->seats[k];
        for (uint32_t i = 0; s->is_placed && i < s->n_runs; i++) {
            struct place_host *v = &h->view[s->runs[i].host];
            if (k == replica) {
                v->was_mine = true;
            } else {
                v->n_replicas++;
                v->slots -= MIN(v->slots, s->runs[i].n);
            }
        }
    }
}

/* Contiguous runs of the file, as even as they come; mpirun decides the rest. */
static status deal(struct hosts *h, uint32_t replica, struct err *err)
{
    const uint32_t n_ranks = h->config.tp * h->config.pp;
    struct seat *s = &h->seats[replica];
    uint32_t n_slots = 0;

    s->n_runs = 0;
    for (uint32_t i = 0; i < h->list.n; i++) {
        if ((uint64_t)i * h->config.n_replicas / h->list.n == replica) {
            s->runs[s->n_runs++] = (struct place_run){ .host = i };
            n_slots += h->list.hosts[i].slots;
        }
    }
    if (n_slots < n_ranks) {
        return err_set(err, ST_ERR_LIMIT, "%u ranks, and its %u hosts have %u slots", n_ranks,
                       s->n_runs, n_slots);
    }
    s->is_placed = true;
    return ST_OK;
}

status hosts_place(struct hosts *h, uint32_t replica, struct err *err)
{
    const struct place_request request = { .tp = h->config.tp,
                                           .pp = h->config.pp,
                                           .alone = h->config.alone,
                                           .whole_hosts = h->mode == HOSTS_WHOLE };
    struct seat *s = &h->seats[replica];

    if (h->mode == HOSTS_DEALT) {
        return deal(h, replica, err);
    }
    view_make(h, replica);
    const status st = place_replica(h->view, h->list.n, &request, s->runs, &s->n_runs, err);
    s->is_placed = s->is_placed || st == ST_OK;
    return st;
}

/* ---- who answers ---- */

void hosts_judge(struct hosts *h, uint32_t replica,
                 enum coord_rank_end (*end_of)(void *arg, uint32_t rank), void *arg)
{
    const struct seat *s = &h->seats[replica];

    for (uint32_t i = 0; h->mode != HOSTS_DEALT && i < s->n_runs; i++) {
        const struct place_run *run = &s->runs[i];
        uint32_t n_seen = 0;
        for (uint32_t k = 0; k < run->n; k++) {
            n_seen += end_of(arg, run->first + k) == COORD_RANK_SEEN ? 1 : 0;
        }
        if (n_seen != 0) {
            h->blame[run->host] = 0;
            continue;
        }
        h->blame[run->host]++;
        log_warn("launch", "host %s: none of its %u ranks of replica %u was heard at the end",
                 h->list.hosts[run->host].name, run->n, replica);
    }
}

/* ---- out ---- */

status hosts_write(const struct hosts *h, uint32_t replica, const char *path, struct err *err)
{
    const struct seat *s = &h->seats[replica];
    FILE *out = fopen(path, "we");
    bool ok = out != NULL;

    for (uint32_t i = 0; ok && i < s->n_runs; i++) {
        const struct host *host = &h->list.hosts[s->runs[i].host];
        const uint32_t slots = h->mode == HOSTS_SLOTS ? s->runs[i].n : host->slots;
        ok = fprintf(out, "%s slots=%u\n", host->name, slots) > 0;
    }
    if (out != NULL && fclose(out) != 0) {
        ok = false;
    }
    return ok ? ST_OK : err_set_errno(err, ST_ERR_IO, errno, "%s cannot be written", path);
}

static status text_run(struct hosts *h, const struct place_run *run, bool is_first)
{
    const struct host *host = &h->list.hosts[run->host];
    status st = buf_printf(&h->text, "%s%s", is_first ? "" : ", ", host->name);

    if (st == ST_OK && run->n == 1) {
        st = buf_printf(&h->text, " (rank %u)", run->first);
    } else if (st == ST_OK && run->n > 1) {
        st = buf_printf(&h->text, " (ranks %u-%u)", run->first, run->first + run->n - 1);
    }
    if (st == ST_OK && host->rack[0] != '\0') {
        st = buf_printf(&h->text, " in %s", host->rack);
    }
    return st;
}

const char *hosts_text(struct hosts *h, uint32_t replica)
{
    const struct seat *s = &h->seats[replica];
    bool is_first = true;
    status st = ST_OK;

    buf_reset(&h->text);
    for (uint32_t i = 0; st == ST_OK && i < s->n_runs; i++) {
        st = text_run(h, &s->runs[i], i == 0);
    }
    for (uint32_t i = 0; st == ST_OK && i < h->list.n; i++) {
        if (h->blame[i] != 0) {
            st = buf_printf(&h->text, "%s%s", is_first ? "; did not answer: " : ", ",
                            h->list.hosts[i].name);
            is_first = false;
        }
    }
    return st == ST_OK && h->text.len != 0 ? h->text.data : "";
}

static uint32_t ranks_on(const struct hosts *h, uint32_t host)
{
    uint32_t n = 0;

    for (uint32_t k = 0; k < h->config.n_replicas; k++) {
        for (uint32_t i = 0; i < h->seats[k].n_runs; i++) {
            n += h->seats[k].runs[i].host == host ? h->seats[k].runs[i].n : 0;
        }
    }
    return n;
}

struct hosts_spot hosts_spot(const struct hosts *h, uint32_t replica, uint32_t rank)
{
    const uint32_t n_ranks = h->config.tp * h->config.pp;
    const struct seat *s = &h->seats[replica];

    for (uint32_t i = 0; h->mode != HOSTS_DEALT && i < s->n_runs; i++) {
        const struct place_run *run = &s->runs[i];
        if (rank >= run->first && rank < run->first + run->n) {
            return (struct hosts_spot){ h->list.hosts[run->host].name, run->host,
                                        ranks_on(h, run->host) };
        }
    }
    return (struct hosts_spot){ "", rank / h->config.tp,
                                (n_ranks + MAX(s->n_runs, 1u) - 1) / MAX(s->n_runs, 1u) };
}

/* Slots that no replica has. */
static status print_spare(struct hosts *h, struct buf *out)
{
    bool is_first = true;
    status st = ST_OK;

    view_make(h, h->config.n_replicas); /* of nobody */
    for (uint32_t i = 0; st == ST_OK && h->mode != HOSTS_DEALT && i < h->list.n; i++) {
        const bool is_used = h->view[i].n_replicas != 0;
        if (h->view[i].slots != 0 && !(is_used && h->config.alone)) {
            st = buf_printf(out, "%s%s (%u slot%s)", is_first ? "spare: " : ", ",
                            h->list.hosts[i].name, h->view[i].slots,
                            h->view[i].slots == 1 ? "" : "s");
            is_first = false;
        }
    }
    return st == ST_OK && !is_first ? buf_append_char(out, '\n') : st;
}

status hosts_print(struct hosts *h, struct buf *out)
{
    status st = ST_OK;

    for (uint32_t i = 0; st == ST_OK && i < h->config.n_replicas; i++) {
        st = buf_printf(out, "replica %u: %s\n", i, hosts_text(h, i));
    }
    return st == ST_OK ? print_spare(h, out) : st;
}
