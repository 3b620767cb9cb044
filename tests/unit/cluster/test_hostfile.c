/* Counting hosts and slots of a host list; refusals name line and word. */
#include "cluster/launch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static status count(const char *text, uint32_t *slots, uint32_t *hosts, struct err *err)
{
    const struct hostfile_text t = { "hosts", text, strlen(text) };

    return hostfile_parse(&t, slots, hosts, err);
}

static void expect(const char *text, uint32_t slots_due, uint32_t hosts_due)
{
    uint32_t slots = 0, hosts = 0;
    struct err err = ERR_INIT;

    if (count(text, &slots, &hosts, &err) != ST_OK) {
        fail_msg("\"%s\": %s", text, err.text);
    }
    assert_int_equal(slots, slots_due);
    assert_int_equal(hosts, hosts_due);
}

static void refuse(const char *text, status due, const char *sentence)
{
    uint32_t slots = 77, hosts = 88;
    struct err err = ERR_INIT;

    assert_int_equal(count(text, &slots, &hosts, &err), due);
    if (!strstr(err.text, sentence)) {
        fail_msg("no \"%s\" in: %s", sentence, err.text);
    }
    assert_int_equal(slots, 77);
    assert_int_equal(hosts, 88);
}

static void test_hostfile__counts_slots(void **state)
{
    (void)state;
    expect("a slots=4\nb slots=2 max_slots=8\nc\n", 7, 3);
    expect("a", 1, 1);
    expect("# all\n\n  \t\r\n a slots = 4 # four\r\nuser@b.example.org max-slots=3\n", 5, 2);
    expect("10.0.0.1 slots=2\n[fe80::1%eth0] slots=2\n", 4, 2);
}

static void test_hostfile__a_host_named_twice_adds_its_slots(void **state)
{
    (void)state;
    expect("a slots=2\na slots=3\nab\n", 6, 2);
}

static void test_hostfile__names_and_racks_are_kept(void **state)
{
    static const char text[] = "a slots=2 rack=r1\nb\nuser@c rack = r2 slots=3\na slots=1\n";
    const struct hostfile_text t = { "hosts", text, sizeof(text) - 1 };
    struct host_list list;
    struct err err = ERR_INIT;

    (void)state;
    assert_int_equal(host_list_parse(&t, &list, &err), ST_OK);
    assert_int_equal(list.n, 3);
    assert_int_equal(list.n_slots, 7);
    assert_string_equal(list.hosts[0].name, "a");
    assert_string_equal(list.hosts[0].rack, "r1");
    assert_int_equal(list.hosts[0].slots, 3);
    assert_string_equal(list.hosts[1].rack, "");
    assert_string_equal(list.hosts[2].name, "user@c");
    assert_string_equal(list.hosts[2].rack, "r2");
    host_list_fini(&list);
    refuse("a rack\n", ST_ERR_FORMAT, "without \"=\" and a name");
    refuse("a rack=\n", ST_ERR_FORMAT, "a rack's name has 1 to 63 bytes");
    refuse("a rack=r/1\n", ST_ERR_FORMAT, "not a rack's name");
    refuse("a rack=0123456789012345678901234567890123456789012345678901234567890123\n",
           ST_ERR_FORMAT, "1 to 63 bytes");
}

static void test_hostfile__refusals_name_line_and_word(void **state)
{
    (void)state;
    refuse("", ST_ERR_FORMAT, "names no host");
    refuse("# none\n", ST_ERR_FORMAT, "names no host");
    refuse("a\nb slots=0\n", ST_ERR_FORMAT, "line 2: \"0\"");
    refuse("a slots=4x\n", ST_ERR_FORMAT, "line 1: \"4x\"");
    refuse("a slots=-1\n", ST_ERR_FORMAT, "\"-1\"");
    refuse("a slots=99999999999999999999\n", ST_ERR_FORMAT, "not a number of slots");
    refuse("a slots=65537\n", ST_ERR_FORMAT, "65537");
    refuse("a slots=\n", ST_ERR_FORMAT, "not a number");
    refuse("a slots 4\n", ST_ERR_FORMAT, "\"slots\"");
    refuse("a slot=4\n", ST_ERR_FORMAT, "\"slot\"");
    refuse("\n\n^a\n", ST_ERR_FORMAT, "line 3: \"^a\"");
    refuse("+n0\n", ST_ERR_FORMAT, "+n0");
    refuse("= =\n", ST_ERR_FORMAT, "\"=\"");
    refuse("a slots=4 max_slots=2\n", ST_ERR_FORMAT, "slots=4 is more than max_slots=2");
    refuse("a slots=65536\nb\n", ST_ERR_LIMIT, "65536 slots");
}

static void test_hostfile__nul_and_controls_are_shown_harmlessly(void **state)
{
    static const char text[] = "a\0b\n";
    const struct hostfile_text t = { "hosts", text, sizeof(text) - 1 };
    uint32_t slots, hosts;
    struct err err = ERR_INIT;

    (void)state;
    assert_int_equal(hostfile_parse(&t, &slots, &hosts, &err), ST_ERR_FORMAT);
    assert_non_null(strstr(err.text, "\"a?b\""));
    refuse("\033[31mred\n", ST_ERR_FORMAT, "\"?[31mred\"");
}

static void test_hostfile__too_many_hosts_are_refused(void **state)
{
    struct buf b = BUF_INIT;

    (void)state;
    for (int i = 0; i < 4097; i++) {
        assert_int_equal(buf_printf(&b, "h%d\n", i), ST_OK);
    }
    refuse(b.data, ST_ERR_LIMIT, "more than 4096 hosts");
    buf_fini(&b);
}

/* Any cut and any changed byte of a good file is read or refused, never more. */
static void test_hostfile__damage_is_harmless(void **state)
{
    static const char good[] = "# x\nnode1 slots=4 max_slots=8\n\nu@node2 slots = 2\nnode3\n";
    uint32_t slots, hosts, n_refused = 0;
    struct err err = ERR_INIT;

    (void)state;
    for (size_t i = 0; i < sizeof(good) - 1; i++) {
        char *text = malloc(sizeof(good) - 1); /* exact, so that ASan sees a read behind it */

        assert_non_null(text);
        for (int c = 0; c < 256; c++) {
            memcpy(text, good, sizeof(good) - 1);
            text[i] = (char)c;
            const struct hostfile_text t = { "hosts", text, sizeof(good) - 1 };
            n_refused += hostfile_parse(&t, &slots, &hosts, &err) != ST_OK;
        }
        const struct hostfile_text cut = { "hosts", text, i };
        (void)hostfile_parse(&cut, &slots, &hosts, &err);
        free(text);
    }
    assert_true(n_refused > 1000);
}

static void test_hostfile__a_missing_file_is_named(void **state)
{
    uint32_t slots, hosts;
    struct err err = ERR_INIT;

    (void)state;
    assert_int_equal(hostfile_slots("no/such/file", &slots, &hosts, &err), ST_ERR_NOT_FOUND);
    assert_non_null(strstr(err.text, "no/such/file"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostfile__counts_slots),
        cmocka_unit_test(test_hostfile__a_host_named_twice_adds_its_slots),
        cmocka_unit_test(test_hostfile__names_and_racks_are_kept),
        cmocka_unit_test(test_hostfile__refusals_name_line_and_word),
        cmocka_unit_test(test_hostfile__nul_and_controls_are_shown_harmlessly),
        cmocka_unit_test(test_hostfile__too_many_hosts_are_refused),
        cmocka_unit_test(test_hostfile__damage_is_harmless),
        cmocka_unit_test(test_hostfile__a_missing_file_is_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
