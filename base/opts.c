/* base/opts.c - see opts.h. Parsing; the text of --help is base/opts_help.c. */
#include "base/opts.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES_MAX = 64 };

/* ---- values ---- */

static status wrong(const struct opt *opt, const char *text, const char *want, struct err *err)
{
    return err_set(err, ST_ERR_ARG, "--%s \"%.60s\": %s", opt->name, text, want);
}

static bool bounded(const struct opt *opt)
{
    return opt->min != 0 || opt->max != 0;
}

static status in_range(const struct opt *opt, const char *text, double value, struct err *err)
{
    if (bounded(opt) && (value < opt->min || value > opt->max)) {
        return err_set(err, ST_ERR_ARG, "--%s \"%.60s\": must be from %.15g to %.15g", opt->name,
                       text, opt->min, opt->max);
    }
    return ST_OK;
}

/* strtoull takes "-1", " 1" and "+1"; none of them is a count. */
static bool digits_read(const char *text, uint64_t *value_p, const char **end_p)
{
    char *end;

    if (text[0] < '0' || text[0] > '9') {
        return false;
    }
    errno = 0;
    const unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0) {
        return false;
    }
    *value_p = value;
    *end_p = end;
    return true;
}

static status read_uint(const struct opt *opt, const char *text, uint64_t limit, struct err *err)
{
    const char *end;
    uint64_t value;

    if (!digits_read(text, &value, &end) || *end != '\0' || value > limit) {
        return wrong(opt, text,
                     limit == UINT32_MAX ? "not a whole number below 4294967296"
                                         : "not a whole number below 2^64",
                     err);
    }
    const status st = in_range(opt, text, (double)value, err);
    if (st != ST_OK) {
        return st;
    }
    if (opt->kind == OPT_U32) {
        *(uint32_t *)opt->dst = (uint32_t)value;
    } else {
        *(uint64_t *)opt->dst = value;
    }
    return ST_OK;
}

static status read_float(const struct opt *opt, const char *text, struct err *err)
{
    char *end;
    const float value = strtof(text, &end);

    if (end == text || *end != '\0' || !isfinite(value)) {
        return wrong(opt, text, "not a finite number", err);
    }
    /* The bounds are decimal (0.1): compare what was written, not what f32 made of it. */
    const status st = in_range(opt, text, strtod(text, NULL), err);
    if (st == ST_OK) {
        *(float *)opt->dst = value;
    }
    return st;
}

/* K, KB and KiB are all 1024: nobody sizes memory in powers of ten. */
static bool unit_read(const char *text, unsigned *shift_p)
{
    static const char letters[] = "KMGT";
    const char *at;

    if (text[0] == '\0' || strcmp(text, "B") == 0) {
        *shift_p = 0;
        return true;
    }
    at = strchr(letters, text[0] >= 'a' && text[0] <= 'z' ? text[0] - 'a' + 'A' : text[0]);
    if (at == NULL) {
        return false;
    }
    *shift_p = 10 * (unsigned)(at - letters + 1);
    return text[1] == '\0' || strcmp(text + 1, "B") == 0 || strcmp(text + 1, "iB") == 0;
}

static status read_bytes(const struct opt *opt, const char *text, struct err *err)
{
    const char *end;
    uint64_t value;
    unsigned shift;

    if (!digits_read(text, &value, &end) || !unit_read(end, &shift) ||
        value > UINT64_MAX >> shift) {
        return wrong(opt, text, "not a size such as 4096, 512M or 16GiB", err);
    }
    value <<= shift;
    const status st = in_range(opt, text, (double)value, err);
    if (st == ST_OK) {
        *(uint64_t *)opt->dst = value;
    }
    return st;
}

static status add_item(const struct opt *opt, const char *text, struct err *err)
{
    struct opt_list *list = opt->dst;

    if (list->n == OPT_LIST_MAX) {
        return err_set(err, ST_ERR_LIMIT, "--%s is given more than %d times", opt->name,
                       OPT_LIST_MAX);
    }
    list->items[list->n++] = text;
    return ST_OK;
}

