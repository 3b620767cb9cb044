/* coordinator/service_state.c - see service_state.h. */
#include "coordinator/service_state.h"

#include "model/json_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILE_BYTES_MAX = 1 << 20, PATH_MAX_BYTES = DIR_PATH_BYTES + 32 };

void service_state_fini(struct service_state *s)
{
    free(s->replicas);
    s->replicas = NULL;
    s->n_replicas = 0;
}

void service_state_here(struct service_state *s)
{
    struct buf id = BUF_INIT_MAX(128);

    s->host[0] = '\0';
    if (gethostname(s->host, sizeof(s->host) - 1) != 0) {
        s->host[0] = '\0';
    }
    s->host[sizeof(s->host) - 1] = '\0';
    s->boot_id[0] = '\0';
    if (buf_read_file(&id, "/proc/sys/kernel/random/boot_id", 64, NULL) == ST_OK) {
        snprintf(s->boot_id, sizeof(s->boot_id), "%.*s", (int)strcspn(id.data, "\n"), id.data);
    }
    buf_fini(&id);
}

/* ---- read ---- */

struct fields {
    const char *name; /* of the file */
    json_t *object;   /* borrowed */
    struct err *err;
};

static status text_get(const struct fields *f, const char *key, char *to, size_t bytes)
{
    const char *word = json_string_value(json_object_get(f->object, key));

    if (word == NULL || strlen(word) >= bytes) {
        return err_set(f->err, ST_ERR_FORMAT, "%s: \"%s\" is not a text of at most %zu bytes",
                       f->name, key, bytes - 1);
    }
    snprintf(to, bytes, "%s", word);
    return ST_OK;
}

static status number_get(const struct fields *f, const char *key, json_int_t max, json_int_t *n_p)
{
    const json_t *value = json_object_get(f->object, key);
    const json_int_t n = json_integer_value(value);

    if (!json_is_integer(value) || n < 0 || n > max) {
        return err_set(f->err, ST_ERR_FORMAT, "%s: \"%s\" is not a number from 0 to %lld", f->name,
                       key, (long long)max);
    }
    *n_p = n;
    return ST_OK;
}

static status hex_get(const struct fields *f, const char *key, uint64_t *n_p)
{
    char text[20] = "";
    char *end = NULL;
    const status st = text_get(f, key, text, sizeof(text));

    if (st < 0) {
        return st;
    }
    const uint64_t n = strtoull(text, &end, 16);
    if (text[0] == '\0' || strspn(text, "0123456789abcdef") != strlen(text) || strlen(text) > 16) {
        return err_set(f->err, ST_ERR_FORMAT, "%s: \"%s\" is not a number of 16 hex digits",
                       f->name, key);
    }
    *n_p = n;
    return ST_OK;
}

static status replica_get(const struct fields *f, struct service_replica *r)
{
    json_int_t generation = 0, pid = 0, ticks = 0, log_begin = 0;
    status st = number_get(f, "generation", UINT32_MAX, &generation);

    (void)(st || (st = number_get(f, "pid", INT32_MAX, &pid)) ||
           (st = number_get(f, "start_ticks", INT64_MAX, &ticks)) ||
           (st = text_get(f, "shm_dir", r->shm_dir, sizeof(r->shm_dir))));
    if (st == ST_OK &&
        json_object_get(f->object, "log_begin") != NULL) { /* not in the first ones */
        st = number_get(f, "log_begin", INT64_MAX, &log_begin);
    }
    r->log_begin = (uint64_t)log_begin;
    r->generation = (uint32_t)generation;
    r->pid = (int)pid;
    r->start_ticks = (uint64_t)ticks;
    if (st == ST_OK && r->shm_dir[0] != '\0' &&
        (strncmp(r->shm_dir, "/dev/shm/gantry-", 16) != 0 || strchr(r->shm_dir + 16, '/'))) {
        st = err_set(f->err, ST_ERR_FORMAT, "%s: \"shm_dir\" is not a folder that Gantry makes",
                     f->name);
    }
    return st;
}

static status replicas_get(const struct fields *f, struct service_state *s)
{
    json_t *list = json_object_get(f->object, "replicas");
    const size_t n = json_array_size(list);
    status st = ST_OK;

    if (!json_is_array(list) || n > SERVICE_REPLICAS_MAX) {
        return err_set(f->err, ST_ERR_FORMAT, "%s: \"replicas\" is not a list of at most %d",
                       f->name, (int)SERVICE_REPLICAS_MAX);
    }
    s->replicas = calloc(n + 1, sizeof(*s->replicas));
    if (s->replicas == NULL) {
        return err_set(f->err, ST_ERR_NOMEM, "%s: no memory for %zu replicas", f->name, n);
    }
    for (size_t i = 0; st == ST_OK && i < n; i++) {
        const struct fields one = { f->name, json_array_get(list, i), f->err };
        st = replica_get(&one, &s->replicas[i]);
    }
    s->n_replicas = (uint32_t)n;
    return st;
}

