/* tests/unit/base/test_opts.c */
#include "base/opts.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { WORDS_MAX = 80 };

static struct {
    bool verbose;
    bool seen_tp;
    uint32_t tp;
    uint64_t seed;
    float temperature;
    const char *host;
    uint64_t memory;
    struct opt_list models;
} got;

static const char long_help[] =
    "0 is greedy. A long text that has to be wrapped because it is much longer than a line of any "
    "terminal may be, so that its second line shows the column";

static const struct opt table[] = {
    { .kind = OPT_HEADING, .help = "Shape" },
    { .kind = OPT_U32,
      .name = "tp",
      .value = "N",
      .dst = &got.tp,
      .min = 1,
      .max = 1024,
      .help = "slices per stage",
      .seen = &got.seen_tp },
    { .kind = OPT_U64, .name = "seed", .value = "N", .dst = &got.seed, .help = "seed" },
    { .kind = OPT_FLOAT,
      .name = "temperature",
      .value = "T",
      .dst = &got.temperature,
      .min = 0,
      .max = 0.1,
      .help =
          "0 is greedy. A long text that has to be wrapped because it is much longer than a line "
          "of any terminal may be, so that its second line shows the column" },
    { .kind = OPT_HEADING, .help = "Other" },
    { .kind = OPT_STRING, .name = "host", .value = "NAME", .dst = &got.host, .help = "host" },
    { .kind = OPT_BYTES, .name = "kv-memory", .value = "SIZE", .dst = &got.memory, .help = "KV" },
    { .kind = OPT_LIST, .name = "model", .value = "PATH", .dst = &got.models, .help = "model" },
    { .kind = OPT_FLAG, .name = "verbose", .dst = &got.verbose, .help = "more" },
};

static const struct opts plan = {
    .usage = "gantry plan MODEL [OUT] [options]",
    .about = "First paragraph.\n\nSecond paragraph.",
    .options = table,
    .n_options = ARRAY_LEN(table),
    .examples = "  gantry plan model/demo --tp 2",
    .n_args_min = 1,
    .n_args_max = 2,
};

static const char *args[2];
static uint32_t n_args;
static struct err err;

/* Parses a line of words parted by '|' (values may hold blanks). */
static status parse(const char *line)
{
    static char copy[4096];
    char *argv[WORDS_MAX] = { "gantry" };
    int argc = 1;

    memset(&got, 0, sizeof(got));
    n_args = 99;
    snprintf(copy, sizeof(copy), "%s", line);
    for (char *word = copy; word != NULL && argc < WORDS_MAX;) {
        argv[argc++] = word;
        word = strchr(word, '|');
        if (word != NULL) {
            *word++ = '\0';
        }
    }
    err = (struct err)ERR_INIT;
    return opts_parse(&plan, argc, argv, args, &n_args, &err);
}

static void assert_refused(const char *line, const char *fragment)
{
    assert_int_equal(parse(line), ST_ERR_ARG);
    assert_int_equal(err.code, ST_ERR_ARG);
    if (strstr(err.text, fragment) == NULL) {
        fail_msg("\"%s\" answered \"%s\", without \"%s\"", line, err.text, fragment);
    }
    assert_int_equal(n_args, 99);
}

static void test_opts__reads_every_kind_in_both_forms(void **state UNUSED)
{
    assert_int_equal(parse("m|--tp|4|--seed=18446744073709551615|--temperature|0.1|--host=a b|"
                           "--kv-memory|2GiB|--verbose|--model|x|--model=y|out"),
                     ST_OK);
    assert_int_equal(got.tp, 4);
    assert_true(got.seen_tp);
    assert_true(got.seed == UINT64_MAX);
    assert_true(got.temperature == 0.1f);
    assert_string_equal(got.host, "a b");
    assert_int_equal(got.memory, 2ll << 30);
    assert_true(got.verbose);
    assert_int_equal(got.models.n, 2);
    assert_string_equal(got.models.items[1], "y");
    assert_int_equal(n_args, 2);
    assert_string_equal(args[0], "m");
    assert_string_equal(args[1], "out");
}

