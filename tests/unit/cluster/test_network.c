/* Networks as text, and this host's place in them. */
#include "cluster/network.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_network__text_is_an_address_and_its_bits(void **state)
{
    struct network n;

    (void)state;
    assert_int_equal(network_parse("10.80.0.0/15", &n, NULL), ST_OK);
    assert_int_equal(n.bits, 15);
    assert_int_equal(n.bytes[1], 80);
    assert_string_equal(n.text, "10.80.0.0/15");
    assert_int_equal(network_parse("0.0.0.0/0", &n, NULL), ST_OK);
    assert_int_equal(network_parse("fd00:80::/64", &n, NULL), ST_OK);
    assert_int_equal(n.bytes[3], 0x80);
}

static void refuse(const char *text, const char *sentence)
{
    struct network n = { .bits = 77 };
    struct err err = ERR_INIT;

    assert_int_equal(network_parse(text, &n, &err), ST_ERR_ARG);
    if (!strstr(err.text, sentence)) {
        fail_msg("no \"%s\" in: %s", sentence, err.text);
    }
    assert_int_equal(n.bits, 77);
}

static void test_network__refusals_say_what_is_wrong(void **state)
{
    char text[200];

    (void)state;
    refuse("", "ADDRESS/BITS");
    refuse("10.0.0.0", "ADDRESS/BITS");
    refuse("10.0.0.0/33", "ADDRESS/BITS");
    refuse("10.0.0.0/", "ADDRESS/BITS");
    refuse("10.0.0.0/8x", "ADDRESS/BITS");
    refuse("10.0.0.0/99999999999", "ADDRESS/BITS");
    refuse("10.0.0/8", "\"10.0.0\" is not an address");
    refuse("eth0/8", "is not an address");
    refuse("fd00::/129", "ADDRESS/BITS");
    refuse("10.0.0.1/24", "behind the first 24");
    refuse("10.0.128.0/16", "behind the first 16");
    memset(text, '1', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    refuse(text, "ADDRESS/BITS");
    memcpy(text + 190, "/8", 3);
    refuse(text, "ADDRESS/BITS");
}

static void test_network__this_host_is_found_by_its_loopback(void **state)
{
    struct network n;
    struct network_self self;
    struct err err = ERR_INIT;

    (void)state;
    assert_int_equal(network_parse("127.0.0.0/9", &n, NULL), ST_OK);
    assert_int_equal(network_find(&n, &self, &err), ST_OK);
    assert_string_equal(self.address, "127.0.0.1");
    assert_string_equal(self.interface, "lo");
    assert_int_equal(network_parse("203.0.113.0/25", &n, NULL), ST_OK);
    assert_int_equal(network_find(&n, &self, &err), ST_ERR_NOT_FOUND);
    assert_non_null(strstr(err.text, "no address in --network 203.0.113.0/25; it has "));
    assert_non_null(strstr(err.text, "127.0.0.1 on lo"));
}

static void test_network__the_way_to_ourselves_is_loopback(void **state)
{
    char address[NETWORK_ADDRESS_BYTES];
    struct err err = ERR_INIT;

    (void)state;
    assert_int_equal(network_toward("127.0.0.1", address, &err), ST_OK);
    assert_string_equal(address, "127.0.0.1");
    assert_int_equal(network_toward("no host has this name", address, &err), ST_ERR_NOT_FOUND);
    assert_non_null(strstr(err.text, "no host has this name"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_network__text_is_an_address_and_its_bits),
        cmocka_unit_test(test_network__refusals_say_what_is_wrong),
        cmocka_unit_test(test_network__this_host_is_found_by_its_loopback),
        cmocka_unit_test(test_network__the_way_to_ourselves_is_loopback),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
