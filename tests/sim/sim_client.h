/* tests/sim/sim_client.h - one call of a client, what it may expect, and what it got. */
#ifndef TESTS_SIM_CLIENT_H
#define TESTS_SIM_CLIENT_H

#include "proto/msg.h"
#include "sim/sim_model.h"
#include "sim/wire.h"

enum { SIM_PROMPT_MAX = 256, SIM_CHOICES_MAX = 4 };

/* One of the answers to a request, as far as it has come. */
struct sim_answer {
    struct sim_truth truth;    /* once it is started */
    uint32_t n_tokens, n_most; /* n_most: that it has ever had */
    size_t n_text;
    bool is_finished;
    bool
        had_end; /* on an earlier call: it is said again, with what text came behind the last token */
};

enum client_kind {
    CLIENT_STREAM,
    CLIENT_UNARY,
    CLIENT_INVALID,  /* a request that nobody may take */
    CLIENT_NO_TOKEN, /* where one is asked for */
    CLIENT_STATUS,
    CLIENT_CHECK,
    CLIENT_WATCH
};

/* One of its calls. Only what comes on the newest one counts. */
struct sim_conn {
    struct sim_client *client;
    struct sim_conn *next;
    bool is_started;
};

struct sim_client {
    struct sim *sim;
    struct sim_client *next; /* in sim->clients */
    uint32_t index;
    enum client_kind kind;
    bool is_probe; /* sent when nothing fails any more: must be answered in full */
    struct rpc_call *call;
    struct sim_conn *conn, *conns; /* the newest; all, owned */

    struct msg_generate request;     /* points into the fields below */
    uint32_t prompt[SIM_PROMPT_MAX]; /* ids as the model sees them */
    char text[SIM_PROMPT_MAX];
    uint32_t n_prompt, max_tokens;
    char id[MSG_REQUEST_ID_MAX + 1];
    struct msg_str stops[2];
    char stop_text[2][4];
    uint32_t stop_ids[2];
    struct msg_bias biases[2];
    bool is_duplicate; /* of an id that may be in use */
    uint64_t deadline_ns;
    uint32_t n_tries;

    bool has_cancelled, is_slow, is_hurt; /* what was done to it */
    bool is_started, is_done;
    status st;
    struct sim_answer answers[SIM_CHOICES_MAX];
    uint32_t n_answers;
    enum health_state health; /* CLIENT_WATCH: the last that was heard */

    /* --journal, and an id that is its own: it goes on with its answer when something breaks */
    bool is_keeper, resumes, is_waiting;
    bool is_cut;       /* its link was, for some time */
    bool is_gone;      /* it never comes back */
    bool is_doubtful;  /* what it was told may not have been on disk when a coordinator died */
    bool is_forgotten; /* its answer was gone when it came back, and may be */
    bool is_in_image;
    uint32_t n_asked;
    uint64_t seed, opened_ns, broke_ns;
};

void client_complain(struct sim_client *c, const char *what);
bool client_may_be_forgotten(const struct sim_client *c); /* its answer, by now */
void client_ask(void *client);
void client_cancel_later(void *client);
void client_cancel(struct sim_client *c);
void client_hurt(struct sim_client *c); /* its link or its process */

#endif
