/* coordinator/cli/batch.c - `gantry batch`: answer a file of requests, without a port.
 *
 *   gantry batch ──fork──► gantry serve --listen unix:TMP/socket (a process group of its own, dies with us)
 *       └── GenerateStream, --concurrency at a time ──► one line per record to OUT.part (batch_out.c)
 *
 * The service is the one that gantry serve makes, options and all, behind a socket that only this user
 * can open; so everything that is promised there holds here. What fails for good (a field out of
 * range, a prompt that can never fit) is the record's answer; what may pass is asked again. */
#include "coordinator/cli/batch.h"
#include "coordinator/cli/batch_child.h"
#include "coordinator/cli/cli.h"
#include "coordinator/cli/client.h"
#include "coordinator/cli/signals.h"

#include "base/clock.h"
#include "base/log.h"
#include "model/json_memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    CONCURRENCY_DEFAULT = 64,
    TRIES_MAX = 5, /* of a record whose stream broke after it had begun */
    TICK_MS = 200,
    SAY_MS = 2000,
    AGAIN_MS = 500,
    ANSWER_ARENA_BYTES = 256 << 20
};

struct run;

struct choice { /* one of the answers to a record, as it comes */
    struct buf text;
    json_t *ids, *logprobs; /* owned */
    bool is_finished;
    struct msg_finished finished;
    char stop[MSG_STOP_BYTES_MAX + 1];
};

struct flight { /* one record on its way */
    struct run *run;
    struct rpc_call *call; /* NULL: the slot is free */
    uint32_t i;
    bool has_begun;
    uint32_t n; /* choices */
    struct choice choices[MSG_CHOICES_MAX];
    uint32_t prompt_tokens;
    uint64_t seed;
};

struct run {
    const char *in_path, *out_path;
    uint32_t concurrency;
    char **serve_args;
    int n_serve_args;

    struct batch_in in;
    struct batch_out out;
    struct batch_child child;
    struct client client;
    struct signals signals;
    struct rpc_timer tick;
    struct arena arena;
    struct buf line, bytes;
    struct flight *flights; /* [concurrency] owned */
    uint8_t *tries;         /* [in.n] owned */
    uint32_t *again;        /* [in.n] records to ask again, a stack; owned */
    uint32_t n_again, next, n_done, n_before, n_open;
    uint64_t n_tokens, started_ns, said_ns, hold_ns;
    struct rpc_call *probe; /* health, then GetModel */
    bool is_ready, is_known, is_ending;
    struct err failure;
};

static const char about[] =
    "Answers the requests of IN, a JSON object per line with the fields of the API (docs/api.md) "
    "and "
    "an id, and writes OUT, an object per record in the same order. It starts the service by "
    "itself, "
    "with the options of gantry serve behind --, and listens on no port. It may be killed at any "
    "time and is started again with the same words: what was answered stays in OUT.part, and OUT, "
    "which appears when all is done, has the same bytes as that of a run that nothing disturbed, "
    "on "
    "any layout of the model. A record without a seed gets one from its own bytes.";

static void ask_more(struct run *r);

static void fail(struct run *r, status st, const char *text)
{
    if (r->failure.code == ST_OK) {
        err_set(&r->failure, st, "%s", text);
    }
    rpc_loop_stop(r->client.loop);
}

/* ---- answers ---- */

static void flight_reset(struct flight *f)
{
    for (uint32_t k = 0; k < f->n; k++) {
        struct choice *o = &f->choices[k];
        buf_fini(&o->text);
        json_decref(o->ids);
        json_decref(o->logprobs);
    }
    f->n = 0;
    f->call = NULL;
    f->has_begun = false;
}

