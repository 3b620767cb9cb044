/* coordinator/cli/generate.c - `gantry generate`: one request, its text to stdout as it comes.
 *
 * Text goes to stdout and nothing else does, so that the command can stand in a pipe; what went
 * wrong is one sentence on stderr and an exit code (base/err.h). */
#include "coordinator/cli/cli.h"
#include "coordinator/cli/client.h"
#include "coordinator/cli/signals.h"

#include "base/clock.h"
#include "proto/msg.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OWN_ROWS = 24, ANSWER_BYTES_MAX = 256 << 20 };

struct run {
    struct client client;
    struct client_opts client_opts;
    struct msg_generate request;
    struct opt_list stops, stop_ids, bias_args;
    struct msg_bias biases[OPT_LIST_MAX];
    uint32_t *ids; /* owned: prompt ids, then stop ids */
    const char *prompt_ids;
    const char *prompt_arg;
    struct buf prompt;
    struct msg_str stop_strings[OPT_LIST_MAX];
    uint32_t timeout_s;
    bool json, stats;
    struct msg_finished finished; /* of the last message; its strings are not kept */
    char profiles[MSG_PROFILES_MAX * (MSG_PROFILE_BYTES + 2)]; /* but these, if there are several */
    uint32_t completion_tokens;                                /* of all choices */

    /* With several choices their texts come mixed: each is held until those before it are out. */
    struct buf texts[MSG_CHOICES_MAX];
    bool is_over[MSG_CHOICES_MAX];
    uint32_t n_printed;

    struct rpc_call *call;
    struct signals signals;
    status st;
    char text[1100]; /* the sentence of a failure */
    bool wrote, ends_with_newline;
};

static const char about[] =
    "Asks a running service (gantry serve) to go on from PROMPT and writes the text to standard "
    "output as it comes. PROMPT \"-\" is read from standard input. Without --temperature the "
    "service samples at temperature 1; --temperature 0 always takes the most probable token. The "
    "same --seed gives the same answer, on any number of ranks. With --n the answers come one "
    "after "
    "the other under a line of their own, the first of them the one that --n 1 gives.";

static const char examples[] =
    "  gantry generate \"Once upon a time\" --max-tokens 64\n"
    "  gantry generate \"The capital of France is\" --temperature 0 --stop .\n"
    "  gantry generate - --json < prompt.txt\n";

/* ---- options ---- */

