/* coordinator/cli/batch_in.c - see batch.h: records of requests, read and checked. */
#include "coordinator/cli/batch.h"
#include "model/json_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- fields ---- */

enum field_kind { FIELD_U32, FIELD_FLOAT, FIELD_BOOL };

struct field {
    const char *name;
    enum field_kind kind;
    size_t offset, has_offset; /* in msg_generate; has_offset 0: none */
};

#define FIELD(f, k)                                                                                \
    {                                                                                              \
#f, k, offsetof(struct msg_generate, f), offsetof(struct msg_generate, has_##f)            \
    }

static const struct field fields[] = {
    FIELD(max_tokens, FIELD_U32),
    FIELD(top_k, FIELD_U32),
    FIELD(logprobs, FIELD_U32),
    FIELD(n, FIELD_U32),
    FIELD(temperature, FIELD_FLOAT),
    FIELD(top_p, FIELD_FLOAT),
    FIELD(min_p, FIELD_FLOAT),
    FIELD(presence_penalty, FIELD_FLOAT),
    FIELD(frequency_penalty, FIELD_FLOAT),
    FIELD(repetition_penalty, FIELD_FLOAT),
    { "ignore_eos", FIELD_BOOL, offsetof(struct msg_generate, ignore_eos), 0 },
};

static status bad(struct err *err, const char *name, const json_t *v, const char *wanted)
{
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);

    err_set(err, ST_ERR_FORMAT, "\"%s\" is %.60s; %s", name, text != NULL ? text : "?", wanted);
    free(text);
    return ST_ERR_FORMAT;
}

static status u32_read(const char *name, const json_t *v, uint32_t *value_p, struct err *err)
{
    const json_int_t n = json_integer_value(v);

    if (!json_is_integer(v) || n < 0 || n > (json_int_t)UINT32_MAX) {
        return bad(err, name, v, "a whole number of 0 .. 4294967295 is wanted");
    }
    *value_p = (uint32_t)n;
    return ST_OK;
}

static status field_read(const struct field *f, const json_t *v, struct msg_generate *m,
                         struct err *err)
{
    char *base = (char *)m;
    status st = ST_OK;

    if (f->kind == FIELD_U32) {
        st = u32_read(f->name, v, (uint32_t *)(void *)(base + f->offset), err);
    } else if (f->kind == FIELD_FLOAT) {
        if (!json_is_number(v)) {
            return bad(err, f->name, v, "a number is wanted");
        }
        *(float *)(void *)(base + f->offset) = (float)json_number_value(v);
    } else {
        if (!json_is_boolean(v)) {
            return bad(err, f->name, v, "true or false is wanted");
        }
        *(bool *)(base + f->offset) = json_is_true(v);
    }
    if (st == ST_OK && f->has_offset != 0) {
        *(bool *)(base + f->has_offset) = true;
    }
    return st;
}

/* A number, or a string of digits: not all 64 bits fit a JSON number everywhere. */
static status seed_read(const json_t *v, struct msg_generate *m, struct err *err)
{
    const char *text = json_string_value(v);
    char *end = NULL;

    errno = 0;
    if (json_is_integer(v) && json_integer_value(v) >= 0) {
        m->seed = (uint64_t)json_integer_value(v);
    } else if (text != NULL && text[0] >= '0' && text[0] <= '9') {
        m->seed = strtoull(text, &end, 10);
    }
    if (!json_is_integer(v) && (end == NULL || *end != '\0' || errno != 0)) {
        return bad(err, "seed", v, "a whole number, or one in quotes, is wanted");
    }
    if (json_is_integer(v) && json_integer_value(v) < 0) {
        return bad(err, "seed", v, "a whole number of 0 and above is wanted");
    }
    m->has_seed = true;
    return ST_OK;
}

static status id_list_read(const char *name, const json_t *v, uint32_t *ids, struct err *err)
{
    for (size_t i = 0; i < json_array_size(v); i++) {
        const status st = u32_read(name, json_array_get(v, i), &ids[i], err);
        if (st < 0) {
            return st;
        }
    }
    return ST_OK;
}

