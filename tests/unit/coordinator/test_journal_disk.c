/* The journal's segments: what is written is what is read, whole or cut at any byte; damage is told from
 * a cut; a disk that is full costs durability and nothing else. */
#include "coordinator/journal_disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- a journal with a disk that can be told to be full ---- */

struct disk {
    long room; /* bytes it still takes; < 0: any number */
    uint32_t n_writes, n_syncs;
};

static ssize_t disk_write(void *self, int fd, const void *data, size_t len)
{
    struct disk *k = self;
    const size_t n = k->room < 0 ? len : MIN(len, (size_t)k->room);

    k->n_writes++;
    if (n == 0) {
        errno = ENOSPC;
        return -1;
    }
    k->room -= k->room < 0 ? 0 : (long)n;
    return write(fd, data, n);
}

static int disk_sync(void *self, int fd)
{
    struct disk *k = self;

    k->n_syncs++;
    return fdatasync(fd);
}

static uint64_t fake_now(void *self)
{
    return *(uint64_t *)self;
}

struct world {
    char dir[64];
    struct disk disk;
    struct journal_io io;
    uint64_t now;
    struct clock clock;
    struct journal *journal;
    struct journal_disk *d;
    struct journal_image image;
    struct journal_entry *entries[64];
    uint32_t n_entries;
};

static const uint32_t prompt[] = { 1, 2, 70000 };

/* Everything that the test has opened, with the tokens it has. */
static void snapshot(void *arg)
{
    struct world *w = arg;

    for (uint32_t i = 0; i < w->n_entries; i++) {
        const struct journal_entry *e = w->entries[i];
        const struct msg_str stop = { "END", 3 };
        if (e == NULL) {
            continue;
        }
        journal_disk_stream(w->d, &(struct journal_opening){ e, &stop, 1, 1, "dig", 77 });
        for (uint32_t k = 0; k < e->n_emitted; k++) {
            const struct msg_token t = { .stream = e->stream, .index = k, .token = e->emitted[k] };
            journal_disk_token(w->d, &t, false, 0);
        }
    }
}

static void open_disk(struct world *w, uint64_t segment_bytes)
{
    struct err err = ERR_INIT;
    const struct journal_disk_config config = {
        .dir = w->dir, .io = &w->io, .clock = &w->clock, .segment_bytes = segment_bytes
    };

    if (journal_disk_open(&config, &w->d, &w->image, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
}

static struct world *world_make(uint64_t segment_bytes)
{
    struct world *w = calloc(1, sizeof(*w));
    struct err err = ERR_INIT;

    assert_non_null(w);
    strcpy(w->dir, "/tmp/gantry-journal-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    w->disk.room = -1;
    w->io = (struct journal_io){ disk_write, disk_sync, &w->disk };
    w->clock = (struct clock){ fake_now, &w->now };
    w->now = 1;
    assert_int_equal(journal_create(64, &w->journal, &err), ST_OK);
    open_disk(w, segment_bytes);
    assert_int_equal(w->image.n_streams, 0);
    journal_disk_begin(w->d, snapshot, w);
    return w;
}

static void empty_dir(const char *path)
{
    DIR *dir = opendir(path);
    char file[400];

    assert_non_null(dir);
    for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
        snprintf(file, sizeof(file), "%s/%s", path, e->d_name);
        unlink(file);
    }
    closedir(dir);
}

static void world_free(struct world *w)
{
    journal_disk_close(w->d, true);
    journal_image_fini(&w->image);
    journal_destroy(w->journal);
    empty_dir(w->dir);
    assert_int_equal(rmdir(w->dir), 0);
    free(w);
}

static struct journal_entry *add(struct world *w, const char *id, bool logprobs)
{
    struct err err = ERR_INIT;
    struct journal_entry *e;

    assert_int_equal(journal_open(w->journal, id, prompt, 3, &e, &err), ST_OK);
    e->max_tokens = 1000;
    e->temperature = 0.5f;
    e->top_p = 0.25f;
    e->repetition_penalty = 1.5f;
    e->seed = UINT64_C(0xFEDCBA9876543210);
    e->cache_scope = 9;
    e->exact = true;
    e->want_logprobs = logprobs;
    e->n_logprobs = logprobs ? 2 : 0;
    e->n_stop_ids = 1;
    e->stop_ids[0] = 5;
    assert_int_equal(journal_set_biases(e, &(struct msg_bias){ 4, -1.5f }, 1), ST_OK);
    w->entries[w->n_entries++] = e;
    const struct msg_str stop = { "END", 3 };
    journal_disk_stream(w->d, &(struct journal_opening){ e, &stop, 1, 1, "dig", 77 });
    return e;
}

static void say(struct world *w, struct journal_entry *e, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const struct msg_logprob top[2] = { { 3, -0.5f }, { 4, -1.0f } };
        const struct msg_token t = { .stream = e->stream,
                                     .index = e->n_emitted,
                                     .token = 100 + e->n_emitted,
                                     .logprob = -0.25f * (float)e->n_emitted,
                                     .n_top = 2,
                                     .top = top };
        journal_disk_token(w->d, &t, e->want_logprobs, e->want_logprobs ? 2 : 0);
        assert_int_equal(journal_append(e, t.token), ST_OK);
    }
}

/* The segment as bytes; the caller frees. */
static char *segment(const struct world *w, size_t *len_p)
{
    struct dirent **list = NULL;
    char path[400] = "";
    struct buf b = BUF_INIT;
    const int n = scandir(w->dir, &list, NULL, alphasort);

    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        if (strncmp(list[i]->d_name, "journal-", 8) == 0) {
            assert_string_equal(path, ""); /* there is one */
            snprintf(path, sizeof(path), "%s/%s", w->dir, list[i]->d_name);
        }
        free(list[i]);
    }
    free(list);
    assert_int_equal(buf_read_file(&b, path, 1 << 30, NULL), ST_OK);
    char *copy = malloc(b.len + 1);
    assert_non_null(copy);
    memcpy(copy, b.data, b.len);
    *len_p = b.len;
    buf_fini(&b);
    return copy;
}

