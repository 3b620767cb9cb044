/* tests/simt/simt_wgmma.cpp - products of four warps: kept as they were given until they are waited for, and then
 * done. What must not be written in between is looked at again, and the program ends with a word if it was.
 *
 * The sums are mma's (simt_dot.cpp). */
#include "simt_wgmma.h"

#include "cuda_runtime.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

extern char *simt_shared;
float simt_dot(float c, const uint16_t a[16], const uint16_t b[16]);

/* A product of four warps that is under way: what it was given, to be looked at again when it is
 * waited for. */
struct wg_op {
    float *d;
    const uint32_t *a[4];
    uint32_t a_then[4];
    uint16_t a_rows[2][16]; /* rows g and g + 8 of this warp's part of A */
    uint64_t b, b_sum;      /* descriptor; lane 0: a sum over B's bits */
};

/* Its D until then: the registers themselves hold a pattern. */
struct wg_acc {
    float *d;
    float v[64];
};

struct wg_thread {
    std::vector<wg_op> ops;
    std::vector<wg_acc> accs;
    size_t committed;             /* of ops */
    bool fenced;                  /* since the last wait */
    std::vector<uint32_t> stored; /* words of shared memory, not published yet */
};

static std::vector<wg_thread> threads;

/* Per word that write_4 stored: simt_barriers when it was published; NOT_SEEN: not yet. wgmma sees it
 * behind a later barrier. */
static uint32_t published[SIMT_SHARED_BYTES / 4];
enum : uint32_t { NOT_SEEN = UINT32_MAX };

[[noreturn]] static void wg_bug(const char *what)
{
    fprintf(stderr, "simt: wgmma: %s\n", what);
    abort();
}

void simt_wg_begin(size_t smem)
{
    if (threads.size() < blockDim.x) {
        threads.resize(blockDim.x);
    }
    memset(published, 0xff, smem); /* NOT_SEEN */
}

void simt_wg_end()
{
    wg_thread &f = threads[threadIdx.x];

    if (!f.ops.empty()) {
        wg_bug("a thread ends before its products are done");
    }
    f.stored.clear();
    f.fenced = false;
    f.committed = 0;
}

static const uint16_t *wg_b(uint64_t desc, uint32_t row, uint32_t k)
{
    const uint32_t start = (desc & 0x3fff) << 4, next_k = (desc >> 16 & 0x3fff) << 4,
                   next_rows = (desc >> 32 & 0x3fff) << 4;
    const uint32_t at = start + k / 8 * next_k + row / 8 * next_rows + row % 8 * 16 + k % 8 * 2;

    if (at + 2 > SIMT_SHARED_BYTES) {
        wg_bug("an operand past the end of shared memory");
    }
    return (const uint16_t *)(const void *)(simt_shared + at);
}

/* Over all of B; it must have been published. */
static uint64_t wg_b_sum(uint64_t desc, bool first)
{
    uint64_t sum = 0;

    for (uint32_t row = 0; row < 128; row++) {
        for (uint32_t k = 0; k < 16; k += 2) {
            const char *at = (const char *)(const void *)wg_b(desc, row, k);
            const uint32_t when = published[(at - simt_shared) / 4];
            uint32_t word;

            if (first && (when == NOT_SEEN || when >= simt_barriers)) {
                wg_bug("an operand that was not published, or without a barrier since");
            }
            memcpy(&word, at, 4);
            sum = (sum ^ word) * 0x9e3779b97f4a7c15u;
        }
    }
    return sum;
}

static const uint32_t WG_PATTERN = 0xffc0dead; /* a NaN */

static bool wg_held(const float *d)
{
    for (int i = 0; i < 64; i++) {
        if (memcmp(&d[i], &WG_PATTERN, 4) != 0) {
            return false;
        }
    }
    return true;
}

void simt_wg_fence()
{
    threads[threadIdx.x].fenced = true;
}

