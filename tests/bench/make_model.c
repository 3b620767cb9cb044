/* tests/bench/make_model.c - a Hugging Face directory of random weights with the shape of a known
 * model (common/random_model.h).
 *
 *   make_model DIR SHAPE        tinyllama-1.1b (2.2 GB), llama-160m (0.3 GB), or llama-1.1b-mha (2.3 GB: 180 KB of
 *                               KV a position, and a vocabulary that the demo model's tokenizer covers)
 *
 * Benches send token ids. Speed does not depend on the values. */
#include "common/random_model.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static const struct random_shape shapes[] = {
    { "tinyllama-1.1b", 22, 2048, 32, 4, 5632, 32000, 2048 },
    { "llama-160m", 12, 768, 12, 12, 3072, 32000, 2048 },
    { "llama-1.1b-mha", 22, 2048, 32, 32, 5632, 4096, 2048 },
};

int main(int argc, char **argv)
{
    for (size_t i = 0; argc == 3 && i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        if (strcmp(argv[2], shapes[i].name) == 0) {
            mkdir(argv[1], 0755);
            random_model_write(argv[1], &shapes[i]);
            return 0;
        }
    }
    fprintf(stderr, "usage: make_model DIR tinyllama-1.1b|llama-160m|llama-1.1b-mha\n");
    return 2;
}