static status ids_read(struct batch_request *r, struct err *err)
{
    const json_t *prompt = json_object_get(r->root, "prompt_ids");
    const json_t *stop = json_object_get(r->root, "stop_ids");
    const size_t n_prompt = json_array_size(prompt), n_stop = json_array_size(stop);
    status st;

    if (prompt != NULL && !json_is_array(prompt)) {
        return bad(err, "prompt_ids", prompt, "an array of token ids is wanted");
    }
    if (stop != NULL && (!json_is_array(stop) || n_stop > MSG_STOP_IDS_MAX)) {
        return bad(err, "stop_ids", stop, "an array of at most 64 token ids is wanted");
    }
    r->ids = calloc(n_prompt + n_stop + 1, sizeof(*r->ids));
    if (r->ids == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for %zu token ids", n_prompt);
    }
    st = id_list_read("prompt_ids", prompt, r->ids, err);
    if (st == ST_OK) {
        st = id_list_read("stop_ids", stop, r->ids + n_prompt, err);
    }
    r->m.has_prompt_ids = prompt != NULL;
    r->m.prompt_ids = r->ids;
    r->m.n_prompt_ids = (uint32_t)n_prompt;
    r->m.stop_ids = r->ids + n_prompt;
    r->m.n_stop_ids = (uint32_t)n_stop;
    return st;
}

static struct msg_str str_of(const json_t *v)
{
    return (struct msg_str){ json_string_value(v), json_string_length(v) };
}

static status stops_read(struct batch_request *r, struct err *err)
{
    const json_t *v = json_object_get(r->root, "stop");
    const size_t n = json_is_array(v) ? json_array_size(v) : 1;

    if (v == NULL) {
        return ST_OK;
    }
    if (n > MSG_STOP_STRINGS_MAX) {
        return bad(err, "stop", v, "at most 16 strings are allowed");
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_string(one)) {
            return bad(err, "stop", one, "a string, or an array of strings, is wanted");
        }
        r->stops[i] = str_of(one);
    }
    r->m.stop = r->stops;
    r->m.n_stop = (uint32_t)n;
    return ST_OK;
}

static status biases_read(struct batch_request *r, struct err *err)
{
    json_t *v = json_object_get(r->root, "logit_bias"), *one;
    const char *key;
    uint32_t n = 0;

    if (v == NULL) {
        return ST_OK;
    }
    if (!json_is_object(v)) {
        return bad(err, "logit_bias", v, "an object {\"ID\": BIAS, ..} is wanted");
    }
    r->biases = calloc(json_object_size(v) + 1, sizeof(*r->biases));
    if (r->biases == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for logit_bias");
    }
    json_object_foreach(v, key, one)
    {
        char *end;
        errno = 0;
        const unsigned long id = strtoul(key, &end, 10);
        if (key[0] < '0' || key[0] > '9' || *end != '\0' || errno != 0 || id > UINT32_MAX ||
            !json_is_number(one)) {
            return bad(err, "logit_bias", v, "an object {\"ID\": BIAS, ..} is wanted");
        }
        r->biases[n].id = (uint32_t)id;
        r->biases[n++].bias = (float)json_number_value(one);
    }
    r->m.biases = r->biases;
    r->m.n_biases = n;
    return ST_OK;
}

static status id_read(struct batch_request *r, uint64_t number, struct err *err)
{
    const json_t *v = json_object_get(r->root, "id");
    const char *text = json_string_value(v);

    if (v == NULL) {
        snprintf(r->id, sizeof(r->id), "%" PRIu64, number);
    } else if (json_is_integer(v)) {
        snprintf(r->id, sizeof(r->id), "%" JSON_INTEGER_FORMAT, json_integer_value(v));
    } else if (text == NULL || text[0] == '\0' || json_string_length(v) >= sizeof(r->id) ||
               strlen(text) != json_string_length(v)) {
        return bad(err, "id", v, "a string of 1 .. 128 bytes or a whole number is wanted");
    } else {
        snprintf(r->id, sizeof(r->id), "%s", text);
    }
    return ST_OK;
}

static status prompt_read(struct batch_request *r, struct err *err)
{
    const json_t *v = json_object_get(r->root, "prompt");

    if ((v != NULL) == (json_object_get(r->root, "prompt_ids") != NULL)) {
        return err_set(err, ST_ERR_FORMAT, "either \"prompt\" or \"prompt_ids\" is wanted");
    }
    if (v == NULL) {
        return ST_OK;
    }
    if (!json_is_string(v) || json_string_length(v) > MSG_PROMPT_BYTES_MAX ||
        memchr(json_string_value(v), 0, json_string_length(v)) != NULL) {
        return bad(err, "prompt", v, "a string of at most 4 MiB without NUL is wanted");
    }
    r->m.prompt = str_of(v);
    return ST_OK;
}

