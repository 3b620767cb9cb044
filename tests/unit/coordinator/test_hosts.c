/* The hosts of a service (coordinator/cli/hosts.h): what is written for mpirun, who is blamed, and
 * where a replica comes back. */
#include "coordinator/cli/hosts.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* Five hosts of a slot each, the last of which has two; written to a file that is gone at the end. */
struct setting {
    char path[64], part[80];
    struct hosts *hosts;
};

static void open_as(struct setting *s, const char *lines, struct hosts_config config)
{
    struct err err = ERR_INIT;

    snprintf(s->path, sizeof(s->path), "hosts.XXXXXX");
    const int fd = mkstemp(s->path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, lines, strlen(lines)), (ssize_t)strlen(lines));
    close(fd);
    snprintf(s->part, sizeof(s->part), "%s.part", s->path);
    config.hostfile = s->path;
    s->hosts = NULL;
    const status st = hosts_open(&config, &s->hosts, &err);
    unlink(s->path);
    if (st != ST_OK) {
        fail_msg("%s", err.text);
    }
}

static void reads(struct setting *s, uint32_t replica, const char *due)
{
    struct buf text = BUF_INIT;
    struct err err = ERR_INIT;

    assert_int_equal(hosts_write(s->hosts, replica, s->part, &err), ST_OK);
    assert_int_equal(buf_read_file(&text, s->part, 1 << 16, &err), ST_OK);
    unlink(s->part);
    assert_string_equal(text.data, due);
    buf_fini(&text);
}

/* "s" silent, "a" absent, "." seen: by rank. */
static enum coord_rank_end end_of(void *arg, uint32_t rank)
{
    const char *ends = arg;

    return ends[rank] == 's'   ? COORD_RANK_SILENT
           : ends[rank] == 'a' ? COORD_RANK_ABSENT
                               : COORD_RANK_SEEN;
}

