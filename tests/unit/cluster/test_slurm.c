/* What SLURM says of a job, as rows; refusals name the variable and the word. */
#include "cluster/slurm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- hostlists ---- */

static void expect_hosts(const char *text, const char *due)
{
    struct hostlist list;
    struct err err = ERR_INIT;
    char got[4096] = "";

    if (hostlist_expand("LIST", text, &list, &err) != ST_OK) {
        fail_msg("\"%s\": %s", text, err.text);
    }
    for (uint32_t i = 0; i < list.n; i++) {
        strcat(got, i > 0 ? " " : "");
        strcat(got, list.names[i]);
    }
    assert_string_equal(got, due);
    hostlist_fini(&list);
}

static void refuse_hosts(const char *text, status due, const char *sentence)
{
    struct hostlist list = { .n = 77 };
    struct err err = ERR_INIT;

    assert_int_equal(hostlist_expand("LIST", text, &list, &err), due);
    if (!strstr(err.text, sentence) || !strstr(err.text, "LIST")) {
        fail_msg("no \"%s\" in: %s", sentence, err.text);
    }
    assert_int_equal(list.n, 77);
}

static void test_hostlist__expands_ranges_lists_and_products(void **state)
{
    (void)state;
    expect_hosts("n1", "n1");
    expect_hosts("n[1-3]", "n1 n2 n3");
    expect_hosts("login,gpu[08-11,2],x-1.example.org",
                 "login gpu08 gpu09 gpu10 gpu11 gpu2 x-1.example.org");
    expect_hosts("rack[0-1]u[1-2]s,z", "rack0u1s rack0u2s rack1u1s rack1u2s z");
    expect_hosts("n[098-101]", "n098 n099 n100 n101");
    expect_hosts("n[4294967]", "n4294967");
}

static void test_hostlist__refusals_name_the_place(void **state)
{
    (void)state;
    refuse_hosts("", ST_ERR_FORMAT, "a name is missing");
    refuse_hosts("a,,b", ST_ERR_FORMAT, "a name is missing");
    refuse_hosts("a,", ST_ERR_FORMAT, "a name is missing");
    refuse_hosts("n[1-3", ST_ERR_FORMAT, "not closed");
    refuse_hosts("n[]", ST_ERR_FORMAT, "not a number");
    refuse_hosts("n[a]", ST_ERR_FORMAT, "not a number");
    refuse_hosts("n[1-]", ST_ERR_FORMAT, "not a number");
    refuse_hosts("n[1;2]", ST_ERR_FORMAT, "neither");
    refuse_hosts("n[3-1]", ST_ERR_FORMAT, "ends before it begins");
    refuse_hosts("n]1", ST_ERR_FORMAT, "not a host name");
    refuse_hosts("n\x01", ST_ERR_FORMAT, "\"?\"");
    refuse_hosts("n[1234567890]", ST_ERR_FORMAT, "more than 9 digits");
    refuse_hosts("a[1]b[1]c[1]d[1]e[1]", ST_ERR_FORMAT, "more than 4 brackets");
}

static void test_hostlist__is_bounded(void **state)
{
    char name[300];

    (void)state;
    refuse_hosts("n[0-999999999]", ST_ERR_LIMIT, "a range of 1000000000 hosts");
    refuse_hosts("n[0-4095],m", ST_ERR_LIMIT, "more than 4096 hosts");
    refuse_hosts("a[0-999]b[0-999]c[0-999]d[0-999]", ST_ERR_LIMIT, "more than 4096 hosts");
    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    refuse_hosts(name, ST_ERR_FORMAT, "more than 255 bytes");
    memcpy(name + 250, "[1-2]", 6);
    name[255] = '\0';
    struct hostlist list;
    assert_int_equal(hostlist_expand("LIST", name, &list, NULL), ST_OK);
    assert_int_equal(strlen(list.names[1]), 251);
    hostlist_fini(&list);
    memcpy(name + 250, "[000001-2]", 11);
    refuse_hosts(name, ST_ERR_FORMAT, "more than 255 bytes");
}

/* ---- the environment ---- */

static const char *get(void *arg, const char *name)
{
    const char *const *words = arg;
    const size_t len = strlen(name);

    for (; *words; words++) {
        if (strncmp(*words, name, len) == 0 && (*words)[len] == '=') {
            return *words + len + 1;
        }
    }
    return NULL;
}

#define READ(job, err, ...)                                                                        \
    slurm_job_read(get, (const char *[]){ "SLURM_JOB_ID=12", __VA_ARGS__, NULL }, (job), (err))