static status flight_begin(struct flight *f, uint32_t i, uint32_t n)
{
    f->i = i;
    f->n = n;
    for (uint32_t k = 0; k < n; k++) {
        f->choices[k] =
            (struct choice){ .text = BUF_INIT, .ids = json_array(), .logprobs = json_array() };
    }
    for (uint32_t k = 0; k < n; k++) {
        if (f->choices[k].ids == NULL || f->choices[k].logprobs == NULL) {
            return ST_ERR_NOMEM;
        }
    }
    return ST_OK;
}

static bool is_complete(const struct flight *f)
{
    uint32_t n = 0;

    for (uint32_t k = 0; k < f->n; k++) {
        n += f->choices[k].is_finished ? 1 : 0;
    }
    return n == f->n;
}

static json_t *top_json(const struct msg_piece *p)
{
    json_t *list = json_array();
    bool ok = true;

    for (uint32_t i = 0; i < p->n_top; i++) {
        json_add(list, json_pack("[I, f]", (json_int_t)p->top[i].id, (double)p->top[i].logprob),
                 &ok);
    }
    return json_whole(list, ok);
}

static status tokens_take(struct choice *o, const struct msg_chunk *c)
{
    for (uint32_t i = 0; i < c->n_tokens; i++) {
        const struct msg_piece *p = &c->tokens[i];
        int rc = json_array_append_new(o->ids, json_integer((json_int_t)p->id));
        if (p->has_logprob) {
            rc |= json_array_append_new(
                o->logprobs,
                json_pack("{s:f, s:o}", "logprob", (double)p->logprob, "top", top_json(p)));
        }
        if (rc != 0) {
            return ST_ERR_NOMEM;
        }
    }
    return ST_OK;
}

static status choice_take(struct choice *o, const struct msg_chunk *c)
{
    status st = buf_append(&o->text, c->text.data, c->text.len);

    if (st == ST_OK) {
        st = tokens_take(o, c);
    }
    if (st == ST_OK && c->has_finished) {
        o->is_finished = true;
        o->finished = c->finished;
        snprintf(o->stop, sizeof(o->stop), "%.*s", (int)c->finished.stop.len,
                 c->finished.stop.data);
        o->finished.stop = (struct msg_str){ o->stop, strlen(o->stop) };
    }
    return st;
}

static void on_chunk(void *arg, struct rpc_call *call UNUSED, const void *data, size_t len)
{
    struct flight *f = arg;
    struct run *r = f->run;
    struct err err = ERR_INIT;
    struct msg_chunk c;

    if (data == NULL) {
        return;
    }
    arena_reset(&r->arena);
    status st = msg_chunk_unpack(data, len, &r->arena, &c, &err);
    if (st == ST_OK && c.has_started) {
        f->has_begun = true;
        f->seed = c.started.seed;
        f->prompt_tokens = c.started.prompt_tokens;
    }
    if (st == ST_OK && c.choice >= f->n) {
        st = err_set(&err, ST_ERR_PROTO, "the service sent choice %u of %u", c.choice, f->n);
    }
    if (st == ST_OK) {
        st = choice_take(&f->choices[c.choice], &c);
        r->n_tokens += c.n_tokens;
    }
    if (st < 0) {
        fail(r, st, err.text[0] != '\0' ? err.text : "no memory for an answer");
    }
}

static void choice_put(const struct choice *o, json_t *to, bool *ok)
{
    const struct msg_finished *m = &o->finished;

    json_put(to, "text", json_stringn(o->text.data, o->text.len), ok);
    json_put(to, "token_ids", json_incref(o->ids), ok);
    json_put(to, "finish_reason", json_string(m->reason == FINISH_STOP ? "stop" : "length"), ok);
    json_put(to, "completion_tokens", json_integer((json_int_t)json_array_size(o->ids)), ok);
    if (m->stop.len != 0) {
        json_put(to, "stop", json_stringn(m->stop.data, m->stop.len), ok);
    }
    if (json_array_size(o->logprobs) != 0) {
        json_put(to, "logprobs", json_incref(o->logprobs), ok);
    }
}

