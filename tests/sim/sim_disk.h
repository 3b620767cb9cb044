/* tests/sim/sim_disk.h - the files of the coordinator's host, in memory: every call that journal_disk.c, dir.c,
 * service_state.c and buf_read_file make of a path below /sim comes here (by the linker).
 *
 *   write ─► the kernel's pages ──fdatasync──► the disk         a dead process loses nothing that it wrote,
 *   create, rename, unlink ─► a log, in order ──any sync──►     a dead machine all that was not synced
 *
 * When the power fails each file keeps what was synced of it and some of the rest, cut at any byte, and
 * of the changes of names since the last sync the first so many, as a file system with a log of its own
 * does. Files that were written and renamed without a sync may therefore come back cut or empty. */
#ifndef TESTS_SIM_DISK_H
#define TESTS_SIM_DISK_H

#include "sim/sim.h"

#include <stddef.h>

#define SIM_JOURNAL "/sim/journal"
#define SIM_RUN_DIR "/sim/run"

struct sim_disk;

struct sim_disk *sim_disk_create(struct sim *s);
void sim_disk_destroy(struct sim_disk *d);

/* The process dies at its n-th change of a file from now on, which is made in part; sim_disk_mute is then on
 * and serve_dies was called. 0: not. */
void sim_disk_die_in(struct sim_disk *d, uint32_t n);
/* What a dead process still does (its memory is being freed) changes nothing. */
void sim_disk_mute(struct sim_disk *d, bool mute);
void sim_disk_process_over(struct sim_disk *d); /* its descriptors and locks go */
void sim_disk_power_cut(struct sim_disk *d);    /* and another start of the machine begins */
void sim_disk_set_full(struct sim_disk *d, bool is_full);
bool sim_disk_is_full(const struct sim_disk *d);
/* By somebody else. false: there is none. text_p: NUL-terminated, cut at `bytes`. */
bool sim_disk_text(const struct sim_disk *d, const char *path, char *text_p, size_t bytes);
/* Of all files below `dir`. */
uint64_t sim_disk_bytes(const struct sim_disk *d, const char *dir, uint32_t *n_files_p);

#endif