static void test_slurm_job__is_a_row_per_node(void **state)
{
    struct slurm_job job;

    (void)state;
    assert_int_equal(READ(&job, NULL, "SLURM_JOB_NODELIST=n[1-3],gpu7",
                          "SLURM_TASKS_PER_NODE=2(x3),1", "SLURM_JOB_CPUS_PER_NODE=8(x2),4,16",
                          "SLURM_MEM_PER_NODE=2048", "SLURM_GPUS_ON_NODE=4", "SLURMD_NODENAME=n2",
                          "SLURM_RESTART_COUNT=1", "SLURM_JOB_END_TIME=1795300000"),
                     ST_OK);
    assert_string_equal(job.id, "12");
    assert_string_equal(job.squeue_id, "12");
    assert_int_equal(job.n_nodes, 4);
    assert_int_equal(job.n_restarts, 1);
    assert_int_equal(job.end_s, 1795300000);
    assert_string_equal(job.nodes[3].name, "gpu7");
    assert_int_equal(job.nodes[0].tasks, 2);
    assert_int_equal(job.nodes[3].tasks, 1);
    assert_int_equal(job.nodes[1].cpus, 8);
    assert_int_equal(job.nodes[2].cpus, 4);
    assert_int_equal(job.nodes[3].cpus, 16);
    assert_int_equal(job.nodes[3].gpus, 4);
    assert_int_equal(job.nodes[0].memory_bytes, (uint64_t)2048 << 20);
    assert_true(job.nodes[1].is_here);
    assert_false(job.nodes[0].is_here);
    slurm_job_fini(&job);
}

static void test_slurm_job__memory_comes_by_node_cpu_or_gpu(void **state)
{
    struct slurm_job job;

    (void)state;
    assert_int_equal(READ(&job, NULL, "SLURM_JOB_NODELIST=n1", "SLURM_JOB_CPUS_PER_NODE=3",
                          "SLURM_MEM_PER_CPU=100"),
                     ST_OK);
    assert_int_equal(job.nodes[0].memory_bytes, (uint64_t)300 << 20);
    assert_int_equal(job.nodes[0].tasks, 1);
    slurm_job_fini(&job);
    assert_int_equal(
        READ(&job, NULL, "SLURM_JOB_NODELIST=n1", "SLURM_JOB_GPUS=0,2-3", "SLURM_MEM_PER_GPU=10"),
        ST_OK);
    assert_int_equal(job.nodes[0].gpus, 3);
    assert_int_equal(job.nodes[0].memory_bytes, (uint64_t)30 << 20);
    slurm_job_fini(&job);
}

static void test_slurm_job__an_elements_number_is_not_asked_for(void **state)
{
    struct slurm_job job;

    (void)state;
    assert_int_equal(
        READ(&job, NULL, "SLURM_JOB_NODELIST=n1", "SLURM_ARRAY_JOB_ID=12", "SLURM_ARRAY_TASK_ID=0"),
        ST_OK);
    assert_string_equal(job.id, "12");
    assert_string_equal(job.squeue_id, "12_0");
    slurm_job_fini(&job);
}

static void test_slurm_job__inside_a_step_tasks_are_not_the_jobs(void **state)
{
    struct slurm_job job;

    (void)state;
    assert_int_equal(
        READ(&job, NULL, "SLURM_JOB_NODELIST=n[1-2]", "SLURM_STEP_ID=0", "SLURM_TASKS_PER_NODE=5"),
        ST_OK);
    assert_true(job.is_step);
    assert_int_equal(job.nodes[1].tasks, 1);
    slurm_job_fini(&job);
}

static void refuse_job(const char *word, const char *sentence)
{
    struct slurm_job job = { .n_nodes = 77 };
    struct err err = ERR_INIT;

    assert_int_equal(READ(&job, &err, word, "SLURM_JOB_NODELIST=n[1-3]"), ST_ERR_FORMAT);
    if (!strstr(err.text, sentence)) {
        fail_msg("no \"%s\" in: %s", sentence, err.text);
    }
    assert_int_equal(job.n_nodes, 77);
}

