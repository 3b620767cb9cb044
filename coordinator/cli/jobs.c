/* coordinator/cli/jobs.c - see jobs.h. */
#include "coordinator/cli/jobs.h"

#include "base/cpu.h"
#include "base/log.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LAST_WORDS_MS = 300, JOB_END_S = 10, IN_ORDER_S = 2 };

/* ---- the workers' command line ---- */

static void add(struct worker_words *w, uint32_t *n, const char *option, const char *value)
{
    ASSERT(*n + 3 < JOB_WORKER_ARGS_MAX);
    w->args[(*n)++] = option;
    w->args[(*n)++] = value;
    w->args[*n] = NULL;
}

static const char *number(struct worker_words *w, uint32_t i, uint32_t value)
{
    snprintf(w->numbers[i], sizeof(w->numbers[i]), "%u", value);
    return w->numbers[i];
}

/* What was asked for; several replicas on this host share its cores. 0: the worker decides. */
static uint32_t threads_of(const struct jobs *j)
{
    if (j->args->threads != 0 || j->n <= 1 || !j->setup->is_local) {
        return j->args->threads;
    }
    return MAX(1u, cpu_count() / (j->n * j->setup->plan->n_ranks));
}

/* Replicas on one node divide its cores where a scheduler has given them to us, and its devices. */
static bool slots_of(const struct jobs *j, uint32_t replica, char word[40])
{
    const uint32_t n_ranks = j->setup->plan->n_ranks;
    const struct cpu_parts *share = j->jobs != NULL ? &j->jobs[replica].share : NULL;

    if (share != NULL && share->total != 0) {
        snprintf(word, 40, "%u:%u:%u", share->first, share->count, share->total);
        return true;
    }
    if (!j->setup->is_local || j->n <= 1 ||
        (!j->setup->job.is_used && j->setup->plan->device != PLAN_CUDA)) {
        return false;
    }
    snprintf(word, 40, "%u:%u:%u", replica * n_ranks, n_ranks, j->n * n_ranks);
    return true;
}

status worker_words_make(const struct jobs *j, uint32_t replica, uint32_t generation,
                         struct worker_words *w, struct err *err)
{
    const struct serve_args *a = j->args;
    const uint32_t threads = threads_of(j);
    uint32_t n = 2, n_plan = 0;

    memset(w, 0, sizeof(*w));
    w->plan = (struct buf)BUF_INIT;
    w->args[0] = "worker";
    w->args[1] = j->setup->model_path;
    const status st =
        plan_opts_args(j->setup->plan, &w->plan, w->args + n, PLAN_OPTS_ARGS, &n_plan);
    if (st < 0) {
        return err_set(err, st, "no memory for the workers' command line");
    }
    n += n_plan;
    if (j->setup->device_word[0] != '\0') {
        add(w, &n, "--device", j->setup->device_word); /* the last one counts */
    }
    add(w, &n, "--coordinator", j->control);
    add(w, &n, "--token-file", j->dir->token_path);
    add(w, &n, "--replica", number(w, 0, replica));
    add(w, &n, "--generation", number(w, 1, generation));
    add(w, &n, "--queue", number(w, 2, a->queue));
    if (threads != 0) {
        add(w, &n, "--threads", number(w, 3, threads));
    }
    if (a->chunk != 0) {
        add(w, &n, "--chunk", number(w, 4, a->chunk));
    }
    if (a->prefix_cache != NULL) {
        add(w, &n, "--prefix-cache", a->prefix_cache);
    }
    if (a->self_test != NULL) {
        add(w, &n, "--self-test", a->self_test);
    }
    if (slots_of(j, replica, w->slots)) {
        add(w, &n, "--slots", w->slots);
    }
    if (a->network != NULL) {
        add(w, &n, "--network", a->network);
    }
    if (a->cpu_mask != NULL) {
        add(w, &n, "--cpu-mask", a->cpu_mask);
    }
    if (a->log_level != NULL) {
        add(w, &n, "--log-level", a->log_level);
    }
    return ST_OK;
}

void worker_words_fini(struct worker_words *w)
{
    buf_fini(&w->plan);
}