static void again(struct world *w)
{
    journal_disk_close(w->d, false);
    w->d = NULL;
    journal_image_fini(&w->image);
    open_disk(w, 0);
}

static const struct journal_stream *stream_of(struct world *w, const char *id)
{
    struct journal_stream **list = NULL;
    const struct journal_stream *found = NULL;

    assert_int_equal(journal_image_list(&w->image, &list, NULL), ST_OK);
    for (uint32_t i = 0; i < w->image.n_streams; i++) {
        found = strcmp(list[i]->request_id, id) == 0 ? list[i] : found;
    }
    free(list);
    return found;
}

/* ---- cases ---- */

static void test_journal_disk__what_is_written_is_read(void **state UNUSED)
{
    struct world *w = world_make(0);
    struct journal_entry *a = add(w, "a", false), *b = add(w, "b", true), *c = add(w, "c", false);

    for (uint32_t i = 0; i < 5; i++) { /* steps: a token of each */
        say(w, a, 1);
        say(w, b, 1);
        say(w, c, 1);
        journal_disk_flush(w->d);
    }
    assert_int_equal(w->disk.n_writes, 1 + 5); /* a write each */
    const struct journal_ending end = { { .stream = b->stream,
                                          .reason = FINISH_FAILED,
                                          .code = ST_ERR_LIMIT,
                                          .text = "too much",
                                          .cached_tokens = 3,
                                          .queued_us = 8 },
                                        1000,
                                        2000 };
    journal_disk_end(w->d, &end);
    journal_disk_drop(w->d, c->stream);
    journal_disk_profile(w->d, a->stream, "prof", JOURNAL_PLACED | JOURNAL_PRODUCED);
    journal_disk_profile(w->d, a->stream, "other", JOURNAL_PRODUCED);
    again(w);
    assert_int_equal(w->image.n_streams, 2);
    const struct journal_stream *s = stream_of(w, "a");
    assert_non_null(s);
    assert_int_equal(s->n_tokens, 5);
    assert_int_equal(s->tokens[4].token, 104);
    assert_int_equal(s->submit.n_prompt, 3);
    assert_int_equal(s->submit.prompt[2], 70000);
    assert_true(s->submit.seed == a->seed && s->submit.cache_scope == 9);
    assert_true(s->submit.temperature == 0.5f && s->submit.repetition_penalty == 1.5f);
    assert_int_equal(s->submit.n_biases, 1);
    assert_true(s->submit.biases[0].bias == -1.5f);
    assert_int_equal(s->n_stops, 1);
    assert_string_equal(s->stops[0].data, "END");
    assert_string_equal(s->profile, "prof");
    assert_int_equal(s->n_profiles, 2);
    assert_string_equal(s->profiles[1], "other");
    assert_true(s->exact);
    assert_string_equal(s->weights_digest, "dig");
    assert_true(s->arrived_us == 77 && s->first_token_us != 0);
    assert_false(s->has_end);
    s = stream_of(w, "b");
    assert_int_equal(s->n_tokens, 5);
    assert_true(s->tokens[3].logprob == -0.75f);
    assert_int_equal(s->tokens[3].n_top, 2);
    assert_int_equal(s->tokens[3].top[1].id, 4);
    assert_true(s->has_end);
    assert_int_equal(s->end.code, ST_ERR_LIMIT);
    assert_string_equal(s->end.text, "too much");
    assert_true(s->ended_us == 2000 && s->first_token_us == 1000);
    assert_null(stream_of(w, "c"));
    world_free(w);
}

