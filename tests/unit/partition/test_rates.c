/* tests/unit/partition/test_rates.c - files of rates: what is read, what is refused, what is asked. */
#include "partition/rates_file.h"

#include "common/alloc_fail.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Of doubles; cmocka's own compares floats. */
#define assert_near(x, want, by) assert_true((x) - (want) <= (by) && (want) - (x) <= (by))

#define TAIL                                                                                       \
    "kv_gb_s=20 decode_gflop_s=200 decode_gscore_s=2 prompt_gflop_s=400 prompt_gscore_s=4 "        \
    "vector_gb_s=10 scan_mid_s=500 layer_us=5"

static const char two_hosts[] =
    "# of a small cluster\n"
    "gantry-rates 1\n"
    "host=a device=cpu format=bf16 threads=16 memory_mib=1024 weights_gb_s=1:40,4:40,8:20 " TAIL
    "\n"
    "\n"
    "host=b.site device=cuda-sm90 format=fp8 weights_gb_s=1:3000 cached_mib=16 "
    "cached_gb_s=1:9000 " TAIL " recorded_layer_us=2 # behind\n"
    "link=network latency_us=20 gb_s=1.5\n";

static status parse(const char *text, struct rates *r, struct err *err)
{
    return rates_parse(&(struct rates_text){ "rates", text, strlen(text) }, r, err);
}