/* One choice stands in the record itself, several in an array. NULL: no memory. */
static json_t *answer_json(const struct flight *f)
{
    json_t *root = json_object(), *list = f->n > 1 ? json_array() : NULL;
    bool ok = true;
    char seed[24];

    snprintf(seed, sizeof(seed), "%llu", (unsigned long long)f->seed);
    json_put(root, "id", json_string(batch_in_id(&f->run->in, f->i)), &ok);
    for (uint32_t k = 0; f->n > 1 && k < f->n; k++) {
        json_t *one = json_object();
        choice_put(&f->choices[k], one, &ok);
        json_add(list, one, &ok);
    }
    if (f->n > 1) {
        json_put(root, "choices", list, &ok);
    } else {
        choice_put(&f->choices[0], root, &ok);
    }
    json_put(root, "seed", json_string(seed), &ok);
    json_put(root, "prompt_tokens", json_integer((json_int_t)f->prompt_tokens), &ok);
    return json_whole(root, ok);
}

static void record_done(struct run *r, uint32_t i, json_t *answer)
{
    struct err err = ERR_INIT;
    char *text = answer != NULL ? json_dumps(answer, JSON_COMPACT) : NULL;
    status st = ST_ERR_NOMEM;

    buf_reset(&r->line);
    if (text != NULL) {
        st = buf_append_str(&r->line, text);
    }
    if (st == ST_OK) {
        st = buf_append_char(&r->line, '\n');
    }
    if (st == ST_OK) {
        st = batch_out_append(&r->out, &r->in.records[i], r->line.data, r->line.len, &err);
    }
    free(text);
    json_decref(answer);
    if (st < 0) {
        fail(r, st, err.text[0] != '\0' ? err.text : "no memory for an answer");
        return;
    }
    r->n_done++;
    if (r->n_done == r->in.n) {
        rpc_loop_stop(r->client.loop);
    }
}

static void record_failed(struct run *r, uint32_t i, status st, const char *text)
{
    r->out.n_errors++;
    record_done(r, i,
                json_pack("{s:s, s:{s:s, s:s}}", "id", batch_in_id(&r->in, i), "error", "code",
                          status_name(st), "message", text));
}

/* The same again would get the same answer. */
static bool is_final(status st)
{
    return st == ST_ERR_ARG || st == ST_ERR_LIMIT || st == ST_ERR_NOT_FOUND ||
           st == ST_ERR_UNSUPPORTED || st == ST_ERR_FORMAT;
}

static void on_done(void *arg, struct rpc_call *call UNUSED, status st, const char *text)
{
    struct flight *f = arg;
    struct run *r = f->run;
    const uint32_t i = f->i;

    f->call = NULL;
    r->n_open--;
    if (r->is_ending || r->failure.code != ST_OK) {
        flight_reset(f);
        return;
    }
    if (st == ST_OK && is_complete(f)) {
        record_done(r, i, answer_json(f));
    } else if (is_final(st)) {
        record_failed(r, i, st, text);
    } else if (f->has_begun && ++r->tries[i] >= TRIES_MAX) {
        record_failed(r, i, st < 0 ? st : ST_ERR_PEER, text);
    } else { /* the service is on its way down or up again */
        log_info("batch", "record \"%s\" is asked again: %s", batch_in_id(&r->in, i), text);
        r->again[r->n_again++] = i;
        r->hold_ns = clock_now_ns(clock_real()) + AGAIN_MS * NS_PER_MS;
    }
    flight_reset(f);
    ask_more(r);
}

/* ---- questions ---- */

static bool next_record(struct run *r, uint32_t *i_p)
{
    if (r->n_again != 0) {
        *i_p = r->again[--r->n_again];
        return true;
    }
    while (r->next < r->in.n && r->in.records[r->next].part_len != 0) {
        r->next++;
    }
    *i_p = r->next;
    return r->next < r->in.n && r->next++ < r->in.n;
}