/* Streams of one request: opened by one record, numbered in a row, gone together. */
static void test_journal_disk__several_answers_are_one_request(void **state UNUSED)
{
    struct world *w = world_make(0);
    struct journal_entry *other = add(w, "other", false);
    static const uint32_t n_tokens[] = { 0, 1, 5 };
    struct journal_entry *all[3];
    struct err err = ERR_INIT;

    assert_int_equal(journal_open(w->journal, "many", prompt, 3, &all[0], &err), ST_OK);
    all[0]->max_tokens = 9;
    for (uint32_t i = 1; i < 3; i++) {
        assert_int_equal(journal_open_choice(w->journal, all[0], i, &all[i], &err), ST_OK);
    }
    journal_disk_stream(w->d, &(struct journal_opening){ all[0], NULL, 0, 3, "dig", 77 });
    say(w, all[2], 4);
    say(w, all[1], 1);
    say(w, other, 1);
    say(w, all[2], 1);
    const struct journal_ending end = {
        { .stream = all[1]->stream, .reason = FINISH_STOP, .text = "" }, 1000, 2000
    };
    journal_disk_end(w->d, &end);
    journal_disk_flush(w->d);
    again(w);
    struct journal_stream **list = NULL;
    assert_int_equal(w->image.n_streams, 4);
    assert_int_equal(journal_image_list(&w->image, &list, NULL), ST_OK);
    for (uint32_t i = 0; i < 3; i++) {
        const struct journal_stream *s = list[i + 1];
        assert_string_equal(s->request_id, "many");
        assert_int_equal(s->submit.choice, i);
        assert_int_equal(s->n_choices, 3);
        assert_int_equal(s->n_tokens, n_tokens[i]);
        assert_int_equal(s->has_end, i == 1);
        assert_int_equal(s->submit.prompt[2], 70000);
    }
    free(list);
    journal_disk_begin(w->d, snapshot, w); /* "other" alone */
    journal_disk_stream(w->d, &(struct journal_opening){ all[0], NULL, 0, 3, "dig", 77 });
    journal_disk_drop(w->d, all[0]->stream);
    again(w);
    assert_int_equal(w->image.n_streams, 1);
    assert_null(stream_of(w, "many"));
    world_free(w);
}

/* ---- canaries ---- */

static struct journal_canary canary_of(const char *profile, uint32_t serial)
{
    struct journal_canary k = { .key = UINT64_C(0xFEDCBA9876543210) + serial, .replica = 3 };

    for (uint32_t i = 0; i < JOURNAL_CANARY_TOKENS; i++) {
        k.tokens[i] = (struct msg_logprob){ 70000 + i, -0.25f * (float)(i + serial) };
    }
    snprintf(k.profile, sizeof(k.profile), "%s", profile);
    snprintf(k.host, sizeof(k.host), "node%u", serial);
    return k;
}

static void expect_canary(const struct journal_image *image, uint32_t i,
                          const struct journal_canary *want)
{
    const struct journal_canary *k = &image->canaries[i];

    assert_true(k->key == want->key && k->replica == want->replica);
    assert_memory_equal(k->tokens, want->tokens, sizeof(k->tokens));
    assert_string_equal(k->profile, want->profile);
    assert_string_equal(k->host, want->host);
}

static void test_journal_disk__canaries_are_kept_a_later_one_of_a_profile_counts(
    void **state UNUSED)
{
    const struct journal_canary a = canary_of("a", 0), b = canary_of("b", 1), c = canary_of("a", 2);
    struct world *w = world_make(0);

    journal_disk_canary(w->d, &a);
    say(w, add(w, "x", false), 3);
    journal_disk_canary(w->d, &b);
    again(w);
    expect_canary(&w->image, 0, &a);
    expect_canary(&w->image, 1, &b);
    assert_string_equal(w->image.canaries[2].profile, "");
    journal_disk_begin(w->d, snapshot, w);
    journal_disk_canary(w->d, &a); /* as a snapshot says it */
    journal_disk_canary(w->d, &c);
    again(w);
    expect_canary(&w->image, 0, &c);
    assert_string_equal(w->image.canaries[1].profile, "");
    world_free(w);
}