static status parse(struct run *r, int argc, char **argv, struct err *err)
{
    struct msg_generate *q = &r->request;
    const struct opt own[OWN_ROWS] = {
        { .kind = OPT_HEADING, .help = "Sampling" },
        { OPT_U32, "max-tokens", "N", &q->max_tokens, 0, 0,
          "tokens to generate at most (default: until the context is full)", &q->has_max_tokens },
        { OPT_FLOAT, "temperature", "T", &q->temperature, 0, 0,
          "0 .. 100; 0 takes the most probable token (default 1)", &q->has_temperature },
        { OPT_U32, "top-k", "K", &q->top_k, 0, 0, "only the K most probable tokens; 0: all",
          &q->has_top_k },
        { OPT_FLOAT, "top-p", "P", &q->top_p, 0, 0,
          "only the most probable tokens that together reach P", &q->has_top_p },
        { OPT_FLOAT, "min-p", "P", &q->min_p, 0, 0,
          "only tokens at least P times as probable as the best", &q->has_min_p },
        { OPT_FLOAT, "presence-penalty", "P", &q->presence_penalty, 0, 0,
          "-2 .. 2, taken from the logit of what the answer holds already (default 0)",
          &q->has_presence_penalty },
        { OPT_FLOAT, "frequency-penalty", "P", &q->frequency_penalty, 0, 0,
          "the same, for each time that it does (default 0)", &q->has_frequency_penalty },
        { OPT_FLOAT, "repetition-penalty", "R", &q->repetition_penalty, 0, 0,
          "above 1: what prompt or answer hold becomes less likely (default 1)",
          &q->has_repetition_penalty },
        { OPT_U32, "n", "N", &q->n, 0, 0, "answers to the same prompt, 1 .. 16 (default 1)",
          &q->has_n },
        { OPT_LIST, "logit-bias", "ID:BIAS", &r->bias_args, 0, 0,
          "add -100 .. 100 to the logit of a token", NULL },
        { OPT_U64, "seed", "N", &q->seed, 0, 0, "for the same answer again (default: drawn)",
          &q->has_seed },
        { OPT_LIST, "stop", "TEXT", &r->stops, 0, 0, "end before this text", NULL },
        { OPT_LIST, "stop-id", "ID", &r->stop_ids, 0, 0, "end at this token", NULL },
        { OPT_FLAG, "ignore-eos", NULL, &q->ignore_eos, 0, 0, "go on past the model's own end",
          NULL },
        { .kind = OPT_HEADING, .help = "Request" },
        { OPT_STRING, "prompt-ids", "1,2,3", &r->prompt_ids, 0, 0,
          "token ids in place of PROMPT; no BOS is added", NULL },
        { OPT_U32, "logprobs", "K", &q->logprobs, 0, 0,
          "report log-probabilities: the token's and the K best (with --json)", &q->has_logprobs },
        { OPT_STRING, "request-id", "ID", &q->request_id, 0, 0, "name of this request in logs",
          NULL },
        { OPT_FLAG, "exact", NULL, &q->exact, 0, 0,
          "never go on at a replica of another numeric profile", NULL },
        { OPT_U32, "timeout", "SECONDS", &r->timeout_s, 1, 86400 * 7.0,
          "give up after so long (default: never)", NULL },
        { OPT_FLAG, "json", NULL, &r->json, 0, 0, "one JSON object per message, with token ids",
          NULL },
        { OPT_FLAG, "stats", NULL, &r->stats, 0, 0,
          "at the end one line on standard error: tokens, times, tokens per second", NULL },
        { .kind = OPT_HEADING, .help = "Service" },
    };
    struct opt rows[OWN_ROWS + CLIENT_OPT_ROWS];

    memcpy(rows, own, sizeof(own));
    client_opts_rows(&r->client_opts, rows + OWN_ROWS);
    const struct opts opts = { .usage = "gantry generate PROMPT [options]",
                               .about = about,
                               .options = rows,
                               .n_options = OWN_ROWS + CLIENT_OPT_ROWS,
                               .examples = examples,
                               .n_args_min = 0,
                               .n_args_max = 1 };
    uint32_t n = 0;
    const status st = opts_parse(&opts, argc, argv, &r->prompt_arg, &n, err);
    if (st != ST_OK) {
        return st;
    }
    if ((n == 1) == (r->prompt_ids != NULL)) {
        return err_set(err, ST_ERR_ARG, "%s",
                       n == 1 ? "PROMPT and --prompt-ids are both given; use one of them"
                              : "no PROMPT; try: gantry generate \"Once upon a time\"");
    }
    return ST_OK;
}

static status id_read(const char *option, const char *text, char end, uint32_t *id_p,
                      const char **rest_p, struct err *err)
{
    char *rest;

    errno = 0;
    const unsigned long long id = strtoull(text, &rest, 10);
    if (text[0] < '0' || text[0] > '9' || errno != 0 || id > UINT32_MAX ||
        (*rest != '\0' && *rest != end)) {
        return err_set(err, ST_ERR_ARG, "--%s: \"%.40s\" is not a token id", option, text);
    }
    *id_p = (uint32_t)id;
    *rest_p = rest;
    return ST_OK;
}

static status ids_read(struct run *r, struct err *err)
{
    const size_t most = (r->prompt_ids != NULL ? strlen(r->prompt_ids) / 2 + 1 : 0);
    uint32_t n = 0;

    r->ids = calloc(most + OPT_LIST_MAX + 1, sizeof(*r->ids));
    if (r->ids == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for token ids");
    }
    for (const char *at = r->prompt_ids; at != NULL;) {
        const status st = id_read("prompt-ids", at, ',', &r->ids[n], &at, err);
        if (st < 0) {
            return st;
        }
        n++;
        at = *at == ',' ? at + 1 : NULL;
    }
    r->request.has_prompt_ids = r->prompt_ids != NULL;
    r->request.prompt_ids = r->ids;
    r->request.n_prompt_ids = n;
    r->request.stop_ids = r->ids + n;
    for (uint32_t i = 0; i < r->stop_ids.n; i++) {
        const char *rest;
        const status st =
            id_read("stop-id", r->stop_ids.items[i], '\0', &r->ids[n + i], &rest, err);
        if (st < 0) {
            return st;
        }
    }
    r->request.n_stop_ids = r->stop_ids.n;
    return ST_OK;
}

