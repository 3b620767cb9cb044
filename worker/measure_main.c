/* worker/measure_main.c - `gantry measure`: rates of this host, or of all hosts of an MPI job, into a file.
 *
 *   alone       this host, no MPI
 *   mpirun      links first, while every core is idle; then the first rank of each host measures it with all
 *               of its threads while the others sleep; rank 0 collects and writes
 *
 * A rank that waits looks at its mail now and then: one that polls would take a core from the one that
 * measures. */
#include "worker/main.h"

#include "base/cpu.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/opts.h"
#include "partition/rates_file.h"
#include "worker/device.h"
#include "worker/measure.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { TAG_RATES = 300, TAG_OVER, NAP_US = 20000, TIMEOUT_S = 600, PATH_MAX_BYTES = 4096 };

struct asked {
    const char *output, *device, *cpu_mask;
    struct opt_list formats;
    uint32_t threads;
    struct plan_device_word word;
    bool formats_wanted[KERN_FMTS];
};

/* What one host was found to do. */
struct found {
    uint32_t n;
    struct rates_entry entries[KERN_FMTS];
};

/* This process's place in the job. */
struct place {
    struct coll_mpi_world world;
    struct coll *coll; /* NULL: alone */
    uint64_t *hosts;   /* [n_ranks] owned: a number for each rank's host */
    bool measures;     /* the first rank of its host */
};

static const char about[] =
    "Measures what this host does in a second, by the kernels that will run: weights read from "
    "memory "
    "and from the caches at 1 to 512 rows, attention, norms, sampling. Takes a few seconds for "
    "each "
    "format, and wants the host to itself. gantry plan --rates FILE then says how fast a model "
    "will be, and "
    "gantry serve --rates FILE cuts it by the speed and memory of the hosts.\n"
    "\n"
    "Under mpirun the first rank of every host measures it, and the links between the ranks are "
    "measured as well; one file has all of them. Files may also be put one behind the other.";

static const char examples[] = "  gantry measure -o rates\n"
                               "  mpirun --hostfile hosts -N 2 --bind-to none gantry measure -o "
                               "rates    # two ranks a host: its links, too\n"
                               "  gantry measure --format bf16 --threads 8\n";

/* ---- options ---- */

static status settle(struct asked *a, struct err *err)
{
    uint32_t mask = 0;
    status st = plan_device_word(a->device, &a->word, err);

    if (st == ST_OK && a->cpu_mask != NULL) {
        st = cpu_mask_parse(a->cpu_mask, &mask, err);
        if (st == ST_OK) {
            cpu_mask(mask);
        }
    }
    for (uint32_t f = 0; f < KERN_FMTS && st == ST_OK; f++) {
        a->formats_wanted[f] = a->formats.n == 0;
    }
    for (uint32_t i = 0; i < a->formats.n && st == ST_OK; i++) {
        uint32_t f = 0;
        while (f < KERN_FMTS && strcmp(a->formats.items[i], plan_fmt_name((enum kern_fmt)f)) != 0) {
            f++;
        }
        if (f == KERN_FMTS) {
            return err_set(err, ST_ERR_ARG, "--format %.40s: none of f32, bf16, fp8",
                           a->formats.items[i]);
        }
        a->formats_wanted[f] = true;
    }
    if (st == ST_OK && a->output != NULL && strlen(a->output) + 8 > PATH_MAX_BYTES) {
        st = err_set(err, ST_ERR_ARG, "-o: a path of %zu bytes", strlen(a->output));
    }
    return st;
}

static status parse(int argc, char **argv, struct asked *a, struct err *err)
{
    static char output[] = "--output";
    const struct opt rows[] = {
        { OPT_STRING, "output", "FILE", &a->output, 0, 0,
          "also -o: where the rates go (default: standard output)", NULL },
        { OPT_LIST, "format", "F", &a->formats, 0, 0,
          "f32, bf16 or fp8, may be given several times (all)", NULL },
        { OPT_STRING, "device", "D", &a->device, 0, 0,
          "auto, cpu, cuda or cuda:I (auto: cuda where one is); that path has not run on a device "
          "yet",
          NULL },
        { OPT_U32, "threads", "N", &a->threads, 1, 1024,
          "threads (all cores that this process may use)", NULL },
        { OPT_STRING, "cpu-mask", "PATH", &a->cpu_mask, 0, 0,
          "no better kernels than: scalar, avx2, avx512, avx512bf16, native", NULL },
    };
    const struct opts opts = { .usage = "gantry measure [-o FILE] [options]",
                               .about = about,
                               .options = rows,
                               .n_options = ARRAY_LEN(rows),
                               .examples = examples };
    uint32_t n = 0;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-o") == 0) { /* as everybody writes it */
            argv[i] = output;
        }
    }
    const status st = opts_parse(&opts, argc, argv, NULL, &n, err);
    return st == ST_OK ? settle(a, err) : st;
}

/* ---- one host ---- */

