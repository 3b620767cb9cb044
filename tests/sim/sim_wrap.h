/* tests/sim/sim_wrap.h - functions of the C library and of base/clock.c that the linker turns
 * aside (-Wl,--wrap), so that a history depends on nothing but its seed. */
#ifndef TESTS_SIM_WRAP_H
#define TESTS_SIM_WRAP_H

#include "base/clock.h"

#include <dirent.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>

int __wrap_clock_gettime(clockid_t id, struct timespec *at);
int __real_clock_gettime(clockid_t id, struct timespec *at);
const struct clock *__wrap_clock_real(void);
ssize_t __wrap_getrandom(void *data, size_t len, unsigned flags);

/* sim_disk.c: paths below /sim, and the descriptors that they gave. */
int __wrap_open(const char *path, int flags, ...);
int __real_open(const char *path, int flags, ...);
int __wrap_close(int fd);
int __real_close(int fd);
ssize_t __wrap_write(int fd, const void *data, size_t len);
ssize_t __real_write(int fd, const void *data, size_t len);
ssize_t __wrap_read(int fd, void *data, size_t len);
ssize_t __real_read(int fd, void *data, size_t len);
int __wrap_ftruncate(int fd, off_t len);
int __real_ftruncate(int fd, off_t len);
int __wrap_fdatasync(int fd);
int __real_fdatasync(int fd);
int __wrap_fsync(int fd);
int __real_fsync(int fd);
int __wrap_fstat(int fd, struct stat *info);
int __real_fstat(int fd, struct stat *info);
int __wrap_fchmod(int fd, mode_t mode);
int __real_fchmod(int fd, mode_t mode);
int __wrap_flock(int fd, int how);
int __real_flock(int fd, int how);
int __wrap_rename(const char *from, const char *to);
int __real_rename(const char *from, const char *to);
int __wrap_unlink(const char *path);
int __real_unlink(const char *path);
int __wrap_mkdir(const char *path, mode_t mode);
int __real_mkdir(const char *path, mode_t mode);
int __wrap_stat(const char *path, struct stat *info);
int __real_stat(const char *path, struct stat *info);
char *__wrap_realpath(const char *path, char *to);
char *__real_realpath(const char *path, char *to);
DIR *__wrap_opendir(const char *path);
DIR *__real_opendir(const char *path);
struct dirent *__wrap_readdir(DIR *dir);
struct dirent *__real_readdir(DIR *dir);
int __wrap_closedir(DIR *dir);
int __real_closedir(DIR *dir);

#endif