void jobs_config(const struct jobs *j, uint32_t replica, const struct worker_words *w,
                 const char *program, struct launch_config *c)
{
    const struct job *job = j->jobs != NULL ? &j->jobs[replica] : NULL;
    const uint32_t n_ranks = j->setup->plan->n_ranks;

    *c = (struct launch_config){
        .kind = j->args->kind,
        .n_ranks = n_ranks,
        .hostfile = job != NULL && job->hostfile[0] != '\0' ? job->hostfile : j->args->hostfile,
        .mpirun = j->args->mpirun,
        .program = program,
        .args = w->args,
        .log_dir = j->dir->path,
        .log_name = job != NULL ? job->log_name : NULL,
        .shm_dir = job != NULL && job->shm_dir[0] != '\0' ? job->shm_dir : NULL,
        .extra = j->args->mpirun_args,
        .env = !j->setup->job.is_used                    ? NULL
               : job != NULL && job->slots_word.len != 0 ? job->env
                                                         : j->setup->job.env,
        .network = j->args->network,
        .in_slurm = j->setup->job.is_used,
        .outlive = j->outlive,
        .oversubscribe = j->setup->is_local && n_ranks * MAX(j->n, 1u) > cpu_count(),
    };
}

status jobs_self_path(char *path, size_t bytes, struct err *err)
{
    const ssize_t n = readlink("/proc/self/exe", path, bytes - 1);

    if (n < 0) {
        return err_set_errno(err, ST_ERR_IO, errno, "/proc/self/exe");
    }
    path[n] = '\0';
    return ST_OK;
}

/* ---- hosts ---- */

status jobs_place(struct jobs *j, struct err *err)
{
    const struct plan *plan = j->setup->plan;
    struct hosts_config config = serve_hosts_config(j->args, j->setup, j->n, plan->device);

    config.tp = plan->tp;
    config.pp = plan->pp;
    if (j->args->hostfile == NULL || j->n == 0) {
        return ST_OK;
    }
    return hosts_open(&config, &j->hosts, err);
}

/* The first run of free slots of a node, as far as replicas that are wholly on it are known. */
static uint32_t share_first(const struct jobs *j, uint32_t replica, const struct job *job)
{
    uint32_t first = 0;

    for (uint32_t i = 0; i < j->n; i++) {
        const struct job *other = &j->jobs[i];
        if (i != replica && strcmp(other->node, job->node) == 0 &&
            first < other->share.first + other->share.count &&
            other->share.first < first + job->share.count) {
            first = other->share.first + other->share.count;
            i = UINT32_MAX; /* again from the first: it may meet one that was passed */
        }
    }
    return first + job->share.count <= job->share.total ? first : 0;
}

/* Inside an allocation: what mpirun is told of its slots, and which of a node's are this replica's. */
static status share_take(struct jobs *j, uint32_t replica, struct err *err)
{
    const struct allocation *alloc = &j->setup->job;
    struct job *job = &j->jobs[replica];
    struct host_list list = { .n = 0 };

    if (!alloc->is_used) {
        return ST_OK;
    }
    job->node[0] = '\0';
    job->share = (struct cpu_parts){ 0, 0, 0 };
    buf_reset(&job->slots_word);
    status st = host_list_read(job->hostfile, &list, err);
    if (st == ST_OK) {
        st = allocation_slots_word(alloc, &list, &job->slots_word, err);
    }
    if (st == ST_OK && list.n == 1) {
        snprintf(job->node, sizeof(job->node), "%s", list.hosts[0].name);
        job->share.count = list.n_slots;
        job->share.total = MAX(allocation_slots_on(alloc, job->node), list.n_slots);
        job->share.first = share_first(j, replica, job);
    }
    job->env[0] = job->slots_word.data;
    host_list_fini(&list);
    return st;
}

/* What its mpirun reads. A lost replica may find its place on other hosts than before. */
static status hosts_take(struct jobs *j, uint32_t replica, bool again, struct err *err)
{
    struct job *job = &j->jobs[replica];
    status st = ST_OK;

    if (j->hosts == NULL) {
        return ST_OK;
    }
    if (again) {
        st = hosts_place(j->hosts, replica, err);
    }
    if (st != ST_OK) {
        err_prefix(err, "replica %u has no hosts to start on: ", replica);
        return st;
    }
    coord_replica_hosts(j->coord, replica, hosts_text(j->hosts, replica));
    snprintf(job->hostfile, sizeof(job->hostfile), "%s/hosts-%u", j->dir->path, replica);
    st = hosts_write(j->hosts, replica, job->hostfile, err);
    return st == ST_OK ? share_take(j, replica, err) : st;
}