static status others_read(struct batch_request *r, struct err *err)
{
    static const char *const known[] = { "id",       "prompt", "prompt_ids", "stop",
                                         "stop_ids", "seed",   "logit_bias" };
    json_t *v;
    const char *key;

    json_object_foreach(r->root, key, v)
    {
        status st = ST_ERR_NOT_FOUND;
        for (size_t i = 0; i < ARRAY_LEN(known); i++) {
            st = strcmp(key, known[i]) == 0 ? ST_OK : st;
        }
        for (size_t i = 0; i < ARRAY_LEN(fields) && st == ST_ERR_NOT_FOUND; i++) {
            if (strcmp(key, fields[i].name) == 0) {
                st = field_read(&fields[i], v, &r->m, err);
            }
        }
        if (st == ST_ERR_NOT_FOUND) {
            return err_set(err, ST_ERR_FORMAT, "\"%.60s\" is no field of a request (docs/api.md)",
                           key);
        }
        if (st < 0) {
            return st;
        }
    }
    return ST_OK;
}

status batch_request_parse(const char *line, size_t len, uint64_t number,
                           struct batch_request *request_p, struct err *err)
{
    struct batch_request *r = request_p;
    json_error_t at;
    status st = ST_OK;

    memset(r, 0, sizeof(*r));
    r->m.request_id = ""; /* the service's own: one of ours may still be running after a restart */
    r->root = json_read(line, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &at);
    if (r->root == NULL && json_read_lacked_memory()) {
        st = err_set(err, ST_ERR_NOMEM, "no memory for a record");
    } else if (r->root == NULL) {
        st = err_set(err, ST_ERR_FORMAT, "not JSON: %s (column %d)", at.text, at.column);
    } else if (!json_is_object(r->root)) {
        st = err_set(err, ST_ERR_FORMAT, "a record is a JSON object {..}");
    }
    (void)(st || (st = id_read(r, number, err)) || (st = others_read(r, err)) ||
           (st = prompt_read(r, err)) || (st = ids_read(r, err)) || (st = stops_read(r, err)) ||
           (st = biases_read(r, err)));
    const json_t *seed = st == ST_OK ? json_object_get(r->root, "seed") : NULL;
    if (seed != NULL) {
        st = seed_read(seed, &r->m, err);
    } else if (st == ST_OK) { /* the same one at every start */
        r->m.seed = hash64_of(line, len, 0);
        r->m.has_seed = true;
    }
    if (st < 0) {
        batch_request_fini(r);
    }
    return st;
}

void batch_request_fini(struct batch_request *r)
{
    free(r->ids);
    free(r->biases);
    json_decref(r->root);
    memset(r, 0, sizeof(*r));
}

/* ---- the file ---- */

static uint32_t *bucket_of(const struct batch_in *in, const char *id)
{
    return &in->buckets[hash64_of(id, strlen(id), 0) & in->mask];
}

const char *batch_in_id(const struct batch_in *in, uint32_t i)
{
    return in->ids.data + in->records[i].id;
}

bool batch_in_find(const struct batch_in *in, const char *id, uint32_t *i_p)
{
    for (uint32_t at = in->buckets != NULL ? *bucket_of(in, id) : 0; at != 0;
         at = in->next[at - 1]) {
        if (strcmp(batch_in_id(in, at - 1), id) == 0) {
            *i_p = at - 1;
            return true;
        }
    }
    return false;
}

static bool grow(struct batch_in *in)
{
    const uint32_t n = in->n_max == 0 ? 1024 : in->n_max * 2;
    struct batch_record *records = realloc(in->records, n * sizeof(*records));

    in->records = records != NULL ? records : in->records;
    uint32_t *next = realloc(in->next, n * sizeof(*next));
    in->next = next != NULL ? next : in->next;
    uint32_t *buckets = realloc(in->buckets, n * sizeof(*buckets));
    in->buckets = buckets != NULL ? buckets : in->buckets;
    if (records == NULL || next == NULL || buckets == NULL) {
        return false;
    }
    in->n_max = n;
    in->mask = n - 1;
    memset(buckets, 0, n * sizeof(*buckets));
    for (uint32_t i = 0; i < in->n; i++) {
        uint32_t *at = bucket_of(in, batch_in_id(in, i));
        next[i] = *at;
        *at = i + 1;
    }
    return true;
}

static void digest_line(struct batch_in *in, const char *line, size_t len)
{
    struct hash128 both[2] = { in->digest, hash128_of(line, len) };

    in->digest = hash128_of(both, sizeof(both));
}

