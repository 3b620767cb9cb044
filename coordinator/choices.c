/* coordinator/choices.c - several answers to one call.
 *
 *   call ──► choice 0 (front_call, session, entry) ──► choice 1 ──► choice 2 ...
 *
 * Each choice is a stream like any other: its own journal entry, its own place to run, moved on its
 * own when a replica is lost. They share the request's prompt (by the prefix cache), its id and its
 * call. The call is over when the last of them is, or when the first of them fails: the others are
 * cancelled then. A stream's messages name their choice and come as they are made; a whole answer is
 * put together from the packed answers of the choices.
 *
 * Where replicas of several numeric profiles serve, all go under that of the first one placed, which is
 * the one that `started` names.
 *
 * Choice 0's entry holds the request id, so it stays in the journal until the others are over.
 *
 * Answers that may be resumed (resume.c) have one list entry for all of them, choice 0's; they fail
 * together too, with or without a client. */
#include "coordinator/coord_impl.h"

#include <stdio.h>

void choices_add(struct front_call *head, struct front_call *f)
{
    struct front_call *last = head;

    while (last->next_choice != NULL) {
        last = last->next_choice;
    }
    last->next_choice = f;
    f->head = head;
    head->n_choices++;
    head->n_ending++;
}

bool choices_are_open(const struct front_call *head)
{
    for (const struct front_call *f = head->next_choice; f != NULL; f = f->next_choice) {
        if (f->entry != NULL) {
            return true;
        }
    }
    return false;
}

void choices_share_profile(struct front_call *head, const char *profile)
{
    for (struct front_call *f = head; f != NULL; f = f->next_choice) {
        if (f->entry != NULL && f->entry->profile[0] == '\0') {
            snprintf(f->entry->profile, sizeof(f->entry->profile), "%s", profile);
        }
    }
}

/* The others have nobody to answer to. Their entries are closed when the call is done. Those that may
 * be resumed go on, unless the answer itself has failed (resume_settle). */
static void stop_others(struct front_call *failed)
{
    if (failed->head->entry != NULL && failed->head->entry->is_kept) {
        return;
    }
    for (struct front_call *f = failed->head; f != NULL; f = f->next_choice) {
        if (f != failed && f->entry != NULL && session_state(f->session) == SESSION_RUNNING) {
            route_cancel(f->coord, f->entry);
            session_abandon(f->session);
        }
    }
}

void choices_finish(struct front_call *f, status st, const char *text)
{
    struct front_call *head = f->head;

    if (f->call == NULL || head->is_ended) {
        return;
    }
    resume_before_send(f);
    if (st == ST_OK && --head->n_ending > 0) {
        return;
    }
    head->is_ended = true;
    if (st < 0) {
        stop_others(f);
    }
    rpc_call_finish(f->call, st, text);
}

/* Choice 0's bytes with the others' behind them. */
static status put_together(const struct front_call *head, struct buf *out)
{
    status st = buf_append(out, head->reply.data, head->reply.len);

    for (const struct front_call *f = head->next_choice; f != NULL && st == ST_OK;
         f = f->next_choice) {
        st = msg_response_add_choice(f->reply.data, f->reply.len, out);
    }
    return st;
}

void choices_reply(struct front_call *f, const void *data, size_t len)
{
    struct front_call *head = f->head;
    struct buf out = BUF_INIT_MAX(MSG_BYTES_MAX);

    if (f->call == NULL || head->is_ended) {
        return;
    }
    resume_before_send(f);
    if (head->n_choices == 1) {
        head->is_ended = true;
        rpc_call_reply(f->call, data, len);
        return;
    }
    f->reply = (struct buf)BUF_INIT_MAX(MSG_BYTES_MAX);
    status st = buf_append(&f->reply, data, len);
    if (st == ST_OK && --head->n_ending > 0) {
        return;
    }
    if (st == ST_OK) {
        st = put_together(head, &out);
    }
    if (st == ST_OK) {
        head->is_ended = true;
        rpc_call_reply(f->call, out.data, out.len);
    } else {
        choices_finish(f, st,
                       "the answers are too large for one message; use GenerateStream, or ask for "
                       "fewer choices or log-probabilities");
    }
    buf_fini(&out);
}
