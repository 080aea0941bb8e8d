/* For LD_PRELOAD: calls that change files below a folder fail as a quota or a lost server makes them fail.
   The file FAILING_CALLS holds "ERRNO FOLDER"; without it every call is passed on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static char *name;

__attribute__((constructor)) static void begin(void) { /* forks change their environment */
    if (getenv("FAILING_CALLS")) name = strdup(getenv("FAILING_CALLS"));
}

static int below(const char *path) {
    char rule[PATH_MAX + 16], whole[PATH_MAX], *folder;
    long file, size;
    if (!name || !path || (file = syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC)) < 0) return 0;
    size = syscall(SYS_read, file, rule, sizeof rule - 1);
    syscall(SYS_close, file);
    if (size <= 0) return 0;
    rule[size] = 0;
    int number = strtol(rule, &folder, 10);
    if (*path != '/' && getcwd(whole, sizeof whole)) {
        strncat(whole, "/", sizeof whole - strlen(whole) - 1);
        path = strncat(whole, path, sizeof whole - strlen(whole) - 1);
    }
    return strncmp(path, folder + 1, strlen(folder + 1)) ? 0 : number;
}

static int fails(const char *path) {
    int kept = errno, number = below(path);
    errno = number ? number : kept;
    return number;
}

static int fails_open(int descriptor) {
    char link[64], path[PATH_MAX];
    int kept = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    long size = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    errno = kept;
    if (size <= 0) return 0;
    path[size] = 0;
    return fails(path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define OPEN(name)                                             \
    int name(const char *path, int flags, ...) {               \
        va_list more;                                          \
        va_start(more, flags);                                 \
        mode_t mode = va_arg(more, mode_t);                    \
        va_end(more);                                          \
        if (flags & (O_CREAT | O_WRONLY | O_RDWR) && fails(path)) return -1; \
        return NEXT(name)(path, flags, mode);                  \
    }
#define FILE_OPEN(name)                                        \
    FILE *name(const char *path, const char *mode) {           \
        return strpbrk(mode, "wa+") && fails(path) ? NULL : NEXT(name)(path, mode); \
    }
OPEN(open)
OPEN(open64)
FILE_OPEN(fopen)
FILE_OPEN(fopen64)
ssize_t write(int d, const void *data, size_t size) { return fails_open(d) ? -1 : NEXT(write)(d, data, size); }
int fsync(int d) { return fails_open(d) ? -1 : NEXT(fsync)(d); }
int mkdir(const char *path, mode_t mode) { return fails(path) ? -1 : NEXT(mkdir)(path, mode); }
int rename(const char *from, const char *to) { return fails(to) ? -1 : NEXT(rename)(from, to); }
