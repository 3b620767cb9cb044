/* cluster/launch_command.c - the command that starts a replica's ranks, as a pure function of the config.
 *
 * What each launcher wants to hear stands in a file of its own, with its reasons: launch_mpirun.c,
 * launch_srun.c. Here: words, and the command as a line for a shell. */
#include "cluster/launch_words.h"

#include <stdio.h>
#include <string.h>

/* ---- words ---- */

static void add(struct words *w, const char *word, size_t len)
{
    if (w->st != ST_OK) {
        return;
    }
    if (w->n == w->max) {
        w->st = ST_ERR_LIMIT;
        return;
    }
    w->st = buf_append(w->text, word, len);
    if (w->st == ST_OK) {
        w->st = buf_append_char(w->text, '\0');
        w->n++;
    }
}

void words_add(struct words *w, const char *word)
{
    add(w, word, strlen(word));
}

void words_add_all(struct words *w, const char *const *list)
{
    for (; list && *list; list++) {
        words_add(w, *list);
    }
}

void words_add_split(struct words *w, const char *line)
{
    while (line && *line) {
        const size_t len = strcspn(line, " \t\n");

        if (len > 0) {
            add(w, line, len);
        }
        line += len + (line[len] != '\0');
    }
}

void words_add_number(struct words *w, uint32_t number)
{
    char text[16];

    snprintf(text, sizeof(text), "%u", number);
    words_add(w, text);
}

bool words_user_says(const struct launch_config *config, const char *option)
{
    return config->extra && strstr(config->extra, option) != NULL;
}

/* ---- the command ---- */

status launch_command(const struct launch_config *config, uint32_t major, const char **argv,
                      uint32_t argv_max, struct buf *text, struct err *err)
{
    struct words w = { .text = text, .max = argv_max - 1 };
    const char *at;

    ASSERT(argv_max > 0);
    if (config->n_ranks == 0 || !config->program || config->program[0] == '\0') {
        return err_set(err, ST_ERR_ARG, "launch of %u ranks of \"%s\"", config->n_ranks,
                       config->program ? config->program : "");
    }
    buf_reset(text);
    if (config->kind == LAUNCH_SRUN) {
        launch_srun_words(&w, config);
    } else {
        launch_mpirun_words(&w, config, major);
    }
    if (w.st == ST_ERR_LIMIT) {
        return err_set(err, w.st, "the launch command has more than %u words", w.max);
    }
    if (w.st != ST_OK) {
        return err_set(err, w.st, "no memory for the launch command");
    }
    at = text->data;
    for (uint32_t i = 0; i < w.n; i++) {
        argv[i] = at;
        at += strlen(at) + 1;
    }
    argv[w.n] = NULL;
    return ST_OK;
}

/* ---- as a line for a shell ---- */

static status quote(struct buf *out, const char *word)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "-_./:=,@%+";
    status st;

    if (*word && word[strspn(word, plain)] == '\0') {
        return buf_append_str(out, word);
    }
    st = buf_append_char(out, '\'');
    for (; st == ST_OK && *word; word++) {
        st = *word == '\'' ? buf_append_str(out, "'\\''") : buf_append_char(out, *word);
    }
    return st == ST_OK ? buf_append_char(out, '\'') : st;
}

status launch_command_line(const struct launch_config *config, uint32_t major, struct buf *out,
                           struct err *err)
{
    const char *argv[LAUNCH_ARGS_MAX] = { NULL };
    struct buf text = BUF_INIT;
    status st = launch_command(config, major, argv, LAUNCH_ARGS_MAX, &text, err);
    const bool built = st == ST_OK;

    for (uint32_t i = 0; st == ST_OK && argv[i]; i++) {
        if (i > 0) {
            st = buf_append_char(out, ' ');
        }
        if (st == ST_OK) {
            st = quote(out, argv[i]);
        }
    }
    buf_fini(&text);
    return st == ST_OK || !built ? st : err_set(err, st, "no room for the launch command");
}