/* ---- start ---- */

static const char *launcher_word(enum launch_kind kind)
{
    return kind == LAUNCH_SRUN ? "srun" : "mpirun";
}

static void say_started(const struct jobs *j, uint32_t replica, const struct launch_config *c)
{
    const struct job *job = &j->jobs[replica];
    char which[32] = "";

    if (j->n > 1) {
        snprintf(which, sizeof(which), "replica %u: ", replica);
    }
    printf("%sstarting %u rank%s with %s (pid %d), log in %s/%s%s%s\n", which, c->n_ranks,
           c->n_ranks == 1 ? "" : "s", launcher_word(j->args->kind), launch_pid(job->launch),
           j->dir->path, job->log_name, j->hosts != NULL ? ", on " : "",
           j->hosts != NULL ? hosts_text(j->hosts, replica) : "");
    fflush(stdout);
}

/* Killed ranks leave their shared memory behind, some MiB each time: it goes to a folder of the job's
 * own, which is removed when nothing of the job is left. Not where ranks are on other hosts, which
 * have no such folder, nor where the user chose a place. */
static void shm_make(const struct jobs *j, struct job *job)
{
    job->shm_dir[0] = '\0';
    if (j->setup->is_local && getenv("OMPI_MCA_btl_vader_backing_directory") == NULL) {
        snprintf(job->shm_dir, sizeof(job->shm_dir), "/dev/shm/gantry-XXXXXX");
        if (mkdtemp(job->shm_dir) == NULL) {
            log_debug("launch", "no folder in /dev/shm (%s), ignoring", strerror(errno));
            job->shm_dir[0] = '\0';
        }
    }
}

static void shm_remove(struct job *job)
{
    DIR *dir = job->shm_dir[0] != '\0' ? opendir(job->shm_dir) : NULL;

    if (dir != NULL) {
        for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
            unlinkat(dirfd(dir), e->d_name, 0); /* "." and ".." are folders, and stay */
        }
        closedir(dir);
        rmdir(job->shm_dir);
    }
    job->shm_dir[0] = '\0';
}

static void changed(const struct jobs *j)
{
    if (j->changed != NULL) {
        j->changed(j->changed_arg);
    }
}

static status job_start(struct jobs *j, uint32_t replica, uint32_t generation, struct err *err)
{
    struct job *job = &j->jobs[replica];
    char program[4096];
    struct launch_config config;
    struct worker_words words;
    status st = hosts_take(j, replica, generation > 1, err);

    words.plan = (struct buf)BUF_INIT;
    if (st == ST_OK) {
        st = worker_words_make(j, replica, generation, &words, err);
    }
    if (st == ST_OK) {
        st = jobs_self_path(program, sizeof(program), err);
    }
    if (st == ST_OK) {
        job->generation = generation;
        changed(j); /* from here on the generation is used, whatever becomes of us */
        shm_make(j, job);
        jobs_config(j, replica, &words, program, &config);
        st = launch_start(&config, &job->launch, err);
    }
    if (st == ST_OK) {
        job->state = JOB_RUNS;
        changed(j);
        say_started(j, replica, &config);
    }
    if (st != ST_OK) {
        shm_remove(job);
    }
    worker_words_fini(&words);
    return st;
}

/* Another coordinator has started it. */
static status job_adopt(struct jobs *j, uint32_t replica, struct err *err)
{
    ASSERT(j->last != NULL); /* comes with j->adopted */
    struct job *job = &j->jobs[replica];
    const struct service_replica *r = &j->last[replica];
    const struct launch_adoption a = { r->pid, r->start_ticks, j->dir->path, job->log_name,
                                       r->log_begin };
    const status st = launch_adopt(&a, &job->launch, err);

    if (st == ST_OK) {
        job->state = JOB_RUNS;
        job->generation = r->generation;
        snprintf(job->shm_dir, sizeof(job->shm_dir), "%s", r->shm_dir);
        printf("replica %u: taking over the ranks of mpirun (pid %d)\n", replica, r->pid);
        fflush(stdout);
    }
    return st;
}

