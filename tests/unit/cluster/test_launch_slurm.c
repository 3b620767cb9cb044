/* What a launch does differently inside a job of SLURM's: scripts stand in for mpirun and srun. */
#include "cluster/launch.h"

#include "base/clock.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

struct place {
    char dir[64], path[4096], log[96], hosts[96];
};

static void write_file(const char *dir, const char *name, const char *text, mode_t mode)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    fclose(f);
    assert_int_equal(chmod(path, mode), 0);
}

static int setup(void **state)
{
    struct place *p = calloc(1, sizeof(*p));

    assert_non_null(p);
    snprintf(p->dir, sizeof(p->dir), "/tmp/gantry-launch-XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    snprintf(p->log, sizeof(p->log), "%s/mpirun.log", p->dir);
    snprintf(p->hosts, sizeof(p->hosts), "%s/hosts", p->dir);
    snprintf(p->path, sizeof(p->path), "%s:%s", p->dir, getenv("PATH"));
    setenv("PATH", p->path, 1);
    setenv("SLURM_JOB_ID", "12", 1);
    write_file(p->dir, "hosts", "b slots=2\na\nc slots=4\n", 0600);
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    static const char *const names[] = { "mpirun", "srun", "mpirun.log", "hosts" };
    struct place *p = *state;
    char path[128];

    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        snprintf(path, sizeof(path), "%s/%s", p->dir, names[i]);
        unlink(path);
    }
    assert_int_equal(rmdir(p->dir), 0); /* nothing else is left there */
    setenv("PATH", p->path + strlen(p->dir) + 1, 1);
    unsetenv("SLURM_JOB_ID");
    free(p);
    return 0;
}

static const char *const worker_args[] = { "worker", "M", NULL };

static struct launch_config config_of(const struct place *p, enum launch_kind kind)
{
    return (struct launch_config){ .kind = kind,
                                   .n_ranks = 3,
                                   .hostfile = p->hosts,
                                   .program = "/opt/gantry",
                                   .args = worker_args,
                                   .log_dir = p->dir,
                                   .in_slurm = true };
}

/* Until it has ended by itself (end_sig: 0) or by launch_end; its code. */
static int run_out(struct launch *l, bool ending)
{
    const uint64_t until = clock_now_ns(clock_real()) + 20 * NS_PER_S;
    const struct timespec nap = { .tv_nsec = 5 * (long)NS_PER_MS };
    int code = -1;

    while (launch_poll(l, &code) == ST_BUSY && clock_now_ns(clock_real()) < until) {
        if (ending) {
            launch_end(l, clock_now_ns(clock_real()));
        }
        (void)nanosleep(&nap, NULL);
    }
    return code;
}

static void expect_said(struct launch *l, const char *words)
{
    const char *tail = launch_tail(l);

    if (!strstr(tail, words)) {
        fail_msg("no \"%s\" in: %s", words, tail);
    }
}

static void expect_line(const struct launch_config *config, uint32_t major, const char *words,
                        bool is_there)
{
    struct buf line = BUF_INIT;
    struct err err = ERR_INIT;

    assert_int_equal(launch_command_line(config, major, &line, &err), ST_OK);
    if ((strstr(line.data, words) != NULL) != is_there) {
        fail_msg("\"%s\" in: %s", words, line.data);
    }
    buf_fini(&line);
}

/* ---- mpirun ---- */

static void test_launch_slurm__daemons_are_started_deaf_to_sigterm(void **state)
{
    struct launch_config c = config_of(*state, LAUNCH_MPIRUN);

    expect_line(&c, 4, "--mca orte_launch_agent '/opt/gantry hold orted'", true);
    expect_line(&c, 5, "--prtemca prte_launch_agent '/opt/gantry hold prted'", true);
    c.in_slurm = false;
    expect_line(&c, 4, "orte_launch_agent", false);
    c.in_slurm = true;
    c.extra = "--mca orte_launch_agent mine";
    expect_line(&c, 4, "hold", false);
}

static void test_launch_slurm__a_path_with_a_space_goes_without_the_agent(void **state)
{
    struct launch_config c = config_of(*state, LAUNCH_MPIRUN);

    c.program = "/my programs/gantry";
    expect_line(&c, 4, "orte_launch_agent", false);
}

/* This program in the place of mpirun: a shell would clear the mask of signals that it begins with. */
static void on_end_signal(int sig)
{
    _exit(sig == SIGINT ? 5 : 6);
}

NORETURN static void play_mpirun(const char *option)
{
    if (strcmp(option, "--version") == 0) {
        puts("mpirun (Open MPI) 4.1.4");
        exit(0);
    }
    signal(SIGINT, on_end_signal);
    signal(SIGTERM, on_end_signal);
    raise(SIGTERM);
    puts("began");
    fflush(stdout);
    for (;;) {
        pause();
    }
}

static void test_launch_slurm__mpirun_holds_sigterm_off_and_ends_on_sigint(void **state)
{
    char self[4096];
    struct launch_config c = config_of(*state, LAUNCH_MPIRUN);
    struct launch *l = NULL;
    struct err err = ERR_INIT;
    const ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

    assert_true(n > 0);
    self[n] = '\0';
    c.mpirun = self;
    assert_int_equal(launch_start(&c, &l, &err), ST_OK);
    for (int i = 0; i < 2000 && !strstr(launch_tail(l), "began"); i++) {
        usleep(5000);
    }
    expect_said(l, "began");
    assert_int_equal(run_out(l, true), 5);
    launch_destroy(l);
}

