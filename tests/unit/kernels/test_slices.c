/* Leaves: how many a model has, and where they begin. */
#include "kernels/kern.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void test_leaves_for__largest_power_of_two_up_to_the_bound(void **state)
{
    (void)state;
    assert_int_equal(kern_leaves_for(1), 1);
    assert_int_equal(kern_leaves_for(3), 2);
    assert_int_equal(kern_leaves_for(7), 4);
    assert_int_equal(kern_leaves_for(8), 8);
    assert_int_equal(kern_leaves_for(63), 8);
    assert_int_equal(kern_leaves_for(64), 16);
    assert_int_equal(kern_leaves_for(1000), 16);
}

static void test_leaf_begin__covers_all_units_in_order(void **state)
{
    (void)state;
    for (uint32_t n = 0; n < 200; n++) {
        for (uint32_t r = 1; r <= 16; r *= 2) {
            assert_int_equal(kern_leaf_begin(n, r, 0), 0);
            assert_int_equal(kern_leaf_begin(n, r, r), n);
            for (uint32_t i = 0; i < r; i++) {
                const uint32_t size = kern_leaf_begin(n, r, i + 1) - kern_leaf_begin(n, r, i);

                assert_in_range(size, n / r, n / r + 1);
            }
        }
    }
    assert_int_equal(kern_leaf_begin(0xffffffffu, 16, 16), 0xffffffffu); /* no overflow inside */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leaves_for__largest_power_of_two_up_to_the_bound),
        cmocka_unit_test(test_leaf_begin__covers_all_units_in_order),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
