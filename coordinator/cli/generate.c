/* coordinator/cli/generate.c - `gantry generate`: one request, its text to stdout as it comes.
 *
 * Text goes to stdout and nothing else does, so that the command can stand in a pipe; what went
 * wrong is one sentence on stderr and an exit code (base/err.h). */
#include "coordinator/cli/cli.h"
#include "coordinator/cli/client.h"
#include "coordinator/cli/generate_json.h"
#include "coordinator/cli/signals.h"

#include "base/clock.h"
#include "base/fd.h"
#include "proto/msg.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

enum { OWN_ROWS = 26, RETRY_MS = 300, TELL_S = 2, FORGET_MS = 300, ANSWER_BYTES_MAX = 256 << 20 };

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
    uint32_t timeout_s, retry_s;
    bool json, stats;
    struct msg_finished finished; /* of the last message; its strings are not kept */
    char profiles[MSG_PROFILES_MAX * (MSG_PROFILE_BYTES + 2)]; /* but these, if there are several */
    uint32_t completion_tokens;                                /* of all choices */

    uint32_t n_choices; /* of this request; of one that is resumed the service says it */
    struct choice {
        uint32_t n_tokens;   /* that have come, and */
        uint64_t text_bytes; /* how much text with them */
        bool is_over;
        struct buf text; /* of several they come mixed: held until those before it are out */
    } choices[MSG_CHOICES_MAX];
    uint32_t n_printed;

    /* When the connection breaks and the service keeps the answer. */
    char made_id[48];
    bool is_kept, has_started;
    bool is_forgotten; /* interrupted, and the service is being told */
    uint32_t from[MSG_CHOICES_MAX];
    uint64_t until_ns; /* it may be tried again until then; 0: nothing is broken */
    bool is_break_told;
    uint64_t deadline_ns;
    struct rpc_timer again;

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
        { OPT_STRING, "request-id", "ID", &q->request_id, 0, 0,
          "name of this request (default: drawn)", NULL },
        { OPT_FLAG, "resume", NULL, &q->resume, 0, 0,
          "no new request: the answer of --request-id, from its beginning", NULL },
        { OPT_U32, "retry-for", "SECONDS", &r->retry_s, 0, 86400,
          "go on with an answer whose connection broke, where the service keeps it (default 60)",
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
    if (q->resume && (n != 0 || r->prompt_ids != NULL || q->request_id == NULL)) {
        return err_set(err, ST_ERR_ARG, "--resume needs --request-id, and takes no PROMPT");
    }
    if (!q->resume && (n == 1) == (r->prompt_ids != NULL)) {
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
        const ssize_t n = fd_read(STDIN_FILENO, block, sizeof(block));
        if (n < 0) {
            return err_set_errno(err, ST_ERR_IO, errno, "standard input cannot be read");
        }
        if (n == 0) {
            break;
        }
        st = buf_append(&r->prompt, block, (size_t)n);
    }
    if (st < 0) {
        return buf_fail(&r->prompt, st, "the prompt", err);
    }
    if (memchr(r->prompt.data, 0, r->prompt.len) != NULL) {
        return err_set(err, ST_ERR_ARG, "the prompt holds a NUL byte");
    }
    r->request.prompt = (struct msg_str){ r->prompt.data, r->prompt.len };
    return ST_OK;
}

static status id_draw(struct run *r, struct err *err)
{
    uint64_t n[2];

    if (getrandom(n, sizeof(n), 0) != (ssize_t)sizeof(n)) {
        return err_set_errno(err, ST_ERR_INTERNAL, errno, "no random request id");
    }
    snprintf(r->made_id, sizeof(r->made_id), "gen-%016" PRIx64 "%016" PRIx64, n[0], n[1]);
    r->request.request_id = r->made_id;
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
    r->n_choices = r->request.has_n ? MIN(r->request.n, (uint32_t)MSG_CHOICES_MAX) : 1;
    if (st == ST_OK && r->request.request_id == NULL) {
        st = id_draw(r, err);
    }
    return st;
}

/* ---- output ---- */