static void test_launch_slurm__words_replace_and_remove_variables(void **state)
{
    static const char *const words[] = { "GANTRY_A=new", "GANTRY_B", "GANTRY_C=added", NULL };
    const struct place *p = *state;
    struct launch_config c = config_of(p, LAUNCH_MPIRUN);
    struct launch *l = NULL;

    setenv("GANTRY_A", "old", 1);
    setenv("GANTRY_B", "old", 1);
    setenv("GANTRY_BB", "kept", 1);
    c.env = words;
    write_file(p->dir, "mpirun",
               "#!/bin/sh\n[ \"$1\" = --version ] && { echo 'mpirun (Open MPI) 4.1.4'; exit; }\n"
               "echo \"$GANTRY_A ${GANTRY_B-none} $GANTRY_BB $GANTRY_C $SLURM_OVERLAP\"\n",
               0700);
    assert_int_equal(launch_start(&c, &l, NULL), ST_OK);
    assert_int_equal(run_out(l, false), 0);
    expect_said(l, "new none kept added 1");
    launch_destroy(l);
    unsetenv("GANTRY_A");
    unsetenv("GANTRY_B");
    unsetenv("GANTRY_BB");
}

/* ---- srun ---- */

static void write_srun(const struct place *p, const char *kinds, const char *body)
{
    char text[1024];

    snprintf(text, sizeof(text),
             "#!/bin/sh\ncase $1 in --version) echo slurm 22.05.8; exit;; --mpi=list) "
             "printf 'MPI plugin types are...\\n%s'; exit;; esac\n%s\n",
             kinds, body);
    write_file(p->dir, "srun", text, 0700);
}

static void test_launch_slurm__srun_gets_a_host_for_each_rank(void **state)
{
    const struct place *p = *state;
    struct launch_config c = config_of(p, LAUNCH_SRUN);
    struct launch *l = NULL;
    struct err err = ERR_INIT;

    expect_line(&c, 0,
                "srun --mpi=pmix --overlap --overcommit --kill-on-bad-exit=1 --cpu-bind=none "
                "--input=none --distribution=arbitrary --ntasks 3 /opt/gantry worker M",
                true);
    setenv("SLURM_NTASKS_PER_NODE", "1", 1);
    write_srun(p, "\\tpmix\\n\\tnone\\n",
               "tr '\\n' ' ' < $SLURM_HOSTFILE; echo \"${SLURM_NTASKS_PER_NODE-none}\"");
    if (launch_start(&c, &l, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    assert_int_equal(run_out(l, false), 0);
    expect_said(l, "b b a none");
    launch_destroy(l);
    unsetenv("SLURM_NTASKS_PER_NODE");
}

static void refuse_srun(const struct launch_config *c, status due, const char *sentence)
{
    struct launch *l = NULL;
    struct err err = ERR_INIT;

    assert_int_equal(launch_start(c, &l, &err), due);
    if (!strstr(err.text, sentence)) {
        fail_msg("no \"%s\" in: %s", sentence, err.text);
    }
    assert_null(l);
}

static void test_launch_slurm__srun_is_refused_with_a_word(void **state)
{
    const struct place *p = *state;
    struct launch_config c = config_of(p, LAUNCH_SRUN);

    write_srun(p, "\\tpmi2\\n\\tpmix_is_not_this\\n", "exit 0");
    refuse_srun(&c, ST_ERR_UNSUPPORTED, "names no pmix");
    write_srun(p, "\\tpmix\\n", "exit 0");
    c.n_ranks = 8;
    refuse_srun(&c, ST_ERR_LIMIT, "has 7 slots for 8 ranks");
    write_file(p->dir, "srun", "#!/bin/sh\necho no configuration\nexit 1\n", 0700);
    refuse_srun(&c, ST_ERR_UNSUPPORTED, "srun --mpi=list ends with code 1: no configuration");
    unsetenv("SLURM_JOB_ID");
    refuse_srun(&c, ST_ERR_UNSUPPORTED, "inside a job of SLURM");
}

static void test_launch_slurm__srun_names_the_rank_that_a_signal_ended(void **state)
{
    const struct place *p = *state;
    struct launch_config c = config_of(p, LAUNCH_SRUN);
    struct launch *l = NULL;
    uint32_t rank = 0;
    char words[64] = "";

    write_srun(
        p, "\\tpmix\\n",
        "echo 'srun: error: b: task 1: Killed'; echo 'srun: error: a: task 2: Killed'; exit 137");
    assert_int_equal(launch_start(&c, &l, NULL), ST_OK);
    assert_int_equal(run_out(l, false), 137);
    assert_true(launch_culprit(l, &rank, words, sizeof(words)));
    assert_int_equal(rank, 1);
    assert_string_equal(words, "a signal (Killed)");
    launch_destroy(l);
    write_srun(p, "\\tpmix\\n", "echo 'srun: error: b: task 1: Exited with exit code 6'; exit 6");
    assert_int_equal(launch_start(&c, &l, NULL), ST_OK);
    assert_int_equal(run_out(l, false), 6);
    assert_false(launch_culprit(l, &rank, words, sizeof(words)));
    launch_destroy(l);
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        play_mpirun(argv[1]);
    }
#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(test_launch_slurm__daemons_are_started_deaf_to_sigterm),
        CASE(test_launch_slurm__a_path_with_a_space_goes_without_the_agent),
        CASE(test_launch_slurm__mpirun_holds_sigterm_off_and_ends_on_sigint),
        CASE(test_launch_slurm__words_replace_and_remove_variables),
        CASE(test_launch_slurm__srun_gets_a_host_for_each_rank),
        CASE(test_launch_slurm__srun_is_refused_with_a_word),
        CASE(test_launch_slurm__srun_names_the_rank_that_a_signal_ended),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