static status state_get(const struct fields *f, struct service_state *s)
{
    json_int_t version = 0, epoch = 0, port = 0, control = 0;
    status st = number_get(f, "version", INT32_MAX, &version);

    if (st == ST_OK && version != SERVICE_VERSION) {
        return err_set(f->err, ST_ERR_UNSUPPORTED, "%s is of version %lld, this gantry knows %d",
                       f->name, (long long)version, (int)SERVICE_VERSION);
    }
    (void)(st || (st = number_get(f, "epoch", 1 << 22, &epoch)) ||
           (st = text_get(f, "build", s->build, sizeof(s->build))) ||
           (st = text_get(f, "host", s->host, sizeof(s->host))) ||
           (st = text_get(f, "boot_id", s->boot_id, sizeof(s->boot_id))) ||
           (st = text_get(f, "run_dir", s->run_dir, sizeof(s->run_dir))) ||
           (st = text_get(f, "weights_digest", s->weights_digest, sizeof(s->weights_digest))) ||
           (st = hex_get(f, "plan_digest", &s->plan_digest)) ||
           (st = number_get(f, "port", 65535, &port)) ||
           (st = number_get(f, "control_port", 65535, &control)) || (st = replicas_get(f, s)));
    s->epoch = (uint64_t)epoch;
    s->port = (uint16_t)port;
    s->control_port = (uint16_t)control;
    return st;
}

status service_state_parse(const char *name, const char *data, size_t len,
                           struct service_state *state_p, struct err *err)
{
    struct service_state s;
    json_error_t at;
    json_t *root = json_read(data, len, JSON_REJECT_DUPLICATES, &at);
    const struct fields f = { name, root, err };

    memset(&s, 0, sizeof(s));
    if (root == NULL) {
        return json_read_lacked_memory()
                   ? err_set(err, ST_ERR_NOMEM, "%s: no memory for its JSON", name)
                   : err_set(err, ST_ERR_FORMAT, "%s is not JSON: line %d, column %d", name,
                             at.line, at.column);
    }
    const status st = state_get(&f, &s);
    json_decref(root);
    if (st < 0) {
        service_state_fini(&s);
        return st;
    }
    *state_p = s;
    return ST_OK;
}

status service_state_read(const char *dir, struct service_state *state_p, struct err *err)
{
    char path[PATH_MAX_BYTES];
    struct buf text = BUF_INIT_MAX(FILE_BYTES_MAX + 1);

    snprintf(path, sizeof(path), "%s/service.json", dir);
    status st = buf_read_file(&text, path, FILE_BYTES_MAX, err);
    if (st == ST_OK) {
        st = service_state_parse(path, text.data, text.len, state_p, err);
    }
    buf_fini(&text);
    return st;
}

/* ---- write ---- */

static json_t *state_json(const struct service_state *s)
{
    json_t *list = json_array();
    bool ok = true;
    char plan[24];

    for (uint32_t i = 0; i < s->n_replicas; i++) {
        const struct service_replica *r = &s->replicas[i];
        json_add(list,
                 json_pack("{s:I, s:I, s:I, s:I, s:s}", "generation", (json_int_t)r->generation,
                           "pid", (json_int_t)r->pid, "start_ticks", (json_int_t)r->start_ticks,
                           "log_begin", (json_int_t)r->log_begin, "shm_dir", r->shm_dir),
                 &ok);
    }
    snprintf(plan, sizeof(plan), "%016" PRIx64, s->plan_digest);
    return json_pack("{s:i, s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:o}", "version",
                     (int)SERVICE_VERSION, "epoch", (json_int_t)s->epoch, "build", s->build, "host",
                     s->host, "boot_id", s->boot_id, "run_dir", s->run_dir, "weights_digest",
                     s->weights_digest, "plan_digest", plan, "port", (int)s->port, "control_port",
                     (int)s->control_port, "replicas", json_whole(list, ok));
}

status service_state_write(const char *dir, const struct service_state *s, struct err *err)
{
    char path[PATH_MAX_BYTES];
    json_t *root = state_json(s);
    char *text = root != NULL ? json_dumps(root, JSON_INDENT(2)) : NULL;

    json_decref(root);
    snprintf(path, sizeof(path), "%s/service.json", dir);
    if (text == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for %s", path);
    }
    const status st = file_replace(path, text, strlen(text), err);
    free(text);
    return st;
}

void service_state_remove(const char *dir)
{
    char path[PATH_MAX_BYTES];

    snprintf(path, sizeof(path), "%s/service.json", dir);
    unlink(path);
}
