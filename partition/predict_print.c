/* partition/predict_print.c - predicted times for people and, as part of the plan's, for programs. */
#include "partition/predict.h"

#include "partition/predict_json.h"

#include <stdio.h>
#include <string.h>

enum { SECONDS_TEXT_BYTES = 24, STAGES_SHOWN = 32 };

/* "36.1 ms": three digits, whatever the size. */
static const char *seconds_text(double s, char text[SECONDS_TEXT_BYTES])
{
    if (s < 1e-3) {
        snprintf(text, SECONDS_TEXT_BYTES, "%.3g us", s * 1e6);
    } else if (s < 1) {
        snprintf(text, SECONDS_TEXT_BYTES, "%.3g ms", s * 1e3);
    } else if (s < 1e3) {
        snprintf(text, SECONDS_TEXT_BYTES, "%.3g s", s);
    } else {
        snprintf(text, SECONDS_TEXT_BYTES, "%.0f s", s);
    }
    return text;
}

/* "347", "8.21": rates have no place behind the point where they are large. */
static const char *rate_text(double rate, char text[SECONDS_TEXT_BYTES])
{
    snprintf(text, SECONDS_TEXT_BYTES, rate < 100 ? "%.3g" : "%.0f", rate);
    return text;
}

/* "host a (avx512bf16, 2 threads, 2026-11-22T..)", and how many others. */
static status put_sources(const struct plan *plan, struct buf *out)
{
    const struct rates_entry *first = plan->sites[0].rates;
    uint32_t n_others = 0;
    status st = buf_printf(out, "Predicted from the rates of %s%s (%s",
                           strcmp(first->host, "*") == 0 ? "any host" : "host ",
                           strcmp(first->host, "*") == 0 ? "" : first->host,
                           first->kernels[0] != '\0' ? first->kernels : "kernels not said");

    if (st == ST_OK && first->threads != 0) {
        st = buf_printf(out, ", %u thread%s", first->threads, first->threads == 1 ? "" : "s");
    }
    if (st == ST_OK && first->measured[0] != '\0') {
        st = buf_printf(out, ", %s", first->measured);
    }
    for (uint32_t i = 1; i < plan->n_ranks; i++) {
        bool is_new = plan->sites[i].rates != first;
        for (uint32_t k = 1; is_new && k < i && plan->n_ranks <= 64; k++) {
            is_new = plan->sites[k].rates != plan->sites[i].rates;
        }
        n_others += is_new ? 1 : 0;
    }
    (void)(st || (st = buf_append_str(out, ")")));
    if (st == ST_OK && n_others != 0 && plan->n_ranks <= 64) {
        st = buf_printf(out, " and of %u other%s", n_others, n_others == 1 ? "" : "s");
    } else if (st == ST_OK && n_others != 0) {
        st = buf_append_str(out, " and of others");
    }
    return st == ST_OK ? buf_append_str(out, ":\n") : st;
}

static status put_request(const struct prediction *p, struct buf *out)
{
    char a[SECONDS_TEXT_BYTES], b[SECONDS_TEXT_BYTES];
    status st = buf_printf(
        out, "  prompt of %u tokens: %s to the first token, %s tokens/s; most of it %s\n",
        p->prompt, seconds_text(p->first_s, a), rate_text(p->prompt_tokens_s, b),
        predict_bound_name(p->first_bound));

    if (st == ST_OK) {
        st =
            buf_printf(out, "  one stream at that length: %s a token, %s tokens/s; most of it %s\n",
                       seconds_text(p->token_s, a), rate_text(1 / p->token_s, b),
                       predict_bound_name(p->token_bound));
    }
    if (st == ST_OK) {
        st = buf_printf(
            out,
            "  %u stream%s at that length: %s a token of each, %s tokens/s in all; most of it %s\n",
            p->streams, p->streams == 1 ? "" : "s", seconds_text(p->round_s, a),
            rate_text(p->tokens_s, b), predict_bound_name(p->round_bound));
    }
    return st;
}

static status put_stages(const struct plan *plan, const struct prediction *p, struct buf *out)
{
    const struct predict_step one = { .n_rows = 1, .n_samples = 1, .positions = p->prompt };
    const uint32_t n = MIN(plan->pp, (uint32_t)STAGES_SHOWN);
    status st = ST_OK;

    for (uint32_t stage = 0; stage < n && plan->pp > 1 && st == ST_OK; stage++) {
        const uint32_t rank = stage * plan->tp;
        struct predict_time t;
        char a[SECONDS_TEXT_BYTES];
        predict_stage(plan, stage, &one, &t);
        st = buf_printf(out, "  stage %u: %u layers on %s%s, %s of a token%s\n", stage,
                        range_len(plan->parts[rank].layers), plan->sites[rank].rates->host,
                        plan->sites[rank].is_assumed ? " (assumed)" : "", seconds_text(t.s, a),
                        stage == p->slowest_stage ? "; the slowest with many streams" : "");
    }
    if (st == ST_OK && n < plan->pp && plan->pp > 1) {
        st = buf_printf(out, "  ... and %u more stages (all of them: --json)\n", plan->pp - n);
    }
    return st;
}

