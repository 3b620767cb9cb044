/* main.c - the program `gantry`: a word, and the command behind it. */
#include "worker/main.h"
#include "base/compiler.h"
#include "coordinator/cli/cli.h"
#include "proto/msg.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int version_main(int argc, char **argv);
static int help_main(int argc, char **argv);
static int serve_main(int argc, char **argv);
static int hold_main(int argc, char **argv);

static const struct command {
    const char *name;
    int (*main)(int argc, char **argv);
    const char *help; /* NULL: not listed */
} commands[] = {
    { "plan", cli_plan, "how a model would be cut over ranks, and what each needs" },
    { "measure", measure_main, "what this host does in a second; plan and serve predict from it" },
    { "inspect", cli_inspect, "what a model directory holds" },
    { "serve", serve_main, "serve a model: start its ranks and answer requests" },
    { "generate", cli_generate, "ask a running service to go on from a prompt" },
    { "batch", cli_batch, "answer a file of requests, without a port; may be killed and goes on" },
    { "status", cli_status, "what a running service does now" },
    { "drain", cli_drain,
      "empty a replica, or start all again one by one, without losing a stream" },
    { "worker", worker_main, "one rank (serve starts these)" },
    { "hold", hold_main, NULL },
    { "version", version_main, "print version and build" },
    { "help", help_main, "this text, or help of a command" },
};

static const char tour[] =
    "\n"
    "A short tour:\n"
    "  gantry plan MODEL                      does it fit here?\n"
    "  gantry serve MODEL &                   one rank, all cores, 127.0.0.1:50051\n"
    "  gantry status --wait 60                until it is ready\n"
    "  gantry generate \"Once upon a time\"     text as it comes\n"
    "  gantry serve MODEL --tp 4              four ranks on this machine\n"
    "  gantry serve MODEL --hostfile hosts    over several machines\n"
    "\n"
    "MODEL is a directory as Hugging Face publishes them: config.json, *.safetensors and the\n"
    "tokenizer's files. Each command explains itself: gantry serve --help\n";

static const struct command *command_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
        if (strcmp(commands[i].name, name) == 0) {
            return &commands[i];
        }
    }
    return NULL;
}

static void usage(FILE *out)
{
    fprintf(out,
            "gantry %s - serves language models that are too large for one machine\n\n"
            "usage: gantry COMMAND [options]\n\n",
            msg_version());
    for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
        if (commands[i].help != NULL) {
            fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
        }
    }
    fputs(tour, out);
}

static int version_main(int argc UNUSED, char **argv UNUSED)
{
    printf("gantry %s (build %s, protocol %d)\n", msg_version(), msg_build(), (int)MSG_PROTOCOL);
    return 0;
}

static int help_main(int argc, char **argv)
{
    static char help[] = "--help";
    const struct command *c = argc > 1 ? command_find(argv[1]) : NULL;

    if (c != NULL && c->help != NULL && c->main != help_main && c->main != version_main) {
        char *args[] = { argv[1], help, NULL };
        return c->main(2, args);
    }
    usage(stdout);
    return 0;
}

/* Started by mpirun, every rank comes here: then the whole service is one MPI job. */
static int serve_main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0 ||
            strcmp(argv[i], "--dry-run") == 0) {
            return cli_serve(argc, argv);
        }
    }
    return worker_in_mpi_job() ? worker_one_job(argc, argv) : cli_serve(argc, argv);
}

/* `gantry hold COMMAND...`: the command with SIGTERM blocked. How mpirun's daemons are started inside
 * a job of SLURM's (cluster/launch.c says why). */
static int hold_main(int argc, char **argv)
{
    sigset_t set;

    if (argc < 2) {
        fputs("gantry hold: which command?\n", stderr);
        return 2;
    }
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    execvp(argv[1], argv + 1);
    fprintf(stderr, "gantry hold: %s: %s\n", argv[1], strerror(errno));
    return 127;
}

/* Levenshtein distance; words are short. */
static size_t distance(const char *a, const char *b)
{
    enum { WORD_MAX = 24 };
    size_t row[WORD_MAX + 1];
    const size_t n = strlen(b);

    if (n > WORD_MAX || strlen(a) > WORD_MAX) {
        return WORD_MAX;
    }
    for (size_t k = 0; k <= n; k++) {
        row[k] = k;
    }
    for (size_t i = 1; a[i - 1] != '\0'; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t k = 1; k <= n; k++) {
            const size_t best = MIN(row[k], row[k - 1]) + 1;
            const size_t kept = diagonal + (a[i - 1] != b[k - 1]);
            diagonal = row[k];
            row[k] = MIN(best, kept);
        }
    }
    return row[n];
}

static int unknown(const char *name)
{
    const struct command *best = NULL;
    size_t best_distance = 3;

    for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
        const size_t d = distance(name, commands[i].name);
        if (d < best_distance) {
            best_distance = d;
            best = &commands[i];
        }
    }
    fprintf(stderr, "gantry: no command \"%.40s\"", name);
    if (best != NULL) {
        fprintf(stderr, "; did you mean \"%s\"?", best->name);
    }
    fputs(" (gantry --help lists them)\n", stderr);
    return 2;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        usage(stderr);
        return 2;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        return help_main(1, argv);
    }
    if (strcmp(argv[1], "--version") == 0) {
        return version_main(1, argv);
    }
    const struct command *c = command_find(argv[1]);
    return c != NULL ? c->main(argc - 1, argv + 1) : unknown(argv[1]);
}
