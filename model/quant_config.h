/* model/quant_config.h - the part of config.json that says how weights are quantised: private to
 * this folder. */
#ifndef MODEL_QUANT_CONFIG_H
#define MODEL_QUANT_CONFIG_H

#include "model/config_field.h"
#include "model/desc.h"

/* quantization_config of the config; NONE where there is none. ST_ERR_UNSUPPORTED names what is not
 * fp8 weights in e4m3, ST_ERR_FORMAT and ST_ERR_LIMIT what cannot be. */
status model_quant_read(const struct field_from *from, struct model_quant *quant_p,
                        struct err *err);

#endif