void simt_wg_mma(float *d, const uint32_t *const a[4], uint64_t b)
{
    const uint32_t mine[8] = { *a[0], *a[1], *a[2], *a[3], 0, 0, 0, 0 };
    const uint32_t *all = simt_exchange_words(mine);
    wg_thread &f = threads[threadIdx.x];
    const uint32_t lane = threadIdx.x % 32, g = lane / 4;
    wg_op op = {};
    bool known = false;

    if (blockDim.x % 128 != 0 || !f.fenced) {
        wg_bug(f.fenced ? "not four warps" : "no fence since registers were free");
    }
    if (b & 0xc000c000c000c000u || b >> 49 != 0) {
        wg_bug("a descriptor with other bits than offsets");
    }
    op.d = d;
    op.b = b;
    op.b_sum = lane == 0 ? wg_b_sum(b, true) : 0;
    for (uint32_t i = 0; i < 4; i++) {
        op.a[i] = a[i];
        op.a_then[i] = mine[i];
    }
    for (uint32_t i = 0; i < 32; i++) { /* register r: row g + r % 2 * 8, k from r / 2 * 8 on */
        const uint32_t k = i % 16, from = (g * 4 + k % 8 / 2) * 8 + i / 16 + k / 8 * 2;

        op.a_rows[i / 16][k] = (uint16_t)(all[from] >> k % 2 * 16);
    }
    for (const wg_acc &s : f.accs) {
        known = known || s.d == d;
    }
    if (!known) {
        f.accs.push_back({});
        f.accs.back().d = d;
        memcpy(f.accs.back().v, d, sizeof f.accs.back().v);
        for (int i = 0; i < 64; i++) {
            memcpy(&d[i], &WG_PATTERN, 4);
        }
    }
    f.ops.push_back(op);
}

void simt_wg_commit()
{
    threads[threadIdx.x].committed = threads[threadIdx.x].ops.size();
}

static void wg_finish(const wg_op &op, float v[64])
{
    /* For a test of kernels/cuda/agree.cu: rounded once more on the way. */
    static const bool other = getenv("SIMT_WGMMA_ROUNDS_TWICE") != nullptr;
    const uint32_t c = threadIdx.x % 4;

    for (uint32_t i = 0; i < 64; i++) {
        const uint16_t *a = op.a_rows[i % 4 / 2];
        uint16_t x[16], late[16] = { 0 };

        for (uint32_t k = 0; k < 16; k++) {
            x[k] = *wg_b(op.b, i / 4 * 8 + 2 * c + i % 2, k);
            if (other && k > 7) {
                late[k] = x[k];
                x[k] = 0;
            }
        }
        v[i] = simt_dot(v[i], a, x);
        v[i] = other ? simt_dot(v[i], a, late) : v[i];
    }
}

void simt_wg_wait()
{
    wg_thread &f = threads[threadIdx.x];

    if (f.committed != f.ops.size()) {
        wg_bug("waited for before it was committed");
    }
    for (const wg_op &op : f.ops) {
        for (uint32_t i = 0; i < 4; i++) {
            if (*op.a[i] != op.a_then[i]) {
                wg_bug("a register of A was written while a product read it");
            }
        }
        if (threadIdx.x % 32 == 0 && wg_b_sum(op.b, false) != op.b_sum) {
            wg_bug("shared memory was written while a product read it");
        }
        for (wg_acc &s : f.accs) {
            if (s.d == op.d) {
                wg_finish(op, s.v);
            }
        }
    }
    for (const wg_acc &s : f.accs) {
        if (!wg_held(s.d)) {
            wg_bug("a register of D was written while a product had it");
        }
        memcpy(s.d, s.v, sizeof s.v);
    }
    f.ops.clear();
    f.accs.clear();
    f.committed = 0;
    f.fenced = false;
}

uint32_t simt_smem_offset(const void *p)
{
    return (uint32_t)((const char *)p - simt_shared);
}

void simt_write_4(void *at, uint32_t v)
{
    const uint32_t word = simt_smem_offset(at) / 4;

    memcpy(at, &v, 4);
    published[word] = NOT_SEEN;
    threads[threadIdx.x].stored.push_back(word);
}

void simt_publish()
{
    for (const uint32_t word : threads[threadIdx.x].stored) {
        published[word] = simt_barriers;
    }
    threads[threadIdx.x].stored.clear();
}