static void test_journal_disk__more_profiles_of_canaries_than_are_kept_are_damage(
    void **state UNUSED)
{
    const char *const names[] = { "a", "b", "c", "d", "e" };
    struct world *w = world_make(0);
    struct journal_image image;
    struct err err = ERR_INIT;
    size_t len = 0;

    for (uint32_t i = 0; i <= JOURNAL_CANARIES; i++) {
        const struct journal_canary k = canary_of(names[i], i);
        journal_disk_canary(w->d, &k);
    }
    journal_disk_flush(w->d);
    char *bytes = segment(w, &len);
    assert_int_equal(journal_image_read("x", bytes, len, &image, &err), ST_ERR_FORMAT);
    assert_non_null(strstr(err.text, "canaries of more than 4 profiles"));
    free(bytes);
    world_free(w);
}

/* Within it too: names without their ends, other numbers of tokens; the sums are made right. */
static void test_journal_disk__half_a_canary_is_damage(void **state UNUSED)
{
    const struct journal_canary k = canary_of("profile", 0);
    const size_t head = sizeof(struct journal_head) + sizeof(struct journal_record_head);
    struct world *w = world_make(0);
    struct err err = ERR_INIT;
    size_t len = 0;

    journal_disk_canary(w->d, &k);
    journal_disk_flush(w->d);
    char *bytes = segment(w, &len);
    const uint32_t all =
        8 + 4 + 4 + JOURNAL_CANARY_TOKENS * 8 + 8 + 5; /* names: "profile", "node0" */
    for (uint32_t cut = 1; cut <= all; cut++) {
        struct journal_record_head h;
        struct journal_image image;
        const size_t part_len = head + (cut + 7) / 8 * 8;
        char *part = malloc(part_len);
        assert_non_null(part);
        memcpy(part, bytes, part_len);
        memcpy(&h, part + sizeof(struct journal_head), sizeof(h));
        assert_int_equal(h.bytes, all);
        h.bytes = cut;
        memcpy(part + sizeof(struct journal_head), &h, sizeof(h));
        h.sum = journal_record_sum(part + sizeof(struct journal_head) + 8, 8 + (size_t)cut, 1,
                                   sizeof(struct journal_head));
        memcpy(part + sizeof(struct journal_head), &h, sizeof(h));
        const status st = journal_image_read("x", part, part_len, &image, &err);
        /* Only the host's name may be shorter: it has no end of its own. */
        assert_int_equal(st, cut >= all - 5 ? ST_OK : ST_ERR_FORMAT);
        if (st == ST_OK) {
            journal_image_fini(&image);
        }
        free(part);
    }
    const uint32_t n = JOURNAL_CANARY_TOKENS - 1; /* which a gantry of another kind may have */
    struct journal_image image;
    memcpy(bytes + head + 12, &n, sizeof(n));
    const uint64_t sum = journal_record_sum(bytes + sizeof(struct journal_head) + 8,
                                            8 + (size_t)all, 1, sizeof(struct journal_head));
    memcpy(bytes + sizeof(struct journal_head), &sum, sizeof(sum));
    assert_int_equal(journal_image_read("x", bytes, len, &image, &err), ST_ERR_FORMAT);
    assert_non_null(strstr(err.text, "a canary of 3 tokens"));
    free(bytes);
    world_free(w);
}

static void test_journal_disk__cut_anywhere_it_holds_a_prefix(void **state UNUSED)
{
    struct world *w = world_make(0);
    struct journal_entry *a = add(w, "a", true);
    struct err err = ERR_INIT;
    uint32_t seen = 0;
    size_t len = 0;

    for (uint32_t i = 0; i < 6; i++) {
        say(w, a, i + 1);
        journal_disk_flush(w->d);
    }
    char *bytes = segment(w, &len);
    for (size_t cut = sizeof(struct journal_head); cut <= len; cut++) {
        struct journal_image image;
        char *part = malloc(cut); /* of its own, so that a read past it is seen */
        memcpy(part, bytes, cut);
        if (journal_image_read("x", part, cut, &image, &err) != ST_OK) {
            fail_msg("cut at %zu: %s", cut, err.text);
        }
        uint32_t n = 0;
        for (uint32_t i = 0; i < JOURNAL_BUCKETS; i++) {
            n += image.buckets[i] != NULL ? image.buckets[i]->n_tokens : 0;
        }
        assert_true(n >= seen && n <= 21 && image.good_bytes <= cut);
        seen = n;
        journal_image_fini(&image);
        free(part);
    }
    assert_int_equal(seen, 21);
    for (size_t cut = 0; cut < sizeof(struct journal_head); cut++) {
        struct journal_image image;
        assert_int_equal(journal_image_read("x", bytes, cut, &image, &err), ST_ERR_FORMAT);
    }
    free(bytes);
    world_free(w);
}

