/* tests/fuzz/fuzz_opts.c - a command line of any words (lines of the input) against a table of
 * every kind of option. Whatever is given: a status, numbers within their bounds, and a sentence
 * that is not empty when something is wrong. */
#include "base/opts.h"

#include <math.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { WORDS_MAX = 100, TEXT_MAX = 8192 };

static struct {
    bool flag;
    uint32_t u32;
    uint64_t u64, bytes;
    float number;
    const char *string;
    struct opt_list list;
} got;

static const struct opt table[] = {
    { .kind = OPT_HEADING, .help = "All kinds" },
    { .kind = OPT_FLAG, .name = "flag", .dst = &got.flag, .help = "" },
    { .kind = OPT_U32,
      .name = "u32",
      .value = "N",
      .dst = &got.u32,
      .min = 3,
      .max = 9,
      .help = "" },
    { .kind = OPT_U64, .name = "u64", .value = "N", .dst = &got.u64, .help = "" },
    { .kind = OPT_FLOAT, .name = "float", .value = "X", .dst = &got.number, .help = "" },
    { .kind = OPT_STRING, .name = "string", .value = "S", .dst = &got.string, .help = "" },
    { .kind = OPT_BYTES,
      .name = "bytes",
      .value = "B",
      .dst = &got.bytes,
      .max = 1e12,
      .help = "" },
    { .kind = OPT_LIST, .name = "list", .value = "S", .dst = &got.list, .help = "" },
};

static const struct opts opts = {
    .usage = "fuzz A [B]",
    .options = table,
    .n_options = ARRAY_LEN(table),
    .n_args_min = 1,
    .n_args_max = 2,
};

static bool asks_help(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-h") == 0 || strcmp(argv[i], "--help") == 0) {
            return true; /* prints; the text does not depend on the input */
        }
    }
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[TEXT_MAX];
    char *argv[WORDS_MAX] = { "fuzz" };
    const char *args[2];
    uint32_t n_args = 0;
    int argc = 1;
    struct err err = ERR_INIT;

    size = MIN(size, sizeof(text) - 1);
    if (size != 0) {
        memcpy(text, data, size);
    }
    text[size] = '\0';
    for (char *word = text; word != NULL && argc < WORDS_MAX; argc++) {
        argv[argc] = word;
        word = strchr(word, '\n');
        if (word != NULL) {
            *word++ = '\0';
        }
    }
    if (asks_help(argc, argv)) {
        return 0;
    }
    memset(&got, 0, sizeof(got));
    const status st = opts_parse(&opts, argc, argv, args, &n_args, &err);
    ASSERT(st == ST_OK || (err.code == st && err.text[0] != '\0'));
    ASSERT(st != ST_OK || (n_args >= 1 && n_args <= 2));
    ASSERT(got.u32 == 0 || (got.u32 >= 3 && got.u32 <= 9));
    ASSERT(got.bytes <= 1000000000000u && isfinite(got.number) && got.list.n <= OPT_LIST_MAX);
    return 0;
}
