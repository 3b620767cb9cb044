/* base/opts.h - command line options from a table, with --help that teaches.
 *
 * One table per command: parsing, range checks, the help text and the error sentences all come from
 * it. `--name value` and `--name=value`; flags take no value; `--` ends options; what is left goes
 * to `args`. A wrong option is answered with the nearest known name. */
#ifndef BASE_OPTS_H
#define BASE_OPTS_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum opt_kind {
    OPT_FLAG,   /* bool *        */
    OPT_U32,    /* uint32_t *    */
    OPT_U64,    /* uint64_t *    */
    OPT_FLOAT,  /* float *; NaN and infinities are refused */
    OPT_STRING, /* const char ** (borrowed from argv) */
    OPT_BYTES,  /* uint64_t *, accepts 512M, 16GiB, ... (powers of 1024) */
    OPT_LIST,   /* struct opt_list *: the option may be given several times */
    OPT_HEADING /* no option: `help` is a heading line in --help */
};

enum { OPT_LIST_MAX = 64 };
struct opt_list {
    uint32_t n;
    const char *items[OPT_LIST_MAX]; /* borrowed from argv */
};

struct opt {
    enum opt_kind kind;
    const char *name;  /* without the dashes */
    const char *value; /* placeholder in --help, e.g. "N"; NULL for flags */
    void *dst;         /* by kind; untouched if the option is absent */
    double min, max;   /* for numbers; both 0: no bound */
    const char *help;
    bool *seen; /* NULL, or set to true if the option was given */
};

struct opts {
    const char *usage; /* "gantry plan MODEL [options]" */
    const char *about; /* paragraphs shown under the usage line */
    const struct opt *options;
    uint32_t n_options;
    const char *examples; /* lines shown last; may be NULL */
    uint32_t n_args_min, n_args_max;
};

/* Parse argv[1..]. Positional arguments go to args[0..*n_args_p) (borrowed). ST_END: --help was
 * asked for and printed to stdout; the caller exits 0. ST_ERR_ARG: err says what is wrong. */
status opts_parse(const struct opts *opts, int argc, char **argv, const char **args,
                  uint32_t *n_args_p, struct err *err);
/* The value of an "on|off" option into *on_p; NULL (absent) leaves it. ST_ERR_ARG. */
/* The same of two other words. */
status opts_either(const char *name, const char *value, const char *yes, const char *no,
                   bool *is_yes_p, struct err *err);
status opts_switch(const char *name, const char *value, bool *on_p, struct err *err);
void opts_help(const struct opts *opts);
/* The same to `out`, wrapped at `width` columns. */
void opts_print(const struct opts *opts, FILE *out, uint32_t width);

#endif
