/* coordinator/cli/rates.c - see rates.h. */
#include "coordinator/cli/rates.h"

#include "partition/rates_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- one rank ---- */

/* Of the same host, what an fp8 plan holds in bf16. NULL: not measured, or there is no such thing. */
static const struct rates_entry *plain_of(const struct cli_rates *r, const struct rates_key *own,
                                          const struct plan_site *site)
{
    const struct rates_key key = { site->is_assumed ? site->rates->host : own->host,
                                   own->cuda_version, kern_fmt_of_x(own->fmt) };

    return key.fmt != own->fmt ? rates_find(&r->rates, &key) : NULL;
}

static status site_of(const struct cli_rates *r, const struct plan *plan, const char *host,
                      struct plan_site *site, struct err *err)
{
    const struct rates_key key = { host, plan->device == PLAN_CUDA ? plan->cuda_version : 0,
                                   plan->fmt };
    const struct rates_entry *e = rates_find(&r->rates, &key);

    site->is_assumed = e == NULL;
    site->rates = e != NULL ? e : rates_slowest(&r->rates, &key);
    if (site->rates == NULL) {
        char device[24] = "cpu";
        if (key.cuda_version != 0) {
            snprintf(device, sizeof(device), "cuda-sm%u", key.cuda_version);
        }
        return err_set(err, ST_ERR_NOT_FOUND,
                       "rates file %s has no line of device=%s and format=%s; gantry measure "
                       "--device %.4s --format %s makes one",
                       r->config.file, device, plan_fmt_name(key.fmt), device,
                       plan_fmt_name(key.fmt));
    }
    site->rates_plain = plain_of(r, &key, site);
    return ST_OK;
}

/* Its part of a host on which n_ranks are. */
static void share_of(const struct cli_rates *r, const struct plan *plan, uint32_t n_ranks,
                     struct plan_site *site)
{
    const bool is_whole = plan->device == PLAN_CUDA; /* a device is a rank's alone */

    site->share = is_whole ? 1.0 : 1.0 / MAX(n_ranks, 1u);
    site->memory_bytes = r->config.has_memory || site->is_assumed ? 0
                         : is_whole                               ? site->rates->memory_bytes
                                    : site->rates->memory_bytes / MAX(n_ranks, 1u);
}

/* All on this host, or nobody knows where. Memory is then what it is now, not what it was. */
static status fill_here(const struct cli_rates *r, const struct plan *plan, struct plan_site *sites,
                        struct err *err)
{
    const uint32_t n = plan->n_ranks * MAX(r->config.hosts.n_replicas, 1u);
    status st = ST_OK;

    for (uint32_t i = 0; i < plan->n_ranks && st == ST_OK; i++) {
        st = site_of(r, plan, r->config.is_elsewhere ? "" : r->here, &sites[i], err);
        if (st == ST_OK) {
            share_of(r, plan, r->config.is_elsewhere ? 1 : n, &sites[i]);
            sites[i].memory_bytes = 0;
            sites[i].host = r->config.is_elsewhere ? i / plan->tp : 0;
        }
    }
    return st;
}

/* ---- several hosts ---- */

static bool is_slower(const struct plan_site *a, const struct plan_site *b)
{
    return a->rates->weights.at[0].bytes_s * a->share < b->rates->weights.at[0].bytes_s * b->share;
}

/* Rank `rank` of all replicas: the slowest place, and the least memory of any. */
static status fill_rank(const struct cli_rates *r, const struct plan *plan,
                        const struct hosts *hosts, uint32_t rank, struct plan_site *site_p,
                        struct err *err)
{
    uint32_t host = 0;

    for (uint32_t k = 0; k < r->config.hosts.n_replicas; k++) {
        struct plan_site site = { .host = 0 };
        const struct hosts_spot spot = hosts_spot(hosts, k, rank);
        const status st = site_of(r, plan, spot.name, &site, err);
        if (st != ST_OK) {
            return st;
        }
        share_of(r, plan, spot.n_ranks, &site);
        const uint64_t least = k == 0                      ? site.memory_bytes
                               : site_p->memory_bytes == 0 ? site.memory_bytes
                               : site.memory_bytes == 0
                                   ? site_p->memory_bytes
                                   : MIN(site.memory_bytes, site_p->memory_bytes);
        if (k == 0 || is_slower(&site, site_p)) {
            *site_p = site;
        }
        site_p->memory_bytes = least;
        host = k == 0 ? spot.host : host;
        site_p->host = host; /* who is whose neighbour: as in the first replica */
    }
    return ST_OK;
}

static status fill(void *arg, const struct plan *plan, struct plan_site *sites, struct err *err)
{
    const struct cli_rates *r = arg;
    struct hosts_config config = r->config.hosts;
    struct hosts *hosts = NULL;

    if (config.hostfile == NULL || r->config.is_elsewhere) {
        return fill_here(r, plan, sites, err);
    }
    config.tp = plan->tp;
    config.pp = plan->pp;
    config.alone = plan->device == PLAN_CUDA;
    status st = hosts_open(&config, &hosts, err);
    for (uint32_t i = 0; i < plan->n_ranks && st == ST_OK; i++) {
        st = fill_rank(r, plan, hosts, i, &sites[i], err);
    }
    hosts_close(hosts);
    return st;
}

/* ---- life ---- */

status cli_rates_open(const struct cli_rates_config *config, struct cli_rates *r,
                      const struct plan_sites **sites_p, struct err *err)
{
    struct buf b = BUF_INIT_MAX(RATES_FILE_BYTES_MAX + 1);

    *sites_p = NULL;
    memset(r, 0, sizeof(*r));
    if (config->file == NULL) {
        return ST_OK;
    }
    r->config = *config;
    if (gethostname(r->here, sizeof(r->here) - 1) != 0) {
        r->here[0] = '\0';
    }
    status st = buf_read_file(&b, config->file, RATES_FILE_BYTES_MAX, err);
    if (st == ST_OK) {
        const struct rates_text text = { config->file, b.data, b.len };
        st = rates_parse(&text, &r->rates, err);
    }
    buf_fini(&b);
    if (st == ST_OK) {
        r->sites = (struct plan_sites){ &r->rates, fill, r };
        *sites_p = &r->sites;
    }
    return st;
}

void cli_rates_close(struct cli_rates *r)
{
    rates_fini(&r->rates);
}