static status read_value(const struct opt *opt, const char *text, struct err *err)
{
    switch (opt->kind) {
    case OPT_U32:
        return read_uint(opt, text, UINT32_MAX, err);
    case OPT_U64:
        return read_uint(opt, text, UINT64_MAX, err);
    case OPT_FLOAT:
        return read_float(opt, text, err);
    case OPT_STRING:
        *(const char **)opt->dst = text;
        return ST_OK;
    case OPT_BYTES:
        return read_bytes(opt, text, err);
    case OPT_LIST:
        return add_item(opt, text, err);
    case OPT_FLAG:
    case OPT_HEADING:
        break;
    }
    return err_set(err, ST_ERR_INTERNAL, "--%s is of a kind that has no value", opt->name);
}

/* ---- names ---- */

/* Edits (insert, delete, replace) that turn a into b; both are at most NAME_BYTES_MAX long. */
static uint32_t distance(const char *a, size_t a_len, const char *b, size_t b_len)
{
    uint32_t row[NAME_BYTES_MAX + 1];

    for (uint32_t j = 0; j <= b_len; j++) {
        row[j] = j;
    }
    for (uint32_t i = 1; i <= a_len; i++) {
        uint32_t diagonal = row[0];
        row[0] = i;
        for (uint32_t j = 1; j <= b_len; j++) {
            const uint32_t above = row[j];
            const uint32_t replaced = diagonal + (a[i - 1] != b[j - 1]);
            row[j] = MIN(replaced, MIN(above, row[j - 1]) + 1);
            diagonal = above;
        }
    }
    return row[b_len];
}

/* The nearest known name, or NULL if none is near enough to be what was meant. */
static const char *nearest(const struct opts *opts, const char *name, size_t len)
{
    const char *best = NULL;
    uint32_t best_distance = (uint32_t)(len / 3 + 2);

    if (len == 0 || len > NAME_BYTES_MAX) {
        return NULL;
    }
    for (uint32_t i = 0; i < opts->n_options; i++) {
        const struct opt *opt = &opts->options[i];
        if (opt->kind == OPT_HEADING || strlen(opt->name) > NAME_BYTES_MAX) {
            continue;
        }
        const size_t opt_len = strlen(opt->name);
        uint32_t d = distance(name, len, opt->name, opt_len);
        if (len >= 3 && len < opt_len && strncmp(name, opt->name, len) == 0) {
            d = 1; /* a beginning is a better guess than any misspelling */
        }
        if (d < best_distance) {
            best_distance = d;
            best = opt->name;
        }
    }
    return best;
}

static status unknown(const struct opts *opts, const char *word, size_t len, struct err *err)
{
    const char *guess = nearest(opts, word + 2, len - 2);

    if (guess != NULL) {
        return err_set(err, ST_ERR_ARG, "no option \"%.*s\"; did you mean --%s?",
                       (int)MIN(len, (size_t)80), word, guess);
    }
    return err_set(err, ST_ERR_ARG, "no option \"%.*s\"; --help lists them",
                   (int)MIN(len, (size_t)80), word);
}

static const struct opt *find(const struct opts *opts, const char *name, size_t len)
{
    for (uint32_t i = 0; i < opts->n_options; i++) {
        const struct opt *opt = &opts->options[i];
        if (opt->kind != OPT_HEADING && strlen(opt->name) == len &&
            memcmp(opt->name, name, len) == 0) {
            return opt;
        }
    }
    return NULL;
}

/* ---- the line ---- */

/* argv[*at_p] starts with "--" and is longer; takes the next word too where the value stands there.
 */
static status take_option(const struct opts *opts, int argc, char **argv, int *at_p,
                          struct err *err)
{
    const char *word = argv[*at_p];
    const char *equals = strchr(word, '=');
    const size_t len = equals != NULL ? (size_t)(equals - word) : strlen(word);
    const struct opt *opt = find(opts, word + 2, len - 2);
    const char *text = equals != NULL ? equals + 1 : NULL;
    status st = ST_OK;