/* A word of the file: no spaces, nothing that does not print. */
static void put_word(char *word, size_t bytes, const char *text)
{
    snprintf(word, bytes, "%.*s", (int)bytes - 1, text);
    for (char *c = word; *c != '\0'; c++) {
        *c = *c <= ' ' || *c > '~' || *c == '#' ? '_' : *c;
    }
}

static void entry_begin(const struct worker_device *d, const struct kern_device *info,
                        const char *host, uint32_t threads, struct rates_entry *e)
{
    const time_t now = time(NULL);
    struct tm utc;

    memset(e, 0, sizeof(*e));
    put_word(e->host, sizeof(e->host), host);
    put_word(e->kernels, sizeof(e->kernels), d->cuda_version != 0 ? info->name : d->text);
    e->cuda_version = d->cuda_version;
    e->threads = d->cuda_version != 0 ? 0 : threads;
    e->memory_bytes = d->cuda_version != 0 ? info->mem_free_bytes : cpu_memory_bytes();
    if (gmtime_r(&now, &utc) != NULL) {
        strftime(e->measured, sizeof(e->measured), "%Y-%m-%dT%H:%M:%SZ", &utc);
    }
}

static status measure_host(const struct asked *a, const char *host, struct found *found_p,
                           struct err *err)
{
    const uint32_t threads = a->threads != 0 ? a->threads : cpu_count();
    struct found found = { .n = 0 };
    struct kern_stream *stream = NULL;
    struct worker_device device;
    struct kern_device info;
    status st = worker_device_choose(&a->word, 0, &device, err);

    if (st == ST_OK) {
        st = device.ops->stream_create(&(struct kern_stream_config){ threads, device.index },
                                       &stream, err);
    }
    if (st == ST_OK) {
        st = device.ops->device_info(stream, &info, err);
    }
    for (uint32_t f = 0; f < KERN_FMTS && st == ST_OK; f++) {
        struct rates_entry *e = &found.entries[found.n];
        if (!a->formats_wanted[f]) {
            continue;
        }
        fprintf(stderr, "gantry measure: %s, %s, %s, %u thread%s\n", host, device.text,
                plan_fmt_name((enum kern_fmt)f), threads, threads == 1 ? "" : "s");
        entry_begin(&device, &info, host, threads, e);
        const struct measure_config config = { device.ops, stream, (enum kern_fmt)f,
                                               e->memory_bytes };
        st = measure_rates(&config, e, err);
        found.n++;
    }
    if (stream != NULL) {
        device.ops->stream_destroy(stream);
    }
    if (st == ST_OK) {
        *found_p = found;
    }
    return st;
}

/* ---- several ---- */

static status place_find(struct place *p, struct err *err)
{
    const uint64_t mine = hash64_of(p->world.host, strlen(p->world.host), 0);
    const uint32_t n = p->world.n_ranks;
    status st = ST_OK;

    p->hosts = calloc(n, sizeof(*p->hosts));
    if (p->hosts == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for %u ranks", n);
    }
    p->hosts[p->world.rank] = mine;
    for (uint32_t i = 0; i < n && st == ST_OK; i++) {
        st = coll_mpi_bcast(&p->hosts[i], sizeof(p->hosts[i]), i, err);
    }
    p->measures = true;
    for (uint32_t i = 0; i < p->world.rank; i++) {
        p->measures = p->measures && p->hosts[i] != mine;
    }
    if (st == ST_OK) {
        st = coll_mpi_create((struct coll_shape){ 1, n }, &p->coll, err);
    }
    if (st == ST_OK) {
        p->coll->timeout_ns = TIMEOUT_S * NS_PER_S;
    }
    return st;
}

/* Looking at the mail now and then. */
static status wait_asleep(struct coll *c, struct coll_req req, struct err *err)
{
    const uint64_t end = clock_now_ns(clock_real()) + TIMEOUT_S * NS_PER_S;
    status st;

    while ((st = c->ops->test(c, req, err)) == ST_BUSY) {
        if (clock_now_ns(clock_real()) > end) {
            return err_set(err, ST_ERR_DEADLINE, "rank %u has waited %d s for the rates of others",
                           c->rank, TIMEOUT_S);
        }
        usleep(NAP_US);
    }
    return st;
}

static status recv_asleep(struct coll *c, uint32_t from, uint32_t tag, void *data, size_t bytes,
                          struct err *err)
{
    struct coll_req req;
    const status st = c->ops->recv_start(c, NULL, from, tag, data, bytes, &req, err);

    return st == ST_OK ? wait_asleep(c, req, err) : st;
}

static status send_asleep(struct coll *c, uint32_t to, uint32_t tag, const void *data, size_t bytes,
                          struct err *err)
{
    struct coll_req req;
    const status st = c->ops->send_start(c, NULL, to, tag, data, bytes, &req, err);

    return st == ST_OK ? wait_asleep(c, req, err) : st;
}

static bool is_first_of_host(const struct place *p, uint32_t rank)
{
    for (uint32_t i = 0; i < rank; i++) {
        if (p->hosts[i] == p->hosts[rank]) {
            return false;
        }
    }
    return true;
}

