/* partition/predict_json.h - between plan_print.c and predict_print.c, the two that know JSON. */
#ifndef PARTITION_PREDICT_JSON_H
#define PARTITION_PREDICT_JSON_H

#include "partition/plan.h"

#include <jansson.h>

/* plan_predict as an object; null without rates. The caller owns it. NULL: no memory. */
json_t *predict_json(const struct plan *plan, uint32_t prompt);

#endif