static void test_opts__leaves_absent_options_alone(void **state UNUSED)
{
    assert_int_equal(parse("m"), ST_OK);
    assert_int_equal(n_args, 1);
    assert_int_equal(got.tp, 0);
    assert_false(got.seen_tp);
    assert_null(got.host);
}

static void test_opts__two_dashes_end_the_options(void **state UNUSED)
{
    assert_int_equal(parse("--verbose|--|--tp|-h"), ST_OK);
    assert_int_equal(n_args, 2);
    assert_string_equal(args[0], "--tp");
    assert_string_equal(args[1], "-h");
    assert_int_equal(parse("-"), ST_OK); /* standard input by custom */
    assert_string_equal(args[0], "-");
}

static void test_opts__sizes_are_powers_of_1024(void **state UNUSED)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } cases[] = {
        { "0", 0 },
        { "4096", 4096 },
        { "4096B", 4096 },
        { "1k", 1024 },
        { "3K", 3072 },
        { "512M", 512ull << 20 },
        { "5MB", 5ull << 20 },
        { "16GiB", 16ull << 30 },
        { "2t", 2ull << 40 },
    };
    char line[64];

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        snprintf(line, sizeof(line), "m|--kv-memory|%s", cases[i].text);
        assert_int_equal(parse(line), ST_OK);
        assert_true(got.memory == cases[i].bytes);
    }
    assert_refused("m|--kv-memory|1.5G", "16GiB");
    assert_refused("m|--kv-memory|G", "16GiB");
    assert_refused("m|--kv-memory|12Gi", "16GiB");
    assert_refused("m|--kv-memory|17179869184G", "16GiB"); /* 2^64 */
}

static void test_opts__wrong_values_name_option_value_and_bounds(void **state UNUSED)
{
    assert_refused("m|--tp|0", "--tp \"0\": must be from 1 to 1024");
    assert_refused("m|--tp=1025", "from 1 to 1024");
    assert_refused("m|--tp|4294967297", "below 4294967296");
    assert_refused("m|--tp|-1", "--tp \"-1\"");
    assert_refused("m|--tp| 1", "whole number");
    assert_refused("m|--tp|1x", "whole number");
    assert_refused("m|--tp=", "whole number");
    assert_refused("m|--seed|18446744073709551616", "below 2^64");
    assert_refused("m|--temperature|nan", "finite");
    assert_refused("m|--temperature|inf", "finite");
    assert_refused("m|--temperature|1e99", "finite");
    assert_refused("m|--temperature|0.11", "from 0 to 0.1");
    assert_refused("m|--temperature|warm", "\"warm\"");
    assert_refused("m|--host", "--host needs a value: --host NAME");
    assert_refused("m|--verbose=1", "takes no value");
}

static void test_opts__unknown_names_are_answered_with_the_nearest(void **state UNUSED)
{
    assert_refused("m|--temprature|1", "did you mean --temperature?");
    assert_refused("m|--hots=x", "no option \"--hots\"; did you mean --host?");
    assert_refused("m|--temp|1", "did you mean --temperature?");
    assert_refused("m|--verbos", "did you mean --verbose?");
    assert_refused("m|--entirely-different", "--help lists them");
    assert_refused("m|-v", "two dashes");
    assert_refused(
        "m|--tp-size-of-the-whole-thing-which-is-longer-than-any-option-has-a-right-to-be",
        "--help lists them");
}

static void test_opts__missing_and_spare_arguments_are_named(void **state UNUSED)
{
    assert_refused("--verbose", "MODEL is missing; usage: gantry plan MODEL");
    assert_refused("a|b|c", "\"c\" is one argument too many");
}

static void test_opts__a_list_has_a_bound(void **state UNUSED)
{
    char line[1024] = "m";

    for (int i = 0; i <= OPT_LIST_MAX; i++) {
        strcat(line, "|--model=x");
    }
    assert_int_equal(parse(line), ST_ERR_LIMIT);
    assert_non_null(strstr(err.text, "more than 64 times"));
}