static void lost(struct setting *s, uint32_t replica, const char *ends, const char *due)
{
    struct err err = ERR_INIT;

    hosts_judge(s->hosts, replica, end_of, (void *)(uintptr_t)ends);
    if (hosts_place(s->hosts, replica, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    assert_string_equal(hosts_text(s->hosts, replica), due);
}

static void test_hosts__each_mpirun_reads_its_own_slots(void **state)
{
    struct setting s;
    struct buf text = BUF_INIT;

    (void)state;
    open_as(&s, "a slots=3 rack=r1\nb slots=3 rack=r2\nc slots=2 rack=r1\nd slots=2\n",
            (struct hosts_config){ .n_replicas = 2, .tp = 2, .pp = 2 });
    reads(&s, 0, "a slots=2\nc slots=2\n");
    reads(&s, 1, "b slots=2\nd slots=2\n");
    assert_int_equal(hosts_print(s.hosts, &text), ST_OK);
    assert_string_equal(text.data, "replica 0: a (ranks 0-1) in r1, c (ranks 2-3) in r1\n"
                                   "replica 1: b (ranks 0-1) in r2, d (ranks 2-3)\n"
                                   "spare: a (1 slot), b (1 slot)\n");
    buf_fini(&text);
    hosts_close(s.hosts);
}

static void is_at(const struct setting *s, uint32_t replica, uint32_t rank, const char *name,
                  uint32_t n_ranks)
{
    const struct hosts_spot spot = hosts_spot(s->hosts, replica, rank);

    assert_string_equal(spot.name, name);
    assert_int_equal(spot.n_ranks, n_ranks);
}

static void test_hosts__a_rank_has_a_spot_beside_the_ranks_of_all_replicas(void **state)
{
    struct setting s;

    (void)state;
    open_as(&s, "a slots=2\nb slots=4\n",
            (struct hosts_config){ .n_replicas = 2, .tp = 1, .pp = 2, .shares = true });
    is_at(&s, 0, 0, "a", 2);
    is_at(&s, 0, 1, "a", 2);
    is_at(&s, 1, 1, "b", 2);
    assert_int_not_equal(hosts_spot(s.hosts, 0, 0).host, hosts_spot(s.hosts, 1, 0).host);
    hosts_close(s.hosts);
    /* mpirun's own options decide: nobody knows the host; two ranks each on the average. */
    open_as(
        &s, "a slots=4\nb slots=4\n",
        (struct hosts_config){ .n_replicas = 1, .tp = 2, .pp = 2, .mpirun_args = "--map-by node" });
    is_at(&s, 0, 3, "", 2);
    assert_int_equal(hosts_spot(s.hosts, 0, 3).host, 1);
    hosts_close(s.hosts);
}

static void test_hosts__a_lost_one_is_replaced_and_remembered(void **state)
{
    struct setting s;

    (void)state;
    open_as(&s, "a\nb\nc\nd\ne slots=2\n",
            (struct hosts_config){ .n_replicas = 2, .tp = 1, .pp = 2 });
    assert_string_equal(hosts_text(s.hosts, 1), "c (rank 0), d (rank 1)");
    lost(&s, 1, ".s", "c (rank 0), e (rank 1); did not answer: d");
    lost(&s, 1, "..",
         "c (rank 0), e (rank 1); did not answer: d"); /* a rank was killed: it stays */
    lost(&s, 1, "s.", "e (ranks 0-1); did not answer: c, d");
    lost(&s, 1, "s.", "e (ranks 0-1); did not answer: c, d"); /* of a host's ranks one is alive */
    lost(&s, 1, "aa",
         "e (ranks 0-1); did not answer: c, d, e"); /* all are alike: once more there */
    lost(&s, 1, "aa", "c (rank 0), d (rank 1); did not answer: c, d, e");
    lost(&s, 1, "..", "c (rank 0), d (rank 1); did not answer: e"); /* they are back */
    hosts_close(s.hosts);
}

static void test_hosts__the_last_resort_is_a_host_that_another_uses(void **state)
{
    struct setting s;
    struct err err = ERR_INIT;
    struct hosts_config config = { .n_replicas = 2, .tp = 2, .pp = 1 };

    (void)state;
    open_as(&s, "a slots=4\nb slots=2\n", config);
    lost(&s, 1, "ss", "a (ranks 0-1); did not answer: b");
    hosts_close(s.hosts);
    config.alone = true; /* devices are not divided */
    open_as(&s, "a slots=4\nb slots=2\n", config);
    lost(&s, 1, "ss", "b (ranks 0-1); did not answer: b");
    assert_int_equal(hosts_place(s.hosts, 1, &err), ST_OK);
    hosts_close(s.hosts);
}

static void test_hosts__a_scheduler_gives_hosts_whole(void **state)
{
    struct setting s;

    (void)state;
    open_as(&s, "a slots=4\nb slots=4\nc slots=4\n",
            (struct hosts_config){ .n_replicas = 2, .tp = 2, .pp = 1, .in_scheduler = true });
    reads(&s, 0, "a slots=4\n");
    reads(&s, 1, "b slots=4\n");
    lost(&s, 1, "ss", "c (ranks 0-1); did not answer: b");
    hosts_close(s.hosts);
}

static void test_hosts__who_maps_ranks_himself_gets_all_hosts(void **state)
{
    struct setting s;

    (void)state;
    open_as(
        &s, "a slots=4\nb slots=4\nc slots=4\nd slots=4\n",
        (struct hosts_config){ .n_replicas = 2, .tp = 2, .pp = 1, .mpirun_args = "--map-by node" });
    reads(&s, 0, "a slots=4\nb slots=4\n");
    reads(&s, 1, "c slots=4\nd slots=4\n");
    lost(&s, 1, "ss", "c, d"); /* which rank is where is not ours to know */
    hosts_close(s.hosts);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hosts__each_mpirun_reads_its_own_slots),
        cmocka_unit_test(test_hosts__a_rank_has_a_spot_beside_the_ranks_of_all_replicas),
        cmocka_unit_test(test_hosts__a_lost_one_is_replaced_and_remembered),
        cmocka_unit_test(test_hosts__the_last_resort_is_a_host_that_another_uses),
        cmocka_unit_test(test_hosts__a_scheduler_gives_hosts_whole),
        cmocka_unit_test(test_hosts__who_maps_ranks_himself_gets_all_hosts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
