/* tests/fuzz/fuzz_journal.c - any bytes as a segment of the journal: the streams are within their
 * bounds, or there is a sentence. A sum over outside bytes is rarely right by chance, therefore the
 * records of each input are read a second time with their sums made right. */
#include "coordinator/journal_disk.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { FUZZ_SEGMENT = 7 };

static void look(const struct journal_image *image)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < JOURNAL_BUCKETS; i++) {
        for (const struct journal_stream *s = image->buckets[i]; s != NULL; s = s->next) {
            n++;
            ASSERT(s->n_tokens <= s->submit.max_tokens && s->n_tokens <= s->n_tokens_max);
            ASSERT(s->submit.n_prompt > 0 && s->submit.n_emitted == 0);
            ASSERT(s->n_stops <= STOP_STRINGS_MAX && s->n_profiles <= MSG_PROFILES_MAX);
            ASSERT(strlen(s->request_id) > 0 && strlen(s->request_id) <= MSG_REQUEST_ID_MAX);
            for (uint32_t k = 0; k < s->n_tokens; k++) {
                ASSERT(s->tokens[k].index == k && s->tokens[k].n_top <= MSG_LOGPROBS_MAX);
            }
            if (s->has_end) {
                ASSERT(s->end.reason > FINISH_NONE && s->end.reason <= FINISH_CANCELLED);
            }
        }
    }
    ASSERT(n == image->n_streams);
    for (uint32_t i = 0; i < JOURNAL_CANARIES; i++) {
        const struct journal_canary *k = &image->canaries[i];
        ASSERT(memchr(k->profile, 0, sizeof(k->profile)) != NULL);
        ASSERT(memchr(k->host, 0, sizeof(k->host)) != NULL);
        ASSERT(k->profile[0] != '\0' || k->key == 0);
        for (uint32_t other = 0; other < i && k->profile[0] != '\0'; other++) {
            ASSERT(strcmp(image->canaries[other].profile, k->profile) != 0);
        }
    }
}

static void read_once(const void *data, size_t size)
{
    struct journal_image image;
    struct err err = ERR_INIT;
    const status st = journal_image_read("segment", data, size, &image, &err);

    if (st == ST_OK) {
        ASSERT(image.good_bytes <= size);
        look(&image);
        journal_image_fini(&image);
        return;
    }
    ASSERT(st == ST_ERR_FORMAT || st == ST_ERR_LIMIT || st == ST_ERR_UNSUPPORTED);
    ASSERT(err.text[0] != '\0');
}

/* Heads and lengths as they stand there, sums that fit. */
static void mend(char *bytes, size_t size)
{
    struct journal_head head = { .version = JOURNAL_VERSION, .segment = FUZZ_SEGMENT };
    size_t place = sizeof(head);

    if (size < sizeof(head)) {
        return;
    }
    memcpy(head.magic, journal_magic, sizeof(head.magic));
    head.sum = journal_head_sum(&head);
    memcpy(bytes, &head, sizeof(head));
    while (size - place >= sizeof(struct journal_record_head)) {
        struct journal_record_head h;
        memcpy(&h, bytes + place, sizeof(h));
        const size_t left = size - place - sizeof(h);
        h.bytes = left == 0 ? 0 : 1 + h.bytes % (uint32_t)left;
        h.kind = 1 + h.kind % 7;
        memcpy(bytes + place, &h, sizeof(h));
        h.sum = journal_record_sum(bytes + place + 8, 8 + (size_t)h.bytes, FUZZ_SEGMENT, place);
        memcpy(bytes + place, &h.sum, sizeof(h.sum));
        const size_t all = sizeof(h) + ((size_t)h.bytes + 7) / 8 * 8;
        if (h.bytes == 0 || all > size - place) {
            return;
        }
        place += all;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *copy = malloc(size + 1);

    ASSERT(copy != NULL);
    read_once(data, size);
    memcpy(copy, data, size);
    mend(copy, size);
    read_once(copy, size);
    free(copy);
    return 0;
}