static void test_journal_disk__zeros_behind_a_cut_are_a_cut(void **state UNUSED)
{
    struct world *w = world_make(0);
    struct journal_entry *a = add(w, "a", false);
    struct journal_image image;
    size_t len = 0;

    say(w, a, 9);
    journal_disk_flush(w->d);
    char *bytes = segment(w, &len);
    char *longer = calloc(1, len + 4096);
    memcpy(longer, bytes, len);
    assert_int_equal(journal_image_read("x", longer, len + 4096, &image, NULL), ST_OK);
    assert_int_equal(image.good_bytes, len);
    assert_int_equal(image.n_streams, 1);
    journal_image_fini(&image);
    free(longer);
    free(bytes);
    world_free(w);
}

static void test_journal_disk__damage_is_named(void **state UNUSED)
{
    struct world *w = world_make(0);
    struct journal_entry *a = add(w, "a", true);
    struct err err = ERR_INIT;
    size_t len = 0;
    uint32_t n_refused = 0;

    for (uint32_t i = 0; i < 4; i++) {
        say(w, a, 2);
        journal_disk_flush(w->d);
    }
    char *bytes = segment(w, &len);
    for (size_t at = 0; at < len; at++) {
        struct journal_image image;
        bytes[at] = (char)(bytes[at] ^ 0x40);
        const status st = journal_image_read("the/file", bytes, len, &image, &err);
        bytes[at] = (char)(bytes[at] ^ 0x40);
        if (st == ST_OK) { /* of the last record a damage looks like a cut */
            assert_true(image.good_bytes < len);
            assert_true(at >= image.good_bytes);
            journal_image_fini(&image);
            continue;
        }
        n_refused++;
        assert_int_equal(st, ST_ERR_FORMAT);
        assert_non_null(strstr(err.text, "the/file is damaged at byte"));
    }
    assert_true(n_refused > len / 2);
    free(bytes);
    world_free(w);
}

static void test_journal_disk__segments_are_bounded(void **state UNUSED)
{
    struct world *w = world_make(4096);
    uint64_t most = 0;

    for (uint32_t i = 0; i < 40; i++) {
        char id[16];
        snprintf(id, sizeof(id), "s%u", i);
        struct journal_entry *e = add(w, id, false);
        for (uint32_t k = 0; k < 50; k++) {
            say(w, e, 1);
            journal_disk_flush(w->d);
            most = MAX(most, journal_disk_status(w->d).bytes);
        }
        if (i > 0) { /* one is left at a time */
            journal_disk_drop(w->d, w->entries[i - 1]->stream);
            w->entries[i - 1] = NULL;
        }
    }
    assert_true(w->disk.n_syncs > 10); /* each segment is synced once */
    assert_true(most < 4096 + 2048);
    size_t len = 0;
    free(segment(w, &len)); /* asserts that there is one */
    again(w);
    assert_int_equal(w->image.n_streams, 1);
    assert_int_equal(stream_of(w, "s39")->n_tokens, 50);
    world_free(w);
}

static void test_journal_disk__a_full_disk_costs_durability_only(void **state UNUSED)
{
    for (long room = 0; room < 400; room += 7) {
        struct world *w = world_make(0);
        struct journal_entry *a = add(w, "a", false);

        say(w, a, 3);
        journal_disk_flush(w->d);
        assert_true(journal_disk_status(w->d).is_durable);
        w->disk.room = room; /* half a record, perhaps */
        for (uint32_t i = 0; i < 20; i++) {
            say(w, a, 3);
            journal_disk_flush(w->d);
        }
        assert_false(journal_disk_status(w->d).is_durable);
        assert_non_null(strstr(journal_disk_status(w->d).why, "No space left"));
        assert_int_equal(a->n_emitted, 63);
        w->disk.room = -1;
        journal_disk_flush(w->d); /* too soon to try again */
        assert_false(journal_disk_status(w->d).is_durable);
        w->now += 6 * NS_PER_S;
        journal_disk_flush(w->d);
        assert_true(journal_disk_status(w->d).is_durable);
        assert_string_equal(journal_disk_status(w->d).why, "");
        size_t len = 0;
        free(segment(w, &len)); /* asserts that there is one */
        say(w, a, 1);
        again(w);
        assert_int_equal(stream_of(w, "a")->n_tokens, 64);
        world_free(w);
    }
}