/* ---- help ---- */

static char *help_text(uint32_t width)
{
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);

    assert_non_null(out);
    opts_print(&plan, out, width);
    fclose(out);
    return text;
}

static void test_opts_help__lists_every_option_with_bounds(void **state UNUSED)
{
    char *text = help_text(100);

    assert_int_equal(strncmp(text, "usage: gantry plan MODEL [OUT] [options]\n", 41), 0);
    assert_non_null(strstr(text, "\nFirst paragraph.\n\nSecond paragraph.\n"));
    assert_non_null(strstr(text, "\nShape:\n  --tp N            slices per stage (1 to 1024)\n"));
    assert_non_null(strstr(text, "\nOther:\n  --host NAME "));
    assert_non_null(strstr(text, "  --model PATH      model (may be repeated)\n"));
    assert_non_null(strstr(text, "  --help            this text\n"));
    assert_non_null(strstr(text, "\nExamples:\n  gantry plan model/demo --tp 2\n"));
    free(text);
}

static void test_opts_help__wraps_in_the_column_and_loses_no_word(void **state UNUSED)
{
    static const uint32_t widths[] = { 60, 72, 100 };

    for (size_t w = 0; w < ARRAY_LEN(widths); w++) {
        char *text = help_text(widths[w]);
        char *save = NULL;
        uint32_t continued = 0;
        char joined[2048] = "";
        for (char *line = strtok_r(text, "\n", &save); line != NULL;
             line = strtok_r(NULL, "\n", &save)) {
            assert_true(strlen(line) <= widths[w]);
            assert_true(line[0] != '\0' && line[strlen(line) - 1] != ' ');
            const size_t indent = strspn(line, " ");
            assert_true(indent == 0 || indent == 2 || indent == 20); /* 20: the help column */
            continued += indent == 20;
            strcat(joined, " ");
            strcat(joined, line + indent);
        }
        assert_true(continued >= 1);
        assert_non_null(strstr(joined, long_help));
        free(text);
    }
}

static void test_opts_help__works_whatever_else_is_wrong(void **state UNUSED)
{
    assert_int_equal(parse("--nonsense|--help"), ST_END);
    assert_int_equal(parse("-h"), ST_END);
    assert_int_equal(parse("m|--host|-h"), ST_OK); /* a value, not a wish */
    assert_string_equal(got.host, "-h");
}

static void test_opts_switch__is_on_or_off_and_nothing_else(void **state UNUSED)
{
    bool on = true;

    assert_int_equal(opts_switch("cache", "off", &on, &err), ST_OK);
    assert_false(on);
    assert_int_equal(opts_switch("cache", NULL, &on, &err), ST_OK);
    assert_false(on);
    assert_int_equal(opts_switch("cache", "on", &on, &err), ST_OK);
    assert_true(on);
    assert_int_equal(opts_switch("cache", "yes", &on, &err), ST_ERR_ARG);
    assert_non_null(strstr(err.text, "--cache is \"yes\""));
    assert_true(on);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_opts__reads_every_kind_in_both_forms),
        cmocka_unit_test(test_opts__leaves_absent_options_alone),
        cmocka_unit_test(test_opts__two_dashes_end_the_options),
        cmocka_unit_test(test_opts__sizes_are_powers_of_1024),
        cmocka_unit_test(test_opts__wrong_values_name_option_value_and_bounds),
        cmocka_unit_test(test_opts__unknown_names_are_answered_with_the_nearest),
        cmocka_unit_test(test_opts__missing_and_spare_arguments_are_named),
        cmocka_unit_test(test_opts__a_list_has_a_bound),
        cmocka_unit_test(test_opts_switch__is_on_or_off_and_nothing_else),
        cmocka_unit_test(test_opts_help__lists_every_option_with_bounds),
        cmocka_unit_test(test_opts_help__wraps_in_the_column_and_loses_no_word),
        cmocka_unit_test(test_opts_help__works_whatever_else_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
