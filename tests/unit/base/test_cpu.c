/* tests/unit/base/test_cpu.c */
#include "base/cpu.h"

#include "common/fixture.h"

#include <float.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static void test_cpu_mask__only_takes_flags_away(void **state UNUSED)
{
    const uint32_t all = cpu_flags();

    cpu_mask(CPU_AVX2);
    assert_int_equal(cpu_flags(), all & CPU_AVX2);
    cpu_mask(0);
    assert_int_equal(cpu_flags(), 0);
    cpu_mask(UINT32_MAX);
    assert_int_equal(cpu_flags(), all);
}

static void test_cpu_flags__higher_sets_contain_the_lower(void **state UNUSED)
{
    const uint32_t flags = cpu_flags();

    if ((flags & (CPU_AVX512_BF16 | CPU_AVX512_VNNI)) != 0) {
        assert_true((flags & CPU_AVX512) != 0);
    }
    if ((flags & CPU_AVX512) != 0) {
        assert_true((flags & CPU_AVX2) != 0);
    }
}

static void test_cpu_mask_parse__knows_five_words_and_names_them(void **state UNUSED)
{
    struct err err = ERR_INIT;
    uint32_t mask = 77;

    assert_int_equal(cpu_mask_parse("avx3", &mask, &err), ST_ERR_ARG);
    assert_int_equal(mask, 77);
    assert_non_null(strstr(err.text, "\"avx3\""));
    assert_non_null(strstr(err.text, "avx512bf16"));
    assert_int_equal(cpu_mask_parse("scalar", &mask, &err), ST_OK);
    assert_int_equal(mask, 0);
    assert_int_equal(cpu_mask_parse("avx2", &mask, &err), ST_OK);
    assert_int_equal(mask, CPU_AVX2);
    assert_int_equal(cpu_mask_parse("avx512", &mask, &err), ST_OK);
    assert_int_equal(mask, CPU_AVX2 | CPU_AVX512);
    assert_int_equal(cpu_mask_parse("avx512bf16", &mask, &err), ST_OK);
    assert_true((mask & CPU_AVX512_BF16) != 0);
    assert_int_equal(cpu_mask_parse("native", &mask, &err), ST_OK);
    assert_int_equal(mask, UINT32_MAX);
}

static void test_cpu_float_env__flushes_results_and_operands(void **state UNUSED)
{
    volatile float smallest = FLT_MIN, half = 0.5f;
    union {
        uint32_t bits;
        float value;
    } denormal = { 0x00400000u };
    volatile float operand = denormal.value;

    assert_false(cpu_float_env_ok());
    cpu_float_env_set();
    assert_true(cpu_float_env_ok());
    assert_true(smallest * half == 0.0f); /* flush to zero */
    assert_true(operand * 2.0f == 0.0f);  /* denormals are zero */
}

static void test_cpu_count__is_positive(void **state UNUSED)
{
    assert_in_range(cpu_count(), 1, 1 << 20);
}

/* ---- memory ---- */

static void make_dirs(const char *root, const char *rel)
{
    char path[FIXTURE_PATH_BYTES];

    for (const char *at = strchr(rel, '/');; at = strchr(at + 1, '/')) {
        const int len = at != NULL ? (int)(at - rel) : (int)strlen(rel);
        snprintf(path, sizeof(path), "%s/%.*s", root, len, rel);
        mkdir(path, 0700);
        if (at == NULL) {
            return;
        }
    }
}

static void test_cpu_memory__is_what_the_machine_has_left(void **state UNUSED)
{
    char root[FIXTURE_PATH_BYTES];

    fixture_dir_create(root);
    assert_true(cpu_memory_bytes_under(root) == UINT64_MAX);
    make_dirs(root, "proc/self");
    fixture_write(root, "proc/meminfo",
                  "MemTotal:       2000 kB\nMemFree:   100 kB\nMemAvailable:    1000 kB\n");
    assert_int_equal(cpu_memory_bytes_under(root), 1000 * 1024);
    fixture_dir_remove(root);
    assert_true(cpu_memory_bytes() > 0);
}

