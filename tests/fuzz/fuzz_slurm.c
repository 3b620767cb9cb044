/* tests/fuzz/fuzz_slurm.c - any bytes as what SLURM says: the environment of a job (lines NAME=VALUE),
 * a hostlist expression, the output of squeue and scontrol. The first byte chooses. Whatever is
 * accepted is within its bounds; a refusal is a sentence of printable characters (it goes into logs). */
#include "cluster/slurm.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_refusal(const struct err *err)
{
    ASSERT(err->text[0] != '\0');
    for (const char *p = err->text; *p; p++) {
        ASSERT(*p >= ' ' && *p <= '~');
    }
}

static void check_names(const struct hostlist *list)
{
    ASSERT(list->n > 0 && list->n <= SLURM_NODES_MAX);
    for (uint32_t i = 0; i < list->n; i++) {
        ASSERT(strlen(list->names[i]) > 0 && strlen(list->names[i]) < SLURM_NAME_BYTES);
        ASSERT(strpbrk(list->names[i], "[], \n") == NULL);
    }
}

/* ---- the environment: lines, each ended by NUL in a copy ---- */

struct lines {
    const char *text;
    size_t len;
};

static const char *line_get(void *arg, const char *name)
{
    const struct lines *l = arg;
    const size_t n = strlen(name);

    for (const char *at = l->text; at < l->text + l->len; at += strlen(at) + 1) {
        if (strncmp(at, name, n) == 0 && at[n] == '=') {
            return at + n + 1;
        }
    }
    return NULL;
}

static void environment(char *text, size_t len)
{
    struct lines l = { text, len };
    struct slurm_job job;
    struct err err = ERR_INIT;

    for (size_t i = 0; i < len; i++) {
        text[i] = (char)(text[i] == '\n' ? '\0' : text[i]);
    }
    if (slurm_job_read(line_get, &l, &job, &err) != ST_OK) {
        check_refusal(&err);
        return;
    }
    ASSERT(slurm_in_job(line_get, &l) && job.n_nodes > 0 && job.n_nodes <= SLURM_NODES_MAX);
    for (uint32_t i = 0; i < job.n_nodes; i++) {
        ASSERT(job.nodes[i].tasks >= 1 && job.nodes[i].tasks <= 65536);
        ASSERT(job.nodes[i].cpus <= 65536 && job.nodes[i].gpus <= 65536);
    }
    slurm_job_fini(&job);
}

/* ---- outputs of commands ---- */

static void printed(char which, const char *text)
{
    struct slurm_node nodes[3] = { { .name = "n1" }, { .name = "n2" }, { .name = "gpu[x" } };
    struct slurm_job job = { .n_nodes = 3, .nodes = nodes };
    uint64_t seconds = 0;
    struct err err = ERR_INIT;
    status st;

    if (which == 't') {
        st = slurm_time_left_parse(text, &seconds, &err);
        ASSERT(st != ST_OK || seconds < (uint64_t)1 << 48);
    } else if (which == 'w') {
        st = slurm_kill_wait_parse(text, &seconds, &err);
        ASSERT(st != ST_OK || seconds <= 65533);
    } else {
        st = slurm_racks_parse(text, &job, &err);
        ASSERT(memchr(nodes[0].rack, '\0', sizeof(nodes[0].rack)) != NULL);
    }
    if (st != ST_OK) {
        check_refusal(&err);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hostlist list;
    struct err err = ERR_INIT;

    if (size == 0) {
        return 0;
    }
    char *text = malloc(size);
    ASSERT(text != NULL);
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    if (data[0] == 'e') {
        environment(text, size);
    } else if (data[0] != 'h') {
        printed((char)data[0], text);
    } else if (hostlist_expand("SLURM_JOB_NODELIST", text, &list, &err) == ST_OK) {
        check_names(&list);
        hostlist_fini(&list);
    } else {
        check_refusal(&err);
    }
    free(text);
    return 0;
}
