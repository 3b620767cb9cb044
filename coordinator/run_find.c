/* coordinator/run_find.c - see run_find.h. */
#include "coordinator/run_find.h"

#include "model/json_memory.h"

#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FILE_BYTES_MAX = 64 << 10 };

/* Where clients go. */
static void service_read(const json_t *root, char *service, size_t bytes)
{
    const char *host = json_string_value(json_object_get(root, "host"));
    const json_int_t port = json_integer_value(json_object_get(root, "port"));

    service[0] = '\0';
    if (host != NULL && (strcmp(host, "0.0.0.0") == 0 || strspn(host, "[:]") == strlen(host))) {
        host = json_string_value(json_object_get(root, "run_host")); /* it listens on all of them */
    }
    if (host != NULL && host[0] != '\0' && port > 0 && port <= UINT16_MAX) {
        const bool is_v6 = strchr(host, ':') != NULL && host[0] != '[';
        const int n = snprintf(service, bytes, "%s%s%s:%d", is_v6 ? "[" : "", host,
                               is_v6 ? "]" : "", (int)port);
        if (n < 0 || (size_t)n >= bytes) {
            service[0] = '\0';
        }
    }
}

static status endpoint_read(const char *file, const struct buf *text, struct run_found *f,
                            struct err *err)
{
    json_error_t at;
    json_t *root = json_read(text->data, text->len, JSON_REJECT_DUPLICATES, &at);
    const char *word = json_string_value(json_object_get(root, "control"));
    status st = ST_OK;

    if (root == NULL && json_read_lacked_memory()) {
        st = err_set(err, ST_ERR_NOMEM, "%s: no memory for its JSON", file);
    } else if (root == NULL) {
        st = err_set(err, ST_ERR_FORMAT, "%s is not JSON: %s (line %d)", file, at.text, at.line);
    } else if (word == NULL || strrchr(word, ':') == NULL || strlen(word) >= sizeof(f->control)) {
        st = err_set(err, ST_ERR_FORMAT, "%s has no \"control\" of the form HOST:PORT", file);
    } else {
        snprintf(f->control, sizeof(f->control), "%s", word);
        service_read(root, f->service, sizeof(f->service));
    }
    json_decref(root);
    return st;
}

static status found_read(struct run_found *f, struct err *err)
{
    char file[RUN_DIR_PATH_BYTES + 16];
    struct buf text = BUF_INIT_MAX(FILE_BYTES_MAX + 1);

    snprintf(file, sizeof(file), "%s/endpoint.json", f->path);
    snprintf(f->token_path, sizeof(f->token_path), "%s/token", f->path);
    status st = buf_read_file(&text, file, FILE_BYTES_MAX, err);
    if (st == ST_OK) {
        st = endpoint_read(file, &text, f, err);
    } else {
        err_prefix(err, "no service runs in %s: ", f->path);
    }
    buf_fini(&text);
    return st;
}

/* Directories with an endpoint in them; names of the first ones into `names`. */
static uint32_t look_below(const char *home, struct run_found *f, char *names, size_t bytes)
{
    char base[RUN_DIR_PATH_BYTES / 2], file[RUN_DIR_PATH_BYTES + 16];
    uint32_t n = 0;
    size_t used = 0;

    snprintf(base, sizeof(base), "%s/.gantry/run", home);
    DIR *dir = opendir(base);
    for (const struct dirent *e; dir != NULL && (e = readdir(dir)) != NULL;) {
        if (e->d_name[0] == '.') {
            continue;
        }
        char path[RUN_DIR_PATH_BYTES];
        snprintf(path, sizeof(path), "%s/%s", base, e->d_name);
        snprintf(file, sizeof(file), "%s/endpoint.json", path);
        if (access(file, R_OK) != 0) {
            continue;
        }
        n++;
        memcpy(f->path, path, sizeof(path));
        const int len = snprintf(names + used, bytes - used, "%s%s", n > 1 ? ", " : "", path);
        used = MIN(used + (size_t)MAX(len, 0), bytes - 1);
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return n;
}

static status only_one(struct run_found *f, struct err *err)
{
    const char *home = getenv("HOME");
    char names[400] = "";

    if (home == NULL || home[0] != '/') {
        return err_set(err, ST_ERR_ARG, "HOME is not set; give --run-dir");
    }
    const uint32_t n = look_below(home, f, names, sizeof(names));
    if (n == 0) {
        return err_set(err, ST_ERR_NOT_FOUND,
                       "no service has its run directory below %s/.gantry/run; give --run-dir",
                       home);
    }
    if (n > 1) {
        return err_set(err, ST_ERR_ARG, "%u services are there; give --run-dir, one of %s", n,
                       names);
    }
    return ST_OK;
}

status run_find(const char *path, struct run_found *found_p, struct err *err)
{
    struct run_found f;
    status st = ST_OK;

    memset(&f, 0, sizeof(f));
    if (path == NULL) {
        st = only_one(&f, err);
    } else if (path[0] == '\0' || strlen(path) >= sizeof(f.path)) {
        st = err_set(err, ST_ERR_ARG, "--run-dir has %zu bytes; 1 .. %d are allowed", strlen(path),
                     (int)RUN_DIR_PATH_BYTES - 1);
    } else {
        snprintf(f.path, sizeof(f.path), "%s", path);
    }
    if (st == ST_OK) {
        st = found_read(&f, err);
    }
    if (st == ST_OK) {
        *found_p = f;
    }
    return st;
}
