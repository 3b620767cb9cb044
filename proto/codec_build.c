/* proto/codec_build.c - which build this is.
 *
 * The linker's build id is a digest of the program's own bytes, so two hosts with different
 * installations are told apart even when both say 0.1.0. It is read from the note that every ELF
 * program carries in memory; a program linked without one is known by its version alone. */
#include "proto/msg.h"

#include <elf.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { ID_BYTES_MAX = 20 };

static pthread_once_t once = PTHREAD_ONCE_INIT;
static char build[sizeof(GANTRY_VERSION) + 1 + 2 * ID_BYTES_MAX + 1];

static size_t note_align(size_t n)
{
    return (n + 3) & ~(size_t)3;
}

/* Append the build id found in [note, note + len), if there is one. */
static bool note_read(const char *note, size_t len)
{
    while (len >= sizeof(ElfW(Nhdr))) {
        ElfW(Nhdr) head;

        memcpy(&head, note, sizeof(head));
        const size_t name_at = sizeof(head);
        const size_t id_at = name_at + note_align(head.n_namesz);
        const size_t end = id_at + note_align(head.n_descsz);
        if (end > len) {
            return false;
        }
        if (head.n_type == NT_GNU_BUILD_ID && head.n_namesz == 4 &&
            memcmp(note + name_at, "GNU", 4) == 0) {
            size_t at = strlen(build);
            build[at++] = '+';
            for (size_t i = 0; i < head.n_descsz && i < ID_BYTES_MAX; i++, at += 2) {
                snprintf(build + at, 3, "%02x", (unsigned char)note[id_at + i]);
            }
            return true;
        }
        note += end;
        len -= end;
    }
    return false;
}

/* The first object is the program itself; the libraries behind it do not matter. */
static int object_visit(struct dl_phdr_info *info, size_t size UNUSED, void *arg UNUSED)
{
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type == PT_NOTE &&
            note_read((const char *)(uintptr_t)(info->dlpi_addr + p->p_vaddr), p->p_memsz)) {
            break;
        }
    }
    return 1;
}

static void build_make(void)
{
    memcpy(build, GANTRY_VERSION, sizeof(GANTRY_VERSION));
    dl_iterate_phdr(object_visit, NULL);
}

const char *msg_build(void)
{
    pthread_once(&once, build_make);
    return build;
}

const char *msg_version(void)
{
    return GANTRY_VERSION;
}
