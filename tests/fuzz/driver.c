/* tests/fuzz/driver.c - runs a fuzz entry without libFuzzer, with any compiler: as a test.
 *
 *   fuzz.<name> FOLDER [MUTATIONS [SEED]]   each file of the folder, then mutations of them
 *   fuzz.<name> FILE                        that input only: to repeat a find
 *
 * The same seed gives the same inputs on every machine; the clock only ends the run early (a slow
 * machine tries fewer). When the program dies, the input at hand is saved as fuzz-find-<pid>. */
#include "base/clock.h"
#include "base/compiler.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    INPUT_BYTES_MAX = 1 << 20,
    SEEDS_MAX = 1024,
    MUTATIONS = 20000,
    SECONDS_MAX = 5,
    EDITS_MAX = 6 /* per mutation */
};

struct input {
    uint8_t *data; /* owned, exactly `size` bytes, so that a sanitizer sees one byte too far */
    size_t size;
};

static struct input seeds[SEEDS_MAX];
static uint32_t n_seeds;
static struct input current;

/* ---- a find ---- */

static void put_words(const char *words)
{
    if (write(STDERR_FILENO, words, strlen(words)) < 0) {
        return; /* dying anyway */
    }
}

static void save_find(int signum)
{
    static const char prefix[] = "fuzz-find-";
    char path[sizeof(prefix) + 12] = "fuzz-find-";
    char *at = path + sizeof(prefix) - 1 + 10;

    *at = '\0';
    unsigned pid = (unsigned)getpid();
    for (int i = 0; i < 10; i++, pid /= 10) {
        *--at = (char)('0' + pid % 10);
    }
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd >= 0 && write(fd, current.data, current.size) == (ssize_t)current.size) {
        put_words("fuzz: the input that did it is saved as ");
        put_words(path);
        put_words("\n");
    }
    signal(signum, SIG_DFL);
    raise(signum);
}

/* ---- inputs ---- */

static void add_seed(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size != 0 ? size : 1);

    if (copy == NULL || n_seeds == SEEDS_MAX) {
        fprintf(stderr, "fuzz: more than %d inputs, or no memory\n", SEEDS_MAX);
        exit(1);
    }
    memcpy(copy, data, size);
    seeds[n_seeds++] = (struct input){ copy, size };
}

static bool add_file(const char *path)
{
    static uint8_t data[INPUT_BYTES_MAX];
    FILE *file = fopen(path, "rb");

    if (file == NULL) {
        return false;
    }
    const size_t size = fread(data, 1, sizeof(data), file);
    fclose(file);
    add_seed(data, size);
    return true;
}

/* In the order of names: readdir's order differs between file systems. */
static void add_folder(const char *path)
{
    struct dirent **names = NULL;
    const int n = scandir(path, &names, NULL, alphasort);

    for (int i = 0; i < n; i++) {
        char full[4096];
        snprintf(full, sizeof(full), "%s/%s", path, names[i]->d_name);
        if (names[i]->d_name[0] != '.') {
            add_file(full);
        }
        free(names[i]);
    }
    free(names);
}

/* ---- mutations ---- */

