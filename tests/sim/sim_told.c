/* tests/sim/sim_told.c - what clients were told, and what of it a later coordinator finds on the disk. */
#include "coordinator/journal_disk.h"
#include "sim/sim_client.h"

#include <stdio.h>
#include <string.h>

void clients_doubt(struct sim *s)
{
    for (struct sim_client *c = s->clients; c != NULL; c = c->next) {
        c->is_doubtful = true;
    }
}

static struct sim_client *client_of_id(const struct sim *s, const char *id)
{
    for (struct sim_client *c = s->clients; c != NULL; c = c->next) {
        if (c->is_keeper && strcmp(c->id, id) == 0) {
            return c;
        }
    }
    return NULL;
}

static bool has_its_end(const struct sim_client *c)
{
    return c->is_done && !c->is_waiting && c->st == ST_OK;
}

const char *clients_check_request(const struct sim *s, const char *request_id)
{
    const struct sim_client *c = client_of_id(s, request_id);

    return c != NULL && !c->is_doubtful && has_its_end(c)
               ? "its client has had the whole answer, and it is computed again"
               : NULL;
}

static void check_stream(struct sim_client *c, const struct journal_stream *j)
{
    const struct sim_answer *a = &c->answers[j->submit.choice % SIM_CHOICES_MAX];
    const struct sim_truth *t = &a->truth;
    char text[100];

    c->is_in_image = true;
    if (!c->is_started || c->is_doubtful) {
        return;
    }
    if (j->n_choices != c->n_answers || j->submit.choice >= c->n_answers) {
        client_complain(c, "has another number of choices in the journal");
    }
    if (j->n_tokens < a->n_most) {
        snprintf(text, sizeof(text), "has %u tokens of choice %u, and the journal %u", a->n_most,
                 j->submit.choice, j->n_tokens);
        client_complain(c, text);
    }
    for (uint32_t i = 0; i < j->n_tokens; i++) {
        if (i >= t->n || j->tokens[i].token != t->ids[i]) {
            client_complain(c, "has other tokens in the journal");
            return;
        }
    }
    if (has_its_end(c) && !j->has_end) {
        client_complain(c, "has had its end, and the journal has none");
    }
}

/* At the start of another coordinator: what clients have been told is there. */
void clients_check_image(struct sim *s, const struct journal_image *image)
{
    for (struct sim_client *c = s->clients; c != NULL; c = c->next) {
        c->is_in_image = false;
    }
    for (uint32_t i = 0; i < JOURNAL_BUCKETS && image->n_streams != 0; i++) {
        for (const struct journal_stream *j = image->buckets[i]; j != NULL; j = j->next) {
            struct sim_client *c = client_of_id(s, j->request_id);
            if (c != NULL) {
                check_stream(c, j);
            }
        }
    }
    for (struct sim_client *c = s->clients; c != NULL; c = c->next) {
        const bool is_open = !c->is_done && c->conn != NULL && !c->is_slow && !c->is_cut
                                 ? true
                                 : c->is_waiting && !client_may_be_forgotten(c);
        if (c->is_keeper && c->is_started && !c->is_doubtful && is_open && !c->is_in_image) {
            client_complain(c, "waits for an answer that is not in the journal");
        }
    }
}
