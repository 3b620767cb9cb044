/* cluster/place.c - see place.h.
 *
 * From the strictest wish to the loosest each one is tried on a set of hosts; the first that has room
 * is taken. Sets are at most a few thousand hosts, wishes at most racks x 16. */
#include "cluster/place.h"

#include <stdlib.h>
#include <string.h>

enum { RACK_ANY = -1, BLAME_LEVELS = 3 };

struct wish {
    bool blamed, shared; /* such hosts may be used */
    bool cut;            /* a stage may lie on several hosts */
    int64_t rack;        /* RACK_ANY, or this one alone */
};

/* Ranks that a host can hold under this wish. */
static uint32_t room_of(const struct place_host *h, const struct place_request *q,
                        const struct wish *w)
{
    if ((h->blame != 0 && !w->blamed) || (h->n_replicas != 0 && !w->shared) ||
        (w->rack != RACK_ANY && h->rack != (uint32_t)w->rack)) {
        return 0;
    }
    return w->cut || q->whole_hosts ? h->slots : h->slots / q->tp * q->tp;
}

/* mpirun fills whole hosts in turn: then every one but the last must hold whole stages. */
static bool cuts_stages(const struct place_run *runs, uint32_t n, uint32_t tp)
{
    for (uint32_t i = 0; i < n; i++) {
        if (runs[i].first % tp != 0 || runs[i].n % tp != 0) {
            return true;
        }
    }
    return false;
}

/* Hosts are chosen: least blamed first, then those that it was on, then by the file. */
static bool choose(const struct place_host *hosts, uint32_t n_hosts, const struct place_request *q,
                   const struct wish *w, uint32_t *ranks /* [n_hosts], zeroed */)
{
    uint32_t left = q->tp * q->pp, blame_max = 0;

    for (uint32_t i = 0; i < n_hosts; i++) {
        blame_max = MAX(blame_max, hosts[i].blame);
    }
    blame_max = w->blamed ? MIN(blame_max, (uint32_t)BLAME_LEVELS) : 0u;
    for (uint32_t level = 0; level <= 2 * blame_max + 1 && left != 0; level++) {
        for (uint32_t i = 0; i < n_hosts && left != 0; i++) {
            const uint32_t room = room_of(&hosts[i], q, w);
            const uint32_t mine = hosts[i].was_mine ? 0 : 1;
            if (room == 0 || MIN(hosts[i].blame, (uint32_t)BLAME_LEVELS) * 2 + mine != level) {
                continue;
            }
            ranks[i] = MIN(room, left);
            left -= ranks[i];
        }
    }
    return left == 0;
}

static bool try(const struct place_host *hosts, uint32_t n_hosts, const struct place_request *q,
                const struct wish *w, uint32_t *ranks, struct place_run *runs, uint32_t *n_runs_p)
{
    uint32_t n = 0, first = 0;

    memset(ranks, 0, n_hosts * sizeof(*ranks));
    if (!choose(hosts, n_hosts, q, w, ranks)) {
        return false;
    }
    for (uint32_t i = 0; i < n_hosts; i++) {
        uint32_t k = ranks[i];
        if (k != 0 && q->whole_hosts) { /* in the file's order each host is filled first */
            k = MIN(hosts[i].slots, q->tp * q->pp - first);
        }
        if (k != 0) {
            runs[n++] = (struct place_run){ .host = i, .first = first, .n = k };
            first += k;
        }
    }
    if (!w->cut && cuts_stages(runs, n, q->tp)) {
        return false;
    }
    *n_runs_p = n;
    return true;
}

/* Replicas in that rack, and whether this one was there. Less is better. */
static uint64_t rack_load(const struct place_host *hosts, uint32_t n_hosts, uint32_t rack)
{
    uint64_t n = 0;
    bool was_mine = false;

    for (uint32_t i = 0; i < n_hosts; i++) {
        n += hosts[i].rack == rack ? hosts[i].n_replicas : 0u;
        was_mine = was_mine || (hosts[i].rack == rack && hosts[i].was_mine);
    }
    return n * 2 + (was_mine ? 0 : 1);
}