static uint64_t random_next(uint64_t *state)
{
    *state += 0x9E3779B97F4A7C15u; /* splitmix64 */
    uint64_t x = *state;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

static size_t below(uint64_t *state, size_t n)
{
    return n == 0 ? 0 : (size_t)(random_next(state) % n);
}

/* Sizes and counts that sit on the edges where readers go wrong. */
static void put_edge_number(uint8_t *data, size_t size, uint64_t *state)
{
    static const uint64_t edges[] = { 0,          1,          0x7F,       0x80,
                                      0xFF,       0x7FFF,     0xFFFF,     0x7FFFFFFF,
                                      0x80000000, 0xFFFFFFFF, INT64_MAX,  UINT64_MAX,
                                      1u << 20,   1ull << 40, 0xFFFFFFFE, 64 };
    const uint64_t value = edges[below(state, ARRAY_LEN(edges))];
    const size_t width = (size_t)1 << below(state, 4);

    if (size >= width) {
        memcpy(data + below(state, size - width + 1), &value, width);
    }
}

/* One edit of data[0 .. size) in a buffer of INPUT_BYTES_MAX; returns the new size. */
static size_t edit(uint8_t *data, size_t size, uint64_t *state)
{
    const size_t at = below(state, size + 1);
    const size_t span = below(state, MIN(size - at, (size_t)64) + 1);

    switch (below(state, 8)) {
    case 0: /* flip a bit */
        if (at < size) {
            data[at] ^= (uint8_t)(1u << below(state, 8));
        }
        return size;
    case 1: /* another byte */
        if (at < size) {
            data[at] = (uint8_t)random_next(state);
        }
        return size;
    case 2:
        put_edge_number(data, size, state);
        return size;
    case 3: /* drop a piece */
        memmove(data + at, data + at + span, size - at - span);
        return size - span;
    case 4: /* double a piece */
        if (size + span <= INPUT_BYTES_MAX) {
            memmove(data + at + span, data + at, size - at);
            return size + span;
        }
        return size;
    case 5: /* cut the end off */
        return at;
    case 6: { /* the end of another seed behind the start of this one */
        const struct input *other = &seeds[below(state, n_seeds)];
        const size_t from = below(state, other->size + 1);
        const size_t n = MIN(other->size - from, (size_t)INPUT_BYTES_MAX - at);
        memcpy(data + at, other->data + from, n);
        return at + n;
    }
    default: { /* a character that text formats care about */
        static const char special[] = "{}[]\"\\,:0-9eE+.\n\t <>&%/\xC3\xED\xF4\xFF";
        if (at < size) {
            data[at] = (uint8_t)special[below(state, sizeof(special))];
        }
        return size;
    }
    }
}

static void try_input(const uint8_t *data, size_t size)
{
    uint8_t *exact = malloc(size != 0 ? size : 1);

    if (exact == NULL) {
        exit(1);
    }
    memcpy(exact, data, size);
    current = (struct input){ exact, size };
    LLVMFuzzerTestOneInput(exact, size);
    current = (struct input){ NULL, 0 };
    free(exact);
}

static uint32_t mutate(uint32_t n_mutations, uint64_t seed)
{
    static uint8_t data[INPUT_BYTES_MAX];
    const uint64_t end_ns = clock_now_ns(clock_real()) + SECONDS_MAX * NS_PER_S;
    uint32_t n = 0;

    for (; n < n_mutations && clock_now_ns(clock_real()) < end_ns; n++) {
        uint64_t state = seed + n;
        const struct input *from = &seeds[n % n_seeds];
        size_t size = from->size;

        memcpy(data, from->data, size);
        for (size_t edits = 1 + below(&state, EDITS_MAX); edits > 0; edits--) {
            size = edit(data, size, &state);
        }
        try_input(data, size);
    }
    return n;
}

int main(int argc, char **argv)
{
    static const int deadly[] = { SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL };
    struct stat info;

    if (argc < 2) {
        fprintf(stderr, "usage: %s FOLDER [MUTATIONS [SEED]] | FILE\n", argv[0]);
        return 2;
    }
    for (size_t i = 0; i < ARRAY_LEN(deadly); i++) {
        signal(deadly[i], save_find);
    }
    if (stat(argv[1], &info) == 0 && S_ISREG(info.st_mode)) {
        if (!add_file(argv[1])) {
            perror(argv[1]);
            return 1;
        }
        try_input(seeds[0].data, seeds[0].size);
        return 0;
    }
    add_seed((const uint8_t *)"", 0);
    add_folder(argv[1]);
    for (uint32_t i = 0; i < n_seeds; i++) {
        try_input(seeds[i].data, seeds[i].size);
    }
    const uint32_t n_mutations = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : MUTATIONS;
    const uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    const uint32_t n = mutate(n_mutations, seed);
    printf("fuzz: %u inputs of the corpus, %u mutations, seed %" PRIu64 "\n", n_seeds - 1, n, seed);
    for (uint32_t i = 0; i < n_seeds; i++) {
        free(seeds[i].data);
    }
    return 0;
}