static void started_take(struct run *r, struct msg_chunk *chunk)
{
    r->is_kept = chunk->started.resume_window_s != 0;
    if (r->request.resume && !r->has_started) {
        r->n_choices = MIN(MAX(chunk->started.n, 1u), (uint32_t)MSG_CHOICES_MAX);
    }
    chunk->has_started = !r->has_started; /* it has been told */
    r->has_started = true;
}

/* What is resumed must begin where we are: else something would be said twice, or never. */
static status place_check(struct run *r, struct msg_chunk *chunk, struct err *err)
{
    if (chunk->has_started) {
        started_take(r, chunk);
    }
    if (chunk->choice >= r->n_choices) {
        return err_set(err, ST_ERR_PROTO, "the service sent choice %u of %u", chunk->choice,
                       r->n_choices);
    }
    struct choice *c = &r->choices[chunk->choice];
    if (chunk->token_offset != c->n_tokens || chunk->text_offset != c->text_bytes) {
        return err_set(err, ST_ERR_PROTO,
                       "the service goes on at token %u, byte %" PRIu64
                       " of choice %u; token %u, byte %" PRIu64 " are due",
                       chunk->token_offset, chunk->text_offset, chunk->choice, c->n_tokens,
                       c->text_bytes);
    }
    c->n_tokens += chunk->n_tokens;
    c->text_bytes += chunk->text.len;
    r->until_ns = 0;
    return ST_OK;
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
    while (r->n_printed < r->n_choices && r->choices[r->n_printed].is_over) {
        const struct buf *text = &r->choices[r->n_printed].text;
        printf("%s--- choice %u of %u ---\n", r->wrote && !r->ends_with_newline ? "\n" : "",
               r->n_printed, r->n_choices);
        r->wrote = true;
        r->ends_with_newline = true;
        print_text(r, text->data, text->len);
        r->n_printed++;
    }
}

static status hold_text(struct run *r, const struct msg_chunk *c, struct err *err)
{
    if (r->n_choices == 1) {
        print_text(r, c->text.data, c->text.len);
        return ST_OK;
    }
    if (buf_append(&r->choices[c->choice].text, c->text.data, c->text.len) < 0) {
        return err_set(err, ST_ERR_NOMEM, "no memory for %u answers", r->n_choices);
    }
    print_whole(r);
    return ST_OK;
}

static void end_take(struct run *r, const struct msg_chunk *chunk)
{
    r->choices[chunk->choice].is_over = true;
    r->finished = chunk->finished;
    for (uint32_t i = 0, at = 0; i < chunk->finished.n_profiles; i++) {
        at += (uint32_t)snprintf(r->profiles + at, sizeof(r->profiles) - at, "%s%.63s",
                                 i == 0 ? "" : ", ", chunk->finished.profiles[i]);
    }
    r->completion_tokens += chunk->finished.completion_tokens;
}