static status print_found(const struct found *f, struct buf *out, struct err *err)
{
    status st = ST_OK;

    for (uint32_t i = 0; i < f->n && st == ST_OK; i++) {
        st = rates_print_entry(&f->entries[i], out);
    }
    return st == ST_OK ? st : err_set(err, st, "no memory to print the rates");
}

/* Rank 0 (or the only process): everybody's into `out`. */
static status collect(struct place *p, const struct found *mine, struct buf *out, struct err *err)
{
    status st = print_found(mine, out, err);

    for (uint32_t i = 1; p->coll != NULL && i < p->world.n_ranks && st == ST_OK; i++) {
        struct found theirs = { .n = 0 };
        if (!is_first_of_host(p, i)) {
            continue;
        }
        st = recv_asleep(p->coll, i, TAG_RATES, &theirs, sizeof(theirs), err);
        if (st == ST_OK && theirs.n > KERN_FMTS) {
            st = err_set(err, ST_ERR_PROTO, "rank %u sends the rates of %u formats", i, theirs.n);
        }
        if (st == ST_OK) {
            st = print_found(&theirs, out, err);
        }
    }
    return st;
}

/* Nobody leaves before all is measured: MPI's end waits with a core. */
static status say_over(struct place *p, struct err *err)
{
    uint32_t over = 1;
    status st = ST_OK;

    if (p->world.rank != 0) {
        return recv_asleep(p->coll, 0, TAG_OVER, &over, sizeof(over), err);
    }
    for (uint32_t i = 1; i < p->world.n_ranks && st == ST_OK; i++) {
        st = send_asleep(p->coll, i, TAG_OVER, &over, sizeof(over), err);
    }
    return st;
}

static status measure_all(const struct asked *a, struct place *p, struct buf *out, struct err *err)
{
    struct rates_link on_host = { .is_measured = false }, across = on_host;
    struct found mine = { .n = 0 };
    status st = rates_print_head(out);

    if (p->coll != NULL && st == ST_OK) {
        st = measure_links(p->coll, p->hosts, &on_host, &across, err);
    }
    if (p->measures && st == ST_OK) {
        st = measure_host(a, p->world.host, &mine, err);
    }
    if (p->world.rank == 0 && st == ST_OK) {
        st = collect(p, &mine, out, err);
    } else if (p->measures && st == ST_OK) {
        st = send_asleep(p->coll, 0, TAG_RATES, &mine, sizeof(mine), err);
    }
    if (p->coll != NULL && st == ST_OK) {
        st = say_over(p, err);
    }
    if (st == ST_OK && on_host.is_measured) {
        st = rates_print_link(false, &on_host, out);
    }
    if (st == ST_OK && across.is_measured) {
        st = rates_print_link(true, &across, out);
    }
    return st;
}

/* ---- the file ---- */

/* In one piece: a reader never sees half of it. */
static status write_out(const struct asked *a, const struct buf *out, struct err *err)
{
    char part[PATH_MAX_BYTES];
    FILE *f = stdout;

    if (a->output != NULL) {
        snprintf(part, sizeof(part), "%s.part", a->output);
        f = fopen(part, "we");
    }
    bool ok = f != NULL && fwrite(out->data, 1, out->len, f) == out->len && fflush(f) == 0;
    if (a->output != NULL && f != NULL) {
        ok = fclose(f) == 0 && ok;
        ok = ok && rename(part, a->output) == 0;
    }
    return ok ? ST_OK
              : err_set_errno(err, ST_ERR_IO, errno, "%s cannot be written",
                              a->output != NULL ? a->output : "standard output");
}

static void place_fini(struct place *p)
{
    if (p->coll != NULL) {
        p->coll->ops->destroy(p->coll);
    }
    free(p->hosts);
}

int measure_main(int argc, char **argv)
{
    struct asked asked;
    struct place place;
    struct buf out = BUF_INIT;
    struct err err = ERR_INIT;
    bool is_mpi = false;

    memset(&asked, 0, sizeof(asked));
    memset(&place, 0, sizeof(place));
    log_init(LOG_WARN, STDERR_FILENO);
    status st = parse(argc, argv, &asked, &err);
    if (st == ST_END) {
        return 0;
    }
    cpu_float_env_set();
    if (st == ST_OK && worker_in_mpi_job()) {
        st = coll_mpi_init(&place.world, &err);
        is_mpi = st == ST_OK;
    } else if (gethostname(place.world.host, sizeof(place.world.host) - 1) != 0) {
        snprintf(place.world.host, sizeof(place.world.host), "unknown");
    }
    place.measures = true;
    if (st == ST_OK && is_mpi) {
        st = place_find(&place, &err);
    }
    if (st == ST_OK) {
        st = measure_all(&asked, &place, &out, &err);
    }
    if (st == ST_OK && place.world.rank == 0) {
        st = write_out(&asked, &out, &err);
    }
    if (st != ST_OK) {
        fprintf(stderr, "gantry measure: %s\n", err.text);
        if (is_mpi) {
            coll_mpi_abort(status_exit_code(st)); /* others wait for this one */
        }
    }
    place_fini(&place);
    buf_fini(&out);
    if (is_mpi) {
        coll_mpi_fini();
    }
    return status_exit_code(st);
}
