/* The command, and the life of a child: most cases run a shell script in the place of mpirun, which
 * needs no MPI and can misbehave; the last three run the real one where it is installed. */
#include "cluster/launch.h"

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

struct place {
    char dir[64];
    char script[96];
    char log[96];
};

static int setup(void **state)
{
    struct place *p = calloc(1, sizeof(*p));

    assert_non_null(p);
    snprintf(p->dir, sizeof(p->dir), "/tmp/gantry-launch-XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    snprintf(p->script, sizeof(p->script), "%s/mpirun", p->dir);
    snprintf(p->log, sizeof(p->log), "%s/mpirun.log", p->dir);
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    struct place *p = *state;

    unlink(p->script);
    unlink(p->log);
    rmdir(p->dir);
    free(p);
    return 0;
}

/* A stand-in for mpirun: says its version, otherwise runs `body`. */
static void write_script(const struct place *p, const char *version, const char *body)
{
    FILE *f = fopen(p->script, "w");

    assert_non_null(f);
    fprintf(f, "#!/bin/sh\nif [ \"$1\" = --version ]; then %s; exit 0; fi\n%s\n", version, body);
    fclose(f);
    assert_int_equal(chmod(p->script, 0700), 0);
}

static const char v4[] = "echo 'mpirun (Open MPI) 4.1.4'";

static void nap_ms(long ms)
{
    const struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };

    (void)nanosleep(&t, NULL);
}

/* Poll (and end, if `ending`) for at most 6 s; the code, or -1. */
static int run_out(struct launch *l, bool ending)
{
    const uint64_t end_ns = clock_now_ns(clock_real()) + 6 * NS_PER_S;
    int code = -1;

    while (launch_poll(l, &code) == ST_BUSY) {
        const uint64_t now_ns = clock_now_ns(clock_real());

        if (now_ns > end_ns) {
            return -1;
        }
        if (ending) {
            launch_end(l, now_ns);
        }
        nap_ms(5);
    }
    return code;
}

static struct launch *start(const struct place *p, const char *const *args)
{
    const struct launch_config config = {
        .n_ranks = 2, .mpirun = p->script, .program = "/bin/true", .args = args, .log_dir = p->dir
    };
    struct launch *l = NULL;
    struct err err = ERR_INIT;