void jobs_describe(const struct jobs *j, uint32_t replica, struct service_replica *r_p)
{
    const struct job *job = j->jobs != NULL ? &j->jobs[replica] : NULL;

    memset(r_p, 0, sizeof(*r_p));
    r_p->generation = job != NULL ? job->generation : j->first_generation;
    if (job != NULL && job->launch != NULL) {
        r_p->pid = launch_pid(job->launch);
        r_p->start_ticks = launch_identity(job->launch);
        r_p->log_begin = launch_log_begin(job->launch);
        snprintf(r_p->shm_dir, sizeof(r_p->shm_dir), "%s", job->shm_dir);
    }
}

/* What runs is taken over before anything is started: with each start all of it is described for the next
 * coordinator, which would take what is not there yet for what never was. */
static status first_starts(struct jobs *j, struct err *err)
{
    status st = ST_OK;

    for (uint32_t i = 0; i < j->n; i++) {
        j->jobs[i].generation = j->last != NULL ? j->last[i].generation : j->first_generation - 1;
    }
    for (uint32_t i = 0; st == ST_OK && j->adopted != NULL && i < j->n; i++) {
        st = j->adopted[i].is_running ? job_adopt(j, i, err) : ST_OK;
    }
    for (uint32_t i = 0; st == ST_OK && i < j->n; i++) {
        if (j->adopted == NULL || !j->adopted[i].is_running) {
            st = job_start(
                j, i, j->adopted != NULL ? j->adopted[i].generation : j->first_generation, err);
        }
    }
    return st;
}

status jobs_start(struct jobs *j, struct err *err)
{
    status st = ST_OK;

    j->jobs = calloc(j->n, sizeof(*j->jobs));
    if (j->jobs == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for %u jobs", j->n);
    }
    for (uint32_t i = 0; i < j->n; i++) {
        j->jobs[i].slots_word = (struct buf)BUF_INIT;
        if (i == 0) {
            snprintf(j->jobs[i].log_name, sizeof(j->jobs[i].log_name), "mpirun.log");
        } else {
            snprintf(j->jobs[i].log_name, sizeof(j->jobs[i].log_name), "mpirun-%u.log", i);
        }
    }
    st = jobs_place(j, err);
    return st == ST_OK ? first_starts(j, err) : st;
}

/* ---- running ---- */

struct lost {
    const struct jobs *jobs;
    uint32_t replica;
};

static enum coord_rank_end end_of(void *arg, uint32_t rank)
{
    const struct lost *lost = arg;

    return coord_rank_end(lost->jobs->coord, lost->replica, rank);
}

void jobs_lost(struct jobs *j, uint32_t replica, uint64_t delay_ns)
{
    const uint64_t now = clock_now_ns(clock_real());
    struct lost lost = { j, replica };

    if (j->jobs == NULL) {
        return;
    }
    if (j->hosts != NULL) {
        hosts_judge(j->hosts, replica, end_of, &lost);
    }
    struct job *job = &j->jobs[replica];
    job->state = JOB_ENDING;
    job->ended_by_ns = now;
    job->start_at_ns = delay_ns == CLOCK_NEVER ? CLOCK_NEVER : now + delay_ns;
}

/* Its ranks are told by their streams, and say their last steps; mpirun would kill them over that. */
static void end_lost(struct job *job, uint64_t now)
{
    if (now >= job->ended_by_ns + LAST_WORDS_MS * NS_PER_MS) {
        launch_end(job->launch, now);
    }
}

static void release(struct job *job)
{
    if (job->launch != NULL) {
        snprintf(job->tail, sizeof(job->tail), "%s", launch_tail(job->launch));
        launch_destroy(job->launch);
        job->launch = NULL;
    }
    shm_remove(job);
}

/* What a rank said before it could tell the coordinator: ": rank r0 - no memory for .." */
static void add_last_error(const char *tail, char *text, size_t bytes)
{
    static const char mark[] = " error rank ";
    const char *last = NULL;

    for (const char *at = tail; (at = strstr(at, mark)) != NULL; at += sizeof(mark) - 1) {
        last = at + strlen(" error ");
    }
    if (last != NULL) {
        snprintf(text, bytes, ": %.*s", (int)strcspn(last, "\n"), last);
    }
}

