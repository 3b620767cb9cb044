/* coordinator/cli/generate_json.h - see generate_json.c. */
#ifndef COORDINATOR_CLI_GENERATE_JSON_H
#define COORDINATOR_CLI_GENERATE_JSON_H

#include "proto/msg.h"

/* To stdout. ST_ERR_NOMEM: not, or not all of it. */
status generate_print_json(const struct msg_chunk *c);

#endif