    if (opt == NULL) {
        return unknown(opts, word, len, err);
    }
    if (opt->kind == OPT_FLAG) {
        if (text != NULL) {
            return err_set(err, ST_ERR_ARG, "--%s takes no value, \"%.60s\" is given", opt->name,
                           text);
        }
        *(bool *)opt->dst = true;
    } else {
        if (text == NULL && *at_p + 1 == argc) {
            return err_set(err, ST_ERR_ARG, "--%s needs a value: --%s %s", opt->name, opt->name,
                           opt->value != NULL ? opt->value : "VALUE");
        }
        if (text == NULL) {
            text = argv[++*at_p];
        }
        st = read_value(opt, text, err);
    }
    if (st == ST_OK && opt->seen != NULL) {
        *opt->seen = true;
    }
    return st;
}

/* Word i of the usage line that is written in capitals: "gantry plan MODEL [options]" -> MODEL. */
static const char *arg_name(const struct opts *opts, uint32_t i, size_t *len_p)
{
    for (const char *at = opts->usage; *at != '\0';) {
        const size_t len = strcspn(at, " ");
        if (at[0] >= 'A' && at[0] <= 'Z' && i-- == 0) {
            *len_p = len;
            return at;
        }
        at += len + strspn(at + len, " ");
    }
    *len_p = strlen("an argument");
    return "an argument";
}

static status count_args(const struct opts *opts, uint32_t n, struct err *err)
{
    size_t len;

    if (n >= opts->n_args_min) {
        return ST_OK;
    }
    const char *name = arg_name(opts, n, &len);
    return err_set(err, ST_ERR_ARG, "%.*s is missing; usage: %s", (int)len, name, opts->usage);
}

/* Help is looked for first: it must work whatever else is wrong on the line. A word that is the
 * text of an option (--prompt -h) does not count. */
static bool wants_help(const struct opts *opts, int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            return true;
        }
        if (strncmp(argv[i], "--", 2) == 0) {
            const struct opt *opt = find(opts, argv[i] + 2, strlen(argv[i]) - 2);
            i += opt != NULL && (opt->kind == OPT_STRING || opt->kind == OPT_LIST);
        }
    }
    return false;
}

status opts_parse(const struct opts *opts, int argc, char **argv, const char **args,
                  uint32_t *n_args_p, struct err *err)
{
    uint32_t n = 0;
    bool options_ended = false;

    if (wants_help(opts, argc, argv)) {
        opts_help(opts);
        return ST_END;
    }
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];

        if (!options_ended && strcmp(word, "--") == 0) {
            options_ended = true;
        } else if (!options_ended && strncmp(word, "--", 2) == 0) {
            const status st = take_option(opts, argc, argv, &i, err);
            if (st != ST_OK) {
                return st;
            }
        } else if (!options_ended && word[0] == '-' && word[1] != '\0') {
            return err_set(err, ST_ERR_ARG,
                           "no option \"%.60s\"; options have two dashes, --help lists them", word);
        } else if (n == opts->n_args_max) {
            return err_set(err, ST_ERR_ARG, "\"%.60s\" is one argument too many; usage: %s", word,
                           opts->usage);
        } else {
            args[n++] = word;
        }
    }
    const status st = count_args(opts, n, err);
    if (st == ST_OK) {
        *n_args_p = n;
    }
    return st;
}

status opts_either(const char *name, const char *value, const char *yes, const char *no,
                   bool *is_yes_p, struct err *err)
{
    if (value == NULL) {
        return ST_OK;
    }
    if (strcmp(value, yes) != 0 && strcmp(value, no) != 0) {
        return err_set(err, ST_ERR_ARG, "--%s is \"%.60s\"; %s and %s are allowed", name, value,
                       yes, no);
    }
    *is_yes_p = strcmp(value, yes) == 0;
    return ST_OK;
}

status opts_switch(const char *name, const char *value, bool *on_p, struct err *err)
{
    return opts_either(name, value, "on", "off", on_p, err);
}
