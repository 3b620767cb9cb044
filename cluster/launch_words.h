/* cluster/launch_words.h - private to launch*.c: the words of a command, one after the other.
 *
 * Offsets first, pointers when all are there, because `text` may move while it grows. */
#ifndef CLUSTER_LAUNCH_WORDS_H
#define CLUSTER_LAUNCH_WORDS_H

#include "cluster/launch.h"

struct words {
    struct buf *text; /* each word with its NUL */
    uint32_t n, max;  /* max: without the NULL at the end */
    status st;        /* of the first that failed; what follows is ignored */
};

void words_add(struct words *w, const char *word);
void words_add_number(struct words *w, uint32_t number);
void words_add_all(struct words *w, const char *const *list); /* NULL-ended; NULL: none */
void words_add_split(struct words *w, const char *line);      /* at spaces; NULL: none */

/* Does the user's own line decide this already? A launcher refuses an option that is given twice. */
bool words_user_says(const struct launch_config *config, const char *option);

void launch_mpirun_words(struct words *w, const struct launch_config *config, uint32_t major);
void launch_srun_words(struct words *w, const struct launch_config *config);

/* srun, and whether it can start MPI ranks here. */
status launch_srun_probe(char *line, size_t line_bytes, struct err *err);
/* Environment words beside config->env, into `env` (NULL-ended, at most LAUNCH_ENV_MAX with the end);
 * `text` backs them. Also writes the file of `layout`: a host name per rank. */
enum { LAUNCH_ENV_MAX = 24, LAUNCH_PATH_BYTES = 1024 };
status launch_srun_prepare(const struct launch_config *config, char layout[LAUNCH_PATH_BYTES],
                           const char **env, struct buf *text, struct err *err);

#endif
