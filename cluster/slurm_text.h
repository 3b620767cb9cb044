/* cluster/slurm_text.h - private to slurm*.c: outside bytes for a sentence, which may go into a log. */
#ifndef CLUSTER_SLURM_TEXT_H
#define CLUSTER_SLURM_TEXT_H

#include <stddef.h>

enum { SLURM_SHOWN_BYTES = 41 };

/* At most 40 bytes of it, what is not printable ASCII as "?". Returns `shown`. */
static inline const char *slurm_shown(const char *text, size_t len, char shown[SLURM_SHOWN_BYTES])
{
    size_t n = 0;

    for (; n < SLURM_SHOWN_BYTES - 1 && n < len; n++) {
        shown[n] = (char)(text[n] >= ' ' && text[n] <= '~' ? text[n] : '?');
    }
    shown[n] = '\0';
    return shown;
}

#endif
