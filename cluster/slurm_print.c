/* cluster/slurm_print.c - reading what SLURM's commands print; see slurm.h. */
#include "cluster/slurm.h"

#include "cluster/slurm_text.h"

#include <stdio.h>
#include <string.h>

/* ---- lines and words ---- */

struct word {
    const char *at;
    size_t len;
};

static struct word next_word(const char **at_p, const char *end)
{
    const char *at = *at_p;
    struct word w;

    while (at < end && (*at == ' ' || *at == '\t' || *at == '\r')) {
        at++;
    }
    w = (struct word){ at, 0 };
    while (at < end && *at != ' ' && *at != '\t' && *at != '\r') {
        at++;
    }
    w.len = (size_t)(at - w.at);
    *at_p = at;
    return w;
}

static const char *line_end(const char *at)
{
    return at + strcspn(at, "\n");
}

static bool word_is(struct word w, const char *text)
{
    return w.len == strlen(text) && memcmp(w.at, text, w.len) == 0;
}

/* ---- squeue: time left ---- */

static status bad_time(const char *text, struct err *err)
{
    char shown[SLURM_SHOWN_BYTES];

    return err_set(err, ST_ERR_FORMAT, "squeue says \"%s\" of the time left: not [D-]HH:MM:SS",
                   slurm_shown(text, strlen(text), shown));
}

static bool begins(const char *text, const char *word)
{
    return strncmp(text, word, strlen(word)) == 0;
}

status slurm_time_left_parse(const char *text, uint64_t *seconds_p, struct err *err)
{
    uint64_t days = 0, part = 0, sum = 0;
    uint32_t n_parts = 0, n_digits = 0;
    const char *at = text;

    if (begins(text, "UNLIMITED") || begins(text, "NOT_SET") || begins(text, "INVALID")) {
        *seconds_p = SLURM_LEFT_UNLIMITED;
        return ST_OK;
    }
    for (;; at++) {
        if (*at >= '0' && *at <= '9' && n_digits < 6) {
            part = part * 10 + (uint64_t)(*at - '0');
            n_digits++;
        } else if (*at == '-' && n_digits > 0 && n_parts == 0 && days == 0) {
            days = part;
            part = n_digits = 0;
        } else if ((*at == ':' || *at == '\0' || *at == '\n') && n_digits > 0 && n_parts < 3) {
            sum = sum * 60 + part;
            part = n_digits = 0;
            n_parts++;
            if (*at != ':') {
                break;
            }
        } else {
            return bad_time(text, err);
        }
    }
    *seconds_p = days * 86400 + sum;
    return ST_OK;
}

/* ---- scontrol show config ---- */

status slurm_kill_wait_parse(const char *text, uint64_t *seconds_p, struct err *err)
{
    for (const char *at = text; *at != '\0'; at += *at == '\n') {
        const char *end = line_end(at), *p = at;
        uint64_t s = 0;

        if (word_is(next_word(&p, end), "KillWait")) {
            const struct word equals = next_word(&p, end), value = next_word(&p, end);
            for (size_t i = 0; i < value.len; i++) {
                s = value.at[i] >= '0' && value.at[i] <= '9' && s < UINT16_MAX
                        ? s * 10 + (uint64_t)(value.at[i] - '0')
                        : UINT64_MAX / 16;
            }
            if (!word_is(equals, "=") || value.len == 0 || s > UINT16_MAX) {
                return err_set(err, ST_ERR_FORMAT,
                               "scontrol show config: KillWait is not a number of seconds");
            }
            *seconds_p = s;
            return ST_OK;
        }
        at = end;
    }
    *seconds_p = 0;
    return ST_OK;
}

/* ---- scontrol show topology ---- */

/* The value of KEY= in a line; len 0: not there. */
static struct word field(const char *at, const char *end, const char *key)
{
    const size_t len = strlen(key);

    for (struct word w = next_word(&at, end); w.len != 0; w = next_word(&at, end)) {
        if (w.len > len && memcmp(w.at, key, len) == 0) {
            return (struct word){ w.at + len, w.len - len };
        }
    }
    return (struct word){ end, 0 };
}

static status rack_of_line(const char *at, const char *end, struct slurm_job *job, struct buf *text,
                           struct err *err)
{
    const struct word name = field(at, end, "SwitchName="), level = field(at, end, "Level="),
                      nodes = field(at, end, "Nodes=");
    struct hostlist list;

    if (name.len == 0 || level.len != 1 || level.at[0] != '0' || nodes.len == 0) {
        return ST_OK; /* a switch of switches, or an empty one */
    }
    buf_reset(text);
    status st = buf_append(text, nodes.at, nodes.len);
    if (st != ST_OK) {
        return err_set(err, st, "no memory for a line of scontrol show topology");
    }
    st = hostlist_expand("scontrol show topology", text->data, &list, err);
    if (st != ST_OK) {
        return st;
    }
    for (uint32_t i = 0; i < job->n_nodes; i++) {
        for (uint32_t k = 0; k < list.n; k++) {
            if (strcmp(job->nodes[i].name, list.names[k]) == 0) {
                snprintf(job->nodes[i].rack, sizeof(job->nodes[i].rack), "%.*s",
                         (int)MIN(name.len, sizeof(job->nodes[i].rack) - 1), name.at);
                break;
            }
        }
    }
    hostlist_fini(&list);
    return ST_OK;
}

status slurm_racks_parse(const char *text, struct slurm_job *job, struct err *err)
{
    struct buf nodes = BUF_INIT_MAX(1 << 20);
    status st = ST_OK;

    for (const char *at = text; st == ST_OK && *at != '\0';) {
        const char *end = line_end(at);
        st = rack_of_line(at, end, job, &nodes, err);
        at = end + (*end == '\n');
    }
    buf_fini(&nodes);
    return st;
}
