/* coordinator/cli/cli.h - the commands of the program `gantry`, each a main of its own.
 *
 * argv[0] is the command's name. The result is the exit code (base/err.h, status_exit_code). */
#ifndef COORDINATOR_CLI_CLI_H
#define COORDINATOR_CLI_CLI_H

int cli_plan(int argc, char **argv);
int cli_inspect(int argc, char **argv);
int cli_serve(int argc, char **argv);
int cli_generate(int argc, char **argv);
int cli_status(int argc, char **argv);
int cli_batch(int argc, char **argv);
int cli_drain(int argc, char **argv);

#endif