static void test_cpu_memory__honours_every_cgroup_v2_above(void **state UNUSED)
{
    char root[FIXTURE_PATH_BYTES];

    fixture_dir_create(root);
    make_dirs(root, "proc/self");
    make_dirs(root, "sys/fs/cgroup/job/step");
    fixture_write(root, "proc/meminfo", "MemAvailable: 1000000 kB\n");
    fixture_write(root, "proc/self/cgroup", "0::/job/step\n");
    fixture_write(root, "sys/fs/cgroup/job/step/memory.max", "max\n");
    assert_int_equal(cpu_memory_bytes_under(root), 1000000ll * 1024);

    fixture_write(root, "sys/fs/cgroup/job/memory.max", "100000\n");
    fixture_write(root, "sys/fs/cgroup/job/memory.current", "30000\n");
    assert_int_equal(cpu_memory_bytes_under(root), 70000);
    /* page cache that can go counts as free */
    fixture_write(root, "sys/fs/cgroup/job/memory.stat",
                  "anon 10000\nfile 20000\ninactive_file 15000\nactive_file 5000\n");
    assert_int_equal(cpu_memory_bytes_under(root), 85000);
    fixture_write(root, "sys/fs/cgroup/job/step/memory.max", "50000\n");
    fixture_write(root, "sys/fs/cgroup/job/step/memory.current", "60000\n");
    assert_int_equal(cpu_memory_bytes_under(root), 0);
    fixture_dir_remove(root);
}

static void test_cpu_memory__honours_cgroup_v1_seen_from_inside_a_container(void **state UNUSED)
{
    char root[FIXTURE_PATH_BYTES];

    fixture_dir_create(root);
    make_dirs(root, "proc/self");
    make_dirs(root, "sys/fs/cgroup/memory");
    fixture_write(root, "proc/meminfo", "MemAvailable: 1000000 kB\n");
    fixture_write(root, "proc/self/cgroup",
                  "5:cpu,cpuacct:/x\n4:memory:/docker/not-under-this-mount\n1:name=systemd:/\n");
    fixture_write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "4096000\n");
    fixture_write(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", "96000\n");
    assert_int_equal(cpu_memory_bytes_under(root), 4000000);
    fixture_dir_remove(root);
}

/* The cores of a part, asked of a child: what is taken cannot be given back. */
static uint64_t cores_of(const struct cpu_parts *parts)
{
    uint64_t cores = 0;
    int fds[2];

    assert_int_equal(pipe(fds), 0);
    if (fork() == 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        if (cpu_take(parts, NULL) == ST_OK && sched_getaffinity(0, sizeof(set), &set) == 0) {
            for (size_t i = 0; i < 64; i++) {
                cores |= CPU_ISSET(i, &set) ? (uint64_t)1 << i : 0;
            }
        }
        _exit(write(fds[1], &cores, sizeof(cores)) == (ssize_t)sizeof(cores) ? 0 : 1);
    }
    assert_int_equal(read(fds[0], &cores, sizeof(cores)), sizeof(cores));
    close(fds[0]);
    close(fds[1]);
    wait(NULL);
    return cores;
}

static void test_cpu_take__parts_are_disjoint_and_together_all(void **state UNUSED)
{
    const uint32_t n = cpu_count();
    const uint64_t all = cores_of(&(struct cpu_parts){ 0, 1, 1 });
    uint64_t seen = 0;

    if (n < 2 || n > 64) {
        skip();
    }
    assert_int_equal((uint32_t)__builtin_popcountll(all), n);
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t one = cores_of(&(struct cpu_parts){ i, 1, n });
        assert_int_equal(__builtin_popcountll(one), 1);
        assert_int_equal(one & seen, 0);
        seen |= one;
    }
    assert_int_equal(seen, all);
    assert_int_equal(cores_of(&(struct cpu_parts){ 1, n - 1, n }),
                     all & ~cores_of(&(struct cpu_parts){ 0, 1, n }));
    /* Nobody is left without a core. */
    assert_int_equal(cores_of(&(struct cpu_parts){ 0, 1, 2 * n }), all);
    assert_int_equal(cores_of(&(struct cpu_parts){ 0, 2, 2 * n }),
                     cores_of(&(struct cpu_parts){ 0, 1, n }));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu_mask__only_takes_flags_away),
        cmocka_unit_test(test_cpu_flags__higher_sets_contain_the_lower),
        cmocka_unit_test(test_cpu_mask_parse__knows_five_words_and_names_them),
        cmocka_unit_test(test_cpu_float_env__flushes_results_and_operands),
        cmocka_unit_test(test_cpu_count__is_positive),
        cmocka_unit_test(test_cpu_take__parts_are_disjoint_and_together_all),
        cmocka_unit_test(test_cpu_memory__is_what_the_machine_has_left),
        cmocka_unit_test(test_cpu_memory__honours_every_cgroup_v2_above),
        cmocka_unit_test(test_cpu_memory__honours_cgroup_v1_seen_from_inside_a_container),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