static void test_slurm_job__refusals_name_the_variable(void **state)
{
    struct slurm_job job;
    struct err err = ERR_INIT;

    (void)state;
    refuse_job("SLURM_TASKS_PER_NODE=2(x2)", "SLURM_TASKS_PER_NODE=\"2(x2)\": fewer nodes");
    refuse_job("SLURM_TASKS_PER_NODE=2(x4)", "more nodes");
    refuse_job("SLURM_TASKS_PER_NODE=0(x3)", "not a list of counts");
    refuse_job("SLURM_TASKS_PER_NODE=1(x", "not a list of counts");
    refuse_job("SLURM_TASKS_PER_NODE=1;1,1", "not a list of counts");
    refuse_job("SLURM_JOB_CPUS_PER_NODE=99999999(x3)", "SLURM_JOB_CPUS_PER_NODE");
    refuse_job("SLURM_MEM_PER_NODE=4G", "SLURM_MEM_PER_NODE=\"4G\": not a number");
    refuse_job("SLURM_GPUS_ON_NODE=9999", "SLURM_GPUS_ON_NODE");
    refuse_job("SLURM_JOB_END_TIME=99999999999999999999", "SLURM_JOB_END_TIME");
    refuse_job("SLURM_JOB_NODELIST=n[1", "SLURM_JOB_NODELIST");
    assert_int_equal(slurm_job_read(get, (const char *[]){ "SLURM_JOB_ID=1", NULL }, &job, &err),
                     ST_ERR_NOT_FOUND);
    assert_false(slurm_in_job(get, (const char *[]){ "SLURM_JOB_ID=1", NULL }));
}

/* ---- what commands print ---- */

static void expect_left(const char *text, uint64_t due)
{
    uint64_t s = 77;
    struct err err = ERR_INIT;

    if (slurm_time_left_parse(text, &s, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    assert_int_equal(s, due);
}

static void test_slurm_print__time_left(void **state)
{
    static const char *const bad[] = { "",      "a",       "1:",      ":1", "1-",
                                       "1-2-3", "1:2:3:4", "1234567", "1 2" };

    (void)state;
    expect_left("59\n", 59);
    expect_left("5:00\n", 300);
    expect_left("1:02:03", 3723);
    expect_left("2-01:00:00\n", 2 * 86400 + 3600);
    expect_left("UNLIMITED\n", 0);
    expect_left("INVALID\n", 0);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        uint64_t s = 77;
        assert_int_equal(slurm_time_left_parse(bad[i], &s, NULL), ST_ERR_FORMAT);
        assert_int_equal(s, 77);
    }
}

static void test_slurm_print__kill_wait(void **state)
{
    uint64_t s = 77;

    (void)state;
    assert_int_equal(
        slurm_kill_wait_parse("Configuration data as of ...\nKeepAliveTime = SYSTEM_DEFAULT\n"
                              "KillOnBadExit           = 0\n"
                              "KillWait                = 30 sec\n",
                              &s, NULL),
        ST_OK);
    assert_int_equal(s, 30);
    assert_int_equal(slurm_kill_wait_parse("KillWait = x\n", &s, NULL), ST_ERR_FORMAT);
    assert_int_equal(slurm_kill_wait_parse("KillWait = 99999999999999999999999\n", &s, NULL),
                     ST_ERR_FORMAT);
    assert_int_equal(s, 30);
    assert_int_equal(slurm_kill_wait_parse("\n\n", &s, NULL), ST_OK);
    assert_int_equal(s, 0);
}

static void test_slurm_print__racks(void **state)
{
    struct slurm_node nodes[3] = { { .name = "n1" }, { .name = "n3" }, { .name = "z" } };
    struct slurm_job job = { .n_nodes = 3, .nodes = nodes };

    (void)state;
    assert_int_equal(
        slurm_racks_parse("SwitchName=s0 Level=0 LinkSpeed=1 Nodes=n[1-2]\n"
                          "SwitchName=s1 Level=0 LinkSpeed=1 Nodes=n[3-4]\n"
                          "SwitchName=top Level=1 LinkSpeed=1 Nodes=n[1-4] Switches=s[0-1]\n",
                          &job, NULL),
        ST_OK);
    assert_string_equal(nodes[0].rack, "s0");
    assert_string_equal(nodes[1].rack, "s1");
    assert_string_equal(nodes[2].rack, "");
    assert_int_equal(slurm_racks_parse("SwitchName=s0 Level=0 Nodes=n[1-\n", &job, NULL),
                     ST_ERR_FORMAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostlist__expands_ranges_lists_and_products),
        cmocka_unit_test(test_hostlist__refusals_name_the_place),
        cmocka_unit_test(test_hostlist__is_bounded),
        cmocka_unit_test(test_slurm_job__is_a_row_per_node),
        cmocka_unit_test(test_slurm_job__memory_comes_by_node_cpu_or_gpu),
        cmocka_unit_test(test_slurm_job__an_elements_number_is_not_asked_for),
        cmocka_unit_test(test_slurm_job__inside_a_step_tasks_are_not_the_jobs),
        cmocka_unit_test(test_slurm_job__refusals_name_the_variable),
        cmocka_unit_test(test_slurm_print__time_left),
        cmocka_unit_test(test_slurm_print__kill_wait),
        cmocka_unit_test(test_slurm_print__racks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