/* The next best rack after (load, rack) in the order of load, then of number; false: none. */
static bool next_rack(const struct place_host *hosts, uint32_t n_hosts, const uint64_t *loads,
                      uint64_t *load, int64_t *rack)
{
    bool found = false;
    uint64_t best_load = 0;
    int64_t best = 0;

    for (uint32_t i = 0; i < n_hosts; i++) {
        const bool is_later = loads[i] > *load || (loads[i] == *load && hosts[i].rack > *rack);
        const bool is_better =
            !found || loads[i] < best_load || (loads[i] == best_load && hosts[i].rack < best);
        if (is_later && is_better) {
            found = true;
            best_load = loads[i];
            best = hosts[i].rack;
        }
    }
    *load = best_load;
    *rack = best;
    return found;
}

/* One rack after the other, then all of them. */
static bool try_racks(const struct place_host *hosts, uint32_t n_hosts,
                      const struct place_request *q, struct wish w, const uint64_t *loads,
                      uint32_t *ranks, struct place_run *runs, uint32_t *n_runs_p)
{
    uint64_t load = 0;

    w.rack = RACK_ANY;
    for (int64_t rack = -1; next_rack(hosts, n_hosts, loads, &load, &rack);) {
        w.rack = rack;
        if (try(hosts, n_hosts, q, &w, ranks, runs, n_runs_p)) {
            return true;
        }
    }
    w.rack = RACK_ANY;
    return try(hosts, n_hosts, q, &w, ranks, runs, n_runs_p);
}

static status no_room(const struct place_host *hosts, uint32_t n_hosts,
                      const struct place_request *q, struct err *err)
{
    uint64_t n_free = 0;
    uint32_t n_shared = 0;

    for (uint32_t i = 0; i < n_hosts; i++) {
        n_free += q->alone && hosts[i].n_replicas != 0 ? 0 : hosts[i].slots;
        n_shared += hosts[i].n_replicas != 0 ? 1 : 0u;
    }
    return err_set(err, ST_ERR_LIMIT,
                   "%u ranks (tp %u x pp %u) need %u slots, and %llu are free on %u hosts%s",
                   q->tp * q->pp, q->tp, q->pp, q->tp * q->pp, (unsigned long long)n_free,
                   q->alone ? n_hosts - n_shared : n_hosts,
                   q->alone ? " that no other replica uses" : "");
}

status place_replica(const struct place_host *hosts, uint32_t n_hosts,
                     const struct place_request *q, struct place_run *runs_p, uint32_t *n_runs_p,
                     struct err *err)
{
    uint32_t *ranks = calloc(MAX(n_hosts, 1u), sizeof(*ranks));
    uint64_t *loads = calloc(MAX(n_hosts, 1u), sizeof(*loads)); /* of each host's rack */
    bool found = false;

    ASSERT(q->tp != 0 && q->pp != 0);
    if (ranks == NULL || loads == NULL) {
        free(ranks);
        free(loads);
        return err_set(err, ST_ERR_NOMEM, "no memory to place ranks on %u hosts", n_hosts);
    }
    for (uint32_t i = 0; i < n_hosts; i++) {
        bool is_known = false;
        for (uint32_t k = 0; k < i && !is_known; k++) {
            is_known = hosts[k].rack == hosts[i].rack;
            loads[i] = loads[k];
        }
        loads[i] = is_known ? loads[i] : rack_load(hosts, n_hosts, hosts[i].rack);
    }
    for (uint32_t i = 0; i < 8 && !found; i++) {
        const struct wish w = { .blamed = (i & 4) != 0,
                                .shared = (i & 2) != 0,
                                .cut = (i & 1) != 0 };
        found = !(w.shared && q->alone) &&
                try_racks(hosts, n_hosts, q, w, loads, ranks, runs_p, n_runs_p);
    }
    free(ranks);
    free(loads);
    return found ? ST_OK : no_room(hosts, n_hosts, q, err);
}