static void read_ok(const char *text, struct rates *r)
{
    struct err err = ERR_INIT;

    if (parse(text, r, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
}

static void refused(const char *line, status want, const char *word)
{
    char text[4096];
    struct rates r = { .n = 0 };
    struct err err = ERR_INIT;

    snprintf(text, sizeof(text), "gantry-rates 1\n%s", line);
    const status st = parse(text, &r, &err);
    if (st != want || strstr(err.text, word) == NULL || strstr(err.text, "rates") == NULL) {
        fail_msg("\"%s\": got %d \"%s\", wanted %d and \"%s\"", line, st, err.text, want, word);
    }
    assert_null(r.entries);
}

static void test_rates__a_file_is_read_in_si_units(void **state UNUSED)
{
    struct rates r;

    read_ok(two_hosts, &r);
    assert_int_equal(r.n, 2);
    const struct rates_entry *a = &r.entries[0];
    assert_string_equal(a->host, "a");
    assert_int_equal(a->threads, 16);
    assert_true(a->memory_bytes == (uint64_t)1024 << 20);
    assert_int_equal(a->weights.n, 3);
    assert_int_equal(a->weights.at[2].rows, 8);
    assert_near(a->weights.at[2].bytes_s, 20e9, 1);
    assert_near(a->kv_bytes_s, 20e9, 1);
    assert_near(a->layer_s, 5e-6, 1e-12);
    assert_int_equal(r.entries[1].cuda_version, 90);
    assert_int_equal(r.entries[1].fmt, KERN_FP8);
    assert_true(r.across.is_measured);
    assert_near(r.across.latency_s, 20e-6, 1e-12);
    assert_false(r.on_host.is_measured);
    assert_true(r.on_host.bytes_s > 0);
    rates_fini(&r);
}

static void test_rates__what_is_printed_is_read_again(void **state UNUSED)
{
    struct rates r, again;
    struct buf out = BUF_INIT;

    read_ok(two_hosts, &r);
    assert_int_equal(rates_print_head(&out), ST_OK);
    for (uint32_t i = 0; i < r.n; i++) {
        assert_int_equal(rates_print_entry(&r.entries[i], &out), ST_OK);
    }
    assert_int_equal(rates_print_link(true, &r.across, &out), ST_OK);
    read_ok(out.data, &again);
    assert_int_equal(again.n, r.n);
    for (uint32_t i = 0; i < r.n; i++) {
        assert_string_equal(again.entries[i].host, r.entries[i].host);
        assert_int_equal(again.entries[i].cuda_version, r.entries[i].cuda_version);
        assert_int_equal(again.entries[i].weights.n, r.entries[i].weights.n);
        assert_near(again.entries[i].prompt.flops, 400e9, 1);
        assert_near(again.entries[i].scan_ids_s, 500e6, 1);
        assert_near(again.entries[i].recorded_layer_s, i == 1 ? 2e-6 : 0, 1e-12);
    }
    assert_near(again.across.bytes_s, 1.5e9, 1);
    rates_fini(&r);
    rates_fini(&again);
    buf_fini(&out);
}

static void test_rates__files_may_stand_one_behind_the_other_and_the_later_line_counts(
    void **state UNUSED)
{
    char text[8192];
    struct rates r;

    snprintf(text, sizeof(text), "%s%s", two_hosts,
             "gantry-rates 1\nhost=a device=cpu format=bf16 weights_gb_s=1:50 " TAIL "\n");
    read_ok(text, &r);
    assert_int_equal(r.n, 2);
    assert_near(r.entries[0].weights.at[0].bytes_s, 50e9, 1);
    rates_fini(&r);
}

static void test_rates__what_is_wrong_is_named_with_its_line(void **state UNUSED)
{
    refused("host=a device=cpu format=bf16 weights_gb_s=1:50 " TAIL " layer_us=1", ST_ERR_FORMAT,
            "line 2: \"layer_us\": stands twice");
    refused("host=a device=cpu format=bf16 " TAIL, ST_ERR_FORMAT, "\"weights_gb_s\": is missing");
    refused("host=a device=gpu format=bf16 weights_gb_s=1:50 " TAIL, ST_ERR_FORMAT,
            "known devices");
    refused("host=a device=cpu format=int4 weights_gb_s=1:50 " TAIL, ST_ERR_FORMAT,
            "known formats");
    refused("host=a device=cpu format=bf16 weights_gb_s=1:50,1:40 " TAIL, ST_ERR_FORMAT,
            "each larger than the one before");
    refused("host=a device=cpu format=bf16 weights_gb_s=50 " TAIL, ST_ERR_FORMAT, "ROWS:GB/s");
    refused("host=a device=cpu format=bf16 weights_gb_s=1:0 " TAIL, ST_ERR_FORMAT, "ROWS:GB/s");
    refused("host=a device=cpu format=bf16 weights_gb_s=1:inf " TAIL, ST_ERR_FORMAT, "ROWS:GB/s");
    refused("host=a device=cpu format=bf16 weights_gb_s=1:0x10 " TAIL, ST_ERR_FORMAT, "ROWS:GB/s");
    refused("host=a device=cpu format=bf16 weights_gb_s=70000:1 " TAIL, ST_ERR_FORMAT, "ROWS:GB/s");
    refused("host=a device=cpu format=bf16 weights_gb_s=1:50 speed=3 " TAIL, ST_ERR_FORMAT,
            "\"speed\": no such key");
    refused("host=a device=cpu format=bf16 weights_gb_s=1:50 cached_mib=3 " TAIL, ST_ERR_FORMAT,
            "go together");
    refused("host=a device=cpu format=bf16 weights_gb_s=1:50 threads=0 " TAIL, ST_ERR_FORMAT,
            "number of threads");
    refused("host= device=cpu format=bf16 weights_gb_s=1:50 " TAIL, ST_ERR_FORMAT, "empty");
    refused("host=a device=cpu format=bf16 weights_gb_s=1:50 kv_gb_s=1e99 ", ST_ERR_FORMAT,
            "from 1e-6 to 1e12");
    refused("link=bus latency_us=1 gb_s=1", ST_ERR_FORMAT, "known links are");
    refused("link=host latency_us=1", ST_ERR_FORMAT, "\"gb_s\": is missing");
    refused("link=host latency_us=1 gb_s=1 x=1", ST_ERR_FORMAT, "a link has");
    refused("link=host latency_us=1 gb_s=1", ST_ERR_FORMAT, "the rates of no host");
    refused("gantry-rates 2", ST_ERR_FORMAT, "this program reads");
}

static void test_rates__another_file_is_not_one_of_rates(void **state UNUSED)
{
    struct rates r = { .n = 0 };
    struct err err = ERR_INIT;

    assert_int_equal(parse("node1 slots=4\n", &r, &err), ST_ERR_FORMAT);
    assert_non_null(strstr(err.text, "begins with"));
    assert_int_equal(parse("", &r, &err), ST_ERR_FORMAT);
    const struct rates_text nul = { "rates", "gantry-rates 1\nhost=\0", 22 };
    assert_int_equal(rates_parse(&nul, &r, &err), ST_ERR_FORMAT);
    assert_null(r.entries);
}

static void test_rates__a_failed_allocation_is_a_status(void **state UNUSED)
{
    struct rates r = { .n = 0 };
    struct err err = ERR_INIT;

    alloc_fail_at(1);
    assert_int_equal(parse(two_hosts, &r, &err), ST_ERR_NOMEM);
    assert_true(alloc_fail_off());
    assert_null(r.entries);
}

static void test_rates__a_host_is_found_by_name_then_as_any_then_not(void **state UNUSED)
{
    struct rates r;
    char text[8192];

    read_ok(two_hosts, &r);
    const struct rates_key a = { "a", 0, KERN_BF16 }, far = { "user@a.site", 0, KERN_BF16 };
    const struct rates_key b = { "b", 90, KERN_FP8 }, other = { "c", 0, KERN_BF16 };
    const struct rates_key other_site = { "b.elsewhere", 90, KERN_FP8 };
    const struct rates_key none = { "a", 0, KERN_FP8 };
    assert_ptr_equal(rates_find(&r, &a), &r.entries[0]);
    assert_ptr_equal(rates_find(&r, &far), &r.entries[0]);
    assert_ptr_equal(rates_find(&r, &b), &r.entries[1]);
    assert_null(rates_find(&r, &other_site));
    assert_null(rates_find(&r, &other));
    assert_null(rates_find(&r, &none));
    assert_ptr_equal(rates_slowest(&r, &other), &r.entries[0]);
    assert_null(rates_slowest(&r, &none));
    rates_fini(&r);
    snprintf(text, sizeof(text), "%s%s", two_hosts,
             "host=* device=cpu format=bf16 weights_gb_s=1:5 " TAIL "\n");
    read_ok(text, &r);
    assert_ptr_equal(rates_find(&r, &a), &r.entries[0]);
    assert_ptr_equal(rates_find(&r, &other), &r.entries[2]);
    assert_ptr_equal(rates_slowest(&r, &a), &r.entries[2]);
    rates_fini(&r);
}

static void test_rates__the_time_of_a_byte_is_straight_between_points(void **state UNUSED)
{
    struct rates r;

    read_ok(two_hosts, &r);
    const struct rates_entry *a = &r.entries[0], *b = &r.entries[1];
    const uint64_t large = (uint64_t)1 << 30;
    /* 40 GB at 40 GB/s; at 8 rows 20 GB/s, at 6 rows half way between 1/40 and 1/20, at 16 twice 8. */
    assert_near(rates_weights_s(a, 40000000000u, large, 1), 1.0, 1e-9);
    assert_near(rates_weights_s(a, 40000000000u, large, 4), 1.0, 1e-9);
    assert_near(rates_weights_s(a, 40000000000u, large, 6), 1.5, 1e-9);
    assert_near(rates_weights_s(a, 40000000000u, large, 8), 2.0, 1e-9);
    assert_near(rates_weights_s(a, 40000000000u, large, 16), 4.0, 1e-9);
    assert_true(rates_reading_bounds(a, large, 6));
    assert_false(rates_reading_bounds(a, large, 16));
    /* From the caches, as long as all of it stays there. */
    assert_near(rates_weights_s(b, 9000000, 16 << 20, 1), 1e-6, 1e-12);
    assert_near(rates_weights_s(b, 9000000, (16 << 20) + 1, 1), 3e-6, 1e-12);
    /* 2 G scores/s, 200 Gflop/s: 1e9 scores of 50 elements are 0.5 s and 1 s. */
    assert_near(rates_scores_s(&a->decode, 1e9, 50), 1.5, 1e-9);
    rates_fini(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rates__a_file_is_read_in_si_units),
        cmocka_unit_test(test_rates__what_is_printed_is_read_again),
        cmocka_unit_test(
            test_rates__files_may_stand_one_behind_the_other_and_the_later_line_counts),
        cmocka_unit_test(test_rates__what_is_wrong_is_named_with_its_line),
        cmocka_unit_test(test_rates__another_file_is_not_one_of_rates),
        cmocka_unit_test(test_rates__a_failed_allocation_is_a_status),
        cmocka_unit_test(test_rates__a_host_is_found_by_name_then_as_any_then_not),
        cmocka_unit_test(test_rates__the_time_of_a_byte_is_straight_between_points),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
