/* proto/codec_descriptors.c - the public .proto files as protoc compiled them, inside the program:
 * what server reflection answers with. GANTRY_DESCRIPTORS is the path of the set (CMakeLists.txt).
 */
#include "proto/msg.h"

__asm__(".section .rodata\n"
        ".balign 16\n"
        "gantry_descriptors_begin:\n"
        ".incbin \"" GANTRY_DESCRIPTORS "\"\n"
        "gantry_descriptors_end:\n"
        ".byte 0\n"
        ".previous\n");

extern const char gantry_descriptors_begin[], gantry_descriptors_end[];

struct msg_str msg_descriptors(void)
{
    return (struct msg_str){ gantry_descriptors_begin,
                             (size_t)(gantry_descriptors_end - gantry_descriptors_begin) };
}