static status ask(struct flight *f, uint32_t i, struct err *err)
{
    static const struct rpc_client client = { on_chunk, NULL, on_done };
    struct run *r = f->run;
    struct batch_request request;
    status st = batch_in_request(&r->in, i, &r->line, &request, err);

    if (st < 0) {
        return st;
    }
    buf_reset(&r->bytes);
    st = msg_generate_pack(&request.m, &r->bytes);
    /* What is out of range the service refuses, in its own words. */
    const uint32_t n = request.m.has_n ? MAX(MIN(request.m.n, (uint32_t)MSG_CHOICES_MAX), 1u) : 1;
    batch_request_fini(&request);
    if (st < 0 || flight_begin(f, i, n) < 0) {
        return err_set(err, ST_ERR_NOMEM, "no memory for record \"%s\"", batch_in_id(&r->in, i));
    }
    const struct rpc_call_config config = { .path = "/gantry.v1.Generation/GenerateStream",
                                            .kind = RPC_SERVER_STREAM,
                                            .data = r->bytes.data,
                                            .len = r->bytes.len,
                                            .deadline_ns = CLOCK_NEVER,
                                            .client = &client,
                                            .arg = f };
    st = rpc_call_start(r->client.channel, &config, &f->call, err);
    r->n_open += st == ST_OK ? 1 : 0;
    return st;
}

static void ask_more(struct run *r)
{
    struct err err = ERR_INIT;
    uint32_t i;

    if (!r->is_known || r->is_ending || clock_now_ns(clock_real()) < r->hold_ns) {
        return; /* the tick comes back to it */
    }
    for (uint32_t k = 0; k < r->concurrency; k++) {
        struct flight *f = &r->flights[k];
        if (f->call == NULL && next_record(r, &i) && ask(f, i, &err) < 0) {
            fail(r, err.code, err.text);
            return;
        }
    }
}

/* ---- until it serves ---- */

static void on_probe(void *arg, struct rpc_call *call UNUSED, const void *data, size_t len)
{
    struct run *r = arg;
    struct err err = ERR_INIT;
    enum health_state state = HEALTH_UNKNOWN;
    struct msg_model m;
    status st;

    arena_reset(&r->arena);
    if (!r->is_ready) {
        st = msg_health_response_unpack(data, len, &r->arena, &state, &err);
        r->is_ready = st == ST_OK && state == HEALTH_SERVING;
        return;
    }
    st = msg_model_unpack(data, len, &r->arena, &m, &err);
    if (st == ST_OK) {
        const struct batch_origin origin = { m.profile, m.weights_digest, r->in.digest };
        st = batch_out_begin(&r->out, &origin, &err);
        r->is_known = st == ST_OK;
    }
    if (st < 0) {
        fail(r, st, err.text);
    }
}

static void on_probe_done(void *arg, struct rpc_call *call UNUSED, status st UNUSED,
                          const char *text UNUSED)
{
    struct run *r = arg;

    r->probe = NULL;
    ask_more(r);
}

static void probe(struct run *r, uint64_t now)
{
    static const struct rpc_client client = { on_probe, NULL, on_probe_done };
    struct err err = ERR_INIT;
    const struct rpc_call_config config = {
        .path = r->is_ready ? "/gantry.v1.Generation/GetModel" : "/grpc.health.v1.Health/Check",
        .kind = RPC_UNARY,
        .data = "",
        .deadline_ns = now + 5 * NS_PER_S,
        .client = &client,
        .arg = r,
    };

    if (r->probe == NULL && rpc_call_start(r->client.channel, &config, &r->probe, &err) < 0) {
        fail(r, err.code, err.text);
    }
}

/* ---- running ---- */