static status record_add(struct batch_in *in, const char *line, size_t len, uint64_t offset,
                         uint64_t number, struct err *err)
{
    struct batch_request r;
    uint32_t other;
    status st = batch_request_parse(line, len, number, &r, err);

    if (st < 0) {
        return st;
    }
    if (batch_in_find(in, r.id, &other)) {
        st = err_set(err, ST_ERR_FORMAT, "id \"%s\" was given before; ids are unique", r.id);
    } else if (in->n == BATCH_RECORDS_MAX) {
        st = err_set(err, ST_ERR_LIMIT, "more than %d records", (int)BATCH_RECORDS_MAX);
    } else if (in->n == in->n_max && !grow(in)) {
        st = err_set(err, ST_ERR_NOMEM, "no memory for %u records", in->n + 1);
    }
    const uint64_t id = in->ids.len;
    if (st == ST_OK && buf_append(&in->ids, r.id, strlen(r.id) + 1) < 0) {
        st = err_set(err, ST_ERR_NOMEM, "no memory for the ids of %u records", in->n + 1);
    }
    batch_request_fini(&r);
    if (st < 0) {
        return st;
    }
    in->records[in->n] = (struct batch_record){ .offset = offset, .len = (uint32_t)len, .id = id };
    uint32_t *at = bucket_of(in, batch_in_id(in, in->n));
    in->next[in->n] = *at;
    *at = ++in->n;
    digest_line(in, line, len);
    return ST_OK;
}

static bool is_blank(const char *line, size_t len)
{
    return strspn(line, " \t\r\n") >= len;
}

/* Every line of the file. */
static status lines_read(struct batch_in *in, FILE *file, struct err *err)
{
    char *line = NULL;
    size_t size = 0;
    uint64_t offset = 0, number = 0;
    status st = ST_OK;

    for (ssize_t n; st == ST_OK && (n = getline(&line, &size, file)) >= 0; offset += (uint64_t)n) {
        const size_t len = n > 0 && line[n - 1] == '\n' ? (size_t)n - 1 : (size_t)n;
        number++;
        if (len > BATCH_LINE_MAX) {
            st = err_set(err, ST_ERR_LIMIT, "a record of %zu bytes; at most %d are allowed", len,
                         (int)BATCH_LINE_MAX);
        } else if (!is_blank(line, len)) {
            st = record_add(in, line, len, offset, number, err);
        }
        if (st < 0) {
            err_prefix(err, "%s, line %" PRIu64 ": ", in->path, number);
        }
    }
    if (st == ST_OK && !feof(file)) { /* ferror() says nothing of memory for a line */
        st = err_set_errno(err, errno == ENOMEM ? ST_ERR_NOMEM : ST_ERR_IO, errno,
                           "%s cannot be read", in->path);
    }
    free(line);
    return st;
}

status batch_in_open(const char *path, struct batch_in *in_p, struct err *err)
{
    struct batch_in in = { .path = path, .fd = -1, .ids = BUF_INIT_MAX((size_t)1 << 36) };
    FILE *file = fopen(path, "re");

    if (file == NULL) {
        return err_set_errno(err, errno == ENOENT ? ST_ERR_NOT_FOUND : ST_ERR_IO, errno, "%s",
                             path);
    }
    status st = lines_read(&in, file, err);
    fclose(file);
    if (st == ST_OK && in.n == 0) {
        st = err_set(err, ST_ERR_FORMAT, "%s holds no record", path);
    }
    if (st == ST_OK && (in.fd = open(path, O_RDONLY | O_CLOEXEC)) < 0) {
        st = err_set_errno(err, ST_ERR_IO, errno, "%s", path);
    }
    if (st < 0) {
        batch_in_close(&in);
        return st;
    }
    *in_p = in;
    return ST_OK;
}

void batch_in_close(struct batch_in *in)
{
    if (in->fd >= 0) {
        close(in->fd);
        in->fd = -1;
    }
    free(in->records);
    free(in->next);
    free(in->buckets);
    in->records = NULL;
    in->next = in->buckets = NULL;
    buf_fini(&in->ids);
}

status batch_in_request(const struct batch_in *in, uint32_t i, struct buf *line,
                        struct batch_request *request_p, struct err *err)
{
    const struct batch_record *r = &in->records[i];

    buf_reset(line);
    if (buf_reserve(line, r->len) < 0) {
        return err_set(err, ST_ERR_NOMEM, "no memory for record \"%s\"", batch_in_id(in, i));
    }
    for (size_t got = 0; got < r->len;) {
        const ssize_t n = pread(in->fd, line->data + got, r->len - got, (off_t)(r->offset + got));
        if (n == 0 || (n < 0 && errno != EINTR)) {
            return err_set_errno(err, ST_ERR_IO, n == 0 ? EIO : errno,
                                 "%s has changed while it was read: record \"%s\"", in->path,
                                 batch_in_id(in, i));
        }
        got += n > 0 ? (size_t)n : 0;
    }
    line->len = r->len;
    line->data[line->len] = '\0';
    status st = batch_request_parse(line->data, line->len, 0, request_p, err);
    if (st < 0) {
        err_prefix(err, "%s has changed: record \"%s\": ", in->path, batch_in_id(in, i));
    }
    return st;
}