static status biases_read(struct run *r, struct err *err)
{
    for (uint32_t i = 0; i < r->bias_args.n; i++) {
        const char *rest;
        char *end;
        const status st =
            id_read("logit-bias", r->bias_args.items[i], ':', &r->biases[i].id, &rest, err);
        if (st < 0) {
            return st;
        }
        r->biases[i].bias = *rest == ':' ? strtof(rest + 1, &end) : 0.0f;
        if (*rest != ':' || end == rest + 1 || *end != '\0') {
            return err_set(err, ST_ERR_ARG, "--logit-bias: \"%.40s\" is not ID:BIAS, as in 17:-2.5",
                           r->bias_args.items[i]);
        }
    }
    r->request.biases = r->biases;
    r->request.n_biases = r->bias_args.n;
    return ST_OK;
}

static status prompt_read(struct run *r, struct err *err)
{
    char block[4096];
    status st = ST_OK;

    if (r->prompt_arg == NULL) {
        return ST_OK;
    }
    if (strcmp(r->prompt_arg, "-") != 0) {
        st = buf_append_str(&r->prompt, r->prompt_arg);
    }
    while (strcmp(r->prompt_arg, "-") == 0 && st == ST_OK) {
        const ssize_t n = read(STDIN_FILENO, block, sizeof(block));
        if (n < 0) {
            return err_set_errno(err, ST_ERR_IO, errno, "standard input cannot be read");
        }
        if (n == 0) {
            break;
        }
        st = buf_append(&r->prompt, block, (size_t)n);
    }
    if (st < 0) {
        return err_set(err, st, "the prompt is over %d bytes", (int)MSG_PROMPT_BYTES_MAX);
    }
    if (memchr(r->prompt.data, 0, r->prompt.len) != NULL) {
        return err_set(err, ST_ERR_ARG, "the prompt holds a NUL byte");
    }
    r->request.prompt = (struct msg_str){ r->prompt.data, r->prompt.len };
    return ST_OK;
}

static status request_make(struct run *r, struct err *err)
{
    status st = ids_read(r, err);

    if (st == ST_OK) {
        st = biases_read(r, err);
    }
    if (st == ST_OK) {
        st = prompt_read(r, err);
    }
    for (uint32_t i = 0; i < r->stops.n; i++) {
        r->stop_strings[i] = (struct msg_str){ r->stops.items[i], strlen(r->stops.items[i]) };
    }
    r->request.stop = r->stop_strings;
    r->request.n_stop = r->stops.n;
    if (r->request.request_id == NULL) {
        r->request.request_id = "";
    }
    return st;
}

/* ---- output ---- */

static json_t *token_json(const struct msg_piece *p)
{
    json_t *token = json_pack("{s:I}", "id", (json_int_t)p->id);

    if (p->has_logprob) {
        json_object_set_new(token, "logprob", json_real((double)p->logprob));
    }
    if (p->n_top != 0) {
        json_t *list = json_array();
        for (uint32_t i = 0; i < p->n_top; i++) {
            char hex[129] = "";
            for (size_t k = 0; k < p->top[i].piece.len && k < 64; k++) {
                snprintf(hex + 2 * k, 3, "%02x", (unsigned char)p->top[i].piece.data[k]);
            }
            json_array_append_new(list, json_pack("{s:I, s:f, s:s}", "id", (json_int_t)p->top[i].id,
                                                  "logprob", (double)p->top[i].logprob, "piece_hex",
                                                  hex));
        }
        json_object_set_new(token, "top", list);
    }
    return token;
}

static json_t *finished_json(const struct msg_finished *f)
{
    json_t *root = json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "reason",
        f->reason == FINISH_STOP ? "stop" : "length", "stop", f->stop.data, "prompt_tokens",
        (json_int_t)f->prompt_tokens, "completion_tokens", (json_int_t)f->completion_tokens,
        "cached_tokens", (json_int_t)f->cached_tokens, "queued_us", (json_int_t)f->queued_us,
        "first_token_us", (json_int_t)f->first_token_us, "total_us", (json_int_t)f->total_us);
    json_t *profiles = f->n_profiles != 0 ? json_array() : NULL;

    for (uint32_t i = 0; i < f->n_profiles; i++) {
        json_array_append_new(profiles, json_string(f->profiles[i]));
    }
    if (profiles != NULL) {
        json_object_set_new(root, "profiles", profiles);
    }
    return root;
}