static void say(struct run *r, uint64_t now)
{
    const double s = (double)(now - r->started_ns) / 1e9;
    const uint32_t here = r->n_done - r->n_before;
    const double left = here != 0 ? s / here * (r->in.n - r->n_done) : 0;

    r->said_ns = now;
    if (!r->is_known) {
        printf("starting: %s\n", batch_child_last_line(&r->child));
    } else {
        printf("%u of %u records, %.0f tokens/s, %u in flight%s", r->n_done, r->in.n,
               (double)r->n_tokens / s, r->n_open, here != 0 ? "" : "\n");
        if (here != 0) {
            printf(", about %.0f s left\n", left);
        }
    }
    fflush(stdout);
}

static void on_tick(void *arg)
{
    struct run *r = arg;
    const uint64_t now = clock_now_ns(clock_real());
    char text[ERR_TEXT_BYTES];
    int code;

    if (batch_child_ended(&r->child, &code)) {
        snprintf(text, sizeof(text),
                 "gantry serve has ended with code %d; %u of %u records are answered, and the same "
                 "command goes on from there",
                 code, r->n_done, r->in.n);
        r->child.code = code;
        fail(r, ST_ERR_UNAVAILABLE, text);
        return;
    }
    if (!r->is_known) {
        probe(r, now);
    }
    ask_more(r);
    if (now - r->said_ns >= SAY_MS * NS_PER_MS) {
        say(r, now);
    }
    rpc_timer_set(r->client.loop, &r->tick, now + TICK_MS * NS_PER_MS);
}

static void on_signal(void *arg)
{
    struct run *r = arg;
    char text[160];

    r->is_ending = true;
    snprintf(text, sizeof(text),
             "interrupted; %u of %u records are answered, and the same command goes on from there",
             r->n_done, r->in.n);
    fail(r, ST_ERR_CANCELLED, text);
}

static status serve_start(struct run *r, struct err *err)
{
    status st = batch_child_start(&r->child, r->serve_args, r->n_serve_args, r->concurrency, err);

    if (st == ST_OK) {
        const struct client_opts o = { .connect = r->child.target };
        st = client_open(&r->client, &o, err);
    }
    return st;
}

static status loop(struct run *r, struct err *err)
{
    status st = signals_start(&r->signals, r->client.loop, on_signal, r, err);

    if (st < 0) {
        return st;
    }
    r->started_ns = r->said_ns = clock_now_ns(clock_real());
    r->tick.fn = on_tick;
    r->tick.arg = r;
    rpc_timer_set(r->client.loop, &r->tick, r->started_ns);
    rpc_loop_run(r->client.loop);
    rpc_timer_set(r->client.loop, &r->tick, CLOCK_NEVER);
    signals_stop(&r->signals);
    r->is_ending = true;
    return r->failure.code;
}

static status answer_all(struct run *r, struct err *err)
{
    status st;

    r->flights = calloc(r->concurrency, sizeof(*r->flights));
    r->tries = calloc(r->in.n, sizeof(*r->tries));
    r->again = calloc(r->in.n, sizeof(*r->again));
    if (r->flights == NULL || r->tries == NULL || r->again == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for %u records", r->in.n);
    }
    for (uint32_t k = 0; k < r->concurrency; k++) {
        r->flights[k].run = r;
    }
    st = serve_start(r, err);
    if (st == ST_OK) {
        st = loop(r, err);
        if (st < 0) {
            *err = r->failure;
            batch_child_print_tail(&r->child, r->child.code != 0);
        }
    }
    client_close(&r->client); /* open calls end here */
    batch_child_end(&r->child);
    for (uint32_t k = 0; k < r->concurrency; k++) {
        flight_reset(&r->flights[k]);
    }
    return st;
}

