/* coordinator/run_dir.c - see run_dir.h. */
#include "coordinator/run_dir.h"

#include "base/secret.h"
#include "coordinator/dir.h"
#include "model/json_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SECRET_BYTES = 32, FILE_BYTES_MAX = 64 << 10 };

/* ---- directory ---- */

static status default_path(char path[RUN_DIR_PATH_BYTES], struct err *err)
{
    const char *home = getenv("HOME");
    char host[256] = "localhost";

    if (home == NULL || home[0] != '/') {
        return err_set(err, ST_ERR_ARG,
                       "HOME is not set, so there is no default run directory; give --run-dir");
    }
    gethostname(host, sizeof(host) - 1);
    const int n =
        snprintf(path, RUN_DIR_PATH_BYTES, "%s/.gantry/run/%s-%d", home, host, (int)getpid());
    if (n < 0 || n >= RUN_DIR_PATH_BYTES) {
        return err_set(err, ST_ERR_LIMIT,
                       "the run directory's path is over %d bytes; give --run-dir",
                       (int)RUN_DIR_PATH_BYTES);
    }
    return ST_OK;
}

/* Another service that runs and lives in this directory? */
static status owner_check(const char *path, struct err *err)
{
    char file[RUN_DIR_PATH_BYTES + 16], host[256] = "";
    struct buf text = BUF_INIT;
    struct err why = ERR_INIT;
    json_error_t at;

    snprintf(file, sizeof(file), "%s/endpoint.json", path);
    const status st = buf_read_file(&text, file, FILE_BYTES_MAX, &why);
    if (st != ST_OK) {
        buf_fini(&text);
        return st == ST_ERR_NOT_FOUND ? ST_OK : err_set(err, st, "%s", why.text);
    }
    json_t *root = json_read(text.data, text.len, 0, &at);
    buf_fini(&text);
    if (root == NULL) { /* or the rest of a crash */
        return !json_read_lacked_memory()
                   ? ST_OK
                   : err_set(err, ST_ERR_NOMEM, "%s: no memory for its JSON", file);
    }
    const char *there = json_string_value(json_object_get(root, "run_host"));
    const json_int_t pid = json_integer_value(json_object_get(root, "pid"));
    gethostname(host, sizeof(host) - 1);
    const bool runs = there != NULL && strcmp(there, host) == 0 && pid > 0 && pid != getpid() &&
                      kill((pid_t)pid, 0) == 0;
    json_decref(root);
    if (runs) {
        return err_set(err, ST_ERR_EXISTS, "run directory %s belongs to the running service pid %d",
                       path, (int)pid);
    }
    return ST_OK;
}

/* ---- files ---- */

static status token_make(struct run_dir *d, struct err *err)
{
    unsigned char secret[SECRET_BYTES];

    if (getrandom(secret, sizeof(secret), 0) != (ssize_t)sizeof(secret)) {
        return err_set_errno(err, ST_ERR_INTERNAL, errno, "no random bytes for a token");
    }
    for (size_t i = 0; i < SECRET_BYTES; i++) {
        snprintf(d->token + 2 * i, 3, "%02x", secret[i]);
    }
    snprintf(d->token_path, sizeof(d->token_path), "%s/token", d->path);
    return file_replace(d->token_path, d->token, strlen(d->token), err);
}

status run_dir_token(struct run_dir *dir, const char *token, struct err *err)
{
    if (strlen(token) >= sizeof(dir->token)) {
        return err_set(err, ST_ERR_LIMIT, "the secret has %zu bytes, at most %zu are allowed",
                       strlen(token), sizeof(dir->token) - 1);
    }
    snprintf(dir->token, sizeof(dir->token), "%s", token);
    return file_replace(dir->token_path, dir->token, strlen(dir->token), err);
}

/* The one that is there, if it can be a token. */
static status token_keep(struct run_dir *d, struct err *err)
{
    struct buf text = BUF_INIT_MAX(1 << 20);
    struct err why = ERR_INIT;

    snprintf(d->token_path, sizeof(d->token_path), "%s/token", d->path);
    const bool is_there = secret_read(d->token_path, &text, &why) == ST_OK &&
                          text.len == 2 * (size_t)SECRET_BYTES &&
                          strspn(text.data, "0123456789abcdef") == text.len;
    if (is_there) {
        memcpy(d->token, text.data, text.len + 1);
    }
    buf_fini(&text);
    return is_there ? ST_OK : token_make(d, err);
}

static status open_dir(const char *path, bool keep_token, struct run_dir *dir_p, struct err *err)
{
    struct run_dir d;
    status st;

    memset(&d, 0, sizeof(d));
    d.is_default = path == NULL;
    if (path == NULL) {
        st = default_path(d.path, err);
        if (st < 0) {
            return st;
        }
    } else if (path[0] == '\0' || strlen(path) >= sizeof(d.path)) {
        return err_set(err, ST_ERR_ARG, "--run-dir has %zu bytes; 1 .. %d are allowed",
                       strlen(path), (int)RUN_DIR_PATH_BYTES - 1);
    } else {
        snprintf(d.path, sizeof(d.path), "%s", path);
    }
    st = dir_make(d.path, "run directory", 022, err);
    if (st == ST_OK) {
        st = owner_check(d.path, err);
    }
    if (st == ST_OK) {
        st = keep_token ? token_keep(&d, err) : token_make(&d, err);
    }
    if (st < 0) {
        return st;
    }
    d.is_open = true;
    *dir_p = d;
    return ST_OK;
}

status run_dir_open(const char *path, struct run_dir *dir_p, struct err *err)
{
    return open_dir(path, false, dir_p, err);
}

status run_dir_open_kept(const char *path, struct run_dir *dir_p, struct err *err)
{
    return open_dir(path, true, dir_p, err);
}

status run_dir_endpoint(const struct run_dir *dir, const struct run_endpoint *e, struct err *err)
{
    char file[RUN_DIR_PATH_BYTES + 16], host[256] = "";

    gethostname(host, sizeof(host) - 1);
    json_t *root = json_pack("{s:s, s:i, s:s, s:i, s:i, s:s, s:s, s:s, s:s, s:s, s:s}", "host",
                             e->host, "port", (int)e->port, "control", e->control, "control_port",
                             (int)e->control_port, "pid", (int)getpid(), "run_host", host, "state",
                             e->state, "model", e->model, "profile", e->profile, "weights_digest",
                             e->weights_digest, "token_file", dir->token_path);
    char *text = root != NULL ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    if (text == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for %s/endpoint.json", dir->path);
    }
    snprintf(file, sizeof(file), "%s/endpoint.json", dir->path);
    const status st = file_replace(file, text, strlen(text), err);
    free(text);
    return st;
}

void run_dir_close(struct run_dir *dir, bool clean)
{
    char file[RUN_DIR_PATH_BYTES + 32];

    if (!dir->is_open) {
        return;
    }
    snprintf(file, sizeof(file), "%s/endpoint.json", dir->path);
    unlink(file);
    unlink(dir->token_path);
    if (clean && dir->is_default) {
        snprintf(file, sizeof(file), "%s/mpirun.log", dir->path);
        unlink(file);
        for (int i = 1, rc = 0; rc == 0; i++) { /* of the other replicas */
            snprintf(file, sizeof(file), "%s/mpirun-%d.log", dir->path, i);
            rc = unlink(file);
        }
    }
    if (dir->is_default) {
        rmdir(dir->path); /* stays while there is a log in it */
    }
    dir->is_open = false;
}
