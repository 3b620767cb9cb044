/* tests/common/sanitize/defaults.c - what the sanitizers are told, compiled into every program of a build with one.
 *
 * In the program and not in the environment: mpirun hands no variable of ours to other hosts, and whoever runs such a build by hand
 * wants the same. *_OPTIONS in the environment still come after these. */
const char *__ubsan_default_options(void);
const char *__tsan_default_options(void);
const char *__lsan_default_options(void);
const char *__lsan_default_suppressions(void);
const char *__tsan_default_suppressions(void);

const char *__ubsan_default_options(void)
{
    return "print_stacktrace=1:halt_on_error=1";
}

const char *__tsan_default_options(void)
{
    return "ignore_noninstrumented_modules=1:halt_on_error=1:second_deadlock_stack=1";
}

const char *__lsan_default_options(void)
{
    return "print_suppressions=0";
}

/* Memory that Open MPI and its parts keep until exit. */
const char *__lsan_default_suppressions(void)
{
    return "leak:libopen-pal\n"
           "leak:libopen-rte\n"
           "leak:libmpi.so\n"
           "leak:libpmix\n"
           "leak:libhwloc\n"
           "leak:libevent\n"
           "leak:mca_\n"
           "leak:vasprintf\n" /* theirs: ours are not called */
           "leak:libfabric\n"
           "leak:libucp\n"
           "leak:libucs\n";
}

/* Races inside libraries that are not built with ThreadSanitizer, and so cannot show their locks. */
const char *__tsan_default_suppressions(void)
{
    return "called_from_lib:libgrpc.so\n"
           "called_from_lib:libgpr.so\n"
           "called_from_lib:libopen-pal.so\n"
           "called_from_lib:libopen-rte.so\n"
           "called_from_lib:libmpi.so\n";
}

#ifdef GANTRY_SANITIZE_ADDRESS
int dlclose(void *handle);

/* Open MPI closes its plug-ins at the end, before leaks are looked for; what they have not freed could then not be told from ours. */
int dlclose(void *handle)
{
    (void)handle;
    return 0;
}
#endif