    if (launch_start(&config, &l, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    return l;
}

/* ---- command ---- */

static const char *line_of(const struct launch_config *config, uint32_t major, struct buf *out)
{
    struct err err = ERR_INIT;

    buf_reset(out);
    if (launch_command_line(config, major, out, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    return out->data;
}

static void test_launch_command__has_program_and_arguments_last(void **state)
{
    static const char *const args[] = { "worker", "--run-dir", "/a b", "it's", "", NULL };
    const struct launch_config config = { .n_ranks = 4, .program = "/opt/gantry", .args = args };
    struct buf out = BUF_INIT;

    (void)state;
    unsetenv("SLURM_JOB_ID");
    line_of(&config, 4, &out);
    assert_memory_equal(out.data, "mpirun -n 4 ", 12);
    assert_non_null(strstr(out.data, " /opt/gantry worker --run-dir '/a b' 'it'\\''s' ''"));
    assert_non_null(strstr(out.data, " --bind-to none "));
    assert_non_null(strstr(out.data, " oob_tcp_keepalive_time 2 "));
    assert_non_null(strstr(out.data, " --oversubscribe "));
    assert_null(strstr(out.data, "yield"));
    buf_fini(&out);
}

static void test_launch_command__overbooks_only_this_host(void **state)
{
    struct launch_config config = { .n_ranks = 4, .program = "/g", .hostfile = "my hosts" };
    struct buf out = BUF_INIT;

    (void)state;
    unsetenv("SLURM_JOB_ID");
    line_of(&config, 4, &out);
    assert_non_null(strstr(out.data, " --hostfile 'my hosts' "));
    assert_null(strstr(out.data, "oversubscribe"));
    config.oversubscribe = true;
    line_of(&config, 4, &out);
    assert_non_null(strstr(out.data, " --oversubscribe "));
    assert_non_null(strstr(out.data, " mpi_yield_when_idle 1 "));
    config = (struct launch_config){ .n_ranks = 4, .program = "/g" };
    setenv("SLURM_JOB_ID", "7", 1);
    line_of(&config, 4, &out);
    unsetenv("SLURM_JOB_ID");
    assert_null(strstr(out.data, "oversubscribe"));
    buf_fini(&out);
}

static void test_launch_command__user_words_win(void **state)
{
    const struct launch_config config = { .n_ranks = 2,
                                          .program = "/g",
                                          .extra = "  --bind-to numa   --mca btl self,tcp " };
    struct buf out = BUF_INIT;

    (void)state;
    line_of(&config, 4, &out);
    assert_null(strstr(out.data, "--bind-to none"));
    assert_non_null(strstr(out.data, " --bind-to numa --mca btl self,tcp /g"));
    buf_fini(&out);
}

static void test_launch_command__versions_differ(void **state)
{
    const struct launch_config config = { .n_ranks = 2, .program = "/g" };
    struct buf out = BUF_INIT;

    (void)state;
    line_of(&config, 5, &out);
    assert_non_null(strstr(out.data, "--prtemca"));
    assert_null(strstr(out.data, "--mca odls"));
    line_of(&config, 9, &out);
    assert_null(strstr(out.data, "mca"));
    assert_non_null(strstr(out.data, "mpirun -n 2 "));
    buf_fini(&out);
}

static void test_launch_command__is_bounded(void **state)
{
    const struct launch_config config = { .n_ranks = 2, .program = "/g" };
    const struct launch_config none = { .n_ranks = 0, .program = "/g" };
    const char *argv[4];
    struct buf text = BUF_INIT;
    struct err err = ERR_INIT;

    (void)state;
    assert_int_equal(launch_command(&config, 4, argv, 4, &text, &err), ST_ERR_LIMIT);
    assert_int_equal(launch_command(&none, 4, argv, 4, &text, &err), ST_ERR_ARG);
    buf_fini(&text);
}

/* ---- version ---- */

static void test_launch_probe__reads_the_major_version(void **state)
{
    const struct place *p = *state;
    struct err err = ERR_INIT;
    uint32_t major = 0;
    char line[64];

    write_script(p, "printf 'mpirun (Open MPI) 5.0.3\\n\\nReport bugs\\n'", "");
    assert_int_equal(launch_probe(p->script, &major, line, sizeof(line), &err), ST_OK);
    assert_int_equal(major, 5);
    assert_string_equal(line, "mpirun (Open MPI) 5.0.3");
}

static void test_launch_probe__refuses_another_mpi(void **state)
{
    const struct place *p = *state;
    struct err err = ERR_INIT;
    uint32_t major = 0;
    char line[64];

    write_script(p, "echo 'HYDRA build details: 4.0'", "");
    assert_int_equal(launch_probe(p->script, &major, line, sizeof(line), &err), ST_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "HYDRA"));
    assert_int_equal(major, 0);
}

static void test_launch_probe__says_what_is_missing(void **state)
{
    struct err err = ERR_INIT;
    uint32_t major;
    char line[64];

    (void)state;
    assert_int_equal(launch_probe("no-such-mpirun", &major, line, sizeof(line), &err),
                     ST_ERR_NOT_FOUND);
    assert_non_null(strstr(err.text, "openmpi-bin"));
    assert_int_equal(launch_probe("/no/such/mpirun", &major, line, sizeof(line), &err),
                     ST_ERR_NOT_FOUND);
    assert_non_null(strstr(err.text, "/no/such/mpirun"));
}

/* ---- life ---- */

static void test_launch__code_and_tail_are_those_of_the_child(void **state)
{
    const struct place *p = *state;
    struct launch *l;

    write_script(p, v4, "echo first; echo 'the last words' >&2; exit 37");
    l = start(p, NULL);
    assert_int_equal(run_out(l, false), 37);
    assert_string_equal(launch_tail(l), "first\nthe last words");
    launch_destroy(l);
    /* a second launch appends, and its tail is its own */
    write_script(p, v4, "echo again; kill -9 $$");
    l = start(p, NULL);
    assert_int_equal(run_out(l, false), 137);
    assert_string_equal(launch_tail(l), "again");
    launch_destroy(l);
}

static void test_launch__tail_is_cut_at_a_line(void **state)
{
    const struct place *p = *state;
    struct launch *l;
    const char *tail;

    write_script(p, v4, "i=0; while [ $i -lt 500 ]; do echo line $i end; i=$((i+1)); done");
    l = start(p, NULL);
    assert_int_equal(run_out(l, false), 0);
    tail = launch_tail(l);
    assert_true(strlen(tail) <= 2048 && strlen(tail) > 1900);
    assert_memory_equal(tail, "line ", 5);
    assert_string_equal(tail + strlen(tail) - 12, "line 499 end");
    launch_destroy(l);
}

/* What ranks write of their last steps stays in the log, and does not hide the words before it. */
static void test_launch__tail_leaves_trails_out(void **state)
{
    const struct place *p = *state;
    struct launch *l;

    write_script(p, v4,
                 "echo 'the reason'; i=0; while [ $i -lt 500 ]; do echo trail r1 step $i; "
                 "i=$((i+1)); done; echo 'trail mix'; echo trail r0 x");
    l = start(p, NULL);
    assert_int_equal(run_out(l, false), 0);
    assert_string_equal(launch_tail(l), "the reason\ntrail mix");
    launch_destroy(l);
}

static void test_launch__a_long_last_line_is_cut_in_front(void **state)
{
    const struct place *p = *state;
    struct launch *l;

    write_script(p, v4,
                 "echo first; i=0; while [ $i -lt 900 ]; do printf abc; i=$((i+1)); done; "
                 "echo end");
    l = start(p, NULL);
    assert_int_equal(run_out(l, false), 0);
    assert_int_equal(strlen(launch_tail(l)), 2047); /* and its newline */
    assert_string_equal(launch_tail(l) + 2047 - 9, "abcabcend");
    launch_destroy(l);
}

static void test_launch__names_the_rank_that_a_signal_ended(void **state)
{
    static const struct {
        const char *says, *signal; /* NULL: no word about a rank */
        uint32_t rank;
    } cases[] = {
        { "mpirun noticed that process rank 3 with PID 0 on node a exited on signal 9 (Killed).",
          "signal 9 (Killed)", 3 },
        { "prterun noticed that process rank 17 with PID 21 on node a.b.c exited on\n"
          "signal 11 (Segmentation fault).",
          "signal 11 (Segmentation fault)", 17 },
        { "MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD", NULL, 0 },
        { "mpirun noticed that process rank x with PID 0 on node a exited on signal 9.", NULL, 0 },
        { "mpirun noticed that process rank 2 with PID 0", NULL, 0 },
        { "", NULL, 0 },
    };
    const struct place *p = *state;

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char script[256], how[64] = "";
        uint32_t rank = 99;
        struct launch *l;

        snprintf(script, sizeof(script), "echo '%s'", cases[i].says);
        write_script(p, v4, script);
        l = start(p, NULL);
        assert_int_equal(run_out(l, false), 0);
        assert_int_equal(launch_culprit(l, &rank, how, sizeof(how)), cases[i].signal != NULL);
        assert_string_equal(how, cases[i].signal != NULL ? cases[i].signal : "");
        assert_int_equal(rank, cases[i].signal != NULL ? cases[i].rank : 99);
        launch_destroy(l);
    }
}

static void test_launch__child_has_no_descriptor_of_ours(void **state)
{
    const struct place *p = *state;
    const int leaked = dup(2); /* without CLOEXEC */
    struct launch *l;

    assert_true(leaked > 2);
    /* No pipeline: the shell holds its ends for a moment, and a child may count them. */
    write_script(p, v4, "set -- /proc/$$/fd/* ; echo $# ; exec readlink /proc/self/fd/0");
    l = start(p, NULL);
    assert_int_equal(run_out(l, false), 0);
    /* 0, 1, 2, the script itself, which the shell has open at 10 or 255, and the folder while it is
     * read */
    assert_string_equal(launch_tail(l), "5\n/dev/null");
    launch_destroy(l);
    close(leaked);
}

static void test_launch__environment_of_a_job_is_dropped(void **state)
{
    const struct place *p = *state;
    struct launch *l;

    setenv("PMIX_RANK", "3", 1);
    setenv("OMPI_COMM_WORLD_RANK", "3", 1);
    setenv("OMPI_MCA_orte_tmpdir_base", "/x", 1);
    write_script(p, v4, "echo \"[$PMIX_RANK$OMPI_COMM_WORLD_RANK] $OMPI_MCA_orte_tmpdir_base\"");
    l = start(p, NULL);
    unsetenv("PMIX_RANK");
    unsetenv("OMPI_COMM_WORLD_RANK");
    unsetenv("OMPI_MCA_orte_tmpdir_base");
    assert_int_equal(run_out(l, false), 0);
    assert_string_equal(launch_tail(l), "[] /x");
    launch_destroy(l);
}

static void test_launch__end_is_orderly_when_the_child_obeys(void **state)
{
    const struct place *p = *state;
    uint64_t begin_ns;
    struct launch *l;

    write_script(p, v4, "trap 'echo ending; exit 5' TERM; echo up; while :; do sleep 0.02; done");
    l = start(p, NULL);
    while (!strstr(launch_tail(l), "up")) {
        nap_ms(5);
    }
    begin_ns = clock_now_ns(clock_real());
    assert_int_equal(run_out(l, true), 5);
    assert_true(clock_now_ns(clock_real()) - begin_ns < 900 * NS_PER_MS);
    assert_non_null(strstr(launch_tail(l), "ending"));
    launch_destroy(l);
}

static void test_launch__second_term_comes_after_a_second(void **state)
{
    const struct place *p = *state;
    uint64_t begin_ns, ms;
    struct launch *l;

    write_script(p, v4,
                 "n=0; trap 'n=$((n+1)); if [ $n = 2 ]; then exit 6; fi' TERM; echo up\n"
                 "while :; do sleep 0.02; done");
    l = start(p, NULL);
    while (!strstr(launch_tail(l), "up")) {
        nap_ms(5);
    }
    begin_ns = clock_now_ns(clock_real());
    assert_int_equal(run_out(l, true), 6);
    ms = (clock_now_ns(clock_real()) - begin_ns) / NS_PER_MS;
    assert_true(ms >= 990 && ms < 2900);
    launch_destroy(l);
}

static bool lives(int pid)
{
    char path[64], text[256] = "";
    const char *bracket;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    fd = open(path, O_RDONLY);
    if (fd < 0) {
        return false;
    }
    if (read(fd, text, sizeof(text) - 1) < 0) {
        text[0] = '\0';
    }
    close(fd);
    bracket = strrchr(text, ')');
    return bracket && bracket[2] != 'Z';
}

/* The child starts a "rank" in a process group of its own that ignores SIGTERM, as mpirun's are. */
static const char with_rank[] =
    "set -m; trap '' TERM\n"
    "sh -c 'trap \"\" TERM; echo rank $$; while :; do sleep 0.05; done' &\n"
    "while :; do sleep 0.02; done";

static int rank_pid(struct launch *l)
{
    const char *at;

    while (!(at = strstr(launch_tail(l), "rank "))) {
        nap_ms(5);
    }
    nap_ms(20);
    return (int)strtol(strstr(launch_tail(l), "rank ") + 5, NULL, 10);
}

static void test_launch__destroy_leaves_no_rank(void **state)
{
    const struct place *p = *state;
    struct launch *l;
    int rank, pid;

    write_script(p, v4, with_rank);
    l = start(p, NULL);
    pid = launch_pid(l);
    rank = rank_pid(l);
    assert_true(rank > 1 && rank != pid && lives(rank) && lives(pid));
    launch_destroy(l);
    assert_false(lives(rank));
    assert_false(lives(pid));
    launch_destroy(NULL);
}

static void test_launch__ranks_left_by_mpirun_are_swept(void **state)
{
    const struct place *p = *state;
    struct launch *l;
    int rank;

    write_script(p, v4, with_rank);
    l = start(p, NULL);
    rank = rank_pid(l);
    assert_true(lives(rank));
    assert_int_equal(kill(launch_pid(l), SIGKILL), 0);
    assert_int_equal(run_out(l, false), 137);
    assert_false(lives(rank));
    launch_destroy(l);
}

static void test_launch__stubborn_child_is_killed_after_3_s(void **state)
{
    const struct place *p = *state;
    const uint64_t false_start = clock_now_ns(clock_real());
    struct launch *l;
    int rank, code = -1;

    write_script(p, v4, with_rank);
    l = start(p, NULL);
    rank = rank_pid(l);
    launch_end(l, false_start); /* time is an argument: no need to wait for it */
    launch_end(l, false_start + NS_PER_S);
    launch_end(l, false_start + 2 * NS_PER_S);
    nap_ms(50);
    assert_int_equal(launch_poll(l, &code), ST_BUSY);
    launch_end(l, false_start + 3 * NS_PER_S);
    assert_int_equal(run_out(l, false), 137);
    assert_false(lives(rank));
    launch_destroy(l);
}

/* A process that starts a job and is killed: the job gets SIGTERM. */
static void test_launch__job_ends_with_its_starter(void **state)
{
    const struct place *p = *state;
    int fds[2], pid, job = 0;

    write_script(p, v4, "while :; do sleep 0.02; done");
    assert_int_equal(pipe(fds), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct launch *l = start(p, NULL);
        const int mine = launch_pid(l);

        (void)!write(fds[1], &mine, sizeof(mine));
        for (;;) {
            pause();
        }
    }
    assert_int_equal(read(fds[0], &job, sizeof(job)), sizeof(job));
    assert_true(lives(job));
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    for (int i = 0; i < 200 && lives(job); i++) {
        nap_ms(10);
    }
    assert_false(lives(job));
    close(fds[0]);
    close(fds[1]);
}

/* ---- the real one ---- */

static bool have_mpirun(void)
{
    struct err err = ERR_INIT;
    uint32_t major;
    char line[64];

    return launch_probe(NULL, &major, line, sizeof(line), &err) == ST_OK;
}

static void test_launch__real_mpirun_runs_two_ranks(void **state)
{
    static const char *const args[] = { "-c", "echo rank $OMPI_COMM_WORLD_RANK; exit 3", NULL };
    const struct place *p = *state;
    const struct launch_config config = {
        .n_ranks = 2, .program = "/bin/sh", .args = args, .log_dir = p->dir
    };
    struct launch *l = NULL;
    struct err err = ERR_INIT;
    int code;

    if (!have_mpirun()) {
        skip();
    }
    assert_int_equal(launch_start(&config, &l, &err), ST_OK);
    code = run_out(l, false);
    if (code != 3) {
        fail_msg("code %d: %s", code, launch_tail(l));
    }
    launch_destroy(l);
}

static void test_launch__real_mpirun_ends_in_a_second(void **state)
{
    static const char *const args[] = { "-c",
                                        "trap '' TERM; echo rank $$; while :; do sleep 0.1; done",
                                        NULL };
    const struct place *p = *state;
    const struct launch_config config = {
        .n_ranks = 2, .program = "/bin/sh", .args = args, .log_dir = p->dir
    };
    struct launch *l = NULL;
    struct err err = ERR_INIT;
    uint64_t begin_ns;
    int rank;

    if (!have_mpirun()) {
        skip();
    }
    assert_int_equal(launch_start(&config, &l, &err), ST_OK);
    rank = rank_pid(l);
    assert_true(lives(rank));
    begin_ns = clock_now_ns(clock_real());
    assert_true(run_out(l, true) > 0);
    assert_true(clock_now_ns(clock_real()) - begin_ns < 2500 * NS_PER_MS);
    assert_false(lives(rank));
    launch_destroy(l);
}

static void test_launch__real_ranks_end_with_the_starter(void **state)
{
    static const char *const args[] = { "-c", "echo rank $$; exec sleep 60", NULL };
    const struct place *p = *state;
    const struct launch_config config = {
        .n_ranks = 1, .program = "/bin/sh", .args = args, .log_dir = p->dir
    };
    int fds[2], pid, rank = 0;

    if (!have_mpirun()) {
        skip();
    }
    assert_int_equal(pipe(fds), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct launch *l = NULL;
        struct err err = ERR_INIT;

        if (launch_start(&config, &l, &err) == ST_OK) {
            rank = rank_pid(l);
        }
        (void)!write(fds[1], &rank, sizeof(rank));
        for (;;) {
            pause();
        }
    }
    assert_int_equal(read(fds[0], &rank, sizeof(rank)), sizeof(rank));
    assert_true(rank > 1 && lives(rank));
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    for (int i = 0; i < 300 && lives(rank); i++) {
        nap_ms(10);
    }
    assert_false(lives(rank));
    close(fds[0]);
    close(fds[1]);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_launch_command__has_program_and_arguments_last),
        CASE(test_launch_command__overbooks_only_this_host),
        CASE(test_launch_command__user_words_win),
        CASE(test_launch_command__versions_differ),
        CASE(test_launch_command__is_bounded),
        CASE(test_launch_probe__reads_the_major_version),
        CASE(test_launch_probe__refuses_another_mpi),
        CASE(test_launch_probe__says_what_is_missing),
        CASE(test_launch__code_and_tail_are_those_of_the_child),
        CASE(test_launch__tail_is_cut_at_a_line),
        CASE(test_launch__tail_leaves_trails_out),
        CASE(test_launch__a_long_last_line_is_cut_in_front),
        CASE(test_launch__names_the_rank_that_a_signal_ended),
        CASE(test_launch__child_has_no_descriptor_of_ours),
        CASE(test_launch__environment_of_a_job_is_dropped),
        CASE(test_launch__end_is_orderly_when_the_child_obeys),
        CASE(test_launch__second_term_comes_after_a_second),
        CASE(test_launch__destroy_leaves_no_rank),
        CASE(test_launch__ranks_left_by_mpirun_are_swept),
        CASE(test_launch__stubborn_child_is_killed_after_3_s),
        CASE(test_launch__job_ends_with_its_starter),
        CASE(test_launch__real_mpirun_runs_two_ranks),
        CASE(test_launch__real_mpirun_ends_in_a_second),
        CASE(test_launch__real_ranks_end_with_the_starter),
    };

    log_init(LOG_ERROR, 2);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