static void on_message(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    struct run *r = arg;
    struct arena arena = ARENA_INIT(ANSWER_BYTES_MAX);
    struct err err = ERR_INIT;
    struct msg_chunk chunk;
    status st = msg_chunk_unpack(data, len, &arena, &chunk, &err);

    if (r->is_forgotten) {
        arena_fini(&arena);
        return;
    }
    if (st == ST_OK) {
        st = place_check(r, &chunk, &err);
    }
    if (st == ST_OK &&
        r->choices[chunk.choice].is_over) { /* its end comes again when it is resumed */
        arena_fini(&arena);
        return;
    }
    if (st == ST_OK && chunk.has_finished) {
        end_take(r, &chunk);
    }
    if (st == ST_OK && r->json) {
        st = generate_print_json(&chunk);
        if (st != ST_OK) {
            err_set(&err, st, "no memory to print an answer");
        }
    } else if (st == ST_OK) {
        st = hold_text(r, &chunk, &err);
    }
    if (st == ST_OK) {
        if (fflush(stdout) != 0 || ferror(stdout)) {
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

/* Interrupted: without its client a kept answer would go on for a while. A reader whose deadline
 * passes ends it. */
static bool may_forget(struct run *r)
{
    if (r->st != ST_ERR_CANCELLED || !r->is_kept || r->is_forgotten) {
        return false;
    }
    r->is_forgotten = true;
    r->deadline_ns = clock_now_ns(clock_real()) + FORGET_MS * NS_PER_MS;
    rpc_timer_set(r->client.loop, &r->again, 0);
    return true;
}

/* A line per break that is more than a moment. */
static void tell_break(struct run *r, uint64_t now, const char *text)
{
    const uint64_t left_s = (r->until_ns - now) / NS_PER_S;

    if (!r->is_break_told && left_s + TELL_S <= r->retry_s) {
        fprintf(stderr, "gantry generate: %s; trying again for %" PRIu64 " s (--retry-for)\n", text,
                left_s);
        r->is_break_told = true;
    }
}

/* The connection broke, or nobody answers yet. */
static bool may_try_again(struct run *r, status st, const char *text)
{
    const uint64_t now = clock_now_ns(clock_real());

    if (r->st != ST_OK || !r->is_kept || r->retry_s == 0 ||
        (st != ST_ERR_UNAVAILABLE && st != ST_ERR_PEER)) {
        return false;
    }
    if (r->until_ns == 0) {
        r->until_ns = now + r->retry_s * NS_PER_S;
        r->is_break_told = false;
    }
    if (now >= r->until_ns) {
        return false;
    }
    tell_break(r, now, text);
    return true;
}

static void on_done(void *arg, struct rpc_call *call UNUSED, status st, const char *text)
{
    struct run *r = arg;

    r->call = NULL;
    if (may_forget(r)) {
        return;
    }
    if (may_try_again(r, st, text)) {
        rpc_timer_set(r->client.loop, &r->again, clock_now_ns(clock_real()) + RETRY_MS * NS_PER_MS);
        return;
    }
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
    } else { /* between two tries */
        rpc_timer_set(r->client.loop, &r->again, CLOCK_NEVER);
        rpc_loop_stop(r->client.loop);
    }
}

/* ---- the call ---- */

static status call_start(struct run *r, struct err *err)
{
    static const struct rpc_client client = { on_message, NULL, on_done };
    struct buf bytes = BUF_INIT_MAX(MSG_BYTES_MAX);
    status st = msg_generate_pack(&r->request, &bytes);

    if (st < 0) {
        buf_fini(&bytes);
        return buf_fail(&bytes, st, "the request as a message", err);
    }
    const struct rpc_call_config config = {
        .path = "/gantry.v1.Generation/GenerateStream",
        .kind = RPC_SERVER_STREAM,
        .data = bytes.data,
        .len = bytes.len,
        .deadline_ns = r->deadline_ns,
        .client = &client,
        .arg = r,
    };
    st = rpc_call_start(r->client.channel, &config, &r->call, err);
    buf_fini(&bytes);
    return st;
}

static void try_again(void *arg)
{
    struct run *r = arg;
    struct err err = ERR_INIT;

    for (uint32_t i = 0; i < r->n_choices; i++) {
        r->from[i] = r->choices[i].n_tokens;
    }
    r->request =
        (struct msg_generate){ .request_id = r->request.request_id,
                               .prompt = { "", 0 },
                               .resume = true,
                               .resume_from = r->n_choices == 1 ? r->from[0] : 0,
                               .n_resume_from_choices = r->n_choices == 1 ? 0 : r->n_choices,
                               .resume_from_choices = r->from };
    const status st = call_start(r, &err);
    if (st < 0) {
        r->st = st;
        snprintf(r->text, sizeof(r->text), "%s", err.text);
        rpc_loop_stop(r->client.loop);
    }
}

static status talk(struct run *r, struct err *err)
{
    r->deadline_ns =
        r->timeout_s != 0 ? clock_now_ns(clock_real()) + r->timeout_s * NS_PER_S : CLOCK_NEVER;
    r->again.fn = try_again;
    r->again.arg = r;
    status st = call_start(r, err);
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
    r.retry_s = 60;
    r.prompt = (struct buf)BUF_INIT_MAX(MSG_PROMPT_BYTES_MAX + 1);
    for (uint32_t i = 0; i < MSG_CHOICES_MAX; i++) {
        r.choices[i].text = (struct buf)BUF_INIT;
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
        buf_fini(&r.choices[i].text);
    }
    free(r.ids);
    if (st < 0) {
        fprintf(stderr, "gantry generate: %s\n", err.text[0] != '\0' ? err.text : status_name(st));
    }
    return status_exit_code(st);
}