static status batch(struct run *r, struct err *err)
{
    bool is_done = false;
    status st = batch_in_open(r->in_path, &r->in, err);

    if (st < 0) {
        return st;
    }
    st = batch_out_is_done(r->out_path, &r->in, &is_done, err);
    if (st < 0 || is_done) {
        if (is_done) {
            printf("%s has all of the %u records\n", r->out_path, r->in.n);
        }
        batch_in_close(&r->in);
        return st;
    }
    st = batch_out_open(r->out_path, &r->in, &r->out, &r->n_before, err);
    if (st == ST_OK) {
        r->n_done = r->n_before;
        if (r->n_before != 0) {
            printf("%u of %u records are answered already\n", r->n_before, r->in.n);
        }
        if (r->n_done < r->in.n) {
            st = answer_all(r, err);
        }
        if (st == ST_OK) {
            st = batch_out_finish(&r->out, &r->in, err);
        }
        batch_out_close(&r->out);
    }
    if (st == ST_OK) {
        printf("%u records in %s", r->in.n, r->out_path);
        printf(r->out.n_errors != 0 ? ", %u of them refused (\"error\")\n" : "\n", r->out.n_errors);
    }
    batch_in_close(&r->in);
    return st;
}

static status parse(struct run *r, int argc, char **argv, struct err *err)
{
    const struct opt rows[] = {
        { OPT_STRING, "output", "OUT", &r->out_path, 0, 0, "where the answers go (needed)", NULL },
        { OPT_U32, "concurrency", "N", &r->concurrency, 1, 4096,
          "records in flight at a time (default 64)", NULL },
    };
    const struct opts opts = {
        .usage = "gantry batch MODEL IN --output OUT [options] [-- OPTIONS OF gantry serve]",
        .about = about,
        .options = rows,
        .n_options = ARRAY_LEN(rows),
        .examples =
            "  gantry batch ./Llama-3.1-8B in.jsonl --output out.jsonl\n"
            "  gantry batch ./Llama-3.1-70B in.jsonl --output out.jsonl -- --tp 4 --replicas 2 "
            "--hostfile hosts\n"
            "  echo '{\"id\": \"a\", \"prompt\": \"Once upon a time\", \"max_tokens\": 20}' > "
            "in.jsonl\n",
        .n_args_min = 2,
        .n_args_max = 2
    };
    const char *args[2];
    int n_own = 1;
    uint32_t n = 0;

    while (n_own < argc && strcmp(argv[n_own], "--") != 0) {
        if (strcmp(argv[n_own], "-o") == 0) { /* as everybody writes it */
            static char output[] = "--output";
            argv[n_own] = output;
        }
        n_own++;
    }
    const status st = opts_parse(&opts, n_own, argv, args, &n, err);
    if (st != ST_OK) {
        return st;
    }
    if (r->out_path == NULL) {
        return err_set(err, ST_ERR_ARG, "--output is needed: where the answers go");
    }
    r->child.model = args[0];
    r->in_path = args[1];
    r->serve_args = argv + MIN(n_own + 1, argc);
    r->n_serve_args = MAX(argc - n_own - 1, 0);
    return ST_OK;
}

int cli_batch(int argc, char **argv)
{
    struct run r;
    struct err err = ERR_INIT;

    memset(&r, 0, sizeof(r));
    r.concurrency = CONCURRENCY_DEFAULT;
    r.in.fd = r.out.fd = -1;
    r.arena = (struct arena)ARENA_INIT(ANSWER_ARENA_BYTES);
    r.line = (struct buf)BUF_INIT;
    r.bytes = (struct buf)BUF_INIT;
    status st = parse(&r, argc, argv, &err);
    if (st == ST_END) {
        return 0;
    }
    if (st == ST_OK) {
        signals_block();
        st = batch(&r, &err);
    }
    free(r.flights);
    free(r.tries);
    free(r.again);
    arena_fini(&r.arena);
    buf_fini(&r.line);
    buf_fini(&r.bytes);
    if (st < 0) {
        fprintf(stderr, "gantry batch: %s\n", err.text[0] != '\0' ? err.text : status_name(st));
    }
    return r.child.code > 0 && st < 0 ? r.child.code : status_exit_code(st);
}
