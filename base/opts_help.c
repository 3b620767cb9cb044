/* base/opts_help.c - the text of --help, built from the same table that is parsed.
 *
 *   gantry plan MODEL [options]
 *
 *   about, wrapped
 *
 *   Heading:
 *     --tp N          help, wrapped and aligned in its column (16 to 10000)
 *     --a-long-name-of-an-option TEXT
 *                     help of a name that does not fit its column goes below */
#include "base/opts.h"

#include "base/buf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { INDENT = 2, GAP = 2, WIDTH_MAX = 100, WIDTH_MIN = 60, NAME_COLUMNS_MAX = 28 };

/* The terminal's width where stdout is one, within bounds that stay readable. */
static uint32_t page_width(void)
{
    struct winsize size;

    if (isatty(STDOUT_FILENO) && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
        return MIN(MAX((uint32_t)size.ws_col, (uint32_t)WIDTH_MIN), (uint32_t)WIDTH_MAX);
    }
    return WIDTH_MAX;
}

/* Screen columns of UTF-8 text: continuation bytes take none. */
static uint32_t columns(const char *text, size_t len)
{
    uint32_t n = 0;

    for (size_t i = 0; i < len; i++) {
        n += ((unsigned char)text[i] & 0xC0u) != 0x80u;
    }
    return n;
}

static void pad(FILE *out, uint32_t n)
{
    fprintf(out, "%*s", (int)n, "");
}

/* One paragraph: `text` up to its end or newline, the cursor standing at column `at`; following
 * lines start at column `left`. Returns what is behind the newline, or NULL. */
static const char *put_paragraph(FILE *out, const char *text, uint32_t at, uint32_t left,
                                 uint32_t width)
{
    bool first = true;    /* no word on this line yet */
    uint32_t n_words = 0; /* in the paragraph */

    for (;;) {
        const size_t blanks = strspn(text, " ");
        const size_t len = strcspn(text + blanks, " \n");
        const uint32_t word = columns(text + blanks, len);

        if (len == 0) {
            fputc('\n', out);
            return text[blanks] == '\n' ? text + blanks + 1 : NULL;
        }
        if (!first && at + 1 + word > width) {
            fputc('\n', out);
            pad(out, left);
            at = left;
            first = true;
        }
        if (first) {
            /* Blanks that begin a paragraph are the writer's own indentation. */
            const uint32_t own = n_words == 0 ? (uint32_t)blanks : 0;
            pad(out, own);
            at += own;
        } else {
            fputc(' ', out);
            at++;
        }
        fwrite(text + blanks, 1, len, out);
        at += word;
        text += blanks + len;
        first = false;
        n_words++;
    }
}

static void put_text(FILE *out, const char *text, uint32_t left, uint32_t width)
{
    while (text != NULL && *text != '\0') {
        if (*text != '\n') {
            pad(out, left);
        }
        text = put_paragraph(out, text, left, left, width);
    }
}

static uint32_t name_columns(const struct opt *opt)
{
    const uint32_t value = opt->value != NULL ? 1 + columns(opt->value, strlen(opt->value)) : 0;
    return 2 + columns(opt->name, strlen(opt->name)) + value;
}

/* Where the help column starts: behind the longest name that is not unreasonably long. */
static uint32_t help_column(const struct opts *opts)
{
    uint32_t widest = 6; /* --help */

    for (uint32_t i = 0; i < opts->n_options; i++) {
        const struct opt *opt = &opts->options[i];
        if (opt->kind != OPT_HEADING && name_columns(opt) <= NAME_COLUMNS_MAX) {
            widest = MAX(widest, name_columns(opt));
        }
    }
    return INDENT + widest + GAP;
}

static void put_option(FILE *out, const struct opt *opt, uint32_t left, uint32_t width)
{
    struct buf help = BUF_INIT_MAX(1 << 16);
    uint32_t at = INDENT + name_columns(opt);

    /* Without memory the text is shorter; there is nobody to tell. */
    (void)buf_printf(&help, "%s", opt->help != NULL ? opt->help : "");
    if (opt->min != 0 || opt->max != 0) {
        (void)buf_printf(&help, " (%.15g to %.15g)", opt->min, opt->max);
    }
    if (opt->kind == OPT_LIST) {
        (void)buf_printf(&help, " (may be repeated)");
    }
    fprintf(out, "%*s--%s%s%s", INDENT, "", opt->name, opt->value != NULL ? " " : "",
            opt->value != NULL ? opt->value : "");
    if (at + GAP > left) {
        fputc('\n', out);
        at = 0;
    }
    pad(out, left - at);
    const char *rest = put_paragraph(out, help.data, left, left, width);
    put_text(out, rest, left, width);
    buf_fini(&help);
}

void opts_print(const struct opts *opts, FILE *out, uint32_t width)
{
    const uint32_t left = help_column(opts);
    static const struct opt help = { .kind = OPT_FLAG, .name = "help", .help = "this text" };

    fprintf(out, "usage: %s\n", opts->usage);
    if (opts->about != NULL) {
        fputc('\n', out);
        put_text(out, opts->about, 0, width);
    }
    if (opts->n_options == 0 || opts->options[0].kind != OPT_HEADING) {
        fputs("\nOptions:\n", out);
    }
    for (uint32_t i = 0; i < opts->n_options; i++) {
        if (opts->options[i].kind == OPT_HEADING) {
            fprintf(out, "\n%s:\n", opts->options[i].help);
        } else {
            put_option(out, &opts->options[i], left, width);
        }
    }
    put_option(out, &help, left, width);
    if (opts->examples != NULL) {
        /* As written: a command line must stay one that can be pasted. */
        const size_t len = strlen(opts->examples);
        fprintf(out, "\nExamples:\n%s%s", opts->examples,
                len > 0 && opts->examples[len - 1] == '\n' ? "" : "\n");
    }
}

void opts_help(const struct opts *opts)
{
    opts_print(opts, stdout, page_width());
    fflush(stdout);
}
