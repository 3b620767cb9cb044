/* tests/common/analyzer.h - put in front of each file by `./run lint` for clang-tidy alone: what
 * base/err.h promises, "returns `code`", in a form that an analyzer sees which reads one file at a
 * time. Without it every `return err_set(...)` may also mean success to it. */
#ifndef COMMON_ANALYZER_H
#define COMMON_ANALYZER_H

#include "base/err.h"

#define err_set(err, code, ...) ((void)(err_set)(err, code, __VA_ARGS__), (status)(code))
#define err_set_errno(err, code, errnum, ...)                                                      \
    ((void)(err_set_errno)(err, code, errnum, __VA_ARGS__), (status)(code))

#endif