static void print_json(const struct msg_chunk *c)
{
    json_t *root = json_object(), *tokens = json_array();

    if (c->has_started) {
        const struct msg_started *s = &c->started;
        char seed[24];
        snprintf(seed, sizeof(seed), "%llu", (unsigned long long)s->seed);
        /* A seed has 64 bits, more than a JSON number is safe for: it is a string. */
        json_object_set_new(root, "started",
                            json_pack("{s:s, s:s, s:s, s:s, s:s, s:I}", "request_id", s->request_id,
                                      "model", s->model, "profile", s->profile, "weights_digest",
                                      s->weights_digest, "seed", seed, "prompt_tokens",
                                      (json_int_t)s->prompt_tokens));
    }
    json_object_set_new(root, "choice", json_integer((json_int_t)c->choice));
    json_object_set_new(root, "text", json_stringn(c->text.data, c->text.len));
    for (uint32_t i = 0; i < c->n_tokens; i++) {
        json_array_append_new(tokens, token_json(&c->tokens[i]));
    }
    json_object_set_new(root, "tokens", tokens);
    if (c->has_finished) {
        json_object_set_new(root, "finished", finished_json(&c->finished));
    }
    json_dumpf(root, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(root);
}

static void print_text(struct run *r, const char *text, size_t len)
{
    if (len != 0) {
        fwrite(text, 1, len, stdout);
        r->wrote = true;
        r->ends_with_newline = text[len - 1] == '\n';
    }
}

/* Choices that are whole, in order, each under a line that names it. */
static void print_whole(struct run *r)
{
    while (r->n_printed < r->request.n && r->is_over[r->n_printed]) {
        const struct buf *text = &r->texts[r->n_printed];
        printf("%s--- choice %u of %u ---\n", r->wrote && !r->ends_with_newline ? "\n" : "",
               r->n_printed, r->request.n);
        r->wrote = true;
        r->ends_with_newline = true;
        print_text(r, text->data, text->len);
        r->n_printed++;
    }
}

static status hold_text(struct run *r, const struct msg_chunk *c, struct err *err)
{
    const bool is_one_of = r->request.has_n && r->request.n > 1;

    if (!is_one_of) {
        print_text(r, c->text.data, c->text.len);
        return ST_OK;
    }
    if (c->choice >= MSG_CHOICES_MAX || c->choice >= r->request.n) {
        return err_set(err, ST_ERR_PROTO, "the service sent choice %u of %u", c->choice,
                       r->request.n);
    }
    if (buf_append(&r->texts[c->choice], c->text.data, c->text.len) < 0) {
        return err_set(err, ST_ERR_NOMEM, "no memory for %u answers", r->request.n);
    }
    r->is_over[c->choice] = c->has_finished;
    print_whole(r);
    return ST_OK;
}

static void on_message(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    struct run *r = arg;
    struct arena arena = ARENA_INIT(ANSWER_BYTES_MAX);
    struct err err = ERR_INIT;
    struct msg_chunk chunk;
    status st = msg_chunk_unpack(data, len, &arena, &chunk, &err);

    if (st == ST_OK && chunk.has_finished) {
        r->finished = chunk.finished;
        for (uint32_t i = 0, at = 0; i < chunk.finished.n_profiles; i++) {
            at += (uint32_t)snprintf(r->profiles + at, sizeof(r->profiles) - at, "%s%.63s",
                                     i == 0 ? "" : ", ", chunk.finished.profiles[i]);
        }
        r->completion_tokens += chunk.finished.completion_tokens;
    }
    if (st == ST_OK && r->json) {
        print_json(&chunk);
    } else if (st == ST_OK) {
        st = hold_text(r, &chunk, &err);
    }
    if (st == ST_OK) {
        if (fflush(stdout) != 0) {
            st = err_set(&err, ST_ERR_IO, "standard output cannot be written");
        }
    }
    arena_fini(&arena);
    if (st < 0 && r->st == ST_OK) {
        r->st = st;
        snprintf(r->text, sizeof(r->text), "%s", err.text);
        rpc_call_cancel(call);
    }
}

static void on_done(void *arg, struct rpc_call *call UNUSED, status st, const char *text)
{
    struct run *r = arg;

    r->call = NULL;
    if (r->st == ST_OK && st < 0) {
        r->st = st;
        if (st == ST_ERR_DEADLINE && r->timeout_s != 0) {
            snprintf(r->text, sizeof(r->text), "not finished within %u s (--timeout)",
                     r->timeout_s);
        } else {
            snprintf(r->text, sizeof(r->text), "%s", text);
        }
    }
    rpc_loop_stop(r->client.loop);
}

static void on_signal(void *arg)
{
    struct run *r = arg;

    if (r->st == ST_OK) {
        r->st = ST_ERR_CANCELLED;
        snprintf(r->text, sizeof(r->text), "interrupted");
    }
    if (r->call != NULL) {
        rpc_call_cancel(r->call);
    }
}

/* ---- the call ---- */

static status talk(struct run *r, struct err *err)
{
    static const struct rpc_client client = { on_message, NULL, on_done };
    struct buf bytes = BUF_INIT_MAX(MSG_BYTES_MAX);
    status st = msg_generate_pack(&r->request, &bytes);

    if (st < 0) {
        buf_fini(&bytes);
        return err_set(err, st, "the request does not fit a message of %d bytes",
                       (int)MSG_BYTES_MAX);
    }
    const struct rpc_call_config config = {
        .path = "/gantry.v1.Generation/GenerateStream",
        .kind = RPC_SERVER_STREAM,
        .data = bytes.data,
        .len = bytes.len,
        .deadline_ns =
            r->timeout_s != 0 ? clock_now_ns(clock_real()) + r->timeout_s * NS_PER_S : CLOCK_NEVER,
        .client = &client,
        .arg = r,
    };
    st = rpc_call_start(r->client.channel, &config, &r->call, err);
    buf_fini(&bytes);
    if (st == ST_OK) {
        st = signals_start(&r->signals, r->client.loop, on_signal, r, err);
        if (st < 0) { /* the call must still come to its end */
            rpc_call_cancel(r->call);
        }
        rpc_loop_run(r->client.loop);
        signals_stop(&r->signals);
    }
    return st;
}

/* The first token pays for the prompt, so the rate is that of the others. */
static void print_stats(const struct run *r)
{
    const struct msg_finished *f = &r->finished;
    const double first_s = (double)f->first_token_us / 1e6, all_s = (double)f->total_us / 1e6;

    fprintf(stderr, "%u prompt tokens, first token after %.1f ms; %u tokens in %.3f s",
            f->prompt_tokens, first_s * 1e3, r->completion_tokens, all_s);
    if (r->completion_tokens > 1 && all_s > first_s) {
        fprintf(stderr, ", %.1f tokens/s", (r->completion_tokens - 1) / (all_s - first_s));
    }
    if (r->profiles[0] != '\0') {
        fprintf(stderr, ", under profiles %s", r->profiles);
    }
    fputc('\n', stderr);
}

int cli_generate(int argc, char **argv)
{
    struct run r;
    struct err err = ERR_INIT;

    memset(&r, 0, sizeof(r));
    r.prompt = (struct buf)BUF_INIT_MAX(MSG_PROMPT_BYTES_MAX + 1);
    for (uint32_t i = 0; i < MSG_CHOICES_MAX; i++) {
        r.texts[i] = (struct buf)BUF_INIT;
    }
    status st = parse(&r, argc, argv, &err);
    if (st == ST_END) {
        return 0;
    }
    signals_block();
    if (st == ST_OK) {
        st = request_make(&r, &err);
    }
    if (st == ST_OK) {
        st = client_open(&r.client, &r.client_opts, &err);
    }
    if (st == ST_OK) {
        st = talk(&r, &err);
        if (st == ST_OK && r.st < 0) {
            st = err_set(&err, r.st, "%s", r.text);
        }
        client_close(&r.client);
    }
    if (r.wrote && !r.ends_with_newline && isatty(STDOUT_FILENO)) {
        putchar('\n');
    }
    fflush(stdout);
    if (r.stats && st == ST_OK) {
        if (r.wrote && !r.ends_with_newline && !isatty(STDOUT_FILENO)) {
            fputc('\n', stderr);
        }
        print_stats(&r);
    }
    buf_fini(&r.prompt);
    for (uint32_t i = 0; i < MSG_CHOICES_MAX; i++) {
        buf_fini(&r.texts[i]);
    }
    free(r.ids);
    if (st < 0) {
        fprintf(stderr, "gantry generate: %s\n", err.text[0] != '\0' ? err.text : status_name(st));
    }
    return status_exit_code(st);
}