/* It ends by itself: the coordinator is told, and answers through jobs_lost. */
static void look_at_running(struct jobs *j, uint32_t i)
{
    struct job *job = &j->jobs[i];
    char text[ERR_TEXT_BYTES];
    int code = 0;

    if (launch_poll(job->launch, &code) == ST_END) {
        job->state = JOB_ENDED; /* its last words may still be asked for */
        const int n = snprintf(text, sizeof(text), "%s has ended with exit code %d",
                               launcher_word(j->args->kind), code);
        add_last_error(launch_tail(job->launch), text + n, sizeof(text) - (size_t)n);
        coord_job_ended(j->coord, i, text);
    }
}

static void look_at_ending(struct job *job, uint64_t now)
{
    int code = 0;

    if (job->launch != NULL) {
        end_lost(job, now);
        if (launch_poll(job->launch, &code) != ST_END) {
            return;
        }
        release(job);
    }
    job->state = job->start_at_ns == CLOCK_NEVER ? JOB_OVER : JOB_START_AT;
}

static void start_again(struct jobs *j, uint32_t i)
{
    struct err err = ERR_INIT;
    const uint32_t generation = coord_replica_restart(j->coord, i);

    j->jobs[i].state = JOB_RUNS;
    if (job_start(j, i, generation, &err) != ST_OK) {
        coord_job_ended(j->coord, i, err.text);
    }
}

bool jobs_culprit(struct jobs *j, uint32_t replica, uint32_t *rank_p, char *signal_p,
                  size_t signal_bytes)
{
    struct launch *l = j->jobs != NULL ? j->jobs[replica].launch : NULL;

    return l != NULL && launch_culprit(l, rank_p, signal_p, signal_bytes);
}

void jobs_tick(struct jobs *j, uint64_t now)
{
    for (uint32_t i = 0; j->jobs != NULL && i < j->n; i++) {
        struct job *job = &j->jobs[i];
        if (job->state == JOB_RUNS && job->launch != NULL) {
            look_at_running(j, i);
        } else if (job->state == JOB_ENDING) {
            look_at_ending(job, now);
        } else if (job->state == JOB_START_AT && now >= job->start_at_ns) {
            start_again(j, i);
        }
    }
}

/* ---- the end ---- */

static bool all_over(const struct jobs *j, uint64_t now, bool rough)
{
    bool over = true;

    for (uint32_t i = 0; i < j->n; i++) {
        struct launch *l = j->jobs[i].launch;
        int code = 0;
        if (l == NULL || launch_poll(l, &code) == ST_END) {
            continue;
        }
        over = false;
        if (j->jobs[i].state == JOB_ENDING) {
            end_lost(&j->jobs[i], now);
        } else if (rough) {
            launch_end(l, now);
        }
    }
    return over;
}

/* Ranks that were told to stop are usually gone within a second; then it gets rougher. */
void jobs_end(struct jobs *j, bool rough)
{
    const uint64_t start = clock_now_ns(clock_real());

    for (;;) {
        const uint64_t now = clock_now_ns(clock_real());
        if (j->jobs == NULL || now - start > JOB_END_S * NS_PER_S ||
            all_over(j, now, rough || now - start > IN_ORDER_S * NS_PER_S)) {
            return; /* jobs_fini kills what is left */
        }
        usleep(20000);
    }
}

static void print_tail(const struct jobs *j, uint32_t i, const char *tail)
{
    fprintf(stderr, "last lines of %s/%s:\n", j->dir->path, j->jobs[i].log_name);
    while (*tail != '\0') {
        const size_t len = strcspn(tail, "\n");
        fprintf(stderr, "  | %.*s\n", (int)len, tail);
        tail += len + (tail[len] == '\n');
    }
}

void jobs_print_tails(struct jobs *j)
{
    for (uint32_t i = 0; j->jobs != NULL && i < j->n; i++) {
        release(&j->jobs[i]);
        if (j->jobs[i].tail[0] != '\0') {
            print_tail(j, i, j->jobs[i].tail);
        }
    }
}

void jobs_fini(struct jobs *j)
{
    for (uint32_t i = 0; j->jobs != NULL && i < j->n; i++) {
        release(&j->jobs[i]);
        buf_fini(&j->jobs[i].slots_word);
        if (j->jobs[i].hostfile[0] != '\0') {
            unlink(j->jobs[i].hostfile);
        }
    }
    free(j->jobs);
    j->jobs = NULL;
    hosts_close(j->hosts);
    j->hosts = NULL;
}