/* What of it nobody has measured. */
static status put_assumed(const struct plan *plan, const struct prediction *p, struct buf *out)
{
    bool on_host = false, across = false;
    status st = ST_OK;

    for (uint32_t i = 1; i < plan->n_ranks; i++) {
        const bool is_across = plan->sites[i].host != plan->sites[i - 1].host;
        across = across || is_across;
        on_host = on_host || !is_across;
    }
    if (p->n_assumed != 0) {
        st =
            buf_printf(out,
                       "  assumed: %u of %u ranks are on hosts that were not measured, the slowest "
                       "that was is taken\n",
                       p->n_assumed, plan->n_ranks);
    }
    if (st == ST_OK && p->n_plain_assumed != 0) {
        st = buf_printf(
            out,
            "  assumed: %u of %u ranks hold matrices in bf16 that pass at the rates of fp8; gantry "
            "measure --format bf16 on their hosts says better\n",
            p->n_plain_assumed, plan->n_ranks);
    }
    if (st == ST_OK && on_host && !plan->rates->on_host.is_measured) {
        st =
            buf_printf(out, "  assumed: ranks of one host reach each other in %.1f us, %.1f GB/s\n",
                       plan->rates->on_host.latency_s * 1e6, plan->rates->on_host.bytes_s / 1e9);
    }
    if (st == ST_OK && across && !plan->rates->across.is_measured) {
        st = buf_printf(out, "  assumed: hosts reach each other in %.1f us, %.1f GB/s\n",
                        plan->rates->across.latency_s * 1e6, plan->rates->across.bytes_s / 1e9);
    }
    return st;
}

enum { LEFT_OUT_MAX = 2 };

/* What a device's steps have and these times do not. */
static uint32_t left_out(const struct plan *plan, const char *what[LEFT_OUT_MAX])
{
    bool is_recorded = true;
    uint32_t n = 0;

    if (plan->device != PLAN_CUDA) {
        return 0;
    }
    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        is_recorded = is_recorded && plan->sites[i].rates->recorded_layer_s > 0;
    }
    if (predict_records(plan) && !is_recorded) {
        what[n++] =
            "decode steps are recorded and launched as one; the rates have a layer's launches "
            "one by one (no recorded_layer_us)";
    }
    if (plan->n_ranks > 1) {
        what[n++] =
            plan->plane == PLAN_PLANE_NCCL
                ? "NCCL's links from device to device; MPI's between hosts' memory are taken"
                : "copies between device and host around each exchange";
    }
    return n;
}

static status put_left_out(const struct plan *plan, struct buf *out)
{
    const char *what[LEFT_OUT_MAX];
    const uint32_t n = left_out(plan, what);
    status st = plan->device == PLAN_CUDA
                    ? buf_append_str(out, "  this path has not run on a device\n")
                    : ST_OK;

    for (uint32_t i = 0; i < n && st == ST_OK; i++) {
        st = buf_printf(out, "  left out: %s\n", what[i]);
    }
    return st;
}

status predict_print(const struct plan *plan, uint32_t prompt, struct buf *out)
{
    struct prediction p;
    status st;

    if (!plan_predict(plan, prompt, &p)) {
        return buf_append_str(out, "Times are not predicted: gantry measure -o FILE on the hosts, "
                                   "then --rates FILE.\n");
    }
    (void)((st = put_sources(plan, out)) || (st = put_request(&p, out)) ||
           (st = put_stages(plan, &p, out)) || (st = put_assumed(plan, &p, out)) ||
           (st = put_left_out(plan, out)));
    return st;
}

/* ---- for programs ---- */

static json_t *stages_json(const struct plan *plan, const struct prediction *p)
{
    const struct predict_step one = { .n_rows = 1, .n_samples = 1, .positions = p->prompt };
    json_t *stages = json_array();

    for (uint32_t stage = 0; stage < plan->pp; stage++) {
        const struct plan_site *site = &plan->sites[(size_t)stage * plan->tp];
        struct predict_time t;
        predict_stage(plan, stage, &one, &t);
        json_array_append_new(
            stages,
            json_pack("{s:I, s:I, s:s, s:b, s:f, s:s}", "stage", (json_int_t)stage, "layers",
                      (json_int_t)range_len(plan->parts[(size_t)stage * plan->tp].layers),
                      "rates_of", site->rates->host, "assumed", (int)site->is_assumed, "token_s",
                      t.s, "bound", predict_bound_name(predict_bound_of(&t))));
    }
    if (json_array_size(stages) != plan->pp) { /* what there was no memory for is not in it */
        json_decref(stages);
        return NULL;
    }
    return stages;
}

static json_t *left_out_json(const struct plan *plan)
{
    const char *what[LEFT_OUT_MAX];
    const uint32_t n = left_out(plan, what);
    json_t *list = json_array();

    for (uint32_t i = 0; i < n; i++) {
        json_array_append_new(list, json_string(what[i]));
    }
    if (json_array_size(list) != n) {
        json_decref(list);
        return NULL;
    }
    return list;
}

json_t *predict_json(const struct plan *plan, uint32_t prompt)
{
    struct prediction p;

    if (!plan_predict(plan, prompt, &p)) {
        return json_null();
    }
    return json_pack(
        "{s:I, s:f, s:f, s:s, s:f, s:s, s:I, s:f, s:f, s:s, s:I, s:I, s:b, s:b, s:o, s:o}",
        "prompt_tokens", (json_int_t)p.prompt, "first_token_s", p.first_s, "prompt_tokens_per_s",
        p.prompt_tokens_s, "first_token_bound", predict_bound_name(p.first_bound), "token_s",
        p.token_s, "token_bound", predict_bound_name(p.token_bound), "streams",
        (json_int_t)p.streams, "round_s", p.round_s, "tokens_per_s", p.tokens_s, "round_bound",
        predict_bound_name(p.round_bound), "ranks_assumed", (json_int_t)p.n_assumed,
        "ranks_plain_assumed", (json_int_t)p.n_plain_assumed, "links_on_host_measured",
        (int)plan->rates->on_host.is_measured, "links_across_measured",
        (int)plan->rates->across.is_measured, "stages", stages_json(plan, &p), "left_out",
        left_out_json(plan));
}