static void test_journal_disk__the_last_whole_segment_stays_when_the_next_fails(void **state UNUSED)
{
    struct world *w = world_make(2048);
    struct journal_entry *a = add(w, "a", false);

    say(w, a, 10);
    journal_disk_flush(w->d);
    w->disk.room = 2500; /* the segment fills, its snapshot does not fit any more */
    for (uint32_t i = 0; i < 200; i++) {
        say(w, a, 1);
        journal_disk_flush(w->d);
    }
    assert_false(journal_disk_status(w->d).is_durable);
    again(w);
    assert_int_equal(w->image.n_streams, 1);
    const uint32_t n = stream_of(w, "a")->n_tokens;
    assert_in_range(n, 10, 209); /* what is lost is computed again */
    world_free(w);
}

static void test_journal_disk__two_never_share_a_folder(void **state UNUSED)
{
    struct world *w = world_make(0);
    struct journal_disk *other = NULL;
    struct journal_image image;
    struct err err = ERR_INIT;
    const struct journal_disk_config config = { .dir = w->dir };

    assert_int_equal(journal_disk_open(&config, &other, &image, &err), ST_ERR_EXISTS);
    assert_non_null(strstr(err.text, "another running service"));
    assert_int_equal(chmod(w->dir, 0750), 0);
    journal_disk_close(w->d, false);
    w->d = NULL;
    assert_int_equal(journal_disk_open(&config, &other, &image, &err), ST_ERR_DENIED);
    assert_int_equal(chmod(w->dir, 0700), 0);
    again(w);
    world_free(w);
}

static void test_journal_disk__frozen_it_keeps_what_it_has(void **state UNUSED)
{
    struct world *w = world_make(0);
    struct journal_entry *a = add(w, "a", false);

    say(w, a, 4);
    journal_disk_freeze(w->d);
    journal_disk_drop(w->d, a->stream);
    say(w, a, 4);
    again(w);
    assert_int_equal(stream_of(w, "a")->n_tokens, 4);
    world_free(w);
}

/* Its coordinator is gone by then. */
static void test_journal_disk__closing_asks_for_no_snapshot(void **state UNUSED)
{
    struct world *w = world_make(0);
    struct journal_entry *a = add(w, "a", false);

    journal_disk_flush(w->d);
    w->disk.room = 0;
    say(w, a, 3);
    journal_disk_flush(w->d);
    assert_false(journal_disk_status(w->d).is_durable);
    w->disk.room = -1;
    w->now += 6 * NS_PER_S; /* it would be tried again now */
    const uint32_t n_syncs = w->disk.n_syncs;
    journal_disk_close(w->d, false);
    w->d = NULL;
    assert_int_equal(w->disk.n_syncs, n_syncs);
    again(w);
    assert_int_equal(stream_of(w, "a")->n_tokens, 0);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_journal_disk__what_is_written_is_read),
        cmocka_unit_test(test_journal_disk__several_answers_are_one_request),
        cmocka_unit_test(test_journal_disk__canaries_are_kept_a_later_one_of_a_profile_counts),
        cmocka_unit_test(test_journal_disk__more_profiles_of_canaries_than_are_kept_are_damage),
        cmocka_unit_test(test_journal_disk__half_a_canary_is_damage),
        cmocka_unit_test(test_journal_disk__cut_anywhere_it_holds_a_prefix),
        cmocka_unit_test(test_journal_disk__zeros_behind_a_cut_are_a_cut),
        cmocka_unit_test(test_journal_disk__damage_is_named),
        cmocka_unit_test(test_journal_disk__segments_are_bounded),
        cmocka_unit_test(test_journal_disk__a_full_disk_costs_durability_only),
        cmocka_unit_test(test_journal_disk__the_last_whole_segment_stays_when_the_next_fails),
        cmocka_unit_test(test_journal_disk__two_never_share_a_folder),
        cmocka_unit_test(test_journal_disk__frozen_it_keeps_what_it_has),
        cmocka_unit_test(test_journal_disk__closing_asks_for_no_snapshot),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
